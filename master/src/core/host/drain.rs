//! Draining. A host that is idle, or that is not to be used again, ends only when its agent reports that nothing runs.

use super::phase::HostEvent;
use super::suspend::SUSPEND_LIMIT;
use crate::core::record::{DesiredState, HostState};
use crate::core::sessions::EndReason;
use crate::core::timers::Timer;
use crate::core::{Core, Timestamp};
use rouse_shared::message::ToAgent;
use rouse_shared::{HostId, SessionId, WorkerName};
use std::time::Duration;

/// Interval at which an idle host that is kept for `min_idle` is checked again. Another host may have become idle.
const SPARE_AGAIN: Duration = Duration::from_secs(10);

impl Core {
    /// The host has been idle for its `build_wait_timeout`.
    pub(in crate::core) fn on_idle(&mut self, now: Timestamp, id: &HostId) {
        let Some(worker) = self.hosts.get(id).map(|l| l.host.worker.clone()) else { return };
        let Some(latent) = self.latent_of(&worker) else { return };
        if latent.min_idle > 0 && self.idle_of(&latent.template) <= latent.min_idle {
            return self.timers.set(Timer::Idle(id.clone()), now + SPARE_AGAIN);
        }
        self.drain_host(id, "it was idle");
    }

    /// The hosts of a template that are ready or starting, have no work, and are not reserved for a build.
    pub(in crate::core) fn idle_of(&self, template: &str) -> u32 {
        let idle = self.hosts.values().filter(|live| {
            let worker = self.workers.get(&live.host.worker);
            let of = worker.and_then(|w| w.plan.as_ref()).and_then(|p| p.latent.as_ref());
            of.is_some_and(|l| l.template == template)
                && (live.host.state.is_starting() || live.host.state == HostState::Ready)
                && self.queue.reserved_on(&live.host.id) == 0
                && worker.is_some_and(|w| w.attempts.is_empty() && w.record.desired == DesiredState::Work)
        });
        u32::try_from(idle.count()).unwrap_or(u32::MAX)
    }

    /// Ends a host as soon as nothing runs on it.
    pub(in crate::core) fn wind_down(&mut self, now: Timestamp, id: &HostId, why: &str) {
        match self.hosts.get(id).map(|l| l.host.state) {
            Some(HostState::Ready) => self.drain_host(id, why),
            Some(
                HostState::Ordered
                | HostState::Booting
                | HostState::Suspending
                | HostState::Suspended
                | HostState::Resuming,
            ) => self.terminate_host(now, id, why),
            Some(HostState::Draining | HostState::Terminating | HostState::Terminated) | None => {}
        }
    }

    /// Asks the agent to accept nothing new and to report when nothing runs. Only its answer terminates the host.
    pub(in crate::core) fn drain_host(&mut self, id: &HostId, why: &str) {
        if self.advance(id, &HostEvent::Drain).is_none_or(|before| before.state() != HostState::Ready) {
            return;
        }
        let Some(live) = self.hosts.get_mut(id) else { return };
        live.host.why = Some(why.to_owned());
        let worker = live.host.worker.clone();
        self.timers.clear(&Timer::Idle(id.clone()));
        self.touch_host(id);
        self.drain_agent(&worker);
    }

    /// Sends the worker's agent a drain.
    pub(in crate::core) fn drain_agent(&mut self, worker: &WorkerName) {
        let Some(live) = self.workers.get_mut(worker).and_then(|w| w.session.as_mut()) else { return };
        let drain = live.drain.unwrap_or(0) + 1;
        live.drain = Some(drain);
        let session = live.session.id.clone();
        self.send_drain(worker, session, drain);
        self.touch_worker(worker);
    }

    /// Asks an agent to accept no new attempts. The message says whether the machine may be suspended after that.
    pub(in crate::core) fn send_drain(&mut self, worker: &WorkerName, session: SessionId, drain: u64) {
        let suspend = self.latent_of(worker).is_some_and(|latent| latent.suspend.is_some());
        self.send(worker, ToAgent::Drain { session, drain, suspend });
    }

    /// Nothing runs on the host, and nothing will: it is suspended or ended.
    pub(in crate::core) fn host_drained(&mut self, now: Timestamp, id: &HostId) {
        if self.why_not_suspend(now, id).is_some() {
            return self.terminate_host(now, id, "it was drained");
        }
        if self.advance(id, &HostEvent::Suspend).is_none() {
            return;
        }
        let Some(live) = self.hosts.get_mut(id) else { return };
        // That it was idle is not why it will end.
        live.host.why = None;
        let worker = live.host.worker.clone();
        self.timers.clear(&Timer::Reclaim(id.clone()));
        self.timers.set(Timer::Suspension(id.clone()), now + SUSPEND_LIMIT);
        self.end_session(now, &worker, "its host is suspended", EndReason::Gone);
        self.touch_host(id);
        self.call(now, id);
    }
}
