//! What people do: submissions, cancels, commands of operators.

use super::master::{Asked, Delivery, Input};
use super::retention;
use super::world::World;
use rouse_master::core::audit::AuditMode;
use rouse_master::core::build::{BuildSpec, Requirement};
use rouse_master::core::event::{Command, Event, Operation, Reply, RequestId};
use rouse_master::core::journal::{Caller, Principal, PrincipalKind};
use rouse_master::core::plan::Plan;
use rouse_shared::message::Step;
use rouse_shared::{BuildId, HostId, WorkerName};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Break;

/// What has come of a submission.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Accepted {
    Waits,
    Build(BuildId),
    Refused,
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
    /// Builds with a reply that they are accepted.
    pub accepted: BTreeMap<BuildId, usize>,
    /// Builds with a reply that they are cancelled.
    pub cancelled: BTreeSet<BuildId>,
    /// Hosts that an operator wants terminated, whatever runs there.
    pub terminated: BTreeSet<HostId>,
    /// Hosts that an operator has given up: what is seen of them later is an orphan.
    pub forgotten: BTreeSet<HostId>,
    /// The most builds at once that a worker was ever allowed: a reload stops nothing that runs.
    pub most: BTreeMap<WorkerName, u32>,
    /// Workers that a reload has taken out.
    pub removed: Vec<Arc<rouse_master::core::plan::WorkerPlan>>,
    /// Workers that a reload has taken out at some time.
    pub ever_removed: BTreeSet<WorkerName>,
    /// Reloads so far, for new names.
    pub reloads: u64,
}

impl Script {
    pub(super) fn new(plan: Plan) -> Self {
        Self {
            plan: Arc::new(plan),
            faults_end: 0,
            submissions: Vec::new(),
            accepted: BTreeMap::new(),
            cancelled: BTreeSet::new(),
            terminated: BTreeSet::new(),
            forgotten: BTreeSet::new(),
            most: BTreeMap::new(),
            removed: Vec::new(),
            ever_removed: BTreeSet::new(),
            reloads: 0,
        }
    }

    pub(super) fn most_builds(&self, worker: &WorkerName) -> u32 {
        self.most.get(worker).copied().unwrap_or(0)
    }
}

impl World {
    pub(super) fn submit(&mut self) {
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
        let index = self.script.submissions.len();
        let spec = BuildSpec {
            // By its name the ledger's build is found, whatever became of the answer.
            name: format!("b{index}"),
            requirement,
            priority: self.chance.pick(&[0, 0, 0, 1, -1]),
            retries: self.chance.pick(&[0, 1, 2, 5]),
            timeout_ms: self.chance.pick(&[None, None, Some(30_000)]),
            queue_timeout_ms: self.chance.pick(&[None, None, None, Some(120_000), Some(900_000)]),
            env: BTreeMap::new(),
            limits: Default::default(),
            keep: retention::keeps(index),
            steps: (0..steps).map(|i| self.step(i)).collect(),
        };
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
            limits: Default::default(),
        }
    }

    /// Puts a submission into the submission queue; again if it has an id and no reply comes.
    fn hand_in(&mut self, index: usize) {
        let delivery = Delivery::Submit(index);
        if self.master.core.is_some() && self.master.linked && self.bus.up {
            self.master_receives(Input::Delivery(delivery));
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
        self.master.asked.insert(request, Asked::Submission(index));
        let submission = &self.script.submissions[index];
        let mut spec = submission.spec.clone();
        let mut message_id =
            submission.message_id.clone().map(|id| (id.clone(), self.disk.message_ids.get(&id).copied()));
        match self.broken {
            Some(Break::NoRetries) => Arc::make_mut(&mut spec).retries = 0,
            Some(Break::ForgetMessageIds) => message_id = None,
            Some(_) | None => {}
        }
        Event::Command { request, by: person(), command: Command::Submit { spec, message_id } }
    }

    /// What the submitter has asked for.
    pub(super) fn asked_for(&self, name: &str) -> Option<&BuildSpec> {
        let index: usize = name.strip_prefix('b')?.parse().ok()?;
        self.script.submissions.get(index).map(|submission| &*submission.spec)
    }

    pub(super) fn answered(&mut self, request: RequestId, answer: Reply) {
        match self.master.asked.remove(&request) {
            Some(Asked::Submission(index)) => self.submission_answered(index, answer),
            Some(Asked::Cancel(build)) if answer == Reply::Done => {
                self.script.cancelled.insert(build);
            }
            Some(Asked::Cancel(_)) | None => {}
        }
    }

    fn submission_answered(&mut self, index: usize, answer: Reply) {
        let Reply::Accepted(build) = answer else {
            self.script.submissions[index].answer = Accepted::Refused;
            return;
        };
        if !self.disk.builds.contains_key(&build) && !self.disk.deleted.contains_key(&build) {
            self.violated(format!("build {build} was accepted and is not in the ledger"));
        }
        let before = self.script.submissions[index].answer;
        let named = self.script.submissions[index].message_id.is_some();
        if let Accepted::Build(other) = before
            && named
            && other != build
            // Its id goes with the build.
            && !self.disk.deleted.contains_key(&other)
        {
            self.violated(format!("submission {index} was accepted as build {other} and as build {build}"));
        }
        self.script.submissions[index].answer = Accepted::Build(build);
        if self.script.accepted.insert(build, index).is_none() {
            self.summary.builds += 1;
        }
    }

    fn cancel(&mut self, index: usize) {
        if let Accepted::Build(build) = self.script.submissions[index].answer {
            let request = self.master.request();
            self.master.asked.insert(request, Asked::Cancel(build));
            self.master_receives(Input::Event(Event::Command {
                request,
                by: person(),
                command: Command::CancelBuild(build),
            }));
        }
    }

    pub(super) fn operate(&mut self) {
        if self.chance.permille(300) {
            let mode = self.chance.pick(&[AuditMode::Look, AuditMode::Fix]);
            let request = self.master.request();
            self.master_receives(Input::Event(Event::Command { request, by: person(), command: Command::Audit(mode) }));
        }
        let hosts: Vec<HostId> = self.disk.hosts.keys().cloned().collect();
        if !hosts.is_empty() && self.chance.permille(200) {
            let (request, host) = (self.master.request(), self.chance.pick(&hosts));
            self.script.terminated.insert(host.clone());
            self.master_receives(Input::Event(Event::Command {
                request,
                by: person(),
                command: Command::TerminateHost(host),
            }));
        }
        // Without a lease it is the operator's word alone that nothing runs there any more.
        let leased = |id: &&HostId| {
            let worker = self.disk.hosts.get(*id).and_then(|host| self.script.plan.workers.get(&host.worker));
            worker.is_some_and(|plan| plan.lease.is_some())
        };
        let hosts: Vec<HostId> = self.disk.hosts.keys().filter(leased).cloned().collect();
        if !hosts.is_empty() && self.chance.permille(150) {
            let (request, host) = (self.master.request(), self.chance.pick(&hosts));
            self.script.terminated.insert(host.clone());
            self.script.forgotten.insert(host.clone());
            self.master_receives(Input::Event(Event::Command {
                request,
                by: person(),
                command: Command::ForgetHost(host),
            }));
        }
        let names: Vec<WorkerName> = self.script.plan.workers.keys().cloned().collect();
        let worker = self.chance.pick(&names);
        let operation = self.chance.pick(&[
            Operation::Pause,
            Operation::Drain,
            Operation::Drain,
            Operation::Resume,
            Operation::Drain,
        ]);
        let request = self.master.request();
        self.master_receives(Input::Event(Event::Command {
            request,
            by: person(),
            command: Command::Operate { worker: worker.clone(), operation },
        }));
        // Mostly they change their mind.
        if self.chance.permille(800) {
            let delay = self.delay(1_000, 300_000);
            self.after(delay, move |w| {
                let request = w.master.request();
                w.master_receives(Input::Event(Event::Command {
                    request,
                    by: person(),
                    command: Command::Operate { worker, operation: Operation::Resume },
                }));
            });
        }
    }
}

/// Whoever requests something.
pub(super) fn person() -> Caller {
    let principal = Principal { name: "ann".to_owned(), kind: PrincipalKind::Local };
    Caller { principal, from: "socket".to_owned(), note: None }
}
