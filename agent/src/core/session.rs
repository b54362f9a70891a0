//! The hello and the lease: who may go on, and until when.

use super::attempts::Attempt;
use super::credentials::Change;
use super::ending::FinalAction;
use super::link::Link;
use super::{Core, Effect, Ending, Level};
use rouse_shared::limits::PROTOCOL;
use rouse_shared::message::{Heartbeat, Hello, ToAgent, ToMaster, Vitals, Welcome};
use rouse_shared::{MasterId, SessionId, Timestamp, names};
use std::collections::VecDeque;
use std::time::Duration;

/// Bounds of the heartbeat interval, whatever a master says.
const KEEPALIVE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(3_600));
/// The interval where the master gives none.
const NO_KEEPALIVE: Duration = Duration::from_secs(60);
/// Unanswered heartbeats whose sending times are kept; an answer to an older one renews nothing.
const MAX_UNANSWERED: usize = 64;

/// What a welcome has given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Session {
    id: SessionId,
    master: MasterId,
    pub(super) keepalive: Duration,
    pub(super) lease: Option<Duration>,
    patience: Option<Duration>,
    standing: bool,
    grace: Duration,
    /// The end of the lease that the newest answered message has brought.
    lease_end: Option<Timestamp>,
    /// When that message was sent.
    renewed_from: Timestamp,
    /// Heartbeats so far.
    seq: u64,
    /// When the unanswered ones were sent, oldest first.
    unanswered: VecDeque<(u64, Timestamp)>,
    pub(super) next_heartbeat: Timestamp,
    /// The drain to answer.
    drain: Option<u64>,
    /// Whether it was answered since it was asked for.
    drained: bool,
    /// Whether the machine may be put to sleep once it is drained.
    may_be_suspended: bool,
}

impl Core {
    /// The session, where its master can be talked to.
    pub(super) fn attached_session(&self) -> Option<SessionId> {
        match (&self.link, &self.session) {
            (Link::Attached { .. }, Some(session)) => Some(session.id.clone()),
            (Link::Attached { .. }, None)
            | (
                Link::Unstarted | Link::Waiting { .. } | Link::Connecting { .. } | Link::Greeting { .. },
                Some(_) | None,
            ) => None,
        }
    }

    /// Whether the worker is a standing one, by the session that there is.
    pub fn standing(&self) -> Option<bool> {
        self.session.as_ref().map(|session| session.standing)
    }

    /// Whether the master is there: attached, with a session.
    pub fn attached(&self) -> bool {
        self.attached_session().is_some()
    }

    pub(super) fn draining(&self) -> bool {
        self.session.as_ref().is_some_and(|s| s.drain.is_some())
    }

    /// Until when steps may run: the end of the lease, or of the patience with a link that is down.
    pub(super) fn deadline(&self) -> Option<Timestamp> {
        let session = self.session.as_ref()?;
        match session.lease {
            Some(_) => session.lease_end,
            None if self.attached() => None,
            None => session.patience.map(|patience| self.detached_since + patience),
        }
    }

    /// Passes a moved deadline on. With the session over the last one stays: it kills what is left.
    pub(super) fn report_deadline(&mut self) {
        let deadline = self.deadline();
        if self.session.is_some() && deadline != self.reported_deadline {
            self.reported_deadline = deadline;
            self.emit(Effect::SetDeadline(deadline));
        }
    }

    pub(super) fn say_hello(&mut self) {
        self.said_hello = true;
        let hello = Hello {
            protocol: PROTOCOL,
            version: self.settings.version.clone(),
            connection: self.connection,
            queue: names::agent_queue(&self.settings.worker, &self.nonce, self.connection),
            identity: self.settings.identity.clone(),
            nonce: self.nonce.clone(),
            credential: self.credentials.shown(&self.settings.password),
            master: self.master.clone(),
            attempts: self.snapshots(),
            facts: self.settings.facts.clone(),
            leaving: self.leaving(),
            proof: self.settings.proof.clone(),
        };
        self.emit(Effect::Send(Box::new(ToMaster::Hello(Box::new(hello)))));
    }

    /// Without a lease the session and the link are kept, as long as the master may be away. But it may have ended the
    /// session, and what it said then was lost: it is asked, and an answer tells.
    pub(super) fn ask_for_session(&mut self, now: Timestamp) {
        self.link = Link::Attached { answered: now };
        if !self.dying.is_empty() {
            // A hello that does not list them says that nothing of them runs.
            return;
        }
        // The best credential, so that the answer gives no new one, which would not be looked at.
        self.credentials.used_secret = self.credentials.secret.is_some();
        self.say_hello();
    }

    /// Ends the session when its lease, or the patience with a link that is down, is over.
    pub(super) fn expire_session(&mut self, now: Timestamp) {
        let Some(over) = self.deadline().filter(|at| *at <= now) else { return };
        self.kill_running();
        self.forget_if_leaving();
        if let Some(session) = self.session.take() {
            self.log(Level::Error, format!("the lease of session {} is over: its builds are ended", session.id));
            if self.settings.latent && !session.standing {
                if session.may_be_suspended && matches!(self.ending, Ending::No) {
                    // The machine has slept, perhaps for days: who it is is told it anew, and so is its timer.
                    self.kill_and_end(
                        now,
                        FinalAction::Restart,
                        "the machine may have slept since it was drained".to_owned(),
                    );
                } else {
                    self.dead_man = Some(over.max(self.resumed_at) + session.grace);
                }
            }
            self.credentials.last = Some((session.id, session.seq));
        }
        self.credentials.prefer_secret = true;
        // What this connection has said of running attempts is no longer true, so a new one says hello. One that is
        // still being made has said nothing.
        if matches!(self.link, Link::Greeting { .. } | Link::Attached { .. }) {
            self.drop_link();
            self.wait_to_reconnect(now, false);
        }
    }

    pub(super) fn hear(&mut self, now: Timestamp, connection: u64, message: ToAgent) {
        if connection != self.connection {
            return;
        }
        match &self.link {
            Link::Greeting { .. } | Link::Attached { .. } => {}
            Link::Unstarted | Link::Waiting { .. } | Link::Connecting { .. } => return,
        }
        let session = match &message {
            ToAgent::Welcome(_) | ToAgent::Refused { .. } => None,
            ToAgent::Renewed { session, .. }
            | ToAgent::Cancel { session, .. }
            | ToAgent::Settled { session, .. }
            | ToAgent::Resend { session, .. }
            | ToAgent::Drain { session, .. }
            | ToAgent::Undrain { session }
            | ToAgent::Exit { session } => Some(session),
            ToAgent::RunAttempt(order) => Some(&order.session),
        };
        if let Some(session) = session
            && self.attached_session().as_ref() != Some(session)
        {
            let text = format!("ignoring a message for session {session}, which is not this agent's");
            return self.log(Level::Warn, super::words::cut(text));
        }
        match message {
            ToAgent::Welcome(welcome) => self.welcome(now, *welcome),
            ToAgent::Refused { reason, power_off } => self.refused(now, &reason, power_off),
            ToAgent::Renewed { seq, lease_ms, .. } => self.renewed(now, seq, lease_ms),
            ToAgent::RunAttempt(order) => self.order(now, order),
            ToAgent::Cancel { attempt, .. } => self.cancel(now, attempt),
            ToAgent::Settled { attempts, .. } => self.settled(&attempts),
            ToAgent::Resend { attempt, step, offset, .. } => self.resend(attempt, step, offset),
            ToAgent::Drain { drain, suspend, .. } => {
                if let Some(session) = &mut self.session {
                    session.may_be_suspended = suspend;
                    session.drain = Some(drain);
                    session.drained = false;
                }
            }
            ToAgent::Undrain { .. } => {
                if let Some(session) = &mut self.session {
                    session.may_be_suspended = false;
                    session.drain = None;
                }
            }
            ToAgent::Exit { .. } => {
                self.kill_and_end(now, FinalAction::Exit, "the master has ended this agent".to_owned());
            }
        }
    }

    fn welcome(&mut self, now: Timestamp, welcome: Welcome) {
        let sent = match (&self.link, &self.session) {
            (Link::Greeting { sent }, _) => *sent,
            // Twice: it answers the same hello, from which more has been renewed since.
            (Link::Attached { .. }, Some(session)) if session.id == welcome.session => return,
            (Link::Attached { .. }, _) => {
                self.drop_link();
                self.wait_to_reconnect(now, false);
                return self.log(Level::Warn, "the master has given two sessions to one connection: asking again");
            }
            (Link::Unstarted | Link::Waiting { .. } | Link::Connecting { .. }, _) => return,
        };
        let continued = self.session.take().filter(|s| s.id == welcome.session && s.master == welcome.master);
        if continued.is_none() {
            if self.attempts.values().any(Attempt::runs) {
                self.log(Level::Error, "the master has begun a new session: the builds of the old one are ended");
            }
            self.kill_running();
        }
        if self.master.as_ref() != Some(&welcome.master) {
            // Another master numbers its builds anew.
            self.forget_ended();
            self.remembered.clear();
            self.master = Some(welcome.master.clone());
        }
        let change = self.credentials.welcomed(welcome.secret);
        self.kept(change);
        let seq = match (&continued, &self.credentials.last) {
            (Some(session), _) => session.seq,
            (None, Some((id, seq))) if *id == welcome.session => *seq,
            (None, Some(_) | None) => 0,
        };
        // The hello counts as number 0: a master that ends before the first heartbeat extends the lease by that.
        let mut unanswered = continued.map(|s| s.unanswered).unwrap_or_default();
        unanswered.retain(|(seq, _)| *seq != 0);
        unanswered.push_front((0, sent));
        let keepalive = match welcome.keepalive_ms {
            0 => NO_KEEPALIVE,
            ms => Duration::from_millis(ms).clamp(KEEPALIVE.0, KEEPALIVE.1),
        };
        let lease = welcome.lease_ms.map(Duration::from_millis);
        self.log(Level::Info, format!("attached: session {} of master {}", welcome.session, welcome.master));
        self.session = Some(Session {
            id: welcome.session,
            master: welcome.master,
            keepalive,
            lease,
            patience: welcome.link_patience_ms.map(Duration::from_millis),
            standing: welcome.standing,
            grace: Duration::from_millis(welcome.grace_ms),
            lease_end: lease.map(|lease| sent + lease),
            renewed_from: sent,
            seq,
            unanswered,
            // The hello counts as one: where its answer came late, the lease is half over.
            next_heartbeat: (sent + keepalive).max(now),
            drain: None,
            drained: false,
            may_be_suspended: false,
        });
        self.link = Link::Attached { answered: now };
        self.failures = 0;
        self.failures_here = 0;
        self.credentials.master_refusals = 0;
        self.dead_man = None;
        self.to_be_suspended = false;
        self.send_leaving();
        self.send_notice();
        self.catch_up();
    }

    fn kept(&mut self, change: Change) {
        match change {
            Change::None => {}
            Change::New(secret) => self.emit(Effect::StoreSecret(secret)),
            Change::Forgotten => self.emit(Effect::ForgetSecret),
        }
    }

    fn refused(&mut self, now: Timestamp, reason: &str, power_off: bool) {
        self.to_be_suspended |= !power_off && self.settings.latent;
        // Only the best credential's refusal counts.
        let final_word = self.credentials.used_best();
        let master_refusals = self.credentials.master_refusals;
        let change = self.credentials.refused();
        self.kept(change);
        self.drop_link();
        let pause = self.wait_after_refusal(now, master_refusals);
        let reason = super::words::cut(reason.to_owned());
        if power_off && self.settings.latent && final_word {
            self.log(Level::Error, format!("refused by the master: {reason}; powering off"));
            self.kill_and_end(now, FinalAction::PowerOff, format!("refused by the master: {reason}"));
        } else {
            let text = format!("refused by the master: {reason}; trying again in {} s", pause.as_secs());
            self.log(Level::Error, text);
        }
    }

    fn renewed(&mut self, now: Timestamp, seq: u64, lease_ms: Option<u64>) {
        let Some(session) = &mut self.session else { return };
        let Some(&(_, sent)) = session.unanswered.iter().find(|(s, _)| *s == seq) else { return };
        // The one that is answered stays: a master that is about to be restarted answers it again, with a longer lease.
        session.unanswered.retain(|(s, _)| *s >= seq);
        if sent >= session.renewed_from {
            let lease = lease_ms.map(Duration::from_millis).or(session.lease);
            let end = session.lease.and(lease).map(|lease| sent + lease);
            // Answered twice, the longer lease holds: the shorter answer may just have been on its way for longer.
            session.lease_end = if sent > session.renewed_from { end } else { end.max(session.lease_end) };
            session.renewed_from = sent;
        }
        if let Link::Attached { answered } = &mut self.link {
            *answered = now;
        }
    }

    pub(super) fn heartbeat_if_due(&mut self, now: Timestamp) {
        if !self.attached() {
            return;
        }
        let Some(session) = &mut self.session else { return };
        if session.next_heartbeat > now {
            return;
        }
        session.seq += 1;
        session.next_heartbeat = now + session.keepalive;
        session.unanswered.push_back((session.seq, now));
        if session.unanswered.len() > MAX_UNANSWERED {
            session.unanswered.pop_front();
        }
        session.drained = false;
        let heartbeat = Heartbeat { session: session.id.clone(), seq: session.seq, vitals: Vitals::default() };
        self.emit(Effect::Send(Box::new(ToMaster::Heartbeat(heartbeat))));
        self.send_notice();
        self.repeat_ends();
    }

    /// Says that nothing runs, where that was asked and is so: once when it becomes so, then with each heartbeat.
    pub(super) fn answer_drain(&mut self) {
        let Some(id) = self.attached_session() else { return };
        let Some(session) = &mut self.session else { return };
        let Some(drain) = session.drain else { return };
        if self.attempts.is_empty() && self.dying.is_empty() && !session.drained {
            session.drained = true;
            self.emit(Effect::Send(Box::new(ToMaster::Drained { session: id, drain })));
        }
    }
}
