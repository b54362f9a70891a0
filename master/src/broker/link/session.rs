//! One session of the connections: reads, acknowledges and publishes until one of them fails.

use super::super::limits::{BUILDS_RETRY, BUILDS_TIMEOUT, CLOSED_PROBES};
use super::super::rate_limiter::RateLimiter;
use super::super::refusals::Refusals;
use super::closings::{Connections, address};
use super::connect::{self, Reader};
use super::outbound::{Waiting, publish};
use super::queues;
use super::receipt::{Acks, Receipt};
use super::validate::{self, Dropped, Reason};
use super::{Inbound, LogDelivery};
use futures_util::{Stream, StreamExt};
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Connection, Event};
use rouse_shared::WorkerName;
use rouse_shared::names::{BUILDS, worker_of_key, worker_of_queue};
use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::warn;

/// Where received messages go.
pub(super) struct Ends {
    pub(super) inbound: mpsc::Sender<Inbound>,
    pub(super) logs: mpsc::Sender<LogDelivery>,
    pub(super) dropped: Arc<Dropped>,
    pub(super) conduct: RateLimiter,
}

/// Open connections, with everything declared and consumed.
pub(super) struct Session {
    pub(super) endpoint: String,
    pub(super) out: Channel,
    /// The master's own user, if the broker lets the master send in its name.
    pub(super) own: Option<ShortString>,
    pub(super) control: Reader,
    pub(super) logs: Reader,
    pub(super) events: Option<Reader>,
    /// For control messages, events and builds. Dropping it closes it, as with the others.
    pub(super) reading: Arc<Connection>,
    pub(super) others: [Connection; 2],
}

const ENDING: &str = "the master is ending";

/// The header in which RabbitMQ names the queue that a message was first dead in.
const DEAD_IN: &str = "x-first-death-queue";

impl Session {
    /// Runs until something fails. Returns the reason.
    pub(super) async fn run(self, ends: &Ends, refusals: &Refusals, waiting: &mut Waiting) -> String {
        let Self { endpoint: _, out, own, control, logs, events, reading, others } = self;
        // Dropped at the end of this function, which ends every task.
        let mut tasks = JoinSet::new();
        let (inbound, dropped) = (ends.inbound.clone(), ends.dropped.clone());
        let names = [control.queue.clone(), logs.queue.clone()];
        let (of_control, of_logs) = (ends.conduct.clone(), ends.conduct.clone());
        let publishes_as = own.clone();
        let own = own.map(|own| own.to_string());
        let own_too = own.clone();
        read(&mut tasks, control, dropped.clone(), inbound.clone(), move |user, delivery, receipt| {
            let key = delivery.routing_key.as_str();
            let bytes = delivery.data.len();
            let sender = sender(user, delivery, own.as_deref());
            if of_control.drops(&sender, bytes) {
                return Err(Reason::SenderBlocked);
            }
            let judged = from_agent(user, own.as_deref()).and_then(|()| validate::control(user, key, &delivery.data));
            let (worker, message) = judged.inspect_err(|_| of_control.dropped(&sender, bytes))?;
            if !of_control.sent(&worker, &message, bytes) {
                return Err(Reason::SenderBlocked);
            }
            Ok(Inbound::Agent { worker, message, receipt: receipt() })
        });
        read(&mut tasks, logs, dropped.clone(), ends.logs.clone(), move |user, delivery, receipt| {
            let key = delivery.routing_key.as_str();
            let bytes = delivery.data.len();
            let sender = sender(user, delivery, own_too.as_deref());
            if of_logs.drops(&sender, bytes) {
                return Err(Reason::SenderBlocked);
            }
            let judged = from_agent(user, own_too.as_deref()).and_then(|()| validate::log(user, key, &delivery.data));
            let (worker, chunk) = judged.inspect_err(|_| of_logs.dropped(&sender, bytes))?;
            if !of_logs.sent_chunk(&worker, &chunk.session, bytes) {
                return Err(Reason::SenderBlocked);
            }
            Ok(LogDelivery { worker, chunk, receipt: receipt() })
        });
        tasks.spawn(queues::delete_unread(reading.clone(), names));
        tasks.spawn(take_builds(reading, dropped, inbound.clone()));
        if let Some(events) = events {
            tasks.spawn(listen(events, inbound.clone(), refusals.clone(), ends.conduct.clone()));
        }
        let [publishing, _] = &others;
        tasks.spawn(watch_alarms(publishing.events_listener(), inbound.clone()));
        let why = tokio::select! {
            why = publish(out, publishes_as, waiting, &inbound) => why,
            Some(ended) = tasks.join_next() => match ended {
                Ok(why) => why,
                Err(error) => format!("a task failed: {error}"),
            },
        };
        drop(others);
        why
    }
}

/// The worker in whose name a message was sent. The broker lets nobody publish under a key that is not a worker's own, so
/// the key names it if the message does not. But an agent may declare a queue of its own from which RabbitMQ sends what
/// the master has written to it on, as a dead letter, under any key: it has the master's `user_id`, and the name of that
/// queue.
fn sender(user: Option<&str>, delivery: &Delivery, own: Option<&str>) -> String {
    let key = delivery.routing_key.as_str();
    match user {
        Some(user) if own == Some(user) => {
            let headers = delivery.properties.headers().as_ref();
            let queue = headers.map_or_else(String::new, |headers| header(headers, DEAD_IN));
            worker_of_queue(&queue).map_or_else(|| user.to_owned(), |worker| worker.to_string())
        }
        Some(user) => user.to_owned(),
        None => worker_of_key(key).map_or_else(|| key.to_owned(), |worker| worker.to_string()),
    }
}

/// Whether a message is not one of the master's own that has come back.
fn from_agent(user: Option<&str>, own: Option<&str>) -> Result<(), Reason> {
    if user.is_some() && user == own { Err(Reason::Misaddressed) } else { Ok(()) }
}

/// Passes on the broker's alarms. An alarm blocks only connections that publish, and is announced there.
async fn watch_alarms(events: impl Stream<Item = Event> + Send + 'static, inbound: mpsc::Sender<Inbound>) -> String {
    let mut events = pin!(events);
    while let Some(event) = events.next().await {
        let news = match event {
            Event::ConnectionBlocked(why) => Inbound::Blocked { why },
            Event::ConnectionUnblocked => Inbound::Unblocked,
            // The end of the connection ends the channel as well.
            _ => continue,
        };
        if inbound.send(news).await.is_err() {
            return ENDING.to_owned();
        }
    }
    "a connection ended".to_owned()
}

/// Reads the submission queue as long as the connection lasts. If the queue does not answer, nothing else is affected.
async fn take_builds(reading: Arc<Connection>, dropped: Arc<Dropped>, inbound: mpsc::Sender<Inbound>) -> String {
    let mut reported = String::new();
    loop {
        let why = match tokio::time::timeout(BUILDS_TIMEOUT, connect::read_builds(&reading)).await {
            Ok(Ok(builds)) => {
                reported.clear();
                let mut tasks = JoinSet::new();
                read(&mut tasks, builds, dropped.clone(), inbound.clone(), submission);
                match tasks.join_next().await {
                    Some(Ok(why)) => why,
                    Some(Err(error)) => format!("a task failed: {error}"),
                    None => String::new(),
                }
            }
            Ok(Err(error)) => error.to_string(),
            Err(_elapsed) => "the queue does not answer; perhaps it has lost its quorum".to_owned(),
        };
        if !reading.status().connected() || inbound.is_closed() {
            return why;
        }
        if why != reported {
            warn!("cannot take builds from the queue {BUILDS}: {why}; retrying");
            reported = why;
        }
        tokio::time::sleep(BUILDS_RETRY).await;
    }
}

fn submission(user: Option<&str>, delivery: &mut Delivery, receipt: &dyn Fn() -> Receipt) -> Result<Inbound, Reason> {
    validate::submission(&delivery.data)?;
    let text = |field: &Option<ShortString>| field.as_ref().map(ToString::to_string);
    Ok(Inbound::Submit {
        body: std::mem::take(&mut delivery.data),
        content_type: text(delivery.properties.content_type()),
        message_id: text(delivery.properties.message_id()),
        user: user.map(str::to_owned),
        reply_to: text(delivery.properties.reply_to()),
        correlation_id: text(delivery.properties.correlation_id()),
        receipt: receipt(),
    })
}

/// Starts the consumer of one queue: validates each delivery, passes on the valid ones and acknowledges the others.
fn read<T: Send + 'static>(
    tasks: &mut JoinSet<String>,
    reader: Reader,
    dropped: Arc<Dropped>,
    to: mpsc::Sender<T>,
    judge: impl Fn(Option<&str>, &mut Delivery, &dyn Fn() -> Receipt) -> Result<T, Reason> + Send + 'static,
) {
    let acks = Acks::new();
    tasks.spawn(acks.clone().run(reader.channel));
    tasks.spawn(pass_on(reader.consumer, acks, dropped, to, judge));
}

/// Goes on reading while nobody takes what is valid, because the AMQP library keeps in memory what is not read: a few
/// hundred of the largest messages that the broker accepts would be a gigabyte. Valid messages are small, and no more of
/// them wait than are delivered and not acknowledged.
async fn pass_on<T>(
    mut deliveries: impl Stream<Item = lapin::Result<Delivery>> + Unpin,
    acks: Arc<Acks>,
    dropped: Arc<Dropped>,
    to: mpsc::Sender<T>,
    judge: impl Fn(Option<&str>, &mut Delivery, &dyn Fn() -> Receipt) -> Result<T, Reason>,
) -> String {
    let mut waiting = VecDeque::new();
    loop {
        let next = tokio::select! {
            room = to.reserve(), if !waiting.is_empty() => {
                let Ok(room) = room else { return ENDING.to_owned() };
                if let Some(message) = waiting.pop_front() {
                    room.send(message);
                }
                continue;
            }
            next = deliveries.next() => next,
        };
        let mut delivery = match next {
            Some(Ok(delivery)) => delivery,
            Some(Err(error)) => return error.to_string(),
            None => return "the broker ended a consumer".to_owned(),
        };
        let tag = delivery.delivery_tag;
        let user = delivery.properties.user_id().as_ref().map(ToString::to_string);
        match judge(user.as_deref(), &mut delivery, &|| acks.receipt(tag)) {
            Ok(judged) => waiting.push_back(judged),
            Err(reason) => {
                dropped.count(reason, user.as_deref(), delivery.routing_key.as_str());
                acks.receipt(tag).ack();
            }
        }
    }
}

/// Reads the broker's events.
async fn listen(reader: Reader, inbound: mpsc::Sender<Inbound>, refusals: Refusals, conduct: RateLimiter) -> String {
    let acks = Acks::new();
    let acknowledging = acks.clone().run(reader.channel);
    let mut consumer = reader.consumer;
    let mut connections = Connections::default();
    let mut probes = JoinSet::new();
    let listening = async move {
        while let Some(delivery) = consumer.next().await {
            let delivery = match delivery {
                Ok(delivery) => delivery,
                Err(error) => return error.to_string(),
            };
            acks.receipt(delivery.delivery_tag).ack();
            let none = FieldTable::default();
            let headers = delivery.properties.headers().as_ref().unwrap_or(&none);
            let closed = match delivery.routing_key.as_str() {
                "connection.created" => {
                    let opened = connections.opened(&header(headers, "pid"), &header(headers, "user"));
                    if let Some((worker, connections)) = opened {
                        conduct.connected(&worker, connections);
                    }
                    None
                }
                "connection.closed" => connections.closed(&header(headers, "pid")),
                "user.authentication.failure" => {
                    refusals.turned_away(&header(headers, "name"), &address(&header(headers, "peer_host")));
                    None
                }
                other => {
                    warn!(event = other, "an event of the broker that was not requested");
                    None
                }
            };
            if let Some(worker) = closed {
                // In a separate task, because this loop reads the events of other connections.
                probes.spawn(report_closed(worker, inbound.clone()));
            }
            while probes.try_join_next().is_some() {}
            if inbound.is_closed() {
                return ENDING.to_owned();
            }
        }
        "the broker ended a consumer".to_owned()
    };
    tokio::select! {
        why = listening => why,
        why = acknowledging => why,
    }
}

/// Reports that a worker's connection has closed, until it must have been noticed if it was the current one.
async fn report_closed(worker: WorkerName, inbound: mpsc::Sender<Inbound>) {
    for pause in CLOSED_PROBES {
        tokio::time::sleep(pause).await;
        if inbound.send(Inbound::Closed { worker: worker.clone() }).await.is_err() {
            return;
        }
    }
}

/// The text of a header, or an empty one.
pub(in crate::broker) fn header(headers: &FieldTable, key: &str) -> String {
    match headers.inner().get(key) {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        Some(AMQPValue::ShortString(text)) => text.to_string(),
        Some(AMQPValue::ByteArray(bytes)) => String::from_utf8_lossy(bytes.as_slice()).into_owned(),
        Some(_) | None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use futures_util::stream;
    use rouse_shared::limits::{MAX_CONTROL, MAX_MESSAGE};
    use std::time::Duration;

    /// Nobody takes the valid messages, because the disk hangs. What is too large is dropped all the same.
    #[tokio::test]
    async fn large_messages_do_not_wait_behind_valid_ones() {
        const LARGE: u64 = 100;
        let sizes = std::iter::repeat_n(1, 3).chain(std::iter::repeat_n(MAX_MESSAGE, LARGE as usize));
        let delivery = |(tag, size)| Ok(Delivery::mock(tag, "".into(), "w.control".into(), false, vec![0; size]));
        let deliveries = stream::iter((1..).zip(sizes)).map(delivery).chain(stream::pending());
        let judge = |_: Option<&str>, delivery: &mut Delivery, receipt: &dyn Fn() -> Receipt| {
            if delivery.data.len() > MAX_CONTROL { Err(Reason::Oversized) } else { Ok(receipt()) }
        };
        let (to, mut taken) = mpsc::channel(1);
        let dropped = Arc::new(Dropped::default());
        let passing = tokio::spawn(pass_on(deliveries, Acks::new(), dropped.clone(), to, judge));
        let all = async {
            while dropped.total() < LARGE {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), all).await.expect("all of the large messages are dropped");
        for _ in 0..3 {
            taken.recv().await.unwrap().ack();
        }
        drop(taken);
        passing.abort();
    }
}
