//! Decides which deliveries are valid messages. The others are counted, logged once for each sender, and dropped.

use super::super::limits::REMEMBERED_LOG_LINES;
use super::super::refusals::shown;
use crate::sync::lock;
use rouse_shared::WorkerName;
use rouse_shared::codec::{self, DecodeError};
use rouse_shared::limits::{LOG_CHUNK, MAX_MESSAGE};
use rouse_shared::message::{LogChunk, ToMaster};
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
    let message: ToMaster = decode(body)?;
    if let ToMaster::Hello(hello) = &message
        && !hello.queue.starts_with(&agent_queue_prefix(&worker))
    {
        // Otherwise the master would send this worker's messages to another worker's queue.
        return Err(Reason::Misaddressed);
    }
    Ok((worker, message))
}

/// The log chunk in a delivery.
pub(super) fn log(user: Option<&str>, key: &str, body: &[u8]) -> Result<(WorkerName, LogChunk), Reason> {
    let worker = sender(user, key, log_key)?;
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
    use rouse_shared::message::{Heartbeat, Hello, Vitals};
    use rouse_shared::{AttemptId, BuildId, Nonce};

    fn heartbeat() -> Vec<u8> {
        codec::encode(&ToMaster::Heartbeat(Heartbeat {
            session: SessionId("s".to_owned()),
            seq: 1,
            vitals: Vitals::default(),
        }))
    }

    fn hello(queue: &str) -> Vec<u8> {
        codec::encode(&ToMaster::Hello(Box::new(Hello {
            protocol: 1,
            version: String::new(),
            connection: 1,
            queue: queue.to_owned(),
            identity: String::new(),
            nonce: Nonce("n".to_owned()),
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
        codec::encode(&LogChunk { attempt, step: 0, offset: 0, bytes: vec![0; size] })
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
            (Some("w1"), "w1.control", vec![0; MAX_MESSAGE + 1], Some(Reason::Oversized)),
            (Some("w1"), "w1.control", vec![], Some(Reason::Malformed)),
            (Some("w1"), "w1.control", vec![0xc1; 40], Some(Reason::Malformed)),
            (Some("w1"), "w1.control", vec![0x91; 1 << 20], Some(Reason::Malformed)),
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
        assert_eq!(submission(&vec![0; MAX_MESSAGE + 1]), Err(Reason::Oversized));
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
