//! Assembles the master: state, ledger, hosts, event loop, API and broker, in this order.

use super::control::Control;
use super::disk_space::DiskSpace;
use super::error::MasterError;
use super::listeners::{self, Inherited};
use super::reader::Reader;
use super::retention::Sweeper;
use super::state::{Locked, State};
use super::uploads::Uploads;
use super::{WAITING, belongings, encryption, event_loop, log_sync, log_writer, perform, standby, tenure};
use crate::access::Access;
use crate::api;
use crate::blobs::Blobs;
use crate::broker::{
    self, Askers, AuthServer, Endpoints, Inbound, Link, LinkSettings, LogDelivery, Node, NodeSettings, NodeTls,
    RateLimiter, Refusals, Trust,
};
use crate::config::Config;
use crate::core::Start;
use crate::core::event::Event;
use crate::descriptors;
use crate::hosts::{Death, Hosts};
use crate::logs::Logs;
use crate::store::{Claim, Database, Fellow, StoreError};
use crate::sync::lock;
use crate::web;
use async_trait::async_trait;
use bytes::Bytes;
use rouse_shared::error::Chain;
use rouse_shared::{AttemptId, MasterId};
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tracing::{error, info, warn};

/// Largest number of log chunks that wait for the disk. With 64 KiB each, these are 4 MiB.
const LOGS_WAITING: usize = 64;
/// Most requests to read the configuration again that wait.
const RELOADS_WAITING: usize = 4;
/// Number of changes that a slow listener may lag behind.
const CHANGES: usize = 4_096;

/// A running master.
pub struct Master {
    /// Its handle.
    pub control: Arc<Control>,
    node: Option<Node>,
    link: watch::Sender<Option<Arc<broker::LinkHandle>>>,
    stop_web: oneshot::Sender<()>,
    web: tokio::task::JoinHandle<()>,
    _auth: AuthServer,
    _state: State,
    ended: oneshot::Receiver<String>,
    database: Database,
    claim: Option<Claim>,
    reloads: mpsc::Receiver<web::Reload>,
}

/// Why a master has ended by itself.
pub(super) struct Failure {
    /// The reason.
    pub why: String,
    /// Whether another master has the ledger now, or is to have it: then this one stands by.
    pub deposed: bool,
}

/// The masters that share the ledger, for the API.
pub(super) struct Fellows {
    pub database: Database,
    /// If this master stands by: the address of the active one.
    pub active: Option<Arc<Mutex<Option<String>>>>,
}

#[async_trait]
impl web::Masters for Fellows {
    async fn list(&self) -> Result<Vec<api::Master>, String> {
        let database = self.database.clone();
        let listed = tokio::task::spawn_blocking(move || database.fellows()).await;
        let listed = listed.map_err(|e| e.to_string())?.map_err(|e| Chain(&e).to_string())?;
        Ok(listed.into_iter().map(shown).collect())
    }

    fn standby(&self) -> Option<Option<String>> {
        self.active.as_ref().map(|active| lock(active).clone())
    }
}

fn shown(fellow: Fellow) -> api::Master {
    api::Master {
        role: if fellow.epoch.is_some() { api::Role::Active } else { api::Role::Standby },
        holder: fellow.holder,
        address: fellow.address,
        version: fellow.version,
        broker: fellow.broker,
        since: api::Time(fellow.since),
        seen: api::Time(fellow.seen),
        epoch: fellow.epoch,
    }
}

/// Where a step's log is, for the API.
pub(super) struct LogFiles(pub Logs, pub Arc<Blobs>);

#[async_trait]
impl web::LogSource for LogFiles {
    fn path(&self, attempt: AttemptId, step: u32) -> PathBuf {
        self.0.path(attempt, step)
    }

    fn watch(&self, attempt: AttemptId, step: u32) -> watch::Receiver<u64> {
        self.0.watch(attempt, step)
    }

    async fn stored_length(&self, store: &str, attempt: AttemptId, step: u32) -> Result<u64, String> {
        self.1.length(store, attempt, step).await.map_err(|error| error.to_string())
    }

    async fn stored_range(
        &self,
        store: &str,
        attempt: AttemptId,
        step: u32,
        range: Range<u64>,
    ) -> Result<Bytes, String> {
        self.1.read(store, attempt, step, range).await.map_err(|error| error.to_string())
    }
}

impl Master {
    /// Starts a master. The state directory comes first, so that a second master with the same directory changes
    /// nothing. It listens on the sockets that it has inherited, if their addresses are configured.
    ///
    /// # Errors
    /// If the state directory is in use or unusable, an address is taken, or the broker cannot be run.
    pub async fn start(config: Config, mut inherited: Inherited) -> Result<Self, MasterError> {
        descriptors::raise();
        let cannot_start = |e: &dyn std::error::Error| MasterError::new("cannot start", e);
        let mut locked = Locked::new(&config.master.state_dir).map_err(|e| cannot_start(&e))?;
        let (database, claim) = tenure::ledger(&config)?;
        let store = loop {
            // PostgreSQL may take seconds.
            let opening = database.clone();
            let opened = tokio::task::spawn_blocking(move || opening.open()).await.map_err(|e| cannot_start(&e))?;
            match (opened, &claim) {
                (Ok(store), _) => break store,
                (Err(StoreError::InUse(_)), Some(claim)) => {
                    locked = standby::wait(&config, (&database, claim), &inherited, locked).await?;
                }
                (Err(error), _) => return Err(cannot_start(&error)),
            }
        };
        let store = {
            let config = config.clone();
            let share = move || belongings::share(&config, &store).map(|()| store);
            tokio::task::spawn_blocking(share).await.map_err(|e| cannot_start(&e))??
        };
        let state = locked.open(config.master.api_token.as_ref()).map_err(|e| cannot_start(&e))?;
        state.token.keep_with(keeper_of_token(&database).map_err(|e| cannot_start(&e))?);
        let mut ledger = store.load().map_err(|e| MasterError::new("cannot start", &e))?;
        let unusable = |e| MasterError::new("cannot use the log directory", &e);
        let logs = Logs::new(&state.path("logs"), config.plan.max_log_size).map_err(unusable)?;
        // A ledger that was lost or restored from a backup does not have the newest builds. Their logs must not become
        // those of a new build.
        ledger.last_build = ledger.last_build.max(logs.highest_build().map_err(unusable)?);
        let tcp = listen(config.master.listen, &mut inherited).await?;
        let address = tcp.local_addr().map_err(|e| MasterError::new("cannot listen", &e))?;
        let auth = listen_for_broker(config.broker.auth_listen, &mut inherited).await?;
        let doors = web::Doors { tcp, commands: listeners::commands(&mut inherited, &state) };
        inherited.end();
        let owner = format!("{}/{}", config.master.name, state.id);

        let (deaths, receiver) = mpsc::channel::<Death>(WAITING);
        let hosts = Hosts::new(state.path("hosts"), owner.clone(), &config, deaths)
            .map_err(|e| MasterError::new("cannot use the hosts directory", &e))?;
        hosts.expect(&ledger.hosts);

        let (events, events_in) = mpsc::channel(WAITING);
        let (inbound, inbound_in) = mpsc::channel::<Inbound>(WAITING);
        let (requests, requests_in) = mpsc::channel(WAITING);
        let (admissions, admissions_in) = mpsc::channel(WAITING);
        let (controls, controls_in) = mpsc::channel(16);
        let (log_chunks, chunks_in) = mpsc::channel::<LogDelivery>(LOGS_WAITING);
        let (changes, _) = broadcast::channel(CHANGES);
        let (link_slot, link_ready) = watch::channel(None);

        tokio::spawn(forward_deaths(receiver, events.clone()));
        let space = DiskSpace::new(&config.master.state_dir);
        let log_sync = log_sync::spawn(logs.clone(), events.clone())?;
        let reader = || database.reader().map_err(|e| MasterError::new("cannot start", &e));
        let blobs = Arc::new(Blobs::new(&state.id, config.blobs.clone()));
        let sweeper = Sweeper::spawn(reader()?, logs.clone(), blobs.clone(), events.clone())?;
        let uploads = Uploads::start(logs.clone(), blobs.clone(), database.clone(), events.clone());
        let reader = Reader::spawn(reader()?)?;
        log_writer::spawn(logs.clone(), log_sync.clone(), space, chunks_in, events.clone())?;

        let mut seed = [0_u8; 32];
        getrandom::fill(&mut seed).map_err(|e| MasterError::new("cannot draw random numbers", &e))?;
        let start = Start { master: MasterId(state.id.clone()), plan: Arc::new(config.plan.clone()), ledger, seed };
        let agents_dial = config.broker.agents_dial().map_err(|e| MasterError::new("cannot use broker.url", &e))?;
        let node_tls = encryption::of_broker(&config).await?;
        // It may have made the authority.
        belongings::share(&config, &store)?;
        let boot = perform::Boot { broker: agents_dial, ca: encryption::for_agents(&config)? };
        let refusals = Refusals::default();
        let fencing = database.clone();
        let fence: perform::Fence = Arc::new(move || fencing.over());
        let executor = perform::Executor {
            runtime: tokio::runtime::Handle::current(),
            events: events.clone(),
            hosts: Arc::new(hosts),
            logs: logs.clone(),
            log_sync,
            sweeper,
            blobs: blobs.clone(),
            uploads,
            changes: changes.clone(),
            link: link_ready,
            refusals: refusals.clone(),
            boot,
            pending: perform::PendingRequests::default(),
            calls: Default::default(),
            fence,
        };
        let inputs = event_loop::Inputs {
            events: events_in,
            inbound: inbound_in,
            requests: requests_in,
            admissions: admissions_in,
            controls: controls_in,
        };
        let ended = event_loop::spawn((store, reader), start, executor, inputs, config.clone())?;

        let encryption = encryption::of_page(&config)?;
        let scheme = if encryption.is_some() { "https" } else { "http" };
        let read_needs_token = Arc::new(AtomicBool::new(config.read_needs_token()));
        let access = Access::new(config.access.clone());
        let control = Arc::new(Control {
            controls,
            address,
            api_token: state.token.clone(),
            access: access.clone(),
            changes: changes.clone(),
            owner,
            read_needs_token: read_needs_token.clone(),
            encryption: encryption.clone(),
            claim: claim.clone(),
        });
        let (stop_web, stopped) = oneshot::channel::<()>();
        let (reload, reloads) = mpsc::channel(RELOADS_WAITING);
        let settings = web::Settings {
            token: state.token.clone(),
            access,
            reloads: reload,
            read_needs_token,
            version: env!("CARGO_PKG_VERSION"),
            master_name: config.master.name.clone(),
        };
        let source = Arc::new(LogFiles(logs, blobs));
        let masters = Arc::new(Fellows { database: database.clone(), active: None });
        let web = tokio::spawn(async move {
            // Ends if the master was asked to stop, and if the owner of the sender is gone.
            let shutdown = async move { drop(stopped.await) };
            let served =
                web::serve_with(masters, doors, settings, requests, changes, source, encryption, shutdown).await;
            if let Err(error) = served {
                error!("the HTTP server ended: {error}");
            }
        });
        info!("listening on {scheme}://{address}; the ledger is {}", place_of_ledger(&config));

        let (node, link, auth) =
            connect(&config, &state, (auth, node_tls), refusals, admissions, inbound, log_chunks).await?;
        link_slot.send_replace(Some(Arc::new(link)));
        Ok(Self {
            control,
            node,
            link: link_slot,
            stop_web,
            web,
            _auth: auth,
            _state: state,
            ended,
            database,
            claim,
            reloads,
        })
    }

    /// The requests of the API to read the configuration again, for who can do that. Once; after that they are refused.
    pub fn reloads(&mut self) -> mpsc::Receiver<web::Reload> {
        std::mem::replace(&mut self.reloads, mpsc::channel(1).1)
    }

    /// Waits until the master cannot continue, or must not because another one has the ledger.
    pub(super) async fn failed(&mut self) -> Failure {
        let over = async {
            match &self.claim {
                Some(claim) => tenure::over(self.database.clone(), claim.clone(), self.link.subscribe()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            why = over => Failure { why, deposed: true },
            ended = &mut self.ended => {
                let why = ended.unwrap_or_else(|_| "the loop ended".to_owned());
                let database = self.database.clone();
                let holder = async { tokio::task::spawn_blocking(move || database.holder()).await.ok()?.ok()? };
                Failure { why, deposed: self.claim.is_some() && holder.await.is_some() }
            }
        }
    }

    /// Ends the master. Hosts stay as they are; a private broker ends too.
    pub async fn stop(self) {
        self.control.extend_leases().await;
        if self.stop_web.send(()).is_err() {
            warn!("the HTTP server had ended before");
        }
        if let Err(error) = self.web.await {
            warn!("the HTTP server ended with an error: {error}");
        }
        if let Some(link) = self.link.send_replace(None) {
            link.flush().await;
        }
        if let Some(node) = self.node {
            node.stop().await;
        }
        if self.claim.is_some() {
            let database = self.database;
            if let Ok(Err(error)) = tokio::task::spawn_blocking(move || database.give_up()).await {
                warn!("another master takes over only when the lease is over: {}", Chain(&error));
            }
        }
    }
}

/// Writes a new API token into the database too, if the ledger is in PostgreSQL.
fn keeper_of_token(
    database: &Database,
) -> Result<impl Fn(&str) -> Result<(), String> + Send + Sync + use<>, StoreError> {
    // It has a connection of its own, because the loop has the other one.
    let store = Mutex::new(database.reader()?);
    Ok(move |token: &str| lock(&store).keep(belongings::TOKEN, token).map_err(|e| Chain(&e).to_string()))
}

/// Where the configuration has the ledger.
pub(super) fn ledger_of(config: &Config) -> Result<Database, StoreError> {
    match &config.store {
        #[cfg(feature = "postgres")]
        Some(url) => Database::postgres(url, &config.master.name),
        #[cfg(not(feature = "postgres"))]
        Some(_) => Err(StoreError::NoPostgres),
        None => Ok(Database::file(ledger_file(config))),
    }
}

pub(super) fn ledger_file(config: &Config) -> PathBuf {
    config.master.state_dir.join("ledger.sqlite")
}

/// The same for people.
pub(super) fn place_of_ledger(config: &Config) -> String {
    match &config.store {
        Some(url) => format!("the database {} of PostgreSQL at {}", url.database, url.place()),
        None => ledger_file(config).display().to_string(),
    }
}

pub(super) async fn listen(address: SocketAddr, inherited: &mut Inherited) -> Result<TcpListener, MasterError> {
    if let Some(held) = inherited.tcp(address).map_err(|e| MasterError::new(format!("cannot use {address}"), &e))? {
        return Ok(held);
    }
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => MasterError::from(format!(
            "cannot start: {address} is already in use, perhaps by another master; stop it or change master.listen"
        )),
        _ => MasterError::new(format!("cannot listen on {address}, which master.listen names"), &error),
    })
}

pub(super) async fn listen_for_broker(
    address: SocketAddr,
    inherited: &mut Inherited,
) -> Result<TcpListener, MasterError> {
    match inherited.tcp(address).map_err(|e| MasterError::new(format!("cannot use {address}"), &e))? {
        Some(held) => Ok(held),
        None => AuthServer::listen(address).await.map_err(|e| MasterError::new("cannot start", &e)),
    }
}

async fn connect(
    config: &Config,
    state: &State,
    (auth, node_tls): (TcpListener, Option<NodeTls>),
    refusals: Refusals,
    admissions: mpsc::Sender<broker::Admission>,
    inbound: mpsc::Sender<Inbound>,
    logs: mpsc::Sender<LogDelivery>,
) -> Result<(Option<Node>, broker::LinkHandle, AuthServer), MasterError> {
    let conduct = RateLimiter::new(refusals.clone());
    let endpoints = |url: &str| Endpoints::parse(url).map_err(|e| MasterError::new("cannot use broker.url", &e));
    let external = config.broker.url.as_ref().map(|url| endpoints(url.expose())).transpose()?;
    let external = if config.store.is_some() { external.map(Endpoints::hurried) } else { external };
    let vhost = external.as_ref().map_or(broker::VHOST, |e| e.vhost()).to_owned();
    let askers = match external {
        Some(_) => Askers::own_broker(config.broker.auth_secret.clone()),
        None => Askers::private_broker().map_err(|e| MasterError::new("cannot draw random numbers", &e))?,
    };
    let auth = AuthServer::start(auth, askers.clone(), vhost, admissions, refusals.clone(), conduct.clone())
        .map_err(|e| MasterError::new("cannot start", &e))?;
    let (node, endpoints, trust) = match external {
        Some(endpoints) => (None, endpoints, Trust::Authorities(config.broker.ca.clone())),
        None => {
            let settings = NodeSettings {
                dir: state.path("broker"),
                listen: config.broker.listen.iter().filter(|a| !config.broker.encrypted.contains(a)).copied().collect(),
                tls: node_tls,
                auth_listen: auth.address(),
                askers,
                node_name_suffix: state.id.chars().take(8).collect(),
            };
            let node =
                Node::start(settings).await.map_err(|e| MasterError::new("cannot start the private broker", &e))?;
            conduct.close_with(node.closer());
            let (endpoints, trust) = (endpoints(node.url())?, node.trust().clone());
            (Some(node), endpoints, trust)
        }
    };
    let state = node.as_ref().map(Node::state);
    let settings = LinkSettings { endpoints, trust, refusals, conduct, node: state };
    Ok((node, Link::start(settings, inbound, logs), auth))
}

async fn forward_deaths(mut heard: mpsc::Receiver<Death>, events: mpsc::Sender<Event>) {
    while let Some(Death { host, why, reclaimed }) = heard.recv().await {
        if events.send(Event::HostGone { host, why, reclaimed }).await.is_err() {
            return;
        }
    }
}
