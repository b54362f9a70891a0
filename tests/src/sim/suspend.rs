//! Suspended machines: the cloud's part of it, and the invariants about them.

use super::Break;
use super::cloud::{CALL_LIMIT, Power};
use super::machine::Pace;
use super::world::World;
use rouse_master::core::event::{Event, StartError, Suspension};
use rouse_master::core::record::{Host, HostState};
use rouse_shared::HostId;

impl World {
    pub(super) fn sleep_host(&mut self, host: &Host) {
        self.check_reported_state(host, HostState::Suspending);
        let (epoch, id, of) = (self.master.epoch, host.id.clone(), host.clone());
        let (there, back) = self.call_times();
        let fails = self.mishap(self.faults.call_fails);
        // What cannot be suspended has to be ended.
        let unable = self.mishap(self.faults.call_fails / 8);
        self.after(there, move |w| {
            let result = match (fails || w.refuses(&of), unable) {
                (true, _) => Err("it is one of those days".to_owned()),
                (false, true) => Ok(Suspension::Unable("it has no disk of its own".to_owned())),
                (false, false) => Ok(w.put_to_sleep(&id)),
            };
            let result = match (w.broken, result) {
                (Some(Break::AcceptedIsSuspended), Ok(Suspension::Requested)) => Ok(Suspension::Suspended),
                (_, result) => result,
            };
            let (delay, result) = match back {
                Some(back) => (back, result),
                None => (CALL_LIMIT - there, Err("no answer within 60 s".to_owned())),
            };
            w.say(|| format!("cloud: sleep {id} -> {result:?}"));
            w.master_event_of(epoch, delay, Event::SuspendEnded { host: id, result });
        });
    }

    fn put_to_sleep(&mut self, host: &HostId) -> Suspension {
        let mut dozing = Vec::new();
        let mut powers = Vec::new();
        for vm in self.cloud.vms.get_mut(host).into_iter().flatten() {
            if vm.power == Power::On {
                vm.power = Power::Dozing;
                dozing.push(vm.machine);
            }
            powers.push(vm.power);
        }
        let awake = self.disk.hosts.get(host).map(|h| h.state).filter(|state| {
            matches!(state, HostState::Resuming | HostState::Booting | HostState::Ready | HostState::Draining)
        });
        if let Some(state) = awake.filter(|_| !dozing.is_empty()) {
            self.violated(format!("host {host} is suspended while it is {state:?}"));
        }
        for machine in dozing {
            let delay = self.delay(100, 20_000);
            let host = host.clone();
            self.after(delay, move |w| w.vm_asleep(&host, machine));
        }
        if powers.iter().any(|p| matches!(p, Power::On | Power::Dozing)) {
            Suspension::Requested
        } else if powers.contains(&Power::Asleep) {
            Suspension::Suspended
        } else {
            Suspension::Unable("there is no such machine".to_owned())
        }
    }

    fn vm_asleep(&mut self, host: &HostId, machine: usize) {
        let now = self.now;
        let mut vms = self.cloud.vms.get_mut(host).into_iter().flatten();
        let Some(vm) = vms.find(|vm| vm.machine == machine && vm.power == Power::Dozing) else { return };
        vm.power = Power::Asleep;
        if let Some(run) = self.machines.get(&machine).and_then(|m| m.runs.keys().next().copied()) {
            self.violated(format!("machine {machine} of host {host} is suspended while {run} runs there"));
        }
        // Hibernated it keeps its memory, else only its disk.
        let hibernates = self.chance.permille(500);
        let Some(sleeper) = self.machines.get_mut(&machine).filter(|m| m.on) else { return };
        if !hibernates || sleeper.agent.is_none() {
            return self.machine_off(machine);
        }
        sleeper.hibernated = true;
        sleeper.pace = Pace::Suspended;
        sleeper.suspended_at = now;
        let link = sleeper.link.and_then(|(_, conn)| conn);
        self.say(|| format!("machine {machine}: hibernated"));
        if let Some(conn) = link {
            let delay = self.delay(5_000, 60_000);
            self.after(delay, move |w| w.conn_lost(conn, true));
        }
    }

    pub(super) fn resume_host(&mut self, host: &Host) {
        self.check_reported_state(host, HostState::Resuming);
        let (epoch, id, of) = (self.master.epoch, host.id.clone(), host.clone());
        let (there, back) = self.call_times();
        let fails = self.mishap(self.faults.call_fails);
        let token = host.token.clone();
        self.after(there, move |w| {
            let result = match w.fault_of(&of, fails) {
                Some(error) => Err(error),
                None => w.wake_vm(&id, &token),
            };
            // An error of no known kind may hide that it was resumed.
            if matches!(result, Err(StartError::Unknown(_))) && w.chance.permille(500) {
                drop(w.wake_vm(&id, &token));
            }
            let (delay, result) = match back {
                Some(back) => (back, result),
                None => (CALL_LIMIT - there, Err(StartError::Unknown("no answer within 60 s".to_owned()))),
            };
            w.said(&of, result.as_ref().err());
            w.say(|| format!("cloud: wake {id} -> {result:?}"));
            w.master_event_of(epoch, delay, Event::ResumeEnded { host: id, result });
        });
    }

    fn wake_vm(&mut self, host: &HostId, token: &str) -> Result<(), StartError> {
        let mut vms = self.cloud.vms.get_mut(host).into_iter().flatten();
        let Some(vm) = vms.find(|vm| vm.power != Power::Gone) else {
            return Err(StartError::Rejected("there is no such machine".to_owned()));
        };
        match vm.power {
            Power::On => return Ok(()),
            Power::Dozing => return Err(StartError::Transient("it is still falling asleep".to_owned())),
            Power::Ending | Power::Gone => return Err(StartError::Rejected("it is being ended".to_owned())),
            Power::Asleep => vm.power = Power::On,
        }
        let id = vm.machine;
        let now = self.now;
        let old_token = self.broken == Some(Break::OldToken);
        let Some(machine) = self.machines.get_mut(&id) else { return Ok(()) };
        self.summary.resumed += 1;
        if !old_token {
            machine.password = token.to_owned();
        }
        machine.partitioned = false;
        if machine.hibernated {
            self.go_on(id);
            return Ok(());
        }
        (machine.on, machine.pace, machine.booted, machine.lag) = (true, Pace::Going, now, 0);
        (machine.ended, machine.armed) = (false, false);
        self.say(|| format!("machine {id}: resumed"));
        if !self.mishap(self.faults.half_born) {
            let boot = self.delay(2_000, 40_000);
            self.after(boot, move |w| w.start_agent(id));
        }
        Ok(())
    }

    /// A call about a host is as its ledger has it. A sleep that was decided on in the same turn as the host's end, before it,
    /// goes to nothing; a resumption that was decided on before it is waited for, and has its token in the ledger.
    fn check_reported_state(&mut self, host: &Host, state: HostState) {
        let kept = self.disk.hosts.get(&host.id).map(|h| (h.state, h.token.clone()));
        let gone = kept.is_none() && self.disk.known_hosts.contains(&host.id);
        let ended = match state {
            HostState::Suspending => gone || kept.as_ref().is_some_and(|(state, _)| *state == HostState::Terminating),
            HostState::Resuming => kept == Some((HostState::Terminating, host.token.clone())),
            _ => false,
        };
        if kept != Some((state, host.token.clone())) && !ended {
            let kept = kept.map(|(state, _)| state);
            self.violated(format!("host {} is reported as {state:?} and is {kept:?} in the ledger", host.id));
        }
    }

    /// A host is about to be written down as one that sleeps: it does.
    pub(super) fn check_asleep(&mut self, host: &Host) {
        let before = self.disk.hosts.get(&host.id).map(|h| h.state);
        if host.state != HostState::Suspended || before == Some(HostState::Suspended) {
            return;
        }
        let mut vms = self.cloud.vms.get(&host.id).into_iter().flatten();
        if vms.any(|vm| matches!(vm.power, Power::On | Power::Dozing)) {
            self.violated(format!("host {} is suspended in the ledger and its machine is not", host.id));
        }
    }

    /// A host that was resumed is not given up if nothing keeps its agent from attaching.
    pub(super) fn check_resumed(&mut self, host: &Host) {
        let f = &self.faults;
        let disturbed = f.operators || f.broker || f.upgrade || f.clock || !f.agents_behave();
        let before = self.disk.hosts.get(&host.id).map(|h| h.state);
        let waited =
            before == Some(HostState::Booting) && host.state == HostState::Terminating && host.resumed.is_some();
        if waited && !disturbed {
            self.violated(format!("host {} was resumed and its agent has not attached", host.id));
        }
    }

    /// Whether the machine of a host runs.
    pub(super) fn runs_unasked(&self, host: &HostId) -> bool {
        self.cloud.vms.get(host).into_iter().flatten().any(|vm| vm.power == Power::On)
    }

    /// Whether the machine of a host sleeps.
    pub(super) fn sleeps(&self, host: &HostId) -> bool {
        self.cloud.vms.get(host).into_iter().flatten().any(|vm| vm.power == Power::Asleep)
    }
}
