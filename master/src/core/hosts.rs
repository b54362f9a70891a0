//! The life of a host: `Ordered -> Booting -> Ready -> Draining -> Terminating -> Terminated`; its start is [`super::starts`], and
//! what is suspended is in [`super::suspend`]. Nothing is ever left running: terminating repeats until the provider says gone, and
//! [`super::audit`] finds what the ledger does not know.

use super::build::FailedHost;
use super::event::{Effect, Level, Termination};
use super::host::phase::{HostEvent, Phase};
use super::plan::LatentPlan;
use super::record::{DesiredState, HostState, Record};
use super::timers::Timer;
use super::{Core, Timestamp};
use rouse_shared::{BuildId, HostId, WorkerName};
use std::time::Duration;

/// First pause after a failed start; doubled with each further one in a row, up to [`BACKOFF_MOST`].
pub(super) const BACKOFF_FIRST: Duration = Duration::from_secs(15);
/// Longest pause between failed starts.
pub(super) const BACKOFF_MOST: Duration = Duration::from_secs(1_800);
/// First pause before a start with an unknown result, or a termination that failed, is repeated; doubled up to a minute.
const REPEAT_FIRST: Duration = Duration::from_secs(2);
/// Longest pause before a call is repeated.
const REPEAT_MOST: Duration = Duration::from_secs(60);
/// How often an idle host that is kept for `min_idle` is looked at again: another may have become idle meanwhile.
const SPARE_AGAIN: Duration = Duration::from_secs(10);
/// How long what a host printed is waited for before the host is terminated without it.
const CONSOLE_PATIENCE: Duration = Duration::from_secs(20);

/// `first`, doubled so many times, `most` at most.
pub(super) fn doubled(first: Duration, most: Duration, times: u32) -> Duration {
    first.saturating_mul(1 << times.min(16)).min(most)
}

/// The pause before a call that was made so many times is repeated.
pub(super) fn repeat_pause(tries: u32) -> Duration {
    doubled(REPEAT_FIRST, REPEAT_MOST, tries.min(8))
}

/// The longest pause that so many failures in a row lead to, jitter included.
pub(super) fn longest_pause(failures: u32) -> Duration {
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
    /// The host has not attached within `missing_timeout`.
    pub(super) fn on_boot_overdue(&mut self, now: Timestamp, id: &HostId) {
        let Some(live) = self.hosts.get(id) else { return };
        if !live.host.state.is_starting() {
            return;
        }
        if !self.broker_up {
            // It could not have attached: our outage, not its fault.
            self.timers.set(Timer::Boot(id.clone()), now + Duration::from_secs(60));
            return;
        }
        let worker = live.host.worker.clone();
        let waited = now.since(live.host.begun()).as_secs();
        let why = format!("its agent did not attach within {waited} s");
        if !self.is_excused(now, &live.host.clone()) {
            self.worker_lost(now, &worker, &format!("host {id}: {why}"));
        }
        self.give_up_host(now, id, &why);
    }

    /// A host that never attached is given up: its evidence is fetched, then it is terminated.
    fn give_up_host(&mut self, now: Timestamp, id: &HostId, why: &str) {
        if self.advance(id, &HostEvent::GiveUp).is_some() {
            self.host_given_up(now, id, why);
        }
    }

    fn host_given_up(&mut self, now: Timestamp, id: &HostId, why: &str) {
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

    /// What a host that is given up had printed has come, or is waited for no longer.
    pub(super) fn on_console(&mut self, now: Timestamp, id: &HostId, text: Option<String>) {
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
    fn fault_of_silence(&self, now: Timestamp, id: &HostId) -> Fault {
        let excused = self.hosts.get(id).is_some_and(|live| self.is_excused(now, &live.host));
        if excused { Fault::Outage } else { Fault::Host }
    }

    fn is_waiting(&self, build: BuildId) -> bool {
        self.builds.get(&build).is_some_and(|b| b.status.end.is_none() && b.status.live_attempt().is_none())
    }

    /// Its host's agent has attached: the start has succeeded.
    pub(super) fn host_attached(&mut self, now: Timestamp, id: &HostId) {
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
            w.record.backoff_until = None;
            w.record.last_failure = None;
        }
        self.image_works(&host);
        self.save_worker(&worker);
        self.touch_host(id);
        self.touch_worker(&worker);
    }

    /// The host has been idle for its `build_wait_timeout`.
    pub(super) fn on_idle(&mut self, now: Timestamp, id: &HostId) {
        let Some(worker) = self.hosts.get(id).map(|l| l.host.worker.clone()) else { return };
        let Some(latent) = self.latent_of(&worker) else { return };
        if latent.min_idle > 0 && self.idle_of(&latent.template) <= latent.min_idle {
            return self.timers.set(Timer::Idle(id.clone()), now + SPARE_AGAIN);
        }
        self.drain_host(id, "it was idle");
    }

    pub(super) fn latent_of(&self, worker: &WorkerName) -> Option<LatentPlan> {
        self.workers.get(worker)?.plan.as_ref()?.latent.clone()
    }

    /// Asks the agent to take nothing new and to say when nothing runs; only its answer terminates the host.
    pub(super) fn drain_host(&mut self, id: &HostId, why: &str) {
        if !self.advance(id, &HostEvent::Drain).is_some_and(|before| before.state() == HostState::Ready) {
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
    pub(super) fn drain_agent(&mut self, worker: &WorkerName) {
        let Some(live) = self.workers.get_mut(worker).and_then(|w| w.session.as_mut()) else { return };
        let drain = live.drain.unwrap_or(0) + 1;
        live.drain = Some(drain);
        let session = live.session.id.clone();
        self.send_drain(worker, session, drain);
        self.touch_worker(worker);
    }

    /// Terminates the host, now and again until it is gone.
    pub(super) fn terminate_host(&mut self, now: Timestamp, id: &HostId, why: &str) {
        if !self.advance(id, &HostEvent::Terminate).is_some_and(|before| before.state() != HostState::Terminating) {
            return;
        }
        let Some(live) = self.hosts.get_mut(id) else { return };
        live.host.why.get_or_insert_with(|| why.to_owned());
        let worker = live.host.worker.clone();
        for timer in [
            Timer::Idle(id.clone()),
            Timer::Boot(id.clone()),
            Timer::CallAgain(id.clone()),
            Timer::Suspension(id.clone()),
        ] {
            self.timers.clear(&timer);
        }
        self.queue.release(id);
        self.pending.wake = true;
        self.touch_host(id);
        self.touch_worker(&worker);
        // A start under way could make the machine after it was found to be gone; its answer comes back here.
        self.call_again(now, id);
    }

    pub(super) fn on_terminate_ended(&mut self, now: Timestamp, id: &HostId, result: Result<Termination, String>) {
        let Some(live) = self.hosts.get(id) else { return };
        // Asked again until an earlier start can make nothing any more.
        let gone = result == Ok(Termination::Gone) && !live.may_still_be_made(now);
        let event = HostEvent::TerminateEnded { gone };
        let Some(before) = self.advance(id, &event) else { return };
        self.host_went(now, id, &before, "");
        match result {
            Err(why) if matches!(before, Phase::Terminating { call: false, .. }) => {
                self.note(Level::Warn, format!("host {id} could not be terminated: {why}; trying again"));
            }
            Ok(Termination::Gone | Termination::Requested) | Err(_) => {}
        }
    }

    /// The provider has proof that the machine is gone.
    pub(super) fn on_host_gone(&mut self, now: Timestamp, id: &HostId, why: &str) {
        let Some(before) = self.advance(id, &HostEvent::Gone) else { return };
        if before.state().is_starting() {
            self.host_given_up(now, id, &format!("it ended before its agent attached: {why}"));
        } else {
            self.host_went(now, id, &before, why);
        }
    }

    /// Proof that nothing of the host runs, if its last step was to the end of its life: its session is over, and what ran on
    /// it may be tried elsewhere at once.
    pub(super) fn host_went(&mut self, now: Timestamp, id: &HostId, before: &Phase, why: &str) {
        let Some(live) = self.hosts.get_mut(id) else { return };
        if *before == Phase::Terminated || live.phase != Phase::Terminated {
            return;
        }
        live.host.terminated = Some(now);
        if matches!(before, Phase::Terminating { console: true, .. }) {
            // It went while what it printed was waited for: a failed start all the same.
            let given = live.host.why.clone().unwrap_or_default();
            self.host_failed(now, id, &given, self.fault_of_silence(now, id), None);
        }
        let expected = before.state() == HostState::Terminating;
        self.settle(now, id);
        let Some(live) = self.hosts.get_mut(id) else { return };
        if !why.is_empty() {
            live.host.why.get_or_insert_with(|| why.to_owned());
        }
        let worker = live.host.worker.clone();
        let reason = live.host.why.clone().unwrap_or_default();
        for timer in [
            Timer::Idle(id.clone()),
            Timer::Boot(id.clone()),
            Timer::CallAgain(id.clone()),
            Timer::Suspension(id.clone()),
            Timer::Console(id.clone()),
            Timer::Reclaim(id.clone()),
        ] {
            self.timers.clear(&timer);
        }
        self.queue.release(id);
        self.pending.wake = true;
        if !expected {
            self.note(Level::Warn, format!("host {id} of {worker} is gone: {reason}"));
        }
        if let Some(w) = self.workers.get_mut(&worker).filter(|w| w.host.as_ref() == Some(id)) {
            w.host = None;
        }
        self.end_with_host(now, id, &worker, &format!("its host {id} is gone ({reason})"));
        self.touch_host(id);
        self.touch_worker(&worker);
    }

    /// Hosts of a template that are ready or being started, without work and without a build that waits for them.
    pub(super) fn idle_of(&self, template: &str) -> u32 {
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

    pub(super) fn save_worker(&mut self, name: &WorkerName) {
        if let Some(w) = self.workers.get(name) {
            self.out.push(Effect::Save(Record::Worker(name.clone(), w.record.clone())));
        }
        self.touch_worker(name);
    }
}
