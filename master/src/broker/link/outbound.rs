//! Outgoing messages. They are encoded before they are queued, so that the waiting bytes can be counted and limited.

use super::super::limits::{
    ALARM_PROBE, OUTBOUND_BYTES, OUTBOUND_MESSAGES, OUTBOUND_TO_ONE, PUBLISH_BATCH, PUBLISH_BATCH_BYTES,
};
use super::super::rate_limiter::RateLimiter;
use super::Inbound;
use super::connect::in_order;
use crate::sync::lock;
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel};
use rouse_shared::codec;
use rouse_shared::limits::MAX_MESSAGE;
use rouse_shared::message::ToAgent;
use rouse_shared::names::{EVENTS, worker_of_queue};
use rouse_shared::{SessionId, WorkerName};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tracing::warn;

/// An outgoing message.
#[derive(Debug)]
pub enum Outbound {
    /// To an agent's own queue. Returned as [`Inbound::Unroutable`] if that queue no longer exists.
    Agent {
        /// The queue in its hello.
        queue: String,
        /// The message.
        message: ToAgent,
    },
    /// A change, for all listeners on [`EVENTS`].
    Event {
        /// Routing key, at most 255 bytes.
        key: String,
        /// JSON.
        body: Vec<u8>,
    },
    /// The reply to a submitted build.
    Reply {
        /// The queue that was named in `reply_to`.
        to: String,
        /// From the submission.
        correlation_id: Option<String>,
        /// JSON.
        body: Vec<u8>,
    },
}

/// An encoded message.
pub(super) struct Encoded {
    exchange: &'static str,
    key: ShortString,
    properties: BasicProperties,
    mandatory: bool,
    body: Vec<u8>,
    /// Whose agents it is for.
    worker: Option<WorkerName>,
    waiting: Arc<Counts>,
}

impl Drop for Encoded {
    fn drop(&mut self) {
        self.waiting.bytes.fetch_sub(self.body.len(), Ordering::Relaxed);
        if let Some(worker) = &self.worker {
            let mut workers = lock(&self.waiting.workers);
            if let Some((messages, bytes)) = workers.get_mut(worker) {
                (*messages, *bytes) = (*messages - 1, *bytes - self.body.len());
                if *messages == 0 {
                    workers.remove(worker);
                }
            }
        }
    }
}

/// What waits to be sent.
#[derive(Default)]
struct Counts {
    bytes: AtomicUsize,
    /// The number of messages and of bytes to the agents of each worker.
    workers: Mutex<HashMap<WorkerName, (usize, usize)>>,
}

impl Counts {
    /// Counts a message to the agents of a worker. Returns whether there is room for it.
    fn add(&self, worker: &WorkerName, bytes: usize) -> bool {
        let mut workers = lock(&self.workers);
        let of = workers.entry(worker.clone()).or_default();
        *of = (of.0 + 1, of.1 + bytes);
        // One message always has room.
        of.0 == 1 || (of.0 <= OUTBOUND_TO_ONE.0 && of.1 <= OUTBOUND_TO_ONE.1)
    }
}

pub(super) type Waiting = mpsc::Receiver<Encoded>;

/// The queue of outgoing messages. Closed while the link is down.
pub(super) struct Outbox {
    queue: mpsc::Sender<Encoded>,
    open: AtomicBool,
    waiting: Arc<Counts>,
    unsent: AtomicU64,
    conduct: RateLimiter,
}

impl Outbox {
    pub(super) fn new(conduct: RateLimiter) -> (Self, Waiting) {
        let (queue, waiting) = mpsc::channel(OUTBOUND_MESSAGES);
        let (open, unsent) = (AtomicBool::new(false), AtomicU64::new(0));
        (Self { queue, open, waiting: Arc::default(), unsent, conduct }, waiting)
    }

    pub(super) fn try_send(&self, message: Outbound) -> bool {
        let sent = self.is_open() && self.encode(message).is_some_and(|encoded| self.queue.try_send(encoded).is_ok());
        if !sent {
            self.unsent.fetch_add(1, Ordering::Relaxed);
        }
        sent
    }

    /// None if the message is too large, or too much is waiting.
    fn encode(&self, message: Outbound) -> Option<Encoded> {
        let mandatory = matches!(message, Outbound::Agent { .. });
        let transient = BasicProperties::default().with_delivery_mode(1);
        let json = || transient.clone().with_content_type("application/json".into());
        let (exchange, key, properties, worker, body) = match message {
            Outbound::Agent { queue, message } => {
                if let Some(session) = answered(&message) {
                    self.conduct.answered(session, &queue);
                }
                let worker = worker_of_queue(&queue);
                ("", queue, transient, worker, codec::encode(&message))
            }
            Outbound::Event { key, body } => (EVENTS, key, json(), None, body),
            Outbound::Reply { to, correlation_id, body } => {
                let properties = match correlation_id {
                    Some(id) => json().with_correlation_id(short(id)?),
                    None => json(),
                };
                ("", to, properties, None, body)
            }
        };
        if body.len() > MAX_MESSAGE {
            warn!(bytes = body.len(), "a message is too large for the wire and is not sent");
            return None;
        }
        let key = short(key)?;
        let before = self.waiting.bytes.fetch_add(body.len(), Ordering::Relaxed);
        let room = worker.as_ref().is_none_or(|worker| self.waiting.add(worker, body.len()));
        let encoded = Encoded { exchange, key, properties, mandatory, body, worker, waiting: self.waiting.clone() };
        (room && before + encoded.body.len() <= OUTBOUND_BYTES).then_some(encoded)
    }

    /// Accepts messages from now on. Those that are left from before are outdated.
    pub(super) fn open(&self, waiting: &mut Waiting) {
        while waiting.try_recv().is_ok() {
            self.unsent.fetch_add(1, Ordering::Relaxed);
        }
        self.open.store(true, Ordering::Release);
    }

    pub(super) fn close(&self) {
        self.open.store(false, Ordering::Release);
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// Whether everything in the queue has been written.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.bytes.load(Ordering::Relaxed) == 0
    }

    pub(super) fn unsent(&self) -> u64 {
        self.unsent.load(Ordering::Relaxed)
    }
}

/// The session that an answer says is the worker's.
fn answered(message: &ToAgent) -> Option<&SessionId> {
    match message {
        ToAgent::Welcome(welcome) => Some(&welcome.session),
        ToAgent::Renewed { session, .. } => Some(session),
        ToAgent::Refused { .. }
        | ToAgent::RunAttempt(_)
        | ToAgent::Cancel { .. }
        | ToAgent::Settled { .. }
        | ToAgent::Resend { .. }
        | ToAgent::Drain { .. }
        | ToAgent::Undrain { .. } => None,
    }
}

/// AMQP's short strings have at most 255 bytes; lapin panics beyond.
fn short(text: String) -> Option<ShortString> {
    ShortString::try_new(text)
        .inspect_err(|error| warn!(%error, "a name is too long for AMQP and its message is not sent"))
        .ok()
}

/// Interval of the checks for returned messages, and their number after the last message that could be returned.
const LOOK: Duration = Duration::from_millis(50);
const LOOKS: u32 = 40;

/// A queue that nobody has.
pub(super) const NOBODY: &str = "rouse.nobody";

/// Publishes what waits until the channel fails, in the name of the master's `own` user if that is known. Returns the
/// reason.
pub(super) async fn publish(
    channel: Channel,
    own: Option<ShortString>,
    waiting: &mut Waiting,
    inbound: &mpsc::Sender<Inbound>,
) -> String {
    let mut looks_left = 0;
    let mut probe = tokio::time::interval(ALARM_PROBE);
    probe.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut batch = Vec::with_capacity(PUBLISH_BATCH);
    loop {
        tokio::select! {
            first = waiting.recv() => match first {
                Some(first) => batch.push(first),
                None => return "the master is ending".to_owned(),
            },
            () = tokio::time::sleep(LOOK), if looks_left > 0 => looks_left -= 1,
            // In an alarm RabbitMQ blocks a connection, and says so, when something is published on it.
            _ = probe.tick() => {
                let (options, transient) = (BasicPublishOptions::default(), BasicProperties::default());
                if let Err(error) = channel.basic_publish("".into(), NOBODY.into(), options, &[], transient).await {
                    return format!("publishing failed: {error}");
                }
            }
        }
        let mut bytes: usize = batch.iter().map(|message| message.body.len()).sum();
        while !batch.is_empty() && batch.len() < PUBLISH_BATCH && bytes < PUBLISH_BATCH_BYTES {
            let Ok(message) = waiting.try_recv() else { break };
            bytes += message.body.len();
            batch.push(message);
        }
        if batch.iter().any(|message| message.mandatory) {
            looks_left = LOOKS;
        }
        let sent = batch.iter().map(|message| {
            let options = BasicPublishOptions { mandatory: message.mandatory, immediate: false };
            channel.basic_publish(
                message.exchange.into(),
                message.key.clone(),
                options,
                &message.body,
                // What agents get from RabbitMQ under their own conditions is recognised by it, see `sender`.
                match &own {
                    Some(own) if message.worker.is_some() => message.properties.clone().with_user_id(own.clone()),
                    _ => message.properties.clone(),
                },
            )
        });
        // Without confirms, this only waits until the messages are written.
        for result in in_order(sent).await {
            if let Err(error) = result {
                return format!("publishing failed: {error}");
            }
        }
        batch.clear();
        // Without confirms, this does not wait. It makes lapin hand out the returned messages.
        match channel.wait_for_confirms().await {
            Ok(returned) => {
                for message in returned {
                    let queue = message.delivery.routing_key.to_string();
                    if inbound.send(Inbound::Unroutable { queue }).await.is_err() {
                        return "the master is ending".to_owned();
                    }
                }
            }
            Err(error) => return format!("publishing failed: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::broker::refusals::Refusals;

    #[tokio::test]
    async fn an_agent_that_causes_many_answers_leaves_room_for_those_to_others() {
        let (outbox, mut waiting) = Outbox::new(RateLimiter::new(Refusals::default()));
        outbox.open(&mut waiting);
        let to = |queue: &str| {
            let message = ToAgent::Renewed { session: SessionId("s".to_owned()), seq: 1, lease_ms: None };
            outbox.try_send(Outbound::Agent { queue: queue.to_owned(), message })
        };
        // Its queues may have any name that is its own.
        let sent = (0..2 * OUTBOUND_MESSAGES).filter(|n| to(&format!("rouse.agent.hostile.n.{n}"))).count();
        assert_eq!(sent, OUTBOUND_TO_ONE.0);
        assert!(to("rouse.agent.honest.n.1"));
        while waiting.try_recv().is_ok() {}
        assert!(outbox.is_empty() && lock(&outbox.waiting.workers).is_empty());
        assert!(to("rouse.agent.hostile.n.1"));
    }
}
