//! The broker accepts nothing for a while, because it has too little memory or disk space. Nothing that the master or
//! an agent sends arrives, so for most purposes the master treats the broker as down. But agents continue their builds
//! for as long as the master has promised: see [`Core::held_by_broker`].

use super::event::{Effect, Level};
use super::mail::What;
use super::record::Record;
use super::timers::Timer;
use super::{Core, Timestamp};
use rouse_shared::WorkerName;
use rouse_shared::limits::{BLOCKED_DETECTION, KILL_MARGIN};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::time::Duration;

/// How many minutes longer than its lease an agent may run builds in an alarm: enough for somebody to make room.
pub const BLOCKED_MINUTES: u64 = 20;
const BLOCKED_LEASE: Duration = Duration::from_secs(60 * BLOCKED_MINUTES);
/// With a shorter lease an agent is promised nothing: it knows too late that the broker is still there.
const SHORTEST: Duration = Duration::from_secs(BLOCKED_DETECTION.as_secs() + 10);
/// An alarm that comes back within this time is the same one.
const CALM: Duration = Duration::from_secs(60);
/// So long after an alarm the broker may still bring what agents said in it, or before, that are gone by now.
const FLUSH: Duration = Duration::from_secs(5);
/// Interval between two checks of a lease that is held.
const LOOK: Duration = Duration::from_secs(5);

/// What the agent of a session may have been promised. It is never taken back, because the message that does so may be
/// lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BlockedLease {
    /// The longest lease that it was promised with, ms.
    pub lease_ms: u64,
    /// How much longer it may run builds, ms.
    pub more_ms: u64,
}

impl Core {
    pub(super) fn on_broker_blocked(&mut self, now: Timestamp, why: String) {
        if self.alarm.replace(why.clone()).is_some() {
            return;
        }
        self.timers.clear(&Timer::AlarmOver);
        let text = format!("the broker accepts no messages ({why}): running builds continue, and nothing is started");
        self.note(Level::Warn, text);
        self.on_broker_changed(now);
        if self.alarm_told.is_none() {
            self.alarm_told = Some(now);
            self.out.push(Effect::Save(Record::AlarmTold(Some(now))));
            self.report(now, self.alarm_recipients(), What::BrokerBlocked { why });
        }
    }

    pub(super) fn on_broker_unblocked(&mut self, now: Timestamp) {
        if self.alarm.take().is_none() {
            return;
        }
        self.alarm_ended = Some(now);
        self.note(Level::Info, "the broker accepts messages again");
        self.timers.set(Timer::AlarmOver, now + CALM);
        self.on_broker_changed(now);
    }

    /// The alarm has not come back: the recipients of the mail about it get one that it is over.
    pub(super) fn on_alarm_over(&mut self, now: Timestamp) {
        if !self.broker_up {
            // Nobody knows whether it is.
            return self.timers.set(Timer::AlarmOver, now + CALM);
        }
        if let Some(since) = self.alarm_told.take() {
            self.out.push(Effect::Save(Record::AlarmTold(None)));
            self.report(now, self.alarm_recipients(), What::BrokerUnblocked { since });
        }
    }

    /// Continues an alarm that was reported to people before the master was started.
    pub(super) fn restore_alarm(&mut self, now: Timestamp, told: Option<Timestamp>) {
        self.alarm_told = told;
        if told.is_some() {
            self.timers.set(Timer::AlarmOver, now + CALM);
        }
    }

    /// Whether a hello may have waited in the broker for the end of an alarm, perhaps longer than its agent was there.
    /// An agent that is there says something within seconds, and gets no build before that.
    pub(super) fn hello_may_be_old(&self, now: Timestamp) -> bool {
        self.alarm.is_some() || self.alarm_ended.is_some_and(|at| now.since(at) < FLUSH)
    }

    /// The recipients of all mail; if there are none, those of mail about any worker.
    fn alarm_recipients(&self) -> BTreeSet<String> {
        let all = self.plan.mail.extra_recipients.clone();
        if !all.is_empty() {
            return all;
        }
        self.plan.workers.values().flat_map(|w| w.notify_on_missing.iter().cloned()).collect()
    }

    /// Why the broker accepts nothing, if it does not.
    pub fn alarm(&self) -> Option<&str> {
        self.alarm.as_deref()
    }

    /// Why no message gets through, in a few words.
    pub(super) fn broker_trouble(&self) -> Option<String> {
        match &self.alarm {
            Some(why) => Some(format!("the broker accepts no messages ({why})")),
            None => (!self.broker_up).then(|| "the master is not connected to the broker".to_owned()),
        }
    }

    /// What an agent that is welcomed with this lease may be promised.
    pub(super) fn blocked_lease(&self, lease_ms: Option<u64>) -> Option<BlockedLease> {
        let lease_ms = lease_ms.filter(|ms| self.outlives_alarms && Duration::from_millis(*ms) >= SHORTEST)?;
        Some(BlockedLease { lease_ms, more_ms: super::lease::millis(BLOCKED_LEASE) })
    }

    /// Until when a session may last whose lease is over: its agent may have been told that the broker accepts nothing,
    /// and continue its builds. It does so for less than one lease from the end of the alarm. While the master cannot
    /// tell whether there is one it waits, for as long as the agent may at most.
    pub(super) fn held_by_broker(&self, now: Timestamp, name: &WorkerName) -> Option<Timestamp> {
        let worker = self.workers.get(name)?;
        let promised = worker.session.as_ref()?.session.blocked_lease?;
        let (lease, more) = (Duration::from_millis(promised.lease_ms), Duration::from_millis(promised.more_ms));
        let most = worker.last_message.unwrap_or(self.started) + lease + more + KILL_MARGIN;
        let until = match self.broker_since {
            Some(since) => since + lease + KILL_MARGIN,
            None => now + LOOK,
        };
        Some(until.min(most)).filter(|until| *until > now)
    }
}

impl BlockedLease {
    /// What holds if both were promised.
    pub(super) fn or_longer(self, other: Option<Self>) -> Self {
        let Some(other) = other else { return self };
        Self { lease_ms: self.lease_ms.max(other.lease_ms), more_ms: self.more_ms.max(other.more_ms) }
    }
}
