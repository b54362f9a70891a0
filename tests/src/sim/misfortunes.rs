//! Faults that happen by themselves, changes by a reload of the operator, and how everything becomes quiet.

use super::Break;
use super::machine::{Machine, Pace};
use super::master::Input;
use super::script::person;
use super::setup::{self, password, worker_name};
use super::show;
use super::world::World;
use rouse_master::core::event::{Command, Event, Operation};
use rouse_master::core::plan::{Plan, ProviderKind, WorkerPlan};
use rouse_master::core::record::DesiredState;
use rouse_shared::WorkerName;
use std::sync::Arc;

impl World {
    pub(super) fn begin(&mut self) {
        self.script.faults_end = self.delay(10, 40) * 60_000;
        let end = self.script.faults_end;
        self.say(|| "begins".to_owned());
        let (plan, faults) = (self.script.plan.clone(), self.faults);
        self.say(|| format!("{faults:?}"));
        show::plan(&plan).into_iter().for_each(|line| self.say(|| line));
        self.bus.up = true;
        if faults.outages && self.chance.permille(500) {
            self.outage();
        }
        for number in 0..faults.orphans {
            self.orphan(number);
        }
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
        self.misfortunes(often(f.alarm, 3), |w| {
            let most = if w.faults.agents_behave() { 120_000 } else { 600_000 };
            let length = if w.chance.permille(500) { w.delay(1_000, 60_000) } else { w.delay(60_000, most) };
            w.start_alarm(length);
            if w.faults.partition && w.chance.permille(700) {
                // The network of agents fails, too, after they were told, and comes back long after the alarm's end.
                let (told, more) = (w.delay(4_000, 20_000), w.delay(100_000, 400_000));
                w.after(told, move |w| {
                    for id in w.told_of_alarm() {
                        if w.chance.permille(500) {
                            w.partition(id, length + more);
                        }
                    }
                });
            }
        });
        self.misfortunes(often(f.kill, 5), |w| w.with_machine(World::kill_agent));
        self.misfortunes(often(f.freeze, 5), |w| {
            let pace = w.chance.pick(&[Pace::Frozen, Pace::Suspended]);
            let long = w.chance.permille(500);
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
            let away = w.delay(500, 8_000);
            w.ask_master_to_end(away);
        });
        self.misfortunes(often(f.upgrade, 2), |w| {
            let away = w.delay(5_000, 240_000);
            w.ask_master_to_end(away);
        });
        self.misfortunes(often(f.disk_full, 3), |w| {
            w.disk.full = true;
            let length = w.delay(1_000, 90_000);
            w.after(length, |w| w.disk.full = false);
        });
        self.misfortunes(often(f.outages, 4), World::outage);
        self.misfortunes(often(f.foreign_counts, 4), World::stranger);
        self.misfortunes(often(f.crash > 0, 2), |w| w.master_dies(Vec::new()));
    }

    /// Something to do if a seed has not seen enough.
    pub(super) fn keep_busy(&mut self) {
        for _ in 0..4 {
            let delay = self.delay(0, 500_000);
            self.after(delay, World::submit);
        }
    }

    /// SIGTERM: the master extends every lease, and ends a little later.
    fn ask_master_to_end(&mut self, away: u64) {
        if !self.master_acts() {
            return;
        }
        self.master_receives(Input::Event(Event::Shutdown));
        let (after, epoch) = (self.delay(100, 3_000), self.master.epoch);
        if self.faults.partition && self.chance.permille(500) {
            // An agent that got a longer lease continues, and the next master does not know of it.
            let length = self.delay(60_000, 280_000);
            self.after(after, move |w| w.with_machine(|w, id| w.partition(id, length)));
        }
        self.after(after, move |w| {
            if w.master.epoch == epoch {
                w.master_dies_for(away, Vec::new());
            }
        });
    }

    /// Another machine has a worker's credential: a standing worker's password, or the boot token of a host whose own
    /// agent has used it.
    fn stranger(&mut self) {
        let standing: Vec<WorkerName> =
            self.script.plan.workers.values().filter(|w| w.latent.is_none()).map(|w| w.name.clone()).collect();
        let session = |h: &&rouse_master::core::record::Host| {
            self.disk.sessions.get(&h.worker).is_some_and(|s| s.host.as_ref() == Some(&h.id))
        };
        let hosts: Vec<_> = self.disk.hosts.values().filter(session).cloned().collect();
        let mut machine = if hosts.is_empty() || self.chance.permille(400) {
            if standing.is_empty() {
                return;
            }
            let name = self.chance.pick(&standing);
            Machine::new(name.clone(), None, password(&name), format!("twin-of-{name}"), self.now)
        } else {
            let host = self.chance.pick(&hosts);
            // If the master does not know beforehand on which machine a host is, the first one is believed.
            let known = host.provider == ProviderKind::Process && self.chance.permille(500);
            let credential = if known { password(&host.worker) } else { host.token.clone() };
            let mut thief = Machine::new(host.worker.clone(), None, credential, "thief".to_owned(), self.now);
            thief.latent = true;
            thief
        };
        machine.stranger = true;
        let (worker, identity) = (machine.worker.clone(), machine.identity.clone());
        let id = self.add_machine(machine);
        self.say(|| format!("machine {id}: {identity} has a credential of {worker}"));
        self.start_agent(id);
    }

    fn misfortunes(&mut self, most: u64, act: impl Fn(&mut World) + Copy + 'static) {
        let count = self.delay(0, most);
        for _ in 0..count {
            let at = self.delay(0, self.script.faults_end);
            self.at(at, move |w| act(w));
        }
    }

    /// Something for a machine that is on, if there is one.
    fn with_machine(&mut self, act: impl FnOnce(&mut World, usize)) {
        let on = || self.machines.iter().filter(|(_, m)| m.on);
        let busy: Vec<usize> = on().filter(|(_, m)| !m.runs.is_empty()).map(|(id, _)| *id).collect();
        let all: Vec<usize> = on().map(|(id, _)| *id).collect();
        // One that runs something has more to lose.
        let of = if busy.is_empty() || self.chance.permille(300) { all } else { busy };
        if !of.is_empty() {
            let id = self.chance.pick(&of);
            act(self, id);
        }
    }

    fn standing_machine(&mut self, name: &WorkerName) {
        let machine = Machine::new(name.clone(), None, password(name), format!("machine-of-{name}"), self.now);
        let id = self.add_machine(machine);
        let delay = self.delay(0, 20_000);
        self.after(delay, move |w| w.start_agent(id));
    }

    /// A new configuration: a worker more, one less, one back, or one that is different.
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
        match self.chance.range(0, 5) {
            0 => {
                let name = worker_name(&format!("s{}", 10 + number));
                plan.workers.insert(name.clone(), Arc::new(setup::standing(&mut self.chance, name.as_str())));
                self.standing_machine(&name);
            }
            1 if names.len() > 1 => {
                let removed = plan.workers.remove(&chosen);
                self.script.removed.extend(removed);
                self.script.ever_removed.insert(chosen);
            }
            2 => self.change_template(&mut plan),
            3 => self.bring_back(&mut plan),
            4 => {
                // A latent one becomes a standing one.
                let latent = plan.workers.get_mut(&chosen).filter(|w| w.latent.is_some());
                if let Some(worker) = latent {
                    Arc::make_mut(worker).latent = None;
                    self.standing_machine(&chosen);
                }
            }
            _ => {
                plan.max_hosts = self.chance.pick(&[None, Some(1), Some(2), Some(4)]);
                if let Some(worker) = plan.workers.get_mut(&chosen) {
                    Arc::make_mut(worker).max_builds = self.chance.pick(&[Some(1), Some(2), None]);
                }
            }
        }
        setup::leave_room(&mut plan);
        self.script.plan = Arc::new(plan);
        let plan = self.script.plan.clone();
        self.say(|| "a reload:".to_owned());
        show::plan(&plan).into_iter().for_each(|line| self.say(|| line));
        self.master_receives(Input::Event(Event::Configure(plan)));
    }

    fn change_template(&mut self, plan: &mut Plan) {
        let Some(name) = plan.workers.values().find_map(|w| Some(w.latent.clone()?.template)) else { return };
        let fresh = setup::template(&mut self.chance, &name);
        for worker in plan.workers.values_mut() {
            let latent = Arc::make_mut(worker).latent.as_mut();
            if let Some(latent) = latent.filter(|l| l.template == fresh.template) {
                *latent = fresh.clone();
            }
        }
    }

    /// A worker that was taken out before is there again.
    fn bring_back(&mut self, plan: &mut Plan) {
        let Some(mut worker) = self.script.removed.pop() else { return };
        let templates = || plan.workers.values().filter_map(|w| w.latent.as_ref());
        let WorkerPlan { latent, .. } = Arc::make_mut(&mut worker);
        if let Some(latent) = latent
            && let Some(newest) = templates().find(|l| l.template == latent.template)
        {
            *latent = newest.clone();
        }
        plan.workers.insert(worker.name.clone(), worker);
    }

    /// The master is gone, and perhaps the broker too. Until when to wait for every host to have ended by itself.
    pub(super) fn abandon(&mut self) -> u64 {
        self.say(|| "master: is gone for good".to_owned());
        self.abandoned = true;
        self.master_dies_for(0, Vec::new());
        if self.chance.permille(500) {
            self.restart_broker(0);
        }
        let until = self.now + 30 * 60_000;
        self.at(until, World::check_abandoned);
        until
    }

    /// The faults are over: what was broken is mended, and everybody may work.
    pub(super) fn calm_down(&mut self) {
        self.say(|| "quiet begins".to_owned());
        self.quiet = true;
        self.abandoned = false;
        if let Some(number) = self.bus.alarm.on {
            self.end_alarm(number);
        }
        self.disk.full = false;
        if self.broken != Some(Break::PlaceNeverBack) {
            self.cloud.refusing.clear();
        }
        self.master.crash = None;
        self.broker_up();
        self.start_master();
        let machines: Vec<(usize, u64)> = self.machines.iter().map(|(id, m)| (*id, m.life)).collect();
        for (id, life) in machines {
            self.heal(id);
            self.thaw(id, life);
            if self.machines.get(&id).is_some_and(|m| !m.latent) {
                self.keep_started(id);
            }
        }
        // Nobody helps but those who have taken a worker out of use themselves.
        for later in [30_000, 420_000] {
            self.after(later, |w| {
                let resting = |name: &&WorkerName| {
                    w.disk.workers.get(*name).is_some_and(|record| record.desired != DesiredState::Work)
                };
                let names: Vec<WorkerName> = w.script.plan.workers.keys().filter(resting).cloned().collect();
                for worker in names {
                    let request = w.master.request();
                    w.master_receives(Input::Event(Event::Command {
                        request,
                        by: person(),
                        command: Command::Operate { worker, operation: Operation::Resume },
                    }));
                }
            });
        }
    }

    /// Somebody looks after a standing machine: its agent is started if it has ended.
    fn keep_started(&mut self, id: usize) {
        let Some(machine) = self.machines.get(&id) else { return };
        if self.script.plan.workers.contains_key(&machine.worker) {
            self.start_agent(id);
            self.after(60_000, move |w| w.keep_started(id));
        }
    }
}
