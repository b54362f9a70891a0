//! Sends every change as a server-sent event.

use super::error::{NoParams, Params};
use super::{App, views};
use crate::api;
use crate::core::event::Change;
use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::{self, Stream};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

/// Interval of comments on a quiet stream. It is below the minute after which many proxies close a connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Stream every change from now on, as server-sent events.
///
/// Events are named `build`, `worker` and `host`; their data are the JSON of `Change`. A client that is too slow gets the
/// event `lagged` with the JSON of `Lagged`, and then the stream ends.
#[utoipa::path(
    get, path = "/api/events",
    responses((status = 200, description = "The stream.", body = String, content_type = "text/event-stream")),
)]
pub(super) async fn stream_events(
    State(app): State<Arc<App>>,
    _: Params<NoParams>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let changes = app.changes.subscribe();
    let events = stream::unfold((Some(changes), app.closing.clone()), |(changes, mut closing)| async move {
        let mut changes = changes?;
        let received = tokio::select! {
            received = changes.recv() => received,
            // The server is ending.
            _ = closing.wait_for(|closed| *closed) => return None,
        };
        let (event, changes) = next(received, changes)?;
        Some((Ok(event), (changes, closing)))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
}

/// The next event, and the receiver to continue with. The stream ends after the client was too slow, because it has
/// missed events.
fn next(received: Result<Change, RecvError>, changes: Receiver<Change>) -> Option<(Event, Option<Receiver<Change>>)> {
    match received {
        Ok(change) => {
            let kind = match &change {
                Change::Build { .. } => "build",
                Change::Worker { .. } => "worker",
                Change::Host { .. } => "host",
            };
            Some((event(kind, &views::change(&change)), Some(changes)))
        }
        Err(RecvError::Lagged(missed)) => Some((event("lagged", &api::Lagged { missed }), None)),
        Err(RecvError::Closed) => None,
    }
}

fn event(kind: &str, data: &impl serde::Serialize) -> Event {
    // Strings and numbers can always be serialised.
    Event::default().event(kind).data(serde_json::to_string(data).unwrap_or_default())
}
