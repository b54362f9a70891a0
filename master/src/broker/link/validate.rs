//! Decides which deliveries are valid messages. The others are counted, logged once for each sender, and dropped.

use super::super::limits::REMEMBERED_LOG_LINES;
use super::super::refusals::shown;
use crate::sync::lock;
use rouse_shared::WorkerName;
use rouse_shared::codec::{self, DecodeError};
use rouse_shared::limits::{
    LOG_CHUNK, MAX_ATTEMPTS, MAX_CONTROL, MAX_HELLO_STEPS, MAX_IDENTITY_DOCUMENT, MAX_LOG, MAX_MESSAGE, MAX_STEPS,
    MAX_TEXT, MAX_WORD, NONCE_DIGITS,
};
use rouse_shared::message::{CloudNotice, Hello, LogChunk, ToMaster};
use rouse_shared::names::{agent_queue_prefix, control_key, log_key};
use serde::de::DeserializeOwned;
use std::collections::HashSet;
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use tracing::warn;

/// Why a delivery was dropped.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reason {
    /// Without `user_id`, so anybody may have sent it.
    NoUserId,
    /// With the routing key or the queue of another worker.
    Misaddressed,
    /// Larger than the wire allows.
    Oversized,
    /// Not MessagePack.
    Malformed,
    /// MessagePack, but of a kind that this version does not know.
    Unknown,
    /// From an agent that is blocked.
    SenderBlocked,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoUserId => "the message has no user_id",
            Self::Misaddressed => "its routing key or queue is not its sender's",
            Self::Oversized => "it is too large",
            Self::Malformed => "it is malformed",
            Self::SenderBlocked => "its sender is blocked",
            Self::Unknown => "it is of an unknown kind, perhaps of a newer version",
        })
    }
}

/// Numbers of dropped deliveries since the start, by reason.
#[derive(Default)]
pub struct Dropped {
    /// Without `user_id`.
    pub no_user_id: AtomicU64,
    /// With the routing key or the queue of another worker.
    pub misaddressed: AtomicU64,
    /// Larger than the wire allows.
    pub oversized: AtomicU64,
    /// Not MessagePack.
    pub malformed: AtomicU64,
    /// MessagePack, but of a kind that this version does not know.
    pub unknown: AtomicU64,
    /// From an agent that is blocked.
    pub blocked: AtomicU64,
    /// The senders and reasons that have been logged.
    logged: Mutex<HashSet<(Reason, String)>>,
}

impl Dropped {
    /// The sum of all.
    pub fn total(&self) -> u64 {
        [&self.no_user_id, &self.misaddressed, &self.oversized, &self.malformed, &self.unknown, &self.blocked]
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .sum()
    }

    /// Counts a delivery, and logs the first one of each sender and reason.
    pub(super) fn count(&self, reason: Reason, user: Option<&str>, key: &str) {
        let count = match reason {
            Reason::NoUserId => &self.no_user_id,
            Reason::Misaddressed => &self.misaddressed,
            Reason::Oversized => &self.oversized,
            Reason::Malformed => &self.malformed,
            Reason::Unknown => &self.unknown,
            Reason::SenderBlocked => &self.blocked,
        };
        count.fetch_add(1, Ordering::Relaxed);
        let sender = shown(user.unwrap_or(key));
        let mut logged = lock(&self.logged);
        if logged.len() < REMEMBERED_LOG_LINES && logged.insert((reason, sender.clone())) {
            warn!(user = ?sender, key = ?shown(key), "dropped a message; more like it are dropped without a log line: {reason}");
        }
    }
}

/// The message in an agent's delivery.
pub(super) fn control(user: Option<&str>, key: &str, body: &[u8]) -> Result<(WorkerName, ToMaster), Reason> {
    let worker = sender(user, key, control_key)?;
    if body.len() > MAX_CONTROL {
        return Err(Reason::Oversized);
    }
    let message: ToMaster = decode(body)?;
    bounded(&message)?;
    if let ToMaster::Hello(hello) = &message
        && !hello.queue.starts_with(&agent_queue_prefix(&worker))
    {
        // Otherwise the master would send this worker's messages to another worker's queue.
        return Err(Reason::Misaddressed);
    }
    Ok((worker, message))
}

/// Refuses what is longer than any agent sends it. What the core keeps of it is bounded by this.
fn bounded(message: &ToMaster) -> Result<(), Reason> {
    let (words, lists): (Vec<&str>, bool) = match message {
        ToMaster::Hello(hello) => {
            let Hello { version, queue, identity, nonce, attempts, facts, proof, .. } = &**hello;
            if nonce.0.len() != NONCE_DIGITS || !nonce.0.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(Reason::Malformed);
            }
            let steps: usize = attempts.iter().map(|report| report.steps.len()).sum();
            let documents = [&proof.document, &proof.signature, &proof.rsa2048];
            let documents = documents.into_iter().flatten().all(|text| text.len() <= MAX_IDENTITY_DOCUMENT);
            let mut words = vec![version.as_str(), queue, identity, &facts.os, &facts.arch, &facts.hostname];
            words.extend(proof.disk.as_deref());
            words.extend(facts.no_cgroups.as_deref());
            (words, attempts.len() <= MAX_ATTEMPTS && steps <= MAX_HELLO_STEPS && documents)
        }
        ToMaster::Report(report) => (Vec::new(), report.attempt.steps.len() <= MAX_STEPS),
        ToMaster::Notice { notice: CloudNotice::Rebalance { at }, .. } => (vec![at], true),
        ToMaster::Notice { notice: CloudNotice::Interruption { action, at }, .. } => (vec![action, at], true),
        ToMaster::Heartbeat(heartbeat) => {
            (Vec::new(), heartbeat.unclean.as_ref().is_none_or(|why| why.len() <= MAX_TEXT))
        }
        ToMaster::Drained { .. } | ToMaster::Leaving { .. } | ToMaster::Goodbye { .. } => (Vec::new(), true),
    };
    let short = words.iter().all(|word| word.len() <= MAX_WORD);
    if short && lists { Ok(()) } else { Err(Reason::Oversized) }
}

/// The log chunk in a delivery.
pub(super) fn log(user: Option<&str>, key: &str, body: &[u8]) -> Result<(WorkerName, LogChunk), Reason> {
    let worker = sender(user, key, log_key)?;
    if body.len() > MAX_LOG {
        return Err(Reason::Oversized);
    }
    let chunk: LogChunk = decode(body)?;
    if chunk.bytes.len() > LOG_CHUNK { Err(Reason::Oversized) } else { Ok((worker, chunk)) }
}

/// Checks only the size of a submitted build.
pub(super) fn submission(body: &[u8]) -> Result<(), Reason> {
    if body.len() > MAX_MESSAGE { Err(Reason::Oversized) } else { Ok(()) }
}

fn sender(user: Option<&str>, key: &str, own_key: fn(&WorkerName) -> String) -> Result<WorkerName, Reason> {
    let worker: WorkerName = user.ok_or(Reason::NoUserId)?.parse().map_err(|_| Reason::Misaddressed)?;
    if key == own_key(&worker) { Ok(worker) } else { Err(Reason::Misaddressed) }
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, Reason> {
    codec::decode(body).map_err(|error| match error {
        DecodeError::TooLarge(_) => Reason::Oversized,
        DecodeError::Malformed(_) if codec::is_messagepack(body) => Reason::Unknown,
        DecodeError::Malformed(_) => Reason::Malformed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rouse_shared::SessionId;
    use rouse_shared::message::{AttemptReport, Heartbeat, Report, StepReport, StepState, Vitals};
    use rouse_shared::{AttemptId, BuildId, Nonce};

    fn heartbeat() -> Vec<u8> {
        codec::encode(&ToMaster::Heartbeat(Heartbeat {
            session: SessionId("s".to_owned()),
            seq: 1,
            vitals: Vitals::default(),
            unclean: None,
        }))
    }

    fn hello(queue: &str) -> Vec<u8> {
        codec::encode(&ToMaster::Hello(Box::new(Hello {
            protocol: 1,
            version: String::new(),
            connection: 1,
            queue: queue.to_owned(),
            identity: String::new(),
            nonce: Nonce("0f".repeat(16)),
            credential: String::new(),
            master: None,
            attempts: vec![],
            facts: Default::default(),
            leaving: false,
            proof: Default::default(),
        })))
    }

    fn chunk(size: usize) -> Vec<u8> {
        let attempt = AttemptId { build: BuildId(1), number: 1 };
        codec::encode(&LogChunk {
            session: SessionId("s".to_owned()),
            attempt,
            step: 0,
            offset: 0,
            bytes: vec![0; size],
        })
    }

    #[test]
    fn only_messages_of_their_sender_pass() {
        #[derive(serde::Serialize)]
        enum Newer {
            Teapot { handle: u8 },
        }
        let rows = [
            (Some("w1"), "w1.control", heartbeat(), None),
            (None, "w1.control", heartbeat(), Some(Reason::NoUserId)),
            (Some("w1"), "w10.control", heartbeat(), Some(Reason::Misaddressed)),
            (Some("w1"), "w1.log", heartbeat(), Some(Reason::Misaddressed)),
            (Some("rouse_master"), "rouse_master.control", heartbeat(), Some(Reason::Misaddressed)),
            (Some("w1"), "w1.control", vec![0; MAX_CONTROL + 1], Some(Reason::Oversized)),
            (Some("w1"), "w1.control", vec![], Some(Reason::Malformed)),
            (Some("w1"), "w1.control", vec![0xc1; 40], Some(Reason::Malformed)),
            (Some("w1"), "w1.control", vec![0x91; MAX_CONTROL], Some(Reason::Malformed)),
            (Some("w1"), "w1.control", codec::encode(&Newer::Teapot { handle: 1 }), Some(Reason::Unknown)),
            (Some("w1"), "w1.control", hello("rouse.agent.w1.n.1"), None),
            (Some("w1"), "w1.control", hello("rouse.agent.w10.n.1"), Some(Reason::Misaddressed)),
        ];
        for (user, key, body, expected) in rows {
            assert_eq!(control(user, key, &body).err(), expected, "{user:?} {key}");
        }
        assert_eq!(log(Some("w1"), "w1.log", &chunk(LOG_CHUNK)).err(), None);
        assert_eq!(log(Some("w1"), "w1.log", &chunk(LOG_CHUNK + 1)).err(), Some(Reason::Oversized));
        assert_eq!(log(Some("w1"), "w1.control", &chunk(1)).err(), Some(Reason::Misaddressed));
        // Whatever else is in it stays in memory as long as the chunk.
        let long =
            LogChunk { session: SessionId("s".repeat(LOG_CHUNK)), ..codec::decode(&chunk(LOG_CHUNK)).expect("one") };
        assert_eq!(log(Some("w1"), "w1.log", &codec::encode(&long)).err(), Some(Reason::Oversized));
        assert_eq!(submission(&vec![0; MAX_MESSAGE + 1]), Err(Reason::Oversized));
    }

    /// What an agent sends at most passes, and one more does not.
    #[test]
    fn what_an_agent_lists_and_writes_is_bounded() {
        let decoded = |body: &[u8]| control(Some("w1"), "w1.control", body).map(|(_, message)| message);
        let ToMaster::Hello(honest) = decoded(&hello("rouse.agent.w1.n.1")).expect("a hello") else { panic!() };
        let refused = |change: &dyn Fn(&mut Hello)| {
            let mut hello = (*honest).clone();
            change(&mut hello);
            decoded(&codec::encode(&ToMaster::Hello(Box::new(hello)))).err()
        };
        let attempts = |count: usize, steps: usize| {
            let step = StepReport {
                state: StepState::Skipped,
                started_ms: 0,
                took_ms: 0,
                log_length: 0,
                log_cut: 0,
                usage: None,
            };
            let attempt = AttemptId { build: BuildId(1), number: 1 };
            vec![AttemptReport { attempt, revision: 1, steps: vec![step; steps], outcome: None }; count]
        };
        assert_eq!(refused(&|hello| hello.attempts = attempts(MAX_ATTEMPTS, 0)), None);
        assert_eq!(refused(&|hello| hello.attempts = attempts(MAX_ATTEMPTS + 1, 0)), Some(Reason::Oversized));
        assert_eq!(refused(&|hello| hello.attempts = attempts(1, MAX_HELLO_STEPS + 1)), Some(Reason::Oversized));
        let word = "w".repeat(MAX_WORD);
        assert_eq!(refused(&|hello| hello.identity.clone_from(&word)), None);
        let word = word + "w";
        let changes: [&dyn Fn(&mut Hello); 6] = [
            &|hello| hello.version.clone_from(&word),
            &|hello| hello.identity.clone_from(&word),
            &|hello| hello.facts.hostname.clone_from(&word),
            &|hello| hello.queue += &word,
            &|hello| hello.proof.disk = Some(word.clone()),
            &|hello| hello.proof.document = Some("d".repeat(MAX_IDENTITY_DOCUMENT + 1)),
        ];
        for change in changes {
            assert_eq!(refused(change), Some(Reason::Oversized));
        }
        for nonce in ["", "0f", &"zz".repeat(16), &"0f".repeat(17)] {
            assert_eq!(refused(&|hello| hello.nonce = Nonce(nonce.to_owned())), Some(Reason::Malformed), "{nonce}");
        }
        // Attempts that are lists of nothing: a few bytes each, and as many as fit a control message.
        let mut many = codec::encode(&ToMaster::Hello(honest.clone()));
        let at = many.windows(9).position(|window| window == b"\xa8attempts").expect("listed") + 9;
        let count = u32::try_from((MAX_CONTROL - many.len() - 5) / 5).expect("fits");
        let listed = (0..count).flat_map(|_| [0x92, 0x92, 0x01, 0x01, 0x01]);
        many.splice(at..=at, [0xdd].into_iter().chain(count.to_be_bytes()).chain(listed));
        assert_eq!(decoded(&many).err(), Some(Reason::Oversized));
        let report = |steps| {
            let attempt = attempts(1, steps).remove(0);
            codec::encode(&ToMaster::Report(Box::new(Report { session: SessionId("s".to_owned()), attempt })))
        };
        assert_eq!(decoded(&report(MAX_STEPS)).err(), None);
        assert_eq!(decoded(&report(MAX_STEPS + 1)).err(), Some(Reason::Oversized));
    }

    #[test]
    fn senders_are_remembered_up_to_a_bound() {
        let dropped = Dropped::default();
        for n in 0..2 * REMEMBERED_LOG_LINES {
            dropped.count(Reason::Malformed, Some(&format!("w{n}")), "k");
        }
        assert_eq!(dropped.total(), 2 * REMEMBERED_LOG_LINES as u64);
        assert_eq!(dropped.logged.lock().unwrap().len(), REMEMBERED_LOG_LINES);
    }
}
