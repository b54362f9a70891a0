//! The core decides everything and performs nothing: `handle(now, Event) -> Vec<Effect>`, without clock, files or
//! network.
//!
//! Start with [`event`], which contains the two complete lists. Each lifecycle has its module: [`builds`] (with
//! attempts), [`host`], [`sessions`], [`missing`], [`workers`], [`mail`]. [`schedule`] assigns builds to workers.

mod admission;
mod alarm;
pub mod audit;
pub mod blobs;
pub mod build;
mod builds;
mod capacity;
mod configure;
pub mod event;
mod host;
pub mod images;
pub mod journal;
mod lease;
mod limits;
pub mod mail;
mod missing;
mod orphans;
pub mod places;
pub mod plan;
mod queue;
pub mod record;
#[cfg(test)]
mod restart_tests;
pub mod retention;
mod schedule;
mod sessions;
pub mod show;
pub mod spend;
pub mod tally;
mod timers;
pub mod view;
mod views;
mod why;
mod workers;

use build::{Build, BuildState};
use event::{Change, Effect, Event, Level, RequestId, WorkerState};
use host::LiveHost;
use plan::{Plan, WorkerPlan};
use queue::Queue;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use record::{Host, HostState, Record, Session, WorkerRecord};
use rouse_shared::message::{CloudNotice, ToAgent, Vitals};
use rouse_shared::{AttemptId, BuildId, HostId, MasterId, Timestamp, WorkerName};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use timers::{Timer, Timers};

pub use admission::Admitted;
pub use alarm::{BLOCKED_MINUTES, BlockedLease};
pub use configure::Start;
pub use views::Counts;
pub use why::of_status;

/// Number of ended builds whose message ids are kept in memory. More than one batch can end.
const ENDED_NAMES: usize = 16_384;

/// The state of the master.
pub struct Core {
    master: MasterId,
    plan: Arc<Plan>,
    rng: ChaCha20Rng,
    /// Builds that have not ended.
    builds: BTreeMap<BuildId, Build>,
    last_build: u64,
    /// The highest number of an entry of the journal.
    last_entry: u64,
    /// Message ids of the builds that have not ended, and of the last that have.
    message_ids: BTreeMap<String, BuildId>,
    /// The message ids of ended builds, oldest first.
    ended_names: VecDeque<String>,
    named: BTreeMap<BuildId, String>,
    /// Attempts that have an outcome and incomplete logs.
    log_watches: BTreeMap<AttemptId, builds::LogWatch>,
    queue: Queue,
    workers: BTreeMap<WorkerName, Worker>,
    /// Hosts that are not gone.
    hosts: BTreeMap<HostId, LiveHost>,
    /// What the master knows about each image.
    images: BTreeMap<images::ImageKey, images::ImageRecord>,
    /// Places that pause.
    places: BTreeMap<places::PlaceKey, places::PlaceRecord>,
    /// Places that have answered since the master started.
    heard_places: BTreeSet<places::PlaceKey>,
    /// Alternatives of places that had no room.
    rests: BTreeMap<(places::PlaceKey, String), capacity::Rest>,
    /// What a host of a template cost an hour when one was last ordered, USD.
    prices: BTreeMap<String, f64>,
    /// Providers that are listing their hosts now.
    listing: BTreeSet<plan::ProviderKind>,
    /// Machines that have our name and that the ledger does not know, as they were last listed.
    orphans: BTreeMap<(plan::ProviderKind, String), orphans::Orphan>,
    /// Machines with the master's name and another id, as they were last listed.
    foreign_machines: BTreeSet<(plan::ProviderKind, String)>,
    /// Audits for users that are under way.
    audits: BTreeMap<RequestId, audit::Audit>,
    timers: Timers,
    /// What was spent today on hosts that are gone.
    spent: spend::Spent,
    /// When this master was started.
    started: Timestamp,
    /// See [`Plan::outlives_alarms`].
    outlives_alarms: bool,
    /// Whether the link to the broker is up, and the ledger can be written.
    linked: bool,
    /// Why the broker accepts nothing, if it does not.
    alarm: Option<String>,
    /// When the last alarm was over.
    alarm_ended: Option<Timestamp>,
    /// When the current alarm was reported to people.
    alarm_told: Option<Timestamp>,
    /// Whether the link is up and messages get through.
    broker_up: bool,
    /// When both came up; absent while they are not.
    broker_since: Option<Timestamp>,
    mail: mail::Outbox,
    retention: retention::Sweeper,
    /// Whether the process is about to end.
    terminating: bool,
    /// The extension of every lease that is in the ledger.
    extended: Option<Duration>,
    free: BTreeSet<WorkerName>,
    wakeable: BTreeSet<WorkerName>,
    pending: Pending,
    /// See [`Core::illegal_events`].
    illegal_events: u64,
    tally: tally::Tally,
    out: Vec<Effect>,
}

/// What an event has changed. Processed once, after the event.
#[derive(Default)]
struct Pending {
    builds: BTreeSet<BuildId>,
    hosts: BTreeSet<HostId>,
    workers: BTreeSet<WorkerName>,
    /// Workers that may take a build now.
    freed: BTreeSet<WorkerName>,
    /// Requirements for which there is a new build.
    wanted: BTreeSet<build::Requirement>,
    /// Whether a host may have to be started.
    wake: bool,
}

struct Worker {
    /// Its newest plan; absent if it is in the ledger but not in the configuration.
    plan: Option<Arc<WorkerPlan>>,
    /// Whether it is no longer in the configuration. It only ends what it runs.
    removed: bool,
    record: WorkerRecord,
    session: Option<Live>,
    host: Option<HostId>,
    /// Since when this standing worker could have been attached and is not.
    away: Option<Timestamp>,
    /// When its agent last sent a hello or a heartbeat. Not in the ledger.
    last_message: Option<Timestamp>,
    /// The agent that was last refused under its name. Not in the ledger.
    refused: Option<view::Refusal>,
    /// Assigned attempts that may still run, including those of a previous session.
    attempts: BTreeSet<AttemptId>,
    state: WorkerState,
    since: Timestamp,
}

/// A session, with what need not survive a restart.
struct Live {
    session: Session,
    attached: bool,
    vitals: Option<Vitals>,
    last_seq: u64,
    /// When its agent was last sent again what may have been lost.
    repeated: Option<Timestamp>,
    /// The number of the drain that its agent was sent.
    drain: Option<u64>,
    leaving: bool,
    /// Whether it has declined an attempt or could not run it. It gets no more attempts until its next message;
    /// otherwise the same attempt would go back and forth.
    held_until_message: bool,
    /// The last notice of its cloud that was taken up, and when.
    notice: Option<(CloudNotice, Timestamp)>,
    /// Why its machine takes no further builds: processes of a step that is over cannot be ended.
    unclean: Option<String>,
}

impl Core {
    /// Handles one event. The caller commits and then performs the effects.
    pub fn handle(&mut self, now: Timestamp, event: Event) -> Vec<Effect> {
        match event {
            Event::Agent { worker, message } => self.on_agent(now, worker, message),
            Event::AttestationFailed { worker, hello, why } => self.on_unproven(now, &worker, *hello, why),
            Event::Detached { worker, queue } => self.on_detached(now, &worker, queue),
            Event::BrokerUp => self.on_broker(now, true),
            Event::BrokerDown => self.on_broker(now, false),
            Event::BrokerBlocked { why } => self.on_broker_blocked(now, why),
            Event::BrokerUnblocked => self.on_broker_unblocked(now),
            Event::Command { request, by, command } => self.on_command(now, request, by, command),
            Event::Configure(plan) => {
                self.on_configure(now, plan);
                self.look_after_places(now);
                self.retry_mails(now);
            }
            Event::Prepared { host, number, result } => self.on_prepared(now, &host, number, result),
            Event::StartEnded { host, number, result } => self.on_start_ended(now, &host, number, result),
            Event::TerminateEnded { host, result } => self.on_terminate_ended(now, &host, result),
            Event::OrphanTerminateEnded { provider, handle, result } => {
                self.on_orphan_terminate_ended(provider, &handle, result);
            }
            Event::SuspendEnded { host, result } => self.on_suspend_ended(now, &host, result),
            Event::ResumeEnded { host, result } => self.on_resume_ended(now, &host, result),
            Event::HostGone { host, why, reclaimed } => self.on_host_gone(now, &host, &why, reclaimed),
            Event::Console { host, text } => self.on_console(now, &host, text),
            Event::Listed { provider, result } => self.on_listed(now, provider, result),
            Event::LogsWhole { attempt } => self.on_logs_whole(now, attempt),
            Event::LogGap { attempt, step, offset } => self.on_log_gap(attempt, step, offset),
            Event::Shutdown => self.on_shutdown(now),
            Event::Tick => {}
            Event::ListedForAudit { request, round, provider, result } => {
                self.on_listed_for_audit(now, request, round, provider, result);
            }
            Event::MailSent { mail, result } => self.on_mail_sent(now, &mail, result),
            Event::Expired(found) => self.on_expired(now, found),
            Event::LogsDeleted { builds, failed } => self.on_logs_deleted(now, &builds, failed),
            Event::Upload { build, store, upload } => self.on_upload(build, store, upload),
        }
        while let Some(timer) = self.timers.pop_due(now) {
            self.on_timer(now, timer);
        }
        self.follow_up(now);
        std::mem::take(&mut self.out)
    }

    /// When [`Event::Tick`] is due, unless another event comes before.
    pub fn next_wakeup(&self) -> Option<Timestamp> {
        self.timers.next()
    }

    fn on_timer(&mut self, now: Timestamp, timer: Timer) {
        match timer {
            Timer::Lease(worker) => self.on_lease_over(now, &worker),
            Timer::Boot(host) => self.on_boot_overdue(now, &host),
            Timer::Idle(host) => self.on_idle(now, &host),
            Timer::CallAgain(host) => self.call_again(now, &host),
            Timer::Suspension(host) => self.on_suspension_over(now, &host),
            Timer::Lingering(host) => self.on_lingering(now, &host),
            Timer::Forget(host) => self.on_forget(now, &host),
            Timer::Console(host) => self.on_console_late(now, &host),
            Timer::Missing(worker) => self.on_missing(now, &worker),
            Timer::Backoff(worker) => self.touch_worker(&worker),
            Timer::Image(key) => self.on_image(&key),
            Timer::Place(key) => self.on_place(now, &key),
            Timer::PlaceMail(key) => self.on_place_mail(now, &key),
            Timer::Queue(build) => self.on_queue_timeout(now, build),
            Timer::AlarmOver => self.on_alarm_over(now),
            Timer::Extension => self.on_extension_over(),
            Timer::Logs(attempt) => self.on_logs_overdue(now, attempt),
            Timer::Day => self.pending.wake = true,
            Timer::Reclaim(host) => self.on_reclaim(now, &host),
            Timer::Retention => self.look_for_expired(now),
            Timer::Audit(provider) => self.start_audit(now, provider),
            Timer::Orphans(provider) => self.list_hosts(provider),
            Timer::AuditRound(request) => self.next_round(request),
            Timer::AuditOver(request) => self.on_audit_over(now, request),
            Timer::News => self.write_mails(now),
            Timer::Mail => self.send_mails(now),
        }
    }

    /// Schedules, commits and publishes what the event has changed.
    fn follow_up(&mut self, now: Timestamp) {
        let refreshed = self.refresh_workers(now);
        self.schedule(now, refreshed);
        for id in std::mem::take(&mut self.pending.builds) {
            let Some(build) = self.builds.get(&id) else { continue };
            let state = self.state_of(build);
            let status = build.status.clone();
            let worker = status.attempts.last().map(|a| a.worker.clone());
            self.out.push(Effect::Publish(Change::Build { id, state, worker, at: now }));
            if state.is_final() {
                self.builds.remove(&id);
                if let Some(name) = self.named.remove(&id) {
                    self.forget_name(name);
                }
            }
            self.out.push(Effect::Save(Record::Build(id, status)));
        }
        for id in std::mem::take(&mut self.pending.hosts) {
            let Some(live) = self.hosts.get_mut(&id) else { continue };
            let host = live.host.clone();
            if live.published.replace(host.state) != Some(host.state) {
                self.out.push(Effect::Publish(Change::Host {
                    id: id.clone(),
                    worker: host.worker.clone(),
                    state: host.state,
                    why: host.why.clone(),
                    at: now,
                }));
            }
            if host.state == HostState::Terminated {
                self.hosts.remove(&id);
            }
            self.out.push(Effect::Save(Record::Host(host)));
        }
    }

    /// Removes old message ids. The store finds the id of an ended build once its batch is committed, but another build
    /// with that id may be in the same batch.
    fn forget_name(&mut self, name: String) {
        self.ended_names.push_back(name);
        if self.ended_names.len() > ENDED_NAMES
            && let Some(oldest) = self.ended_names.pop_front()
        {
            self.message_ids.remove(&oldest);
        }
    }

    fn state_of(&self, build: &Build) -> BuildState {
        match build.status.state() {
            BuildState::Queued if self.queue.host_of(build.id).is_some() => BuildState::Starting,
            state => state,
        }
    }

    /// The session of a worker's agent, attached or not.
    fn session_of(&self, worker: &WorkerName) -> Option<&Live> {
        self.workers.get(worker)?.session.as_ref()
    }

    /// The host of a worker.
    fn host_of(&self, worker: &Worker) -> Option<&LiveHost> {
        self.hosts.get(worker.host.as_ref()?)
    }

    fn touch_build(&mut self, id: BuildId) {
        self.pending.builds.insert(id);
    }

    fn touch_host(&mut self, id: &HostId) {
        self.pending.hosts.insert(id.clone());
    }

    fn touch_worker(&mut self, name: &WorkerName) {
        self.pending.workers.insert(name.clone());
    }

    fn note(&mut self, level: Level, text: impl Into<String>) {
        self.out.push(Effect::Log(level, text.into()));
    }

    /// Sends to the worker's attached agent. Dropped if there is none, because a hello computes everything again.
    fn send(&mut self, worker: &WorkerName, message: ToAgent) {
        if let Some(live) = self.session_of(worker).filter(|l| l.attached) {
            self.out.push(Effect::Send { queue: live.session.queue.clone(), message });
        }
    }

    /// A factor for a pause, from 0.8 to 1.2, so that what failed together is not tried again together.
    fn jitter(&mut self) -> f64 {
        let mut raw = [0_u8; 2];
        self.rng.fill_bytes(&mut raw);
        0.8 + 0.4 * f64::from(u16::from_be_bytes(raw)) / 65_536.0
    }

    /// Random hexadecimal digits: two for each byte.
    fn random_hex(&mut self, bytes: usize) -> String {
        let mut raw = vec![0_u8; bytes];
        self.rng.fill_bytes(&mut raw);
        hex::encode(raw)
    }
}

impl Worker {
    fn standing(&self) -> bool {
        self.plan.as_ref().is_some_and(|p| p.latent.is_none())
    }

    /// Whether the password of a standing worker has changed since its agent has presented it.
    fn has_old_password(&self) -> bool {
        let (Some(plan), Some(live), None) = (&self.plan, &self.session, &self.host) else { return false };
        live.session.password.as_ref().is_some_and(|password| *password != plan.password)
    }

    fn attached(&self) -> Option<&Live> {
        self.session.as_ref().filter(|l| l.attached)
    }

    /// Whether the agent on a host is alive: it has sent a message within two heartbeats, from the machine that the
    /// host's provider has named.
    fn has_live_agent(&self, host: &Host, now: Timestamp) -> bool {
        let Some(Session { host: id, identity, .. }) = self.session.as_ref().map(|live| &live.session) else {
            return false;
        };
        let its_own = id.as_ref() == Some(&host.id) && host.identity.as_ref() == Some(identity);
        its_own && self.last_message.is_some_and(|at| now.since(at) < self.keepalive().saturating_mul(2))
    }

    /// The interval of its agent's heartbeats.
    fn keepalive(&self) -> Duration {
        self.plan.as_ref().map_or(sessions::WINDING_UP_KEEPALIVE, |plan| plan.keepalive)
    }
}

fn rng(seed: [u8; 32]) -> ChaCha20Rng {
    ChaCha20Rng::from_seed(seed)
}

#[cfg(test)]
mod tests;
