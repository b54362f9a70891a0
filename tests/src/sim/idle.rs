//! Invariants that are checked in intervals: no host is idle for too long, and none outlives its master.

use super::machine::{Machine, Pace};
use super::world::World;
use rouse_master::core::record::{DesiredState, Host, HostState};
use rouse_shared::HostId;
use rouse_shared::limits::KILL_MARGIN;
use std::collections::BTreeSet;
use std::time::Duration;

/// How long an agent takes to end what runs and to switch its machine off, at most, and one look.
const ENDING: u64 = 35_000;
/// How long the master waits for a host to fall asleep.
const SUSPEND_LIMIT: u64 = 900_000;
/// Between two looks, and what a list takes that is slow.
const LISTING: u64 = 160_000;
/// The grace of a host whose worker the configuration has no more.
const WINDING_UP_GRACE: Duration = Duration::from_secs(600);

/// Since when a host has been idle, as far as the looks at it show.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Idle {
    state: HostState,
    since: u64,
}

fn ms(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

impl World {
    pub(super) fn check_all(&mut self) {
        let missing = self
            .script
            .accepted
            .keys()
            .find(|id| !self.disk.builds.contains_key(id) && !self.disk.deleted.contains_key(id))
            .copied();
        if let Some(id) = missing {
            self.violated(format!("build {id} was accepted and is not in the ledger"));
        }
        self.check_master();
        self.check_gone();
        self.check_idle();
        self.check_sleepers();
        self.check_impostors();
        let ids: Vec<usize> = self.machines.keys().copied().collect();
        ids.into_iter().for_each(|id| self.check_dead_man(id));
    }

    /// The master knows the hosts and builds that its ledger has, and no others.
    fn check_master(&mut self) {
        let Some(core) = self.master.core.as_ref().filter(|_| self.master_acts()) else { return };
        let known: BTreeSet<HostId> = core.host_views(self.time()).into_iter().map(|view| view.host.id).collect();
        if !known.iter().eq(self.disk.hosts.keys()) {
            let kept: Vec<_> = self.disk.hosts.keys().cloned().collect();
            self.violated(format!("the master knows the hosts {known:?} and its ledger {kept:?}"));
        }
    }

    /// No host is idle longer than its timeout and one audit, while the master can act and is not reconfigured.
    fn check_idle(&mut self) {
        if !self.master_acts() || self.bus.alarm.on.is_some() {
            return self.idle.clear();
        }
        let hosts: Vec<Host> = self.disk.hosts.values().cloned().collect();
        self.idle.retain(|id, _| self.disk.hosts.contains_key(id));
        for host in hosts {
            let Some(limit) = self.idle_limit(&host) else {
                self.idle.remove(&host.id);
                continue;
            };
            let now = Idle { state: host.state, since: self.now };
            let idle = self.idle.entry(host.id.clone()).or_insert(now);
            if idle.state != host.state {
                *idle = now;
            }
            let idle = *idle;
            let limit = limit + ms(self.master.plan.audit_interval);
            if self.now - idle.since > limit {
                let for_s = (self.now - idle.since) / 1_000;
                self.violated(format!(
                    "host {} of {} is {:?} and idle for {for_s} s, which is more than {} s",
                    host.id,
                    host.worker,
                    host.state,
                    limit / 1_000
                ));
            }
        }
    }

    /// A machine that should sleep does, or is seen by two audits that do not fail.
    fn check_sleepers(&mut self) {
        let reliable = self.faults.call_fails == 0 && self.faults.reply_lost == 0;
        let limit = 2 * ms(self.master.plan.audit_interval) + LISTING;
        let is_running_unexpectedly = |(host, idle): &(&HostId, &Idle)| {
            idle.state == HostState::Suspended && self.now - idle.since > limit && self.runs_unasked(host)
        };
        if let Some(host) =
            self.idle.iter().find(is_running_unexpectedly).map(|(host, _)| host.clone()).filter(|_| reliable)
        {
            self.violated(format!("host {host} should be suspended and runs"));
        }
    }

    /// For how long the host may stay as it is with nothing to do; none if it has something, or may stay forever.
    fn idle_limit(&self, host: &Host) -> Option<u64> {
        let live =
            |b: &rouse_master::core::build::Build| b.status.live_attempt().is_some_and(|a| a.worker == host.worker);
        if self.disk.builds.values().any(live) {
            return None;
        }
        let plan = self.master.plan.workers.get(&host.worker);
        let lease = self.disk.sessions.get(&host.worker).and_then(|s| s.lease_ms);
        match host.state {
            // Not attached yet, or being stopped until its provider says so, however often that fails.
            HostState::Ordered
            | HostState::Booting
            | HostState::Resuming
            | HostState::Terminating
            | HostState::Terminated => None,
            HostState::Suspending => Some(SUSPEND_LIMIT),
            HostState::Suspended => {
                let sleep = plan.and_then(|p| p.latent.as_ref()).and_then(|l| l.suspend);
                Some(sleep.map_or(0, |sleep| ms(sleep.max_age)))
            }
            // Its agent answers, or its lease ends.
            HostState::Draining => Some(lease? + ms(self.master.plan.restart_lease) + ms(KILL_MARGIN)),
            HostState::Ready => {
                let Some(latent) = plan.and_then(|p| p.latent.as_ref()) else { return Some(0) };
                let timeout = ms(latent.build_wait_timeout?);
                let idle = self.disk.hosts.values().filter(|h| self.idles(h, &latent.template)).count();
                (idle > latent.min_idle as usize).then_some(timeout)
            }
        }
    }

    /// Whether the host certainly counts for its template's `min_idle`. One that is being started may be kept for a
    /// build.
    fn idles(&self, host: &Host, template: &str) -> bool {
        let plan = self.master.plan.workers.get(&host.worker).and_then(|p| p.latent.as_ref());
        let busy = self.disk.builds.values().any(|b| b.status.live_attempt().is_some_and(|a| a.worker == host.worker));
        plan.is_some_and(|l| l.template == template)
            && host.state == HostState::Ready
            && self.disk.workers.get(&host.worker).is_none_or(|w| w.desired == DesiredState::Work)
            && !busy
    }

    /// A latent host whose agent runs has attached in time, or has a lease, or is within its grace.
    fn check_dead_man(&mut self, id: usize) {
        let Some(machine) = self.machines.get(&id).filter(|m| has_dead_man(m)) else { return };
        let clock = machine.clock(self.now).0;
        // A worker that a reload has taken out winds up with more.
        let planned = self.script.plan.workers.get(&machine.worker).filter(|_| self.script.reloads == 0);
        let grace = planned.map_or(WINDING_UP_GRACE, |p| p.grace);
        let attach_by = machine.started.0 + ms(machine.power_off_after);
        let grace_over = machine.deadline.map_or(0, |end| end.max(machine.awake_since).0 + ms(grace));
        let limit = attach_by.max(grace_over) + ENDING;
        if clock > limit {
            let late = (clock - limit) / 1_000;
            self.violated(format!("machine {id} should have switched itself off {late} s ago"));
        }
    }

    /// The master has been gone for long: no host is on whose agent could switch it off.
    pub(super) fn check_abandoned(&mut self) {
        let left = self.machines.iter().find(|(_, m)| has_dead_man(m)).map(|(id, m)| (*id, m.worker.clone()));
        if let Some((id, worker)) = left {
            self.violated(format!("machine {id} of {worker} outlives its master"));
        }
    }
}

/// Whether a machine has to switch itself off when nobody wants it: its agent runs, or has tried to.
fn has_dead_man(machine: &Machine) -> bool {
    let tried = machine.ended && !machine.left;
    let armed = machine.latent && !machine.disarmed;
    machine.on && armed && machine.pace == Pace::Going && (machine.agent.is_some() || tried)
}
