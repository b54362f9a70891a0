//! A fake master that contains only state: it answers the API's calls from what a test has set.

use async_trait::async_trait;
use bytes::Bytes;
use rouse_master::access::Access;
use rouse_master::api_token::ApiToken;
use rouse_master::core::audit::{AuditMode, AuditReport, Difference};
use rouse_master::core::build::{Attempt, Build, BuildEnd, BuildSpec, BuildState, BuildStatus, Requirement};
use rouse_master::core::event::{Change, Command, Reply, WorkerState};
use rouse_master::core::journal::{Caller, Entry};
use rouse_master::core::mail::{Item, Mail, MailId, What};
use rouse_master::core::plan::ProviderKind;
use rouse_master::core::record::{DesiredState, Host, HostState};
use rouse_master::core::view::{BuildView, HostView, PlaceView, Refusal, Why, WorkerView};
use rouse_master::http_server::Encryption;
use rouse_master::tls::TlsFiles;
use rouse_master::web::{
    self, Figure, Health, LogSource, Metrics, NoBuild, Query, Reload, Reloaded, Request, Settings,
};
use rouse_shared::message::{Outcome, Step, StepReport, StepState};
use rouse_shared::{AttemptId, BuildId, HostId, SessionId, Timestamp};
use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

pub const TOKEN: &str = "open-sesame";
/// 2026-11-23T12:00:00Z
pub const NOON: Timestamp = Timestamp(1_795_435_200_000);

/// Logs by attempt and step.
type StoredLogs = HashMap<(AttemptId, u32), Vec<u8>>;

pub struct Logs {
    dir: tempfile::TempDir,
    lengths: Mutex<HashMap<(AttemptId, u32), watch::Sender<u64>>>,
    /// What is in the blob store instead; absent if the store is away.
    pub stored: Mutex<Option<StoredLogs>>,
}

impl Logs {
    fn stored(&self, store: &str, attempt: AttemptId, step: u32) -> Result<Vec<u8>, String> {
        let stored = self.stored.lock().unwrap();
        let stored = stored.as_ref().ok_or_else(|| format!("{store} cannot be used: connection refused"))?;
        Ok(stored.get(&(attempt, step)).cloned().unwrap_or_default())
    }
}

#[async_trait]
impl LogSource for Logs {
    fn path(&self, attempt: AttemptId, step: u32) -> PathBuf {
        self.dir.path().join(format!("{attempt}.{step}"))
    }

    fn watch(&self, attempt: AttemptId, step: u32) -> watch::Receiver<u64> {
        let mut lengths = self.lengths.lock().unwrap();
        lengths.entry((attempt, step)).or_insert_with(|| watch::channel(0).0).subscribe()
    }

    async fn stored_length(&self, store: &str, attempt: AttemptId, step: u32) -> Result<u64, String> {
        self.stored(store, attempt, step).map(|log| log.len() as u64)
    }

    async fn stored_range(
        &self,
        store: &str,
        attempt: AttemptId,
        step: u32,
        range: Range<u64>,
    ) -> Result<Bytes, String> {
        let index = |at: u64| usize::try_from(at).unwrap();
        assert!(range.end - range.start <= 1 << 20, "{range:?} in memory");
        self.stored(store, attempt, step).map(|log| Bytes::from(log[index(range.start)..index(range.end)].to_vec()))
    }
}

#[derive(Default)]
pub struct World {
    pub builds: BTreeMap<BuildId, BuildView>,
    /// Builds that retention has deleted.
    pub deleted: Vec<BuildId>,
    pub workers: Vec<WorkerView>,
    pub hosts: Vec<HostView>,
    pub places: Vec<PlaceView>,
    pub mails: Vec<Mail>,
    pub uploads: web::Uploads,
    pub why: String,
    pub broker_down: bool,
    pub ledger_broken: bool,
    pub operations: Vec<String>,
    /// Who has given each command, and why.
    pub callers: Vec<Caller>,
    /// The journal, newest first.
    pub journal: Vec<Entry>,
    pub differences: Vec<Difference>,
}

pub struct Fake {
    pub address: SocketAddr,
    /// Has the port too, and does not listen: while the server is restarted, nothing else gets the port.
    _place: TcpSocket,
    pub world: Arc<Mutex<World>>,
    pub changes: broadcast::Sender<Change>,
    pub logs: Arc<Logs>,
    pub token: ApiToken,
    pub access: Access,
    read_needs_token: bool,
    encryption: Option<Arc<Encryption>>,
    server: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Fake {
    /// A mail that waits.
    pub fn add_mail(&self) {
        let what = What::Missing { worker: "w1".parse().unwrap(), why: "not attached for 300 s".to_owned() };
        self.world.lock().unwrap().mails.push(Mail {
            id: MailId("a1@example.org".to_owned()),
            created: NOON,
            to: vec!["ann@example.org".to_owned(), "bob@example.org".to_owned()],
            waiting: ["bob@example.org".to_owned()].into(),
            items: vec![Item { at: NOON, what }],
            tries: 3,
            not_before: NOON,
            taken: true,
            error: Some("localhost:25: connection\nrefused".to_owned()),
        });
    }

    pub async fn start() -> Self {
        Self::start_with(false).await
    }

    pub async fn start_with(read_needs_token: bool) -> Self {
        let logs = Logs { dir: tempfile::tempdir().unwrap(), lengths: Mutex::default(), stored: Mutex::default() };
        let place = TcpSocket::new_v4().unwrap();
        place.set_reuseaddr(true).unwrap();
        place.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let mut fake = Self {
            address: place.local_addr().unwrap(),
            _place: place,
            world: Arc::default(),
            changes: broadcast::channel(16).0,
            logs: Arc::new(logs),
            token: ApiToken::fixed(TOKEN),
            access: Access::default(),
            read_needs_token,
            encryption: None,
            server: None,
        };
        fake.serve().await;
        fake
    }

    /// Serves over TLS from now on, with this certificate.
    pub async fn encrypt(&mut self, files: &TlsFiles) {
        self.end().await;
        self.encryption = Some(Arc::new(Encryption::new(files.server_config().unwrap())));
        self.serve().await;
    }

    /// Serves on its port.
    pub async fn serve(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        std::fs::remove_file(self.socket()).ok();
        let commands = Some(UnixListener::bind(self.socket()).unwrap());
        let (calls, asked) = mpsc::channel(16);
        tokio::spawn(answer(asked, Arc::clone(&self.world), self.changes.clone()));
        let (reloads, mut reloaded) = mpsc::channel::<Reload>(1);
        let reloading = Arc::clone(&self.world);
        tokio::spawn(async move {
            while let Some(Reload { by, reply }) = reloaded.recv().await {
                reloading.lock().unwrap().operations.push(format!("Reload by {}", by.principal.name));
                reply.send(Ok(Reloaded::default())).ok();
            }
        });
        let settings = Settings {
            token: self.token.clone(),
            access: self.access.clone(),
            reloads,
            read_needs_token: Arc::new(AtomicBool::new(self.read_needs_token)),
            version: "0.0.1",
            master_name: "ci".to_owned(),
        };
        let (end, ended) = oneshot::channel();
        let shutdown = async move {
            ended.await.ok();
        };
        let logs = Arc::clone(&self.logs) as Arc<dyn LogSource>;
        let doors = web::Doors { tcp: listener, commands };
        let server = web::serve(doors, settings, calls, self.changes.clone(), logs, self.encryption.clone(), shutdown);
        let server = tokio::spawn(async move { server.await.unwrap() });
        self.server = Some((end, server));
    }

    /// Ends the server, cleanly as a master does on SIGTERM.
    pub async fn end(&mut self) {
        let (end, server) = self.server.take().unwrap();
        end.send(()).unwrap();
        tokio::time::timeout(Duration::from_secs(20), server).await.unwrap().unwrap();
    }

    /// The path of the socket of the commands, which is made anew each time that the server starts.
    pub fn socket(&self) -> PathBuf {
        self.logs.dir.path().join("rouse.sock")
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Adds a queued build of these steps.
    pub fn add(&self, id: u64, steps: &[&str]) {
        let steps = steps.iter().map(|name| step(name)).collect();
        let requirement = Requirement::Where(BTreeMap::new());
        let spec = BuildSpec {
            name: "unit tests".to_owned(),
            requirement,
            priority: 0,
            retries: 2,
            timeout_ms: Some(90_500),
            queue_timeout_ms: None,
            keep: false,
            env: BTreeMap::new(),
            limits: Default::default(),
            steps,
        };
        self.world.lock().unwrap().builds.insert(BuildId(id), queued(id, Arc::new(spec)));
    }

    /// Changes a build; announced only if its state changes, as the core does.
    pub fn change(&self, id: u64, change: impl FnOnce(&mut BuildStatus)) {
        let mut world = self.world.lock().unwrap();
        let view = world.builds.get_mut(&BuildId(id)).unwrap();
        let before = view.state;
        change(&mut view.build.status);
        view.state = view.build.status.state();
        if view.state != before {
            let change = Change::Build { id: BuildId(id), state: view.state, worker: None, at: NOON };
            self.changes.send(change).ok();
        }
    }

    /// Gives the build to `w1`, where its first step runs.
    pub fn begin(&self, id: u64) {
        self.change(id, |status| {
            let number = u32::try_from(status.attempts.len()).unwrap() + 1;
            status.attempts.push(Attempt {
                number,
                worker: "w1".parse().unwrap(),
                host: Some(HostId("h0000000000000001".to_owned())),
                session: SessionId("s".to_owned()),
                ordered: NOON,
                started: Some(NOON),
                ended: None,
                revision: 1,
                steps: vec![report(StepState::Running, 0)],
                outcome: None,
                cut_logs: Vec::new(),
                excused: false,
                unenforced: None,
            });
            status.started = Some(NOON);
        });
    }

    /// Ends the step that runs; another begins if `more`.
    pub fn end_step(&self, id: u64, state: StepState, log_length: u64, more: bool) {
        self.change(id, |status| {
            let steps = &mut status.attempts.last_mut().unwrap().steps;
            *steps.last_mut().unwrap() = report(state, log_length);
            if more {
                steps.push(report(StepState::Running, 0));
            }
        });
    }

    /// Ends the attempt, and the build if `end` says how.
    pub fn end_attempt(&self, id: u64, outcome: Outcome, end: Option<BuildEnd>) {
        self.change(id, |status| {
            let attempt = status.attempts.last_mut().unwrap();
            attempt.ended = Some(NOON + Duration::from_millis(3_200));
            attempt.outcome = Some(outcome);
            status.finished = end.as_ref().map(|_| NOON + Duration::from_millis(3_200));
            status.end = end;
        });
    }

    /// Appends to a step's log.
    pub fn print(&self, id: u64, attempt: u32, step: u32, bytes: &[u8]) {
        let attempt = AttemptId { build: BuildId(id), number: attempt };
        let path = self.logs.path(attempt, step);
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
        file.write_all(bytes).unwrap();
        drop(self.logs.watch(attempt, step));
        self.logs.lengths.lock().unwrap()[&(attempt, step)].send_modify(|length| *length += bytes.len() as u64);
    }

    /// A worker and its host.
    pub fn add_fleet(&self) {
        let host = Host {
            id: HostId("h0000000000000001".to_owned()),
            worker: "w1".parse().unwrap(),
            provider: ProviderKind::Ec2,
            place: "us-west-2".to_owned(),
            handle: Some("i-0123".to_owned()),
            state: HostState::Ready,
            image: "ami-1".to_owned(),
            launch: None,
            token: "boot-token".to_owned(),
            identity: None,
            nonce: None,
            token_spent: true,
            fingerprint: 7,
            created: NOON,
            booted: Some(NOON),
            attached: Some(NOON),
            suspended: None,
            resumed: None,
            paid: 0.0,
            terminated: None,
            forgotten: None,
            terminating: None,
            lingering_notified: None,
            uses: 1,
            started_for: Some(BuildId(1)),
            why: None,
            console: None,
            cost: Some(0.096),
        };
        let worker = WorkerView {
            template: Some("w-{1..2}".to_owned()),
            name: "w1".parse().unwrap(),
            provider: Some(ProviderKind::Ec2),
            state: WorkerState::Busy,
            since: NOON,
            running: 1,
            max_builds: None,
            host: Some(host.id.clone()),
            agent_version: Some("0.1.0".to_owned()),
            facts: None,
            unfit: None,
            vitals: None,
            last_heard: Some(NOON),
            refused: Some(Refusal { at: NOON, identity: "uuid:2".to_owned(), reason: "another".to_owned() }),
            wish: DesiredState::Work,
            properties: BTreeMap::from([("os".to_owned(), "linux".to_owned())]),
            last_failure: None,
            next_try: None,
        };
        let mut world = self.world.lock().unwrap();
        world.hosts.push(HostView { host, builds: vec![BuildId(1)] });
        world.workers.push(worker);
    }
}

pub fn step(name: &str) -> Step {
    let run = vec!["true".to_owned()];
    let (timeout_ms, silence_ms) = (None, None);
    Step {
        name: name.to_owned(),
        run,
        workdir: String::new(),
        env: BTreeMap::new(),
        timeout_ms,
        silence_ms,
        always: false,
        limits: Default::default(),
    }
}

pub fn report(state: StepState, log_length: u64) -> StepReport {
    StepReport { state, started_ms: 0, took_ms: 1_500, log_length, log_cut: 0, usage: None }
}

fn queued(id: u64, spec: Arc<BuildSpec>) -> BuildView {
    BuildView {
        build: Build { id: BuildId(id), spec, status: BuildStatus::new(NOON), logs_deleted: None, logs_store: None },
        state: BuildState::Queued,
        upload_trouble: None,
    }
}

async fn answer(mut asked: mpsc::Receiver<Request>, world: Arc<Mutex<World>>, changes: broadcast::Sender<Change>) {
    while let Some(request) = asked.recv().await {
        let mut world = world.lock().unwrap();
        match request {
            Request::Command { by, command, reply } => {
                reply.send(obey(&mut world, &by, command, &changes)).ok();
            }
            Request::Query(query) => tell(&world, query),
        }
    }
}

fn obey(world: &mut World, by: &Caller, command: Command, changes: &broadcast::Sender<Change>) -> Reply {
    world.callers.push(by.clone());
    match command {
        Command::Submit { spec, .. } => {
            let known = match &spec.requirement {
                Requirement::Worker(name) => world.workers.iter().any(|worker| worker.name == *name),
                Requirement::Where(_) => true,
            };
            if !known {
                let reason = "there is no such worker".to_owned();
                return Reply::Refused { field: Some("worker".to_owned()), reason };
            }
            let id = world.builds.keys().last().map_or(1, |last| last.0 + 1);
            let mut build = queued(id, spec);
            build.build.status.submitter = Some(by.principal.clone());
            world.builds.insert(BuildId(id), build);
            Reply::Accepted(BuildId(id))
        }
        Command::CancelBuild(build) => match world.builds.get_mut(&build) {
            None => Reply::NotFound(format!("there is no build {build}")),
            Some(view) if view.state.is_final() => {
                Reply::NotFound(format!("there is no build {build} that has not ended"))
            }
            Some(view) => {
                view.build.status.end = Some(BuildEnd::Cancelled);
                view.state = BuildState::Cancelled;
                let change = Change::Build { id: build, state: view.state, worker: None, at: NOON };
                changes.send(change).ok();
                Reply::Done
            }
        },
        Command::Operate { worker, operation } => {
            let known = world.workers.iter().any(|known| known.name == worker);
            world.operations.push(format!("{operation:?} {worker}"));
            if known { Reply::Done } else { Reply::NotFound(format!("there is no worker {worker}")) }
        }
        Command::TerminateHost(host) => {
            let known = world.hosts.iter().any(|known| known.host.id == host);
            world.operations.push(format!("Terminate {host}"));
            if known { Reply::Done } else { Reply::NotFound(format!("there is no host {host}")) }
        }
        Command::ForgetHost(host) => {
            let known = world.hosts.iter().any(|known| known.host.id == host);
            world.operations.push(format!("Forget {host}"));
            if known { Reply::Done } else { Reply::NotFound(format!("there is no host {host}")) }
        }
        Command::ForgetPlace(place) => {
            let known = world.places.iter().any(|known| known.id == place);
            world.operations.push(format!("Forget {place}"));
            if known { Reply::Done } else { Reply::NotFound(format!("there is no place {place}")) }
        }
        Command::Record(action) => {
            world.operations.push(format!("{action:?}"));
            Reply::Done
        }
        Command::Audit(mode) => {
            let mut report = AuditReport { differences: world.differences.clone(), hosts: 1, listed: 2 };
            for difference in &mut report.differences {
                difference.done = mode == AuditMode::Adopt;
            }
            Reply::Audit(Box::new(report))
        }
    }
}

fn tell(world: &World, query: Query) {
    let ledger = || if world.ledger_broken { Err("the master failed to read the ledger".to_owned()) } else { Ok(()) };
    let build = |id| match world.builds.get(&id) {
        _ if world.ledger_broken => Err(NoBuild::Unreadable("the master failed to read the ledger".to_owned())),
        Some(build) => Ok(build.clone()),
        None if world.deleted.contains(&id) => Err(NoBuild::Deleted),
        None => Err(NoBuild::Unknown),
    };
    match query {
        Query::Build { id, reply } => drop(reply.send(build(id))),
        Query::Builds { filter, reply } => {
            let fits = |view: &&BuildView| filter.matches(&view.build, view.state);
            let found = world.builds.values().rev().filter(fits).take(filter.limit).cloned().collect();
            reply.send(ledger().map(|()| found)).ok();
        }
        Query::Journal { filter, reply } => {
            let fits =
                |entry: &&Entry| filter.target.as_ref().is_none_or(|target| entry.target.as_ref() == Some(target));
            let found = world.journal.iter().filter(fits).take(filter.limit).cloned().collect();
            reply.send(ledger().map(|()| found)).ok();
        }
        Query::Why { id, reply } => {
            let why = Why { sentence: world.why.clone(), next_try: Some(NOON) };
            reply.send(build(id).map(|_| why)).ok();
        }
        Query::Workers { reply } => drop(reply.send(world.workers.clone())),
        Query::Hosts { reply } => drop(reply.send(world.hosts.clone())),
        Query::Places { reply } => drop(reply.send(world.places.clone())),
        Query::Uploads { reply } => drop(reply.send(world.uploads.clone())),
        Query::Mails { reply } => drop(reply.send(world.mails.clone())),
        Query::Health { reply } => drop(reply.send(Health { broker: !world.broker_down, alarm: None, ledger: Ok(()) })),
        Query::Metrics { reply } => {
            let figure = Figure { name: "rouse_mails_sent_total", value: 5.0 };
            let builds = BTreeMap::from([(BuildState::Queued, world.builds.len() as u64)]);
            reply.send(Metrics { builds, figures: vec![figure], ..Metrics::default() }).ok();
        }
    }
}
