//! The queues that only the master reads.
//!
//! They are classic queues, so each lies on one node of a cluster, and is not there while that node is down. Agents send
//! again what the master has not answered. Therefore the master does not wait for the node: it declares a queue of
//! another name on a node that is up. Agents notice nothing, since they send to an exchange.

use super::super::limits::{
    CONTROL_PREFETCH, CONTROL_QUEUE_BYTES, CONTROL_QUEUE_LENGTH, LOG_PREFETCH, LOG_QUEUE_BYTES, UNREAD_QUEUES,
};
use super::connect::{Reader, code, reader, table, text};
use lapin::options::{QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ErrorKind};
use rouse_shared::names;
use std::sync::Arc;
use tracing::{info, warn};

/// What is added to the name of a queue, in the order in which the names are tried. Four queues are enough for a cluster
/// of seven nodes, of which three may be down.
const SUFFIXES: [&str; 4] = ["", ".2", ".3", ".4"];
/// AMQP's reply code for a queue whose node is down.
const NOT_FOUND: u16 = 404;

/// A queue that only the master reads.
pub(super) struct Queue {
    name: &'static str,
    binding: &'static str,
    prefetch: u16,
    arguments: fn() -> FieldTable,
}

/// Messages of agents that are not logs. The oldest are dropped if there are too many.
pub(super) const CONTROL: Queue = Queue {
    name: names::CONTROL,
    binding: names::CONTROL_BINDING,
    prefetch: CONTROL_PREFETCH,
    arguments: || {
        table(&[
            ("x-queue-type", text("classic")),
            ("x-max-length", AMQPValue::LongLongInt(CONTROL_QUEUE_LENGTH)),
            ("x-max-length-bytes", AMQPValue::LongLongInt(CONTROL_QUEUE_BYTES)),
        ])
    },
};

/// Chunks of logs. If there are too many, agents wait.
pub(super) const LOGS: Queue = Queue {
    name: names::LOGS,
    binding: names::LOGS_BINDING,
    prefetch: LOG_PREFETCH,
    arguments: || {
        table(&[
            ("x-queue-type", text("classic")),
            ("x-max-length-bytes", AMQPValue::LongLongInt(LOG_QUEUE_BYTES)),
            ("x-overflow", text("reject-publish")),
        ])
    },
};

/// Declares the queue on a node that is up, and reads it. A second master on the same virtual host is refused.
pub(super) async fn read(connection: &Connection, queue: &Queue) -> lapin::Result<Reader> {
    let mut lost = None;
    for suffix in SUFFIXES {
        let name = format!("{}{suffix}", queue.name);
        match declare(connection, queue, &name).await {
            Ok(()) => {
                if let Some(error) = lost {
                    warn!("reading {name}, since a node of the cluster is down: {error}");
                }
                return reader(connection, &name, queue.prefetch, true).await;
            }
            Err(error) if code(&error) == Some(NOT_FOUND) => lost = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(lost.unwrap_or_else(|| ErrorKind::InvalidChannel(0).into()))
}

/// On a channel of its own, which an error closes.
async fn declare(connection: &Connection, queue: &Queue, name: &str) -> lapin::Result<()> {
    let channel = connection.create_channel().await?;
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(name.into(), durable, (queue.arguments)()).await?;
    let (options, none) = (QueueBindOptions::default(), FieldTable::default());
    channel.queue_bind(name.into(), names::AGENTS.into(), queue.binding.into(), options, none).await?;
    channel.close(200, "declared".into()).await
}

/// Deletes the queues of other names than those that are `read`, once the nodes that they lie on are back, as long as the
/// connection lasts. They would fill, and agents would wait for them.
pub(super) async fn delete_unread(connection: Arc<Connection>, read: [String; 2]) -> String {
    let names = [CONTROL.name, LOGS.name].map(|name| SUFFIXES.map(|suffix| format!("{name}{suffix}")));
    let unread: Vec<&String> = names.iter().flatten().filter(|name| !read.contains(name)).collect();
    loop {
        tokio::time::sleep(UNREAD_QUEUES).await;
        for name in &unread {
            match delete(&connection, name).await {
                Ok(0) => {}
                Ok(messages) => {
                    info!("deleted the queue {name} with {messages} messages: the master reads another one")
                }
                // It is in use, or its node is down.
                Err(_) if connection.status().connected() => {}
                Err(error) => return error.to_string(),
            }
        }
    }
}

/// Deletes a queue that nobody reads, if there is one. Returns the number of messages that were in it.
async fn delete(connection: &Connection, name: &str) -> lapin::Result<u32> {
    let channel = connection.create_channel().await?;
    let unused = QueueDeleteOptions { if_unused: true, ..Default::default() };
    let messages = channel.queue_delete(name.into(), unused).await?;
    channel.close(200, "done".into()).await?;
    Ok(messages)
}
