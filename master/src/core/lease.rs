//! How long a session holds. A promise to an agent is never taken back: its steps may run until then.

use super::event::Effect;
use super::record::Record;
use super::timers::Timer;
use super::{Core, Live, Timestamp};
use rouse_shared::WorkerName;
use rouse_shared::limits::KILL_MARGIN;
use rouse_shared::message::ToAgent;
use std::time::Duration;

impl Live {
    /// The lease that its agent was last welcomed with, whatever the configuration says by now.
    pub(super) fn lease(&self) -> Option<Duration> {
        self.session.lease_ms.map(Duration::from_millis)
    }
}

impl Core {
    /// Something was heard of the agent. The master counts from receipt, plus the lease, plus the time that killing
    /// takes. The answer may be lost, so a longer lease that was given before holds as well.
    pub(super) fn renew(&mut self, now: Timestamp, name: &WorkerName) {
        let Some(worker) = self.workers.get_mut(name) else { return };
        worker.heard = Some(now);
        let Some(live) = &worker.session else { return };
        match live.lease() {
            Some(lease) => self.timers.postpone(Timer::Lease(name.clone()), now + lease + KILL_MARGIN),
            None => self.timers.clear(&Timer::Lease(name.clone())),
        }
    }

    /// The master is asked to end: an upgrade must end no build.
    pub(super) fn on_shutdown(&mut self, now: Timestamp) {
        self.terminating = true;
        // Also for an answer that an earlier master gave.
        self.keep_extension(self.plan.restart_lease);
        let sessions: Vec<_> = self
            .workers
            .iter()
            .filter_map(|(name, w)| w.attached().map(|l| (name.clone(), l.session.id.clone(), l.last_seq)))
            .collect();
        for (name, session, seq) in sessions {
            if let Some(lease_ms) = self.extend_again(now, &name) {
                self.send(&name, ToAgent::Renewed { session, seq, lease_ms: Some(lease_ms) });
            }
        }
    }

    /// The longer lease of a master that is about to end; without it a late heartbeat's answer would take it back.
    pub(super) fn extend_again(&mut self, now: Timestamp, name: &WorkerName) -> Option<u64> {
        let lease = self.plan.restart_lease;
        let own = self.workers.get(name)?.session.as_ref()?.lease()?;
        if !self.terminating || own >= lease {
            return None;
        }
        self.keep_extension(lease);
        self.timers.postpone(Timer::Lease(name.clone()), now + lease + KILL_MARGIN);
        Some(millis(lease))
    }

    fn keep_extension(&mut self, by: Duration) {
        self.timers.clear(&Timer::Extension);
        if self.extended.is_none_or(|kept| kept < by) {
            self.extended = Some(by);
            self.out.push(Effect::Save(Record::LeasesExtended(self.extended)));
        }
    }

    /// The last master's promise has run out, and no agent goes by it any more.
    pub(super) fn on_extension_over(&mut self) {
        self.extended = None;
        self.out.push(Effect::Save(Record::LeasesExtended(None)));
    }
}

/// Whole milliseconds, as the wire has them.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
