//! The end of a host. The master repeats the termination until the provider reports that the machine is gone.

use super::phase::{HostEvent, Phase};
use crate::core::event::{Level, Termination};
use crate::core::record::HostState;
use crate::core::timers::Timer;
use crate::core::{Core, Timestamp};
use rouse_shared::HostId;

impl Core {
    /// Terminates the host, now and again until it is gone.
    pub(in crate::core) fn terminate_host(&mut self, now: Timestamp, id: &HostId, why: &str) {
        if self.advance(id, &HostEvent::Terminate).is_none_or(|before| before.state() == HostState::Terminating) {
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
        // A start that is under way could create the machine after it was found to be gone. Its answer leads back here.
        self.call_again(now, id);
    }

    pub(in crate::core) fn on_terminate_ended(
        &mut self,
        now: Timestamp,
        id: &HostId,
        result: Result<Termination, String>,
    ) {
        let Some(live) = self.hosts.get(id) else { return };
        // Repeated until an earlier start can create nothing any more.
        let gone = result == Ok(Termination::Gone) && !live.may_still_be_made(now);
        let event = HostEvent::TerminateEnded { gone };
        let Some(before) = self.advance(id, &event) else { return };
        let said = self
            .hosts
            .get_mut(id)
            .and_then(|live| std::mem::replace(&mut live.not_terminated, result.as_ref().err().cloned()));
        self.host_went(now, id, &before, "");
        match result {
            // Once for each reason: the call is repeated for as long as the machine is there.
            Err(why) if matches!(before, Phase::Terminating { call: false, .. }) && said.as_ref() != Some(&why) => {
                self.note(Level::Warn, format!("host {id} could not be terminated: {why}; retrying"));
            }
            Ok(Termination::Gone | Termination::Requested) | Err(_) => {}
        }
    }

    /// The provider has proof that the machine is gone.
    pub(in crate::core) fn on_host_gone(&mut self, now: Timestamp, id: &HostId, why: &str, reclaimed: bool) {
        if let Some(live) = self.hosts.get_mut(id) {
            live.reclaimed |= reclaimed;
        }
        let Some(before) = self.advance(id, &HostEvent::Gone) else { return };
        if before.state().is_starting() {
            self.host_given_up(now, id, &format!("it ended before its agent attached: {why}"));
        } else {
            self.host_went(now, id, &before, why);
        }
    }

    /// The host is gone. If this was its last transition, nothing of it runs: its session ends, and its builds may be
    /// retried elsewhere at once.
    pub(in crate::core) fn host_went(&mut self, now: Timestamp, id: &HostId, before: &Phase, why: &str) {
        let Some(live) = self.hosts.get_mut(id) else { return };
        if *before == Phase::Terminated || live.phase != Phase::Terminated {
            return;
        }
        live.host.terminated = Some(now);
        if matches!(before, Phase::Terminating { console: true, .. }) {
            // It ended while its console output was being fetched, which is a failed start too.
            let given = live.host.why.clone().unwrap_or_default();
            self.host_failed(now, id, &given, self.fault_of_silence(now, id), None);
        }
        let expected = before.state() == HostState::Terminating;
        self.settle(now, id);
        let Some(live) = self.hosts.get_mut(id) else { return };
        if !why.is_empty() {
            live.host.why.get_or_insert_with(|| why.to_owned());
        }
        let host = live.host.clone();
        let worker = live.host.worker.clone();
        let reason = live.host.why.clone().unwrap_or_default();
        for timer in [
            Timer::Idle(id.clone()),
            Timer::Boot(id.clone()),
            Timer::CallAgain(id.clone()),
            Timer::Suspension(id.clone()),
            Timer::Console(id.clone()),
            Timer::Forget(id.clone()),
            Timer::Reclaim(id.clone()),
        ] {
            self.timers.clear(&timer);
        }
        self.lingering_is_over(now, &host);
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
}
