//! Deadlines by name, so that each can be moved or dropped, and the earliest is known at once.

use super::event::RequestId;
use super::images::ImageKey;
use super::plan::ProviderKind;
use rouse_shared::{AttemptId, HostId, Timestamp, WorkerName};
use std::collections::{BTreeMap, BTreeSet};

/// What a deadline is for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Timer {
    /// The worker's session is over, unless a heartbeat comes.
    Lease(WorkerName),
    /// The broker's alarm is over, unless it comes back.
    AlarmOver,
    /// What the last master extended every lease by is over.
    Extension,
    /// The host has failed, unless its agent attaches.
    Boot(HostId),
    /// The host has been idle for its `build_wait_timeout`.
    Idle(HostId),
    /// Make the call of the host's phase again: to start, resume, suspend or terminate its machine.
    CallAgain(HostId),
    /// The host should be suspended by now, or has been for long enough.
    Suspension(HostId),
    /// Wait no longer for what the host printed.
    Console(HostId),
    /// The worker is missing, unless it attaches.
    Missing(WorkerName),
    /// The worker may start a host again.
    Backoff(WorkerName),
    /// Hosts of the image may be ordered again.
    Image(ImageKey),
    /// Ask again for the rest of the attempt's logs, or give them up.
    Logs(AttemptId),
    /// Compare what the provider lists with the ledger.
    Audit(ProviderKind),
    /// List again for an audit that a user has asked for.
    AuditRound(RequestId),
    /// Answer whoever asked for the audit, with what it has found so far.
    AuditOver(RequestId),
    /// A new day has begun, and more may be spent.
    Day,
    /// The cloud takes the host back now: what has not ended by itself goes elsewhere.
    Reclaim(HostId),
    /// Put the news that wait into mails.
    News,
    /// Hand the relay a mail that waits.
    Mail,
}

/// All deadlines that are set.
#[derive(Clone, Debug, Default)]
pub struct Timers {
    at: BTreeMap<Timer, Timestamp>,
    order: BTreeSet<(Timestamp, Timer)>,
}

impl Timers {
    /// Sets a deadline, or moves it.
    pub fn set(&mut self, timer: Timer, at: Timestamp) {
        if let Some(before) = self.at.insert(timer.clone(), at) {
            self.order.remove(&(before, timer.clone()));
        }
        self.order.insert((at, timer));
    }

    /// Sets a deadline where there is none.
    pub fn set_once(&mut self, timer: Timer, at: Timestamp) {
        if !self.at.contains_key(&timer) {
            self.set(timer, at);
        }
    }

    /// Sets a deadline, or moves it to later.
    pub fn postpone(&mut self, timer: Timer, at: Timestamp) {
        if self.at.get(&timer).is_none_or(|before| *before < at) {
            self.set(timer, at);
        }
    }

    /// Drops a deadline, where there is one.
    pub fn clear(&mut self, timer: &Timer) {
        if let Some(at) = self.at.remove(timer) {
            self.order.remove(&(at, timer.clone()));
        }
    }

    /// The earliest deadline.
    pub fn next(&self) -> Option<Timestamp> {
        self.order.first().map(|(at, _)| *at)
    }

    /// Takes the earliest deadline, where it has come.
    pub fn pop_due(&mut self, now: Timestamp) -> Option<Timer> {
        if self.next()? > now {
            return None;
        }
        let (_, timer) = self.order.pop_first()?;
        self.at.remove(&timer);
        Some(timer)
    }
}
