//! A master that stands by: another one has the ledger. It waits for its lease, and meanwhile answers who only reads, and
//! the questions of the broker, from the ledger.
//!
//! What it answers with is a core of its own, made from the ledger about once a second. It performs nothing.

use super::control::Control;
use super::error::MasterError;
use super::listeners::{self, Inherited};
use super::master::{self, LogFiles};
use super::reader::{Listing, Reader, unreadable};
use super::state::{Locked, State};
use super::{WAITING, belongings, encryption, tenure};
use crate::access::Access;
use crate::blobs::Blobs;
use crate::broker::{Admission, Askers, AuthServer, Endpoints, RateLimiter, Refusals};
use crate::clock;
use crate::config::Config;
use crate::core::event::Reply;
use crate::core::view::{BuildView, Why};
use crate::core::{Core, Start, of_status};
use crate::logs::Logs;
use crate::store::{Claim, Database, Store};
use crate::sync::lock;
use crate::web::{self, Health, Metrics, NoBuild, Query, Request};
use rouse_shared::error::Chain;
use rouse_shared::{BuildId, MasterId};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{broadcast, mpsc};
use tracing::{info, warn};

/// How often the lease is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often a master that begins to stand by looks for the id.
const ID_TRIES: u32 = 30;
/// How old the core may be that answers are taken from.
const FRESH: Duration = Duration::from_secs(1);
/// How long the broker may take to accept a connection.
const REACH: Duration = Duration::from_secs(2);

/// Stands by until the ledger can be opened. Returns the state directory, which stays locked but for a moment.
///
/// # Errors
/// If it cannot listen, or the state directory is that of another master.
pub(super) async fn wait(
    config: &Config,
    (database, claim): (&Database, &Claim),
    inherited: &Inherited,
    locked: Locked,
) -> Result<Locked, MasterError> {
    let state = {
        let (database, config) = (database.clone(), config.clone());
        let share = move || {
            let store = database.reader().map_err(|e| MasterError::new("cannot stand by", &e))?;
            // The active master makes the id right after it has begun.
            let mut tries = ID_TRIES;
            while !belongings::copy(&config, &store)? {
                tries -= 1;
                if tries == 0 {
                    let why = "the active master has not put its id into the database: look at its log";
                    return Err(MasterError::from(format!("cannot stand by: {why}")));
                }
                std::thread::sleep(LOOK);
            }
            locked.open(config.master.api_token.as_ref()).map_err(|e| MasterError::new("cannot stand by", &e))
        };
        blocking(share).await??
    };
    let active = Arc::new(Mutex::new(None));
    let served = Served::start(config, database, claim, &state, inherited, active.clone()).await?;
    let mut said = String::new();
    let mut differs = Vec::new();
    let mut unread = String::new();
    loop {
        let look = database.clone();
        match blocking(move || look.holder()).await? {
            Ok(None) => break,
            Ok(Some((holder, address))) => {
                unread.clear();
                if holder != said {
                    let at = address.as_deref().unwrap_or("an unknown address");
                    info!("standing by: {holder}, at {at}, has the ledger");
                    said = holder;
                }
                *lock(&active) = address;
                compare(database, claim, &mut differs).await?;
            }
            Err(error) => {
                let why = Chain(&error).to_string();
                if why != unread {
                    warn!("standing by, but the ledger cannot be looked at: {why}");
                    unread = why;
                }
            }
        }
        claim.broker.store(reaches_broker(config).await, Ordering::Relaxed);
        tokio::time::sleep(LOOK).await;
    }
    info!(
        "{} has given the ledger up, or was not heard of in time: this master takes over",
        if said.is_empty() { "the former master" } else { &said }
    );
    drop(served);
    drop(state);
    Locked::new(&config.master.state_dir).map_err(|e| MasterError::new("cannot start", &e))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, MasterError> {
    tokio::task::spawn_blocking(work).await.map_err(|e| MasterError::new("cannot stand by", &e))
}

/// Warns if the active master has another configuration. Its own counts.
async fn compare(database: &Database, claim: &Claim, said: &mut Vec<String>) -> Result<(), MasterError> {
    let asked = database.clone();
    let Ok(fellows) = blocking(move || asked.fellows()).await? else { return Ok(()) };
    let Some(active) = fellows.iter().find(|fellow| fellow.epoch.is_some()) else { return Ok(()) };
    let differs = tenure::differences(&lock(&claim.configuration), &active.configuration);
    if differs != *said && !differs.is_empty() {
        warn!(
            "the configuration of the active master differs from this one in: {}. That of the active master is in effect",
            differs.join(", ")
        );
    }
    *said = differs;
    Ok(())
}

async fn reaches_broker(config: &Config) -> bool {
    let Some(url) = &config.broker.url else { return false };
    let Ok(endpoints) = Endpoints::parse(url.expose()) else { return false };
    for (host, port) in endpoints.addresses() {
        if let Ok(Ok(_)) = tokio::time::timeout(REACH, TcpStream::connect((host.as_str(), port))).await {
            return true;
        }
    }
    false
}

/// The servers of a master that stands by. Dropped, they end.
struct Served {
    web: tokio::task::JoinHandle<()>,
    _auth: AuthServer,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.web.abort();
    }
}

impl Served {
    async fn start(
        config: &Config,
        database: &Database,
        claim: &Claim,
        state: &State,
        inherited: &Inherited,
        active: Arc<Mutex<Option<String>>>,
    ) -> Result<Self, MasterError> {
        let mut inherited = inherited.try_clone()?;
        let tcp = master::listen(config.master.listen, &mut inherited).await?;
        let auth = master::listen_for_broker(config.broker.auth_listen, &mut inherited).await?;
        let doors = web::Doors { tcp, commands: listeners::commands(&mut inherited, state) };
        let (requests, requests_in) = mpsc::channel(WAITING);
        let (admissions, admissions_in) = mpsc::channel(WAITING);
        let (changes, _) = broadcast::channel(1);
        let reader = || database.reader().map_err(|e| MasterError::new("cannot stand by", &e));
        let answers = Answers {
            config: config.clone(),
            id: state.id.clone(),
            store: reader()?,
            reader: Reader::spawn(reader()?)?,
            claim: claim.clone(),
            core: None,
        };
        answers.spawn(requests_in, admissions_in)?;
        let logs = Logs::new(&state.path("logs"), config.plan.max_log_size)
            .map_err(|e| MasterError::new("cannot use the log directory", &e))?;
        let blobs = Arc::new(Blobs::new(&state.id, config.blobs.clone()));
        let settings = web::Settings {
            token: state.token.clone(),
            access: Access::new(config.access.clone()),
            // The server sends such requests to the active master.
            reloads: mpsc::channel(1).0,
            read_needs_token: Arc::new(AtomicBool::new(config.read_needs_token())),
            version: env!("CARGO_PKG_VERSION"),
            master_name: config.master.name.clone(),
        };
        let encryption = encryption::of_page(config)?;
        let masters = Arc::new(master::Fellows { database: database.clone(), active: Some(active) });
        let source = Arc::new(LogFiles(logs, blobs));
        let web = tokio::spawn(async move {
            let for_ever = std::future::pending();
            let served =
                web::serve_with(masters, doors, settings, requests, changes, source, encryption, for_ever).await;
            if let Err(error) = served {
                warn!("the HTTP server ended: {error}");
            }
        });
        let vhost = config.broker.url.as_ref().and_then(|url| Endpoints::parse(url.expose()).ok());
        let vhost = vhost.map_or_else(|| crate::broker::VHOST.to_owned(), |endpoints| endpoints.vhost().to_owned());
        let refusals = Refusals::default();
        let conduct = RateLimiter::new(refusals.clone());
        let askers = Askers::own_broker(config.broker.auth_secret.clone());
        let auth = AuthServer::start(auth, askers, vhost, admissions, refusals, conduct)
            .map_err(|e| MasterError::new("cannot stand by", &e))?;
        Ok(Self { web, _auth: auth })
    }
}

/// Answers from the ledger, on a thread of its own, because a database may take long.
struct Answers {
    config: Config,
    id: String,
    store: Store,
    reader: Reader,
    claim: Claim,
    /// With when it was made, by the clock of the machine.
    core: Option<(Core, Duration)>,
}

impl Answers {
    fn spawn(
        mut self,
        mut requests: mpsc::Receiver<Request>,
        mut admissions: mpsc::Receiver<Admission>,
    ) -> Result<(), MasterError> {
        let failed = |e: std::io::Error| MasterError::new("cannot start a thread", &e);
        let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(failed)?;
        let body = move || {
            runtime.block_on(async move {
                loop {
                    tokio::select! {
                        request = requests.recv() => match request {
                            Some(request) => self.answer(request),
                            None => return,
                        },
                        Some(admission) = admissions.recv() => self.admit(admission),
                    }
                }
            });
        };
        std::thread::Builder::new().name("standby".to_owned()).spawn(body).map(drop).map_err(failed)
    }

    /// The core, made anew if it is old. If the ledger cannot be read, the old one.
    fn core(&mut self) -> Option<&Core> {
        if self.core.as_ref().is_none_or(|(_, made)| clock::since_boot().saturating_sub(*made) > FRESH) {
            match self.store.load() {
                Ok(ledger) => {
                    let (master, plan) = (MasterId(self.id.clone()), Arc::new(self.config.plan.clone()));
                    let (core, _) = Core::new(clock::now(), Start { master, plan, ledger, seed: [0; 32] });
                    self.core = Some((core, clock::since_boot()));
                }
                Err(error) => drop(unreadable(error)),
            }
        }
        self.core.as_ref().map(|(core, _)| core)
    }

    fn admit(&mut self, Admission { worker, password, reply }: Admission) {
        if !reply.is_closed()
            && let Some(core) = self.core()
        {
            drop(reply.send(core.admit(worker.as_str(), &password)));
        }
    }

    fn answer(&mut self, request: Request) {
        let query = match request {
            Request::Query(query) => query,
            // The server sends them to the active master.
            Request::Command { reply, .. } => {
                return drop(reply.send(Reply::Unavailable("this master stands by".to_owned())));
            }
        };
        let broker = self.claim.reaches_broker();
        // Without an answer, the client learns that the master cannot give one now.
        let Some(core) = self.core() else { return };
        match query {
            Query::Builds { filter, reply } => {
                let live = core.live_builds(&filter);
                self.reader.list(Listing { filter, live, reply });
            }
            Query::Build { id, reply } => {
                let live = core.build(id);
                drop(reply.send(live.map_or_else(|| self.ended(id), Ok)));
            }
            Query::Why { id, reply } => {
                let why = core.why(clock::now(), id);
                drop(reply.send(why.map_or_else(|| self.why_ended(id), Ok)));
            }
            Query::Workers { reply } => drop(reply.send(core.worker_views(clock::now()))),
            Query::Hosts { reply } => drop(reply.send(core.host_views(clock::now()))),
            Query::Places { reply } => drop(reply.send(core.place_views())),
            Query::Journal { filter, reply } => self.reader.journal(filter, reply),
            Query::Mails { reply } => drop(reply.send(core.mails())),
            Query::Uploads { reply } => drop(reply.send(web::Uploads::default())),
            Query::Health { reply } => drop(reply.send(Health { broker, alarm: None, ledger: Ok(()) })),
            Query::Metrics { reply } => {
                let counts = core.counts();
                drop(reply.send(Metrics {
                    builds: counts.builds,
                    workers: counts.workers,
                    hosts: counts.hosts,
                    places: core.place_views(),
                    ..Metrics::default()
                }));
            }
        }
    }

    fn ended(&self, id: BuildId) -> Result<BuildView, NoBuild> {
        let broken = |error| NoBuild::Unreadable(unreadable(error));
        match self.store.build(id).map_err(broken)? {
            Some(build) => Ok(BuildView { state: build.status.state(), build, upload_trouble: None }),
            None if id <= self.store.highest_deleted().map_err(broken)? => Err(NoBuild::Deleted),
            None => Err(NoBuild::Unknown),
        }
    }

    fn why_ended(&self, id: BuildId) -> Result<Why, NoBuild> {
        let sentence = of_status(&self.ended(id)?.build.status).ok_or(NoBuild::Unknown)?;
        Ok(Why { sentence, next_try: None })
    }
}

impl Control {
    /// Tells the masters that share the ledger what this one is configured with.
    pub(super) fn describe(&self, config: &Config) {
        if let Some(claim) = &self.claim {
            *lock(&claim.configuration) = tenure::fingerprints(config);
        }
    }
}
