//! What the core asks for is done here, after the commit. What takes time runs beside the loop and comes back as an
//! event.

use crate::broker::{LinkHandle, Outbound, Refusals};
use crate::config::Config;
use crate::core::event::{Change, Effect, Event, Level, Listing, Reply, RequestId};
use crate::core::plan::ProviderKind;
use crate::core::record::Host;
use crate::hosts::Hosts;
use crate::logs::Logs;
use crate::mail::{self, Patience};
use crate::web::{self, Figure};
use rouse_shared::boot::BootData;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tracing::{debug, info, warn};

/// Who waits for the answer to a request.
pub(super) enum Asker {
    /// The API.
    Web(oneshot::Sender<Reply>),
    /// A message in the inbox.
    Inbox {
        /// The queue that wants an answer.
        reply_to: Option<String>,
        /// As it came.
        correlation_id: Option<String>,
    },
}

/// Everyone who waits.
#[derive(Default)]
pub(super) struct PendingRequests {
    last: u64,
    waiting: HashMap<RequestId, Asker>,
}

impl PendingRequests {
    pub(super) fn add(&mut self, asker: Asker) -> RequestId {
        self.last += 1;
        let id = RequestId(self.last);
        self.waiting.insert(id, asker);
        id
    }
}

/// What boot data say besides a host's own.
pub(super) struct Boot {
    /// The broker's address for agents.
    pub broker: String,
    /// Certificates that it is signed by.
    pub ca: Option<String>,
}

/// Does what the core asks for.
pub(super) struct Executor {
    pub runtime: tokio::runtime::Handle,
    pub events: mpsc::Sender<Event>,
    pub hosts: Arc<Hosts>,
    pub logs: Logs,
    pub changes: broadcast::Sender<Change>,
    /// The link, once there is one.
    pub link: watch::Receiver<Option<Arc<LinkHandle>>>,
    pub refusals: Refusals,
    pub boot: Boot,
    pub askers: PendingRequests,
}

impl Executor {
    /// Performs one effect. Returns the event that is known at once to follow from it.
    pub(super) fn perform(&mut self, effect: Effect, config: &Config) -> Option<Event> {
        match effect {
            // Committed by now.
            Effect::Save(_) => {}
            Effect::Send { queue, message } => {
                self.send(Outbound::Agent { queue, message });
            }
            Effect::Reply { request, reply } => {
                self.reply(request, reply);
            }
            Effect::PrepareHost { host, number, resting } => {
                self.prepare_host(*host, number, resting, config);
            }
            Effect::StartHost(host) => {
                let hosts = self.hosts.clone();
                self.spawn_call(async move {
                    let number = host.launch.as_ref().map_or(0, |o| o.number);
                    let result = hosts.call(host.provider, |p| p.start(&host)).await;
                    let result = result.unwrap_or_else(|e| Err(e.of_start()));
                    Event::StartEnded { host: host.id, number, result }
                });
            }
            Effect::TerminateHost(host) => {
                let hosts = self.hosts.clone();
                self.spawn_call(async move {
                    let result = hosts.call(host.provider, |p| p.terminate(&host)).await;
                    Event::TerminateEnded { host: host.id, result: result.unwrap_or_else(|e| Err(e.into())) }
                });
            }
            Effect::SuspendHost(host) => {
                let hosts = self.hosts.clone();
                self.spawn_call(async move {
                    let result = hosts.call(host.provider, |p| p.suspend(&host)).await;
                    Event::SuspendEnded { host: host.id, result: result.unwrap_or_else(|e| Err(e.into())) }
                });
            }
            Effect::ResumeHost(host) => {
                let (hosts, boot) = (self.hosts.clone(), self.boot_data(&host, config));
                self.spawn_call(async move {
                    let result = hosts.call(host.provider, |p| p.resume(&host, boot)).await;
                    let result = result.unwrap_or_else(|e| Err(e.of_start()));
                    Event::ResumeEnded { host: host.id, result }
                });
            }
            Effect::TerminateOrphan { provider, listed } => {
                let hosts = self.hosts.clone();
                self.runtime.spawn(async move {
                    let result = hosts.call(provider, |p| p.terminate_listed(&listed)).await;
                    if let Err(why) = result.unwrap_or_else(|e| Err(e.into())) {
                        warn!("orphan {} could not be terminated: {why}; the next audit tries again", listed.handle);
                    }
                });
            }
            Effect::FetchConsole(host) => {
                let hosts = self.hosts.clone();
                self.spawn_call(async move {
                    // Without an answer in time there is none: the core waits no longer than that either.
                    let text = hosts.call(host.provider, |p| p.console(&host)).await.ok().flatten();
                    Event::Console { host: host.id, text }
                });
            }
            Effect::ListHosts(provider) => {
                let hosts = self.hosts.clone();
                // A provider that this build does not have lists nothing, and nothing can have been made by it.
                if hosts.provider(provider).is_some() {
                    self.spawn_call(async move { Event::Listed { provider, result: list(&hosts, provider).await } });
                }
            }
            Effect::OpenLogs { attempt, worker } => {
                self.logs.open(attempt, worker);
            }
            Effect::CheckLogs { attempt, lengths, overdue } => {
                self.logs.expect(attempt, lengths.clone());
                if self.logs.became_whole(attempt) {
                    return Some(Event::LogsWhole { attempt });
                }
                let missing = self.logs.missing(attempt, &lengths).filter(|_| overdue);
                return missing.map(|(step, offset)| Event::LogGap { attempt, step, offset });
            }
            Effect::CloseLogs { attempt } => {
                self.logs.close(attempt);
            }
            Effect::Publish(change) => {
                self.announce(change);
            }
            Effect::Log(Level::Info, text) => {
                info!("{text}");
            }
            Effect::Log(Level::Warn, text) => {
                warn!("{text}");
            }
            Effect::LogRefused { worker, identity, reason } => {
                self.refusals.refused_hello(worker.as_str(), &identity, &reason);
            }
            Effect::ListForAudit { request, round, provider } => {
                let hosts = self.hosts.clone();
                self.spawn_call(async move {
                    let result = list(&hosts, provider).await;
                    Event::ListedForAudit { request, round, provider, result }
                });
            }
            Effect::SendMail(mail) => {
                // As the configuration is now: what is wrong with it may have been mended since the last try.
                let (settings, master) = (config.mail.clone(), config.master.name.clone());
                self.spawn_call(async move {
                    let handed = mail::hand_over(&settings, &master, &mail, Patience::default()).await;
                    Event::MailSent { mail: mail.id, handed }
                });
            }
        }
        None
    }

    /// Runs a call beside the loop; its end comes back as an event.
    fn spawn_call(&self, call: impl Future<Output = Event> + Send + 'static) {
        let events = self.events.clone();
        self.runtime.spawn(async move {
            let event = call.await;
            if events.send(event).await.is_err() {
                debug!("a call ended after the loop");
            }
        });
    }

    fn boot_data(&self, host: &Host, config: &Config) -> BootData {
        let patience = config.plan.workers.get(&host.worker).map(|w| w.missing_timeout.as_secs());
        BootData {
            name: host.worker.clone(),
            host: host.id.clone(),
            broker: self.boot.broker.clone(),
            ca: self.boot.ca.clone(),
            token: host.token.clone(),
            identity: None,
            power_off_after: patience,
        }
    }

    fn prepare_host(&self, host: Host, number: u32, resting: BTreeSet<String>, config: &Config) {
        let (hosts, boot) = (self.hosts.clone(), self.boot_data(&host, config));
        self.spawn_call(async move {
            let result = hosts.call(host.provider, |p| p.prepare(&host, number, &resting, boot)).await;
            let result = result.unwrap_or_else(|e| Err(e.of_prepare()));
            Event::Prepared { host: host.id, number, result }
        });
    }

    fn announce(&self, change: Change) {
        let (key, body) = web::change_message(&change);
        self.send(Outbound::Event { key, body });
        // Without listeners there is nobody to tell.
        drop(self.changes.send(change));
    }

    /// Hands a message to the link. What cannot be sent now is dropped, and said again at the next heartbeat or hello.
    fn send(&self, message: Outbound) {
        if let Some(link) = &*self.link.borrow() {
            link.try_send(message);
        }
    }

    fn reply(&mut self, request: RequestId, answer: Reply) {
        match self.askers.waiting.remove(&request) {
            // The asker may have gone away; what it asked for is done all the same.
            Some(Asker::Web(reply)) => drop(reply.send(answer)),
            Some(Asker::Inbox { reply_to: Some(to), correlation_id }) => {
                let body = web::answer_body(&answer);
                self.send(Outbound::Reply { to, correlation_id, body });
            }
            Some(Asker::Inbox { reply_to: None, .. }) => {
                if let Reply::Refused { reason, .. } | Reply::NotFound(reason) | Reply::Unavailable(reason) = answer {
                    warn!("a build from the submission queue was refused: {reason}");
                }
            }
            None => warn!("a reply to an unknown request"),
        }
    }

    /// Refuses a submission that never came as far as the core.
    pub(super) fn refuse(&mut self, asker: Asker, field: &str, reason: &str) {
        let request = self.askers.add(asker);
        self.reply(request, Reply::Refused { field: Some(field.to_owned()), reason: reason.to_owned() });
    }

    pub(super) fn link_is_up(&self) -> bool {
        self.link.borrow().as_ref().is_some_and(|link| link.is_up())
    }

    pub(super) fn link_figures(&self) -> Vec<Figure> {
        let Some(link) = self.link.borrow().clone() else { return Vec::new() };
        let figure = |name, help, value: u64| Figure { name, help, counter: true, value: value as f64 };
        let dropped = link.dropped();
        vec![
            figure(
                "rouse_messages_malformed_total",
                "Messages that were dropped because they are malformed or of an unknown kind.",
                dropped.malformed.load(Ordering::Relaxed),
            ),
            figure(
                "rouse_messages_cut_off_total",
                "Messages that were dropped because their sender is cut off.",
                dropped.cut_off.load(Ordering::Relaxed),
            ),
            figure("rouse_messages_unsent_total", "Messages that the link did not take.", link.unsent()),
        ]
    }
}

async fn list(hosts: &Hosts, provider: ProviderKind) -> Result<Listing, String> {
    hosts.call(provider, |p| p.list()).await.unwrap_or_else(|e| Err(e.into()))
}

#[cfg(test)]
#[path = "perform_tests.rs"]
mod tests;
