//! Performs effects after the commit. An operation that takes time runs outside the loop, and its result comes back as
//! an event.

use super::log_sync::LogSync;
use super::retention::{Job, Sweeper};
use super::uploads::Uploads;
use crate::blobs::Blobs;
use crate::broker::{LinkHandle, Outbound, Refusals};
use crate::clock;
use crate::config::Config;
use crate::core::event::{Change, Effect, Event, Level, Listing, Reply, RequestId};
use crate::core::plan::ProviderKind;
use crate::core::record::Host;
use crate::hosts::Hosts;
use crate::logs::{Logs, Source};
use crate::mail::{self, Patience};
use crate::metrics::Calls;
use crate::web;
use rouse_shared::boot::BootData;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tracing::{debug, info, warn};

/// Who waits for the reply to a request.
pub(super) enum Requester {
    /// A client of the API.
    Api(oneshot::Sender<Reply>),
    /// The sender of a message in the submission queue.
    Queue {
        /// The queue to reply to; absent if the sender wants no reply.
        reply_to: Option<String>,
        /// The message's correlation id, which the reply repeats.
        correlation_id: Option<String>,
    },
    /// The driver itself, which needs no reply.
    Driver,
}

/// The requests that have no reply yet.
#[derive(Default)]
pub(super) struct PendingRequests {
    last: u64,
    waiting: HashMap<RequestId, Requester>,
}

impl PendingRequests {
    pub(super) fn add(&mut self, requester: Requester) -> RequestId {
        self.last += 1;
        let id = RequestId(self.last);
        self.waiting.insert(id, requester);
        id
    }
}

/// The part of the boot data that is the same for every host.
pub(super) struct Boot {
    /// The broker's address for agents.
    pub broker: String,
    /// Certificates of the authority that signed the broker's certificate, PEM.
    pub ca: Option<String>,
}

/// Why this master must not act any more, if another one may have the ledger.
pub(super) type Fence = Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// Performs the core's effects.
pub(super) struct Executor {
    pub runtime: tokio::runtime::Handle,
    pub events: mpsc::Sender<Event>,
    pub hosts: Arc<Hosts>,
    pub logs: Logs,
    pub log_sync: LogSync,
    pub sweeper: Sweeper,
    pub blobs: Arc<Blobs>,
    pub uploads: Uploads,
    pub changes: broadcast::Sender<Change>,
    /// The link to the broker, once there is one.
    pub link: watch::Receiver<Option<Arc<LinkHandle>>>,
    pub refusals: Refusals,
    pub boot: Boot,
    pub pending: PendingRequests,
    /// Measures the calls to providers.
    pub calls: Calls,
    /// Asked before each operation that others would notice: the process may have been stopped since the commit.
    pub fence: Fence,
}

impl Executor {
    /// Performs one effect. Returns the event that follows from it, if it follows at once.
    pub(super) fn perform(&mut self, effect: Effect, config: &Config) -> Option<Event> {
        match effect {
            // Already committed.
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
                self.spawn_call(host.provider, async move {
                    let number = host.launch.as_ref().map_or(0, |o| o.number);
                    let result = hosts.call(host.provider, |p| p.start(&host)).await;
                    let result = result.unwrap_or_else(|e| Err(e.of_start()));
                    Event::StartEnded { host: host.id, number, result }
                });
            }
            Effect::TerminateHost(host) => {
                let hosts = self.hosts.clone();
                self.spawn_call(host.provider, async move {
                    let result = hosts.call(host.provider, |p| p.terminate(&host)).await;
                    Event::TerminateEnded { host: host.id, result: result.unwrap_or_else(|e| Err(e.into())) }
                });
            }
            Effect::SuspendHost(host) => {
                let hosts = self.hosts.clone();
                self.spawn_call(host.provider, async move {
                    let result = hosts.call(host.provider, |p| p.suspend(&host)).await;
                    Event::SuspendEnded { host: host.id, result: result.unwrap_or_else(|e| Err(e.into())) }
                });
            }
            Effect::ResumeHost(host) => {
                let (hosts, boot) = (self.hosts.clone(), self.boot_data(&host, config));
                self.spawn_call(host.provider, async move {
                    let result = hosts.call(host.provider, |p| p.resume(&host, boot)).await;
                    let result = result.unwrap_or_else(|e| Err(e.of_start()));
                    Event::ResumeEnded { host: host.id, result }
                });
            }
            Effect::TerminateOrphan { provider, listed } => {
                let hosts = self.hosts.clone();
                self.spawn_call(provider, async move {
                    let result = hosts.call(provider, |p| p.terminate_listed(&listed)).await;
                    let result = result.unwrap_or_else(|e| Err(e.into()));
                    Event::OrphanTerminateEnded { provider, handle: listed.handle, result }
                });
            }
            Effect::FetchConsole(host) => {
                let hosts = self.hosts.clone();
                self.spawn_call(host.provider, async move {
                    let text = hosts.call(host.provider, |p| p.console(&host)).await;
                    // Without an answer, nobody knows whether the machine was silent.
                    let text = text.unwrap_or_else(|e| Some(format!("(the console output could not be fetched: {e})")));
                    Event::Console { host: host.id, text }
                });
            }
            Effect::ForgetPlace { provider, place } => {
                self.hosts.forget_place(provider, &place);
            }
            Effect::ListHosts(provider) => {
                let hosts = self.hosts.clone();
                // A provider that is not compiled in cannot have created anything, so there is nothing to list.
                if hosts.provider(provider).is_some() {
                    self.spawn_call(provider, async move {
                        Event::Listed { provider, result: list(&hosts, provider).await }
                    });
                }
            }
            Effect::OpenLogs { attempt, worker, session, steps } => {
                self.logs.open(attempt, Source { worker, session, steps });
            }
            Effect::CheckLogs { attempt, lengths, overdue } => {
                self.logs.expect(attempt, lengths.clone());
                if self.logs.became_whole(attempt) {
                    self.log_sync.nudge();
                }
                let missing = self.logs.missing(attempt, &lengths).filter(|_| overdue);
                return missing.map(|(step, offset)| Event::LogGap { attempt, step, offset });
            }
            Effect::CloseLogs { attempt } => {
                self.logs.close(attempt);
            }
            Effect::FindExpired(scan) => self.sweeper.request(Job::Find(scan)),
            Effect::DeleteLogs(builds) => self.sweeper.request(Job::Delete(builds)),
            Effect::UploadRecorded(build) => self.uploads.recorded(build),
            Effect::Publish(change) => {
                if let Change::Build { id, state, .. } = &change
                    && state.is_final()
                {
                    self.uploads.add(*id);
                }
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
                self.spawn_call(provider, async move {
                    let result = list(&hosts, provider).await;
                    Event::ListedForAudit { request, round, provider, result }
                });
            }
            Effect::SendMail(mail) => {
                // With the present configuration: it may have been corrected since the last try.
                let (settings, master) = (config.mail.clone(), config.master.name.clone());
                self.spawn(async move {
                    let result = mail::hand_over(&settings, &master, &mail, Patience::default()).await;
                    Event::MailSent { mail: mail.id, result }
                });
            }
        }
        None
    }

    /// Runs a call to a provider outside the loop, and measures it.
    fn spawn_call(&self, provider: ProviderKind, call: impl Future<Output = Event> + Send + 'static) {
        let calls = self.calls.clone();
        self.spawn(async move {
            let begun = clock::since_boot();
            let event = call.await;
            calls.ended(provider, &event, clock::since_boot().saturating_sub(begun));
            event
        });
    }

    /// Runs an operation outside the loop. Its result comes back as an event.
    fn spawn(&self, operation: impl Future<Output = Event> + Send + 'static) {
        let (events, fence) = (self.events.clone(), self.fence.clone());
        self.runtime.spawn(async move {
            if let Some(why) = fence() {
                return debug!("an operation is left to the active master: {why}");
            }
            let event = operation.await;
            if events.send(event).await.is_err() {
                debug!("the loop has ended before a call");
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
        self.spawn_call(host.provider, async move {
            let result = hosts.call(host.provider, |p| p.prepare(&host, number, &resting, boot)).await;
            let result = result.unwrap_or_else(|e| Err(e.of_prepare()));
            Event::Prepared { host: host.id, number, result }
        });
    }

    fn announce(&self, change: Change) {
        let (key, body) = web::change_message(&change);
        self.send(Outbound::Event { key, body });
        // Without receivers nothing is sent.
        drop(self.changes.send(change));
    }

    /// Passes a message to the link. A message that cannot be sent now is dropped; the core sends it again at the next
    /// heartbeat or hello.
    fn send(&self, message: Outbound) {
        if let Some(link) = &*self.link.borrow() {
            link.try_send(message);
        }
    }

    fn reply(&mut self, request: RequestId, answer: Reply) {
        match self.pending.waiting.remove(&request) {
            // The client may have gone away. What it requested is done all the same.
            Some(Requester::Api(reply)) => drop(reply.send(answer)),
            Some(Requester::Queue { reply_to: Some(to), correlation_id }) => {
                let body = web::answer_body(&answer);
                self.send(Outbound::Reply { to, correlation_id, body });
            }
            Some(Requester::Driver) => {}
            Some(Requester::Queue { reply_to: None, .. }) => {
                if let Reply::Refused { reason, .. } | Reply::NotFound(reason) | Reply::Unavailable(reason) = answer {
                    warn!("a build from the submission queue was refused: {reason}");
                }
            }
            None => warn!("a reply to an unknown request"),
        }
    }

    /// Refuses a submission that does not reach the core.
    pub(super) fn refuse(&mut self, requester: Requester, field: &str, reason: &str) {
        let request = self.pending.add(requester);
        self.reply(request, Reply::Refused { field: Some(field.to_owned()), reason: reason.to_owned() });
    }

    /// Uses another blob store, if the configuration names another one.
    pub(super) fn configure_blobs(&self, old: &Config, new: &Config) {
        if old.blobs != new.blobs {
            self.blobs.configure(new.blobs.clone());
            self.uploads.configured();
        }
    }

    pub(super) fn link_is_up(&self) -> bool {
        self.link.borrow().as_ref().is_some_and(|link| link.is_up())
    }
}

async fn list(hosts: &Hosts, provider: ProviderKind) -> Result<Listing, String> {
    hosts.call(provider, |p| p.list()).await.unwrap_or_else(|e| Err(e.into()))
}

#[cfg(test)]
#[path = "perform_tests.rs"]
mod tests;
