//! Machines: booted, frozen, suspended, killed; and the steps that are really running on them.

use super::world::{Act, World};
use rouse_agent::core::{Core, Event, Settings};
use rouse_shared::message::Facts;
use rouse_shared::{AttemptId, HostId, Nonce, SessionId, Timestamp, WorkerName};
use std::collections::BTreeMap;
use std::time::Duration;

/// Whether a machine does what it should.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pace {
    Going,
    /// The agent has got SIGSTOP; its supervisors go on.
    Frozen,
    /// Nothing at all goes on.
    Suspended,
}

/// A step that really runs.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub step: u32,
    /// Distinguishes one step's events from the next one's.
    pub number: u64,
    pub began: u64,
    pub started: bool,
}

/// A step's log on the machine.
pub(super) struct Spool {
    /// The session that has requested its attempt.
    pub session: SessionId,
    pub length: u64,
    pub ended: bool,
    /// The next byte to send, and on which connection.
    pub next: Option<(u64, u64)>,
    /// The bytes that were ever sent.
    pub sent: u64,
    pub pumping: bool,
}

impl Spool {
    pub fn of(session: SessionId) -> Self {
        Self { session, length: 0, ended: false, next: None, sent: 0, pumping: false }
    }
}

pub(super) struct Machine {
    pub worker: WorkerName,
    /// The host, if the master made the machine.
    pub host: Option<HostId>,
    /// Whether its agent switches the machine off when nobody wants it.
    pub latent: bool,
    /// Whether it has a credential that is another's.
    pub stranger: bool,
    /// Whether it is a copy of a host's image, with its worker's password.
    pub copy: bool,
    pub password: String,
    pub identity: String,
    pub on: bool,
    pub partitioned: bool,
    pub pace: Pace,
    /// World time of the boot; the clock counts from there.
    pub booted: u64,
    /// Milliseconds that its clock has stood still.
    pub lag: u64,
    pub suspended_at: u64,
    /// Whether it was suspended with its memory kept: its clock goes on.
    pub hibernated: bool,
    pub power_off_after: Duration,
    /// What a restart of the agent finds.
    pub secret: Option<String>,
    pub agent: Option<Core>,
    /// What its agent calls its life.
    pub nonce: Option<Nonce>,
    /// Which life of the agent; events of an earlier one are dropped.
    pub life: u64,
    pub backlog: Vec<Event>,
    pub postponed: Vec<Act>,
    pub runs: BTreeMap<AttemptId, Run>,
    pub spools: BTreeMap<(AttemptId, u32), Spool>,
    pub deadline: Option<Timestamp>,
    /// When the agent began to wait for a master, by the machine's clock: at its first start since the machine has booted,
    /// or since a master has let it in. The time that the machine has slept since does not count.
    pub started: Timestamp,
    /// Whether that goes on: no master has let it in since.
    pub armed: bool,
    /// When the machine woke up last, by its clock.
    pub awake_since: Timestamp,
    /// Whether a master has let this life in as a standing worker: then it switches nothing off.
    pub disarmed: bool,
    /// Whether the agent believed itself attached after its last event.
    pub attached: bool,
    /// Since when, in the world's time.
    pub attached_since: u64,
    /// Whether somebody has sent its agent home.
    pub left: bool,
    pub tick_at: Option<u64>,
    /// The connection that the agent has or makes now, by its own number, and the bus's if it is up.
    pub link: Option<(u64, Option<u64>)>,
    /// Whether the agent was asked to end and somebody has to start it again.
    pub ended: bool,
}

impl Machine {
    pub(super) fn new(worker: WorkerName, host: Option<HostId>, password: String, identity: String, now: u64) -> Self {
        Self {
            worker,
            latent: host.is_some(),
            host,
            stranger: false,
            copy: false,
            password,
            identity,
            on: true,
            partitioned: false,
            pace: Pace::Going,
            booted: now,
            lag: 0,
            suspended_at: 0,
            hibernated: false,
            power_off_after: Duration::from_secs(300),
            secret: None,
            agent: None,
            nonce: None,
            life: 0,
            backlog: Vec::new(),
            postponed: Vec::new(),
            runs: BTreeMap::new(),
            spools: BTreeMap::new(),
            deadline: None,
            started: Timestamp(0),
            armed: false,
            awake_since: Timestamp(0),
            disarmed: false,
            attached: false,
            attached_since: 0,
            left: false,
            tick_at: None,
            link: None,
            ended: false,
        }
    }

    /// The machine's clock: since its boot.
    pub(super) fn clock(&self, now: u64) -> Timestamp {
        let now = if self.clock_stands() { self.suspended_at } else { now };
        Timestamp(1_000 + now - self.booted - self.lag)
    }

    /// Whether its clock stands still: a virtual machine that is paused from outside knows nothing of it.
    fn clock_stands(&self) -> bool {
        self.pace == Pace::Suspended && self.host.is_some() && !self.hibernated
    }
}

impl World {
    pub(super) fn add_machine(&mut self, machine: Machine) -> usize {
        let id = self.machines.len() + 1;
        self.machines.insert(id, machine);
        id
    }

    /// Starts the agent on a machine, if none runs.
    pub(super) fn start_agent(&mut self, id: usize) {
        let nonce = Nonce(self.chance.hex(32));
        let Some(machine) = self.machines.get_mut(&id).filter(|m| m.on && m.agent.is_none()) else { return };
        if machine.pace == Pace::Suspended {
            machine.postponed.push(Box::new(move |w| w.start_agent(id)));
            return;
        }
        machine.life += 1;
        machine.ended = false;
        machine.left = false;
        machine.attached = false;
        machine.disarmed = false;
        if !std::mem::replace(&mut machine.armed, true) {
            machine.started = machine.clock(self.now);
        }
        machine.pace = Pace::Going;
        let settings = Settings {
            worker: machine.worker.clone(),
            identity: machine.identity.clone(),
            proof: Default::default(),
            version: "0.1.0".to_owned(),
            facts: Facts::default(),
            password: machine.password.clone(),
            secret: machine.secret.clone(),
            latent: machine.latent,
            started: machine.started,
            power_off_after: machine.power_off_after,
            run_as: None,
        };
        machine.nonce = Some(nonce.clone());
        machine.agent = Some(Core::new(settings, nonce));
        machine.deadline = None;
        let (life, worker) = (machine.life, machine.worker.clone());
        self.say(|| format!("machine {id}: agent of {worker} starts, life {life}"));
        self.agent_event(id, life, Event::Start);
    }

    /// The agent's process is gone, and its supervisors with it.
    pub(super) fn agent_dies(&mut self, id: usize, notice: bool) {
        let Some(machine) = self.machines.get_mut(&id) else { return };
        if machine.agent.take().is_none() {
            return;
        }
        machine.life += 1;
        machine.attached = false;
        machine.runs.clear();
        machine.spools.clear();
        machine.backlog.clear();
        machine.tick_at = None;
        if machine.pace == Pace::Frozen {
            machine.pace = Pace::Going;
        }
        let link = machine.link.take().and_then(|(_, conn)| conn);
        self.say(|| format!("machine {id}: its agent is gone"));
        if let Some(conn) = link {
            // A process's socket is closed at once; a machine that is cut off or dead just falls silent.
            let delay = if notice { self.delay(1, 200) } else { self.delay(5_000, 60_000) };
            self.after(delay, move |w| w.conn_lost(conn, false));
        }
    }

    /// kill -9; somebody or something starts the agent again.
    pub(super) fn kill_agent(&mut self, id: usize) {
        let Some(machine) = self.machines.get(&id).filter(|m| m.on && m.agent.is_some()) else { return };
        if machine.pace == Pace::Suspended {
            return;
        }
        self.say(|| format!("machine {id}: kill -9 of its agent"));
        let partitioned = self.machines.get(&id).is_some_and(|m| m.partitioned);
        self.agent_dies(id, !partitioned);
        let delay = self.delay(500, 40_000);
        self.after(delay, move |w| w.start_agent(id));
    }

    pub(super) fn freeze(&mut self, id: usize, pace: Pace, for_ms: u64) {
        let now = self.now;
        let Some(machine) = self.machines.get_mut(&id).filter(|m| m.on && m.pace == Pace::Going) else { return };
        if machine.agent.is_none() {
            return;
        }
        machine.pace = pace;
        machine.suspended_at = now;
        let life = machine.life;
        self.say(|| format!("machine {id}: {pace:?} for {for_ms} ms"));
        self.after(for_ms, move |w| w.thaw(id, life));
    }

    pub(super) fn thaw(&mut self, id: usize, life: u64) {
        let thaws = |m: &&Machine| m.life == life && !m.hibernated;
        if self.machines.get(&id).filter(thaws).is_some() {
            self.go_on(id);
        }
    }

    /// Whatever kept the machine from going on is over.
    pub(super) fn go_on(&mut self, id: usize) {
        let now = self.now;
        let stands = |m: &&mut Machine| m.on && m.pace != Pace::Going;
        let Some(machine) = self.machines.get_mut(&id).filter(stands) else { return };
        let (before, life, stood) = (machine.pace, machine.life, machine.clock_stands());
        machine.hibernated = false;
        let slept = if before == Pace::Suspended { now - machine.suspended_at } else { 0 };
        machine.pace = Pace::Going;
        if stood {
            machine.lag += slept;
        } else {
            machine.started = machine.started + Duration::from_millis(slept);
            machine.awake_since = machine.clock(now);
        }
        machine.tick_at = None;
        let (postponed, backlog) = (std::mem::take(&mut machine.postponed), std::mem::take(&mut machine.backlog));
        self.say(|| format!("machine {id}: goes on"));
        // Supervisors look at the clock first; what is past its deadline does not go on.
        if before == Pace::Suspended {
            self.enforce_deadline(id, life, true);
        }
        if before == Pace::Suspended && !stood {
            self.agent_event(id, life, Event::Resumed(Duration::from_millis(slept)));
        }
        for act in postponed {
            act(self);
        }
        for event in backlog {
            self.agent_event(id, life, event);
        }
        self.agent_event(id, life, Event::Tick);
    }

    /// A machine is no more: switched off, stopped by its provider, or broken.
    pub(super) fn machine_off(&mut self, id: usize) {
        let Some(machine) = self.machines.get_mut(&id).filter(|m| m.on) else { return };
        machine.on = false;
        machine.hibernated = false;
        machine.postponed.clear();
        self.say(|| format!("machine {id}: off"));
        let silent = self.chance.permille(500);
        self.agent_dies(id, !silent);
    }
}
