//! Hosts that never attach: what they printed is fetched, and the failed start is counted.

use super::phase::{HostEvent, Phase};
use crate::core::build::FailedHost;
use crate::core::event::{Effect, Level};
use crate::core::timers::Timer;
use crate::core::{Core, Timestamp};
use rouse_shared::{BuildId, HostId};
use std::time::Duration;

/// First pause after a failed start; doubled with each further one in a row, up to [`BACKOFF_MOST`].
pub(in crate::core) const BACKOFF_FIRST: Duration = Duration::from_secs(15);
/// Longest pause between failed starts.
pub(in crate::core) const BACKOFF_MOST: Duration = Duration::from_secs(1_800);
/// How long what a host printed is waited for before the host is terminated without it.
const CONSOLE_PATIENCE: Duration = Duration::from_secs(20);

/// `first`, doubled so many times, `most` at most.
pub(in crate::core) fn doubled(first: Duration, most: Duration, times: u32) -> Duration {
    first.saturating_mul(1 << times.min(16)).min(most)
}

/// The longest pause that so many failures in a row lead to, jitter included.
pub(in crate::core) fn longest_pause(failures: u32) -> Duration {
    doubled(BACKOFF_FIRST, BACKOFF_MOST, failures.saturating_sub(1)).mul_f64(1.2)
}

/// Whose fault a failed start is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Its image's, its worker's or its configuration's: it counts for quarantine, and against the builds that waited.
    Host,
    /// The provider's, for now: no capacity, no answer.
    Passing,
    /// Ours: the master or the broker was away.
    Outage,
}

impl Core {
    /// A host that never attached is given up: its evidence is fetched, then it is terminated.
    pub(super) fn give_up_host(&mut self, now: Timestamp, id: &HostId, why: &str) {
        if self.advance(id, &HostEvent::GiveUp).is_some() {
            self.host_given_up(now, id, why);
        }
    }

    pub(super) fn host_given_up(&mut self, now: Timestamp, id: &HostId, why: &str) {
        let Some(live) = self.hosts.get_mut(id) else { return };
        live.host.why = Some(why.to_owned());
        let (worker, starting) = (live.host.worker.clone(), live.phase.may_be_starting());
        self.timers.clear(&Timer::Boot(id.clone()));
        self.timers.clear(&Timer::CallAgain(id.clone()));
        if !starting {
            self.fetch_console(now, id);
        }
        self.note(Level::Warn, format!("host {id} of {worker} is given up: {why}"));
        self.touch_host(id);
        self.touch_worker(&worker);
    }

    /// A call to start or resume the host was answered, and the host is being terminated: what it printed is fetched, if
    /// it was given up meanwhile, or else it is terminated now.
    pub(super) fn terminate_after_call(&mut self, now: Timestamp, id: &HostId, before: &Phase) {
        match self.hosts.get(id).map(|live| &live.phase) {
            Some(Phase::Terminating { console: true, .. }) if before.may_be_starting() => self.fetch_console(now, id),
            Some(_) | None => self.call_again(now, id),
        }
    }

    fn fetch_console(&mut self, now: Timestamp, id: &HostId) {
        let Some(live) = self.hosts.get(id) else { return };
        self.timers.set(Timer::Console(id.clone()), now + CONSOLE_PATIENCE);
        self.out.push(Effect::FetchConsole(Box::new(live.host.clone())));
    }

    /// What a host that is given up had printed has come, or is waited for no longer.
    pub(in crate::core) fn on_console(&mut self, now: Timestamp, id: &HostId, text: Option<String>) {
        let before = self.advance(id, &HostEvent::Console);
        if !before.is_some_and(|phase| matches!(phase, Phase::Terminating { console: true, .. })) {
            return;
        }
        let Some(live) = self.hosts.get_mut(id) else { return };
        live.host.console.clone_from(&text);
        let why = live.host.why.clone().unwrap_or_default();
        self.timers.clear(&Timer::Console(id.clone()));
        self.host_failed(now, id, &why, self.fault_of_silence(now, id), text);
        self.call_again(now, id);
        self.touch_host(id);
    }

    /// Counts a failed start against the worker and its image, and tells the builds that waited for it.
    pub(super) fn host_failed(
        &mut self,
        now: Timestamp,
        id: &HostId,
        why: &str,
        fault: Fault,
        console: Option<String>,
    ) {
        let Some(host) = self.hosts.get(id).map(|l| l.host.clone()) else { return };
        let mut builds = self.queue.release(id);
        builds.extend(host.started_for.filter(|b| !builds.contains(b) && self.is_waiting(*b)));
        self.pending.wake = true;
        match fault {
            // Nobody is to blame, and nothing is to be learned from it.
            Fault::Outage => return,
            Fault::Passing => {}
            Fault::Host => {
                let worker = host.worker.clone();
                let failed = FailedHost { host: id.clone(), worker, at: now, why: why.to_owned(), console };
                self.count_failed_host(now, builds, &failed);
            }
        }
        let jitter = 0.8 + 0.4 * f64::from(u16::from_str_radix(&self.random_hex(2), 16).unwrap_or(0)) / 65_536.0;
        self.image_failed(now, &host, why, jitter);
        let limit = self.plan.quarantine_after;
        if let Some(w) = self.workers.get_mut(&host.worker) {
            let pause = doubled(BACKOFF_FIRST, BACKOFF_MOST, w.record.failures).mul_f64(jitter);
            w.record.failures += 1;
            w.record.backoff_until = Some(now + pause);
            w.record.last_failure = Some(why.to_owned());
            self.timers.set(Timer::Backoff(host.worker.clone()), now + pause);
            if fault == Fault::Host {
                w.record.faults += 1;
                if w.record.faults >= limit {
                    w.record.quarantined = Some(why.to_owned());
                    let text = format!("quarantined after {limit} failed starts: {why}");
                    self.note(Level::Warn, format!("worker {} is {text}", host.worker));
                    self.worker_lost(now, &host.worker, &text);
                }
            }
        }
        self.save_worker(&host.worker);
    }

    /// Whose fault it is that an agent has not attached.
    pub(super) fn fault_of_silence(&self, now: Timestamp, id: &HostId) -> Fault {
        let excused = self.hosts.get(id).is_some_and(|live| self.is_excused(now, &live.host));
        if excused { Fault::Outage } else { Fault::Host }
    }

    fn is_waiting(&self, build: BuildId) -> bool {
        self.builds.get(&build).is_some_and(|b| b.status.end.is_none() && b.status.live_attempt().is_none())
    }
}
