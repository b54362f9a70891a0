//! Invariants about copies of images. An agent may attach as a host before the provider has reported the host's
//! machine. If it turns out to be on another machine, it gets nothing more, and its session ends with its lease.

use super::world::World;
use rouse_master::core::plan::ProviderKind;
use rouse_master::core::record::{HostState, Session};
use rouse_shared::limits::KILL_MARGIN;
use rouse_shared::{HostId, WorkerName};
use std::time::Duration;

/// Between two looks, and the way to the next turn.
const SLACK: Duration = Duration::from_secs(25);

impl World {
    /// The session of a copy, if the ledger has had the word of the host's provider that says better.
    fn copy_session(&self, worker: &WorkerName) -> Option<(HostId, &Session)> {
        let session = self.disk.sessions.get(worker).filter(|s| s.identity.starts_with("copy-of-"))?;
        let host = self.disk.hosts.get(session.host.as_ref()?)?;
        let cloud = matches!(host.provider, ProviderKind::Ec2 | ProviderKind::Openstack);
        let known = cloud && host.handle.is_some();
        known.then(|| (host.id.clone(), session))
    }

    /// A build is given to this worker.
    pub(super) fn check_assigned(&mut self, worker: &WorkerName) {
        if let Some((host, session)) = self.copy_session(worker) {
            let of = session.identity.clone();
            self.violated(format!("a build for {host} is assigned to {of}, which is another machine"));
        }
    }

    /// An agent has switched its machine off, or tried to: that was not since a copy had its place.
    pub(super) fn check_powered_off(&mut self, id: usize) {
        let Some(machine) = self.machines.get(&id).filter(|m| !m.stranger) else { return };
        let Some((host, _)) = self.copy_session(&machine.worker) else { return };
        let by_itself = machine.clock(self.now) >= machine.started + machine.power_off_after;
        let wanted = self
            .disk
            .hosts
            .get(&host)
            .is_some_and(|h| !matches!(h.state, HostState::Terminating | HostState::Terminated));
        if machine.host == Some(host) && wanted && !by_itself {
            self.violated(format!("machine {id} powers off because a copy has its session"));
        }
    }

    pub(super) fn check_impostors(&mut self) {
        // While no message gets through there may be an alarm, and leases are held.
        if !self.master_acts() || !self.master.linked || self.bus.alarm.on.is_some() {
            return self.impostors.clear();
        }
        let workers: Vec<WorkerName> = self.disk.sessions.keys().cloned().collect();
        let found: Vec<_> = workers.iter().filter_map(|w| self.copy_session(w)).collect();
        let extended = self.disk.leases_extended.unwrap_or_default();
        let lease = |s: &Session| Duration::from_millis(s.lease_ms.unwrap_or(600_000)).max(extended);
        let found: Vec<_> = found.into_iter().map(|(host, s)| (host, lease(s) + KILL_MARGIN + SLACK)).collect();
        self.impostors.retain(|host, _| found.iter().any(|(of, _)| of == host));
        for (host, limit) in found {
            let since = *self.impostors.entry(host.clone()).or_insert(self.now);
            if Duration::from_millis(self.now - since) > limit {
                let for_s = (self.now - since) / 1_000;
                self.violated(format!("a copy still has the session of {host} {for_s} s after the machine is known"));
            }
        }
    }
}
