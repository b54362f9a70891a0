//! Hosts that never attach: the master fetches their console output and counts the failed start.

use super::phase::{HostEvent, Phase};
use crate::core::build::FailedHost;
use crate::core::event::{Effect, Level};
use crate::core::timers::Timer;
use crate::core::{Core, Timestamp};
use rouse_shared::{BuildId, HostId};
use std::time::Duration;

/// First pause after a failed start. Doubled with each further failure in a row, up to [`BACKOFF_MOST`].
pub(in crate::core) const BACKOFF_FIRST: Duration = Duration::from_secs(15);
/// Longest pause between failed starts.
pub(in crate::core) const BACKOFF_MOST: Duration = Duration::from_secs(1_800);
/// How long the master waits for a host's console output before it terminates the host without it.
const CONSOLE_PATIENCE: Duration = Duration::from_secs(20);

/// `first`, doubled this many times, but at most `most`.
pub(in crate::core) fn doubled(first: Duration, most: Duration, times: u32) -> Duration {
    first.saturating_mul(1 << times.min(16)).min(most)
}

/// The longest pause after this many failures in a row, with jitter.
pub(in crate::core) fn longest_pause(failures: u32) -> Duration {
    doubled(BACKOFF_FIRST, BACKOFF_MOST, failures.saturating_sub(1)).mul_f64(1.2)
}

/// What caused a failed start.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The image, the worker or the configuration. It counts for quarantine, and against the builds that waited for the
    /// host.
    Host,
    /// The provider, temporarily: no capacity, no answer.
    Passing,
    /// An outage: the master or the broker was away.
    Outage,
}

impl Core {
    /// Gives up a host that never attached: fetches its console output, then terminates it.
    pub(super) fn give_up_host(&mut self, now: Timestamp, id: &HostId, why: &str) {
        if self.advance(id, &HostEvent::GiveUp).is_some() {
            self.host_given_up(now, id, why);
        }
    }

    pub(super) fn host_given_up(&mut self, now: Timestamp, id: &HostId, why: &str) {
        let Some(live) = self.hosts.get_mut(id) else { return };
        live.host.why = Some(why.to_owned());
        let host = live.host.clone();
        self.timers.clear(&Timer::Boot(id.clone()));
        self.timers.clear(&Timer::CallAgain(id.clone()));
        self.timers.set(Timer::Console(id.clone()), now + CONSOLE_PATIENCE);
        self.out.push(Effect::FetchConsole(Box::new(host.clone())));
        self.note(Level::Warn, format!("host {id} of {} is given up: {why}", host.worker));
        self.touch_host(id);
        self.touch_worker(&host.worker);
    }

    /// The console output of a host that was given up has arrived, or the master waits no longer for it.
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

    /// Counts a failed start for the worker, its image, and the builds that waited for the host.
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
            // The failure says nothing about worker and image.
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
                    self.worker_is_missing(now, &host.worker, &text);
                }
            }
        }
        self.save_worker(&host.worker);
    }

    /// What has caused an agent not to attach.
    pub(super) fn fault_of_silence(&self, now: Timestamp, id: &HostId) -> Fault {
        let excused = self.hosts.get(id).is_some_and(|live| self.is_excused(now, &live.host));
        if excused { Fault::Outage } else { Fault::Host }
    }

    fn is_waiting(&self, build: BuildId) -> bool {
        self.builds.get(&build).is_some_and(|b| b.status.end.is_none() && b.status.live_attempt().is_none())
    }
}
