//! What the API says of builds, workers and hosts. Keys are a contract: scripts rely on them.
//!
//! Ids are text, times RFC 3339 in UTC, durations seconds; what is not known or not there is null.

use crate::core::audit::AuditReport;
use crate::core::build::{Attempt, Build, BuildEnd, FailedHost, Requirement};
use crate::core::event::Change;
use crate::core::mail::Mail;
use crate::core::view::{BuildView, HostView, Why, WorkerView};
use rouse_shared::message::{Outcome, Step, StepReport, StepState};
use rouse_shared::{BuildId, Timestamp};
use serde_json::{Value, json};
use std::time::{Duration, UNIX_EPOCH};

/// A moment of the master's clock, to the millisecond.
fn time(at: Timestamp) -> String {
    // A moment that a corrupted record puts past the year 9999 cannot be written: its latest one is.
    const LATEST: u64 = 253_402_300_799_999;
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(at.0.min(LATEST))).to_string()
}

fn seconds(milliseconds: u64) -> f64 {
    milliseconds as f64 / 1000.0
}

/// A build as listings have it.
pub(super) fn build(view: &BuildView) -> Value {
    let Build { id, spec, status } = &view.build;
    json!({
        "id": id.to_string(),
        "name": spec.name,
        "state": view.state.as_str(),
        "worker": status.attempts.last().map(|attempt| &attempt.worker),
        "attempts": status.attempts.len(),
        "priority": spec.priority,
        "created": time(status.created),
        "started": status.started.map(time),
        "finished": status.finished.map(time),
        "reason": status.end.as_ref().and_then(reason),
    })
}

fn reason(end: &BuildEnd) -> Option<&str> {
    match end {
        BuildEnd::Success | BuildEnd::Cancelled => None,
        BuildEnd::Failure(why) | BuildEnd::Lost(why) => Some(why),
    }
}

/// A build with its steps, attempts and evidence: the row of the listing, and more.
///
/// The environment is left out: it is where people put secrets.
pub(super) fn build_in_full(view: &BuildView) -> Value {
    let Build { spec, status, .. } = &view.build;
    let (worker, properties) = match &spec.requirement {
        Requirement::Worker(name) => (Some(name), None),
        Requirement::Where(properties) => (None, Some(properties)),
    };
    let more = json!({
        "wanted_worker": worker,
        "where": properties,
        "retries": spec.retries,
        "timeout": spec.timeout_ms.map(seconds),
        "cancel_requested": status.cancelled,
        "steps": spec.steps.iter().zip(1..).map(|(step, number)| step_asked(number, step)).collect::<Vec<_>>(),
        "tries": status.attempts.iter().map(|attempt| self::attempt(&spec.steps, attempt)).collect::<Vec<_>>(),
        "evidence": status.failed_hosts.iter().map(evidence).collect::<Vec<_>>(),
    });
    let mut whole = build(view);
    if let (Value::Object(whole), Value::Object(more)) = (&mut whole, more) {
        whole.extend(more);
    }
    whole
}

fn step_asked(number: usize, step: &Step) -> Value {
    json!({ "number": number, "name": step.name, "run": step.run, "always": step.always })
}

fn attempt(steps: &[Step], attempt: &Attempt) -> Value {
    let (state, reason) = match (&attempt.ended, &attempt.outcome) {
        (None, _) if attempt.started.is_some() => ("running", None),
        (None, _) => ("starting", None),
        (Some(_), Some(outcome)) => self::outcome(outcome),
        (Some(_), None) => ("lost", None),
    };
    let steps = steps.iter().enumerate().map(|(index, step)| step_done(index, step, attempt));
    json!({
        "number": attempt.number,
        "worker": attempt.worker,
        "host": attempt.host,
        "state": state,
        "reason": reason,
        "ordered": time(attempt.ordered),
        "started": attempt.started.map(time),
        "ended": attempt.ended.map(time),
        "steps": steps.collect::<Vec<_>>(),
    })
}

fn outcome(outcome: &Outcome) -> (&'static str, Option<&str>) {
    match outcome {
        Outcome::Success => ("success", None),
        Outcome::Failure(why) => ("failure", Some(why)),
        Outcome::Cancelled => ("cancelled", None),
        Outcome::Lost(why) => ("lost", Some(why)),
        Outcome::Declined(why) => ("declined", Some(why)),
    }
}

/// How a step did in one attempt; `index` counts from 0, what people see from 1.
fn step_done(index: usize, step: &Step, attempt: &Attempt) -> Value {
    let report = attempt.steps.get(index);
    let Shown { state, exit_code, signal, reason } = shown(report, attempt);
    let started = match (attempt.started, report) {
        (Some(began), Some(report)) if report.state != StepState::Skipped => {
            Some(time(began + Duration::from_millis(report.started_ms)))
        }
        (Some(_) | None, Some(_) | None) => None,
    };
    let ended = report.filter(|report| report.state != StepState::Running);
    let kept = u32::try_from(index).ok().and_then(|step| attempt.cut_logs.iter().find(|(cut, _)| *cut == step));
    json!({
        "number": index + 1,
        "name": step.name,
        "state": state,
        "exit_code": exit_code,
        "signal": signal,
        "reason": reason,
        "started": started,
        "duration": ended.map(|report| seconds(report.took_ms)),
        "log_length": ended.map(|report| kept.map_or(report.log_length, |(_, bytes)| *bytes)),
        "log_thrown_away": ended.map(|report| report.log_cut),
        "log_lacks_end": kept.is_some(),
    })
}

struct Shown<'a> {
    state: &'static str,
    exit_code: Option<i32>,
    signal: Option<i32>,
    reason: Option<&'a str>,
}

fn shown<'a>(report: Option<&'a StepReport>, attempt: &Attempt) -> Shown<'a> {
    let plain = |state| Shown { state, exit_code: None, signal: None, reason: None };
    let Some(report) = report else {
        return plain(if attempt.ended.is_some() { "skipped" } else { "pending" });
    };
    match &report.state {
        // The last that was heard of an attempt that is over.
        StepState::Running => plain(if attempt.ended.is_some() { "lost" } else { "running" }),
        StepState::Exited(0) => Shown { exit_code: Some(0), ..plain("success") },
        StepState::Exited(code) => Shown { exit_code: Some(*code), ..plain("failure") },
        StepState::Signalled(number) => Shown { signal: Some(*number), ..plain("failure") },
        StepState::TimedOut => plain("timed_out"),
        StepState::Silent => plain("silent"),
        StepState::Stopped => plain("stopped"),
        StepState::NotStarted(why) => Shown { reason: Some(why), ..plain("not_started") },
        StepState::Skipped => plain("skipped"),
        StepState::Lost(why) => Shown { reason: Some(why), ..plain("lost") },
    }
}

fn evidence(failed: &FailedHost) -> Value {
    json!({
        "host": failed.host,
        "worker": failed.worker,
        "at": time(failed.at),
        "why": failed.why,
        "console": failed.console,
    })
}

/// Why a build has not started, or what it does.
pub(super) fn why(id: BuildId, why: &Why) -> Value {
    json!({ "id": id.to_string(), "sentence": why.sentence, "next_try": why.next_try.map(time) })
}

/// A worker.
pub(super) fn worker(view: &WorkerView) -> Value {
    let facts = view.facts.as_ref().map(|facts| {
        json!({
            "os": facts.os,
            "arch": facts.arch,
            "hostname": facts.hostname,
            "cpus": facts.cpus,
            "memory": facts.memory,
        })
    });
    let vitals = view.vitals.map(|vitals| {
        json!({
            "load": vitals.load,
            "memory_used": vitals.memory_used,
            "memory_total": vitals.memory_total,
            "disk_free": vitals.disk_free,
            "disk_total": vitals.disk_total,
        })
    });
    json!({
        "name": view.name,
        "kind": if view.provider.is_some() { "latent" } else { "standing" },
        "provider": view.provider.map(|provider| provider.as_str()),
        "state": view.state.as_str(),
        "since": time(view.since),
        "running": view.running,
        "max_builds": view.max_builds,
        "host": view.host,
        "agent_version": view.agent_version,
        "properties": view.properties,
        "last_failure": view.last_failure,
        "next_try": view.next_try.map(time),
        "facts": facts,
        "vitals": vitals,
        "last_heard": view.last_heard.map(time),
        "refused": view.refused.as_ref().map(|refusal| json!({
            "at": time(refusal.at),
            "identity": refusal.identity,
            "reason": refusal.reason,
        })),
    })
}

/// A host. Its token is left out, as is what it printed: that is kept with the build that wanted it.
pub(super) fn host(host: &HostView) -> Value {
    json!({
        "id": host.id,
        "worker": host.worker,
        "provider": host.provider.as_str(),
        "handle": host.handle,
        "state": host.state.as_str(),
        "created": time(host.created),
        "booted": host.booted.map(time),
        "attached": host.attached.map(time),
        "uses": host.uses,
        "build": host.started_for.map(|build| build.to_string()),
        "suspended_since": host.suspended.map(time),
        "why": host.why,
        "cost": host.cost,
    })
}

/// A mail that waits for the relay.
pub(super) fn mail(mail: &Mail) -> Value {
    json!({
        "id": mail.id.0,
        "waiting": mail.waiting,
        "tells": mail.items.iter().map(|item| item.what.summary()).collect::<Vec<_>>(),
        "created": time(mail.created),
        "tries": mail.tries,
        "next_try": time(mail.not_before),
        "error": mail.error,
    })
}

/// What an audit has found.
pub(super) fn audit(report: &AuditReport) -> Value {
    let differences = report.differences.iter().map(|difference| {
        json!({
            "kind": difference.kind.as_str(),
            "provider": difference.provider.as_str(),
            "handle": difference.handle,
            "host": difference.host,
            "owner": difference.owner,
            "why": difference.why,
            "done": difference.done,
        })
    });
    json!({
        "clean": report.clean(),
        "differences": differences.collect::<Vec<_>>(),
        "hosts": report.hosts,
        "listed": report.listed,
    })
}

/// The kind of a change, and the change.
pub(super) fn change(change: &Change) -> (&'static str, Value) {
    match change {
        Change::Build { id, state, worker, at } => {
            let data = json!({ "id": id.to_string(), "state": state.as_str(), "worker": worker, "at": time(*at) });
            ("build", data)
        }
        Change::Worker { name, state, at } => {
            ("worker", json!({ "name": name, "state": state.as_str(), "at": time(*at) }))
        }
        Change::Host { id, worker, state, why, at } => {
            let data = json!({ "id": id, "worker": worker, "state": state.as_str(), "why": why, "at": time(*at) });
            ("host", data)
        }
    }
}
