//! Hello, welcome and the lease: whether builds may run, and until when.

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

/// Shortest and longest heartbeat interval that the agent accepts from a master.
const KEEPALIVE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(3_600));
/// The interval if the master gives 0.
const NO_KEEPALIVE: Duration = Duration::from_secs(60);
/// Number of unanswered heartbeats whose times are kept; an answer to an older one renews nothing.
const MAX_UNANSWERED: usize = 64;

/// The terms of the last welcome, and the state of the lease.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Session {
    id: SessionId,
    master: MasterId,
    pub(super) keepalive: Duration,
    pub(super) lease: Option<Duration>,
    patience: Option<Duration>,
    standing: bool,
    grace: Duration,
    /// End of the lease, by the newest message that was answered.
    lease_end: Option<Timestamp>,
    /// When that message was sent.
    pub(super) renewed_from: Timestamp,
    /// How much longer than its lease it may last while the broker accepts nothing.
    pub(super) blocked_lease: Option<Duration>,
    /// Until when it lasts for that reason, whatever its lease.
    pub(super) held_until: Option<Timestamp>,
    /// Number of the last heartbeat.
    seq: u64,
    /// Numbers and times of unanswered heartbeats, oldest first.
    unanswered: VecDeque<(u64, Timestamp)>,
    pub(super) next_heartbeat: Timestamp,
    /// Number of the requested drain.
    drain: Option<u64>,
    /// Whether the drain was answered since the last heartbeat.
    drained: bool,
    /// Whether the machine may be suspended once it is drained.
    may_be_suspended: bool,
}

impl Core {
    /// The session, if its master can be reached.
    pub(super) fn attached_session(&self) -> Option<SessionId> {
        match (&self.link, &self.session) {
            (Link::Attached { .. }, Some(session)) => Some(session.id.clone()),
            (Link::Attached { .. }, None)
            | (
                Link::Unstarted | Link::Waiting { .. } | Link::Connecting { .. } | Link::Greeting { .. } | Link::Stale,
                Some(_) | None,
            ) => None,
        }
    }

    /// Whether the worker is a standing one; `None` without a session.
    pub fn standing(&self) -> Option<bool> {
        self.session.as_ref().map(|session| session.standing)
    }

    /// Whether there is a session and its master can be reached.
    pub fn attached(&self) -> bool {
        self.attached_session().is_some()
    }

    pub(super) fn draining(&self) -> bool {
        self.session.as_ref().is_some_and(|s| s.drain.is_some())
    }

    /// Until when steps may run: the end of the lease or, without one, of the time that the link may be down.
    pub(super) fn deadline(&self) -> Option<Timestamp> {
        let session = self.session.as_ref()?;
        match session.lease {
            Some(_) => session.lease_end.max(session.held_until),
            None if self.attached() => None,
            None => session.patience.map(|patience| self.detached_since + patience),
        }
    }

    /// Whether the master may have suspended the machine since: nothing runs, and the master was told so.
    pub(super) fn may_have_been_suspended(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.may_be_suspended && session.drained)
    }

    /// Reports a changed deadline. After the end of the session the last one stays, which kills what is left.
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

    /// Without a lease the session and the link are kept for as long as the master may be down. But the master may have
    /// ended the session in a message that was lost, so it is asked with another hello.
    pub(super) fn ask_for_session(&mut self, now: Timestamp) {
        self.link = Link::Attached { answered: now };
        if !self.dying.is_empty() {
            // A hello that does not list these attempts would say that they do not run.
            return;
        }
        // With the best credential, so that the answer contains no new one, which would be ignored.
        self.credentials.used_secret = self.credentials.secret.is_some();
        self.say_hello();
    }

    /// Ends the session when its lease ends or, without one, when the link has been down for too long.
    pub(super) fn expire_session(&mut self, now: Timestamp) {
        let Some(over) = self.deadline().filter(|at| *at <= now) else { return };
        self.kill_running();
        self.forget_if_leaving();
        if let Some(session) = self.session.take() {
            self.log(Level::Error, format!("the lease of session {} has ended: its builds are killed", session.id));
            if self.settings.latent && !session.standing {
                if session.may_be_suspended && matches!(self.ending, Ending::No) {
                    // The machine was probably suspended, perhaps for days: a restart reads new boot data.
                    self.kill_and_end(
                        now,
                        FinalAction::Restart,
                        "the machine may have been suspended since it was drained".to_owned(),
                    );
                } else {
                    self.dead_man = Some(over.max(self.resumed_at) + session.grace);
                }
            }
            self.credentials.last = Some((session.id, session.seq));
        }
        self.credentials.prefer_secret = true;
        // The reports of running attempts on this connection are no longer true, so a new one sends hello. One that is
        // still being made has reported nothing.
        if matches!(self.link, Link::Greeting { .. } | Link::Attached { .. }) {
            if self.is_blocked() {
                self.link = Link::Stale;
                return;
            }
            self.drop_link();
            self.wait_to_reconnect(now, false);
        }
    }

    pub(super) fn on_message(&mut self, now: Timestamp, connection: u64, message: ToAgent) {
        if connection != self.connection {
            return;
        }
        match &self.link {
            Link::Greeting { .. } | Link::Attached { .. } => {}
            Link::Unstarted | Link::Waiting { .. } | Link::Connecting { .. } | Link::Stale => return,
        }
        let session = match &message {
            ToAgent::Welcome(_) | ToAgent::Refused { .. } => None,
            ToAgent::Renewed { session, .. }
            | ToAgent::Cancel { session, .. }
            | ToAgent::Settled { session, .. }
            | ToAgent::Resend { session, .. }
            | ToAgent::Drain { session, .. }
            | ToAgent::Undrain { session } => Some(session),
            ToAgent::RunAttempt(request) => Some(&request.session),
        };
        if let Some(session) = session
            && self.attached_session().as_ref() != Some(session)
        {
            let text = format!("ignoring a message for session {session}, which is not the current one");
            return self.log(Level::Warn, super::words::cut(text));
        }
        match message {
            ToAgent::Welcome(welcome) => self.welcome(now, *welcome),
            ToAgent::Refused { reason, power_off } => self.refused(now, &reason, power_off),
            ToAgent::Renewed { seq, lease_ms, .. } => self.renewed(now, seq, lease_ms),
            ToAgent::RunAttempt(request) => self.run_attempt(now, request),
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
        }
    }

    fn welcome(&mut self, now: Timestamp, welcome: Welcome) {
        let sent = match (&self.link, &self.session) {
            (Link::Greeting { sent }, _) => *sent,
            // A repeated answer to the same hello, since which the lease has been renewed.
            (Link::Attached { .. }, Some(session)) if session.id == welcome.session => return,
            (Link::Attached { .. }, _) => {
                self.drop_link();
                self.wait_to_reconnect(now, false);
                return self.log(Level::Warn, "the master has sent two sessions on one connection: reconnecting");
            }
            (Link::Unstarted | Link::Waiting { .. } | Link::Connecting { .. } | Link::Stale, _) => return,
        };
        let continued = self.session.take().filter(|s| s.id == welcome.session && s.master == welcome.master);
        if continued.is_none() {
            if self.attempts.values().any(Attempt::runs) {
                self.log(Level::Error, "the master has started a new session: the builds of the old one are killed");
            }
            self.kill_running();
        }
        if self.master.as_ref() != Some(&welcome.master) {
            // Another master has its own numbers of builds.
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
        let lease = welcome.lease_ms.map(Duration::from_millis);
        let before = continued.as_ref().filter(|_| is_late(now, sent, lease));
        let (promised, held_until) = before.map_or((None, None), |s| (s.lease_end, s.held_until));
        // The hello counts as heartbeat 0, by which a master that restarts before the first heartbeat extends the
        // lease.
        let mut unanswered = continued.map(|s| s.unanswered).unwrap_or_default();
        unanswered.retain(|(seq, _)| *seq != 0);
        unanswered.push_front((0, sent));
        let keepalive = match welcome.keepalive_ms {
            0 => NO_KEEPALIVE,
            ms => Duration::from_millis(ms).clamp(KEEPALIVE.0, KEEPALIVE.1),
        };
        self.log(Level::Info, format!("attached: session {} of master {}", welcome.session, welcome.master));
        self.session = Some(Session {
            id: welcome.session,
            master: welcome.master,
            keepalive,
            lease,
            patience: welcome.link_patience_ms.map(Duration::from_millis),
            standing: welcome.standing,
            grace: Duration::from_millis(welcome.grace_ms),
            lease_end: lease.and_then(|lease| promised.max(Some(sent + lease))),
            renewed_from: sent,
            blocked_lease: welcome.blocked_lease_ms.map(Duration::from_millis),
            held_until,
            seq,
            unanswered,
            // Counted from the hello: if its answer was late, a part of the lease is already over.
            next_heartbeat: (sent + keepalive).max(now),
            drain: None,
            drained: false,
            may_be_suspended: false,
        });
        self.link = Link::Attached { answered: now };
        self.failures = 0;
        self.failures_here = 0;
        self.unanswered_hellos = 0;
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
        // Only a refusal of the best credential is final.
        let final_word = self.credentials.used_best();
        let master_refusals = self.credentials.master_refusals;
        let change = self.credentials.refused();
        self.kept(change);
        self.unanswered_hellos = 0;
        self.drop_link();
        let pause = self.wait_after_refusal(now, master_refusals);
        let reason = super::words::cut(reason.to_owned());
        if power_off && self.settings.latent && final_word {
            self.log(Level::Error, format!("refused by the master: {reason}; powering off"));
            self.kill_and_end(now, FinalAction::PowerOff, format!("refused by the master: {reason}"));
        } else {
            let text = format!("refused by the master: {reason}; retrying in {} s", pause.as_secs());
            self.log(Level::Error, text);
        }
    }

    fn renewed(&mut self, now: Timestamp, seq: u64, lease_ms: Option<u64>) {
        let Some(session) = &mut self.session else { return };
        let Some(&(_, sent)) = session.unanswered.iter().find(|(s, _)| *s == seq) else { return };
        // The answered one stays: a master that is about to be restarted answers it again with a longer lease.
        session.unanswered.retain(|(s, _)| *s >= seq);
        if sent >= session.renewed_from {
            let lease = lease_ms.map(Duration::from_millis).or(session.lease);
            let end = session.lease.and(lease).map(|lease| sent + lease);
            // Of two answers the longer lease counts: the shorter one may only have been delivered later.
            let newer = sent > session.renewed_from && !is_late(now, sent, lease);
            session.lease_end = if newer { end } else { end.max(session.lease_end) };
            session.renewed_from = sent;
        }
        if let Link::Attached { answered } = &mut self.link {
            *answered = now;
        }
    }

    pub(super) fn heartbeat_if_due(&mut self, now: Timestamp) {
        // What a broker that accepts nothing is sent would arrive all at once, and too late.
        if !self.attached() || self.is_blocked() {
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
        let (session, seq) = (session.id.clone(), session.seq);
        let heartbeat = Heartbeat { session, seq, vitals: Vitals::default(), unclean: self.unclean.clone() };
        self.emit(Effect::Send(Box::new(ToMaster::Heartbeat(heartbeat))));
        self.send_notice();
        self.repeat_ends();
    }

    /// Answers a drain when nothing runs: once at that moment, and then with each heartbeat.
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

/// Whether an answer to what was sent then comes so late that it must not shorten the lease: the broker has kept one or
/// the other, perhaps for longer than the lease that it brings. What was promised before is still valid, since the master
/// waits for the longest promise.
fn is_late(now: Timestamp, sent: Timestamp, lease: Option<Duration>) -> bool {
    lease.is_some_and(|lease| now.since(sent) > lease / 2)
}
