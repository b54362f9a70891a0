//! The master's AMQP connections: topology, consuming, publishing, and reconnecting for ever.
//!
//! Three connections: one publishes (a broker that runs out of memory stops reading from publishers, and our
//! acknowledgements are what frees its memory), one reads logs (a flood must not delay a heartbeat), one reads the rest.
//! They come and go together.

mod closings;
mod connect;
mod outbound;
mod receipt;
mod session;
mod uri;
mod validate;

pub(super) use connect::{dial, make_inbox, tls_with};
pub use outbound::Outbound;
pub use receipt::{Receipt, ack_all};
pub use uri::Endpoints;
pub(super) use uri::shown;
pub use validate::Dropped;

use super::limits::RECONNECT;
use super::rate_limiter::RateLimiter;
use super::refusals::Refusals;
use outbound::Outbox;
use rouse_shared::WorkerName;
use rouse_shared::message::{LogChunk, ToMaster};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{info, warn};

/// How to reach a broker.
#[derive(Clone)]
pub struct LinkSettings {
    /// Brokers, in order of preference.
    pub endpoints: Endpoints,
    /// PEM certificates that the broker's is signed by, besides the system's; read again at each connection.
    pub ca: Option<PathBuf>,
    /// Where addresses of refused connections are told; the one that the [`super::AuthServer`] has.
    pub refusals: Refusals,
    /// What agents have done lately; the one that the [`super::AuthServer`] has.
    pub conduct: RateLimiter,
}

/// What comes in.
#[derive(Debug)]
pub enum Inbound {
    /// Agents are heard, and what is sent from now on goes out. (Builds may follow later, where their queue has lost its
    /// quorum.)
    Up,
    /// The connection is gone and will be made again. Follows each [`Inbound::Up`]. Receipts from before are void:
    /// the broker delivers again what they were for.
    Down {
        /// What happened.
        why: String,
    },
    /// The broker accepts nothing that is published, for this reason, until [`Inbound::Unblocked`] or [`Inbound::Down`].
    Blocked {
        /// What the broker says.
        why: String,
    },
    /// The broker accepts messages again.
    Unblocked,
    /// A message of an agent. The broker vouches for the name.
    Agent {
        /// Who sent it.
        worker: WorkerName,
        /// What was said. Of a hello, the queue is the worker's own.
        message: ToMaster,
        /// To be acknowledged when what follows from the message is committed.
        receipt: Receipt,
    },
    /// A build that somebody put into [`rouse_shared::names::BUILDS`], as it came.
    Submit {
        /// At most [`rouse_shared::limits::MAX_MESSAGE`] bytes.
        body: Vec<u8>,
        /// JSON or MessagePack, as the sender calls it.
        content_type: Option<String>,
        /// One seen before is the same build.
        message_id: Option<String>,
        /// The queue that an answer is wanted in.
        reply_to: Option<String>,
        /// To be repeated in the answer.
        correlation_id: Option<String>,
        /// To be acknowledged when the build is committed.
        receipt: Receipt,
    },
    /// A message to an agent came back: its queue, and so its connection, is no more.
    Unroutable {
        /// The queue.
        queue: String,
    },
    /// The last connection that is known of this worker closed. A hint: it may be late, missing, or beside the point.
    Closed {
        /// The worker whose connection it was.
        worker: WorkerName,
    },
}

/// A piece of a log. Its receipt is acknowledged once the bytes are written.
#[derive(Debug)]
pub struct LogDelivery {
    /// Who sent it; the broker vouches for the name.
    pub worker: WorkerName,
    /// The piece, at most [`rouse_shared::limits::LOG_CHUNK`] bytes.
    pub chunk: LogChunk,
    /// To be acknowledged after the write.
    pub receipt: Receipt,
}

/// The link. It has no state of its own beyond what [`Link::start`] hands out.
pub struct Link;

/// Sends, and keeps the link running: it ends when this is dropped.
pub struct LinkHandle {
    outbox: Arc<Outbox>,
    dropped: Arc<Dropped>,
    _task: JoinSet<()>,
}

impl Link {
    /// Begins to connect, and tries for ever. `inbound` and `logs` may be full: then the broker keeps what waits.
    pub fn start(
        settings: LinkSettings,
        inbound: mpsc::Sender<Inbound>,
        logs: mpsc::Sender<LogDelivery>,
    ) -> LinkHandle {
        let (outbox, waiting) = Outbox::new();
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
    /// Hands a message over. False: the link is down or too much is waiting, and the message was dropped, which the
    /// protocol allows for; counted in [`LinkHandle::unsent`].
    pub fn try_send(&self, message: Outbound) -> bool {
        self.outbox.try_send(message)
    }

    /// Waits until everything that was handed over is written, or the link goes down, or two seconds have passed.
    pub async fn flush(&self) {
        // Two hundred looks: what is written in the meantime is not told of, and nothing but the end of a master waits here.
        for _ in 0..200 {
            if !self.outbox.is_open() || self.outbox.is_empty() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    /// What came in and was thrown away.
    pub fn dropped(&self) -> &Dropped {
        &self.dropped
    }

    /// Messages that [`LinkHandle::try_send`] dropped.
    pub fn unsent(&self) -> u64 {
        self.outbox.unsent()
    }

    /// Whether the link is up now.
    pub fn is_up(&self) -> bool {
        self.outbox.is_open()
    }
}

async fn run(settings: LinkSettings, ends: session::Ends, outbox: Arc<Outbox>, mut waiting: outbound::Waiting) {
    let mut pause = RECONNECT.0;
    let mut reported = String::new();
    loop {
        match connect::connect(&settings).await {
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
                // Said once for each reason, not at each try.
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
