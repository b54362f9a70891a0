//! What people and misfortune do: submissions, operators, reloads, and the faults that come by themselves.

use super::machine::{Machine, Pace};
use super::master::{Delivery, Input};
use super::setup::{self, password, worker_name};
use super::world::World;
use rouse_master::core::audit::AuditMode;
use rouse_master::core::build::{BuildSpec, Requirement};
use rouse_master::core::event::{Answer, Event, Operation, RequestId};
use rouse_master::core::plan::Plan;
use rouse_shared::message::Step;
use rouse_shared::{BuildId, WorkerName};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What has come of a submission.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Accepted {
    Waits,
    Build(BuildId),
    Refused,
    /// It bore no id, and its answer was lost: nobody will know.
    Unknown,
}

pub(super) struct Submission {
    spec: Arc<BuildSpec>,
    message_id: Option<String>,
    pub answer: Accepted,
}

pub(super) struct Script {
    pub plan: Arc<Plan>,
    pub faults_end: u64,
    pub submissions: Vec<Submission>,
    /// Builds whose acceptance was told.
    pub accepted: BTreeMap<BuildId, usize>,
    /// The most builds at once that a worker was ever allowed: a reload stops nothing that runs.
    most: BTreeMap<WorkerName, u32>,
    /// The newest fingerprint given, for reloads.
    reloads: u64,
}

impl Script {
    pub(super) fn new(plan: Plan) -> Self {
        Self {
            plan: Arc::new(plan),
            faults_end: 0,
            submissions: Vec::new(),
            accepted: BTreeMap::new(),
            most: BTreeMap::new(),
            reloads: 0,
        }
    }

    pub(super) fn most_builds(&self, worker: &WorkerName) -> u32 {
        self.most.get(worker).copied().unwrap_or(0)
    }
}

impl World {
    pub(super) fn begin(&mut self) {
        self.script.faults_end = self.delay(10, 40) * 60_000;
        let end = self.script.faults_end;
        self.say(|| "begins".to_owned());
        let (plan, faults) = (self.script.plan.clone(), self.faults);
        self.say(|| format!("{faults:?}"));
        self.say(|| format!("{plan:#?}"));
        self.bus.up = true;
        self.start_master();
        for plan in plan.workers.values().filter(|p| p.latent.is_none()) {
            self.standing_machine(&plan.name);
        }
        for _ in 0..self.delay(2, 14) {
            let at = self.delay(0, end);
            self.at(at, |w| w.submit());
        }
        if self.faults.operators {
            for _ in 0..self.delay(1, 8) {
                let at = self.delay(0, end);
                self.at(at, |w| w.operate());
            }
        }
        if self.faults.reload {
            for _ in 0..self.delay(1, 3) {
                let at = self.delay(0, end);
                self.at(at, |w| w.reload());
            }
        }
        let often = |on: bool, most: u64| if on { most } else { 0 };
        let f = self.faults;
        self.misfortunes(often(f.broker, 3), |w| {
            let long = w.faults.long_outage && w.chance.permille(300);
            let away = if long { w.delay(30_000, 400_000) } else { w.delay(100, 4_000) };
            w.restart_broker(away);
        });
        self.misfortunes(often(f.kill, 5), |w| w.with_machine(World::kill_agent));
        self.misfortunes(often(f.freeze, 5), |w| {
            let pace = w.chance.pick(&[Pace::Frozen, Pace::Suspended]);
            let long = w.chance.permille(300);
            let length = if long { w.delay(60_000, 400_000) } else { w.delay(1_000, 60_000) };
            w.with_machine(|w, id| w.freeze(id, pace, length));
        });
        self.misfortunes(often(f.partition, 5), |w| {
            let length = w.delay(1_000, 200_000);
            w.with_machine(|w, id| w.partition(id, length));
        });
        self.misfortunes(often(f.death, 4), |w| {
            w.with_machine(|w, id| {
                if let Some(host) = w.machines.get(&id).and_then(|m| m.host.clone()) {
                    w.vm_ends(&host, "its disk broke");
                }
            });
        });
        self.misfortunes(often(f.terminate, 3), |w| {
            w.with_machine(|w, id| {
                let life = w.machines.get(&id).map_or(0, |m| m.life);
                w.agent_event(id, life, rouse_agent::core::Event::Terminate);
            });
        });
        self.misfortunes(often(f.crash > 0, 2), |w| {
            w.master_hears(Input::Event(Event::Terminate));
            let after = w.delay(100, 3_000);
            w.after(after, |w| w.master_dies(Vec::new()));
        });
        self.misfortunes(often(f.crash > 0, 2), |w| w.master_dies(Vec::new()));
    }

    fn misfortunes(&mut self, most: u64, act: impl Fn(&mut World) + Copy + 'static) {
        let count = self.delay(0, most);
        for _ in 0..count {
            let at = self.delay(0, self.script.faults_end);
            self.at(at, move |w| act(w));
        }
    }

    /// Something for a machine that is on, where there is one.
    fn with_machine(&mut self, act: impl FnOnce(&mut World, usize)) {
        let on: Vec<usize> = self.machines.iter().filter(|(_, m)| m.on).map(|(id, _)| *id).collect();
        if !on.is_empty() {
            let id = self.chance.pick(&on);
            act(self, id);
        }
    }

    fn standing_machine(&mut self, name: &WorkerName) {
        let machine = Machine::new(name.clone(), None, password(name), format!("machine-of-{name}"), self.now);
        let id = self.add_machine(machine);
        let delay = self.delay(0, 20_000);
        self.after(delay, move |w| w.start_agent(id));
    }

    fn submit(&mut self) {
        let names: Vec<WorkerName> = self.script.plan.workers.keys().cloned().collect();
        let requirement = if self.chance.permille(500) {
            Requirement::Worker(self.chance.pick(&names))
        } else if self.chance.permille(300) {
            Requirement::Where(BTreeMap::new())
        } else {
            let os = self.chance.pick(&["linux", "linux", "solaris", "plan9"]);
            Requirement::Where(BTreeMap::from([("os".to_owned(), os.to_owned())]))
        };
        let steps = self.delay(1, 3);
        let spec = BuildSpec {
            name: String::new(),
            requirement,
            priority: self.chance.pick(&[0, 0, 0, 1, -1]),
            retries: self.chance.pick(&[0, 1, 2, 5]),
            timeout_ms: self.chance.pick(&[None, None, Some(30_000)]),
            env: BTreeMap::new(),
            steps: (0..steps).map(|i| self.step(i)).collect(),
        };
        let index = self.script.submissions.len();
        let message_id = self.chance.permille(500).then(|| format!("m{index}"));
        self.script.submissions.push(Submission { spec: Arc::new(spec), message_id, answer: Accepted::Waits });
        self.hand_in(index);
        if self.chance.permille(150) {
            let delay = self.delay(100, 60_000);
            self.after(delay, move |w| w.cancel(index));
        }
    }

    fn step(&mut self, number: u64) -> Step {
        Step {
            name: format!("step {number}"),
            run: vec!["true".to_owned()],
            workdir: String::new(),
            env: BTreeMap::new(),
            timeout_ms: self.chance.permille(200).then_some(15_000),
            silence_ms: None,
            always: self.chance.permille(200),
        }
    }

    /// Puts a submission into the inbox, again where it bears an id and no answer comes.
    fn hand_in(&mut self, index: usize) {
        let delivery = Delivery::Submit(index);
        if self.master.core.is_some() && self.master.linked && self.bus.up {
            self.master_hears(Input::Delivery(delivery));
        } else {
            self.bus.held.push_back(delivery);
        }
        if self.script.submissions[index].message_id.is_some() {
            let twice = self.chance.permille(100);
            self.after(60_000, move |w| {
                if twice || w.script.submissions[index].answer == Accepted::Waits {
                    w.hand_in(index);
                }
            });
        }
    }

    /// What a submission is for the core: the driver asks the ledger for its id.
    pub(super) fn submission(&mut self, index: usize) -> Event {
        let request = self.master.request();
        self.master.asked.insert(request, index);
        let submission = &mut self.script.submissions[index];
        if submission.message_id.is_none() {
            submission.answer = Accepted::Unknown;
        }
        let message_id = submission.message_id.clone().map(|id| (id.clone(), self.disk.message_ids.get(&id).copied()));
        Event::Submit { request, spec: submission.spec.clone(), message_id }
    }

    pub(super) fn answered(&mut self, request: RequestId, answer: Answer) {
        let Some(index) = self.master.asked.remove(&request) else { return };
        match answer {
            Answer::Accepted(build) => {
                if !self.disk.builds.contains_key(&build) {
                    self.violated(format!("build {build} is told accepted and is not in the ledger"));
                }
                let before = self.script.submissions[index].answer;
                let named = self.script.submissions[index].message_id.is_some();
                if let Accepted::Build(other) = before
                    && named
                    && other != build
                {
                    self.violated(format!("submission {index} was accepted as build {other} and as build {build}"));
                }
                self.script.submissions[index].answer = Accepted::Build(build);
                if self.script.accepted.insert(build, index).is_none() {
                    self.summary.builds += 1;
                }
            }
            Answer::Done | Answer::Audit(_) | Answer::Unavailable(_) | Answer::NotFound(_) | Answer::Refused { .. } => {
                self.script.submissions[index].answer = Accepted::Refused;
            }
        }
    }

    fn cancel(&mut self, index: usize) {
        if let Accepted::Build(build) = self.script.submissions[index].answer {
            let request = self.master.request();
            self.master_hears(Input::Event(Event::CancelBuild { request, build }));
        }
    }

    fn operate(&mut self) {
        if self.chance.permille(300) {
            let mode = self.chance.pick(&[AuditMode::Look, AuditMode::Fix]);
            let request = self.master.request();
            self.master_hears(Input::Event(Event::Audit { request, mode }));
        }
        let names: Vec<WorkerName> = self.script.plan.workers.keys().cloned().collect();
        let worker = self.chance.pick(&names);
        let operation = self.chance.pick(&[
            Operation::Pause,
            Operation::Drain,
            Operation::Stop,
            Operation::Resume,
            Operation::Drain,
        ]);
        let request = self.master.request();
        self.master_hears(Input::Event(Event::Operate { request, worker: worker.clone(), operation }));
        // Mostly they change their mind.
        if self.chance.permille(800) {
            let delay = self.delay(1_000, 300_000);
            self.after(delay, move |w| {
                let request = w.master.request();
                w.master_hears(Input::Event(Event::Operate { request, worker, operation: Operation::Resume }));
            });
        }
    }

    /// A new configuration: a worker more, one less, or one that is different.
    fn reload(&mut self) {
        let mut plan = (*self.script.plan).clone();
        self.script.reloads += 1;
        let number = self.script.reloads;
        for (name, worker) in &plan.workers {
            let most = self.script.most.entry(name.clone()).or_default();
            *most = (*most).max(worker.max_builds.unwrap_or(u32::MAX));
        }
        let names: Vec<WorkerName> = plan.workers.keys().cloned().collect();
        let chosen = self.chance.pick(&names);
        match self.chance.range(0, 3) {
            0 => {
                let name = worker_name(&format!("s{}", 10 + number));
                plan.workers.insert(name.clone(), Arc::new(setup::standing(&mut self.chance, name.as_str())));
                self.standing_machine(&name);
            }
            1 if names.len() > 1 => {
                plan.workers.remove(&chosen);
            }
            2 => {
                let template = plan.workers.values().find_map(|w| w.latent.clone());
                if let Some(mut changed) = template {
                    let fresh = setup::template(&mut self.chance, &changed.template);
                    (changed.fingerprint, changed.min_idle) = (fresh.fingerprint, fresh.min_idle);
                    (changed.build_wait_timeout, changed.max_uses) = (fresh.build_wait_timeout, fresh.max_uses);
                    for worker in plan.workers.values_mut() {
                        if worker.latent.as_ref().is_some_and(|l| l.template == changed.template) {
                            let mut new = (**worker).clone();
                            new.latent = Some(changed.clone());
                            *worker = Arc::new(new);
                        }
                    }
                }
            }
            _ => {
                plan.max_hosts = self.chance.pick(&[None, Some(1), Some(2), Some(4)]);
                if let Some(worker) = plan.workers.get_mut(&chosen) {
                    let mut new = (**worker).clone();
                    new.max_builds = self.chance.pick(&[Some(1), Some(2), None]);
                    *worker = Arc::new(new);
                }
            }
        }
        setup::leave_room(&mut plan);
        self.script.plan = Arc::new(plan);
        let plan = self.script.plan.clone();
        self.master_hears(Input::Event(Event::Configure(plan)));
    }

    /// The faults are over: what was broken is mended, and everybody may work.
    pub(super) fn calm_down(&mut self) {
        self.say(|| "quiet begins".to_owned());
        self.quiet = true;
        self.master.crash = None;
        self.broker_up();
        self.start_master();
        let machines: Vec<(usize, u64)> = self.machines.iter().map(|(id, m)| (*id, m.life)).collect();
        for (id, life) in machines {
            self.heal(id);
            self.thaw(id, life);
            let standing = self.machines.get(&id).is_some_and(|m| m.host.is_none());
            if standing {
                self.keep_started(id);
            }
        }
        // And once more when the last host of the bad times has been given up.
        for later in [30_000, 420_000] {
            self.after(later, |w| {
                let names: Vec<WorkerName> = w.script.plan.workers.keys().cloned().collect();
                for worker in names {
                    let request = w.master.request();
                    w.master_hears(Input::Event(Event::Operate { request, worker, operation: Operation::Resume }));
                }
            });
        }
    }

    /// Somebody looks after a standing machine: its agent is started where it has ended.
    fn keep_started(&mut self, id: usize) {
        let Some(machine) = self.machines.get(&id) else { return };
        if self.script.plan.workers.contains_key(&machine.worker) {
            self.start_agent(id);
            self.after(60_000, move |w| w.keep_started(id));
        }
    }
}
