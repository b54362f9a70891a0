//! Prints one build for people, with its attempts, their steps, and the evidence of failed hosts.

use super::output::{Table, ago, between, line, or_dash, plain};
use crate::api;
use rouse_shared::{Timestamp, duration, size};
use std::io;
use std::time::Duration;

/// Prints why a build has not started, or how it ended.
pub(super) fn why(why: &api::Why) -> io::Result<()> {
    line(&plain(&why.sentence))
}

/// Prints a build in full.
pub(super) fn build(build: &api::BuildInFull, now: Timestamp) -> io::Result<()> {
    let mut out = head(build, now);
    for attempt in &build.tries {
        out.push('\n');
        out.push_str(&self::attempt(attempt, now));
    }
    for failed in &build.evidence {
        out.push('\n');
        out.push_str(&evidence(failed, now));
    }
    line(out.trim_end())
}

fn head(whole: &api::BuildInFull, now: Timestamp) -> String {
    let build = &whole.build;
    let mut out = format!("build {}  {}\n", build.id, build.state.as_str());
    let mut field = |key: &str, value: String| {
        if value != "-" {
            out.push_str(&format!("  {key:<9} {}\n", plain(&value)));
        }
    };
    field("name", or_dash(Some(&build.name)));
    field("reason", or_dash(build.reason.as_ref()));
    field("worker", or_dash(whole.wanted_worker.as_ref()));
    let properties = whole.r#where.as_ref().map(|properties| {
        let pairs: Vec<_> = properties.iter().map(|(key, value)| format!("{key}={value}")).collect();
        if pairs.is_empty() { "any worker".to_owned() } else { pairs.join(" ") }
    });
    field("where", or_dash(properties.as_ref()));
    field("submitter", or_dash(build.submitter.as_ref()));
    field("priority", build.priority.to_string());
    field("retries", whole.retries.to_string());
    let limit = whole.timeout.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).map(duration::exact);
    field("timeout", or_dash(limit.as_ref()));
    field("created", format!("{} ({})", build.created, ago(Some(build.created), now)));
    if build.started.is_some() {
        field("started", or_dash(build.started.as_ref()));
        field("took", between(build.started, build.finished, now));
    }
    field("finished", or_dash(build.finished.as_ref()));
    field("kept", if whole.keep { "it is never deleted" } else { "-" }.to_owned());
    let deleted = whole.logs_deleted.map(|at| format!("deleted by retention {}", ago(Some(at), now)));
    let stored = || whole.logs_store.as_ref().map(|store| format!("in {store}"));
    let logs = deleted.or_else(|| whole.upload_trouble.clone()).or_else(stored);
    field("logs", or_dash(logs.as_ref()));
    out
}

fn attempt(attempt: &api::Attempt, now: Timestamp) -> String {
    let host = attempt.host.as_ref().map_or_else(String::new, |host| format!(", host {host}"));
    let reason = attempt.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
    let title = format!(
        "attempt {} on {}{host}: {}{reason}, assigned {}",
        attempt.number,
        attempt.worker,
        attempt.state.as_str(),
        ago(Some(attempt.ordered), now),
    );
    let rows = attempt.steps.iter().map(|step| {
        let code = match (step.exit_code, step.signal) {
            (None, None) => "-".to_owned(),
            (None, Some(signal)) => format!("signal {signal}"),
            (Some(code), _) => code.to_string(),
        };
        let note = match step.log_thrown_away {
            Some(cut) if cut > 0 => format!("{cut} bytes of its log were dropped"),
            _ if step.log_lacks_end => "the end of its log is lost".to_owned(),
            _ => step.reason.clone().unwrap_or_default(),
        };
        let took = step.duration.map(|seconds| format!("{seconds:.1}s"));
        [
            String::new(),
            step.number.to_string(),
            or_dash(Some(&step.name)),
            step.state.words().to_owned(),
            code,
            or_dash(took.as_ref()),
            or_dash(step.cpu_seconds.map(|seconds| format!("{seconds:.1}s")).as_ref()),
            or_dash(step.peak_memory.map(size::show).as_ref()),
            or_dash(step.log_length.as_ref()),
            note,
        ]
    });
    let table = Table::new(["", "STEP", "NAME", "STATE", "EXIT", "TOOK", "CPU", "MEMORY", "LOG", ""], rows);
    let unenforced = attempt.limits_not_enforced.as_ref();
    let unenforced = unenforced.map(|text| format!("  {}\n", plain(text))).unwrap_or_default();
    format!("{}\n{unenforced}{table}", plain(&title))
}

fn evidence(failed: &api::Evidence, now: Timestamp) -> String {
    let (host, worker, why) = (&failed.host, &failed.worker, &failed.why);
    let mut out = plain(&format!("host {host} of {worker} never attached: {why}, {}", ago(Some(failed.at), now)));
    out.push('\n');
    if let Some(console) = &failed.console {
        out.push_str("  the last lines of its console:\n");
        for printed in console.lines() {
            out.push_str(&format!("  | {}\n", plain(printed)));
        }
    }
    out
}
