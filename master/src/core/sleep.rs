//! Hosts that sleep: one that is idle is suspended instead of ended, and woken instead of another being bought.
//! `Draining -> Suspending -> Stopped -> Waking -> Booting`; each step is committed before its provider hears of it.
//!
//! Whatever is not as it should be ends the host: nothing that sleeps is worth more than what is built on it.

use super::audit::ORPHAN_AGE;
use super::event::{Effect, Level, ListedHost, Slept, StartError};
use super::hosts::repeat_pause;
use super::record::{HostState, Wish};
use super::sessions::Fate;
use super::timers::Timer;
use super::{Core, LiveHost, Timestamp};
use rouse_shared::message::ToAgent;
use rouse_shared::{BuildId, HostId, SessionId, WorkerName};
use std::time::Duration;

/// How long falling asleep may take: hibernation writes all memory to a disk.
const FALLING_ASLEEP: Duration = Duration::from_secs(900);

impl Core {
    /// Tells an agent to take nothing new, and whether its machine may be put to sleep after that.
    pub(super) fn send_drain(&mut self, worker: &WorkerName, session: SessionId, drain: u64) {
        let sleep = self.latent_of(worker).is_some_and(|latent| latent.sleep.is_some());
        self.send(worker, ToAgent::Drain { session, drain, suspend: sleep });
    }

    /// Why the host is not to sleep, or not any longer; nothing where it may.
    fn why_not_sleep(&self, now: Timestamp, id: &HostId) -> Option<&'static str> {
        let live = self.hosts.get(id)?;
        let worker = self.workers.get(&live.host.worker)?;
        let Some(latent) = worker.plan.as_ref().filter(|_| !worker.removed).and_then(|p| p.latent.as_ref()) else {
            return Some("its worker is no longer in the configuration as a latent one");
        };
        let Some(sleep) = latent.sleep else { return Some("hosts of its worker do not sleep") };
        let taken_back = worker.session.as_ref().is_some_and(|l| l.notice.is_some());
        if live.host.fingerprint != latent.fingerprint {
            Some("it was started with an older configuration")
        } else if matches!(worker.record.wish, Wish::Drain | Wish::Stop) {
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

    /// Nothing runs on the host, and nothing will: it is put to sleep or ended.
    pub(super) fn host_drained(&mut self, now: Timestamp, id: &HostId) {
        if self.why_not_sleep(now, id).is_some() {
            return self.stop_host(now, id, "it was drained");
        }
        let Some(live) = self.hosts.get_mut(id) else { return };
        live.host.state = HostState::Suspending;
        // That it was idle is not why it will end.
        live.host.why = None;
        live.stop_tries = 0;
        let worker = live.host.worker.clone();
        self.timers.clear(&Timer::Reclaim(id.clone()));
        self.timers.set(Timer::Asleep(id.clone()), now + FALLING_ASLEEP);
        self.end_session(now, &worker, "its host is put to sleep", Fate::Gone);
        self.touch_host(id);
        self.suspend_again(id);
    }

    pub(super) fn suspend_again(&mut self, id: &HostId) {
        let idle = |l: &&mut LiveHost| l.host.state == HostState::Suspending && !l.suspending;
        let Some(live) = self.hosts.get_mut(id).filter(idle) else { return };
        // One at a time: a late one must not put it to sleep again once it is woken.
        live.suspending = true;
        live.stop_tries += 1;
        self.out.push(Effect::SleepHost(Box::new(live.host.clone())));
    }

    pub(super) fn on_sleep_ended(&mut self, now: Timestamp, id: &HostId, result: Result<Slept, String>) {
        let Some(live) = self.hosts.get_mut(id) else { return };
        live.suspending = false;
        if live.host.state != HostState::Suspending {
            return;
        }
        let (tries, doubt) = (live.stop_tries, live.doubt.is_some_and(|until| until > now));
        match result {
            Ok(Slept::Asleep) if !doubt => return self.host_asleep(now, id),
            Ok(Slept::Asleep | Slept::Requested) => {}
            Ok(Slept::Unable(why)) => {
                self.note(Level::Warn, format!("host {id} cannot be put to sleep, so it is ended: {why}"));
                return self.stop_host(now, id, &format!("it cannot be put to sleep: {why}"));
            }
            Err(why) => self.note(Level::Warn, format!("host {id} could not be put to sleep: {why}; trying again")),
        }
        self.timers.set(Timer::StopRetry(id.clone()), now + repeat_pause(tries));
    }

    fn host_asleep(&mut self, now: Timestamp, id: &HostId) {
        self.settle(now, id);
        let Some(live) = self.hosts.get_mut(id) else { return };
        live.host.state = HostState::Stopped;
        live.host.asleep = Some(now);
        live.host.paid = live.host.cost.unwrap_or_default();
        let worker = live.host.worker.clone();
        self.timers.clear(&Timer::StopRetry(id.clone()));
        self.pending.wake = true;
        self.touch_host(id);
        self.touch_worker(&worker);
        self.review_sleeper(now, id);
    }

    /// Whether the host still may sleep, by the configuration of now; else it is ended.
    pub(super) fn review_sleeper(&mut self, now: Timestamp, id: &HostId) {
        let Some(host) = self.hosts.get(id).map(|l| &l.host).filter(|h| h.state == HostState::Stopped) else { return };
        let (created, worker) = (host.created, host.worker.clone());
        if let Some(why) = self.why_not_sleep(now, id) {
            return self.stop_host(now, id, why);
        }
        if let Some(sleep) = self.latent_of(&worker).and_then(|latent| latent.sleep) {
            self.timers.set(Timer::Asleep(id.clone()), created + sleep.max_age);
        }
    }

    pub(super) fn review_sleepers(&mut self, now: Timestamp) {
        let all: Vec<_> = self.hosts.keys().cloned().collect();
        all.iter().for_each(|id| self.review_sleeper(now, id));
    }

    /// It should be asleep by now, or has slept for long enough.
    pub(super) fn on_asleep_over(&mut self, now: Timestamp, id: &HostId) {
        match self.hosts.get(id).map(|l| l.host.state) {
            Some(HostState::Suspending) => {
                self.stop_host(now, id, &format!("it did not fall asleep within {} s", FALLING_ASLEEP.as_secs()));
            }
            Some(HostState::Stopped) => self.review_sleeper(now, id),
            Some(
                HostState::Ordered
                | HostState::Waking
                | HostState::Booting
                | HostState::Awake
                | HostState::Draining
                | HostState::Stopping
                | HostState::Gone,
            )
            | None => {}
        }
    }

    /// The host of a worker that sleeps.
    pub(super) fn sleeper_of(&self, worker: &WorkerName) -> Option<HostId> {
        let id = self.workers.get(worker)?.host.as_ref()?;
        self.hosts.get(id).is_some_and(|l| l.host.state == HostState::Stopped).then(|| id.clone())
    }

    /// Wakes the host of a worker, with a new token: the one that it was started with is spent.
    pub(super) fn wake_host(&mut self, now: Timestamp, id: &HostId, woken_for: Option<BuildId>) {
        let token = self.random_hex(24);
        let Some(live) = self.hosts.get_mut(id) else { return };
        let host = &mut live.host;
        host.state = HostState::Waking;
        (host.woken, host.asleep) = (Some(now), None);
        (host.token, host.token_spent, host.nonce) = (token, false, None);
        (host.woken_for, host.why, host.console) = (woken_for, None, None);
        let worker = host.worker.clone();
        live.starting = true;
        (live.start_tries, live.stop_tries, live.trouble) = (0, 0, None);
        self.out.push(Effect::WakeHost(Box::new(live.host.clone())));
        self.timers.clear(&Timer::Asleep(id.clone()));
        let patience = self.plan_of(&worker).map_or(Duration::from_secs(1_200), |p| p.missing_timeout);
        self.timers.set(Timer::Boot(id.clone()), now + patience);
        self.touch_host(id);
        self.touch_worker(&worker);
    }

    pub(super) fn wake_again(&mut self, id: &HostId) {
        let idle = |l: &&mut LiveHost| l.host.state == HostState::Waking && !l.starting;
        if let Some(live) = self.hosts.get_mut(id).filter(idle) {
            live.starting = true;
            self.out.push(Effect::WakeHost(Box::new(live.host.clone())));
        }
    }

    pub(super) fn on_wake_ended(&mut self, now: Timestamp, id: &HostId, result: Result<(), StartError>) {
        let Some(live) = self.hosts.get_mut(id) else { return };
        live.starting = false;
        let (worker, state) = (live.host.worker.clone(), live.host.state);
        match (result, state) {
            (Ok(()), HostState::Waking) => live.host.state = HostState::Booting,
            // Where there is no room for it, or it cannot be woken, another may be bought.
            (Err(StartError::Capacity(why) | StartError::Rejected(why)), HostState::Waking) => {
                self.note(Level::Warn, format!("host {id} of {worker} cannot be woken, so it is ended: {why}"));
                self.stop_host(now, id, &format!("it cannot be woken: {why}"));
            }
            (Err(error), HostState::Waking) => {
                live.start_tries += 1;
                live.trouble = Some(error.text().to_owned());
                let pause = repeat_pause(live.start_tries);
                self.timers.set(Timer::StartRetry(id.clone()), now + pause);
                let text = format!("host {id} of {worker} could not be woken: {}; trying again", error.text());
                self.note(Level::Warn, text);
            }
            (_, HostState::Stopping) => self.stop_again(now, id),
            // Its agent was faster than its provider's answer.
            (_, HostState::Booting | HostState::Awake | HostState::Draining) => {}
            (_, HostState::Ordered | HostState::Suspending | HostState::Stopped | HostState::Gone) => {}
        }
        self.touch_host(id);
        self.touch_worker(&worker);
    }

    /// Whether a machine should sleep and runs: somebody has started it, or a call came late.
    pub(super) fn stirs(&self, listed: &ListedHost) -> bool {
        !listed.asleep && self.hosts.get(&listed.host).is_some_and(|live| live.host.state == HostState::Stopped)
    }

    /// Puts to sleep a host that should be asleep; does nothing to another.
    pub(super) fn put_to_sleep_again(&mut self, now: Timestamp, id: &HostId) {
        let sleeps = |live: &&mut LiveHost| live.host.state == HostState::Stopped;
        let Some(live) = self.hosts.get_mut(id).filter(sleeps) else { return };
        live.host.state = HostState::Suspending;
        (live.host.woken, live.host.asleep) = (Some(now), None);
        live.stop_tries = 0;
        // It cannot be woken for a build now, and no other may be bought while it is there.
        let worker = live.host.worker.clone();
        self.touch_worker(&worker);
        self.note(Level::Warn, format!("host {id} should be stopped and runs: putting it to sleep again"));
        self.timers.set(Timer::Asleep(id.clone()), now + FALLING_ASLEEP);
        self.touch_host(id);
        self.suspend_again(id);
    }

    /// Whether an agent that is refused now may be let in soon on the same machine: it was woken and does not know yet what
    /// its token is, or it is about to fall asleep. Its machine must not be switched off for that.
    pub(super) fn is_between_sleeps(&self, worker: &WorkerName) -> bool {
        let host = self.workers.get(worker).and_then(|w| w.host.as_ref()).and_then(|id| self.hosts.get(id));
        host.is_some_and(|live| match live.host.state {
            HostState::Suspending | HostState::Stopped | HostState::Waking => true,
            HostState::Booting => live.host.woken.is_some(),
            HostState::Ordered | HostState::Awake | HostState::Draining | HostState::Stopping | HostState::Gone => {
                false
            }
        })
    }

    /// After a restart of the master: what a call of the last one may still do is waited for.
    pub(super) fn restore_sleeper(&mut self, now: Timestamp, id: &HostId) {
        let Some(live) = self.hosts.get_mut(id) else { return };
        match live.host.state {
            HostState::Suspending => {
                live.doubt = Some(now + ORPHAN_AGE);
                self.timers.set(Timer::Asleep(id.clone()), now + FALLING_ASLEEP);
                self.suspend_again(id);
            }
            HostState::Stopped => self.review_sleeper(now, id),
            HostState::Waking => {
                live.doubt = Some(now + ORPHAN_AGE);
                self.wake_again(id);
            }
            HostState::Ordered
            | HostState::Booting
            | HostState::Awake
            | HostState::Draining
            | HostState::Stopping
            | HostState::Gone => {}
        }
    }
}
