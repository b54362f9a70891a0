//! A host's agent attaches, so the start has succeeded; or it does not attach in time.

use super::phase::HostEvent;
use crate::core::timers::Timer;
use crate::core::{Core, Timestamp};
use rouse_shared::HostId;
use std::time::Duration;

impl Core {
    /// The host's agent has attached, so its start has succeeded.
    pub(in crate::core) fn host_attached(&mut self, now: Timestamp, id: &HostId) {
        if !self.advance(id, &HostEvent::Attached).is_some_and(|before| before.state().is_starting()) {
            return;
        }
        let Some(live) = self.hosts.get_mut(id) else { return };
        live.host.attached.get_or_insert(now);
        let host = live.host.clone();
        let worker = host.worker.clone();
        self.timers.clear(&Timer::Boot(id.clone()));
        self.timers.clear(&Timer::CallAgain(id.clone()));
        if let Some(w) = self.workers.get_mut(&worker) {
            w.record.failures = 0;
            w.record.faults = 0;
            w.record.rejected = false;
            w.record.backoff_until = None;
            w.record.last_failure = None;
        }
        self.image_works(&host);
        self.save_worker(&worker);
        self.touch_host(id);
        self.touch_worker(&worker);
    }

    /// The host has not attached within `missing_timeout`.
    pub(in crate::core) fn on_boot_overdue(&mut self, now: Timestamp, id: &HostId) {
        let Some(live) = self.hosts.get(id) else { return };
        if !live.host.state.is_starting() {
            return;
        }
        // It could not attach during an outage, or before its place said that it exists.
        if !self.broker_up || live.phase.trouble().is_some() {
            self.timers.set(Timer::Boot(id.clone()), now + Duration::from_secs(60));
            return;
        }
        let worker = live.host.worker.clone();
        let waited = now.since(live.host.begun()).as_secs();
        let why = format!("its agent did not attach within {waited} s");
        if !self.is_excused(now, &live.host.clone()) {
            self.worker_is_missing(now, &worker, &format!("host {id}: {why}"));
        }
        self.give_up_host(now, id, &why);
    }
}
