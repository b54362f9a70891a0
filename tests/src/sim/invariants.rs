//! What must hold, and where it is looked at.

use super::script::Accepted;
use super::world::World;
use rouse_master::core::build::{BuildEnd, BuildStatus, Requirement};
use rouse_master::core::event::WorkerState;
use rouse_master::core::plan::WorkerPlan;
use rouse_master::core::record::{Host, HostState, Record};
use rouse_shared::message::Outcome;
use rouse_shared::{AttemptId, BuildId, HostId};
use std::collections::{BTreeMap, BTreeSet};

impl World {
    /// A step is about to run: its build runs nowhere else, has not ended, and there is room for it.
    pub(super) fn check_run(&mut self, id: usize, attempt: AttemptId) {
        let elsewhere = self.machines.iter().find_map(|(other, machine)| {
            let same = machine.runs.keys().find(|run| run.build == attempt.build)?;
            self.runs_there(*other).then_some((*other, *same))
        });
        if let Some((other, same)) = elsewhere {
            self.violated(format!("{attempt} is run on machine {id} while {same} runs on machine {other}"));
        }
        let build = self.disk.builds.get(&attempt.build);
        match build.map(|b| b.status.end.clone()) {
            None => self.violated(format!("{attempt} is run and the ledger has no such build")),
            Some(Some(end)) => self.violated(format!("{attempt} is run after its build has ended: {end:?}")),
            Some(None) => {}
        }
        let Some(machine) = self.machines.get(&id) else { return };
        let most = self.script.plan.workers.get(&machine.worker).and_then(|w| w.max_builds);
        let most = most.map(|most| most.max(self.script.most_builds(&machine.worker)) as usize);
        if most.is_some_and(|most| machine.runs.len() >= most) {
            let running: Vec<_> = machine.runs.keys().map(ToString::to_string).collect();
            self.violated(format!("{attempt} is run on machine {id} beside {}: too many", running.join(", ")));
        }
    }

    /// A row is about to be committed.
    pub(super) fn check_record(&mut self, record: &Record) {
        match record {
            Record::NewBuild { id, message_id, .. } => {
                let known = message_id.as_ref().and_then(|m| self.disk.message_ids.get(m));
                if self.disk.builds.contains_key(id) || known.is_some() {
                    self.violated(format!("build {id} is accepted twice"));
                }
            }
            Record::Build(id, status) => self.check_status(*id, status),
            Record::Host(_)
            | Record::Session(_)
            | Record::SessionOver(_)
            | Record::Image(..)
            | Record::LeasesUntil(_)
            | Record::Spent(_)
            | Record::News(_)
            | Record::NewsOver(_)
            | Record::Mail(_)
            | Record::MailOver(_)
            | Record::MailPause(..)
            | Record::OrphanTold(..)
            | Record::OrphanOver(..) => {}
            Record::Worker(name, record) => self.check_missing(name, record),
        }
    }

    fn check_status(&mut self, id: BuildId, status: &BuildStatus) {
        let Some(before) = self.disk.builds.get(&id).map(|b| b.status.clone()) else {
            return self.violated(format!("build {id} has a status and was never accepted"));
        };
        if before.end.is_some() && before.end != status.end {
            self.violated(format!("build {id} has ended twice: {:?} and {:?}", before.end, status.end));
        }
        let over = |a: &&rouse_master::core::build::Attempt| a.ended.is_some();
        for attempt in status.attempts.iter().filter(over).skip(before.attempts.iter().filter(over).count()) {
            let runs = AttemptId { build: id, number: attempt.number };
            let at = self.machines.iter().find(|(m, machine)| machine.runs.contains_key(&runs) && self.runs_there(**m));
            if let Some((machine, _)) = at {
                let how = &attempt.outcome;
                self.violated(format!("{runs} is over for the master ({how:?}) while it runs on machine {machine}"));
            }
        }
        if status.attempts.iter().filter(|a| a.is_live()).count() > 1 {
            self.violated(format!("build {id} has two attempts that live"));
        }
        if before.end.is_none()
            && let Some(end) = &status.end
        {
            self.check_end(id, status, end);
        }
    }

    fn check_end(&mut self, id: BuildId, status: &BuildStatus, end: &BuildEnd) {
        self.summary.ends[match end {
            BuildEnd::Success => 0,
            BuildEnd::Failure(_) => 1,
            BuildEnd::Cancelled => 2,
            BuildEnd::Lost(_) => 3,
        }] += 1;
        if let BuildEnd::Lost(why) = end
            && self.faults.agents_behave()
        {
            self.violated(format!("build {id} is lost although every agent behaves: {why}"));
        }
        if *end != BuildEnd::Success {
            return;
        }
        let Some(attempt) = status.attempts.last().filter(|a| a.outcome == Some(Outcome::Success)) else {
            return self.violated(format!("build {id} has ended in success without an attempt that has"));
        };
        for (step, report) in (0..).zip(&attempt.steps) {
            let key = (AttemptId { build: id, number: attempt.number }, step);
            let there = self.disk.logs.get(&key).copied().unwrap_or(0);
            let told = attempt.cut_logs.iter().any(|(cut, at)| *cut == step && *at <= there);
            if there < report.log_length && !told {
                let length = report.log_length;
                self.violated(format!("step {step} of {} has {there} of {length} bytes and it is not told", key.0));
                return;
            }
        }
    }

    /// After each commit: what was accepted is there, and there are no more hosts than there may be, but where a reload
    /// has lowered their number.
    pub(super) fn check_ledger(&mut self, hosts_before: usize) {
        let (hosts, most) = (self.disk.hosts.len(), self.script.plan.max_hosts);
        if most.is_some_and(|most| hosts > hosts_before && hosts > most as usize) {
            self.violated(format!("the ledger has {hosts} hosts and max_hosts is {most:?}"));
        }
        let workers: BTreeSet<_> = self.disk.hosts.values().map(|h| &h.worker).collect();
        if workers.len() != hosts {
            self.violated(format!("the ledger has {hosts} hosts of {} workers", workers.len()));
        }
        let missing = self.script.accepted.iter().find(|(id, _)| !self.disk.builds.contains_key(id));
        if let Some((id, _)) = missing {
            self.violated(format!("build {id} was accepted and is not in the ledger"));
        }
    }

    /// A machine was made for a host: it is the only one.
    pub(super) fn check_made(&mut self, host: &HostId) {
        let on = self.machines_on().iter().filter(|(of, _)| of == host).count();
        if on > 1 {
            self.violated(format!("host {host} has {on} machines"));
        }
        if !self.disk.known_hosts.contains(host) {
            self.violated(format!("a machine is made for host {host}, which the ledger does not know"));
        }
    }

    /// A host is stopped: nothing runs on it, unless its agent was not heard of until its lease had ended.
    pub(super) fn check_stop(&mut self, host: &Host) {
        let session = self.disk.sessions.get(&host.worker).filter(|s| s.host.as_ref() == Some(&host.id));
        if session.is_none() {
            return;
        }
        let on = self.machines_on();
        let busy = on.iter().filter(|(of, _)| *of == host.id).find_map(|(_, id)| {
            let run = self.machines.get(id)?.runs.keys().next()?;
            Some((*id, *run))
        });
        if let Some((id, run)) = busy {
            let why = host.why.clone().unwrap_or_default();
            self.violated(format!("host {} is stopped ({why}) while {run} runs there, on machine {id}", host.id));
        }
    }

    fn can_run(&self, requirement: &Requirement) -> bool {
        let fits = |plan: &WorkerPlan| match requirement {
            Requirement::Worker(name) => *name == plan.name,
            Requirement::Where(wanted) => wanted.iter().all(|(k, v)| plan.properties.get(k) == Some(v)),
        };
        self.script.plan.workers.values().any(|plan| fits(plan))
    }

    /// How many accepted builds have not ended and can.
    pub(super) fn builds_to_end(&self) -> usize {
        let waits = |b: &&rouse_master::core::build::Build| b.status.end.is_none() && self.can_run(&b.spec.requirement);
        self.disk.builds.values().filter(waits).count()
    }

    /// After quiet.
    pub(super) fn check_the_end(&mut self) {
        let waiting = self.disk.builds.values().find(|b| b.status.end.is_none() && self.can_run(&b.spec.requirement));
        if let Some(build) = waiting {
            let why = self.master.core.as_ref().and_then(|c| c.why(self.time(), build.id));
            let text = format!("build {} has not ended after quiet: {why:?}", build.id);
            return self.violated(text);
        }
        let unanswered = self.script.submissions.iter().position(|s| s.answer == Accepted::Waits);
        if let Some(index) = unanswered {
            return self.violated(format!("submission {index} was never answered"));
        }
        self.check_hosts();
        self.check_workers();
        self.check_mail();
    }

    fn check_hosts(&mut self) {
        let on = self.machines_on();
        for (host, machine) in &on {
            if !self.disk.hosts.contains_key(host) && self.script.plan.stop_orphans {
                return self.violated(format!("machine {machine} of host {host} runs and the ledger does not know it"));
            }
        }
        let unused = |host: &&Host| host.state != HostState::Awake || !on.iter().any(|(of, _)| *of == host.id);
        if let Some(host) = self.disk.hosts.values().find(unused) {
            let text = format!("host {} of {} is {:?} after quiet", host.id, host.worker, host.state);
            return self.violated(text);
        }
        let mut templates: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        let plan = self.script.plan.clone();
        for worker in plan.workers.values() {
            let Some(latent) = &worker.latent else { continue };
            let has = self.disk.hosts.values().any(|h| h.worker == worker.name);
            let (hosts, workers) = templates.entry(latent.template.clone()).or_default();
            *hosts += usize::from(has);
            *workers += 1;
        }
        let room = plan.max_hosts.is_none_or(|most| self.disk.hosts.len() + self.orphans() < most as usize);
        for worker in plan.workers.values() {
            let Some(latent) = &worker.latent else { continue };
            let (hosts, workers) = templates[&latent.template];
            let least = workers.min(latent.min_idle as usize);
            if hosts < least && room {
                let text =
                    format!("template {} has {hosts} hosts and min_idle is {}", latent.template, latent.min_idle);
                return self.violated(text);
            }
            if latent.build_wait_timeout.is_some() && hosts > least {
                let text = format!("template {} has {hosts} hosts and nobody needs more than {least}", latent.template);
                return self.violated(text);
            }
        }
        let stray = self.disk.hosts.values().find(|h| plan.workers.get(&h.worker).is_none_or(|w| w.latent.is_none()));
        if let Some(host) = stray {
            let text = format!("host {} of {} is left, and its worker is not latent", host.id, host.worker);
            self.violated(text);
        }
    }

    fn orphans(&self) -> usize {
        self.machines_on().iter().filter(|(host, _)| !self.disk.hosts.contains_key(host)).count()
    }

    /// Every standing agent is attached and idle, and so is every host that is left.
    fn check_workers(&mut self) {
        let Some(core) = &self.master.core else { return self.violated("there is no master after quiet") };
        let views = core.worker_views(self.time());
        let off = views.iter().find(|view| {
            let standing = view.provider.is_none() && self.script.plan.workers.contains_key(&view.name);
            (standing || view.host.is_some()) && view.state != WorkerState::Idle
        });
        if let Some(view) = off {
            let text = format!("worker {} is {:?} after quiet", view.name, view.state);
            return self.violated(text);
        }
        let busy = self.machines.iter().find(|(_, m)| !m.runs.is_empty()).map(|(id, _)| *id);
        if let Some(id) = busy {
            return self.violated(format!("machine {id} still runs something after quiet"));
        }
        let kept = self.machines.iter().find_map(|(id, m)| Some((*id, m.agent.as_ref()?.attempts().next()?)));
        if let Some((id, attempt)) = kept {
            self.violated(format!("machine {id} has not heard that {attempt} is settled"));
        }
    }
}
