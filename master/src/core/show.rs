//! Prints effects, records and messages in one line each, for the transcripts of tests and the simulation.

use super::event::{Change, Effect};
use super::mail::{Item, What};
use super::record::Record;
use rouse_shared::message::ToAgent;
use rouse_shared::{BuildId, Timestamp};

/// An effect.
pub fn effect(effect: &Effect, now: Timestamp) -> String {
    match effect {
        Effect::Save(record) => format!("save {}", self::record(record, now)),
        Effect::Send { queue, message } => format!("{queue} <- {}", self::message(message)),
        Effect::Reply { request, reply } => format!("reply {}: {reply:?}", request.0),
        Effect::PrepareHost { host, number, resting } => {
            let resting: Vec<_> = resting.iter().map(String::as_str).collect();
            let without = if resting.is_empty() { String::new() } else { format!(", without {}", resting.join(", ")) };
            format!("prepare order {number} of {} for {}{without}", host.id, host.worker)
        }
        Effect::StartHost(host) => format!("START {} for {}", host.id, host.worker),
        Effect::TerminateHost(host) => format!("TERMINATE {}", host.id),
        Effect::SuspendHost(host) => format!("SUSPEND {}", host.id),
        Effect::ResumeHost(host) => format!("RESUME {} for {}", host.id, host.worker),
        Effect::TerminateOrphan { listed, .. } => format!("TERMINATE ORPHAN {}", listed.handle),
        Effect::FetchConsole(host) => format!("fetch console of {}", host.id),
        Effect::ForgetPlace { place, .. } => format!("forget {place}"),
        Effect::ListHosts(provider) => format!("list {}", provider.as_str()),
        Effect::ListForAudit { round, provider, .. } => format!("list {} for audit, round {round}", provider.as_str()),
        Effect::OpenLogs { attempt, worker, .. } => format!("open logs of {attempt} from {worker}"),
        Effect::CheckLogs { attempt, lengths, overdue } => {
            format!("check logs of {attempt} {lengths:?}{}", if *overdue { " overdue" } else { "" })
        }
        Effect::CloseLogs { attempt } => format!("close logs of {attempt}"),
        Effect::FindExpired(scan) => {
            let age = |name: &str, before: Option<Timestamp>| {
                before.map(|before| format!(" {name} of {} s", now.since(before).as_secs())).unwrap_or_default()
            };
            let (builds, logs) = (age("builds", scan.builds_before), age("logs", scan.logs_before));
            let (sizes, total) = (if scan.sizes { " sizes" } else { "" }, if scan.total { " total" } else { "" });
            format!("find expired:{builds}{logs}{sizes}{total}")
        }
        Effect::DeleteLogs(builds) => format!("delete logs of {}", list(builds)),
        Effect::UploadRecorded(build) => format!("go on with the upload of {build}"),
        Effect::Publish(change) => match change {
            Change::Build { id, state, worker, .. } => {
                let on = worker.as_ref().map(|w| format!(" on {w}")).unwrap_or_default();
                format!("tell build {id} {}{on}", state.as_str())
            }
            Change::Worker { name, state, .. } => format!("tell worker {name} {}", state.as_str()),
            Change::Host { id, state, .. } => format!("tell host {id} {}", state.as_str()),
        },
        Effect::Log(level, text) => format!("{level:?}: {text}"),
        Effect::LogRefused { worker, identity, reason } => {
            format!("Refused: an agent that claims to be {worker} ({identity}): {reason}")
        }
        Effect::SendMail(mail) => {
            let waiting: Vec<_> = mail.waiting.iter().map(String::as_str).collect();
            format!("MAIL {} to {}", mail.id.0, waiting.join(" "))
        }
    }
}

/// A record; times are relative to `now`.
pub fn record(record: &Record, now: Timestamp) -> String {
    match record {
        Record::NewBuild { id, .. } => format!("new build {id}"),
        Record::Build(id, status) => {
            let mut text = format!("build {id}: {}", status.state().as_str());
            if status.cancelled {
                text.push_str(", to be cancelled");
            }
            for attempt in &status.attempts {
                let over = if attempt.is_live() { "" } else { ", over" };
                let outcome = attempt.outcome.as_ref().map(|o| format!(" {o:?}")).unwrap_or_default();
                text.push_str(&format!("; {} on {}{outcome}{over}", attempt.number, attempt.worker));
                for (step, at) in &attempt.cut_logs {
                    text.push_str(&format!(", log {step} cut at {at}"));
                }
            }
            for failed in &status.failed_hosts {
                text.push_str(&format!("; {} failed", failed.host));
            }
            text
        }
        Record::LogsMeasured(id, bytes) => format!("build {id}: {bytes} bytes of logs"),
        Record::LogsExpired(id, _) => format!("build {id}: its logs are to be deleted"),
        Record::LogsDeleted(id) => format!("build {id}: its logs are deleted"),
        Record::LogsUploaded(id, store, upload) => format!("build {id}: upload of its logs to {store}: {upload:?}"),
        Record::BuildDeleted(id) => format!("build {id} is deleted"),
        Record::Host(host) => {
            let why = host.why.as_ref().map(|w| format!(" ({w})")).unwrap_or_default();
            let spent = if host.token_spent { ", token spent" } else { "" };
            format!("{} of {}: {}, uses {}{spent}{why}", host.id, host.worker, host.state.as_str(), host.uses)
        }
        Record::Session(session) => {
            let impostor = if session.impostor { ", an impostor's" } else { "" };
            format!("{} of {}, {} secrets{impostor}", session.id, session.worker, session.secrets.len())
        }
        Record::SessionOver(worker) => format!("session of {worker} over"),
        Record::Worker(name, record) => {
            let mut text = format!("worker {name}: {:?}, {} failures", record.desired, record.failures);
            if let Some(until) = record.backoff_until {
                text.push_str(&format!(", again in {} s", until.since(now).as_secs()));
            }
            if record.rejected {
                text.push_str(", rejected");
            }
            if record.missing_since.is_some() {
                text.push_str(", missing");
            }
            text
        }
        Record::Image(key, image) => {
            let until = image.until.map(|u| format!(", again in {} s", u.since(now).as_secs())).unwrap_or_default();
            let proven = image.proven.as_deref().map(|p| format!(", {p} works")).unwrap_or_default();
            format!("{}: {} failures{until}{proven}", key.image, image.failures)
        }
        Record::Place(key, place) => {
            let until = place.until.map(|u| format!(", again in {} s", u.since(now).as_secs())).unwrap_or_default();
            format!("place {}: {} failures{until}", key.name, place.failures)
        }
        Record::Spent(spent) => format!("spent {} USD today", spent.micros as f64 / 1e6),
        Record::LeasesExtended(Some(by)) => format!("leases for {} s", by.as_secs()),
        Record::LeasesExtended(None) => "leases as they are".to_owned(),
        Record::AlarmTold(Some(_)) => "alarm told".to_owned(),
        Record::AlarmTold(None) => "alarm over".to_owned(),
        Record::News(news) => {
            let to: Vec<_> = news.to.iter().map(String::as_str).collect();
            format!("news {} for {}: {}", news.id, to.join(" "), item(&news.item))
        }
        Record::NewsOver(id) => format!("news {id} over"),
        Record::Mail(mail) => {
            let waiting: Vec<_> = mail.waiting.iter().map(String::as_str).collect();
            let mut text = format!("mail {} to {}; waits for {}", mail.id.0, mail.to.join(" "), waiting.join(" "));
            if mail.tries == 0 {
                let items: Vec<_> = mail.items.iter().map(item).collect();
                text.push_str(&format!("; {}", items.join(", ")));
            } else {
                text.push_str(&format!("; {} tries, again in {} s", mail.tries, mail.not_before.since(now).as_secs()));
            }
            text
        }
        Record::MailOver(id) => format!("mail {} over", id.0),
        Record::MailPause(failures, until) => {
            format!("mail pause: {failures} failures, {} s", until.since(now).as_secs())
        }
        Record::OrphanReported(_, handle) => format!("orphan {handle} reported"),
        Record::OrphanOver(_, handle) => format!("orphan {handle} over"),
        Record::Entry(entry) => {
            let target = entry.target.as_ref().map(|target| format!(" {target}")).unwrap_or_default();
            format!("entry {}: {} {}{target}", entry.id, entry.principal.name, entry.action.as_str())
        }
    }
}

fn list(builds: &[BuildId]) -> String {
    builds.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn item(item: &Item) -> String {
    match &item.what {
        What::Missing { worker, .. } => format!("{worker} missing"),
        What::Back { worker, .. } => format!("{worker} back"),
        What::PlacePaused { place, .. } => format!("{place} pauses"),
        What::PlaceBack { place, .. } => format!("{place} serves again"),
        What::Orphan { handle, terminated, .. } => {
            format!("{handle} orphan{}", if *terminated { "" } else { ", left" })
        }
        What::Lingering { machine, why, .. } => format!("{machine} lingers: {why}"),
        What::LingeringOver { machine, .. } => format!("{machine} gone after all"),
        What::BrokerBlocked { why } => format!("broker blocked: {why}"),
        What::BrokerUnblocked { .. } => "broker not blocked".to_owned(),
    }
}

/// A message to an agent.
pub fn message(message: &ToAgent) -> String {
    match message {
        ToAgent::Welcome(welcome) => {
            let secret = if welcome.secret.is_some() { " with a secret" } else { "" };
            let standing = if welcome.standing { ", standing" } else { "" };
            format!("welcome to {}{secret}{standing}", welcome.session)
        }
        ToAgent::Refused { reason, power_off } => {
            format!("refused{}: {reason}", if *power_off { " and to power off" } else { "" })
        }
        ToAgent::Renewed { seq, lease_ms, .. } => format!("renewed {seq} {lease_ms:?}"),
        ToAgent::RunAttempt(order) => format!("order {}", order.attempt),
        ToAgent::Cancel { attempt, .. } => format!("cancel {attempt}"),
        ToAgent::Settled { attempts, .. } => {
            let all: Vec<_> = attempts.iter().map(ToString::to_string).collect();
            format!("settled {}", all.join(" "))
        }
        ToAgent::Resend { attempt, step, offset, .. } => format!("resend {attempt} step {step} from {offset}"),
        ToAgent::Drain { drain, suspend, .. } => format!("drain {drain}{}", if *suspend { ", to suspend" } else { "" }),
        ToAgent::Undrain { .. } => "undrain".to_owned(),
    }
}
