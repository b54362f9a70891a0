//! Invariants that are checked whenever something happens that could break them.

use super::machine::{Machine, Pace};
use super::setup::password;
use super::world::World;
use rouse_master::core::build::{Attempt, BuildEnd, BuildStatus};
use rouse_master::core::record::{Host, Record};
use rouse_shared::message::{Outcome, StepState};
use rouse_shared::{AttemptId, BuildId, HostId};
use std::collections::BTreeSet;

/// Times that a build may be declined before it is lost.
const DECLINED: usize = 100;

impl World {
    /// A step is about to run, for the first time: its build runs nowhere else, has not ended, and there is room for it.
    pub(super) fn check_run(&mut self, id: usize, attempt: AttemptId, step: u32) {
        if self.ran.contains_key(&(attempt, step)) {
            self.violated(format!("step {step} of {attempt} is run again, on machine {id}"));
        }
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
                if self.disk.builds.contains_key(id) || self.disk.deleted.contains_key(id) || known.is_some() {
                    self.violated(format!("build {id} is accepted twice"));
                }
            }
            Record::Build(id, status) => self.check_status(*id, status),
            Record::LogsExpired(..) | Record::BuildDeleted(_) => self.check_retention(record),
            Record::Host(host) => {
                // It has got something to do, perhaps for less time than there is between two looks.
                if self.disk.hosts.get(&host.id).is_some_and(|before| before.uses != host.uses) {
                    self.idle.remove(&host.id);
                }
                self.check_asleep(host);
                self.check_resumed(host);
            }
            Record::Session(session) if session.impostor => self.summary.impostors += 1,
            Record::Session(_)
            | Record::SessionOver(_)
            | Record::LogsMeasured(..)
            | Record::LogsDeleted(_)
            | Record::LogsUploaded(..)
            | Record::Image(..)
            | Record::Place(..)
            | Record::Spent(_)
            | Record::LeasesExtended(_)
            | Record::AlarmTold(_)
            | Record::News(_)
            | Record::NewsOver(_)
            | Record::Mail(_)
            | Record::MailOver(_)
            | Record::MailPause(..)
            | Record::OrphanReported(..)
            | Record::OrphanOver(..) => {}
            Record::Entry(entry) if entry.id <= self.disk.last_entry => {
                self.violated(format!("the journal has entry {} already", entry.id));
            }
            Record::Entry(_) => {}
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
        if status.attempts.len() > before.attempts.len()
            && let Some(worker) = status.attempts.last().map(|a| a.worker.clone())
        {
            self.check_assigned(&worker);
        }
        if status.attempts.len() > before.attempts.len() && self.script.cancelled.contains(&id) {
            self.violated(format!("build {id} is given out after its user got the reply that it is cancelled"));
        }
        let over = |a: &&Attempt| a.ended.is_some();
        for attempt in status.attempts.iter().filter(over).skip(before.attempts.iter().filter(over).count()) {
            let runs = AttemptId { build: id, number: attempt.number };
            let at = self.machines.iter().find(|(m, machine)| machine.runs.contains_key(&runs) && self.runs_there(**m));
            // An operator has said that the machine is gone, and its clock had only stood still.
            let given_up = |host: &HostId| self.script.forgotten.contains(host);
            let mistaken = |machine: &Machine| machine.lag > 0 && machine.host.as_ref().is_some_and(given_up);
            if let Some((machine, _)) = at.filter(|(_, machine)| !mistaken(machine)) {
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
        match end {
            BuildEnd::Success => self.check_success(id, status),
            BuildEnd::Failure(_) => {
                if !status.attempts.last().is_some_and(|a| matches!(a.outcome, Some(Outcome::Failure(_)))) {
                    self.violated(format!("build {id} has failed without an attempt that has"));
                }
            }
            BuildEnd::Cancelled if !status.cancelled => {
                self.violated(format!("build {id} is cancelled and nobody has asked for it"));
            }
            BuildEnd::Cancelled => {}
            BuildEnd::Lost(why) => self.check_lost(id, status, why),
        }
        self.check_logs(id, status);
    }

    /// Every step of the last attempt has really been run, and has exited with 0.
    fn check_success(&mut self, id: BuildId, status: &BuildStatus) {
        let Some(attempt) = status.attempts.last().filter(|a| a.outcome == Some(Outcome::Success)) else {
            return self.violated(format!("build {id} has ended in success without an attempt that has"));
        };
        let attempt = AttemptId { build: id, number: attempt.number };
        let Some(spec) = self.disk.builds.get(&id).map(|b| b.spec.clone()) else { return };
        let good = |step: &u32| self.ran.get(&(attempt, *step)) == Some(&Some(StepState::Exited(0)));
        if let Some(step) = (0..spec.steps.len() as u32).find(|step| !good(step)) {
            let how = self.ran.get(&(attempt, step)).cloned();
            self.violated(format!("{attempt} has succeeded and its step {step} has not: {how:?}"));
        }
    }

    /// A build is lost after what was asked for, and never if every agent behaves.
    fn check_lost(&mut self, id: BuildId, status: &BuildStatus, why: &str) {
        let Some(build) = self.disk.builds.get(&id) else { return };
        let spec = self.asked_for(&build.spec.name);
        let queued = status.requeued.unwrap_or(status.created);
        let waited = status.finished.map_or(0, |finished| finished.since(queued).as_millis());
        if spec.and_then(|spec| spec.queue_timeout_ms).is_some_and(|most| waited >= u128::from(most))
            && status.attempts.iter().all(|attempt| attempt.ended.is_some())
        {
            // Nobody could run it for as long as it was to wait.
            return;
        }
        let retries = spec.map_or(0, |spec| spec.retries as usize);
        if self.faults.agents_behave() && !self.may_have_lapsed() {
            return self.violated(format!("build {id} is lost although every agent behaves: {why}"));
        }
        let lost = |a: &&Attempt| matches!(a.outcome, Some(Outcome::Lost(_)));
        // Those whose host an operator has terminated use up no retry.
        let excused = status.attempts.iter().filter(lost).filter(|a| a.excused).count();
        let lost = status.attempts.iter().filter(lost).count() - excused;
        let declined = status.attempts.len() - lost - excused;
        if lost <= retries && declined <= retries + DECLINED {
            self.violated(format!("build {id} is lost after {lost} attempts, and its retries are {retries}: {why}"));
        }
    }

    /// The logs of an attempt with an outcome are complete, or reported as incomplete.
    fn check_logs(&mut self, id: BuildId, status: &BuildStatus) {
        let Some(attempt) = status.attempts.last() else { return };
        if matches!(attempt.outcome, Some(Outcome::Lost(_) | Outcome::Declined(_)) | None) {
            return;
        }
        // An operator who terminates a host ends its agent with it.
        let ended_by_hand = attempt.host.as_ref().is_some_and(|host| self.script.terminated.contains(host));
        for (step, report) in (0..).zip(&attempt.steps) {
            let key = (AttemptId { build: id, number: attempt.number }, step);
            let there = self.disk.logs.get(&key).copied().unwrap_or(0);
            let length = report.log_length;
            if there >= length {
                continue;
            }
            let told = attempt.cut_logs.iter().any(|(cut, at)| *cut == step && *at <= there);
            if !told {
                self.violated(format!("step {step} of {} has {there} of {length} bytes and it is not told", key.0));
            } else if self.faults.agents_behave() && !ended_by_hand {
                self.violated(format!("the log of step {step} of {} is cut although every agent behaves", key.0));
            } else if let Some(id) = self.who_has(key.0) {
                self.violated(format!("the log of step {step} of {} is cut although machine {id} is there", key.0));
            }
        }
    }

    /// The machine that the attempt has run on, if the agent of that time has been attached for long enough to send what
    /// is asked for.
    fn who_has(&self, attempt: AttemptId) -> Option<usize> {
        let (id, life) = self.ran_on.get(&attempt)?;
        let machine = self.machines.get(id).filter(|m| m.on && m.life == *life && m.pace == Pace::Going)?;
        let there = machine.attached && !machine.partitioned && self.now - machine.attached_since >= 60_000;
        there.then_some(*id)
    }

    /// After each commit: there are no more hosts than there may be, unless a reload has lowered their number.
    pub(super) fn check_ledger(&mut self, hosts_before: usize) {
        let hosts = self.hosts_alive();
        if hosts <= hosts_before {
            return;
        }
        let most = self.master.plan.max_hosts;
        if most.is_some_and(|most| hosts > most as usize) {
            self.violated(format!("there are {hosts} hosts, and max_hosts is {most:?}"));
        }
        let workers: BTreeSet<_> = self.disk.hosts.values().map(|h| &h.worker).collect();
        let hosts = self.disk.hosts.len();
        if workers.len() != hosts {
            self.violated(format!("the ledger has {hosts} hosts of {} workers", workers.len()));
        }
    }

    /// Hosts of the ledger that count for `max_hosts`: not those that sleep, or that somebody else has started out of it.
    pub(super) fn hosts_alive(&self) -> usize {
        let rests = |h: &&Host| h.suspended.is_some() || self.disk.stirred.contains(&h.id);
        self.disk.hosts.values().filter(|h| !rests(h)).count()
    }

    /// An agent has been welcomed: it is the only one of its name, and nobody that has stolen a token.
    pub(super) fn check_attached(&mut self, id: usize) {
        let Some(machine) = self.machines.get(&id) else { return };
        let worker = machine.worker.clone();
        // If a reload has made its worker a standing one, whoever has the password may come.
        let standing = self.script.plan.workers.get(&worker).is_some_and(|w| w.latent.is_none());
        let stolen = machine.stranger && machine.latent && !machine.copy;
        if stolen && !(standing && machine.password == password(&worker)) {
            self.violated(format!("machine {id} is let in as {worker} with a stolen credential"));
        }
        // A session in which nothing runs is over at once if a reload takes its worker out; its agent may not know yet.
        let forgotten = self.script.ever_removed.contains(&worker);
        let attached = |(other, m): &(&usize, &super::machine::Machine)| {
            let unaware = forgotten && m.runs.is_empty();
            **other != id && m.worker == worker && m.on && m.attached && m.pace == Pace::Going && !unaware
        };
        if let Some((other, _)) = self.machines.iter().find(attached) {
            let other = *other;
            self.violated(format!("machines {other} and {id} are both attached as {worker}"));
        }
    }

    /// A machine was made for a host: it is the only one.
    pub(super) fn check_made(&mut self, host: &HostId) {
        let on = self.machines_on().iter().filter(|(of, _)| of == host).count();
        if on > 1 {
            self.violated(format!("host {host} has {on} machines"));
        }
        if !self.disk.known_hosts.contains(host) {
            self.violated(format!("a machine is created for host {host}, which is not in the ledger"));
        }
    }

    /// A host is stopped: nothing runs on it, unless its agent was not heard of until its lease had ended, or an operator
    /// wants it terminated.
    pub(super) fn check_stop(&mut self, host: &Host) {
        let session = self.disk.sessions.get(&host.worker).filter(|s| s.host.as_ref() == Some(&host.id));
        if session.is_none() || self.script.terminated.contains(&host.id) {
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
}
