//! Every change as a server-sent event.

use super::answer::{NoParams, Params};
use super::{App, json};
use crate::core::event::Change;
use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::{self, Stream};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

/// Between comments on a quiet stream: below the minute after which many proxies give up.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

pub(super) async fn stream(
    State(app): State<Arc<App>>,
    _: Params<NoParams>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let changes = app.changes.subscribe();
    let events = stream::unfold((Some(changes), app.closing.clone()), |(changes, mut closing)| async move {
        let mut changes = changes?;
        let received = tokio::select! {
            received = changes.recv() => received,
            // Whichever way the wait ends, the server does.
            _ = closing.wait_for(|closed| *closed) => return None,
        };
        let (event, changes) = next(received, changes)?;
        Some((Ok(event), (changes, closing)))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
}

/// The event to send, and what to go on with: nothing after a client was too slow, since what it has missed is gone.
fn next(received: Result<Change, RecvError>, changes: Receiver<Change>) -> Option<(Event, Option<Receiver<Change>>)> {
    match received {
        Ok(change) => {
            let (kind, data) = json::change(&change);
            Some((Event::default().event(kind).data(data.to_string()), Some(changes)))
        }
        Err(RecvError::Lagged(missed)) => {
            let data = serde_json::json!({ "missed": missed }).to_string();
            Some((Event::default().event("lagged").data(data), None))
        }
        Err(RecvError::Closed) => None,
    }
}
