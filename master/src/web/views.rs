//! Converts the core's views to the types of the API.

use crate::api::{self, AttemptState, Id, StepState, Time};
use crate::core::audit::AuditReport;
use crate::core::build::{self, BuildEnd, FailedHost, Requirement};
use crate::core::event::Change;
use crate::core::journal::Entry;
use crate::core::mail::Mail;
use crate::core::view::{BuildView, HostView, PlaceView, Why, WorkerView};
use rouse_shared::BuildId;
use rouse_shared::message::{self, Outcome, StepReport};
use std::time::Duration;

fn seconds(milliseconds: u64) -> f64 {
    milliseconds as f64 / 1000.0
}

/// A count that always fits.
fn count(many: usize) -> u32 {
    u32::try_from(many).unwrap_or(u32::MAX)
}

/// A build as in lists.
pub(super) fn build(view: &BuildView) -> api::Build {
    let build::Build { id, spec, status, .. } = &view.build;
    api::Build {
        id: Id(*id),
        name: spec.name.clone(),
        state: view.state,
        worker: status.attempts.last().map(|attempt| attempt.worker.clone()),
        attempts: count(status.attempts.len()),
        priority: spec.priority,
        submitter: status.submitter.as_ref().map(|submitter| submitter.name.clone()),
        created: Time(status.created),
        started: status.started.map(Time),
        finished: status.finished.map(Time),
        reason: status.end.as_ref().and_then(reason),
    }
}

fn reason(end: &BuildEnd) -> Option<String> {
    match end {
        BuildEnd::Success | BuildEnd::Cancelled => None,
        BuildEnd::Failure(why) | BuildEnd::Lost(why) => Some(why.clone()),
    }
}

/// A build with its steps, attempts and evidence.
pub(super) fn build_in_full(view: &BuildView) -> api::BuildInFull {
    let build::Build { spec, status, .. } = &view.build;
    let (wanted_worker, r#where) = match &spec.requirement {
        Requirement::Worker(name) => (Some(name.clone()), None),
        Requirement::Where(properties) => (None, Some(properties.clone())),
    };
    api::BuildInFull {
        build: build(view),
        wanted_worker,
        r#where,
        retries: spec.retries,
        timeout: spec.timeout_ms.map(seconds),
        queue_timeout: spec.queue_timeout_ms.map(seconds),
        cancel_requested: status.cancelled,
        keep: spec.keep,
        logs_deleted: view.build.logs_deleted.map(Time),
        logs_store: view.build.logs_store.as_deref().map(|store| store.split('?').next().unwrap_or(store).to_owned()),
        upload_trouble: view.upload_trouble.clone(),
        steps: spec.steps.iter().zip(1..).map(|(step, number)| requested_step(number, step)).collect(),
        tries: status.attempts.iter().map(|attempt| self::attempt(&spec.steps, attempt)).collect(),
        evidence: status.failed_hosts.iter().map(evidence).collect(),
    }
}

/// An entry of the journal.
pub(super) fn journal_entry(entry: Entry) -> api::JournalEntry {
    let Entry { id, at, action, target, principal, from, note } = entry;
    api::JournalEntry {
        id: id.to_string(),
        at: Time(at),
        who: principal.name,
        kind: principal.kind,
        from,
        action,
        target,
        note,
    }
}

fn requested_step(number: u32, step: &message::Step) -> api::RequestedStep {
    api::RequestedStep { number, name: step.name.clone(), run: step.run.clone(), always: step.always }
}

fn attempt(steps: &[message::Step], attempt: &build::Attempt) -> api::Attempt {
    let (state, reason) = match (&attempt.ended, &attempt.outcome) {
        (None, _) if attempt.started.is_some() => (AttemptState::Running, None),
        (None, _) => (AttemptState::Starting, None),
        (Some(_), Some(outcome)) => self::outcome(outcome),
        (Some(_), None) => (AttemptState::Lost, None),
    };
    api::Attempt {
        number: attempt.number,
        worker: attempt.worker.clone(),
        host: attempt.host.clone(),
        state,
        reason: reason.cloned(),
        ordered: Time(attempt.ordered),
        started: attempt.started.map(Time),
        ended: attempt.ended.map(Time),
        limits_not_enforced: attempt.unenforced.clone(),
        steps: steps.iter().zip(0..).map(|(step, index)| self::step(index, step, attempt)).collect(),
    }
}

fn outcome(outcome: &Outcome) -> (AttemptState, Option<&String>) {
    match outcome {
        Outcome::Success => (AttemptState::Success, None),
        Outcome::Failure(why) => (AttemptState::Failure, Some(why)),
        Outcome::Cancelled => (AttemptState::Cancelled, None),
        Outcome::Lost(why) => (AttemptState::Lost, Some(why)),
        Outcome::Declined(why) => (AttemptState::Declined, Some(why)),
    }
}

/// A step in one attempt. `index` counts from 0; the API counts from 1.
fn step(index: u32, step: &message::Step, attempt: &build::Attempt) -> api::Step {
    let report = usize::try_from(index).ok().and_then(|index| attempt.steps.get(index));
    let state = step_state(report, attempt);
    let (exit_code, signal, reason) = match report.map(|report| &report.state) {
        Some(message::StepState::Exited(code)) => (Some(*code), None, None),
        Some(message::StepState::Signalled(number)) => (None, Some(*number), None),
        Some(message::StepState::NotStarted(why) | message::StepState::Lost(why)) => (None, None, Some(why.clone())),
        _ => (None, None, None),
    };
    let usage = report.and_then(|report| report.usage);
    let reason = reason.or_else(|| usage.and_then(|usage| usage.memory_failure()));
    let ran = report.filter(|report| report.state != message::StepState::Skipped);
    let started = attempt.started.zip(ran).map(|(began, report)| began + Duration::from_millis(report.started_ms));
    let ended = report.filter(|report| report.state != message::StepState::Running);
    let kept = attempt.cut_logs.iter().find(|(cut, _)| *cut == index);
    api::Step {
        number: index + 1,
        name: step.name.clone(),
        state,
        exit_code,
        signal,
        reason,
        started: started.map(Time),
        duration: ended.map(|report| seconds(report.took_ms)),
        log_length: ended.map(|report| kept.map_or(report.log_length, |(_, bytes)| *bytes)),
        log_thrown_away: ended.map(|report| report.log_cut),
        log_lacks_end: kept.is_some(),
        cpu_seconds: usage.map(|usage| seconds(usage.cpu_ms)),
        peak_memory: usage.and_then(|usage| usage.peak_memory),
        out_of_memory: usage.is_some_and(|usage| usage.out_of_memory),
    }
}

fn step_state(report: Option<&StepReport>, attempt: &build::Attempt) -> StepState {
    let over = attempt.ended.is_some();
    match report.map(|report| &report.state) {
        None if over => StepState::Skipped,
        None => StepState::Pending,
        // The last report of an attempt that has ended.
        Some(message::StepState::Running) if over => StepState::Lost,
        Some(message::StepState::Running) => StepState::Running,
        Some(message::StepState::Exited(0)) => StepState::Success,
        Some(message::StepState::Exited(_) | message::StepState::Signalled(_)) => StepState::Failure,
        Some(message::StepState::TimedOut) => StepState::TimedOut,
        Some(message::StepState::Silent) => StepState::Silent,
        Some(message::StepState::Stopped) => StepState::Stopped,
        Some(message::StepState::NotStarted(_)) => StepState::NotStarted,
        Some(message::StepState::Skipped) => StepState::Skipped,
        Some(message::StepState::Lost(_)) => StepState::Lost,
    }
}

fn evidence(failed: &FailedHost) -> api::Evidence {
    api::Evidence {
        host: failed.host.clone(),
        worker: failed.worker.clone(),
        at: Time(failed.at),
        why: failed.why.clone(),
        console: failed.console.clone(),
    }
}

/// Why a build has not started, or what it does.
pub(super) fn why(id: BuildId, Why { sentence, next_try }: Why) -> api::Why {
    api::Why { id: Id(id), sentence, next_try: next_try.map(Time) }
}

/// A worker.
pub(super) fn worker(view: WorkerView) -> api::Worker {
    api::Worker {
        name: view.name,
        template: view.template,
        kind: if view.provider.is_some() { api::WorkerKind::Latent } else { api::WorkerKind::Standing },
        provider: view.provider,
        state: view.state,
        since: Time(view.since),
        running: view.running,
        max_builds: view.max_builds,
        host: view.host,
        agent_version: view.agent_version,
        properties: view.properties,
        last_failure: view.last_failure,
        next_try: view.next_try.map(Time),
        facts: view.facts.map(|facts| api::Facts {
            os: facts.os,
            arch: facts.arch,
            hostname: facts.hostname,
            cpus: facts.cpus,
            memory: facts.memory,
            enforced_limits: facts.cgroups.map(|message::Cgroups { memory, pids, cpu }| {
                let all = [("memory", memory), ("pids", pids), ("cpus", cpu)];
                all.into_iter().filter(|(_, enforced)| *enforced).map(|(name, _)| name.to_owned()).collect()
            }),
            no_cgroups: facts.no_cgroups.map(|why| why.chars().filter(|c| !c.is_control()).collect()),
        }),
        unfit: view.unfit,
        vitals: view.vitals.map(|vitals| api::Vitals {
            load: vitals.load,
            memory_used: vitals.memory_used,
            memory_total: vitals.memory_total,
            disk_free: vitals.disk_free,
            disk_total: vitals.disk_total,
        }),
        last_heard: view.last_heard.map(Time),
        refused: view.refused.map(|refusal| api::Refusal {
            at: Time(refusal.at),
            identity: refusal.identity,
            reason: refusal.reason,
        }),
    }
}

/// A host, without its token and console output. The latter is shown with the build that waited for the host.
pub(super) fn host(HostView { host, builds }: HostView) -> api::Host {
    api::Host {
        id: host.id,
        worker: host.worker,
        provider: host.provider,
        handle: host.handle,
        state: host.state,
        created: Time(host.created),
        booted: host.booted.map(Time),
        attached: host.attached.map(Time),
        uses: host.uses,
        build: host.started_for.map(Id),
        builds: builds.into_iter().map(Id).collect(),
        suspended_since: host.suspended.map(Time),
        why: host.why,
        cost: host.cost,
    }
}

/// A place.
pub(super) fn place(view: PlaceView) -> api::Place {
    api::Place {
        id: view.id,
        provider: view.provider,
        name: view.name,
        state: view.state,
        hosts: view.hosts,
        reason: view.reason,
        since: view.since.map(Time),
        next_probe: view.next_probe.map(Time),
    }
}

/// A mail that waits for the relay.
pub(super) fn mail(mail: Mail) -> api::Mail {
    api::Mail {
        id: mail.id.0,
        waiting: mail.waiting,
        tells: mail.items.iter().map(|item| item.what.summary()).collect(),
        created: Time(mail.created),
        tries: mail.tries,
        next_try: Time(mail.not_before),
        error: mail.error,
    }
}

/// What an audit has found.
pub(super) fn audit(report: AuditReport) -> api::Audit {
    let clean = report.clean();
    let differences = report.differences.into_iter().map(|difference| api::Difference {
        kind: difference.kind,
        provider: difference.provider,
        handle: difference.handle,
        host: difference.host,
        owner: difference.owner,
        why: difference.why,
        done: difference.done,
    });
    api::Audit { clean, differences: differences.collect(), hosts: report.hosts, listed: report.listed }
}

/// A change.
pub(super) fn change(change: &Change) -> api::Change {
    match change {
        Change::Build { id, state, worker, at } => {
            api::Change::Build(api::BuildChange { id: Id(*id), state: *state, worker: worker.clone(), at: Time(*at) })
        }
        Change::Worker { name, state, at } => {
            api::Change::Worker(api::WorkerChange { name: name.clone(), state: *state, at: Time(*at) })
        }
        Change::Host { id, worker, state, why, at } => api::Change::Host(api::HostChange {
            id: id.clone(),
            worker: worker.clone(),
            state: *state,
            why: why.clone(),
            at: Time(*at),
        }),
    }
}
