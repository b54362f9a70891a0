//! The world: one clock, one heap of future events, and everything that exists.

use super::bus::Bus;
use super::cloud::Cloud;
use super::disk::Disk;
use super::idle::Idle;
use super::machine::Machine;
use super::master::Master;
use super::relay::Relay;
use super::script::Script;
use super::setup::{self, Faults};
use super::{Break, Summary, Violation, retention, standby};
use crate::chance::Chance;
use rouse_shared::message::StepState;
use rouse_shared::{AttemptId, BuildId, HostId, Nonce, Timestamp};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

/// The master's clock at the beginning.
const EPOCH: u64 = 1_800_000_000_000;
/// Things that happen in a seed at least: one that is short of them goes on for another while.
const EVENTS: u64 = 500;
/// Between two looks at everything that must hold at any time.
const LOOK: u64 = 20_000;

/// Something to come.
pub(super) type Act = Box<dyn FnOnce(&mut World)>;

struct Entry {
    at: u64,
    seq: u64,
    act: Act,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.seq == other.seq
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.seq).cmp(&(self.at, self.seq))
    }
}

pub(super) struct World {
    pub seed: u64,
    /// Milliseconds since the beginning.
    pub now: u64,
    seq: u64,
    heap: BinaryHeap<Entry>,
    pub chance: Chance,
    pub faults: Faults,
    pub broken: Option<Break>,
    /// No faults any more.
    pub quiet: bool,
    pub disk: Disk,
    pub master: Master,
    pub bus: Bus,
    pub cloud: Cloud,
    pub relay: Relay,
    pub machines: BTreeMap<usize, Machine>,
    pub script: Script,
    /// The steps that were ever begun, and how they really ended.
    pub ran: BTreeMap<(AttemptId, u32), Option<StepState>>,
    /// On which machine attempts have run, and in which life of its agent.
    pub ran_on: BTreeMap<AttemptId, (usize, u64)>,
    /// Lives of agents that a welcome has reached.
    pub welcomed: BTreeSet<Nonce>,
    /// Since when hosts have been idle, as far as the looks at them show.
    pub idle: BTreeMap<HostId, Idle>,
    /// Since when a copy of a host's image has had the host's session although its provider has said which machine it is.
    pub impostors: BTreeMap<HostId, u64>,
    /// At how many looks in a row builds have waited for workers that sleep.
    pub waits: BTreeMap<BuildId, u32>,
    /// The master is gone and does not come back for now.
    pub abandoned: bool,
    pub summary: Summary,
    violation: Option<String>,
    transcript: Option<Vec<String>>,
}

impl World {
    pub(super) fn new(seed: u64, broken: Option<Break>, transcript: bool) -> Self {
        let mut chance = Chance::new(seed);
        let (mut plan, mut faults) = setup::make(&mut chance);
        faults.standby = standby::of_seed(seed, &faults);
        plan.retention = retention::of_seed(seed);
        let script = Script::new(plan);
        Self {
            seed,
            now: 0,
            seq: 0,
            heap: BinaryHeap::new(),
            faults,
            broken,
            quiet: false,
            disk: Disk::default(),
            master: Master::new(&mut chance, script.plan.clone()),
            bus: Bus::default(),
            cloud: Cloud::default(),
            relay: Relay::default(),
            machines: BTreeMap::new(),
            script,
            ran: BTreeMap::new(),
            ran_on: BTreeMap::new(),
            welcomed: BTreeSet::new(),
            idle: BTreeMap::new(),
            impostors: BTreeMap::new(),
            waits: BTreeMap::new(),
            abandoned: false,
            summary: Summary::default(),
            violation: None,
            transcript: transcript.then(Vec::new),
            chance,
        }
    }

    /// Whether a transcript is kept: what is written into it costs time.
    pub(super) fn loud(&self) -> bool {
        self.transcript.is_some()
    }

    pub(super) fn say(&mut self, text: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.transcript {
            let line = format!("{:>9}.{:03} {}", self.now / 1000, self.now % 1000, text());
            lines.push(line);
        }
    }

    /// Something that must hold does not.
    pub(super) fn violated(&mut self, what: impl Into<String>) {
        let what = what.into();
        self.say(|| format!("VIOLATED: {what}"));
        self.violation.get_or_insert(what);
    }

    /// The master's clock.
    pub(super) fn time(&self) -> Timestamp {
        Timestamp((EPOCH + self.now).saturating_add_signed(self.master.clock))
    }

    /// When the world's clock shows what the master's does then.
    pub(super) fn moment(&self, at: Timestamp) -> u64 {
        at.0.saturating_add_signed(-self.master.clock).saturating_sub(EPOCH).max(self.now)
    }

    pub(super) fn after(&mut self, delay: u64, act: impl FnOnce(&mut World) + 'static) {
        let at = self.now + delay;
        self.at(at, act);
    }

    pub(super) fn at(&mut self, at: u64, act: impl FnOnce(&mut World) + 'static) {
        self.seq += 1;
        self.heap.push(Entry { at: at.max(self.now), seq: self.seq, act: Box::new(act) });
    }

    /// A delay by chance, both ends included, milliseconds.
    pub(super) fn delay(&mut self, low: u64, high: u64) -> u64 {
        self.chance.range(low, high)
    }

    /// Whether a fault that comes so many times of a thousand comes now.
    pub(super) fn mishap(&mut self, permille: u64) -> bool {
        permille > 0 && !self.quiet && self.chance.permille(permille)
    }

    /// Plays until `until`, or until something does not hold.
    fn run_until(&mut self, until: u64) {
        while self.violation.is_none() && self.heap.peek().is_some_and(|next| next.at <= until) {
            let Some(Entry { at, act, .. }) = self.heap.pop() else { break };
            self.now = at;
            self.summary.events += 1;
            act(self);
        }
        self.now = self.now.max(until);
    }

    pub(super) fn play(mut self) -> (Result<Summary, Box<Violation>>, Vec<String>) {
        self.begin();
        self.after(LOOK, World::look);
        let faults_end = self.script.faults_end;
        self.run_until(faults_end);
        while self.violation.is_none() && self.summary.events < EVENTS {
            self.keep_busy();
            let until = self.now + 10 * 60_000;
            self.run_until(until);
        }
        if self.faults.abandon {
            let until = self.abandon();
            self.run_until(until);
        }
        self.calm_down();
        // Until every build that can end has ended, and then until the last idle host is gone.
        let limit = self.now + 6 * 3_600_000;
        while self.violation.is_none() && self.now < limit && self.builds_to_end() > 0 {
            let until = self.now + 60_000;
            self.run_until(until);
        }
        let until = self.now + 25 * 60_000;
        self.run_until(until);
        if self.violation.is_none() {
            self.check_the_end();
        }
        self.summary.simulated = self.now;
        let (seed, broken) = (self.seed, self.broken);
        let played = match self.violation {
            None => Ok(self.summary),
            Some(what) => Err(Box::new(Violation { seed, broken, what })),
        };
        (played, self.transcript.unwrap_or_default())
    }

    /// Looks at everything that must hold at any time; what an event touches is looked at when it comes.
    fn look(&mut self) {
        self.summary.looks += 1;
        self.summary.events -= 1;
        self.check_all();
        self.check_places();
        self.check_waiting();
        self.after(LOOK, World::look);
    }
}
