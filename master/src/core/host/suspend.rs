//! Suspended hosts. An idle host is suspended instead of terminated, and later resumed instead of ordering another one:
//! `Draining -> Suspending -> Suspended -> Resuming -> Booting`. Each step is committed before the provider is called.
//!
//! If anything is wrong with such a host, it is terminated.

use super::phase::{HostEvent, Phase};
use super::repeat_pause;
use crate::core::audit::ORPHAN_AGE;
use crate::core::event::{Level, ListedHost, StartError, Suspension};
use crate::core::places::{Cause, PlaceKey};
use crate::core::record::{DesiredState, HostState};
use crate::core::timers::Timer;
use crate::core::{Core, Timestamp};
use rouse_shared::{BuildId, HostId, WorkerName};
use std::time::Duration;

/// Longest time that suspending may take. Hibernation writes the whole memory to a disk.
pub(super) const SUSPEND_LIMIT: Duration = Duration::from_secs(900);

impl Core {
    /// Why the host may not be suspended, or not any longer; none if it may.
    pub(super) fn why_not_suspend(&self, now: Timestamp, id: &HostId) -> Option<&'static str> {
        let live = self.hosts.get(id)?;
        let worker = self.workers.get(&live.host.worker)?;
        let Some(latent) = worker.plan.as_ref().filter(|_| !worker.removed).and_then(|p| p.latent.as_ref()) else {
            return Some("its worker is no longer in the configuration as a latent one");
        };
        let Some(sleep) = latent.suspend else { return Some("hosts of its worker are not suspended") };
        let taken_back = worker.session.as_ref().is_some_and(|l| l.notice.is_some());
        if live.host.fingerprint != latent.fingerprint {
            Some("it was started with an older configuration")
        } else if worker.record.desired == DesiredState::Drain {
            Some("an operator asked for it")
        } else if latent.max_uses > 0 && live.host.uses >= latent.max_uses {
            Some("it has had its max_uses builds")
        } else if now >= live.host.created + sleep.max_age {
            Some("it has reached its max_age")
        } else if worker.session.as_ref().is_some_and(|live| live.unclean.is_some()) {
            Some("its machine is not clean")
        } else if taken_back {
            Some("its cloud takes it back")
        } else if live.host.handle.is_none() || live.phase.may_be_starting() || live.earlier_call_may_act(now) {
            Some("a start of it may still be under way")
        } else {
            None
        }
    }

    pub(in crate::core) fn on_suspend_ended(
        &mut self,
        now: Timestamp,
        id: &HostId,
        result: Result<Suspension, String>,
    ) {
        let Some(live) = self.hosts.get(id) else { return };
        let suspended = result == Ok(Suspension::Suspended) && !live.earlier_call_may_act(now);
        let before = self.advance(id, &HostEvent::SuspendEnded { suspended });
        let Some(Phase::Suspending { tries, .. }) = before else { return };
        match result {
            Ok(Suspension::Suspended) if suspended => return self.host_suspended(now, id),
            Ok(Suspension::Suspended | Suspension::Requested) => {}
            Ok(Suspension::Unable(why)) => {
                self.note(Level::Warn, format!("host {id} cannot be suspended, so it is terminated: {why}"));
                return self.terminate_host(now, id, &format!("it cannot be suspended: {why}"));
            }
            Err(why) => self.note(Level::Warn, format!("host {id} could not be suspended: {why}; retrying")),
        }
        self.timers.set(Timer::CallAgain(id.clone()), now + repeat_pause(tries));
    }

    fn host_suspended(&mut self, now: Timestamp, id: &HostId) {
        self.settle(now, id);
        let Some(live) = self.hosts.get_mut(id) else { return };
        live.host.suspended = Some(now);
        live.host.paid = live.host.cost.unwrap_or_default();
        let worker = live.host.worker.clone();
        self.timers.clear(&Timer::CallAgain(id.clone()));
        self.pending.wake = true;
        self.touch_host(id);
        self.touch_worker(&worker);
        self.review_suspended(now, id);
    }

    /// Terminates the suspended host if the present configuration does not allow it any more.
    pub(in crate::core) fn review_suspended(&mut self, now: Timestamp, id: &HostId) {
        let Some(host) = self.hosts.get(id).map(|l| &l.host).filter(|h| h.state == HostState::Suspended) else {
            return;
        };
        let (created, worker) = (host.created, host.worker.clone());
        if let Some(why) = self.why_not_suspend(now, id) {
            return self.terminate_host(now, id, why);
        }
        if let Some(sleep) = self.latent_of(&worker).and_then(|latent| latent.suspend) {
            self.timers.set(Timer::Suspension(id.clone()), created + sleep.max_age);
        }
    }

    pub(in crate::core) fn review_all_suspended(&mut self, now: Timestamp) {
        let all: Vec<_> = self.hosts.keys().cloned().collect();
        all.iter().for_each(|id| self.review_suspended(now, id));
    }

    /// The host has taken too long to suspend, or has been suspended for long enough.
    pub(in crate::core) fn on_suspension_over(&mut self, now: Timestamp, id: &HostId) {
        match self.hosts.get(id).map(|l| l.host.state) {
            Some(HostState::Suspending) => {
                self.terminate_host(now, id, &format!("it was not suspended within {} s", SUSPEND_LIMIT.as_secs()));
            }
            Some(HostState::Suspended) => self.review_suspended(now, id),
            Some(
                HostState::Ordered
                | HostState::Resuming
                | HostState::Booting
                | HostState::Ready
                | HostState::Draining
                | HostState::Terminating
                | HostState::Terminated,
            )
            | None => {}
        }
    }

    /// The suspended host of a worker.
    pub(in crate::core) fn suspended_host_of(&self, worker: &WorkerName) -> Option<HostId> {
        let id = self.workers.get(worker)?.host.as_ref()?;
        self.hosts.get(id).is_some_and(|l| l.host.state == HostState::Suspended).then(|| id.clone())
    }

    /// Resumes the worker's host with a new token. The token that it was started with has been used.
    pub(in crate::core) fn resume_host(&mut self, now: Timestamp, id: &HostId, started_for: Option<BuildId>) {
        let token = self.random_hex(24);
        if self.advance(id, &HostEvent::Resume).is_none() {
            return;
        }
        let Some(live) = self.hosts.get_mut(id) else { return };
        let host = &mut live.host;
        (host.resumed, host.suspended) = (Some(now), None);
        (host.token, host.token_spent, host.nonce) = (token, false, None);
        (host.started_for, host.why, host.console) = (started_for, None, None);
        let worker = host.worker.clone();
        self.call(now, id);
        self.timers.clear(&Timer::Suspension(id.clone()));
        self.timers.set(Timer::Boot(id.clone()), now + self.boot_patience(&worker));
        self.touch_host(id);
        self.touch_worker(&worker);
    }

    /// How long a host may take from the call that starts it until its agent attaches.
    pub(super) fn boot_patience(&self, worker: &WorkerName) -> Duration {
        self.plan_of(worker).map_or(Duration::from_secs(1_200), |plan| plan.missing_timeout)
    }

    pub(in crate::core) fn on_resume_ended(&mut self, now: Timestamp, id: &HostId, result: Result<(), StartError>) {
        let Some(live) = self.hosts.get_mut(id) else { return };
        let worker = live.host.worker.clone();
        if let Err(StartError::Unknown(_)) = result {
            live.earlier_call_until = Some(now + ORPHAN_AGE);
        }
        let event = match &result {
            Ok(()) => HostEvent::Resumed,
            Err(error) => HostEvent::ResumeFailed { why: error.text().to_owned() },
        };
        let Some(before) = self.advance(id, &event) else { return };
        let place = self.hosts.get(id).map(|live| PlaceKey::of_host(&live.host));
        match (&result, &place) {
            (Ok(()), Some(place)) => self.place_serves(now, place),
            (Err(StartError::Place(why) | StartError::Unknown(why)), Some(place)) => {
                self.place_failed(now, place, why, Cause::Start);
            }
            (Err(_), _) | (_, None) => {}
        }
        match (self.hosts.get(id).map(|live| &live.phase), result) {
            // Until now it could not boot: the place may have refused the call for longer than an agent needs to attach.
            (Some(Phase::Booting { .. }), Ok(())) => {
                if let Some(live) = self.hosts.get_mut(id) {
                    live.host.resumed = Some(now);
                }
                self.timers.set(Timer::Boot(id.clone()), now + self.boot_patience(&worker));
            }
            // If there is no room for it, or it cannot be resumed, another may be bought.
            (
                Some(Phase::Resuming { .. }),
                Err(StartError::Capacity(why) | StartError::Quota(why) | StartError::Rejected(why)),
            ) => {
                self.note(Level::Warn, format!("host {id} of {worker} cannot be resumed, so it is terminated: {why}"));
                self.terminate_host(now, id, &format!("it cannot be resumed: {why}"));
            }
            (Some(Phase::Resuming { tries, .. }), Err(error)) => {
                self.timers.set(Timer::CallAgain(id.clone()), now + repeat_pause(*tries));
                let text = format!("host {id} of {worker} could not be resumed: {}; retrying", error.text());
                self.note(Level::Warn, text);
            }
            (Some(Phase::Terminating { .. }), _) => self.terminate_after_call(now, id, &before),
            (Some(_) | None, _) => {}
        }
        self.touch_host(id);
        self.touch_worker(&worker);
    }

    /// Whether a machine runs that should be suspended: somebody has started it, or a call took effect late.
    pub(in crate::core) fn is_running_unexpectedly(&self, listed: &ListedHost) -> bool {
        !listed.suspended && self.hosts.get(&listed.host).is_some_and(|live| live.host.state == HostState::Suspended)
    }

    /// Suspends again a host that should be suspended. Does nothing to any other host.
    pub(in crate::core) fn suspend_anew(&mut self, now: Timestamp, id: &HostId) {
        if !self.hosts.get(id).is_some_and(|live| live.phase == Phase::Suspended)
            || self.advance(id, &HostEvent::Suspend).is_none()
        {
            return;
        }
        let Some(live) = self.hosts.get_mut(id) else { return };
        (live.host.resumed, live.host.suspended) = (Some(now), None);
        // It cannot be resumed for a build now, and no other may be ordered while it exists.
        let worker = live.host.worker.clone();
        self.touch_worker(&worker);
        self.note(Level::Warn, format!("host {id} should be suspended but is running: suspending it again"));
        self.timers.set(Timer::Suspension(id.clone()), now + SUSPEND_LIMIT);
        self.touch_host(id);
        self.call(now, id);
    }

    /// Whether an agent that is refused now may soon be accepted on the same machine: the machine was resumed and the
    /// agent does not know its new token yet, or the machine is about to be suspended. It must not power itself off
    /// then.
    pub(in crate::core) fn is_suspending_or_resuming(&self, worker: &WorkerName) -> bool {
        let host = self.workers.get(worker).and_then(|worker| self.host_of(worker));
        host.is_some_and(|live| match live.host.state {
            HostState::Suspending | HostState::Suspended | HostState::Resuming => true,
            HostState::Booting => live.host.resumed.is_some(),
            HostState::Ordered
            | HostState::Ready
            | HostState::Draining
            | HostState::Terminating
            | HostState::Terminated => false,
        })
    }
}
