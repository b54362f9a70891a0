//! The master around the real core: batches, commits, effects, and the ways to die in between.

use super::Break;
use super::chance::Chance;
use super::world::World;
use rouse_master::core::event::{Effect, Event, RequestId};
use rouse_master::core::record::Record;
use rouse_master::core::{Core, Start};
use rouse_shared::message::{LogChunk, ToAgent, ToMaster};
use rouse_shared::{AttemptId, MasterId, WorkerName};
use std::collections::BTreeMap;

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

/// Where the master dies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Crash {
    /// Nothing of the batch is committed.
    BeforeCommit,
    /// The batch is committed, and none of it performed.
    AfterCommit,
    /// So many effects of the batch are performed.
    Between(usize),
}

pub(super) struct Master {
    pub core: Option<Core>,
    id: MasterId,
    /// Which life; what an earlier one asked for is answered to nobody.
    pub epoch: u64,
    /// Whether its link to the broker is up.
    pub linked: bool,
    inbox: Vec<Input>,
    turn_due: bool,
    tick_at: Option<u64>,
    pub crash: Option<Crash>,
    requests: u64,
    pub asked: BTreeMap<RequestId, usize>,
    open_logs: BTreeMap<AttemptId, WorkerName>,
    expected: BTreeMap<AttemptId, Vec<u64>>,
    told_gaps: BTreeMap<(AttemptId, u32), u64>,
}

impl Master {
    pub(super) fn new(chance: &mut Chance) -> Self {
        Self {
            core: None,
            id: MasterId(chance.hex(32)),
            epoch: 0,
            linked: false,
            inbox: Vec::new(),
            turn_due: false,
            tick_at: None,
            crash: None,
            requests: 0,
            asked: BTreeMap::new(),
            open_logs: BTreeMap::new(),
            expected: BTreeMap::new(),
            told_gaps: BTreeMap::new(),
        }
    }

    pub(super) fn request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }
}

impl World {
    pub(super) fn start_master(&mut self) {
        if self.master.core.is_some() {
            return;
        }
        self.master.epoch += 1;
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&self.chance.next().to_le_bytes());
        let start =
            Start { master: self.master.id.clone(), plan: self.script.plan.clone(), ledger: self.disk.load(), seed };
        self.say(|| "master: starts".to_owned());
        let (core, effects) = Core::new(self.time(), start);
        self.master.core = Some(core);
        self.finish(effects, Vec::new());
        let delay = self.delay(10, 2_000);
        self.after(delay, |w| w.master_linked());
    }

    pub(super) fn master_linked(&mut self) {
        if !self.bus.up || self.master.linked || self.master.core.is_none() {
            return;
        }
        self.master.linked = true;
        self.relay.linked_at = self.now;
        self.master_hears(Input::Event(Event::BrokerUp));
        for delivery in std::mem::take(&mut self.bus.held) {
            self.master_hears(Input::Delivery(delivery));
        }
    }

    /// The master's link is down: what it has not acknowledged will come again.
    pub(super) fn master_unlinked(&mut self) {
        if !std::mem::take(&mut self.master.linked) {
            return;
        }
        let inbox = std::mem::take(&mut self.master.inbox);
        for input in inbox {
            match input {
                Input::Delivery(delivery @ Delivery::Submit(_)) => self.bus.held.push_back(delivery),
                Input::Delivery(Delivery::Agent { .. } | Delivery::Log { .. }) => {}
                event @ Input::Event(_) => self.master.inbox.push(event),
            }
        }
        self.master_hears(Input::Event(Event::BrokerDown));
    }

    pub(super) fn master_hears(&mut self, input: Input) {
        if self.master.core.is_none() {
            if let Input::Delivery(delivery) = input {
                self.bus.held.push_back(delivery);
            }
            return;
        }
        self.master.inbox.push(input);
        if !std::mem::replace(&mut self.master.turn_due, true) {
            let (delay, epoch) = (self.delay(0, 5), self.master.epoch);
            self.after(delay, move |w| {
                if w.master.epoch == epoch {
                    w.turn();
                }
            });
        }
    }

    /// Something that only this life of the master hears.
    pub(super) fn master_event_of(&mut self, epoch: u64, delay: u64, event: Event) {
        self.after(delay, move |w| {
            if w.master.epoch == epoch && w.master.core.is_some() {
                w.master_hears(Input::Event(event));
            }
        });
    }

    pub(super) fn master_event_in(&mut self, delay: u64, event: Event) {
        self.master_event_of(self.master.epoch, delay, event);
    }

    fn turn(&mut self) {
        self.master.turn_due = false;
        let inputs = std::mem::take(&mut self.master.inbox);
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
        if self.mishap(self.faults.crash) && self.chance.permille(100) {
            let crash = match self.chance.range(0, 2) {
                0 => Crash::BeforeCommit,
                1 => Crash::AfterCommit,
                _ => Crash::Between(self.chance.range(1, 4) as usize),
            };
            self.master.crash = Some(crash);
        }
        self.finish(effects, deliveries);
    }

    fn handle(&mut self, event: Event) -> Vec<Effect> {
        let mut now = self.time();
        if event == Event::Tick && self.broken == Some(Break::EarlyRequeue) && self.mishap(3) {
            now = now + std::time::Duration::from_secs(45);
        }
        if event != Event::Tick {
            self.say(|| format!("master <- {event:?}"));
        }
        self.master.core.as_mut().map(|core| core.handle(now, event)).unwrap_or_default()
    }

    /// What a delivery is for the core. Chunks are written before they are acknowledged.
    fn delivered(&mut self, delivery: Delivery) -> Option<Event> {
        match delivery {
            Delivery::Agent { worker, message } => Some(Event::Agent { worker, message }),
            Delivery::Submit(index) => Some(self.submission(index)),
            Delivery::Log { worker, chunk } => self.write_log(&worker, &chunk),
        }
    }

    fn write_log(&mut self, worker: &WorkerName, chunk: &LogChunk) -> Option<Event> {
        let attempt = chunk.attempt;
        if self.master.open_logs.get(&attempt) != Some(worker) {
            return None;
        }
        let key = (attempt, chunk.step);
        let there = self.disk.logs.entry(key).or_default();
        if chunk.offset > *there {
            let offset = *there;
            let news = self.master.told_gaps.insert(key, offset) != Some(offset);
            return news.then_some(Event::LogGap { attempt, step: chunk.step, offset });
        }
        *there = (*there).max(chunk.offset + chunk.bytes.len() as u64);
        self.became_whole(attempt).then_some(Event::LogsWhole { attempt })
    }

    fn missing(&self, attempt: AttemptId, lengths: &[u64]) -> Option<(u32, u64)> {
        lengths.iter().zip(0..).find_map(|(length, step)| {
            let there = self.disk.logs.get(&(attempt, step)).copied().unwrap_or(0);
            (there < *length).then_some((step, there))
        })
    }

    fn became_whole(&mut self, attempt: AttemptId) -> bool {
        let lie = self.broken == Some(Break::LogsLie);
        let whole = self.master.expected.get(&attempt).is_some_and(|l| lie || self.missing(attempt, l).is_none());
        whole && self.master.expected.remove(&attempt).is_some()
    }

    /// Commits, then performs, until nothing more follows; or dies on the way.
    fn finish(&mut self, effects: Vec<Effect>, deliveries: Vec<Delivery>) {
        let mut effects = effects;
        while !effects.is_empty() {
            let crash = self.master.crash.take();
            let (records, others): (Vec<_>, Vec<_>) = effects.into_iter().partition(|e| matches!(e, Effect::Save(_)));
            if crash == Some(Crash::BeforeCommit) {
                if self.broken == Some(Break::PerformBeforeCommit) {
                    others.into_iter().for_each(|effect| drop(self.perform(effect)));
                }
                return self.master_dies(deliveries);
            }
            let hosts_before = self.disk.hosts.len();
            let forget = self.broken == Some(Break::DiskForgets) && crash.is_some();
            for record in records {
                let Effect::Save(record) = record else { continue };
                self.say(|| format!("ledger: {record:?}"));
                self.check_record(&record);
                let again = self.broken == Some(Break::MailTwice) && matches!(record, Record::NewsOver(_));
                if let Record::Mail(mail) = &record
                    && self.broken == Some(Break::MailForgotten)
                    && mail.tries > 0
                {
                    self.disk.mails.remove(&mail.id);
                    continue;
                }
                if !forget && !again {
                    self.disk.apply(record);
                }
            }
            self.check_ledger(hosts_before);
            effects = Vec::new();
            for (done, effect) in others.into_iter().enumerate() {
                if crash == Some(Crash::AfterCommit) || crash.is_some_and(|c| c == Crash::Between(done)) {
                    return self.master_dies(deliveries);
                }
                if let Some(event) = self.perform(effect) {
                    effects.extend(self.handle(event));
                }
            }
            if crash.is_some() {
                return self.master_dies(deliveries);
            }
        }
        self.arm_master_tick();
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

    /// The master's process is gone; it is started again after a while.
    pub(super) fn master_dies(&mut self, unacknowledged: Vec<Delivery>) {
        if self.master.core.take().is_none() {
            return;
        }
        self.summary.crashes += 1;
        self.master.epoch += 1;
        self.master.linked = false;
        self.master.turn_due = false;
        self.master.tick_at = None;
        self.master.crash = None;
        self.master.open_logs.clear();
        self.master.expected.clear();
        self.master.told_gaps.clear();
        self.master.asked.clear();
        let waiting = std::mem::take(&mut self.master.inbox);
        let mut again: Vec<Delivery> = unacknowledged;
        again.extend(waiting.into_iter().filter_map(|input| match input {
            Input::Delivery(delivery) => Some(delivery),
            Input::Event(_) => None,
        }));
        for delivery in again.into_iter().rev() {
            self.bus.held.push_front(delivery);
        }
        let long = self.faults.long_outage && self.mishap(150);
        let away = if long { self.delay(60_000, 600_000) } else { self.delay(500, 8_000) };
        self.say(|| format!("master: is dead for {away} ms"));
        self.after(away, |w| w.start_master());
    }

    /// Performs one effect; what follows from it at once is returned.
    fn perform(&mut self, effect: Effect) -> Option<Event> {
        if !matches!(effect, Effect::Send { message: ToAgent::Renewed { .. }, .. }) {
            self.say(|| format!("  master -> {effect:?}"));
        }
        match effect {
            Effect::Save(_) | Effect::Announce(_) | Effect::Note(..) => {}
            Effect::Send { queue, message } => {
                if self.broken == Some(Break::ForgetDrain) && matches!(message, ToAgent::Drain { .. }) {
                    self.stop_drained(&queue);
                }
                self.send_to_agent(queue, message);
            }
            Effect::Reply { request, answer } => self.answered(request, answer),
            Effect::PrepareHost { host, number } => self.prepare_host(&host, number),
            Effect::StartHost(host) => self.start_host(*host),
            Effect::StopHost(host) => self.stop_host(*host),
            Effect::StopOrphan { listed, .. } => self.stop_orphan(listed),
            Effect::FetchConsole(host) => self.fetch_console(&host),
            Effect::ListHosts(provider) => self.list_hosts(provider, None),
            Effect::ListForAudit { request, round, provider } => self.list_hosts(provider, Some((request, round))),
            Effect::OpenLogs { attempt, worker } => {
                self.master.open_logs.insert(attempt, worker);
            }
            Effect::CheckLogs { attempt, lengths, overdue } => {
                self.master.expected.insert(attempt, lengths.clone());
                if self.became_whole(attempt) {
                    return Some(Event::LogsWhole { attempt });
                }
                let missing = self.missing(attempt, &lengths).filter(|_| overdue);
                return missing.map(|(step, offset)| Event::LogGap { attempt, step, offset });
            }
            Effect::SendMail(mail) => self.send_mail(*mail),
            Effect::CloseLogs { attempt } => {
                self.master.open_logs.remove(&attempt);
                self.master.expected.remove(&attempt);
            }
        }
        None
    }

    /// [`Break::ForgetDrain`]: the host goes without being asked.
    fn stop_drained(&mut self, queue: &str) {
        let host = self.disk.hosts.values().find(|h| queue.starts_with(&format!("rouse.agent.{}.", h.worker)));
        if let Some(host) = host.cloned() {
            self.stop_host(host);
        }
    }
}
