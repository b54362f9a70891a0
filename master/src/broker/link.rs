//! The master's AMQP connections: declares queues and exchanges, consumes, publishes, and reconnects without a time
//! limit.
//!
//! There are three connections. One publishes, because a broker that runs out of memory stops reading from publishers,
//! and it needs acknowledgements to free its memory. One reads logs, because a flood of them must not delay heartbeats.
//! One reads everything else. They are opened and closed together.

mod closings;
mod connect;
mod outbound;
mod queues;
mod receipt;
mod session;
mod uri;
mod validate;

pub use connect::Trust;
pub(super) use connect::{Tls, classic, code, declare_builds, dial, stream};
pub use outbound::Outbound;
pub use receipt::{Receipt, ack_all};
pub(super) use session::header;
pub use uri::Endpoints;
pub(super) use uri::shown;
pub use validate::Dropped;

use super::limits::RECONNECT;
use super::node::NodeState;
use super::rate_limiter::RateLimiter;
use super::refusals::Refusals;
use outbound::Outbox;
use rouse_shared::WorkerName;
use rouse_shared::message::{LogChunk, ToMaster};
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

/// How to reach a broker.
#[derive(Clone)]
pub struct LinkSettings {
    /// Brokers, in order of preference.
    pub endpoints: Endpoints,
    /// Whom to trust. Its file is read again for each connection.
    pub trust: Trust,
    /// The refusals that are shared with the [`super::AuthServer`], which get the addresses.
    pub refusals: Refusals,
    /// The rate limiter that is shared with the [`super::AuthServer`].
    pub conduct: RateLimiter,
    /// The state of the private broker, if it is one. While it is down, somebody else may have its port, and must not get
    /// the master's password.
    pub node: Option<watch::Receiver<NodeState>>,
}

/// What the link receives.
#[derive(Debug)]
pub enum Inbound {
    /// The link is up: messages arrive and are sent. Builds may follow later, if the submission queue has lost its
    /// quorum.
    Up,
    /// The connection is lost and will be opened again. Follows each [`Inbound::Up`]. Earlier receipts are void: the
    /// broker delivers their messages again.
    Down {
        /// The reason.
        why: String,
    },
    /// The broker accepts nothing that is published, for this reason, until [`Inbound::Unblocked`] or
    /// [`Inbound::Down`].
    Blocked {
        /// The broker's message.
        why: String,
    },
    /// The broker accepts messages again.
    Unblocked,
    /// A message from an agent. The broker guarantees the name.
    Agent {
        /// The sender.
        worker: WorkerName,
        /// The message. The queue in a hello is the worker's own.
        message: ToMaster,
        /// To be acknowledged when the consequences of the message are committed.
        receipt: Receipt,
    },
    /// A message in the submission queue, [`rouse_shared::names::BUILDS`], unchanged.
    Submit {
        /// At most [`rouse_shared::limits::MAX_MESSAGE`] bytes.
        body: Vec<u8>,
        /// JSON or MessagePack, according to the sender.
        content_type: Option<String>,
        /// A known id means the same build.
        message_id: Option<String>,
        /// The user of the broker who has sent it, if the sender says it; the broker checks that it is true.
        user: Option<String>,
        /// The queue for the reply.
        reply_to: Option<String>,
        /// Repeated in the reply.
        correlation_id: Option<String>,
        /// To be acknowledged when the build is committed.
        receipt: Receipt,
    },
    /// A message to an agent was returned: its queue no longer exists, so its connection is closed.
    Unroutable {
        /// The queue.
        queue: String,
    },
    /// The last known connection of this worker has closed. This is a hint, which may be late, missing or wrong.
    Closed {
        /// The worker whose connection it was.
        worker: WorkerName,
    },
}

/// A piece of a log. Its receipt is acknowledged once the bytes are written.
#[derive(Debug)]
pub struct LogDelivery {
    /// The sender; the broker guarantees the name.
    pub worker: WorkerName,
    /// The piece, at most [`rouse_shared::limits::LOG_CHUNK`] bytes.
    pub chunk: LogChunk,
    /// To be acknowledged after the write.
    pub receipt: Receipt,
}

/// The link. Its state is in what [`Link::start`] returns.
pub struct Link;

/// Sends messages, and keeps the link running: it ends when this is dropped.
pub struct LinkHandle {
    outbox: Arc<Outbox>,
    dropped: Arc<Dropped>,
    _task: JoinSet<()>,
}

impl Link {
    /// Starts to connect, and tries without end. If `inbound` or `logs` is full, messages wait with the broker.
    pub fn start(
        settings: LinkSettings,
        inbound: mpsc::Sender<Inbound>,
        logs: mpsc::Sender<LogDelivery>,
    ) -> LinkHandle {
        let (outbox, waiting) = Outbox::new(settings.conduct.clone());
        let outbox = Arc::new(outbox);
        let dropped = Arc::new(Dropped::default());
        let mut task = JoinSet::new();
        let conduct = settings.conduct.clone();
        let ends = session::Ends { inbound, logs, dropped: dropped.clone(), conduct };
        task.spawn(run(settings, ends, outbox.clone(), waiting));
        LinkHandle { outbox, dropped, _task: task }
    }
}

impl LinkHandle {
    /// Passes a message to the link. Returns false if the link is down or too much is waiting; then the message is
    /// dropped, as the protocol allows, and counted in [`LinkHandle::unsent`].
    pub fn try_send(&self, message: Outbound) -> bool {
        self.outbox.try_send(message)
    }

    /// Waits until all earlier messages have been written, the link is down, or two seconds have passed.
    pub async fn flush(&self) {
        // By polling: there is no notification of a write, and only the end of the master waits here.
        for _ in 0..200 {
            if !self.outbox.is_open() || self.outbox.is_empty() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    /// Numbers of dropped deliveries.
    pub fn dropped(&self) -> &Dropped {
        &self.dropped
    }

    /// Number of messages that [`LinkHandle::try_send`] has dropped.
    pub fn unsent(&self) -> u64 {
        self.outbox.unsent()
    }

    /// Whether the link is up now.
    pub fn is_up(&self) -> bool {
        self.outbox.is_open()
    }
}

async fn run(mut settings: LinkSettings, ends: session::Ends, outbox: Arc<Outbox>, mut waiting: outbound::Waiting) {
    let mut pause = RECONNECT.0;
    let (mut reported, mut first) = (String::new(), 0);
    loop {
        if let Some(node) = &mut settings.node
            && node.wait_for(|state| matches!(state, NodeState::Ready { .. })).await.is_err()
        {
            // It was stopped for good.
            return;
        }
        match connect::connect(&settings, &mut first).await {
            Ok(session) => {
                info!(broker = session.endpoint, "connected to the broker");
                (pause, reported) = (RECONNECT.0, String::new());
                outbox.open(&mut waiting);
                if ends.inbound.send(Inbound::Up).await.is_err() {
                    return;
                }
                let why = session.run(&ends, &settings.refusals, &mut waiting).await;
                outbox.close();
                warn!("lost the connection to the broker: {why}");
                if ends.inbound.send(Inbound::Down { why }).await.is_err() {
                    return;
                }
            }
            Err(why) => {
                // Logged once for each reason, not for each try.
                if why != reported {
                    warn!(
                        "cannot connect to the broker: {why}; retrying; check that it runs and that broker.url is right"
                    );
                    reported = why;
                }
                if ends.inbound.is_closed() {
                    return;
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RECONNECT.1);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::time::Duration;
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    #[tokio::test]
    async fn nobody_gets_the_password_of_a_private_broker_that_is_down() {
        let squatter = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let refusals = Refusals::default();
        let (state, node) = watch::channel(NodeState::Down("it was killed".to_owned()));
        let url = format!("amqp://rouse_master:password@{}/rouse", squatter.local_addr().unwrap());
        let settings = LinkSettings {
            endpoints: Endpoints::parse(&url).unwrap(),
            trust: Trust::Authorities(None),
            refusals: refusals.clone(),
            conduct: RateLimiter::new(refusals),
            node: Some(node),
        };
        let (inbound, _arrivals) = mpsc::channel(1);
        let (logs, _chunks) = mpsc::channel(1);
        let _link = Link::start(settings, inbound, logs);
        for other in [NodeState::Starting, NodeState::Down("the port is in use".to_owned())] {
            assert!(timeout(Duration::from_millis(300), squatter.accept()).await.is_err(), "it connects");
            state.send_replace(other);
        }
        state.send_replace(NodeState::Ready { pid: 1 });
        timeout(Duration::from_secs(60), squatter.accept()).await.expect("it connects now").unwrap();
    }
}
