//! The life of a host, with one file for each phase or two. [`phase`] contains all phases and the transition function.
//! No host is left running: termination is repeated until the provider reports that the machine is gone, and
//! [`super::audit`] finds machines that are not in the ledger.

mod attach;
mod drain;
mod failure;
mod forget;
mod impostor;
mod launch;
pub(super) mod linger;
pub(super) mod phase;
#[cfg(test)]
mod phase_tests;
mod reclaim;
mod recover;
mod suspend;
mod terminate;

use super::event::{Effect, Level};
use super::record::{Host, HostState};
use super::timers::Timer;
use super::{Core, Timestamp};
use phase::{HostEvent, Phase};
use rouse_shared::HostId;
use std::time::Duration;

pub(super) use failure::{BACKOFF_FIRST, BACKOFF_MOST, doubled, longest_pause};

/// First pause before a start with an unknown result or a failed termination is repeated. Doubled up to a minute.
const REPEAT_FIRST: Duration = Duration::from_secs(2);
/// Longest pause before a call is repeated.
const REPEAT_MOST: Duration = Duration::from_secs(60);

/// A host that is not gone, with what need not survive a restart.
pub(super) struct LiveHost {
    /// Its row in the ledger. The row's state follows from the phase; only [`Core::advance`] changes either.
    pub host: Host,
    /// Its phase.
    pub phase: Phase,
    /// Until this time an earlier call may still create, resume or suspend the machine, whatever the phase: a call
    /// whose result is unknown, or one of a previous master. Until then the machine's present state proves nothing.
    pub earlier_call_until: Option<Timestamp>,
    /// Number of lists in a row that lacked it while its agent was silent.
    pub missing_from_lists: u32,
    /// Whether the cloud took the machine back for lack of capacity.
    pub reclaimed: bool,
    /// Why the last call to terminate it failed, if it did.
    pub not_terminated: Option<String>,
    /// Why this worker's host was started rather than another's, for people.
    pub chosen: Option<String>,
    /// The state that was published last.
    pub published: Option<HostState>,
}

/// The pause before a call is repeated that has been made this many times.
pub(super) fn repeat_pause(tries: u32) -> Duration {
    doubled(REPEAT_FIRST, REPEAT_MOST, tries.min(8))
}

impl LiveHost {
    /// Whether an earlier call may still change the machine.
    pub fn earlier_call_may_act(&self, now: Timestamp) -> bool {
        self.earlier_call_until.is_some_and(|until| until > now)
    }

    /// Whether an earlier call may still create the machine, because no answer has named it yet.
    pub fn may_still_be_made(&self, now: Timestamp) -> bool {
        self.host.handle.is_none() && self.earlier_call_may_act(now)
    }
}

impl Core {
    /// Leads a host to its next phase and returns the previous one. Returns none if there is no such host or the event
    /// is illegal. An illegal event is logged and counted, and changes nothing.
    pub(super) fn advance(&mut self, id: &HostId, event: &HostEvent) -> Option<Phase> {
        let live = self.hosts.get_mut(id)?;
        match phase::next(&live.phase, event) {
            Ok(next) => {
                live.host.state = next.state();
                Some(std::mem::replace(&mut live.phase, next))
            }
            Err(phase::IllegalEvent) => {
                self.illegal_events += 1;
                let text = format!(
                    "host {id} is {:?}: the event {:?} is illegal there and is ignored",
                    live.phase,
                    event.name()
                );
                self.note(Level::Warn, text);
                None
            }
        }
    }

    /// Makes the call of the host's phase, for the first time or again.
    pub(super) fn call(&mut self, now: Timestamp, id: &HostId) {
        if self.advance(id, &HostEvent::Called).is_none() {
            return;
        }
        self.watch_termination(now, id);
        let Some(live) = self.hosts.get(id) else { return };
        let host = Box::new(live.host.clone());
        self.out.push(match live.phase {
            Phase::Launching { .. } => Effect::StartHost(host),
            Phase::Resuming { .. } => Effect::ResumeHost(host),
            Phase::Suspending { .. } => Effect::SuspendHost(host),
            Phase::Terminating { tries, .. } => {
                self.timers.set(Timer::CallAgain(id.clone()), now + repeat_pause(tries));
                Effect::TerminateHost(host)
            }
            Phase::Preparing { .. }
            | Phase::Booting { .. }
            | Phase::Ready { .. }
            | Phase::Draining { .. }
            | Phase::Suspended
            | Phase::Terminated => return,
        });
    }

    /// The pause before a call is repeated has ended. The call may have been answered in the meantime, or may have to
    /// wait for another one.
    pub(super) fn call_again(&mut self, now: Timestamp, id: &HostId) {
        match self.hosts.get(id).map(|live| &live.phase) {
            Some(
                Phase::Launching { call: false, .. }
                | Phase::Resuming { call: false, .. }
                | Phase::Suspending { call: false, .. }
                | Phase::Terminating { call: false, console: false, .. },
            ) => self.call(now, id),
            Some(
                Phase::Launching { call: true, .. }
                | Phase::Resuming { call: true, .. }
                | Phase::Suspending { call: true, .. }
                | Phase::Terminating { .. }
                | Phase::Preparing { .. }
                | Phase::Booting { .. }
                | Phase::Ready { .. }
                | Phase::Draining { .. }
                | Phase::Suspended
                | Phase::Terminated,
            )
            | None => {}
        }
    }

    /// Number of events so far that were illegal in the phase of their host. Each of them is a bug in rouse.
    pub fn illegal_events(&self) -> u64 {
        self.illegal_events
    }
}
