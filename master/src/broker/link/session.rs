//! One life of the connections: reads, acknowledges and publishes until the first of them fails.

use super::super::limits::{CLOSED_PROBES, INBOX_RETRY, INBOX_TIMEOUT};
use super::super::rate_limiter::RateLimiter;
use super::super::refusals::Refusals;
use super::closings::{Connections, address};
use super::connect::{self, Reader};
use super::outbound::{Waiting, publish};
use super::receipt::{Acks, Receipt};
use super::validate::{self, Dropped, Reason};
use super::{Inbound, LogDelivery};
use futures_util::{Stream, StreamExt};
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Connection, Event};
use rouse_shared::WorkerName;
use rouse_shared::names::BUILDS;
use std::pin::pin;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::warn;

/// Where things go.
pub(super) struct Ends {
    pub(super) inbound: mpsc::Sender<Inbound>,
    pub(super) logs: mpsc::Sender<LogDelivery>,
    pub(super) dropped: Arc<Dropped>,
    pub(super) conduct: RateLimiter,
}

/// Connected, declared and consuming.
pub(super) struct Session {
    pub(super) endpoint: String,
    pub(super) out: Channel,
    pub(super) control: Reader,
    pub(super) logs: Reader,
    pub(super) events: Option<Reader>,
    /// Of control, events and builds. Closed when dropped, as are the others.
    pub(super) reading: Arc<Connection>,
    pub(super) others: [Connection; 2],
}

const ENDING: &str = "the master is ending";

impl Session {
    /// Until something fails; then why.
    pub(super) async fn run(self, ends: &Ends, refusals: &Refusals, waiting: &mut Waiting) -> String {
        let Self { endpoint: _, out, control, logs, events, reading, others } = self;
        // Dropped at the end of this function, and with it every task.
        let mut tasks = JoinSet::new();
        let (inbound, dropped) = (ends.inbound.clone(), ends.dropped.clone());
        let (of_control, of_logs) = (ends.conduct.clone(), ends.conduct.clone());
        read(&mut tasks, control, dropped.clone(), inbound.clone(), move |user, delivery, receipt| {
            if user.is_some_and(|user| of_control.is_cut_off(user)) {
                return Err(Reason::CutOff);
            }
            let judged = validate::control(user, delivery.routing_key.as_str(), &delivery.data);
            let (worker, message) = judged.inspect_err(|_| of_control.dropped(user))?;
            of_control.sent(&worker, &message);
            Ok(Inbound::Agent { worker, message, receipt: receipt() })
        });
        read(&mut tasks, logs, dropped.clone(), ends.logs.clone(), move |user, delivery, receipt| {
            if user.is_some_and(|user| of_logs.is_cut_off(user)) {
                return Err(Reason::CutOff);
            }
            let judged = validate::log(user, delivery.routing_key.as_str(), &delivery.data);
            let (worker, chunk) = judged.inspect_err(|_| of_logs.dropped(user))?;
            Ok(LogDelivery { worker, chunk, receipt: receipt() })
        });
        tasks.spawn(take_builds(reading, dropped, inbound.clone()));
        if let Some(events) = events {
            tasks.spawn(listen(events, inbound.clone(), refusals.clone()));
        }
        let [publishing, _] = &others;
        tasks.spawn(tell_alarms(publishing.events_listener(), inbound.clone()));
        let why = tokio::select! {
            why = publish(out, waiting, &inbound) => why,
            Some(ended) = tasks.join_next() => match ended {
                Ok(why) => why,
                Err(error) => format!("a task failed: {error}"),
            },
        };
        drop(others);
        why
    }
}

/// Tells of the broker's alarms. It blocks only connections that publish, and says so there.
async fn tell_alarms(events: impl Stream<Item = Event> + Send + 'static, inbound: mpsc::Sender<Inbound>) -> String {
    let mut events = pin!(events);
    while let Some(event) = events.next().await {
        let told = match event {
            Event::ConnectionBlocked(why) => Inbound::Blocked { why },
            Event::ConnectionUnblocked => Inbound::Unblocked,
            // The end of the connection ends the channel as well.
            _ => continue,
        };
        if inbound.send(told).await.is_err() {
            return ENDING.to_owned();
        }
    }
    "a connection ended".to_owned()
}

/// Reads the queue of builds for as long as the connection holds. A queue that does not answer disturbs nothing else.
async fn take_builds(reading: Arc<Connection>, dropped: Arc<Dropped>, inbound: mpsc::Sender<Inbound>) -> String {
    let mut told = String::new();
    loop {
        let why = match tokio::time::timeout(INBOX_TIMEOUT, connect::inbox(&reading)).await {
            Ok(Ok(builds)) => {
                told.clear();
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
        if why != told {
            warn!("cannot take builds from the queue {BUILDS}: {why}; retrying");
            told = why;
        }
        tokio::time::sleep(INBOX_RETRY).await;
    }
}

fn submission(_user: Option<&str>, delivery: &mut Delivery, receipt: &dyn Fn() -> Receipt) -> Result<Inbound, Reason> {
    validate::submission(&delivery.data)?;
    let text = |field: &Option<ShortString>| field.as_ref().map(ToString::to_string);
    Ok(Inbound::Submit {
        body: std::mem::take(&mut delivery.data),
        content_type: text(delivery.properties.content_type()),
        message_id: text(delivery.properties.message_id()),
        reply_to: text(delivery.properties.reply_to()),
        correlation_id: text(delivery.properties.correlation_id()),
        receipt: receipt(),
    })
}

/// Spawns what consumes one queue: judges each delivery, hands on what passes and acknowledges what does not.
fn read<T: Send + 'static>(
    tasks: &mut JoinSet<String>,
    reader: Reader,
    dropped: Arc<Dropped>,
    to: mpsc::Sender<T>,
    judge: impl Fn(Option<&str>, &mut Delivery, &dyn Fn() -> Receipt) -> Result<T, Reason> + Send + 'static,
) {
    let acks = Acks::new();
    tasks.spawn(acks.clone().run(reader.channel));
    let mut consumer = reader.consumer;
    tasks.spawn(async move {
        loop {
            let mut delivery = match consumer.next().await {
                Some(Ok(delivery)) => delivery,
                Some(Err(error)) => return error.to_string(),
                None => return "the broker ended a consumer".to_owned(),
            };
            let tag = delivery.delivery_tag;
            let user = delivery.properties.user_id().as_ref().map(ToString::to_string);
            match judge(user.as_deref(), &mut delivery, &|| acks.receipt(tag)) {
                Ok(judged) => {
                    if to.send(judged).await.is_err() {
                        return ENDING.to_owned();
                    }
                }
                Err(reason) => {
                    dropped.count(reason, user.as_deref(), delivery.routing_key.as_str());
                    acks.receipt(tag).ack();
                }
            }
        }
    });
}

/// Follows the broker's own events.
async fn listen(reader: Reader, inbound: mpsc::Sender<Inbound>, refusals: Refusals) -> String {
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
                    connections.opened(&header(headers, "pid"), &header(headers, "user"));
                    None
                }
                "connection.closed" => connections.closed(&header(headers, "pid")),
                "user.authentication.failure" => {
                    refusals.turned_away(&header(headers, "name"), &address(&header(headers, "peer_host")));
                    None
                }
                other => {
                    warn!(event = other, "an event of the broker's that was not asked for");
                    None
                }
            };
            if let Some(worker) = closed {
                // Beside this loop, which has other connections to listen to.
                probes.spawn(tell_closed(worker, inbound.clone()));
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

/// Says that a worker's connection closed, until it has surely been noticed if it was the one that counts.
async fn tell_closed(worker: WorkerName, inbound: mpsc::Sender<Inbound>) {
    for pause in CLOSED_PROBES {
        tokio::time::sleep(pause).await;
        if inbound.send(Inbound::Closed { worker: worker.clone() }).await.is_err() {
            return;
        }
    }
}

/// A header's text, or nothing.
fn header(headers: &FieldTable, key: &str) -> String {
    match headers.inner().get(key) {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        Some(AMQPValue::ShortString(text)) => text.to_string(),
        Some(AMQPValue::ByteArray(bytes)) => String::from_utf8_lossy(bytes.as_slice()).into_owned(),
        Some(_) | None => String::new(),
    }
}
