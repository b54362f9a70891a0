//! Missing workers. A standing worker is missing if no agent has been attached for its `missing_timeout`. A latent
//! worker is missing if its host does not attach within that time, or if several of its hosts in a row did not start.
//! The master reports once that the worker is missing, and once that it is back.
//!
//! Only time in which an agent could have attached counts. While the master or the broker is away, or the broker
//! accepts nothing, no worker becomes missing, and a host that was starting during the outage does not count as failed.

use super::event::Level;
use super::mail::What;
use super::record::Host;
use super::timers::Timer;
use super::{Core, Timestamp};
use rouse_shared::WorkerName;
use std::time::Duration;

/// How long a host may still attach after outages that have lasted several times its `missing_timeout`.
const LAST_CHANCE: Duration = Duration::from_secs(60);

impl Core {
    /// Starts the `missing_timeout` of a standing worker that is not attached.
    pub(super) fn arm_missing(&mut self, now: Timestamp, name: &WorkerName) {
        let Some(worker) = self.workers.get_mut(name).filter(|w| w.standing() && w.attached().is_none()) else {
            return;
        };
        if worker.record.missing_since.is_none()
            && let Some(plan) = &worker.plan
        {
            let away = *worker.away.get_or_insert(now);
            self.timers.set(Timer::Missing(name.clone()), away + plan.missing_timeout);
        }
    }

    pub(super) fn on_missing(&mut self, now: Timestamp, name: &WorkerName) {
        let Some(worker) = self.workers.get(name).filter(|w| w.standing() && w.attached().is_none()) else { return };
        // While the broker is away no agent can attach. The time is counted from zero when the broker is back.
        if !self.broker_up {
            return;
        }
        let timeout = worker.plan.as_ref().map_or(0, |p| p.missing_timeout.as_secs());
        self.worker_is_missing(now, name, &format!("not attached for {timeout} s"));
    }

    /// Records and reports that a worker is missing. Does nothing if it is already recorded.
    pub(super) fn worker_is_missing(&mut self, now: Timestamp, name: &WorkerName, why: &str) {
        let extra = self.plan.mail.extra_recipients.clone();
        let Some(worker) = self.workers.get_mut(name).filter(|w| !w.removed && w.record.missing_since.is_none()) else {
            return;
        };
        worker.record.missing_since = Some(now);
        let mut to = extra;
        to.extend(worker.plan.iter().flat_map(|p| p.notify_on_missing.iter().cloned()));
        worker.record.notified.clone_from(&to);
        self.note(Level::Warn, format!("worker {name} is missing: {why}"));
        self.report(now, to, What::Missing { worker: name.clone(), why: why.to_owned() });
        self.save_worker(name);
    }

    /// Records that a worker is attached. If it was reported as missing, reports to the same recipients that it is
    /// back.
    pub(super) fn worker_is_back(&mut self, now: Timestamp, name: &WorkerName) {
        self.timers.clear(&Timer::Missing(name.clone()));
        let Some(worker) = self.workers.get_mut(name) else { return };
        worker.away = None;
        let mut notified = std::mem::take(&mut worker.record.notified);
        if worker.removed {
            // The worker has been removed from the configuration and only ends what it runs.
            notified.clear();
        }
        if let Some(missing_since) = worker.record.missing_since.take() {
            self.note(Level::Info, format!("worker {name} is back"));
            self.report(now, notified, What::Back { worker: name.clone(), missing_since });
            self.save_worker(name);
        }
    }

    pub(super) fn on_broker(&mut self, now: Timestamp, up: bool) {
        self.linked = up;
        self.on_broker_changed(now);
    }

    /// The link is up or down, or the broker accepts messages or does not.
    pub(super) fn on_broker_changed(&mut self, now: Timestamp) {
        let up = self.linked && self.alarm.is_none();
        self.broker_up = up;
        self.broker_since = up.then_some(now);
        self.pending.wake |= up;
        let standing: Vec<_> = self.workers.iter().filter(|(_, w)| w.standing()).map(|(n, _)| n.clone()).collect();
        for name in standing {
            self.timers.clear(&Timer::Missing(name.clone()));
            if let Some(worker) = self.workers.get_mut(&name) {
                worker.away = None;
            }
            if up {
                self.arm_missing(now, &name);
            }
        }
        if !up {
            return;
        }
        // Agents can attach from now on. The limit ensures that a link that breaks again and again does not keep a host
        // forever that will never attach.
        for (id, live) in &self.hosts {
            if live.host.state.is_starting()
                && let Some(plan) = self.workers.get(&live.host.worker).and_then(|w| w.plan.as_ref())
            {
                let last = (live.host.begun() + 4 * plan.missing_timeout).max(now + LAST_CHANCE);
                self.timers.set(Timer::Boot(id.clone()), last.min(now + plan.missing_timeout));
            }
        }
    }

    /// Whether an outage may be why a host has ended without having attached: for some time no agent could attach, and
    /// the host is old enough to have powered itself off because of that.
    pub(super) fn is_excused(&self, now: Timestamp, host: &Host) -> bool {
        let Some(since) = self.broker_since else { return true };
        let patience = self.workers.get(&host.worker).and_then(|w| w.plan.as_ref()).map(|p| p.missing_timeout);
        host.begun() < since && patience.is_none_or(|patience| now.since(host.begun()) >= patience)
    }
}
