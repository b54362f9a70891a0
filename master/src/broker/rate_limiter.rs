//! How agents behave: one that floods, or keeps sending what is no message, is cut off for a while. It has valid
//! credentials, so only what it does tells it from others.

use super::refusals::Refusals;
use crate::clock;
use crate::sync::lock;
use rouse_shared::message::ToMaster;
use rouse_shared::{Timestamp, WorkerName};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Messages of one agent in a row, and a second in the long run. The fastest that one worker was ever seen to run builds
/// that do nothing is 600 a second, at three or four messages each; an agent that comes back after an outage says all
/// that it has to say at once.
const MESSAGES: Allowance = Allowance { burst: 20_000.0, rate: 3_000.0 };
/// Hellos: a new connection each. Agents wait between two tries to connect, up to a minute.
const HELLOS: Allowance = Allowance { burst: 50.0, rate: 0.5 };
/// Messages that are none, or that are somebody else's: a newer agent may send some of a kind that is not known here.
const DROPPED: Allowance = Allowance { burst: 200.0, rate: 1.0 };
/// How long an agent is cut off. It keeps trying, so a mended one comes back by itself.
pub const CUT_OFF: Duration = Duration::from_secs(300);

struct Allowance {
    burst: f64,
    rate: f64,
}

/// A bucket that fills at the allowance's rate; each message takes one from it.
#[derive(Clone, Copy)]
struct Bucket {
    left: f64,
    at: Timestamp,
}

impl Bucket {
    fn take(&mut self, of: &Allowance, now: Timestamp) -> bool {
        self.left = (self.left + now.since(self.at).as_secs_f64() * of.rate).min(of.burst) - 1.0;
        self.at = now;
        self.left >= 0.0
    }
}

struct Record {
    messages: Bucket,
    hellos: Bucket,
    dropped: Bucket,
    /// Until when it is cut off.
    until: Option<Timestamp>,
}

impl Record {
    fn new(now: Timestamp, until: Option<Timestamp>) -> Self {
        let full = |of: &Allowance| Bucket { left: of.burst, at: now };
        Self { messages: full(&MESSAGES), hellos: full(&HELLOS), dropped: full(&DROPPED), until }
    }
}

/// What agents have done lately, shared between who reads their messages and who lets them connect. Cheap to clone.
#[derive(Clone)]
pub struct RateLimiter {
    records: Arc<Mutex<HashMap<String, Record>>>,
    refusals: Refusals,
}

/// Something that an agent did.
enum Kind {
    Message,
    Hello,
    Dropped,
}

impl RateLimiter {
    /// Nobody has done anything yet. Who is cut off is told to `refusals`.
    pub fn new(refusals: Refusals) -> Self {
        Self { records: Arc::default(), refusals }
    }

    /// Whether an agent is cut off now.
    pub fn is_cut_off(&self, worker: &str) -> bool {
        let records = lock(&self.records);
        records.get(worker).and_then(|record| record.until).is_some_and(|until| until > clock::now())
    }

    /// How many are cut off now.
    pub fn cut_off(&self) -> u64 {
        let now = clock::now();
        let records = lock(&self.records);
        records.values().filter(|record| record.until.is_some_and(|until| until > now)).count() as u64
    }

    /// Counts a message of an agent's.
    pub(super) fn sent(&self, worker: &WorkerName, message: &ToMaster) {
        let deed = match message {
            ToMaster::Hello(_) => Kind::Hello,
            ToMaster::Heartbeat(_)
            | ToMaster::Report(_)
            | ToMaster::Drained { .. }
            | ToMaster::Leaving { .. }
            | ToMaster::Notice { .. }
            | ToMaster::Goodbye { .. } => Kind::Message,
        };
        self.count(worker, clock::now(), &deed);
    }

    /// Counts something of an agent's that was thrown away.
    pub(super) fn dropped(&self, user: Option<&str>) {
        if let Some(worker) = user.and_then(|user| user.parse::<WorkerName>().ok()) {
            self.count(&worker, clock::now(), &Kind::Dropped);
        }
    }

    fn count(&self, worker: &WorkerName, now: Timestamp, deed: &Kind) {
        let mut records = lock(&self.records);
        // The broker vouches for the name, so there are no more of them than workers.
        if !records.contains_key(worker.as_str()) {
            records.insert(worker.to_string(), Record::new(now, None));
        }
        let Some(record) = records.get_mut(worker.as_str()) else { return };
        if record.until.is_some_and(|until| until > now) {
            return;
        }
        let (within, what) = match deed {
            Kind::Message => (record.messages.take(&MESSAGES, now), "messages"),
            Kind::Hello => (record.hellos.take(&HELLOS, now), "hellos"),
            Kind::Dropped => (record.dropped.take(&DROPPED, now), "messages that are none"),
        };
        if !within {
            *record = Record::new(now, Some(now + CUT_OFF));
            drop(records);
            let minutes = CUT_OFF.as_secs() / 60;
            self.refusals.refused(worker.as_str(), &format!("too many {what}: cut off for {minutes} minutes"));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn many(conduct: &RateLimiter, from: Timestamp, count: u64, every_ms: u64, deed: &Kind) {
        let worker = "w1".parse().unwrap();
        for n in 0..count {
            conduct.count(&worker, Timestamp(from.0 + n * every_ms), deed);
        }
    }

    #[test]
    fn a_busy_agent_goes_on_and_a_flood_is_cut_off_for_a_while() {
        let now = clock::now();
        let conduct = RateLimiter::new(Refusals::default());
        many(&conduct, now, 100_000, 1, &Kind::Message);
        assert!(!conduct.is_cut_off("w1"));
        many(&conduct, now + Duration::from_secs(100), 30_000, 0, &Kind::Message);
        assert!(conduct.is_cut_off("w1") && !conduct.is_cut_off("w10"));
        assert_eq!(conduct.cut_off(), 1);
        assert!(conduct.refusals.reason("w1").unwrap().contains("cut off for 5 minutes"));
    }

    #[test]
    fn hellos_and_rubbish_have_smaller_allowances() {
        let now = clock::now();
        for (deed, fine, much) in [(Kind::Hello, 50, 60), (Kind::Dropped, 200, 210)] {
            let conduct = RateLimiter::new(Refusals::default());
            many(&conduct, now, fine, 0, &deed);
            assert!(!conduct.is_cut_off("w1"));
            many(&conduct, now, much - fine, 0, &deed);
            assert!(conduct.is_cut_off("w1"));
        }
    }
}
