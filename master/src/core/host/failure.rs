//! Hosts that never attach: the master fetches their console output and counts the failed start.

use super::phase::{HostEvent, Phase};
use crate::core::build::FailedHost;
use crate::core::event::{Effect, Level};
use crate::core::places::{Cause, PlaceKey};
use crate::core::record::Host;
use crate::core::tally::FailureKind;
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

/// The cause of a failed start, which determines what pauses.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The image or the configuration: both pause, and the evidence is kept with the builds that waited for the host.
    Host,
    /// The same, and the provider did not create the machine.
    Rejected,
    /// The place, which pauses.
    Place,
    /// There is no capacity for any alternative; whether a quota is the reason.
    NoRoom { quota: bool },
    /// The cloud took the machine back before the agent attached: there is no capacity for this alternative.
    Reclaimed,
    /// Nobody's: the worker is tried again soon.
    Passing,
    /// An outage: the master or the broker was away.
    Outage,
}

impl Fault {
    /// As it is counted.
    fn kind(self) -> FailureKind {
        match self {
            Self::Host => FailureKind::Silent,
            Self::Rejected => FailureKind::Rejected,
            Self::Place => FailureKind::Place,
            Self::NoRoom { quota: false } => FailureKind::Capacity,
            Self::NoRoom { quota: true } => FailureKind::Quota,
            Self::Reclaimed => FailureKind::Reclaimed,
            Self::Passing => FailureKind::Transient,
            Self::Outage => FailureKind::Outage,
        }
    }
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

    /// A call to start or resume the host was answered, and the host is being terminated: what it printed is fetched,
    /// if it was given up meanwhile, otherwise it is terminated now.
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

    /// The console output of a host that was given up has not arrived in time. That does not mean that there was none.
    pub(in crate::core) fn on_console_late(&mut self, now: Timestamp, id: &HostId) {
        let text = format!("(the console output was not received within {} s)", CONSOLE_PATIENCE.as_secs());
        self.on_console(now, id, Some(text));
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

    /// A start has failed: whose fault it is waits, and the builds that waited for the host wait for another.
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
        builds.iter().for_each(|build| self.touch_build(*build));
        self.pending.wake = true;
        let template = self.plan_of(&host.worker).map(|plan| plan.template.clone()).unwrap_or_default();
        self.tally.start_failed(&PlaceKey::of_host(&host), &template, fault.kind());
        let rejected = match fault {
            // Nobody is to blame, and nothing is to be learned from it.
            Fault::Outage => return,
            Fault::Place => return self.place_failed(now, &PlaceKey::of_host(&host), why, Cause::Start),
            Fault::NoRoom { quota } => return self.no_room_at_all(now, &host, why, quota),
            Fault::Reclaimed => return self.no_room(now, &host, false),
            Fault::Passing => false,
            Fault::Host | Fault::Rejected => {
                let worker = host.worker.clone();
                let failed = FailedHost { host: id.clone(), worker, at: now, why: why.to_owned(), console };
                self.keep_failed_host(builds, &failed);
                let jitter = self.jitter();
                self.image_failed(now, &host, why, jitter);
                fault == Fault::Rejected
            }
        };
        let jitter = self.jitter();
        let limit = self.plan.mail_after_failed_starts;
        if let Some(w) = self.workers.get_mut(&host.worker) {
            let pause = doubled(BACKOFF_FIRST, BACKOFF_MOST, w.record.failures).mul_f64(jitter).min(BACKOFF_MOST);
            w.record.failures += 1;
            w.record.rejected = rejected;
            w.record.backoff_until = Some(now + pause);
            w.record.last_failure = Some(why.to_owned());
            self.timers.set(Timer::Backoff(host.worker.clone()), now + pause);
            if fault != Fault::Passing {
                w.record.faults += 1;
                if w.record.faults >= limit {
                    let text = format!("{limit} of its hosts in a row did not start; the last failure: {why}");
                    self.worker_is_missing(now, &host.worker, &text);
                }
            }
        }
        self.save_worker(&host.worker);
        if rejected {
            self.review_rejections(now, &host, why);
        }
    }

    /// If every worker of a place is refused, the place is the cause, whatever the refusal says.
    fn review_rejections(&mut self, now: Timestamp, host: &Host, why: &str) {
        let place = PlaceKey::of_host(host);
        let there: Vec<bool> = self
            .workers
            .iter()
            .filter(|(name, worker)| !worker.removed && self.place_of(name).as_ref() == Some(&place))
            .map(|(_, worker)| worker.record.rejected)
            .collect();
        if there.len() > 1 && there.iter().all(|rejected| *rejected) {
            let text = format!("each of its {} workers is refused a host; the last one: {why}", there.len());
            self.place_failed(now, &place, &text, Cause::AllRejected);
        }
    }

    /// What has caused an agent not to attach.
    pub(super) fn fault_of_silence(&self, now: Timestamp, id: &HostId) -> Fault {
        match self.hosts.get(id) {
            Some(live) if live.reclaimed => Fault::Reclaimed,
            Some(live) if self.is_excused(now, &live.host) => Fault::Outage,
            Some(_) | None => Fault::Host,
        }
    }

    fn is_waiting(&self, build: BuildId) -> bool {
        self.builds.get(&build).is_some_and(super::super::build::Build::is_queued)
    }
}
