//! Limits how much each agent sends. An agent that sends too many messages, or too many that are malformed, is blocked
//! for a while. Its credentials are valid, so only its behaviour shows that it is faulty or hostile.

use super::refusals::Refusals;
use crate::clock;
use crate::sync::lock;
use rouse_shared::message::ToMaster;
use rouse_shared::{Timestamp, WorkerName};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Limit of messages from one agent: in a burst, and per second in the long run. The fastest measured worker runs 600
/// empty builds per second, with three or four messages each. After an outage an agent sends everything that has
/// waited, at once.
const MESSAGES: Allowance = Allowance { burst: 20_000.0, rate: 3_000.0 };
/// Limit of hellos, each of which is a new connection. Agents pause between two tries to connect, up to a minute.
const HELLOS: Allowance = Allowance { burst: 50.0, rate: 0.5 };
/// Limit of malformed messages and messages in another worker's name. A newer agent may send a few of an unknown kind.
const DROPPED: Allowance = Allowance { burst: 200.0, rate: 1.0 };
/// How long an agent is blocked. It keeps trying, so a corrected agent comes back by itself.
pub const BLOCK_TIME: Duration = Duration::from_secs(300);

struct Allowance {
    burst: f64,
    rate: f64,
}

/// A token bucket: it fills at the limit's rate, and each message takes one token.
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
    /// The end of the block, if the agent is or was blocked.
    until: Option<Timestamp>,
}

impl Record {
    fn new(now: Timestamp, until: Option<Timestamp>) -> Self {
        let full = |of: &Allowance| Bucket { left: of.burst, at: now };
        Self { messages: full(&MESSAGES), hellos: full(&HELLOS), dropped: full(&DROPPED), until }
    }
}

/// Counts what each agent sends. Shared by the tasks that read messages and the server that lets agents connect. Cheap
/// to clone.
#[derive(Clone)]
pub struct RateLimiter {
    records: Arc<Mutex<HashMap<String, Record>>>,
    refusals: Refusals,
}

/// What an agent has sent.
enum Kind {
    Message,
    Hello,
    Dropped,
}

impl RateLimiter {
    /// Nothing has been counted yet. Blocked agents are reported to `refusals`.
    pub fn new(refusals: Refusals) -> Self {
        Self { records: Arc::default(), refusals }
    }

    /// Whether an agent is blocked now.
    pub fn is_blocked(&self, worker: &str) -> bool {
        let records = lock(&self.records);
        records.get(worker).and_then(|record| record.until).is_some_and(|until| until > clock::now())
    }

    /// The number of blocked agents.
    pub fn blocked(&self) -> u64 {
        let now = clock::now();
        let records = lock(&self.records);
        records.values().filter(|record| record.until.is_some_and(|until| until > now)).count() as u64
    }

    /// Counts a message of an agent.
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

    /// Counts a dropped message of an agent.
    pub(super) fn dropped(&self, user: Option<&str>) {
        if let Some(worker) = user.and_then(|user| user.parse::<WorkerName>().ok()) {
            self.count(&worker, clock::now(), &Kind::Dropped);
        }
    }

    fn count(&self, worker: &WorkerName, now: Timestamp, deed: &Kind) {
        let mut records = lock(&self.records);
        // The broker guarantees the name, so there are at most as many names as workers.
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
            Kind::Dropped => (record.dropped.take(&DROPPED, now), "malformed messages"),
        };
        if !within {
            *record = Record::new(now, Some(now + BLOCK_TIME));
            drop(records);
            let minutes = BLOCK_TIME.as_secs() / 60;
            self.refusals.refused(worker.as_str(), &format!("too many {what}: blocked for {minutes} minutes"));
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
    fn a_busy_agent_goes_on_and_a_flood_is_blocked_for_a_while() {
        let now = clock::now();
        let conduct = RateLimiter::new(Refusals::default());
        many(&conduct, now, 100_000, 1, &Kind::Message);
        assert!(!conduct.is_blocked("w1"));
        many(&conduct, now + Duration::from_secs(100), 30_000, 0, &Kind::Message);
        assert!(conduct.is_blocked("w1") && !conduct.is_blocked("w10"));
        assert_eq!(conduct.blocked(), 1);
        assert!(conduct.refusals.reason("w1").unwrap().contains("blocked for 5 minutes"));
    }

    #[test]
    fn hellos_and_rubbish_have_smaller_allowances() {
        let now = clock::now();
        for (deed, fine, much) in [(Kind::Hello, 50, 60), (Kind::Dropped, 200, 210)] {
            let conduct = RateLimiter::new(Refusals::default());
            many(&conduct, now, fine, 0, &deed);
            assert!(!conduct.is_blocked("w1"));
            many(&conduct, now, much - fine, 0, &deed);
            assert!(conduct.is_blocked("w1"));
        }
    }
}
