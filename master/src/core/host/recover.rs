//! Hosts after a restart of the master: each continues from the phase in the ledger.

use super::LiveHost;
use super::phase::{HostEvent, Phase};
use super::suspend::SUSPEND_LIMIT;
use crate::core::audit::ORPHAN_AGE;
use crate::core::record::Host;
use crate::core::timers::Timer;
use crate::core::{Core, Timestamp};
use rouse_shared::HostId;
use std::time::Duration;

impl Core {
    /// Continues each host from the phase in the ledger. Calls that may have been under way when the previous master
    /// ended are repeated.
    pub(in crate::core) fn restore_hosts(&mut self, now: Timestamp, hosts: Vec<Host>) {
        for mut host in hosts {
            // The clock may have been set back. These times must not lie in the future.
            (host.booted, host.attached) = (host.booted.map(|at| at.min(now)), host.attached.map(|at| at.min(now)));
            host.terminating = host.terminating.map(|at| at.min(now));
            let id = host.id.clone();
            let worker = self.worker_entry(now, &host.worker);
            if host.place.is_empty()
                && let Some(latent) = worker.plan.as_ref().and_then(|plan| plan.latent.as_ref())
                && latent.provider == host.provider
            {
                // Its row is of a version that kept no places.
                host.place = latent.place.to_string();
            }
            worker.host = Some(id.clone());
            let (patience, lost) =
                (worker.plan.as_ref().map_or(Duration::ZERO, |p| p.missing_timeout), worker.session.is_none());
            let phase = Phase::restored(&host);
            let live = LiveHost {
                published: Some(host.state),
                host,
                phase: phase.clone(),
                earlier_call_until: None,
                missing_from_lists: 0,
                reclaimed: false,
                not_terminated: None,
                chosen: None,
            };
            if let Some(at) = live.host.forgotten {
                self.timers.set(Timer::Forget(id.clone()), at);
            }
            self.hosts.insert(id.clone(), live);
            match phase {
                Phase::Preparing { number } => {
                    self.expect_earlier_call(now, &id);
                    self.timers.set(Timer::Boot(id.clone()), now + patience);
                    self.prepare_host(now, &id, number);
                }
                Phase::Launching { .. } | Phase::Resuming { .. } => {
                    self.timers.set(Timer::Boot(id.clone()), now + patience);
                    self.repeat_call(now, &id);
                }
                Phase::Booting { .. } => self.timers.set(Timer::Boot(id.clone()), now + patience),
                Phase::Ready { .. } | Phase::Draining { .. } if lost => {
                    self.advance(&id, &HostEvent::Terminate);
                    if let Some(live) = self.hosts.get_mut(&id) {
                        live.published = Some(live.host.state);
                    }
                    self.repeat_call(now, &id);
                }
                Phase::Ready { .. } | Phase::Draining { .. } | Phase::Terminated => {}
                Phase::Suspending { .. } => {
                    self.timers.set(Timer::Suspension(id.clone()), now + SUSPEND_LIMIT);
                    self.repeat_call(now, &id);
                }
                Phase::Suspended => self.review_suspended(now, &id),
                Phase::Terminating { .. } => self.repeat_call(now, &id),
            }
            self.touch_host(&id);
        }
    }

    /// Makes the call of the host's phase, which the previous master may have made too.
    fn repeat_call(&mut self, now: Timestamp, id: &HostId) {
        self.expect_earlier_call(now, id);
        self.call(now, id);
    }

    /// A call of the previous master may still take effect.
    fn expect_earlier_call(&mut self, now: Timestamp, id: &HostId) {
        if let Some(live) = self.hosts.get_mut(id) {
            live.earlier_call_until = Some(now + ORPHAN_AGE);
        }
    }
}
