//! Suspended hosts: one that is idle is suspended instead of terminated, and resumed instead of another being bought.
//! `Draining -> Suspending -> Suspended -> Resuming -> Booting`; each step is committed before its provider hears of it.
//!
//! Whatever is not as it should be ends the host: nothing that is suspended is worth more than what is built on it.

use super::audit::ORPHAN_AGE;
use super::event::{Effect, Level, ListedHost, StartError, Suspension};
use super::hosts::repeat_pause;
use super::record::{DesiredState, HostState};
use super::sessions::EndReason;
use super::timers::Timer;
use super::{Core, LiveHost, Timestamp};
use rouse_shared::message::ToAgent;
use rouse_shared::{BuildId, HostId, SessionId, WorkerName};
use std::time::Duration;

/// How long suspending may take: hibernation writes all memory to a disk.
const SUSPEND_LIMIT: Duration = Duration::from_secs(900);

impl Core {
    /// Tells an agent to take nothing new, and whether its machine may be suspended after that.
    pub(super) fn send_drain(&mut self, worker: &WorkerName, session: SessionId, drain: u64) {
        let suspend = self.latent_of(worker).is_some_and(|latent| latent.suspend.is_some());
        self.send(worker, ToAgent::Drain { session, drain, suspend });
    }

    /// Why the host is not to be suspended, or not any longer; nothing where it may.
    fn why_not_suspend(&self, now: Timestamp, id: &HostId) -> Option<&'static str> {
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
        } else if taken_back {
            Some("its cloud takes it back")
        } else if live.host.handle.is_none() || live.starting || live.doubt.is_some_and(|until| until > now) {
            Some("a start of it may still be under way")
        } else {
            None
        }
    }

    /// Nothing runs on the host, and nothing will: it is suspended or ended.
    pub(super) fn host_drained(&mut self, now: Timestamp, id: &HostId) {
        if self.why_not_suspend(now, id).is_some() {
            return self.terminate_host(now, id, "it was drained");
        }
        let Some(live) = self.hosts.get_mut(id) else { return };
        live.host.state = HostState::Suspending;
        // That it was idle is not why it will end.
        live.host.why = None;
        live.terminate_tries = 0;
        let worker = live.host.worker.clone();
        self.timers.clear(&Timer::Reclaim(id.clone()));
        self.timers.set(Timer::Suspension(id.clone()), now + SUSPEND_LIMIT);
        self.end_session(now, &worker, "its host is suspended", EndReason::Gone);
        self.touch_host(id);
        self.suspend_again(id);
    }

    pub(super) fn suspend_again(&mut self, id: &HostId) {
        let idle = |l: &&mut LiveHost| l.host.state == HostState::Suspending && !l.suspending;
        let Some(live) = self.hosts.get_mut(id).filter(idle) else { return };
        // One at a time: a late one must not suspend it again once it is resumed.
        live.suspending = true;
        live.terminate_tries += 1;
        self.out.push(Effect::SuspendHost(Box::new(live.host.clone())));
    }

    pub(super) fn on_suspend_ended(&mut self, now: Timestamp, id: &HostId, result: Result<Suspension, String>) {
        let Some(live) = self.hosts.get_mut(id) else { return };
        live.suspending = false;
        if live.host.state != HostState::Suspending {
            return;
        }
        let (tries, doubt) = (live.terminate_tries, live.doubt.is_some_and(|until| until > now));
        match result {
            Ok(Suspension::Suspended) if !doubt => return self.host_suspended(now, id),
            Ok(Suspension::Suspended | Suspension::Requested) => {}
            Ok(Suspension::Unable(why)) => {
                self.note(Level::Warn, format!("host {id} cannot be suspended, so it is ended: {why}"));
                return self.terminate_host(now, id, &format!("it cannot be suspended: {why}"));
            }
            Err(why) => self.note(Level::Warn, format!("host {id} could not be suspended: {why}; trying again")),
        }
        self.timers.set(Timer::TerminateRetry(id.clone()), now + repeat_pause(tries));
    }

    fn host_suspended(&mut self, now: Timestamp, id: &HostId) {
        self.settle(now, id);
        let Some(live) = self.hosts.get_mut(id) else { return };
        live.host.state = HostState::Suspended;
        live.host.suspended = Some(now);
        live.host.paid = live.host.cost.unwrap_or_default();
        let worker = live.host.worker.clone();
        self.timers.clear(&Timer::TerminateRetry(id.clone()));
        self.pending.wake = true;
        self.touch_host(id);
        self.touch_worker(&worker);
        self.review_suspended(now, id);
    }

    /// Whether the host may still be suspended, by the configuration of now; else it is ended.
    pub(super) fn review_suspended(&mut self, now: Timestamp, id: &HostId) {
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

    pub(super) fn review_all_suspended(&mut self, now: Timestamp) {
        let all: Vec<_> = self.hosts.keys().cloned().collect();
        all.iter().for_each(|id| self.review_suspended(now, id));
    }

    /// It should be suspended by now, or has been for long enough.
    pub(super) fn on_suspension_over(&mut self, now: Timestamp, id: &HostId) {
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
    pub(super) fn suspended_host_of(&self, worker: &WorkerName) -> Option<HostId> {
        let id = self.workers.get(worker)?.host.as_ref()?;
        self.hosts.get(id).is_some_and(|l| l.host.state == HostState::Suspended).then(|| id.clone())
    }

    /// Resumes the host of a worker, with a new token: the one that it was started with is spent.
    pub(super) fn resume_host(&mut self, now: Timestamp, id: &HostId, started_for: Option<BuildId>) {
        let token = self.random_hex(24);
        let Some(live) = self.hosts.get_mut(id) else { return };
        let host = &mut live.host;
        host.state = HostState::Resuming;
        (host.resumed, host.suspended) = (Some(now), None);
        (host.token, host.token_spent, host.nonce) = (token, false, None);
        (host.started_for, host.why, host.console) = (started_for, None, None);
        let worker = host.worker.clone();
        live.starting = true;
        (live.start_tries, live.terminate_tries, live.trouble) = (0, 0, None);
        self.out.push(Effect::ResumeHost(Box::new(live.host.clone())));
        self.timers.clear(&Timer::Suspension(id.clone()));
        let patience = self.plan_of(&worker).map_or(Duration::from_secs(1_200), |p| p.missing_timeout);
        self.timers.set(Timer::Boot(id.clone()), now + patience);
        self.touch_host(id);
        self.touch_worker(&worker);
    }

    pub(super) fn resume_again(&mut self, id: &HostId) {
        let idle = |l: &&mut LiveHost| l.host.state == HostState::Resuming && !l.starting;
        if let Some(live) = self.hosts.get_mut(id).filter(idle) {
            live.starting = true;
            self.out.push(Effect::ResumeHost(Box::new(live.host.clone())));
        }
    }

    pub(super) fn on_resume_ended(&mut self, now: Timestamp, id: &HostId, result: Result<(), StartError>) {
        let Some(live) = self.hosts.get_mut(id) else { return };
        live.starting = false;
        let (worker, state) = (live.host.worker.clone(), live.host.state);
        match (result, state) {
            (Ok(()), HostState::Resuming) => live.host.state = HostState::Booting,
            // Where there is no room for it, or it cannot be resumed, another may be bought.
            (Err(StartError::Capacity(why) | StartError::Rejected(why)), HostState::Resuming) => {
                self.note(Level::Warn, format!("host {id} of {worker} cannot be resumed, so it is ended: {why}"));
                self.terminate_host(now, id, &format!("it cannot be resumed: {why}"));
            }
            (Err(error), HostState::Resuming) => {
                live.start_tries += 1;
                live.trouble = Some(error.text().to_owned());
                let pause = repeat_pause(live.start_tries);
                self.timers.set(Timer::StartRetry(id.clone()), now + pause);
                let text = format!("host {id} of {worker} could not be resumed: {}; trying again", error.text());
                self.note(Level::Warn, text);
            }
            (_, HostState::Terminating) => self.terminate_again(now, id),
            // Its agent was faster than its provider's answer.
            (_, HostState::Booting | HostState::Ready | HostState::Draining) => {}
            (_, HostState::Ordered | HostState::Suspending | HostState::Suspended | HostState::Terminated) => {}
        }
        self.touch_host(id);
        self.touch_worker(&worker);
    }

    /// Whether a machine should be suspended and runs: somebody has started it, or a call came late.
    pub(super) fn is_running_unexpectedly(&self, listed: &ListedHost) -> bool {
        !listed.suspended && self.hosts.get(&listed.host).is_some_and(|live| live.host.state == HostState::Suspended)
    }

    /// Suspends a host that should be suspended; does nothing to another.
    pub(super) fn suspend_anew(&mut self, now: Timestamp, id: &HostId) {
        let sleeps = |live: &&mut LiveHost| live.host.state == HostState::Suspended;
        let Some(live) = self.hosts.get_mut(id).filter(sleeps) else { return };
        live.host.state = HostState::Suspending;
        (live.host.resumed, live.host.suspended) = (Some(now), None);
        live.terminate_tries = 0;
        // It cannot be resumed for a build now, and no other may be bought while it is there.
        let worker = live.host.worker.clone();
        self.touch_worker(&worker);
        self.note(Level::Warn, format!("host {id} should be suspended and runs: suspending it again"));
        self.timers.set(Timer::Suspension(id.clone()), now + SUSPEND_LIMIT);
        self.touch_host(id);
        self.suspend_again(id);
    }

    /// Whether an agent that is refused now may be let in soon on the same machine: it was resumed and does not know yet what
    /// its token is, or it is about to be suspended. Its machine must not be switched off for that.
    pub(super) fn is_suspending_or_resuming(&self, worker: &WorkerName) -> bool {
        let host = self.workers.get(worker).and_then(|w| w.host.as_ref()).and_then(|id| self.hosts.get(id));
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

    /// After a restart of the master: what a call of the last one may still do is waited for.
    pub(super) fn restore_suspended(&mut self, now: Timestamp, id: &HostId) {
        let Some(live) = self.hosts.get_mut(id) else { return };
        match live.host.state {
            HostState::Suspending => {
                live.doubt = Some(now + ORPHAN_AGE);
                self.timers.set(Timer::Suspension(id.clone()), now + SUSPEND_LIMIT);
                self.suspend_again(id);
            }
            HostState::Suspended => self.review_suspended(now, id),
            HostState::Resuming => {
                live.doubt = Some(now + ORPHAN_AGE);
                self.resume_again(id);
            }
            HostState::Ordered
            | HostState::Booting
            | HostState::Ready
            | HostState::Draining
            | HostState::Terminating
            | HostState::Terminated => {}
        }
    }
}
