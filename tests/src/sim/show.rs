//! Prints what happens in one line each, for a transcript that a person reads from top to bottom.

use rouse_agent::core::{Effect as AgentEffect, Event as AgentEvent};
use rouse_master::core::event::{Command, Event, ListedHost, Listing, UnlistedPlace};
use rouse_master::core::plan::Plan;
use rouse_master::core::show;
use rouse_shared::message::{AttemptReport, ToMaster};

/// The workers and limits of a configuration.
pub(super) fn plan(plan: &Plan) -> Vec<String> {
    let mut lines = vec![format!(
        "max_hosts {:?}, mail after {} failed starts, audit every {} s, orphans are {}",
        plan.max_hosts,
        plan.mail_after_failed_starts,
        plan.audit_interval.as_secs(),
        if plan.stop_orphans { "stopped" } else { "left" }
    )];
    for worker in plan.workers.values() {
        let lease = worker.lease.map(|lease| lease.as_secs());
        let mut line = format!(
            "worker {}: os {}, max_builds {:?}, keepalive {} s, lease {lease:?} s, missing after {} s",
            worker.name,
            worker.properties.get("os").map_or("", String::as_str),
            worker.max_builds,
            worker.keepalive.as_secs(),
            worker.missing_timeout.as_secs()
        );
        if let Some(latent) = &worker.latent {
            line.push_str(&format!(
                "; {} of {}: build_wait_timeout {:?} s, min_idle {}, max_uses {}, sleeps until {:?} s, version {:04x}",
                latent.provider.as_str(),
                latent.template,
                latent.build_wait_timeout.map(|timeout| timeout.as_secs()),
                latent.min_idle,
                latent.max_uses,
                latent.suspend.map(|sleep| sleep.max_age.as_secs()),
                latent.fingerprint & 0xffff
            ));
        }
        lines.push(line);
    }
    lines
}

/// An event of the master.
pub(super) fn event(event: &Event) -> String {
    match event {
        Event::Agent { worker, message } => format!("{worker}: {}", to_master(message)),
        Event::AttestationFailed { worker, why, .. } => format!("{worker}: a hello with bad papers: {why}"),
        Event::Detached { worker, queue } => {
            let what = queue.as_ref().map_or("a connection is closed".to_owned(), |q| format!("no queue {q}"));
            format!("{worker}: {what}")
        }
        Event::BrokerUp => "the broker is up".to_owned(),
        Event::BrokerDown => "the broker is down".to_owned(),
        Event::BrokerBlocked { why } => format!("the broker accepts nothing: {why}"),
        Event::BrokerUnblocked => "the broker accepts messages".to_owned(),
        Event::Command { request, command: Command::Submit { spec, message_id }, .. } => {
            let known = message_id.as_ref().map(|(id, known)| format!(" as {id}, known {known:?}")).unwrap_or_default();
            format!(
                "submit {} ({:?}, retries {}){known}, request {}",
                spec.name, spec.requirement, spec.retries, request.0
            )
        }
        Event::Command { request, command: Command::CancelBuild(build), .. } => {
            format!("cancel build {build}, request {}", request.0)
        }
        Event::Command { request, command: Command::Operate { worker, operation }, .. } => {
            format!("{operation:?} {worker}, request {}", request.0)
        }
        Event::Command { request, command: Command::ForgetHost(host), .. } => {
            format!("forget {host}, request {}", request.0)
        }
        Event::Command { request, command: Command::ForgetPlace(place), .. } => {
            format!("forget {place}, request {}", request.0)
        }
        Event::Command { request, command: Command::TerminateHost(host), .. } => {
            format!("terminate {host}, request {}", request.0)
        }
        Event::Command { request, command: Command::Audit(mode), .. } => {
            format!("audit {mode:?}, request {}", request.0)
        }
        Event::Command { command: Command::Record(action), .. } => format!("record {}", action.as_str()),
        Event::Configure(_) => "a new configuration".to_owned(),
        Event::Prepared { host, number, result } => {
            let result = result.as_ref().map(|order| &order.spec);
            format!("order {number} for {host}: {result:?}")
        }
        Event::StartEnded { host, number, result } => format!("start {number} of {host} ended: {result:?}"),
        Event::TerminateEnded { host, result } => format!("termination of {host} ended: {result:?}"),
        Event::OrphanTerminateEnded { handle, result, .. } => format!("termination of {handle} ended: {result:?}"),
        Event::SuspendEnded { host, result } => format!("suspension of {host} ended: {result:?}"),
        Event::ResumeEnded { host, result } => format!("resumption of {host} ended: {result:?}"),
        Event::HostGone { host, why, .. } => format!("{host} is gone: {why}"),
        Event::Console { host, text } => format!("console of {host}: {text:?}"),
        Event::Listed { provider, result } => format!("{} lists {}", provider.as_str(), listed(result)),
        Event::LogsWhole { attempt } => format!("logs of {attempt} are whole"),
        Event::LogGap { attempt, step, offset } => format!("log {step} of {attempt} lacks its bytes from {offset}"),
        Event::MailSent { mail, result } => format!("mail {} was sent: {result:?}", mail.0),
        Event::Expired(Ok(found)) => format!("found expired {found:?}"),
        Event::Expired(Err(why)) => format!("found nothing expired: {why}"),
        Event::LogsDeleted { builds, failed } => {
            let failed = failed.as_ref().map(|why| format!(", but not all: {why}")).unwrap_or_default();
            format!("deleted the logs of {} builds{failed}", builds.len())
        }
        Event::Upload { build, store, upload } => format!("upload of {build} to {store}: {upload:?}"),
        Event::Shutdown => "is asked to end".to_owned(),
        Event::Tick => "tick".to_owned(),
        Event::ListedForAudit { request, round, provider, result } => {
            format!("{} lists {} for audit {}, round {round}", provider.as_str(), listed(result), request.0)
        }
    }
}

fn listed(result: &Result<Listing, String>) -> String {
    let ids = |hosts: &[ListedHost]| hosts.iter().map(|h| format!("{} {}", h.host, h.handle)).collect::<Vec<_>>();
    let not = |place: &UnlistedPlace| format!("{}: {}", place.place.as_deref().unwrap_or("any place"), place.why);
    match result {
        Ok(Listing { machines, unlisted }) => {
            let unlisted: Vec<_> = unlisted.iter().map(not).collect();
            format!("[{}], unlisted [{}]", ids(machines).join(", "), unlisted.join("; "))
        }
        Err(why) => format!("nothing: {why}"),
    }
}

/// What an agent says.
pub(super) fn to_master(message: &ToMaster) -> String {
    match message {
        ToMaster::Hello(hello) => {
            let attempts: Vec<_> = hello.attempts.iter().map(report).collect();
            format!(
                "hello, life {:.6}, connection {}, identity {}, credential {:.6}, runs [{}]{}",
                hello.nonce,
                hello.connection,
                hello.identity,
                hello.credential,
                attempts.join(", "),
                if hello.leaving { ", leaving" } else { "" }
            )
        }
        ToMaster::Heartbeat(heartbeat) => format!("heartbeat {} of session {:.6}", heartbeat.seq, heartbeat.session),
        ToMaster::Report(sent) => format!("report {}", report(&sent.attempt)),
        ToMaster::Drained { drain, .. } => format!("drained {drain}"),
        ToMaster::Leaving { .. } => "leaving".to_owned(),
        ToMaster::Goodbye { .. } => "goodbye".to_owned(),
        ToMaster::Notice { .. } => format!("{message:?}"),
    }
}

fn report(report: &AttemptReport) -> String {
    let steps: Vec<_> = report.steps.iter().map(|s| format!("{:?} {} B", s.state, s.log_length)).collect();
    let outcome = report.outcome.as_ref().map(|o| format!(" {o:?}")).unwrap_or_default();
    format!("{} rev {} [{}]{outcome}", report.attempt, report.revision, steps.join(", "))
}

/// A message to an agent.
pub(super) fn agent_event(event: &AgentEvent) -> String {
    match event {
        AgentEvent::FromMaster { message, .. } => show::message(message),
        AgentEvent::Start
        | AgentEvent::LinkUp { .. }
        | AgentEvent::LinkDown { .. }
        | AgentEvent::LinkBlocked { .. }
        | AgentEvent::LinkUnblocked { .. }
        | AgentEvent::PrepareFailed { .. }
        | AgentEvent::StepStarted { .. }
        | AgentEvent::StepEnded { .. }
        | AgentEvent::LogSent { .. }
        | AgentEvent::Notice(_)
        | AgentEvent::Resumed(_)
        | AgentEvent::NetworkChanged
        | AgentEvent::Tick
        | AgentEvent::Terminate => format!("{event:?}"),
    }
}

/// What an agent does.
pub(super) fn agent_effect(effect: &AgentEffect) -> String {
    match effect {
        AgentEffect::Send(message) => format!("says {}", to_master(message)),
        AgentEffect::RunStep(step) => format!("runs step {} of {}", step.step, step.attempt),
        AgentEffect::Log(level, text) => format!("{level:?}: {text}"),
        AgentEffect::Connect { .. }
        | AgentEffect::Disconnect { .. }
        | AgentEffect::StopAttempt(_)
        | AgentEffect::KillAttempt(_)
        | AgentEffect::SetDeadline(_)
        | AgentEffect::StoreSecret(_)
        | AgentEffect::ForgetSecret
        | AgentEffect::RemoveAttempt(_)
        | AgentEffect::SendLogFrom { .. }
        | AgentEffect::PowerOff { .. }
        | AgentEffect::Restart { .. }
        | AgentEffect::Exit { .. } => format!("{effect:?}"),
    }
}
