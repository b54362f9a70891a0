//! The HTTP server: the JSON API, logs, the event stream, metrics and the status page. It sends [`Request`]s to the
//! driver.

mod audit;
mod auth;
mod builds;
mod error;
mod events;
mod fleet;
mod journal;
mod log;
mod masters;
mod messages;
mod metrics;
mod openapi;
mod page;
mod places;
mod rebinding;
mod reload;
mod rights;
mod routes;
mod tokens;
mod views;

use crate::access::Access;
use crate::api_token::ApiToken;
use crate::core::build::BuildState;
use crate::core::event::{Change, Command, Reply, WorkerState};
use crate::core::journal::{Caller, Entry, Filter};
use crate::core::mail::Mail;
use crate::core::record::HostState;
pub use crate::core::view::BuildFilter;
use crate::core::view::{BuildView, HostView, PlaceView, Why, WorkerView};
use crate::http_server::{self, Encryption};
use async_trait::async_trait;
use bytes::Bytes;
use error::ApiError;
pub use masters::{Alone, Masters};
pub use messages::{answer_body, change_message};
pub use reload::{Reload, Reloaded};
use rouse_shared::{AttemptId, BuildId};
use std::collections::BTreeMap;
use std::future::Future;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot, watch};

/// Largest body of a request, bytes. The message to an agent that results from it must fit into the wire's largest
/// message.
const MAX_BODY: usize = rouse_shared::limits::MAX_MESSAGE;
/// Most connections at the same time. Each `rouse build` that waits for its build has one. With a few kilobytes each, and
/// far fewer than a service has file descriptors (524,288 under systemd).
const MAX_CONNECTIONS: usize = 1_024;
/// Most queries that wait for the driver at the same time. It answers all of them in one turn of its loop, and each may
/// take some tens of milliseconds: the longest list, from the ledger.
const MAX_QUERIES: usize = 8;
/// How long the master may take to answer. A slow disk is waited for; one that hangs is reported.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long running requests may continue when the server ends. Streams are broken off at once: their clients continue
/// at a byte offset.
const LAST_REQUESTS: Duration = Duration::from_secs(5);

/// Largest number of builds in one response. With about 300 bytes each, a response stays below a megabyte.
pub const MAX_LIST: usize = 1_000;
/// Builds in one answer if the request names no limit.
pub const DEFAULT_LIST: usize = 100;

/// A request to the driver.
#[derive(Debug)]
pub enum Request {
    /// A command, which the core handles.
    Command {
        /// Who gives it.
        by: Caller,
        /// The command.
        command: Command,
        /// Gets the reply once it is committed.
        reply: oneshot::Sender<Reply>,
    },
    /// A query.
    Query(Query),
}

/// A query, which is answered from the committed state. Each variant has the channel for its answer.
#[derive(Debug)]
pub enum Query {
    /// One build, ended or not.
    Build {
        /// Its number.
        id: BuildId,
        /// The build, or why there is none.
        reply: oneshot::Sender<Result<BuildView, NoBuild>>,
    },
    /// Builds, newest first.
    Builds {
        /// Selects the builds.
        filter: BuildFilter,
        /// The builds, or why the ledger cannot be read.
        reply: oneshot::Sender<Result<Vec<BuildView>, String>>,
    },
    /// Why a build has not started, or how it ended.
    Why {
        /// Its number.
        id: BuildId,
        /// The sentence, or why there is no such build.
        reply: oneshot::Sender<Result<Why, NoBuild>>,
    },
    /// Every worker, by name.
    Workers {
        /// The workers.
        reply: oneshot::Sender<Vec<WorkerView>>,
    },
    /// Every host that is not terminated.
    Hosts {
        /// The hosts.
        reply: oneshot::Sender<Vec<HostView>>,
    },
    /// Every place.
    Places {
        /// The places.
        reply: oneshot::Sender<Vec<PlaceView>>,
    },
    /// The journal of operations.
    Journal {
        /// Selects the entries.
        filter: Filter,
        /// The entries, newest first, or why the ledger cannot be read.
        reply: oneshot::Sender<Result<Vec<Entry>, String>>,
    },
    /// The mails that the relay has not accepted yet.
    Mails {
        /// The mails, oldest first.
        reply: oneshot::Sender<Vec<Mail>>,
    },
    /// The uploads of logs.
    Uploads {
        /// The uploads.
        reply: oneshot::Sender<Uploads>,
    },
    /// Whether the master can work.
    Health {
        /// The result.
        reply: oneshot::Sender<Health>,
    },
    /// The master's figures.
    Metrics {
        /// The figures.
        reply: oneshot::Sender<Metrics>,
    },
}

/// Why there is no such build.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NoBuild {
    /// There never was one with this number.
    Unknown,
    /// Retention has deleted it.
    Deleted,
    /// The ledger cannot be read; why.
    Unreadable(String),
}

/// The uploads of logs to the blob store.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Uploads {
    /// The address of the store; absent if logs stay on the master's disk.
    pub store: Option<String>,
    /// Ended builds whose logs wait.
    pub waiting: u64,
    /// Bytes of these logs.
    pub waiting_bytes: u64,
    /// What is wrong, if the last upload has failed.
    pub trouble: Option<String>,
}

/// Whether the master can work.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Health {
    /// Whether its link to the broker is up.
    pub broker: bool,
    /// Why the broker accepts nothing, if it does not.
    pub alarm: Option<String>,
    /// Whether the last commit succeeded, or why not.
    pub ledger: Result<(), String>,
}

/// The master's figures. A state that is absent has the number 0.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Metrics {
    /// Builds by state; ended ones as the ledger has them.
    pub builds: BTreeMap<BuildState, u64>,
    /// Workers by state.
    pub workers: BTreeMap<WorkerState, u64>,
    /// Every place.
    pub places: Vec<PlaceView>,
    /// Hosts by state.
    pub hosts: BTreeMap<HostState, u64>,
    /// Refused agents by where they were refused.
    pub refusals: BTreeMap<&'static str, u64>,
    /// Builds that the workers of each template may run at the same time.
    pub capacity: BTreeMap<String, u64>,
    /// Idle workers of each template.
    pub idle: BTreeMap<String, u64>,
    /// Figures without labels.
    pub figures: Vec<Figure>,
    /// Everything that is counted as it happens, in the text format of Prometheus.
    pub meters: String,
}

/// One figure for Prometheus.
#[derive(Clone, PartialEq, Debug)]
pub struct Figure {
    /// Its full name, which the table of metrics has.
    pub name: &'static str,
    /// Its value.
    pub value: f64,
}

/// Access to logs.
#[async_trait]
pub trait LogSource: Send + Sync + 'static {
    /// The path of a step's log file. If it does not exist, the log is empty. `step` counts from 0.
    fn path(&self, attempt: AttemptId, step: u32) -> PathBuf;
    /// The number of bytes of the log that are available without a gap. It changes as they are written: first the bytes
    /// are in the file, then the number grows, and only then is the attempt shown as ended.
    fn watch(&self, attempt: AttemptId, step: u32) -> watch::Receiver<u64>;
    /// The number of bytes of a log in a blob store, 0 if it is not there; or why the store does not answer.
    async fn stored_length(&self, store: &str, attempt: AttemptId, step: u32) -> Result<u64, String>;
    /// A range of a log in a blob store, or why the store does not answer.
    async fn stored_range(
        &self,
        store: &str,
        attempt: AttemptId,
        step: u32,
        range: Range<u64>,
    ) -> Result<Bytes, String>;
}

/// The settings of the server.
#[derive(Clone)]
pub struct Settings {
    /// The master's own token, which has every right. Never empty.
    pub token: ApiToken,
    /// Who else may do what.
    pub access: Access,
    /// Gets the requests to read the configuration again; closed if there is no file.
    pub reloads: mpsc::Sender<Reload>,
    /// Whether reading needs it too. May change with the configuration.
    pub read_needs_token: Arc<AtomicBool>,
    /// Version of the master.
    pub version: &'static str,
    /// What the master is called.
    pub master_name: String,
}

/// Where the server listens.
#[derive(Debug)]
pub struct Doors {
    /// For everybody who can reach the address.
    pub tcp: TcpListener,
    /// For the commands on this machine. Whoever may write to it needs no token. Absent if there is no such socket.
    pub commands: Option<UnixListener>,
}

/// What all handlers share.
#[derive(Clone)]
struct App {
    settings: Settings,
    /// Whether whoever gets here has the rights of the token without showing it.
    trusted: bool,
    /// Whether the server listens on loopback.
    on_loopback: bool,
    requests: mpsc::Sender<Request>,
    /// Permits for queries.
    queries: Arc<Semaphore>,
    changes: broadcast::Sender<Change>,
    logs: Arc<dyn LogSource>,
    masters: Arc<dyn Masters>,
    /// True once the server is ending. Then streams end.
    closing: watch::Receiver<bool>,
}

impl App {
    /// Sends a query to the driver and waits for the answer. While there are too many, the others wait.
    async fn query<T>(&self, query: impl FnOnce(oneshot::Sender<T>) -> Query) -> Result<T, ApiError> {
        let permit = tokio::time::timeout(PATIENCE, self.queries.acquire()).await;
        let _permit = permit.map_err(|_| ApiError::Busy)?.map_err(|_| ApiError::Ending)?;
        self.ask(PATIENCE, |reply| Request::Query(query(reply))).await
    }

    /// Gives the master a command and waits until it is committed, or refused.
    async fn command(&self, by: Caller, command: Command) -> Result<Reply, ApiError> {
        self.command_within(PATIENCE, by, command).await
    }

    /// The same, for what takes the master longer.
    async fn command_within(&self, patience: Duration, by: Caller, command: Command) -> Result<Reply, ApiError> {
        self.ask(patience, |reply| Request::Command { by, command, reply }).await
    }

    async fn ask<T>(
        &self,
        patience: Duration,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Result<T, ApiError> {
        let (reply, answer) = oneshot::channel();
        let asked = async {
            self.requests.send(request(reply)).await.map_err(|_| ApiError::Ending)?;
            answer.await.map_err(|_| ApiError::Ending)
        };
        tokio::time::timeout(patience, asked).await.map_err(|_| ApiError::Busy)?
    }
}

/// Serves until `shutdown` comes, then ends streams at once and gives the requests that run a few seconds.
///
/// # Errors
/// If the listener fails for good.
pub async fn serve(
    doors: Doors,
    settings: Settings,
    requests: mpsc::Sender<Request>,
    changes: broadcast::Sender<Change>,
    logs: Arc<dyn LogSource>,
    encryption: Option<Arc<Encryption>>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    serve_with(Arc::new(Alone), doors, settings, requests, changes, logs, encryption, shutdown).await
}

/// The same for a master that shares its ledger with others.
///
/// # Errors
/// As [`serve`].
#[expect(clippy::too_many_arguments, reason = "as many as the server has parts")]
pub async fn serve_with(
    masters: Arc<dyn Masters>,
    doors: Doors,
    settings: Settings,
    requests: mpsc::Sender<Request>,
    changes: broadcast::Sender<Change>,
    logs: Arc<dyn LogSource>,
    encryption: Option<Arc<Encryption>>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let (close, closing) = watch::channel(false);
    let Doors { tcp, commands } = doors;
    let on_loopback = tcp.local_addr()?.ip().is_loopback();
    let queries = || Arc::new(Semaphore::new(MAX_QUERIES));
    let (trusted, queries_here, closing_here) = (false, queries(), closing.clone());
    let app = App {
        settings,
        trusted,
        on_loopback,
        requests,
        queries: queries_here,
        changes,
        logs,
        masters,
        closing: closing_here,
    };
    // Each has connections and queries of its own, so that nobody on the network takes those of the commands.
    let limits = http_server::Limits::of(MAX_CONNECTIONS);
    let of_commands = App { trusted: true, on_loopback: false, queries: queries(), ..app.clone() };
    let local = routes::router(Arc::new(of_commands));
    let server = http_server::serve(tcp, routes::router(Arc::new(app)), limits, encryption, closing.clone());
    let local = async move {
        if let Some(commands) = commands {
            http_server::serve(commands, local, limits, None, closing).await;
        }
    };
    let late = async move {
        shutdown.await;
        close.send_replace(true);
        tokio::time::sleep(LAST_REQUESTS).await;
    };
    tokio::select! {
        ((), ()) = async { tokio::join!(server, local) } => {}
        () = late => {}
    }
    Ok(())
}
