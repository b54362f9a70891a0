//! The master's metrics in the format of Prometheus.

use super::error::{ApiError, NoParams, Params};
use super::{App, Metrics, Query};
use crate::core::build::BuildState;
use crate::core::event::WorkerState;
use crate::core::record::HostState;
use crate::core::view::{PlaceState, PlaceView};
use crate::metrics::table;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

const WORKER_STATES: [WorkerState; 9] = [
    WorkerState::Offline,
    WorkerState::Asleep,
    WorkerState::Starting,
    WorkerState::Idle,
    WorkerState::Busy,
    WorkerState::Draining,
    WorkerState::Paused,
    WorkerState::Missing,
    WorkerState::Backoff,
];

/// Without `terminated`: terminated hosts are not counted.
const HOST_STATES: [HostState; 8] = [
    HostState::Ordered,
    HostState::Booting,
    HostState::Ready,
    HostState::Draining,
    HostState::Suspending,
    HostState::Suspended,
    HostState::Resuming,
    HostState::Terminating,
];

/// Get the master's metrics, for Prometheus.
#[utoipa::path(
    get, path = "/metrics",
    responses((status = 200, description = "The metrics.", body = String, content_type = "text/plain")),
)]
pub(super) async fn metrics(State(app): State<Arc<App>>, _: Params<NoParams>) -> Result<impl IntoResponse, ApiError> {
    let metrics = app.query(|reply| Query::Metrics { reply }).await?;
    let text = render(&metrics, app.settings.version);
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text))
}

fn render(metrics: &Metrics, version: &str) -> String {
    let mut out = String::new();
    labelled(&mut out, "rouse_info", [(version, 1)]);
    by_state(&mut out, "rouse_builds", &metrics.builds, &BuildState::ALL, BuildState::as_str);
    by_state(&mut out, "rouse_workers", &metrics.workers, &WORKER_STATES, WorkerState::as_str);
    by_state(&mut out, "rouse_hosts", &metrics.hosts, &HOST_STATES, HostState::as_str);
    let pausing = |place: &PlaceView| u64::from(place.state == PlaceState::Pausing);
    labelled(&mut out, "rouse_place_pausing", metrics.places.iter().map(|place| (place.id.as_str(), pausing(place))));
    labelled(&mut out, "rouse_refusals_total", metrics.refusals.iter().map(|(at, count)| (*at, *count)));
    labelled(&mut out, "rouse_capacity_builds", metrics.capacity.iter().map(|(name, count)| (name.as_str(), *count)));
    labelled(&mut out, "rouse_idle_workers", metrics.idle.iter().map(|(name, count)| (name.as_str(), *count)));
    for figure in &metrics.figures {
        head(&mut out, table::of(figure.name));
        line(&mut out, figure.name, None, figure.value);
    }
    out + &metrics.meters
}

/// A line for each state, even if its number is zero, so that alerts find every state.
fn by_state<S: Ord + Copy>(
    out: &mut String,
    name: &str,
    counts: &BTreeMap<S, u64>,
    states: &[S],
    text: fn(S) -> &'static str,
) {
    labelled(out, name, states.iter().map(|state| (text(*state), counts.get(state).copied().unwrap_or(0))));
}

/// A metric with one label and its values.
fn labelled<'a>(out: &mut String, name: &str, values: impl IntoIterator<Item = (&'a str, u64)>) {
    let description = table::of(name);
    head(out, description);
    for (text, value) in values {
        line(out, name, Some((description.labels[0], text)), value as f64);
    }
}

fn head(out: &mut String, table::Description { name, kind, help, .. }: &table::Description) {
    let kind = kind.as_str();
    writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}").expect("a string takes any text");
}

fn line(out: &mut String, name: &str, label: Option<(&str, &str)>, value: f64) {
    let written = match label {
        Some((key, text)) => {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            writeln!(out, "{name}{{{key}=\"{text}\"}} {value}")
        }
        None => writeln!(out, "{name} {value}"),
    };
    written.expect("a string takes any text");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::Figure;

    #[test]
    fn every_state_has_a_line_and_figures_follow() {
        let figure = Figure { name: "rouse_mails_sent_total", value: 3.0 };
        let mut metrics = Metrics { figures: vec![figure], ..Metrics::default() };
        metrics.builds.insert(BuildState::Queued, 7);
        metrics.idle.insert("a\"b\\".to_owned(), 2);
        let text = render(&metrics, "1.2.3");
        for expected in [
            "# TYPE rouse_builds gauge\n",
            "rouse_builds{state=\"queued\"} 7\n",
            "rouse_builds{state=\"lost\"} 0\n",
            "rouse_workers{state=\"backoff\"} 0\n",
            "rouse_hosts{state=\"terminating\"} 0\n",
            "rouse_info{version=\"1.2.3\"} 1\n",
            "# TYPE rouse_mails_sent_total counter\nrouse_mails_sent_total 3\n",
            "rouse_idle_workers{template=\"a\\\"b\\\\\"} 2\n",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in\n{text}");
        }
    }
}
