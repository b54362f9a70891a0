//! The master's metrics in the format of Prometheus.

use super::error::{ApiError, NoParams, Params};
use super::{App, Metrics, Query};
use crate::core::build::BuildState;
use crate::core::event::WorkerState;
use crate::core::record::HostState;
use crate::core::view::PlaceState;
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
    head(&mut out, "rouse_info", "The version of the master.", "gauge");
    line(&mut out, "rouse_info", Some(("version", version)), 1.0);
    let (builds, workers, hosts) = (&metrics.builds, &metrics.workers, &metrics.hosts);
    by_state(&mut out, "rouse_builds", "Builds by state.", builds, &BuildState::ALL, BuildState::as_str);
    by_state(&mut out, "rouse_workers", "Workers by state.", workers, &WORKER_STATES, WorkerState::as_str);
    by_state(&mut out, "rouse_hosts", "Hosts by state.", hosts, &HOST_STATES, HostState::as_str);
    head(&mut out, "rouse_place_pausing", "Whether the place starts no hosts for now, by place.", "gauge");
    for place in &metrics.places {
        let pausing = f64::from(u8::from(place.state == PlaceState::Pausing));
        line(&mut out, "rouse_place_pausing", Some(("place", &place.id)), pausing);
    }
    for figure in &metrics.figures {
        head(&mut out, figure.name, figure.help, if figure.counter { "counter" } else { "gauge" });
        line(&mut out, figure.name, None, figure.value);
    }
    out
}

/// A line for each state, even if its number is zero, so that alerts find every state.
fn by_state<S: Ord + Copy>(
    out: &mut String,
    name: &str,
    help: &str,
    counts: &BTreeMap<S, u64>,
    states: &[S],
    text: fn(S) -> &'static str,
) {
    head(out, name, help, "gauge");
    for state in states {
        let count = counts.get(state).copied().unwrap_or(0);
        line(out, name, Some(("state", text(*state))), count as f64);
    }
}

fn head(out: &mut String, name: &str, help: &str, kind: &str) {
    writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}").expect("a string takes any text");
}

fn line(out: &mut String, name: &str, label: Option<(&str, &str)>, value: f64) {
    let written = match label {
        Some((key, text)) => writeln!(out, "{name}{{{key}=\"{text}\"}} {value}"),
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
        let figure = Figure { name: "rouse_mails_total", help: "Mails.", counter: true, value: 3.0 };
        let mut metrics = Metrics { figures: vec![figure], ..Metrics::default() };
        metrics.builds.insert(BuildState::Queued, 7);
        let text = render(&metrics, "1.2.3");
        for expected in [
            "# TYPE rouse_builds gauge\n",
            "rouse_builds{state=\"queued\"} 7\n",
            "rouse_builds{state=\"lost\"} 0\n",
            "rouse_workers{state=\"backoff\"} 0\n",
            "rouse_hosts{state=\"terminating\"} 0\n",
            "rouse_info{version=\"1.2.3\"} 1\n",
            "# HELP rouse_mails_total Mails.\n# TYPE rouse_mails_total counter\nrouse_mails_total 3\n",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in\n{text}");
        }
    }
}
