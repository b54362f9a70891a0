//! Invariants after the quiet time, when everything that was broken has been repaired for a while.

use super::script::Accepted;
use super::world::World;
use rouse_master::core::build::{Build, Requirement};
use rouse_master::core::event::WorkerState;
use rouse_master::core::plan::WorkerPlan;
use rouse_master::core::record::{Host, HostState};
use rouse_shared::HostId;
use std::collections::{BTreeMap, BTreeSet};

impl World {
    /// Whether a worker must be free when all is over. One without a lease is held forever by an agent that has ended
    /// before its welcome reached it, as nothing proves that it has: then it need not.
    fn is_free(&self, plan: &WorkerPlan) -> bool {
        let session = self.disk.sessions.get(&plan.name);
        plan.lease.is_some() || session.is_none_or(|session| self.welcomed.contains(&session.nonce))
    }

    /// Whether a worker that must be able to run it is there.
    fn can_run(&self, requirement: &Requirement) -> bool {
        let fits = |plan: &WorkerPlan| match requirement {
            Requirement::Worker(name) => *name == plan.name,
            Requirement::Where(wanted) => wanted.iter().all(|(k, v)| plan.properties.get(k) == Some(v)),
        };
        self.script.plan.workers.values().any(|plan| fits(plan) && self.is_free(plan))
    }

    fn is_to_end(&self, build: &Build) -> bool {
        let given = build.status.live_attempt().and_then(|attempt| self.script.plan.workers.get(&attempt.worker));
        let held = given.is_some_and(|plan| !self.is_free(plan));
        build.status.end.is_none() && !held && self.can_run(&build.spec.requirement)
    }

    /// How many accepted builds have not ended and can.
    pub(super) fn builds_to_end(&self) -> usize {
        self.disk.builds.values().filter(|build| self.is_to_end(build)).count()
    }

    /// After quiet.
    pub(super) fn check_the_end(&mut self) {
        let waiting = self.disk.builds.values().find(|build| self.is_to_end(build));
        if let Some(build) = waiting {
            let why = self.master.core.as_ref().and_then(|c| c.why(self.time(), build.id));
            let text = format!("build {} has not ended after quiet: {why:?}", build.id);
            return self.violated(text);
        }
        let unanswered = self.script.submissions.iter().position(|s| s.answer == Accepted::Waits);
        if let Some(index) = unanswered {
            return self.violated(format!("submission {index} was never answered"));
        }
        let there = self.disk.builds.values().map(|b| b.spec.name.as_str());
        let builds: BTreeSet<&str> = there.chain(self.disk.deleted.values().map(String::as_str)).collect();
        let kept = |(index, of): &(usize, &super::script::Submission)| {
            of.answer == Accepted::Refused || builds.contains(format!("b{index}").as_str())
        };
        if let Some((index, _)) = self.script.submissions.iter().enumerate().find(|s| !kept(s)) {
            return self.violated(format!("submission {index} was acknowledged and there is no build of it"));
        }
        self.check_all();
        self.check_hosts();
        self.check_workers();
        self.check_mail();
        self.check_deleted();
    }

    fn check_hosts(&mut self) {
        let on = self.machines_on();
        if let Some((host, machine)) = self.orphans().first().filter(|_| self.script.plan.stop_orphans) {
            return self.violated(format!("machine {machine} of host {host} runs and is not in the ledger"));
        }
        let plan = self.script.plan.clone();
        let sleeps = |h: &Host| plan.workers.get(&h.worker).and_then(|w| w.latent.as_ref()?.suspend).is_some();
        let unused = |host: &&Host| match host.state {
            HostState::Ready => !on.iter().any(|(of, _)| *of == host.id),
            HostState::Suspended => !sleeps(host) || !self.sleeps(&host.id),
            // One that has just become too old.
            HostState::Terminating => host.suspended.is_none(),
            HostState::Ordered
            | HostState::Booting
            | HostState::Draining
            | HostState::Suspending
            | HostState::Resuming
            | HostState::Terminated => true,
        };
        if let Some(host) = self.disk.hosts.values().find(unused) {
            let text = format!("host {} of {} is {:?} after quiet", host.id, host.worker, host.state);
            return self.violated(text);
        }
        let mut templates: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        for worker in plan.workers.values() {
            let Some(latent) = &worker.latent else { continue };
            let has = self.disk.hosts.values().any(|h| h.worker == worker.name && h.state == HostState::Ready);
            let (hosts, workers) = templates.entry(latent.template.clone()).or_default();
            *hosts += usize::from(has);
            *workers += 1;
        }
        let room = plan.max_hosts.is_none_or(|most| self.hosts_alive() < most as usize);
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
        let leftover =
            self.disk.hosts.values().find(|h| plan.workers.get(&h.worker).is_none_or(|w| w.latent.is_none()));
        if let Some(host) = leftover {
            let text = format!("host {} of {} is left, and its worker is not latent", host.id, host.worker);
            self.violated(text);
        }
    }

    /// Every standing agent is attached and idle, and so is every host that is left.
    fn check_workers(&mut self) {
        let Some(core) = &self.master.core else { return self.violated("there is no master after quiet") };
        let views = core.worker_views(self.time());
        let off = views.iter().find(|view| {
            let plan = self.script.plan.workers.get(&view.name);
            let standing = view.provider.is_none() && plan.is_some_and(|plan| self.is_free(plan));
            let asleep = |host: &HostId| self.disk.hosts.get(host).is_some_and(|h| h.suspended.is_some());
            let sleeps = view.host.as_ref().is_some_and(asleep);
            (standing || view.host.is_some()) && !sleeps && view.state != WorkerState::Idle
        });
        if let Some(view) = off {
            let text = format!("worker {} is {:?} after quiet", view.name, view.state);
            return self.violated(text);
        }
        let busy = self.machines.iter().find(|(_, m)| !m.runs.is_empty()).map(|(id, _)| *id);
        if let Some(id) = busy {
            return self.violated(format!("machine {id} still runs something after quiet"));
        }
        // An agent that is not let in gets no messages.
        let attached = self.machines.iter().filter(|(_, m)| m.attached);
        let kept = attached.filter_map(|(id, m)| Some((*id, m.agent.as_ref()?.attempts().next()?))).next();
        if let Some((id, attempt)) = kept {
            self.violated(format!("machine {id} has not received that {attempt} is settled"));
        }
    }
}
