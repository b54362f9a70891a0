//! How long a session is valid. The master never withdraws a promise to an agent, because the agent's steps may run
//! until the promised time.

use super::event::Effect;
use super::record::Record;
use super::timers::Timer;
use super::{Core, Live, Timestamp};
use rouse_shared::WorkerName;
use rouse_shared::limits::KILL_MARGIN;
use rouse_shared::message::ToAgent;
use std::time::Duration;

impl Live {
    /// The lease that its agent has received last, even if the configuration has changed.
    pub(super) fn lease(&self) -> Option<Duration> {
        self.session.lease_ms.map(Duration::from_millis)
    }
}

impl Core {
    /// Renews the lease after a message from the agent. The master counts from the receipt, and adds the lease and the
    /// time that killing takes. The answer may be lost, so a longer lease that was promised before stays valid.
    pub(super) fn renew(&mut self, now: Timestamp, name: &WorkerName) {
        let Some(worker) = self.workers.get_mut(name) else { return };
        worker.last_message = Some(now);
        let Some(live) = &worker.session else { return };
        match live.lease() {
            Some(lease) => self.timers.postpone(Timer::Lease(name.clone()), now + lease + KILL_MARGIN),
            None => self.timers.clear(&Timer::Lease(name.clone())),
        }
    }

    /// The master is asked to end. An upgrade must end no build.
    pub(super) fn on_shutdown(&mut self, now: Timestamp) {
        self.terminating = true;
        // What an earlier master has promised stays in the ledger.
        self.timers.clear(&Timer::Extension);
        if !self.linked {
            // No agent gets the longer lease, so the workers of those that are gone need not wait until it is over.
            return;
        }
        // The extension also covers leases that an earlier master has promised.
        self.keep_extension(self.plan.restart_lease);
        // An agent counts from its last heartbeat that has arrived. In an alarm, that may be long ago.
        let alarm = self.alarm.is_some();
        let age = |at: Option<Timestamp>| at.filter(|_| alarm).map_or(Duration::ZERO, |at| now.since(at));
        let sessions: Vec<_> = self
            .workers
            .iter()
            .filter_map(|(name, w)| {
                let live = w.attached()?;
                Some((name.clone(), live.session.id.clone(), live.last_seq, age(w.last_message)))
            })
            .collect();
        for (name, session, seq, age) in sessions {
            if let Some(lease_ms) = self.extend_again(now, &name) {
                let lease_ms = lease_ms.saturating_add(millis(age));
                self.send(&name, ToAgent::Renewed { session, seq, lease_ms: Some(lease_ms) });
            }
        }
    }

    /// Sends the longer lease of a master that is about to end. Otherwise the answer to a late heartbeat would withdraw
    /// it.
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

    /// The extension that the previous master promised has ended, and no agent relies on it any more.
    pub(super) fn on_extension_over(&mut self) {
        self.extended = None;
        self.out.push(Effect::Save(Record::LeasesExtended(None)));
    }
}

/// In whole milliseconds, as on the wire.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
