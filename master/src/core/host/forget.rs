//! An operator gives up hosts and places that are gone for good, for example because an account is closed. If a machine
//! of such a host appears again, it is an orphan.

use super::phase::HostEvent;
use crate::core::audit::ORPHAN_AGE;
use crate::core::event::{Effect, Level, Reply, RequestId};
use crate::core::places::PlaceKey;
use crate::core::record::HostState;
use crate::core::sessions::LINK_PATIENCE;
use crate::core::timers::Timer;
use crate::core::{Core, Live, Timestamp, Worker};
use rouse_shared::HostId;
use rouse_shared::limits::KILL_MARGIN;
use std::time::Duration;

/// Why a host was given up.
const WHY: &str = "an operator has given it up";
/// Why a host is not given up yet.
const JUST_STARTED: &str = "the master has not heard from it since its own start; try again in a minute";

impl Core {
    /// Gives up a host. Its attempts go elsewhere once its agent, which nobody hears, has ended them.
    pub(in crate::core) fn on_forget_host(&mut self, now: Timestamp, request: RequestId, id: &HostId) {
        if self.hosts.get(id).is_none_or(|live| live.host.state == HostState::Terminated) {
            let reason = format!("there is no host {id}; `rouse hosts` lists them");
            return self.reply(request, Reply::NotFound(reason));
        }
        if self.is_attached(id) {
            let reason = format!("the agent of host {id} is attached; `rouse terminate {id}` ends the host");
            return self.reply(request, Reply::Refused { field: None, reason });
        }
        if self.may_be_attached(now, id) {
            let reason = format!("nobody knows yet whether the agent of host {id} is attached: {JUST_STARTED}");
            return self.reply(request, Reply::Refused { field: None, reason });
        }
        self.forget_host(now, id);
        self.reply(request, Reply::Done);
    }

    /// Gives up a place and all hosts there.
    pub(in crate::core) fn on_forget_place(&mut self, now: Timestamp, request: RequestId, id: &str) {
        let Some(key) = self.all_places().into_iter().find(|key| key.id() == id) else {
            let reason = format!("there is no place {id}; `rouse places` lists them");
            return self.reply(request, Reply::NotFound(reason));
        };
        let there = |live: &&super::LiveHost| PlaceKey::of_host(&live.host) == key;
        let hosts: Vec<HostId> = self.hosts.values().filter(there).map(|live| live.host.id.clone()).collect();
        if let Some(host) = hosts.iter().find(|host| self.is_attached(host)) {
            let reason = format!("the agent of host {host} in {key} is attached, so the place is not gone");
            return self.reply(request, Reply::Refused { field: None, reason });
        }
        if let Some(host) = hosts.iter().find(|host| self.may_be_attached(now, host)) {
            let reason =
                format!("nobody knows yet whether the agent of host {host} in {key} is attached: {JUST_STARTED}");
            return self.reply(request, Reply::Refused { field: None, reason });
        }
        for host in &hosts {
            self.forget_host(now, host);
        }
        self.forget_place(&key);
        self.note(Level::Warn, format!("{key} is given up by an operator, with {} hosts", hosts.len()));
        self.out.push(Effect::ForgetPlace { provider: key.provider, place: key.name.to_string() });
        self.reply(request, Reply::Done);
    }

    fn is_attached(&self, id: &HostId) -> bool {
        self.session_on(id).is_some_and(|(_, live)| live.attached)
    }

    /// Whether the host has a session from before the start of the master, and its agent has had no time to say
    /// something since. If there is no broker, the lease ends the session, or the patience of an agent without one.
    fn may_be_attached(&self, now: Timestamp, id: &HostId) -> bool {
        let Some((worker, _)) = self.session_on(id) else { return false };
        let heard = worker.last_message.is_some() || now.since(self.started) >= LINK_PATIENCE;
        let time = worker.keepalive().saturating_mul(2);
        !heard && self.broker_since.is_none_or(|since| now.since(since) < time)
    }

    /// The session of the agent on this host, and its worker.
    fn session_on(&self, id: &HostId) -> Option<(&Worker, &Live)> {
        let worker = self.hosts.get(id).and_then(|live| self.workers.get(&live.host.worker))?;
        let live = worker.session.as_ref().filter(|live| live.session.host.as_ref() == Some(id))?;
        Some((worker, live))
    }

    fn forget_host(&mut self, now: Timestamp, id: &HostId) {
        let Some(worker) = self.hosts.get(id).map(|live| live.host.worker.clone()) else { return };
        let attempts: Vec<_> = self.workers.get(&worker).into_iter().flat_map(|w| w.attempts.clone()).collect();
        let session = self.workers.get(&worker).and_then(|w| w.session.as_ref());
        let wait = match session.filter(|live| live.session.host.as_ref() == Some(id)) {
            // Nothing runs there, so nothing could run twice.
            _ if attempts.is_empty() => Duration::ZERO,
            live => {
                let plan = self.workers.get(&worker).and_then(|w| w.plan.as_ref());
                let lease = live.map_or_else(|| plan.and_then(|p| p.lease), Live::lease);
                let grace = plan.map_or(LINK_PATIENCE, |p| p.grace);
                lease.unwrap_or(LINK_PATIENCE).max(self.extended.unwrap_or_default()) + grace + KILL_MARGIN
            }
        };
        for attempt in attempts {
            self.excuse_attempt(attempt, id);
        }
        let Some(live) = self.hosts.get(id) else { return };
        // A call that is under way may still start a machine, which must not be out of the ledger before it is there.
        let wait =
            if live.phase.may_be_started() || live.earlier_call_may_act(now) { wait.max(ORPHAN_AGE) } else { wait };
        self.terminate_host(now, id, WHY);
        let Some(live) = self.hosts.get_mut(id) else { return };
        live.host.why = Some(WHY.to_owned());
        live.host.forgotten = Some(now + wait);
        self.note(Level::Warn, format!("host {id} of {worker} is given up by an operator: it may still cost money"));
        self.timers.set(Timer::Forget(id.clone()), now + wait);
        self.touch_host(id);
    }

    /// Whatever ran on a host that was given up has ended by now.
    pub(in crate::core) fn on_forget(&mut self, now: Timestamp, id: &HostId) {
        if let Some(before) = self.advance(id, &HostEvent::Forgotten) {
            self.host_went(now, id, &before, WHY);
        }
    }
}
