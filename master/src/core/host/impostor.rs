//! Fencing by host identity. Some providers name the host's machine only in the answer to a start, and a hello may
//! arrive before that. The agent that has attached as the host may then turn out to be on another machine, for example
//! on a copy of an image that contains the worker's password. Such an agent is an **impostor**. Its steps may run until
//! its lease expires, so the master keeps its session until then. The master sends it no builds, does not answer its
//! heartbeats, and ignores its messages.

use super::phase::HostEvent;
use crate::core::admission::WRONG_MACHINE;
use crate::core::event::{Effect, Level};
use crate::core::record::{HostState, Record};
use crate::core::sessions::{EndReason, LINK_PATIENCE};
use crate::core::timers::Timer;
use crate::core::{Core, Timestamp, Worker};
use rouse_shared::limits::KILL_MARGIN;
use rouse_shared::message::{ToAgent, ToMaster};
use rouse_shared::{HostId, WorkerName};
use std::time::Duration;

/// How long the right machine has to try again after an impostor's lease has ended. Agents wait at most a minute.
const ASKS_AGAIN: Duration = Duration::from_secs(90);

impl Worker {
    /// Whether the session is an impostor's.
    pub(in crate::core) fn is_impostor(&self) -> bool {
        self.session.as_ref().is_some_and(|live| live.session.impostor)
    }
}

impl Core {
    pub(in crate::core) fn is_impostor(&self, worker: &WorkerName) -> bool {
        self.workers.get(worker).is_some_and(Worker::is_impostor)
    }

    /// The provider has named the host's machine.
    pub(in crate::core) fn learn_identity(&mut self, now: Timestamp, id: &HostId, identity: Option<String>) {
        let (Some(live), Some(identity)) = (self.hosts.get_mut(id), identity) else { return };
        live.host.identity = Some(identity.clone());
        let name = live.host.worker.clone();
        self.touch_host(id);
        let session = self.session_of(&name).map(|live| &live.session);
        if session.is_some_and(|s| s.host.as_ref() == Some(id) && s.identity != identity && !s.impostor) {
            self.disown(now, id, &name, &identity);
        }
    }

    /// The session does not belong to the host. The master continues to wait for the host's agent.
    fn disown(&mut self, now: Timestamp, id: &HostId, name: &WorkerName, identity: &str) {
        let Some(worker) = self.workers.get(name) else { return };
        let patience = worker.plan.as_ref().map_or(Duration::ZERO, |p| p.missing_timeout);
        let of = worker.session.as_ref().map_or("", |live| live.session.identity.as_str());
        let text = format!(
            "an agent on {of:.100} attached as host {id} of {name}, but its provider reports that the host is {identity}: \
             this agent gets nothing more, and the master waits for the right one"
        );
        self.note(Level::Warn, text);
        self.expire_lease(now, name);
        self.refuse_impostor(now, name);
        match self.hosts.get(id).map(|live| live.host.state) {
            Some(HostState::Ready) => {
                self.advance(id, &HostEvent::Disowned);
                let Some(live) = self.hosts.get_mut(id) else { return };
                live.host.booted.get_or_insert(now);
                live.host.attached = None;
                live.host.nonce = None;
                live.host.token_spent = false;
                live.host.uses = 0;
                self.timers.clear(&Timer::Idle(id.clone()));
                self.timers.clear(&Timer::Reclaim(id.clone()));
                self.timers.set(Timer::Boot(id.clone()), now + patience);
            }
            Some(HostState::Draining) => self.terminate_host(now, id, "it was to be drained and has run nothing"),
            Some(HostState::Ordered | HostState::Booting | HostState::Terminating | HostState::Terminated) | None => {}
            // The machine has been known since before it was suspended.
            Some(HostState::Suspending | HostState::Suspended | HostState::Resuming) => {}
        }
        self.touch_host(id);
        self.touch_worker(name);
    }

    /// Lets a session end with its lease: it is no longer renewed.
    fn expire_lease(&mut self, now: Timestamp, name: &WorkerName) {
        let Some(live) = self.workers.get_mut(name).and_then(|w| w.session.as_mut()) else { return };
        live.session.impostor = true;
        live.attached = false;
        let session = live.session.clone();
        if session.lease_ms.is_none() {
            self.timers.set(Timer::Lease(name.clone()), now + LINK_PATIENCE + KILL_MARGIN);
        }
        self.out.push(Effect::Save(Record::Session(session)));
        self.touch_worker(name);
    }

    /// The host is gone. Ends its session if the agent is known to have been on that machine. If the machine was never
    /// confirmed to be the host, its steps may run until the lease ends.
    pub(in crate::core) fn end_with_host(&mut self, now: Timestamp, id: &HostId, name: &WorkerName, why: &str) {
        let known = self.hosts.get(id).is_some_and(|live| live.host.identity.is_some());
        match self.session_of(name).map(|live| live.session.impostor) {
            Some(true) => {}
            Some(false) if !known => self.expire_lease(now, name),
            Some(false) | None => self.end_session(now, name, why, EndReason::Gone),
        }
    }

    /// An impostor has sent something other than a hello. It may not have received the refusal.
    pub(in crate::core) fn on_impostor(&mut self, now: Timestamp, name: &WorkerName, message: &ToMaster) {
        if let ToMaster::Heartbeat(heartbeat) = message
            && self.session_id(name).as_ref() == Some(&heartbeat.session)
        {
            self.refuse_impostor(now, name);
        }
    }

    fn refuse_impostor(&mut self, now: Timestamp, name: &WorkerName) {
        let Some(live) = self.session_of(name) else { return };
        let (identity, queue) = (live.session.identity.clone(), live.session.queue.clone());
        self.keep_refusal(now, name, &identity, WRONG_MACHINE);
        let message = ToAgent::Refused { reason: WRONG_MACHINE.to_owned(), power_off: true };
        self.out.push(Effect::Send { queue, message });
    }

    /// The lease of an impostor has ended. As with a standing worker, its supervisors have ended its builds. If the
    /// host still exists, its own agent may attach now.
    pub(in crate::core) fn on_impostor_over(&mut self, now: Timestamp, name: &WorkerName) {
        let why = match self.workers.get(name).and_then(|w| w.host.as_ref()) {
            Some(_) => "its agent was on another machine than its host",
            None => "its host is gone, and the lease of its agent, which may have been on another machine, has expired",
        };
        self.end_session(now, name, why, EndReason::Gone);
        let host = self.workers.get(name).and_then(|w| w.host.clone());
        let Some(live) = host.and_then(|id| self.hosts.get(&id)) else { return };
        if matches!(live.host.state, HostState::Ordered | HostState::Booting) {
            self.timers.postpone(Timer::Boot(live.host.id.clone()), now + ASKS_AGAIN);
        }
    }
}
