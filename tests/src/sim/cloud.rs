//! The fake cloud. It is slow, fails, loses replies, lists machines late, and is idempotent by host id.

use super::Break;
use super::machine::Machine;
use super::setup::password;
use super::world::World;
use rouse_master::core::event::{
    Event, ListedHost, Listing, Owner, RequestId, StartError, Started, Termination, UnlistedPlace,
};
use rouse_master::core::plan::ProviderKind;
use rouse_master::core::record::{Host, HostState, LaunchSpec};
use rouse_shared::HostId;
use std::collections::{BTreeMap, BTreeSet};

/// Longest call, as the driver has it.
pub(super) const CALL_LIMIT: u64 = 60_000;
/// A machine of another master with our name.
const FOREIGN_HANDLE: &str = "i-foreign";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Power {
    On,
    /// Asked to suspend.
    Dozing,
    Asleep,
    Ending,
    Gone,
}

/// One machine of the cloud.
pub(super) struct Vm {
    provider: ProviderKind,
    place: String,
    /// Of its order.
    number: Option<u32>,
    handle: String,
    /// What its agent gives.
    identity: String,
    pub machine: usize,
    pub power: Power,
    /// Not listed before then.
    listed_from: u64,
    /// Listed until then.
    listed_until: u64,
}

impl Vm {
    /// What its provider says of it once it is made. Clouds learn its identity only then.
    fn started(&self) -> Started {
        let cloud = matches!(self.provider, ProviderKind::Ec2 | ProviderKind::Openstack);
        let identity = cloud.then(|| self.identity.clone());
        Started { handle: self.handle.clone(), identity }
    }
}

#[derive(Default)]
pub(super) struct Cloud {
    pub vms: BTreeMap<HostId, Vec<Vm>>,
    /// Places that refuse everybody.
    pub refusing: BTreeSet<(ProviderKind, String)>,
    /// When a place has refused last.
    pub refused: BTreeMap<(ProviderKind, String), u64>,
    /// [`Break::StopOnce`]: those that were asked to stop.
    asked: BTreeSet<HostId>,
}

impl World {
    /// How long a call takes to arrive, and its reply to come; a lost reply comes as late as the driver waits.
    pub(super) fn call_times(&mut self) -> (u64, Option<u64>) {
        let slow = self.mishap(self.faults.slow_cloud);
        let there = if slow { self.delay(5_000, 40_000) } else { self.delay(50, 1_500) };
        let back = if slow { self.delay(1_000, 15_000) } else { self.delay(20, 500) };
        (there, (!self.mishap(self.faults.reply_lost)).then_some(back))
    }

    /// Works out what is to be ordered: it differs at each asking, as images and prices do.
    pub(super) fn prepare_host(&mut self, host: &Host, number: u32, _resting: &BTreeSet<String>) {
        let epoch = self.master.epoch;
        let (there, back) = self.call_times();
        let fails = self.mishap(self.faults.call_fails);
        // Known beforehand if the provider makes it up itself; elsewhere the machine has one of its own.
        let identity = match host.provider {
            ProviderKind::Process => Some(host.id.0.clone()),
            ProviderKind::Libvirt => Some(format!("uuid-of-{}", host.id)),
            ProviderKind::Ec2 | ProviderKind::Openstack => None,
        };
        let order = LaunchSpec {
            number,
            alternative: format!("type {number}"),
            image: "image".to_owned(),
            spec: self.chance.hex(8),
            fresh: false,
            more: number < 2 && self.chance.permille(500),
            identity,
            price: None,
            spot: false,
        };
        let result = self.fault_of(host, fails).map_or(Ok(order), Err);
        let (delay, result) = match back {
            Some(back) => (there + back, result),
            None => (CALL_LIMIT, Err(StartError::Place("no answer within 60 s".to_owned()))),
        };
        self.said(host, result.as_ref().err());
        self.master_event_of(epoch, delay, Event::Prepared { host: host.id.clone(), number, result });
    }

    pub(super) fn start_host(&mut self, host: Host) {
        let Some(number) = host.launch.as_ref().map(|o| o.number) else {
            return self.violated(format!("host {} is started without a launch spec", host.id));
        };
        if self.disk.hosts.get(&host.id).is_some_and(|kept| kept.launch != host.launch) {
            return self.violated(format!("host {} is started with a launch spec that is not in the ledger", host.id));
        }
        if !self.disk.known_hosts.contains(&host.id) {
            return self.violated(format!("host {} is started before it is in the ledger", host.id));
        }
        let epoch = self.master.epoch;
        let (there, back) = self.call_times();
        let fails = self.mishap(self.faults.call_fails);
        self.after(there, move |w| {
            let known = w.cloud.vms.contains_key(&host.id);
            let result = match w.fault_of(&host, fails) {
                Some(error) => Err(w.never_certain(&host, error)),
                None => Ok(w.make(&host)),
            };
            let copied = result.is_ok() && !known && w.copy_attaches(&host);
            // An error of no known kind may hide that it was made.
            if matches!(result, Err(StartError::Unknown(_))) && w.chance.permille(500) {
                w.make(&host);
            }
            let (delay, result) = match back {
                Some(back) if copied => (back + w.delay(2_000, 20_000), result),
                Some(back) => (back, result),
                None => (CALL_LIMIT - there, Err(StartError::Unknown("no answer within 60 s".to_owned()))),
            };
            w.said(&host, result.as_ref().err());
            w.say(|| format!("cloud: start {} -> {result:?}", host.id));
            if w.mishap(w.faults.duplicate) {
                let event = Event::StartEnded { host: host.id.clone(), number, result: result.clone() };
                w.master_event_of(epoch, delay + 700, event);
            }
            w.master_event_of(epoch, delay, Event::StartEnded { host: host.id, number, result });
        });
    }

    /// A copy of the host's image is started by somebody, while the host itself still boots.
    fn copy_attaches(&mut self, host: &Host) -> bool {
        let unknown = host.identity.is_none() && host.handle.is_none();
        if !unknown || self.quiet || !self.faults.copies || !self.chance.permille(400) {
            return false;
        }
        let (worker, identity) = (host.worker.clone(), format!("copy-of-{}", host.id));
        let mut machine = Machine::new(worker.clone(), None, password(&worker), identity, self.now);
        (machine.latent, machine.stranger, machine.copy) = (true, true, true);
        let id = self.add_machine(machine);
        self.say(|| format!("machine {id}: a copy of the image of {worker}, not {}", host.id));
        self.start_agent(id);
        true
    }

    /// Why a start fails. A provider that has made the machine never says for certain that it will not.
    fn never_certain(&mut self, host: &Host, error: StartError) -> StartError {
        let number = host.launch.as_ref().map(|order| order.number);
        let made = self.cloud.vms.get(&host.id).is_some_and(|vms| vms.iter().any(|vm| vm.number == number));
        match error {
            StartError::Capacity(text) | StartError::Quota(text) | StartError::Rejected(text) if made => {
                StartError::Unknown(text)
            }
            error => error,
        }
    }

    pub(super) fn start_error(&mut self) -> StartError {
        let text = "it is one of those days".to_owned();
        match self.chance.range(0, 5) {
            0 => StartError::Capacity(text),
            1 => StartError::Rejected(text),
            2 => StartError::Place(text),
            3 => StartError::Transient(text),
            4 => StartError::Quota(text),
            _ => StartError::Unknown(text),
        }
    }

    /// Makes the machine, if there is none of that order yet.
    fn make(&mut self, host: &Host) -> Started {
        let twice = self.broken == Some(Break::StartsTwice);
        let number = host.launch.as_ref().map(|order| order.number);
        let made = self.cloud.vms.get(&host.id).and_then(|vms| vms.iter().find(|vm| vm.number == number));
        if let Some(vm) = made.filter(|_| !twice) {
            return vm.started();
        }
        let handle = format!("i-{}", self.chance.hex(8));
        // A host whose identity the master knows gets it at boot; the others have one of their own.
        let identity = host.identity.clone().unwrap_or_else(|| format!("id-of-{handle}"));
        let mut machine =
            Machine::new(host.worker.clone(), Some(host.id.clone()), host.token.clone(), identity.clone(), self.now);
        if let Some(plan) = self.script.plan.workers.get(&host.worker) {
            machine.power_off_after = plan.missing_timeout;
        }
        let id = self.add_machine(machine);
        self.summary.machines += 1;
        let lag = if self.quiet { 500 } else { self.delay(0, 30_000) };
        let vm = Vm {
            provider: host.provider,
            place: host.place.clone(),
            number,
            handle: handle.clone(),
            identity,
            machine: id,
            power: Power::On,
            listed_from: self.now + lag,
            listed_until: u64::MAX,
        };
        let started = vm.started();
        self.cloud.vms.entry(host.id.clone()).or_default().push(vm);
        self.check_made(&host.id);
        let worker = host.worker.clone();
        self.say(|| format!("cloud: {} of {worker} is machine {id}, {handle}", host.id));
        if self.mishap(self.faults.reclaimed) {
            let (delay, host) = (self.delay(500, 60_000), host.id.clone());
            self.after(delay, move |w| w.reclaim(&host, id));
        }
        if self.mishap(self.faults.half_born) {
            self.say(|| format!("cloud: machine {id} is half born"));
        } else {
            let boot = self.delay(2_000, 40_000);
            self.after(boot, move |w| w.start_agent(id));
        }
        started
    }

    /// A machine that is ours and that the ledger has never known, there from the beginning.
    pub(super) fn orphan(&mut self, number: u64) {
        let latent: Vec<_> = self
            .script
            .plan
            .workers
            .values()
            .filter_map(|w| w.latent.as_ref().map(|l| (w.name.clone(), l.provider, l.place.to_string())))
            .collect();
        let (worker, provider, place) = self.chance.pick(&latent);
        let (host, handle) = (HostId(format!("hx{number}")), format!("i-orphan{number}"));
        let token = self.chance.hex(48);
        let identity = format!("id-of-{handle}");
        let id = self.add_machine(Machine::new(worker, Some(host.clone()), token, identity.clone(), self.now));
        self.say(|| format!("cloud: machine {id}, {handle}, is ours and nobody knows of it"));
        let (power, listed_until) = (Power::On, u64::MAX);
        let vm =
            Vm { provider, place, number: None, handle, identity, machine: id, power, listed_from: 0, listed_until };
        self.cloud.vms.entry(host).or_default().push(vm);
        // Most have something on them that switches them off by itself.
        if self.chance.permille(500) {
            self.after(1_000, move |w| w.start_agent(id));
        }
    }

    pub(super) fn terminate_host(&mut self, host: Host) {
        self.check_stop(&host);
        if self.broken == Some(Break::StopOnce) && !self.cloud.asked.insert(host.id.clone()) {
            return;
        }
        let epoch = self.master.epoch;
        let (there, back) = self.call_times();
        let fails = self.mishap(self.faults.call_fails);
        self.after(there, move |w| {
            let fails = fails || w.refuses(&host);
            let stopped = (!fails).then(|| w.stop_vms(&host.id)).map(|stopped| match stopped {
                Termination::Requested if w.broken == Some(Break::AcceptedIsGone) => Termination::Gone,
                stopped => stopped,
            });
            let result = stopped.ok_or_else(|| "it is one of those days".to_owned());
            let (delay, result) = match back {
                Some(back) => (back, result),
                None => (CALL_LIMIT - there, Err("no answer within 60 s".to_owned())),
            };
            w.say(|| format!("cloud: stop {} -> {result:?}", host.id));
            w.master_event_of(epoch, delay, Event::TerminateEnded { host: host.id, result });
        });
    }

    pub(super) fn stop_orphan(&mut self, provider: ProviderKind, listed: ListedHost) {
        if listed.owner != Owner::Ours || listed.handle == FOREIGN_HANDLE {
            self.violated(format!("{} is another master's and is stopped", listed.handle));
        }
        if self.disk.hosts.contains_key(&listed.host) {
            self.violated(format!("host {} is in the ledger and is terminated as an orphan", listed.host));
        }
        if self.broken == Some(Break::LeaveOrphans) {
            return;
        }
        let epoch = self.master.epoch;
        let (there, back) = self.call_times();
        let fails = self.mishap(self.faults.call_fails);
        self.after(there, move |w| {
            let stopped = (!fails).then(|| w.stop_vms(&listed.host));
            let result = stopped.ok_or_else(|| "it is one of those days".to_owned());
            let (delay, result) = match back {
                Some(back) => (back, result),
                None => (CALL_LIMIT - there, Err("no answer within 60 s".to_owned())),
            };
            let handle = listed.handle;
            w.master_event_of(epoch, delay, Event::OrphanTerminateEnded { provider, handle, result });
        });
    }

    fn stop_vms(&mut self, host: &HostId) -> Termination {
        let mut ending = Vec::new();
        let mut all_gone = true;
        for vm in self.cloud.vms.get_mut(host).into_iter().flatten() {
            if matches!(vm.power, Power::On | Power::Dozing | Power::Asleep) {
                vm.power = Power::Ending;
                ending.push(vm.machine);
            }
            all_gone &= vm.power == Power::Gone;
        }
        for machine in ending {
            let delay = self.delay(100, 20_000);
            let host = host.clone();
            self.after(delay, move |w| w.vm_gone(&host, machine));
        }
        if all_gone { Termination::Gone } else { Termination::Requested }
    }

    fn vm_gone(&mut self, host: &HostId, machine: usize) {
        let lag = self.delay(0, 60_000);
        let until = self.now + lag;
        for vm in self.cloud.vms.get_mut(host).into_iter().flatten().filter(|vm| vm.machine == machine) {
            vm.power = Power::Gone;
            vm.listed_until = until;
        }
        self.machine_off(machine);
    }

    /// The cloud takes a machine back whose agent has not attached yet; mostly it is noticed at once.
    fn reclaim(&mut self, host: &HostId, machine: usize) {
        let there = self
            .cloud
            .vms
            .get(host)
            .is_some_and(|vms| vms.iter().any(|vm| vm.machine == machine && vm.power == Power::On));
        let known = self.disk.hosts.get(host).is_some_and(|h| h.attached.is_some());
        if self.machines.get(&machine).is_none_or(|m| m.attached) || known || !there {
            return;
        }
        self.say(|| format!("cloud: takes machine {machine} of {host} back"));
        self.vm_gone(host, machine);
        if self.chance.permille(800) {
            let delay = self.delay(10, 3_000);
            let why = "there is no room for it any more".to_owned();
            self.master_event_in(delay, Event::HostGone { host: host.clone(), why, reclaimed: true });
        }
    }

    /// A machine ends without being asked to by the master; some providers see it at once.
    pub(super) fn vm_ends(&mut self, host: &HostId, why: &str) {
        let on: Vec<usize> = self.cloud.vms.get(host).into_iter().flatten().map(|vm| vm.machine).collect();
        for machine in on {
            self.vm_gone(host, machine);
        }
        if self.chance.permille(400) {
            let delay = self.delay(10, 3_000);
            self.master_event_in(delay, Event::HostGone { host: host.clone(), why: why.to_owned(), reclaimed: false });
        }
    }

    /// A master that starts hears from some providers what has ended while none was there, of hosts that were made.
    pub(super) fn report_missed_deaths(&mut self) {
        let made = |host: &&Host| !matches!(host.state, HostState::Ordered | HostState::Terminated);
        let hosts: Vec<HostId> = self.disk.hosts.values().filter(made).map(|host| host.id.clone()).collect();
        for host in hosts {
            let ended = |vms: &Vec<Vm>| !vms.is_empty() && vms.iter().all(|vm| vm.power == Power::Gone);
            if self.cloud.vms.get(&host).is_some_and(ended) && self.chance.permille(500) {
                let delay = self.delay(10, 3_000);
                let why = "it ended while nobody listened".to_owned();
                self.master_event_in(delay, Event::HostGone { host, why, reclaimed: false });
            }
        }
    }

    pub(super) fn fetch_console(&mut self, host: &Host) {
        let epoch = self.master.epoch;
        let (there, back) = self.call_times();
        let text = self.chance.permille(500).then(|| "Kernel panic".to_owned());
        if let Some(back) = back {
            self.master_event_of(epoch, there + back, Event::Console { host: host.id.clone(), text });
        }
    }

    /// Lists what has our name; for an audit of a user's, or for the periodic one.
    pub(super) fn list_hosts(&mut self, provider: ProviderKind, audit: Option<(RequestId, u32)>) {
        let epoch = self.master.epoch;
        let (there, back) = self.call_times();
        let fails = self.mishap(self.faults.call_fails);
        self.after(there, move |w| {
            let (mut machines, unlisted) = w.listed(provider);
            let mut result = if fails {
                // Half of it could be asked.
                machines.truncate(machines.len().div_ceil(2));
                let unlisted = vec![UnlistedPlace { place: None, why: "it is one of those days".to_owned() }];
                Ok(Listing { machines, unlisted })
            } else {
                Ok(Listing { machines, unlisted })
            };
            let delay = back.unwrap_or(CALL_LIMIT - there);
            if back.is_none() {
                result = Err("no answer within 60 s".to_owned());
            }
            w.note_unlisted(provider, &result);
            let result = match (w.broken, result) {
                (Some(Break::FailedListIsEmpty), Err(_)) => Ok(Listing::default()),
                (Some(Break::FailedListIsEmpty), Ok(listing)) => Ok(Listing { unlisted: Vec::new(), ..listing }),
                (Some(Break::PartialListIsWhole), Ok(mut listing)) if listing.unlisted.is_empty() => {
                    listing.machines.truncate(listing.machines.len().div_ceil(2));
                    Ok(listing)
                }
                (Some(Break::PauseAll), Ok(mut listing)) => {
                    listing.unlisted.iter_mut().for_each(|place| place.place = None);
                    Ok(listing)
                }
                (_, result) => result,
            };
            let event = match audit {
                Some((request, round)) => Event::ListedForAudit { request, round, provider, result },
                None => Event::Listed { provider, result },
            };
            w.master_event_of(epoch, delay, event);
        });
    }

    /// What a provider lists now, and the places that it cannot.
    fn listed(&self, provider: ProviderKind) -> (Vec<ListedHost>, Vec<UnlistedPlace>) {
        let now = self.now;
        // Another master of our name has a machine there, all the time.
        let ours = self.broken == Some(Break::OwnerByName);
        let mut listed = vec![ListedHost {
            host: HostId("h0".to_owned()),
            handle: FOREIGN_HANDLE.to_owned(),
            identity: None,
            owner: if ours { Owner::Ours } else { Owner::Foreign("other".to_owned()) },
            suspended: false,
        }];
        let refusing = |place: &str| self.cloud.refusing.contains(&(provider, place.to_owned()));
        for (host, vms) in &self.cloud.vms {
            for vm in vms.iter().filter(|vm| vm.provider == provider && !refusing(&vm.place)) {
                if vm.listed_from <= now && vm.listed_until > now {
                    let Started { handle, identity } = vm.started();
                    let suspended = matches!(vm.power, Power::Dozing | Power::Asleep);
                    listed.push(ListedHost { host: host.clone(), handle, identity, owner: Owner::Ours, suspended });
                }
            }
        }
        let places = self.cloud.refusing.iter().filter(|(of, _)| *of == provider);
        let why = || "503 Service Unavailable".to_owned();
        let unlisted = places.map(|(_, place)| UnlistedPlace { place: Some(place.clone()), why: why() });
        (listed, unlisted.collect())
    }

    /// Nothing runs for a host that the ledger takes to be gone, unless an operator has said that it is.
    pub(super) fn check_gone(&mut self) {
        let gone =
            |(host, _): &(HostId, usize)| self.disk.known_hosts.contains(host) && !self.disk.hosts.contains_key(host);
        let gone = |of: &(HostId, usize)| gone(of) && !self.script.forgotten.contains(&of.0);
        if let Some((host, machine)) = self.machines_on().into_iter().find(gone) {
            self.violated(format!("machine {machine} runs and its host {host} is terminated in the ledger"));
        }
    }

    /// Machines of ours that the ledger does not know, of the providers that the master can ask.
    pub(super) fn orphans(&self) -> Vec<(HostId, usize)> {
        let latent = || self.master.plan.workers.values().filter_map(|w| w.latent.as_ref());
        let unknown = |(host, _): &(&HostId, &Vec<Vm>)| !self.disk.hosts.contains_key(*host);
        let of = |(host, vms): (&HostId, &Vec<Vm>)| {
            let on = vms.iter().filter(|vm| vm.power != Power::Gone && latent().any(|l| l.provider == vm.provider));
            on.map(|vm| (host.clone(), vm.machine)).collect::<Vec<_>>()
        };
        self.cloud.vms.iter().filter(unknown).flat_map(of).collect()
    }

    /// The hosts whose machines are on, and those machines.
    pub(super) fn machines_on(&self) -> Vec<(HostId, usize)> {
        let on = |(host, vms): (&HostId, &Vec<Vm>)| {
            let of = vms.iter().filter(|vm| vm.power != Power::Gone);
            of.map(|vm| (host.clone(), vm.machine)).collect::<Vec<_>>()
        };
        self.cloud.vms.iter().flat_map(on).collect()
    }
}
