//! Sends the logs of steps from their spool files, with publisher confirms and a bounded window for each step.
//!
//! One task with one channel sends all logs. Its owner requests what to send through shared state, so that the owner
//! never waits for a broker that accepts nothing.

use crate::core::Level;
use crate::diagnostics::log;
use crate::mutex;
use crate::spool::SpoolReader;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation, Connection};
use rouse_shared::limits::{LOG_CHUNK, LOG_WINDOW};
use rouse_shared::message::LogChunk;
use rouse_shared::{AttemptId, SessionId, WorkerName, codec, names};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};

/// Pause after a chunk that the broker did not accept because its queue is full or the channel was closed.
const PAUSE: Duration = Duration::from_millis(500);
/// Largest number of unconfirmed chunks of all steps together: bounds memory when many steps print at once.
const MAX_IN_FLIGHT: usize = 4 * LOG_WINDOW / LOG_CHUNK;

/// One step of one attempt.
type Key = (AttemptId, u32);

/// The broker has the step's log before `offset`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogSent {
    /// The attempt that the step belongs to.
    pub attempt: AttemptId,
    /// Number of the step, from 0.
    pub step: u32,
    /// Bytes from the start of the log.
    pub offset: u64,
}

/// The owner's handle of the task, which ends when the handle is dropped.
#[derive(Debug)]
pub struct BuildLogs {
    shared: Arc<Shared>,
}

#[derive(Default, Debug)]
struct Shared {
    wanted: Mutex<Wanted>,
    changed: Notify,
}

#[derive(Default, Debug)]
struct Wanted {
    /// Counts the links, so that the task notices a new one.
    generation: u64,
    link: Option<Arc<Connection>>,
    streams: BTreeMap<Key, Stream>,
    closed: bool,
}

#[derive(Debug)]
struct Stream {
    session: SessionId,
    path: PathBuf,
    /// Counts the changes of `from`.
    epoch: u64,
    from: u64,
    /// Bytes known to be in the spool.
    length: u64,
    /// Whether the core has requested the log on this link.
    on: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Wanted> {
        mutex::lock(&self.wanted)
    }
}

impl BuildLogs {
    /// Starts the task. It reports what the broker has confirmed to `sent`.
    pub fn start(worker: &WorkerName, sent: mpsc::Sender<LogSent>) -> Self {
        let shared = Arc::new(Shared::default());
        let sender = Sender {
            shared: shared.clone(),
            sent,
            key: names::log_key(worker),
            properties: BasicProperties::default().with_user_id(worker.as_str().into()),
            generation: 0,
            channel: None,
            cursors: BTreeMap::new(),
            in_flight: FuturesOrdered::new(),
        };
        tokio::spawn(sender.run());
        Self { shared }
    }

    /// Sets the connection to use from now on. Nothing is sent on it until [`Self::send_from`] is called.
    pub fn set_link(&self, link: Option<Arc<Connection>>) {
        let mut wanted = self.shared.lock();
        wanted.generation += 1;
        wanted.link = link;
        for stream in wanted.streams.values_mut() {
            stream.on = false;
        }
        drop(wanted);
        self.shared.changed.notify_one();
    }

    /// Adds a step that a session has requested, whose output is or will be in the file `path`.
    pub fn add(&self, session: SessionId, attempt: AttemptId, step: u32, path: PathBuf) {
        let stream = Stream { session, path, epoch: 0, from: 0, length: 0, on: false };
        self.shared.lock().streams.insert((attempt, step), stream);
    }

    /// Reports that the step's file has at least `length` bytes.
    pub fn set_length(&self, attempt: AttemptId, step: u32, length: u64) {
        if let Some(stream) = self.shared.lock().streams.get_mut(&(attempt, step)) {
            stream.length = length.max(stream.length);
        }
        self.shared.changed.notify_one();
    }

    /// Sends the step's log from `offset` on.
    pub fn send_from(&self, attempt: AttemptId, step: u32, offset: u64) {
        if let Some(stream) = self.shared.lock().streams.get_mut(&(attempt, step)) {
            stream.epoch += 1;
            stream.from = offset;
            stream.on = true;
        }
        self.shared.changed.notify_one();
    }

    /// Sends nothing more of this attempt.
    pub fn forget(&self, attempt: AttemptId) {
        self.shared.lock().streams.retain(|(a, _), _| *a != attempt);
        self.shared.changed.notify_one();
    }
}

impl Drop for BuildLogs {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_one();
    }
}

/// The task's progress with a step.
struct Cursor {
    epoch: u64,
    reader: Option<SpoolReader>,
    /// Next byte to read.
    next: u64,
    /// The broker has confirmed everything before this byte.
    confirmed: u64,
    in_flight: usize,
}

/// A published chunk and whether the broker has confirmed it.
struct Published {
    key: Key,
    epoch: u64,
    end: u64,
    size: usize,
    result: lapin::Result<Confirmation>,
}

/// The task.
struct Sender {
    shared: Arc<Shared>,
    sent: mpsc::Sender<LogSent>,
    key: String,
    properties: BasicProperties,
    generation: u64,
    channel: Option<Channel>,
    cursors: BTreeMap<Key, Cursor>,
    in_flight: FuturesOrdered<BoxFuture<'static, Published>>,
}

impl Sender {
    async fn run(mut self) {
        loop {
            let shared = self.shared.clone();
            let changed = shared.changed.notified();
            if shared.lock().closed {
                return;
            }
            match self.pump().await {
                Ok(()) => {}
                Err(why) => {
                    log(Level::Warn, &format!("sending logs is paused: {why}"));
                    self.rewind();
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            }
            tokio::select! {
                () = changed => {}
                Some(published) = self.in_flight.next(), if !self.in_flight.is_empty() => {
                    if let Err(why) = self.confirmed(published).await {
                        log(Level::Warn, &format!("sending logs is paused: {why}"));
                        self.rewind();
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
        }
    }

    /// Returns to what is confirmed, on a new channel.
    fn rewind(&mut self) {
        self.channel = None;
        self.in_flight = FuturesOrdered::new();
        for cursor in self.cursors.values_mut() {
            cursor.next = cursor.confirmed;
            cursor.in_flight = 0;
        }
    }

    async fn confirmed(&mut self, published: Published) -> Result<(), String> {
        let Published { key, epoch, end, size, result } = published;
        match result {
            Ok(Confirmation::Ack(_) | Confirmation::NotRequested) => {}
            Ok(Confirmation::Nack(_)) => return Err("the broker's queue of logs is full".to_owned()),
            Err(error) => return Err(error.to_string()),
        }
        let Some(cursor) = self.cursors.get_mut(&key).filter(|c| c.epoch == epoch) else { return Ok(()) };
        cursor.in_flight = cursor.in_flight.saturating_sub(size);
        cursor.confirmed = end;
        if cursor.in_flight == 0 {
            // A build may have many steps, each of which would keep a file open.
            cursor.reader = None;
        }
        let sent = LogSent { attempt: key.0, step: key.1, offset: end };
        self.sent.send(sent).await.map_err(|_| "the agent is ending".to_owned())
    }

    /// Publishes what the windows allow: one chunk of each step in turn.
    async fn pump(&mut self) -> Result<(), String> {
        let link = self.adopt();
        let Some(link) = link else { return Ok(()) };
        loop {
            let mut moved = false;
            let keys: Vec<Key> = self.cursors.keys().copied().collect();
            for key in keys {
                if self.in_flight.len() >= MAX_IN_FLIGHT {
                    return Ok(());
                }
                let chunk = match self.next_chunk(key) {
                    Ok(Some(chunk)) => chunk,
                    Ok(None) => continue,
                    Err(why) => {
                        // One unreadable file must not delay the others; the master requests again what it lacks.
                        log(Level::Error, &format!("the log of {}, step {}, cannot be sent: {why}", key.0, key.1));
                        if let Some(stream) = self.shared.lock().streams.get_mut(&key) {
                            stream.on = false;
                        }
                        self.cursors.remove(&key);
                        continue;
                    }
                };
                if self.channel.is_none() {
                    self.channel = Some(open(&link).await.map_err(|e| e.to_string())?);
                }
                self.publish(key, chunk);
                moved = true;
            }
            if !moved {
                return Ok(());
            }
        }
    }

    /// Adopts the owner's requests, and returns the link if there is one.
    fn adopt(&mut self) -> Option<Arc<Connection>> {
        let shared = self.shared.clone();
        let wanted = shared.lock();
        if wanted.generation != self.generation {
            self.generation = wanted.generation;
            self.channel = None;
            self.in_flight = FuturesOrdered::new();
            self.cursors.clear();
        }
        self.cursors.retain(|key, _| wanted.streams.get(key).is_some_and(|s| s.on));
        for (key, stream) in wanted.streams.iter().filter(|(_, s)| s.on) {
            let cursor = self.cursors.entry(*key).or_insert(Cursor {
                epoch: 0,
                reader: None,
                next: 0,
                confirmed: 0,
                in_flight: 0,
            });
            if cursor.epoch != stream.epoch {
                cursor.epoch = stream.epoch;
                cursor.next = stream.from;
                cursor.confirmed = stream.from;
                cursor.in_flight = 0;
            }
        }
        wanted.link.clone()
    }

    fn next_chunk(&mut self, key: Key) -> Result<Option<LogChunk>, String> {
        let Some(cursor) = self.cursors.get_mut(&key) else { return Ok(None) };
        let (session, path, length) = {
            let wanted = self.shared.lock();
            let Some(stream) = wanted.streams.get(&key) else { return Ok(None) };
            if cursor.next >= stream.length || cursor.in_flight + LOG_CHUNK > LOG_WINDOW {
                return Ok(None);
            }
            (stream.session.clone(), cursor.reader.is_none().then(|| stream.path.clone()), stream.length)
        };
        if let Some(path) = path {
            let reader = SpoolReader::open(&path).map_err(|e| format!("{} cannot be opened: {e}", path.display()))?;
            cursor.reader = Some(reader);
        }
        let Some(reader) = &cursor.reader else { return Ok(None) };
        let max = usize::try_from(length - cursor.next).unwrap_or(usize::MAX).min(LOG_CHUNK);
        let bytes = reader.read_at(cursor.next, max).map_err(|e| format!("a spool file cannot be read: {e}"))?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let offset = cursor.next;
        cursor.next += bytes.len() as u64;
        cursor.in_flight += bytes.len();
        Ok(Some(LogChunk { session, attempt: key.0, step: key.1, offset, bytes }))
    }

    fn publish(&mut self, key: Key, chunk: LogChunk) {
        let (Some(channel), Some(cursor)) = (self.channel.clone(), self.cursors.get(&key)) else { return };
        let (epoch, size) = (cursor.epoch, chunk.bytes.len());
        let end = chunk.offset + size as u64;
        let (routing_key, properties) = (self.key.clone(), self.properties.clone());
        let future = async move {
            let message = codec::encode(&chunk);
            drop(chunk);
            let options = BasicPublishOptions::default();
            let publishing =
                channel.basic_publish(names::AGENTS.into(), routing_key.as_str().into(), options, &message, properties);
            let result = match publishing.await {
                Ok(confirm) => confirm.await,
                Err(error) => Err(error),
            };
            Published { key, epoch, end, size, result }
        };
        self.in_flight.push_back(Box::pin(future));
    }
}

async fn open(link: &Connection) -> lapin::Result<Channel> {
    let channel = link.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok(channel)
}
