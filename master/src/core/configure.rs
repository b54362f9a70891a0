//! Builds a core from the configuration and the ledger, and applies a reload.

use super::event::{Effect, Event, Level};
use super::host::longest_pause;
use super::plan::Plan;
use super::queue::Queue;
use super::record::{Ledger, Record, WorkerRecord};
use super::sessions::{EndReason, LINK_PATIENCE};
use super::timers::{Timer, Timers};
use super::{Core, Live, Pending, Timestamp, Worker, rng};
use rouse_shared::limits::KILL_MARGIN;
use rouse_shared::message::ToAgent;
use rouse_shared::{AttemptId, MasterId, WorkerName};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// What a core is built from.
pub struct Start {
    /// The master's id, by which its hosts are recognised.
    pub master: MasterId,
    /// The configuration.
    pub plan: Arc<Plan>,
    /// The content of the ledger.
    pub ledger: Ledger,
    /// Seed for secrets and jitter. Unpredictable, except in tests.
    pub seed: [u8; 32],
}

/// The wall clock may have been set back since the ledger was written. Times that are too far in the future are set to
/// now; otherwise the master would wait for them.
fn hold_to(now: Timestamp, ledger: &mut Ledger) {
    let past = |at: &mut Timestamp| *at = now.min(*at);
    let pause = |at: &mut Timestamp, failures| *at = (now + longest_pause(failures)).min(*at);
    for host in &mut ledger.hosts {
        past(&mut host.created);
        host.booted.iter_mut().chain(&mut host.resumed).chain(&mut host.suspended).for_each(past);
    }
    for build in &mut ledger.builds {
        build.status.attempts.iter_mut().for_each(|attempt| past(&mut attempt.ordered));
        if build.status.queued_at() > now {
            build.status.requeued = Some(now);
        }
    }
    for (_, worker) in &mut ledger.workers {
        worker.backoff_until.iter_mut().for_each(|at| pause(at, worker.failures));
    }
    for (_, image) in &mut ledger.images {
        image.failed_at.iter_mut().for_each(past);
        image.until.iter_mut().for_each(|at| pause(at, image.failures));
    }
}

impl Core {
    /// A core that continues from the ledger. Every lease counts as just renewed, every call to a provider that may
    /// have been under way is repeated, and every timer starts again.
    pub fn new(now: Timestamp, mut start: Start) -> (Self, Vec<Effect>) {
        hold_to(now, &mut start.ledger);
        let mut core = Self {
            master: start.master,
            plan: Arc::new(Plan { workers: BTreeMap::new(), ..(*start.plan).clone() }),
            rng: rng(start.seed),
            builds: BTreeMap::new(),
            last_build: start.ledger.last_build,
            last_entry: start.ledger.last_entry,
            message_ids: BTreeMap::new(),
            ended_names: VecDeque::new(),
            named: BTreeMap::new(),
            log_watches: BTreeMap::new(),
            queue: Queue::default(),
            workers: BTreeMap::new(),
            hosts: BTreeMap::new(),
            images: BTreeMap::new(),
            places: BTreeMap::new(),
            heard_places: BTreeSet::new(),
            rests: BTreeMap::new(),
            prices: BTreeMap::new(),
            listing: BTreeSet::new(),
            orphans: BTreeMap::new(),
            foreign_machines: BTreeSet::new(),
            audits: BTreeMap::new(),
            timers: Timers::default(),
            spent: start.ledger.spent,
            started: now,
            outlives_alarms: start.plan.outlives_alarms,
            linked: false,
            alarm: None,
            alarm_ended: None,
            alarm_told: None,
            broker_up: false,
            broker_since: None,
            mail: super::mail::Outbox::default(),
            retention: super::retention::Sweeper::default(),
            terminating: false,
            extended: None,
            free: BTreeSet::new(),
            wakeable: BTreeSet::new(),
            pending: Pending::default(),
            illegal_events: 0,
            tally: super::tally::Tally::default(),
            out: Vec::new(),
        };
        core.restore_mail(now, &mut start.ledger);
        core.restore_alarm(now, start.ledger.alarm_told);
        for (name, record) in start.ledger.workers {
            core.worker_entry(now, &name).record = record;
        }
        core.restore_images(start.ledger.images);
        core.restore_places(now, start.ledger.places);
        // Plans first, so that what is restored finds its worker's options.
        core.on_configure(now, start.plan);
        core.restore_sessions(now, start.ledger.sessions, start.ledger.leases_extended);
        core.restore_hosts(now, start.ledger.hosts);
        core.look_after_places(now);
        for build in start.ledger.builds {
            let (id, live) = (build.id, build.status.live_attempt().map(|a| (a.number, a.worker.clone())));
            core.builds.insert(id, build);
            match live {
                Some((number, worker)) => core.restore_attempt(now, AttemptId { build: id, number }, &worker),
                None => core.enqueue(now, id),
            }
        }
        let names: Vec<_> = core.workers.keys().cloned().collect();
        for name in names {
            core.drain_on(&name);
            let until = core.workers.get(&name).and_then(|w| w.record.backoff_until);
            if let Some(until) = until {
                core.timers.set(Timer::Backoff(name.clone()), until);
            }
            core.touch_worker(&name);
        }
        let effects = core.handle(now, Event::Tick);
        (core, effects)
    }

    pub(super) fn worker_entry(&mut self, now: Timestamp, name: &WorkerName) -> &mut Worker {
        self.workers.entry(name.clone()).or_insert_with(|| Worker {
            plan: None,
            removed: true,
            record: WorkerRecord::default(),
            session: None,
            host: None,
            away: None,
            last_message: None,
            refused: None,
            attempts: BTreeSet::new(),
            state: super::event::WorkerState::Offline,
            since: now,
        })
    }

    fn restore_sessions(&mut self, now: Timestamp, sessions: Vec<super::record::Session>, extended: Option<Duration>) {
        self.extended = extended;
        if let Some(by) = extended {
            self.timers.set(Timer::Extension, now + by + KILL_MARGIN);
        }
        for session in sessions {
            let name = session.worker.clone();
            let worker = self.worker_entry(now, &name);
            let live = Live {
                session,
                attached: false,
                vitals: None,
                last_seq: 0,
                repeated: None,
                drain: None,
                leaving: false,
                held_until_message: false,
                notice: None,
                unclean: None,
            };
            let lease = live.lease().or(live.session.impostor.then_some(LINK_PATIENCE));
            worker.session = Some(live);
            if let Some(lease) = lease {
                // The wall clock cannot tell how long the master was away.
                let lease = lease.max(extended.unwrap_or_default());
                self.timers.set(Timer::Lease(name), now + lease + KILL_MARGIN);
            }
        }
    }

    fn restore_attempt(&mut self, now: Timestamp, id: AttemptId, worker: &WorkerName) {
        self.open_logs(id);
        let entry = self.worker_entry(now, worker);
        entry.attempts.insert(id);
        let over = entry.session.is_none() && entry.host.is_none();
        if self.attempt_with_outcome(id).is_some() {
            self.timers.set(Timer::Logs(id), now);
        } else if over {
            // Its session has ended, so nothing can run it any more.
            self.lose_attempt(now, id, "its session was over when the master started");
        }
    }

    /// Applies a new configuration. Hosts and builds that the change does not concern continue.
    pub(super) fn on_configure(&mut self, now: Timestamp, plan: Arc<Plan>) {
        for (name, worker_plan) in &plan.workers {
            let worker = self.worker_entry(now, name);
            worker.plan = Some(worker_plan.clone());
            worker.removed = false;
            let host = worker.host.clone();
            self.arm_missing(now, name);
            if let Some(host) = host {
                // The time may have changed.
                self.timers.clear(&Timer::Idle(host));
            }
            self.touch_worker(name);
        }
        let removed: Vec<_> = self
            .workers
            .iter()
            .filter(|(n, w)| !w.removed && !plan.workers.contains_key(n))
            .map(|(n, _)| n.clone())
            .collect();
        for name in removed {
            self.remove_worker(now, &name);
        }
        let changed = self.plan.retention != plan.retention;
        self.plan = plan;
        self.review_all_suspended(now);
        self.watch_all_queued(now);
        self.arm_retention(now, changed);
        self.pending.wake = true;
    }

    /// Once configuration and hosts are known: audits the providers of both, and ends the pauses of places that neither
    /// leads to.
    pub(super) fn look_after_places(&mut self, now: Timestamp) {
        self.forget_unused_places();
        for provider in self.providers() {
            self.timers.set_once(Timer::Audit(provider), now);
        }
    }

    /// A reload has removed the worker. It gets no more builds, and its host ends when nothing runs on it.
    fn remove_worker(&mut self, now: Timestamp, name: &WorkerName) {
        let Some(worker) = self.workers.get_mut(name) else { return };
        worker.removed = true;
        let (host, busy) = (worker.host.clone(), !worker.attempts.is_empty() || worker.is_impostor());
        self.timers.clear(&Timer::Missing(name.clone()));
        self.note(Level::Info, format!("worker {name} is no longer in the configuration"));
        if let Some(id) = host {
            self.wind_down(now, &id, "its worker is no longer in the configuration");
        } else if !busy {
            let reason = "this worker is no longer in the configuration".to_owned();
            self.send(name, ToAgent::Refused { reason, power_off: false });
            self.end_session(now, name, "its worker is no longer in the configuration", EndReason::Gone);
        }
        self.touch_worker(name);
    }

    /// Forgets a removed worker that has neither host nor session.
    pub(super) fn forget_worker(&mut self, name: &WorkerName) {
        let record = self.workers.remove(name).map(|w| w.record).unwrap_or_default();
        if record != WorkerRecord::default() {
            // If the worker comes back into the configuration, it is a new one, also for the next master.
            self.out.push(Effect::Save(Record::Worker(name.clone(), WorkerRecord::default())));
        }
        self.free.remove(name);
        self.wakeable.remove(name);
        for timer in [Timer::Missing(name.clone()), Timer::Lease(name.clone()), Timer::Backoff(name.clone())] {
            self.timers.clear(&timer);
        }
    }
}
