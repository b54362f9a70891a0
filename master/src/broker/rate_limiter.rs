//! Limits how much is sent in the name of each worker. Who sends too many messages, too many bytes, or too many messages
//! that are malformed, is blocked for a while. The credentials are valid, so only the behaviour shows that an agent is
//! faulty or hostile.
//!
//! Whoever has a worker's password, or a boot token that was used, can connect in its name. Therefore the agent that the
//! master has let in is counted apart from all others, by the session that only it knows: what the others do is no
//! reason to block it.

use super::limits::AUTH_CACHE;
use super::refusals::Refusals;
use crate::clock;
use crate::sync::lock;
use rouse_shared::message::ToMaster;
use rouse_shared::{Nonce, SessionId, Timestamp, WorkerName, names};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Limit of messages: in a burst, and per second in the long run. The fastest measured worker runs 600 empty builds per
/// second, with three or four messages each. After an outage an agent sends everything that has waited, at once.
const MESSAGES: Allowance = Allowance { burst: 20_000.0, rate: 3_000.0 };
/// Limit of bytes, without those of logs. The largest honest need is a build of 1,000 short steps, whose reports take 80
/// MB together.
const BYTES: Allowance = Allowance { burst: 256e6, rate: 16e6 };
/// Limit of log chunks. How many bytes of logs there are is limited where they are written.
const CHUNKS: Allowance = Allowance { burst: 100_000.0, rate: 10_000.0 };
/// Limit of hellos, each of which is a new connection. Agents pause between two tries to connect, up to a minute.
const HELLOS: Allowance = Allowance { burst: 50.0, rate: 0.5 };
/// Limit of malformed messages and messages in another worker's name. A newer agent may send a few of an unknown kind.
const DROPPED: Allowance = Allowance { burst: 200.0, rate: 1.0 };
/// Limit of new connections, and of new queues, at the broker: an agent makes one of each at a time. Each takes the
/// broker's memory and processor time.
const RESOURCES: Allowance = Allowance { burst: 300.0, rate: 1.0 };
/// Most connections at the same time in the name of a worker. Machines of one image may all try to attach as the same one.
const MOST_CONNECTIONS: usize = 200;
/// How long a block lasts. An agent keeps trying, so a corrected one comes back by itself.
pub const BLOCK_TIME: Duration = Duration::from_secs(300);
/// How long the master may take to receive what was sent over a connection before it was closed.
const BACKLOG: Duration = Duration::from_secs(20);
/// Number of earlier sessions of a run of an agent whose logs it may still be sending.
const EARLIER_SESSIONS: usize = 4;

struct Allowance {
    burst: f64,
    rate: f64,
}

/// A token bucket: it fills at the limit's rate, and each message takes from it.
#[derive(Clone, Copy)]
struct Bucket {
    left: f64,
    at: Timestamp,
}

impl Bucket {
    fn take(&mut self, amount: f64, of: &Allowance, now: Timestamp) -> bool {
        self.left = (self.left + now.since(self.at).as_secs_f64() * of.rate).min(of.burst);
        self.at = now;
        let within = self.left >= amount;
        if within {
            self.left -= amount;
        }
        within
    }
}

/// What was sent by the agent of a session, or by all others in the worker's name.
struct Conduct {
    messages: Bucket,
    bytes: Bucket,
    chunks: Bucket,
    hellos: Bucket,
    dropped: Bucket,
    /// The end of the block, if there is or was one.
    until: Option<Timestamp>,
}

impl Conduct {
    fn new(now: Timestamp, until: Option<Timestamp>) -> Self {
        let full = |of: &Allowance| Bucket { left: of.burst, at: now };
        Self {
            messages: full(&MESSAGES),
            bytes: full(&BYTES),
            chunks: full(&CHUNKS),
            hellos: full(&HELLOS),
            dropped: full(&DROPPED),
            until,
        }
    }

    fn is_blocked(&self, now: Timestamp) -> bool {
        self.until.is_some_and(|until| until > now)
    }

    /// Counts a message. If it is one too many, returns of what there are too many.
    fn take(&mut self, kind: Kind, bytes: usize, now: Timestamp) -> Option<&'static str> {
        let (within, what) = match kind {
            Kind::Message => (self.messages.take(1.0, &MESSAGES, now), "messages"),
            Kind::Chunk => (self.chunks.take(1.0, &CHUNKS, now), "log chunks"),
            Kind::Hello => (self.hellos.take(1.0, &HELLOS, now), "hellos"),
            Kind::Dropped => (self.dropped.take(1.0, &DROPPED, now), "malformed messages"),
        };
        // Chunks are at most 64 KiB each.
        let counted = if kind == Kind::Chunk { 0.0 } else { bytes as f64 };
        let room = self.bytes.take(counted, &BYTES, now);
        if !within {
            Some(what)
        } else if !room {
            Some("bytes")
        } else {
            None
        }
    }
}

struct Record {
    /// The session that the master answers, and the run of the agent that has it.
    session: Option<(SessionId, String)>,
    /// Sessions that this run had before. It sends the rest of their logs.
    earlier: Vec<SessionId>,
    agent: Conduct,
    strangers: Conduct,
    /// New queues and new connections. A block does not fill them again.
    queues: Bucket,
    connections: Bucket,
    closing: Closing,
}

/// The last attempt to close all connections of a worker.
enum Closing {
    /// There was none, or it failed.
    None,
    Asked(oneshot::Receiver<Timestamp>),
    Closed(Timestamp),
}

/// A request to close all connections of a worker.
#[derive(Debug)]
pub struct CloseRequest {
    /// The worker's name.
    pub worker: String,
    /// Receives the time when they were closed. Dropped if they could not be closed.
    pub closed: oneshot::Sender<Timestamp>,
}

/// Counts what is sent in the name of each worker. Shared by the tasks that read messages and the server that lets
/// agents connect. Cheap to clone.
#[derive(Clone)]
pub struct RateLimiter {
    records: Arc<Mutex<HashMap<String, Record>>>,
    refusals: Refusals,
    /// Closes all connections of a worker, if the broker is the master's own.
    closer: Arc<OnceLock<mpsc::Sender<CloseRequest>>>,
}

/// What was sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Message,
    Chunk,
    Hello,
    Dropped,
}

/// Who has sent it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sender {
    /// The agent of the session.
    Agent,
    /// Anybody else with valid credentials.
    Stranger,
}

impl RateLimiter {
    /// Nothing has been counted yet. Whoever is blocked is reported to `refusals`.
    pub fn new(refusals: Refusals) -> Self {
        Self { records: Arc::default(), refusals, closer: Arc::default() }
    }

    /// What closes the connections of blocked workers from now on.
    pub fn close_with(&self, closer: mpsc::Sender<CloseRequest>) {
        // There is one private broker.
        drop(self.closer.set(closer));
    }

    /// The master answers this session, in this queue of its agent.
    pub(super) fn answered(&self, session: &SessionId, queue: &str) {
        let (Some(worker), Some(run)) = (names::worker_of_queue(queue), run_of(queue)) else { return };
        let mut records = lock(&self.records);
        let record = record_of(&mut records, &worker, clock::now());
        if record.session.as_ref().is_none_or(|(known, of)| known != session || of != run) {
            record.begin_session(session, run);
        }
    }

    /// Whether the worker's agent is blocked now, and with it everybody else in its name.
    pub fn is_blocked(&self, worker: &str) -> bool {
        lock(&self.records).get(worker).is_some_and(|record| record.agent.is_blocked(clock::now()))
    }

    /// Whether everybody in the worker's name is blocked now who is not the agent of its session.
    pub fn strangers_blocked(&self, worker: &str) -> bool {
        let now = clock::now();
        let records = lock(&self.records);
        records.get(worker).is_some_and(|record| record.strangers.is_blocked(now) || record.agent.is_blocked(now))
    }

    /// The number of workers in whose name somebody is blocked.
    pub fn blocked(&self) -> u64 {
        let now = clock::now();
        let records = lock(&self.records);
        let blocked = |record: &&Record| record.agent.is_blocked(now) || record.strangers.is_blocked(now);
        records.values().filter(blocked).count() as u64
    }

    /// Whether a message is dropped unread, because the worker's agent is blocked. It is counted: if the agent has
    /// connected again and goes on sending, its connections are closed again.
    pub(super) fn drops(&self, worker: &str, bytes: usize) -> bool {
        let now = clock::now();
        let mut records = lock(&self.records);
        let Some(record) = records.get_mut(worker).filter(|record| record.agent.is_blocked(now)) else { return false };
        if let Ok(worker) = worker.parse::<WorkerName>() {
            self.count(record, &worker, now, Sender::Agent, (Kind::Message, bytes));
        }
        true
    }

    /// Counts a control message. Returns whether it may pass.
    pub(super) fn sent(&self, worker: &WorkerName, message: &ToMaster, bytes: usize) -> bool {
        let (kind, session) = match message {
            ToMaster::Hello(hello) => return self.said_hello(worker, &hello.nonce, bytes),
            ToMaster::Heartbeat(heartbeat) => (Kind::Message, &heartbeat.session),
            ToMaster::Report(report) => (Kind::Message, &report.session),
            ToMaster::Drained { session, .. }
            | ToMaster::Leaving { session }
            | ToMaster::Notice { session, .. }
            | ToMaster::Goodbye { session } => (Kind::Message, session),
        };
        self.of_session(worker, session, kind, bytes)
    }

    /// Counts a log chunk. Returns whether it may pass.
    pub(super) fn sent_chunk(&self, worker: &WorkerName, session: &SessionId, bytes: usize) -> bool {
        self.of_session(worker, session, Kind::Chunk, bytes)
    }

    fn of_session(&self, worker: &WorkerName, session: &SessionId, kind: Kind, bytes: usize) -> bool {
        let now = clock::now();
        let mut records = lock(&self.records);
        let record = record_of(&mut records, worker, now);
        let known = record.session.as_ref().is_some_and(|(known, _)| known == session)
            || kind == Kind::Chunk && record.earlier.contains(session);
        let sender = if known { Sender::Agent } else { Sender::Stranger };
        let passes = !record.blocked(sender, now);
        self.count(record, worker, now, sender, (kind, bytes));
        passes
    }

    /// A hello passes as long as there are not too many, also while strangers are blocked: it may be the agent's after
    /// it was started again, and the core knows its credential.
    fn said_hello(&self, worker: &WorkerName, nonce: &Nonce, bytes: usize) -> bool {
        let now = clock::now();
        let mut records = lock(&self.records);
        let record = record_of(&mut records, worker, now);
        let known = record.session.as_ref().is_some_and(|(_, run)| *run == nonce.0);
        let sender = if known { Sender::Agent } else { Sender::Stranger };
        if record.strangers.is_blocked(now) && sender == Sender::Stranger {
            let within = record.strangers.hellos.take(1.0, &HELLOS, now);
            if !within {
                self.close(record, worker, now);
            }
            return within && !record.agent.is_blocked(now);
        }
        let passes = !record.blocked(sender, now);
        self.count(record, worker, now, sender, (Kind::Hello, bytes));
        passes
    }

    /// Counts a dropped message of a worker's. Nothing is counted if the sender is none.
    pub(super) fn dropped(&self, sender: &str, bytes: usize) {
        if let Ok(worker) = sender.parse::<WorkerName>() {
            self.dropped_at(&worker, bytes, clock::now());
        }
    }

    fn dropped_at(&self, worker: &WorkerName, bytes: usize, now: Timestamp) {
        let mut records = lock(&self.records);
        let record = record_of(&mut records, worker, now);
        let sender = if record.only_agent(now) { Sender::Agent } else { Sender::Stranger };
        self.count(record, worker, now, sender, (Kind::Dropped, bytes));
    }

    /// Counts a queue that somebody in the name of a worker wants to declare. Returns whether it may be.
    pub(super) fn declares(&self, worker: &WorkerName) -> bool {
        let now = clock::now();
        let mut records = lock(&self.records);
        let record = record_of(&mut records, worker, now);
        let within = record.queues.take(1.0, &RESOURCES, now);
        if !within {
            self.blame_somebody(record, worker, now, "queues");
        }
        within
    }

    /// Counts a new connection in the name of a worker, which has so many now.
    pub(super) fn connected(&self, worker: &WorkerName, connections: usize) {
        let now = clock::now();
        let mut records = lock(&self.records);
        let record = record_of(&mut records, worker, now);
        if !record.connections.take(1.0, &RESOURCES, now) || connections > MOST_CONNECTIONS {
            self.blame_somebody(record, worker, now, "connections");
        }
    }

    /// Blocks somebody in the name of the worker who has done too much, of which nothing shows who it was.
    fn blame_somebody(&self, record: &mut Record, worker: &WorkerName, now: Timestamp, what: &str) {
        let sender = if record.only_agent(now) { Sender::Agent } else { Sender::Stranger };
        self.blame(record, worker, now, sender, what);
    }

    fn count(
        &self,
        record: &mut Record,
        worker: &WorkerName,
        now: Timestamp,
        sender: Sender,
        (kind, bytes): (Kind, usize),
    ) {
        let blocked = record.blocked(sender, now);
        if blocked && record.may_be_backlog(now) {
            return;
        }
        let conduct = match sender {
            Sender::Agent => &mut record.agent,
            Sender::Stranger => &mut record.strangers,
        };
        if let Some(what) = conduct.take(kind, bytes, now) {
            self.blame(record, worker, now, sender, what);
        }
    }

    /// Blocks who has done too much, and closes all connections of the worker.
    fn blame(&self, record: &mut Record, worker: &WorkerName, now: Timestamp, sender: Sender, what: &str) {
        let blocked = record.blocked(sender, now);
        let conduct = match sender {
            Sender::Agent => &mut record.agent,
            Sender::Stranger => &mut record.strangers,
        };
        let until = if blocked { conduct.until } else { Some(now + BLOCK_TIME) };
        *conduct = Conduct::new(now, until);
        if !blocked {
            let who = match (sender, &record.session) {
                (Sender::Agent, _) | (Sender::Stranger, None) => "",
                (Sender::Stranger, Some(_)) => ", not from its own agent",
            };
            let minutes = BLOCK_TIME.as_secs() / 60;
            self.refusals.refused(worker.as_str(), &format!("too many {what}{who}: blocked for {minutes} minutes"));
            // An earlier block has had closings of its own.
            record.closing = Closing::None;
        }
        self.close(record, worker, now);
    }

    /// Closes all connections of the worker. Who is blocked may open one again as long as the broker remembers its
    /// earlier answer, and is then closed again as soon as it sends too much.
    fn close(&self, record: &mut Record, worker: &WorkerName, now: Timestamp) {
        let Some(closer) = self.closer.get() else { return };
        if record.may_be_backlog(now) {
            return;
        }
        let (closed, asked) = oneshot::channel();
        // If too many are waiting, the next message that is one too many tries again.
        if closer.try_send(CloseRequest { worker: worker.to_string(), closed }).is_ok() {
            record.closing = Closing::Asked(asked);
        }
    }
}

impl Record {
    fn begin_session(&mut self, session: &SessionId, run: &str) {
        match self.session.replace((session.clone(), run.to_owned())) {
            Some((before, of)) if of == run => {
                self.earlier.retain(|known| known != session);
                self.earlier.insert(0, before);
                self.earlier.truncate(EARLIER_SESSIONS);
            }
            Some(_) | None => self.earlier.clear(),
        }
    }

    fn blocked(&self, sender: Sender, now: Timestamp) -> bool {
        self.agent.is_blocked(now) || sender == Sender::Stranger && self.strangers.is_blocked(now)
    }

    /// When all connections in the worker's name were closed, if they were and are not being closed again.
    fn closed(&mut self) -> Option<Timestamp> {
        if let Closing::Asked(asked) = &mut self.closing {
            match asked.try_recv() {
                Ok(at) => self.closing = Closing::Closed(at),
                Err(oneshot::error::TryRecvError::Empty) => {}
                Err(oneshot::error::TryRecvError::Closed) => self.closing = Closing::None,
            }
        }
        match self.closing {
            Closing::Closed(at) => Some(at),
            Closing::None | Closing::Asked(_) => None,
        }
    }

    /// Whether a message that arrives now may have been sent over a connection that is closed since, or is about to be.
    fn may_be_backlog(&mut self, now: Timestamp) -> bool {
        let closed = self.closed();
        matches!(self.closing, Closing::Asked(_)) || closed.is_some_and(|at| now.since(at) < BACKLOG)
    }

    /// Whether nobody but the agent of the session can have sent a message that arrives now: strangers are blocked,
    /// and all connections were closed after the broker had forgotten that it once let them in.
    fn only_agent(&mut self, now: Timestamp) -> bool {
        let Some(until) = self.strangers.until.filter(|until| *until > now) else { return false };
        let forgotten = until.0.saturating_sub((BLOCK_TIME - AUTH_CACHE).as_millis() as u64);
        self.closed().is_some_and(|at| at.0 >= forgotten && now.since(at) >= BACKLOG)
    }
}

/// The record of a worker. The broker guarantees the name, so there are at most as many records as workers.
fn record_of<'a>(records: &'a mut HashMap<String, Record>, worker: &WorkerName, now: Timestamp) -> &'a mut Record {
    let fresh = || Record {
        session: None,
        earlier: Vec::new(),
        agent: Conduct::new(now, None),
        strangers: Conduct::new(now, None),
        queues: Bucket { left: RESOURCES.burst, at: now },
        connections: Bucket { left: RESOURCES.burst, at: now },
        closing: Closing::None,
    };
    records.entry(worker.to_string()).or_insert_with(fresh)
}

/// The run of the agent that a queue belongs to: what follows the worker's name.
fn run_of(queue: &str) -> Option<&str> {
    queue.split('.').nth(3)
}

#[cfg(test)]
mod tests;
