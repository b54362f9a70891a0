//! The driver: one loop that takes the events that are waiting, lets the core decide, commits, and then performs.
//!
//! [`run`] puts the master together. [`turn`] is the loop; what takes time runs beside it and comes back as an event.
//!
//! **Invariant**: nothing is performed, answered or acknowledged before it is committed.

mod batch;
mod disk_space;
mod event_loop;
mod perform;
mod state;
mod stuck;

pub use state::{State, StateError};

use crate::broker::{
    self, AuthServer, Endpoints, Inbound, Link, LinkSettings, LogDelivery, Node, NodeSettings, RateLimiter, Refusals,
};
use crate::config::{self, Config};
use crate::core::Start;
use crate::core::build::BuildState;
use crate::core::event::{Change, Event};
use crate::hosts::{self, Death, Hosts};
use crate::logs::{Logs, Written};
use crate::store::Store;
use crate::web;
use rouse_shared::broker_url::{BrokerUrl, UrlError};
use rouse_shared::error::Chain;
use rouse_shared::{AttemptId, MasterId};
use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tracing::{error, info, warn};

/// Events that wait for the loop, at most, from each side: a full channel slows its sender down.
const WAITING: usize = 4_096;
/// Log chunks that wait for the disk, at most: 64 KiB each, so 4 MiB.
const LOGS_WAITING: usize = 64;
/// Changes that a slow listener may be behind, at most.
const CHANGES: usize = 4_096;
/// Between two tries to write what the disk did not take.
const DISK_PAUSE: Duration = Duration::from_secs(1);

/// Why the master cannot run.
#[derive(Debug)]
pub struct Failure(String);

impl Failure {
    /// What could not be done, and the error with its causes.
    pub fn new(what: impl fmt::Display, error: &dyn std::error::Error) -> Self {
        Self(format!("{what}: {}", Chain(error)))
    }
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

/// What a running master can be asked from outside: by signals, or by the demo.
pub struct Control {
    orders: mpsc::Sender<event_loop::Control>,
    /// Where the API is served.
    pub address: SocketAddr,
    /// The API's token.
    pub token: String,
    /// Every change, as the API tells it.
    pub changes: broadcast::Sender<Change>,
    /// Who owns the hosts: the master's name and id.
    pub owner: String,
}

impl Control {
    /// Takes a new configuration; what it does not touch goes on.
    pub async fn configure(&self, config: Config) {
        if self.orders.send(event_loop::Control::Configure(Box::new(config))).await.is_err() {
            warn!("the master is ending and takes no configuration");
        }
    }

    /// Gives every agent the lease that the configuration has for a restart; returns once they have been told.
    pub async fn extend_leases(&self) {
        let (told, done) = oneshot::channel();
        // Where the loop is gone there is nobody to extend a lease for.
        if self.orders.send(event_loop::Control::Shutdown(told)).await.is_ok() && done.await.is_err() {
            warn!("the leases could not be extended");
        }
    }
}

/// A master that runs.
pub struct Master {
    /// To steer it by.
    pub control: Arc<Control>,
    node: Option<Node>,
    link: watch::Sender<Option<Arc<broker::LinkHandle>>>,
    stop_web: oneshot::Sender<()>,
    web: tokio::task::JoinHandle<()>,
    _auth: AuthServer,
    _state: State,
    ended: oneshot::Receiver<String>,
}

/// Where a step's log is, for the API.
struct LogFiles(Logs);

impl web::LogSource for LogFiles {
    fn path(&self, attempt: AttemptId, step: u32) -> PathBuf {
        self.0.path(attempt, step)
    }

    fn watch(&self, attempt: AttemptId, step: u32) -> watch::Receiver<u64> {
        self.0.watch(attempt, step)
    }
}

/// What agents are told to dial.
fn agent_url(config: &Config) -> Result<String, UrlError> {
    if let Some(url) = &config.broker.agent_url {
        return Ok(url.clone());
    }
    Ok(match &config.broker.url {
        Some(url) => BrokerUrl::parse(url.expose())?.to_string(),
        None => {
            let address = config.broker.listen.first().copied();
            let address = address.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 5672)));
            BrokerUrl::of_address(address, broker::VHOST).to_string()
        }
    })
}

impl Master {
    /// Starts a master: its state first, so that a second one on the same directory touches nothing.
    ///
    /// # Errors
    /// Where the state directory is in use or unusable, an address is taken, or the broker cannot be run.
    pub async fn start(config: Config) -> Result<Self, Failure> {
        let state = State::open(&config.master.state_dir, config.master.api_token.as_ref())
            .map_err(|e| Failure::new("cannot start", &e))?;
        let ledger_path = state.path("ledger.sqlite");
        let store = Store::open(&ledger_path).map_err(|e| Failure::new("cannot start", &e))?;
        let mut ledger = store.load().map_err(|e| Failure::new("cannot start", &e))?;
        let unusable = |e| Failure::new("cannot use the log directory", &e);
        let logs = Logs::new(&state.path("logs")).map_err(unusable)?;
        // A ledger that was lost, or brought back from a copy, knows fewer builds than there were: the logs of those must not
        // become a new build's.
        ledger.last_build = ledger.last_build.max(logs.highest_build().map_err(unusable)?);
        let listener = tokio::net::TcpListener::bind(config.master.listen)
            .await
            .map_err(|e| Failure::new(format!("cannot listen on {} (master.listen)", config.master.listen), &e))?;
        let address = listener.local_addr().map_err(|e| Failure::new("cannot listen", &e))?;
        let owner = format!("{}/{}", config.master.name, state.id);

        let (deaths, heard) = mpsc::channel::<Death>(WAITING);
        let settings = hosts::Settings { dir: state.path("hosts"), owner: owner.clone() };
        let hosts =
            Hosts::new(settings, &config, deaths).map_err(|e| Failure::new("cannot use the hosts directory", &e))?;
        hosts.expect(&ledger.hosts);

        let (events, events_in) = mpsc::channel(WAITING);
        let (inbound, inbound_in) = mpsc::channel::<Inbound>(WAITING);
        let (requests, requests_in) = mpsc::channel(WAITING);
        let (admissions, admissions_in) = mpsc::channel(WAITING);
        let (orders, orders_in) = mpsc::channel(16);
        let (log_chunks, chunks_in) = mpsc::channel::<LogDelivery>(LOGS_WAITING);
        let (changes, _) = broadcast::channel(CHANGES);
        let (link_slot, link_ready) = watch::channel(None);

        tokio::spawn(forward_deaths(heard, events.clone()));
        let room = disk_space::DiskSpace::new(&config.master.state_dir);
        spawn_log_writer(logs.clone(), room, chunks_in, events.clone())?;

        let mut seed = [0_u8; 32];
        getrandom::fill(&mut seed).map_err(|e| Failure::new("cannot draw random numbers", &e))?;
        let start = Start { master: MasterId(state.id.clone()), plan: Arc::new(config.plan.clone()), ledger, seed };
        let agent_url = agent_url(&config).map_err(|e| Failure::new("cannot use broker.url", &e))?;
        let boot = perform::Boot { broker: agent_url, ca: read_ca(&config)? };
        let refusals = Refusals::default();
        let doer = perform::Executor {
            runtime: tokio::runtime::Handle::current(),
            events: events.clone(),
            hosts: Arc::new(hosts),
            logs: logs.clone(),
            changes: changes.clone(),
            link: link_ready,
            refusals: refusals.clone(),
            boot,
            askers: perform::PendingRequests::default(),
        };
        let inputs = event_loop::Inputs {
            events: events_in,
            inbound: inbound_in,
            requests: requests_in,
            admissions: admissions_in,
            orders: orders_in,
        };
        let ended = event_loop::spawn(store, start, doer, inputs, config.clone())?;

        let control =
            Arc::new(Control { orders, address, token: state.token.clone(), changes: changes.clone(), owner });
        let (stop_web, stopped) = oneshot::channel::<()>();
        let settings = web::Settings {
            token: state.token.clone(),
            read_needs_token: web::Settings::read_needs_token(address),
            version: env!("CARGO_PKG_VERSION"),
            master_name: config.master.name.clone(),
        };
        let source = Arc::new(LogFiles(logs));
        let web = tokio::spawn(async move {
            // Whether it was asked to stop or its owner is gone: it ends.
            let shutdown = async move { drop(stopped.await) };
            if let Err(error) = web::serve(listener, settings, requests, changes, source, shutdown).await {
                error!("the HTTP server ended: {error}");
            }
        });
        info!("listening on http://{address}; the ledger is {}", ledger_path.display());

        let (node, link, auth) = connect(&config, &state, refusals, admissions, inbound, log_chunks).await?;
        link_slot.send_replace(Some(Arc::new(link)));
        Ok(Self { control, node, link: link_slot, stop_web, web, _auth: auth, _state: state, ended })
    }

    /// Waits until the loop ends by itself, which it does only when it cannot go on.
    pub async fn failed(&mut self) -> String {
        (&mut self.ended).await.unwrap_or_else(|_| "the loop ended".to_owned())
    }

    /// Ends the master: hosts stay as they are, a private broker ends too.
    pub async fn stop(self) {
        self.control.extend_leases().await;
        if self.stop_web.send(()).is_err() {
            warn!("the HTTP server had ended before");
        }
        if let Err(error) = self.web.await {
            warn!("the HTTP server did not end well: {error}");
        }
        if let Some(link) = self.link.send_replace(None) {
            link.flush().await;
        }
        if let Some(node) = self.node {
            node.stop().await;
        }
    }
}

fn read_ca(config: &Config) -> Result<Option<String>, Failure> {
    let Some(path) = &config.broker.ca else { return Ok(None) };
    let text = std::fs::read_to_string(path);
    text.map(Some).map_err(|e| Failure::new(format!("cannot read {} (broker.ca)", path.display()), &e))
}

async fn connect(
    config: &Config,
    state: &State,
    refusals: Refusals,
    admissions: mpsc::Sender<broker::Admission>,
    inbound: mpsc::Sender<Inbound>,
    logs: mpsc::Sender<LogDelivery>,
) -> Result<(Option<Node>, broker::LinkHandle, AuthServer), Failure> {
    let conduct = RateLimiter::new(refusals.clone());
    let endpoints = |url: &str| Endpoints::parse(url).map_err(|e| Failure::new("cannot use broker.url", &e));
    let external = config.broker.url.as_ref().map(|url| endpoints(url.expose())).transpose()?;
    let vhost = external.as_ref().map_or(broker::VHOST, |e| e.vhost()).to_owned();
    let auth = AuthServer::start(config.broker.auth_listen, vhost, admissions, refusals.clone(), conduct.clone())
        .await
        .map_err(|e| Failure::new("cannot start", &e))?;
    let (node, endpoints) = match external {
        Some(endpoints) => (None, endpoints),
        None => {
            let settings = NodeSettings {
                dir: state.path("broker"),
                listen: config.broker.listen.clone(),
                auth_listen: auth.address(),
                node_name_suffix: state.id.chars().take(8).collect(),
                extra_config: String::new(),
            };
            let node = Node::start(settings).await.map_err(|e| Failure::new("cannot start the private broker", &e))?;
            let endpoints = endpoints(node.url())?;
            (Some(node), endpoints)
        }
    };
    let settings = LinkSettings { endpoints, ca: config.broker.ca.clone(), refusals, conduct };
    Ok((node, Link::start(settings, inbound, logs), auth))
}

async fn forward_deaths(mut heard: mpsc::Receiver<Death>, events: mpsc::Sender<Event>) {
    while let Some(Death { host, why }) = heard.recv().await {
        if events.send(Event::HostGone { host, why }).await.is_err() {
            return;
        }
    }
}

/// Writes log chunks on a thread of its own: a slow disk must not delay a heartbeat.
fn spawn_log_writer(
    logs: Logs,
    room: disk_space::DiskSpace,
    mut chunks: mpsc::Receiver<LogDelivery>,
    events: mpsc::Sender<Event>,
) -> Result<(), Failure> {
    let write = move || {
        // One gap is told once, however many chunks come behind it.
        let mut told: HashMap<(AttemptId, u32), u64> = HashMap::new();
        while let Some(LogDelivery { worker, chunk, receipt }) = chunks.blocking_recv() {
            let mut stuck = false;
            let written = loop {
                let write = || logs.write(&worker, &chunk).map_err(|error| error.to_string());
                match room.for_logs().and_then(|()| write()) {
                    Ok(written) => break written,
                    Err(why) => {
                        if !std::mem::replace(&mut stuck, true) {
                            error!("the log of attempt {} cannot be written: {why}; trying again", chunk.attempt);
                        }
                        std::thread::sleep(DISK_PAUSE);
                    }
                }
            };
            receipt.ack();
            let key = (chunk.attempt, chunk.step);
            let event = match written {
                Written::Yes => {
                    told.remove(&key);
                    logs.became_whole(chunk.attempt).then_some(Event::LogsWhole { attempt: chunk.attempt })
                }
                Written::Gap(offset) => (told.insert(key, offset) != Some(offset)).then_some(Event::LogGap {
                    attempt: chunk.attempt,
                    step: chunk.step,
                    offset,
                }),
                Written::Unexpected => None,
            };
            if let Some(event) = event
                && events.blocking_send(event).is_err()
            {
                return;
            }
            if told.len() > WAITING {
                told.clear();
            }
        }
    };
    let thread = std::thread::Builder::new().name("logs".to_owned()).spawn(write);
    thread.map(drop).map_err(|e| Failure::new("cannot start a thread", &e))
}

/// Runs a master until a signal ends it: SIGHUP reloads, SIGTERM and Ctrl-C end it.
///
/// # Errors
/// Where it cannot start, or cannot go on.
pub async fn run(path: &Path, config: Config) -> Result<(), Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let listen = |kind| signal(kind).map_err(|e| Failure::new("cannot listen for signals", &e));
    let mut hangup = listen(SignalKind::hangup())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut running = config.clone();
    let mut master = tokio::select! {
        started = Master::start(config) => started?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    loop {
        tokio::select! {
            _ = hangup.recv() => reload(path, &mut running, &master.control).await,
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            why = master.failed() => return Err(Failure(format!("the master cannot go on: {why}"))),
        }
    }
    info!("ending; hosts stay as they are");
    tokio::select! {
        () = master.stop() => {}
        // Asked twice: at once.
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

async fn reload(path: &Path, running: &mut Config, control: &Control) {
    match config::load(path) {
        Err(faults) => error!("{} is not used, the old configuration goes on:\n{faults}", path.display()),
        Ok(new) => {
            for warning in &new.warnings {
                warn!("{warning}");
            }
            for key in config::changes_needing_restart(running, &new) {
                warn!("{key} has changed and takes effect when the master is started again");
            }
            control.configure(new.clone()).await;
            *running = new;
            info!("{} is in effect", path.display());
        }
    }
}

/// Whether a change says that a build has ended.
fn ended(change: &Change) -> Option<BuildState> {
    match change {
        Change::Build { state, .. } if state.is_final() => Some(*state),
        Change::Build { .. } | Change::Worker { .. } | Change::Host { .. } => None,
    }
}
