//! The master around the real core: batches, commits, effects, and the ways to die between them.

use super::Break;
use super::show;
use super::world::World;
use crate::chance::Chance;
use rouse_master::core::event::{Command, Effect, Event, ListedHost, Listing, Reply, RequestId, Started};
use rouse_master::core::plan::Plan;
use rouse_master::core::record::{HostState, Record};
use rouse_master::core::{Core, Start, show as core_show};
use rouse_shared::message::{LogChunk, ToMaster};
use rouse_shared::{AttemptId, BuildId, MasterId, SessionId, WorkerName};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A message that the broker keeps until it is acknowledged.
#[derive(Clone, Debug)]
pub(super) enum Delivery {
    Agent {
        worker: WorkerName,
        message: ToMaster,
    },
    Log {
        worker: WorkerName,
        chunk: LogChunk,
    },
    /// A submission of the script.
    Submit(usize),
}

/// What waits for the master's next turn.
pub(super) enum Input {
    Delivery(Delivery),
    /// Lost with the master.
    Event(Event),
}

/// The longest lease, and what a master that was started again needs to renew it.
const LEASE_MOST: u64 = 60_000;

/// How often a master is stopped that another one can replace, of a thousand turns.
const STOPPED: u64 = 10;

/// Who waits for an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Asked {
    /// A submission of the script.
    Submission(usize),
    /// Whoever has cancelled the build.
    Cancel(BuildId),
}

/// Whether it matters much if the master dies before or after this.
fn has_weight(effect: &Effect) -> bool {
    match effect {
        Effect::Save(record) => !matches!(record, Record::Session(_)),
        Effect::SendMail(_)
        | Effect::StartHost(_)
        | Effect::TerminateHost(_)
        | Effect::SuspendHost(_)
        | Effect::ResumeHost(_)
        | Effect::TerminateOrphan { .. }
        | Effect::Reply { .. } => true,
        Effect::Send { .. }
        | Effect::PrepareHost { .. }
        | Effect::FetchConsole(_)
        | Effect::ForgetPlace { .. }
        | Effect::ListHosts(_)
        | Effect::ListForAudit { .. }
        | Effect::OpenLogs { .. }
        | Effect::CheckLogs { .. }
        | Effect::CloseLogs { .. }
        | Effect::FindExpired(_)
        | Effect::DeleteLogs(_)
        | Effect::UploadRecorded(_)
        | Effect::Publish(_)
        | Effect::Log(..)
        | Effect::LogRefused { .. } => false,
    }
}

/// [`Break::NoIdentity`]: what a provider says, without the machine's identity.
fn without_identity(event: Event) -> Event {
    match event {
        Event::StartEnded { host, number, result } => {
            Event::StartEnded { host, number, result: result.map(|started| Started { identity: None, ..started }) }
        }
        Event::Listed { provider, result } => {
            let blind = |machine| ListedHost { identity: None, ..machine };
            let blind_list =
                |listing: Listing| Listing { machines: listing.machines.into_iter().map(blind).collect(), ..listing };
            Event::Listed { provider, result: result.map(blind_list) }
        }
        event => event,
    }
}

/// Where the master dies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Crash {
    /// Nothing of the batch is committed.
    BeforeCommit,
    /// The batch is committed, and none of it performed.
    AfterCommit,
    /// So many effects of the batch are performed.
    Between(usize),
    /// It is stopped when so many effects of the batch are performed, and another master takes over.
    Stopped(usize),
}

pub(super) struct Master {
    pub core: Option<Core>,
    id: MasterId,
    /// The configuration that it has taken.
    pub plan: Arc<Plan>,
    /// What its wall clock is ahead, milliseconds. Within a life its time never jumps.
    pub clock: i64,
    /// When this life began.
    pub started: u64,
    /// Which life; what an earlier one asked for is answered to nobody.
    pub epoch: u64,
    /// Whether its link to the broker is up.
    pub linked: bool,
    inputs: Vec<Input>,
    turn_due: bool,
    tick_at: Option<u64>,
    pub crash: Option<Crash>,
    died_at: Option<u64>,
    /// When it has died twice within a lease.
    died_again_at: Option<u64>,
    /// A batch that the disk does not take, and what has led to it.
    stuck: Option<(Vec<Effect>, Vec<Delivery>)>,
    requests: u64,
    pub asked: BTreeMap<RequestId, Asked>,
    pub open_logs: BTreeMap<AttemptId, (WorkerName, SessionId)>,
    pub expected: BTreeMap<AttemptId, Vec<u64>>,
    pub reported_gaps: BTreeMap<(AttemptId, u32), u64>,
}

impl Master {
    pub(super) fn new(chance: &mut Chance, plan: Arc<Plan>) -> Self {
        Self {
            core: None,
            id: MasterId(chance.hex(32)),
            plan,
            clock: 0,
            started: 0,
            epoch: 0,
            linked: false,
            inputs: Vec::new(),
            turn_due: false,
            tick_at: None,
            crash: None,
            died_at: None,
            died_again_at: None,
            stuck: None,
            requests: 0,
            asked: BTreeMap::new(),
            open_logs: BTreeMap::new(),
            expected: BTreeMap::new(),
            reported_gaps: BTreeMap::new(),
        }
    }

    pub(super) fn request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }
}

impl World {
    pub(super) fn start_master(&mut self) {
        if self.master.core.is_some() || self.abandoned {
            return;
        }
        if self.master.epoch > 0 && self.faults.clock && self.chance.permille(500) {
            let step = self.chance.pick(&[3_600_000, -3_600_000, 40_000, -40_000]);
            self.master.clock += step;
            self.say(|| format!("master: its wall clock was stepped by {} s", step / 1000));
        }
        self.master.epoch += 1;
        self.master.started = self.now;
        self.waits.clear();
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&self.chance.draw().to_le_bytes());
        self.take_plan();
        let mut ledger = self.disk.load();
        if self.broken == Some(Break::ForgetSuspended) {
            ledger.hosts.retain(|host| host.state != HostState::Suspended);
        }
        if self.broken == Some(Break::ForgetNumbers) {
            ledger.last_build = self.disk.builds.keys().next_back().map_or(0, |build| build.0);
        }
        let start = Start { master: self.master.id.clone(), plan: self.told_plan(), ledger, seed };
        self.say(|| "master: starts".to_owned());
        let (core, effects) = Core::new(self.time(), start);
        self.master.core = Some(core);
        self.finish(effects, Vec::new());
        self.report_missed_deaths();
        let delay = self.delay(10, 2_000);
        self.after(delay, |w| w.master_linked());
    }

    /// The master takes the newest configuration; every timer that hangs on it starts again.
    fn take_plan(&mut self) {
        self.master.plan = self.script.plan.clone();
        self.idle.clear();
        self.impostors.clear();
    }

    /// The configuration, or what a broken core sees of it.
    fn told_plan(&self) -> Arc<Plan> {
        let mut plan = (*self.master.plan).clone();
        let change = |plan: &mut Plan, of: fn(&mut rouse_master::core::plan::WorkerPlan)| {
            plan.workers.values_mut().for_each(|worker| of(Arc::make_mut(worker)));
        };
        match self.broken {
            Some(Break::NoMaxHosts) => plan.max_hosts = None,
            Some(Break::DeleteEarly) => plan.retention.builds = Some(Duration::from_secs(30)),
            Some(Break::Impatient) => plan.queue_timeout = Some(Duration::from_secs(90)),
            Some(Break::NoMaxBuilds) => change(&mut plan, |w| w.max_builds = None),
            Some(Break::KeepIdle) => {
                change(&mut plan, |w| w.latent.iter_mut().for_each(|l| l.build_wait_timeout = None));
            }
            Some(Break::NoMaxAge) => change(&mut plan, |w| {
                let sleeps = w.latent.iter_mut().filter_map(|l| l.suspend.as_mut());
                sleeps.for_each(|sleep| sleep.max_age = Duration::from_secs(1_000_000));
            }),
            Some(Break::NoMinIdle) => change(&mut plan, |w| w.latent.iter_mut().for_each(|l| l.min_idle = 0)),
            Some(_) | None => return self.master.plan.clone(),
        }
        Arc::new(plan)
    }

    pub(super) fn master_linked(&mut self) {
        if !self.bus.up || self.master.linked || self.master.core.is_none() {
            return;
        }
        self.master.linked = true;
        // What waits for the disk was decided before.
        if self.master.stuck.is_none() {
            self.relay.linked_at = self.now;
        }
        self.master_receives(Input::Event(Event::BrokerUp));
        self.tell_master_soon();
        // There may have been an alarm meanwhile, so leases are held for once more.
        self.impostors.clear();
        for delivery in std::mem::take(&mut self.bus.held) {
            self.master_receives(Input::Delivery(delivery));
        }
    }

    /// The master's link is down: what it has not acknowledged will come again.
    pub(super) fn master_unlinked(&mut self) {
        if !std::mem::take(&mut self.master.linked) {
            return;
        }
        let inputs = std::mem::take(&mut self.master.inputs);
        for input in inputs {
            match input {
                Input::Delivery(delivery @ Delivery::Submit(_)) => self.bus.held.push_back(delivery),
                Input::Delivery(Delivery::Agent { .. } | Delivery::Log { .. }) => {}
                event @ Input::Event(_) => self.master.inputs.push(event),
            }
        }
        self.master_forgets_alarm();
        self.master_receives(Input::Event(Event::BrokerDown));
    }

    pub(super) fn master_receives(&mut self, input: Input) {
        if self.master.core.is_none() {
            if let Input::Delivery(delivery) = input {
                self.bus.held.push_back(delivery);
            }
            return;
        }
        self.master.inputs.push(input);
        self.turn_soon();
    }

    fn turn_soon(&mut self) {
        if self.master.stuck.is_none() && !std::mem::replace(&mut self.master.turn_due, true) {
            let (delay, epoch) = (self.delay(0, 5), self.master.epoch);
            self.after(delay, move |w| {
                if w.master.epoch == epoch {
                    w.turn();
                }
            });
        }
    }

    /// An event for this run of the master only.
    pub(super) fn master_event_of(&mut self, epoch: u64, delay: u64, event: Event) {
        self.after(delay, move |w| {
            if w.master.epoch == epoch && w.master.core.is_some() {
                w.master_receives(Input::Event(event));
            }
        });
    }

    pub(super) fn master_event_in(&mut self, delay: u64, event: Event) {
        self.master_event_of(self.master.epoch, delay, event);
    }

    /// Whether the broker gets an answer when it asks who may connect.
    pub(super) fn admits(&self, worker: &WorkerName, credential: &str) -> bool {
        let answers = self.master.core.as_ref().filter(|_| self.master.stuck.is_none());
        answers.is_some_and(|core| core.admit(worker.as_str(), credential).is_ok())
    }

    fn turn(&mut self) {
        self.master.turn_due = false;
        if self.master.stuck.is_some() {
            return;
        }
        let inputs = std::mem::take(&mut self.master.inputs);
        let mut effects = Vec::new();
        let mut deliveries = Vec::new();
        for input in inputs {
            let event = match input {
                Input::Event(event) => Some(event),
                Input::Delivery(delivery) => {
                    deliveries.push(delivery.clone());
                    self.delivered(delivery)
                }
            };
            if let Some(event) = event {
                effects.extend(self.handle(event));
            }
        }
        effects.extend(self.handle(Event::Tick));
        // Mostly if there is something to lose: a turn that only renews leases has little.
        let often = if effects.iter().any(has_weight) { 500 } else { 30 };
        if self.mishap(self.faults.crash) && self.chance.permille(often) {
            let crash = match self.chance.range(0, 2) {
                0 => Crash::BeforeCommit,
                1 => Crash::AfterCommit,
                _ => Crash::Between(self.chance.range(1, 4) as usize),
            };
            self.master.crash = Some(crash);
        } else if self.faults.standby && self.mishap(STOPPED) && self.chance.permille(often) {
            self.master.crash = Some(Crash::Stopped(self.chance.range(0, 4) as usize));
        }
        self.finish(effects, deliveries);
    }

    fn handle(&mut self, event: Event) -> Vec<Effect> {
        let mut now = self.time();
        if event == Event::Tick && self.broken == Some(Break::EarlyRequeue) && self.mishap(3) {
            now = now + std::time::Duration::from_secs(45);
        }
        if event != Event::Tick {
            self.say(|| format!("master <- {}", show::event(&event)));
        }
        let event = match event {
            Event::Configure(_) => {
                self.take_plan();
                Event::Configure(self.told_plan())
            }
            event if self.broken == Some(Break::NoIdentity) => without_identity(event),
            Event::Command { request, command: Command::CancelBuild(_), .. }
                if self.broken == Some(Break::ForgetCancel) =>
            {
                return vec![Effect::Reply { request, reply: Reply::Done }];
            }
            Event::Detached { worker, .. } if self.broken == Some(Break::BlipIsDeath) => {
                let Some(session) = self.disk.sessions.get(&worker).map(|s| s.id.clone()) else { return Vec::new() };
                Event::Agent { worker, message: ToMaster::Goodbye { session } }
            }
            event => event,
        };
        let Some(core) = self.master.core.as_mut() else { return Vec::new() };
        let effects = core.handle(now, event);
        // A broken world does what none does: that must be noticed by what comes of it.
        if core.illegal_events() > 0 && self.broken.is_none() {
            let text = effects.iter().find(|effect| matches!(effect, Effect::Log(_, text) if text.contains("illegal")));
            self.violated(format!("an event is illegal in the phase of its host: {text:?}"));
        }
        effects
    }

    /// Commits, then performs, until nothing more follows; or dies on the way.
    fn finish(&mut self, effects: Vec<Effect>, deliveries: Vec<Delivery>) {
        let mut effects = effects;
        while !effects.is_empty() {
            let crash = self.master.crash.take();
            if self.disk.full && crash.is_none() && effects.iter().any(|e| matches!(e, Effect::Save(_))) {
                self.say(|| "master: the disk is full, nothing goes on".to_owned());
                if self.master.linked {
                    effects.extend(self.handle(Event::BrokerDown));
                }
                self.master.stuck = Some((effects, deliveries));
                return self.commit_again();
            }
            let (records, others): (Vec<_>, Vec<_>) = effects.into_iter().partition(|e| matches!(e, Effect::Save(_)));
            if crash == Some(Crash::BeforeCommit) {
                if self.broken == Some(Break::PerformBeforeCommit) {
                    others.into_iter().for_each(|effect| drop(self.perform(effect)));
                }
                return self.master_dies(deliveries);
            }
            self.commit(records, crash.is_some());
            effects = Vec::new();
            let mut others = others.into_iter().enumerate();
            while let Some((done, effect)) = others.next() {
                if crash == Some(Crash::Stopped(done)) {
                    let late = std::iter::once(effect).chain(others.map(|(_, effect)| effect)).collect();
                    return self.master_stops(late, deliveries);
                }
                if crash == Some(Crash::AfterCommit) || crash.is_some_and(|c| c == Crash::Between(done)) {
                    return self.master_dies(deliveries);
                }
                if let Some(event) = self.perform(effect) {
                    effects.extend(self.handle(event));
                }
            }
            match crash {
                Some(Crash::Stopped(_)) => return self.master_stops(Vec::new(), deliveries),
                Some(_) => return self.master_dies(deliveries),
                None => {}
            }
        }
        self.arm_master_tick();
        if !self.master.inputs.is_empty() {
            self.turn_soon();
        }
    }

    pub(super) fn commit(&mut self, records: Vec<Effect>, crash: bool) {
        if records.is_empty() {
            return;
        }
        let hosts_before = self.hosts_alive();
        let forget = self.broken == Some(Break::DiskForgets) && crash;
        let now = self.time();
        for record in records {
            let Effect::Save(record) = record else { continue };
            self.say(|| format!("ledger: {}", core_show::record(&record, now)));
            self.check_record(&record);
            if !forget && !self.forgets(&record) {
                self.disk.apply(record);
            }
        }
        self.check_ledger(hosts_before);
    }

    /// Whether a broken disk keeps this from being written.
    fn forgets(&mut self, record: &Record) -> bool {
        match (self.broken, record) {
            (Some(Break::ForgetExtension), Record::LeasesExtended(_)) => true,
            (Some(Break::MailTwice), Record::NewsOver(_)) => true,
            (Some(Break::MailForgotten), Record::Mail(mail)) if mail.tries > 0 => {
                self.disk.mails.remove(&mail.id);
                true
            }
            (Some(_) | None, _) => false,
        }
    }

    /// The disk is tried again each second.
    fn commit_again(&mut self) {
        let epoch = self.master.epoch;
        self.after(1_000, move |w| {
            if w.master.epoch != epoch || w.master.stuck.is_none() {
                return;
            }
            if w.disk.full {
                return w.commit_again();
            }
            if let Some((effects, deliveries)) = w.master.stuck.take() {
                w.idle.clear();
                w.impostors.clear();
                w.finish(effects, deliveries);
                if w.master.epoch == epoch && w.master.linked {
                    w.relay.linked_at = w.now;
                    w.master_receives(Input::Event(Event::BrokerUp));
                }
            }
        });
    }

    fn arm_master_tick(&mut self) {
        let Some(wakeup) = self.master.core.as_ref().and_then(Core::next_wakeup) else { return };
        let (at, epoch) = (self.moment(wakeup).max(self.now + 1), self.master.epoch);
        if self.master.tick_at.is_some_and(|before| before <= at && before > self.now) {
            return;
        }
        self.master.tick_at = Some(at);
        self.at(at, move |w| {
            if w.master.epoch == epoch && w.master.tick_at == Some(at) && w.master.core.is_some() {
                w.master.tick_at = None;
                w.turn();
            }
        });
    }

    /// Whether leases may have ended since the master died once more before all of them were renewed.
    pub(super) fn may_have_lapsed(&self) -> bool {
        self.master.died_again_at.is_some_and(|at| self.now - at < 2 * LEASE_MOST)
    }

    /// Whether the master can act on its timers now.
    pub(super) fn master_acts(&self) -> bool {
        self.master.core.is_some() && self.master.stuck.is_none()
    }

    /// The master's process is gone; it is started again after a while.
    pub(super) fn master_dies(&mut self, unacknowledged: Vec<Delivery>) {
        let long = self.faults.long_outage && self.mishap(150);
        let away = if long { self.delay(60_000, 600_000) } else { self.delay(500, 8_000) };
        self.master_dies_for(away, unacknowledged);
    }

    pub(super) fn master_dies_for(&mut self, away: u64, unacknowledged: Vec<Delivery>) {
        if self.master.core.take().is_some() {
            self.master_is_gone(away, unacknowledged);
        }
    }

    /// Another process starts after so many milliseconds.
    pub(super) fn master_is_gone(&mut self, away: u64, unacknowledged: Vec<Delivery>) {
        self.summary.crashes += 1;
        if self.master.died_at.is_some_and(|at| self.now - at < LEASE_MOST) {
            self.master.died_again_at = Some(self.now);
        }
        self.master.died_at = Some(self.now);
        self.master.epoch += 1;
        self.master.linked = false;
        self.master_forgets_alarm();
        self.master.turn_due = false;
        self.master.tick_at = None;
        self.master.crash = None;
        self.master.open_logs.clear();
        self.master.expected.clear();
        self.master.reported_gaps.clear();
        self.master.asked.clear();
        let waiting = std::mem::take(&mut self.master.inputs);
        let mut again: Vec<Delivery> = self.master.stuck.take().map(|(_, of)| of).unwrap_or_default();
        again.extend(unacknowledged);
        if self.broken == Some(Break::AckBeforeCommit) {
            again.clear();
        }
        again.extend(waiting.into_iter().filter_map(|input| match input {
            Input::Delivery(delivery) => Some(delivery),
            Input::Event(_) => None,
        }));
        for delivery in again.into_iter().rev() {
            self.bus.held.push_front(delivery);
        }
        self.say(|| format!("master: is dead for {away} ms"));
        self.after(away, |w| w.start_master());
    }
}
