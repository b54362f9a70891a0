//! What a node shows through AMQP: its version, its events, and whether it is in the same cluster as the others.

use super::super::limits::CONNECT_TIMEOUT;
use super::super::link::{Tls, classic, code, dial, header, shown, stream};
use futures_util::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::parsing::parse_field_table;
use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::AMQPUri;
use lapin::{BasicProperties, Connection, Consumer, ExchangeKind};
use rouse_shared::{Nonce, WorkerName, names};
use std::fmt;
use std::time::Duration;
use tokio::time::timeout;

/// AMQP's reply codes.
const ACCESS_REFUSED: u16 = 403;
const NOT_FOUND: u16 = 404;
/// How long an event or a message within the cluster may take.
const ARRIVES: Duration = Duration::from_secs(5);
/// The exchange of the broker's events.
const EVENTS: &str = "amq.rabbitmq.event";

/// The version that a broker names in its greeting; absent if it is no RabbitMQ.
pub(super) async fn version(uri: &AMQPUri, tls: &Tls) -> Option<String> {
    let greeting = async {
        let mut stream = stream(uri, tls, &lapin::runtime::default_runtime().ok()?).await.ok()?;
        stream.write_all(b"AMQP\0\0\x09\x01").await.ok()?;
        stream.flush().await.ok()?;
        // A frame begins with its type, its channel and its length.
        let mut start = [0; 7];
        stream.read_exact(&mut start).await.ok()?;
        let length = u32::from_be_bytes([start[3], start[4], start[5], start[6]]);
        let mut frame = vec![0; usize::try_from(length.min(64 << 10)).ok()?];
        stream.read_exact(&mut frame).await.ok()?;
        // The class and the method, connection.start, and the version of the protocol precede the properties.
        let (_, properties) = parse_field_table(frame.get(6..)?).ok()?;
        match properties.inner().get("version") {
            Some(AMQPValue::LongString(version)) => Some(version.to_string()),
            _ => None,
        }
    };
    timeout(CONNECT_TIMEOUT, greeting).await.ok()?
}

/// Whether the node publishes its events where the master listens, and the master's account may read them.
pub(super) async fn events(connection: &Connection, uri: &AMQPUri, tls: &Tls) -> Result<(), String> {
    let vhost = &uri.vhost;
    let trouble = |error: lapin::Error| match code(&error) {
        Some(NOT_FOUND) => format!(
            "it publishes no events in the virtual host {vhost}, so a killed agent is noticed only when its lease \
             expires: enable the plugin rabbitmq_event_exchange and set event_exchange.vhost = {vhost} in rabbitmq.conf"
        ),
        _ => refused(vhost, &error).unwrap_or_else(|| format!("its events cannot be read: {error}")),
    };
    let look = async {
        let channel = connection.create_channel().await?;
        let passive = ExchangeDeclareOptions { passive: true, ..Default::default() };
        channel.exchange_declare(EVENTS.into(), ExchangeKind::Topic, passive, FieldTable::default()).await?;
        let exclusive = QueueDeclareOptions { exclusive: true, ..Default::default() };
        let queue = channel.queue_declare("".into(), exclusive, classic()).await?.name().clone();
        let (options, none) = (QueueBindOptions::default(), FieldTable::default());
        channel.queue_bind(queue.clone(), EVENTS.into(), "connection.created".into(), options, none.clone()).await?;
        let consumer = channel.basic_consume(queue, "".into(), unacknowledged(), none).await?;
        let _another = dial(uri, tls, "rouse check: an event").await?;
        Ok::<_, lapin::Error>(own_event(consumer, &uri.authority.userinfo.username).await)
    };
    match timeout(CONNECT_TIMEOUT, look).await {
        // The exchange belongs to the cluster, and the plugin to the node.
        Ok(Ok(false)) => Err(format!(
            "it publishes no events of its own connections in the virtual host {vhost}, so an agent that is killed on \
             this node is noticed only when its lease expires: enable the plugin rabbitmq_event_exchange on this node as \
             well, and set event_exchange.vhost = {vhost} in its rabbitmq.conf"
        )),
        Ok(looked) => looked.map(drop).map_err(trouble),
        Err(_elapsed) => Err(late(CONNECT_TIMEOUT)),
    }
}

/// Whether the broker reports a connection of this user.
async fn own_event(mut consumer: Consumer, user: &str) -> bool {
    let reported = async {
        while let Some(Ok(event)) = consumer.next().await {
            if event.properties.headers().as_ref().is_some_and(|headers| header(headers, "user") == user) {
                return true;
            }
        }
        false
    };
    timeout(ARRIVES, reported).await.unwrap_or(false)
}

/// A queue as that of an agent, with an exchange, on the first node. The other nodes know both, and what is published
/// there arrives, if they are in one cluster.
pub(super) struct Probe {
    place: String,
    queue: String,
    exchange: String,
    connection: Connection,
    consumer: Consumer,
}

impl Probe {
    pub(super) async fn new(uri: &AMQPUri, tls: &Tls) -> Result<Self, String> {
        let trouble = |error: &dyn fmt::Display| format!("queues cannot be declared: {error}");
        let mut random = [0_u8; 8];
        getrandom::fill(&mut random).map_err(|error| trouble(&error))?;
        let exchange = format!("rouse.check-{}", hex::encode(random));
        let worker: WorkerName = format!("check-{}", hex::encode(random)).parse().map_err(|error| trouble(&error))?;
        let queue = names::agent_queue(&worker, &Nonce("check".to_owned()), 0);
        let declare = async {
            let connection = dial(uri, tls, "rouse check: a queue").await?;
            let channel = connection.create_channel().await?;
            // Deleted with its last binding, that is, with the queue.
            let temporary = ExchangeDeclareOptions { auto_delete: true, ..Default::default() };
            let none = FieldTable::default();
            let name = || exchange.as_str().into();
            channel.exchange_declare(name(), ExchangeKind::Topic, temporary, none.clone()).await?;
            let exclusive = QueueDeclareOptions { exclusive: true, ..Default::default() };
            channel.queue_declare(queue.as_str().into(), exclusive, classic()).await?;
            let bind = QueueBindOptions::default();
            channel.queue_bind(queue.as_str().into(), name(), "#".into(), bind, none.clone()).await?;
            let consumer = channel.basic_consume(queue.as_str().into(), "".into(), unacknowledged(), none).await?;
            Ok::<_, lapin::Error>((connection, consumer))
        };
        let (connection, consumer) = match timeout(CONNECT_TIMEOUT, declare).await {
            Ok(Ok(made)) => made,
            Ok(Err(error)) => return Err(refused(&uri.vhost, &error).unwrap_or_else(|| trouble(&error))),
            Err(_elapsed) => return Err(late(CONNECT_TIMEOUT)),
        };
        Ok(Self { place: shown(uri), queue, exchange, connection, consumer })
    }

    /// The queue's name.
    pub(super) fn queue(&self) -> &str {
        &self.queue
    }

    /// Whether a message from this connection, to a node that may be another one, arrives.
    pub(super) async fn is_reached(&mut self, connection: &Connection) -> Result<(), String> {
        let send = async {
            let channel = connection.create_channel().await?;
            let passive = ExchangeDeclareOptions { passive: true, ..Default::default() };
            let name = || self.exchange.as_str().into();
            channel.exchange_declare(name(), ExchangeKind::Topic, passive, FieldTable::default()).await?;
            let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
            channel.basic_publish(name(), "check".into(), options, b"check", properties).await.map(drop)
        };
        match timeout(CONNECT_TIMEOUT, send).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) if code(&error) == Some(NOT_FOUND) => {
                return Err(format!(
                    "it is not in the same cluster as {}: broker.url must name nodes of one cluster",
                    self.place
                ));
            }
            Ok(Err(error)) => return Err(format!("nothing can be published: {error}")),
            Err(_elapsed) => return Err(late(CONNECT_TIMEOUT)),
        }
        match timeout(ARRIVES, self.consumer.next()).await {
            Ok(Some(Ok(_arrived))) => Ok(()),
            Ok(_) => Err(format!("the connection to {} was lost", self.place)),
            Err(_elapsed) => Err(format!(
                "a message from it does not reach {} within {} s: the nodes may be cut off from each other",
                self.place,
                ARRIVES.as_secs()
            )),
        }
    }

    /// Deletes everything. If this fails, the broker deletes it when it notices that the connection is gone.
    pub(super) async fn close(self) {
        drop(timeout(ARRIVES, self.connection.close(200, "checked".into())).await);
    }
}

fn unacknowledged() -> BasicConsumeOptions {
    BasicConsumeOptions { no_ack: true, ..Default::default() }
}

/// The permissions that the master's account needs, if their lack is the error.
fn refused(vhost: &str, error: &lapin::Error) -> Option<String> {
    (code(error) == Some(ACCESS_REFUSED)).then(|| {
        format!(
            "the master's account lacks permissions in the virtual host {vhost}; it needs all three (configure, write, \
             read) for \".*\": {error}"
        )
    })
}

fn late(limit: Duration) -> String {
    format!("no answer within {} s", limit.as_secs())
}
