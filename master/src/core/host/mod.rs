//! One life of a host, a file a phase or two: [`phase`] holds all phases and the function that leads from one to the
//! next. Nothing is ever left running: terminating repeats until the provider reports that the machine is gone, and
//! [`super::audit`] finds what the ledger does not know.

mod attach;
mod drain;
mod failure;
mod impostor;
mod launch;
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

/// First pause before a start with an unknown result, or a termination that failed, is repeated; doubled up to a
/// minute.
const REPEAT_FIRST: Duration = Duration::from_secs(2);
/// Longest pause before a call is repeated.
const REPEAT_MOST: Duration = Duration::from_secs(60);

/// A host that is not gone, and what of it is not worth keeping across a restart.
pub(super) struct LiveHost {
    /// Its row. The state in it follows from the phase: only [`Core::advance`] sets either.
    pub host: Host,
    /// Where it is in its life.
    pub phase: Phase,
    /// Until then an earlier call for it, of an unknown result or of a dead master, may still make the machine, resume
    /// it or suspend it, whatever its phase is: how the machine is now proves nothing.
    pub earlier_call_until: Option<Timestamp>,
    /// Lists in a row that lacked it while its agent was silent.
    pub missing_from_lists: u32,
    /// The state that was published last.
    pub published: Option<HostState>,
}

/// The pause before a call that was made so many times is repeated.
pub(super) fn repeat_pause(tries: u32) -> Duration {
    doubled(REPEAT_FIRST, REPEAT_MOST, tries.min(8))
}

impl LiveHost {
    /// Whether an earlier call may still change the machine.
    pub fn earlier_call_may_act(&self, now: Timestamp) -> bool {
        self.earlier_call_until.is_some_and(|until| until > now)
    }

    /// Whether an earlier call may still make the machine, which no answer has named yet.
    pub fn may_still_be_made(&self, now: Timestamp) -> bool {
        self.host.handle.is_none() && self.earlier_call_may_act(now)
    }
}

impl Core {
    /// Leads a host to its next phase. Returns the phase before; none if there is no such host, or if the event is
    /// illegal, which is logged and counted, and changes nothing.
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

    /// The pause before a call is repeated is over. It may have been answered meanwhile, or must wait for another.
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

    /// Events so far that were illegal in the phase of their host: each is a mistake in this program.
    pub fn illegal_events(&self) -> u64 {
        self.illegal_events
    }
}
