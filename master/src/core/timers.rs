//! Deadlines with names. Each can be moved or removed.

use super::event::RequestId;
use super::images::ImageKey;
use super::places::PlaceKey;
use super::plan::ProviderKind;
use rouse_shared::{AttemptId, BuildId, HostId, Timestamp, WorkerName};
use std::collections::{BTreeMap, BTreeSet};

/// What a deadline is for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Timer {
    /// The worker's lease has ended.
    Lease(WorkerName),
    /// The broker's alarm is over, unless it comes back.
    AlarmOver,
    /// The lease extension that the previous master promised has ended.
    Extension,
    /// The host has not attached in time.
    Boot(HostId),
    /// The host has been idle for its `build_wait_timeout`.
    Idle(HostId),
    /// Make the call of the host's phase again: to start, resume, suspend or terminate its machine.
    CallAgain(HostId),
    /// The host has taken too long to suspend, or has been suspended for long enough.
    Suspension(HostId),
    /// Stop waiting for the host's console output.
    Console(HostId),
    /// The host should have been terminated by now.
    Lingering(HostId),
    /// Whatever ran on the host, which an operator has given up, has ended by now.
    Forget(HostId),
    /// The worker is missing.
    Missing(WorkerName),
    /// The worker may start a host again.
    Backoff(WorkerName),
    /// Hosts of the image may be ordered again.
    Image(ImageKey),
    /// Probe the place, which pauses.
    Place(PlaceKey),
    /// Say by mail that the place pauses.
    PlaceMail(PlaceKey),
    /// The build has waited for its `queue_timeout`.
    Queue(BuildId),
    /// Ask again for the rest of the attempt's logs, or give them up.
    Logs(AttemptId),
    /// Look for ended builds that are to be deleted.
    Retention,
    /// Compare what the provider lists with the ledger.
    Audit(ProviderKind),
    /// See whether the provider still lists orphans that were asked to end.
    Orphans(ProviderKind),
    /// List again for an audit that a user has asked for.
    AuditRound(RequestId),
    /// Answer an audit with what it has found so far.
    AuditOver(RequestId),
    /// A new day has begun, and more may be spent.
    Day,
    /// The cloud is about to take the host back, so it is terminated.
    Reclaim(HostId),
    /// Put the waiting news into mails.
    News,
    /// Send a waiting mail.
    Mail,
}

/// All deadlines.
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

    /// Sets a deadline if there is none.
    pub fn set_once(&mut self, timer: Timer, at: Timestamp) {
        if !self.at.contains_key(&timer) {
            self.set(timer, at);
        }
    }

    /// Sets a deadline, or moves it to a later time.
    pub fn postpone(&mut self, timer: Timer, at: Timestamp) {
        if self.at.get(&timer).is_none_or(|before| *before < at) {
            self.set(timer, at);
        }
    }

    /// Removes a deadline, if there is one.
    pub fn clear(&mut self, timer: &Timer) {
        if let Some(at) = self.at.remove(timer) {
            self.order.remove(&(at, timer.clone()));
        }
    }

    /// The earliest deadline.
    pub fn next(&self) -> Option<Timestamp> {
        self.order.first().map(|(at, _)| *at)
    }

    /// Removes and returns the earliest deadline if it is due.
    pub fn pop_due(&mut self, now: Timestamp) -> Option<Timer> {
        if self.next()? > now {
            return None;
        }
        let (_, timer) = self.order.pop_first()?;
        self.at.remove(&timer);
        Some(timer)
    }
}
