//! The loop. Each turn takes all waiting events, passes them to the core, and commits the result in one transaction.
//! Therefore more events share a commit when more of them wait.

use super::batch::Batch;
use super::disk_space::DiskSpace;
use super::perform::{Executor, Requester};
use super::reader::Reader;
use super::{MasterError, WAITING};
use crate::broker::{Admission, Inbound, ack_all};
use crate::clock;
use crate::config::Config;
use crate::core::build::{BuildSpec, BuildState};
use crate::core::event::{Command, Effect, Event, Reply};
use crate::core::journal::{Action, Caller, Principal, PrincipalKind};
use crate::core::{Core, Start};
use crate::metrics::Meters;
use crate::store::{Commit, Store, StoreError};
use crate::submission::{self, Invalid};
use crate::web::{Query, Request};
use rouse_shared::error::Chain;
use rouse_shared::message::ToMaster;
use rouse_shared::names::{BUILDS, worker_of_queue};
use rouse_shared::{BuildId, Nonce, WorkerName};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, error, info};

/// Most inputs that one turn takes from one channel. With more, the first of them would wait too long.
pub(super) const TURN: usize = 1_024;
/// Interval at which the loop checks whether there is disk space again for held builds.
const HELD_PAUSE: Duration = Duration::from_secs(1);
/// Pause between two tries to commit a batch that the disk did not take.
const COMMIT_PAUSE: Duration = Duration::from_secs(1);

/// How long the loop waits for the answer to a commit before it serves others meanwhile.
const COMMIT_PATIENCE: Duration = Duration::from_secs(1);

/// What the process requests from the loop.
pub(super) enum Control {
    /// Use a new configuration, which somebody has requested.
    Configure(Box<Config>, Caller),
    /// Extend every lease, and report when the messages have been passed to the link.
    Shutdown(oneshot::Sender<()>),
}

/// The channels that the loop reads.
pub(super) struct Inputs {
    pub events: mpsc::Receiver<Event>,
    pub inbound: mpsc::Receiver<Inbound>,
    pub requests: mpsc::Receiver<Request>,
    pub admissions: mpsc::Receiver<Admission>,
    pub controls: mpsc::Receiver<Control>,
}

/// What one turn handles.
#[derive(Default)]
pub(super) struct Waiting {
    events: Vec<Event>,
    pub inbound: Vec<Inbound>,
    requests: Vec<Request>,
    admissions: Vec<Admission>,
    controls: Vec<Control>,
}

/// Starts the loop on a thread of its own. If the loop ends, the receiver gets the reason.
pub(super) fn spawn(
    (store, reader): (Store, Reader),
    start: Start,
    executor: Executor,
    inputs: Inputs,
    config: Config,
) -> Result<oneshot::Receiver<String>, MasterError> {
    let (end, ended) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.map_err(|e| MasterError::new("cannot start the loop", &e))?;
    let disk_space = DiskSpace::new(&config.master.state_dir);
    let body = move || {
        let plan = start.plan.clone();
        let (core, effects) = Core::new(clock::now(), start);
        let mut meters = Meters::new(clock::now(), &plan);
        meters.adopt(core.costs(clock::now()));
        let executor = Executor { calls: meters.calls(), ..executor };
        let mut event_loop = EventLoop {
            core,
            store,
            reader,
            executor,
            config,
            batch: Batch::default(),
            meters,
            commit_error: None,
            logged: BTreeSet::new(),
            disk_space,
            linked: false,
            reported_down: false,
            held_builds: Vec::new(),
            known: HashMap::new(),
            ended: BTreeMap::new(),
            queries: Vec::new(),
        };
        event_loop.load_ended();
        event_loop.batch.take(effects);
        let why = runtime.block_on(event_loop.run(inputs));
        // If the process ends, the receiver is gone.
        drop(end.send(why));
    };
    std::thread::Builder::new()
        .name("loop".to_owned())
        .spawn(body)
        .map(|_| ended)
        .map_err(|e| MasterError::new("cannot start the loop", &e))
}

pub(super) struct EventLoop {
    pub core: Core,
    pub store: Store,
    pub reader: Reader,
    pub executor: Executor,
    pub config: Config,
    pub batch: Batch,
    pub meters: Meters,
    /// Why the ledger cannot be written at present.
    pub commit_error: Option<String>,
    /// What was logged about it since it could be written. Each reason is logged once.
    logged: BTreeSet<String>,
    /// Whether the link to the broker is up.
    linked: bool,
    /// Whether the core was informed that the broker is away, although it is not: no agent is accepted while the ledger
    /// cannot be written.
    reported_down: bool,
    pub disk_space: DiskSpace,
    /// Builds from the submission queue for which there is no disk space. They are not acknowledged, so the broker
    /// keeps them.
    held_builds: Vec<Inbound>,
    /// Those of the builds submitted in this turn that the ledger has already, by the ids of their submitters.
    known: HashMap<String, BuildId>,
    /// Number of ended builds by state.
    pub ended: BTreeMap<BuildState, u64>,
    /// Queries of this turn, which are answered after its commit.
    queries: Vec<Query>,
}

impl EventLoop {
    async fn run(mut self, mut inputs: Inputs) -> String {
        let mut waiting = Waiting::default();
        if let Err(why) = self.finish(&mut inputs, &mut waiting).await {
            return why;
        }
        loop {
            let pause = self.core.next_wakeup().map_or(Duration::from_secs(3_600), |at| at.since(clock::now()));
            // Messages that were kept while the ledger could not be written are handled at once.
            let pause = if waiting.inbound.is_empty() { pause } else { Duration::ZERO };
            // Held builds are tried again.
            let pause = if self.held_builds.is_empty() { pause } else { pause.min(HELD_PAUSE) };
            tokio::select! {
                n = inputs.events.recv_many(&mut waiting.events, TURN) => if n == 0 { return "the channel of events is closed".into() },
                n = inputs.inbound.recv_many(&mut waiting.inbound, TURN), if !inputs.inbound.is_closed() => if n == 0 { continue },
                n = inputs.requests.recv_many(&mut waiting.requests, TURN), if !inputs.requests.is_closed() => if n == 0 { continue },
                n = inputs.admissions.recv_many(&mut waiting.admissions, TURN), if !inputs.admissions.is_closed() => if n == 0 { continue },
                n = inputs.controls.recv_many(&mut waiting.controls, 16) => if n == 0 { return "its owner has dropped it".into() },
                () = tokio::time::sleep(pause) => {}
            }
            waiting.drain(&mut inputs);
            let begun = clock::since_boot();
            self.turn(&mut waiting);
            self.meters.turn(clock::since_boot().saturating_sub(begun));
            if let Err(why) = self.finish(&mut inputs, &mut waiting).await {
                return why;
            }
        }
    }

    pub(super) fn handle(&mut self, event: Event) {
        let effects = self.core.handle(clock::now(), event);
        self.batch.take(effects);
    }

    fn turn(&mut self, waiting: &mut Waiting) {
        for event in waiting.events.drain(..) {
            self.handle(event);
        }
        for control in waiting.controls.drain(..) {
            match control {
                Control::Configure(config, by) => {
                    self.executor.hosts.configure(&config);
                    self.executor.logs.set_max_size(config.plan.max_log_size);
                    self.executor.configure_blobs(&self.config, &config);
                    // If it leads to another database, a warning says that this needs a restart.
                    self.store.set_url(config.store.as_ref());
                    self.meters.configure(&config.plan);
                    self.handle(Event::Configure(Arc::new(config.plan.clone())));
                    let request = self.executor.pending.add(Requester::Driver);
                    self.handle(Event::Command { request, by, command: Command::Record(Action::Reload) });
                    self.config = *config;
                }
                Control::Shutdown(performed) => {
                    self.handle(Event::Shutdown);
                    self.batch.performed.push(performed);
                }
            }
        }
        if !self.held_builds.is_empty() && self.disk_space.for_work().is_ok() {
            waiting.inbound.append(&mut self.held_builds);
        }
        self.look_up(&mut waiting.inbound);
        let last = last_hellos(&waiting.inbound);
        for message in waiting.inbound.drain(..) {
            match message {
                Inbound::Agent { worker, message: ToMaster::Hello(hello), receipt }
                    if last.get(&hello.nonce).is_some_and(|last| hello.connection < *last) =>
                {
                    // Its connection is gone, and nobody would get the answer.
                    debug!(%worker, "a newer hello of the same agent waits");
                    self.batch.receipts.push(receipt);
                }
                message => self.inbound(message),
            }
        }
        for request in waiting.requests.drain(..) {
            self.request(request);
        }
        self.handle(Event::Tick);
        for admission in waiting.admissions.drain(..) {
            self.admit(admission);
        }
    }

    /// The event for an agent's message. The provider first verifies a hello's identity document.
    fn attested(&self, worker: WorkerName, message: ToMaster) -> Event {
        if let ToMaster::Hello(hello) = &message
            && let Some(host) = self.config.hosts.get(&worker)
            && let Err(why) = self.executor.hosts.attest(host.provider(), &worker, hello)
        {
            return Event::AttestationFailed { worker, hello: hello.clone(), why };
        }
        Event::Agent { worker, message }
    }

    fn inbound(&mut self, message: Inbound) {
        match message {
            Inbound::Up => {
                self.linked = true;
                self.handle(Event::BrokerUp);
            }
            Inbound::Down { .. } => {
                self.linked = false;
                // The broker delivers them again.
                self.held_builds.clear();
                // Reported again to the next link.
                self.handle(Event::BrokerUnblocked);
                self.handle(Event::BrokerDown);
            }
            Inbound::Blocked { why } => self.handle(Event::BrokerBlocked { why }),
            Inbound::Unblocked => self.handle(Event::BrokerUnblocked),
            Inbound::Agent { worker, message, receipt } => {
                let event = self.attested(worker, message);
                self.handle(event);
                self.batch.receipts.push(receipt);
            }
            Inbound::Unroutable { queue } => {
                if let Some(worker) = worker_of_queue(&queue) {
                    self.handle(Event::Detached { worker, queue: Some(queue) });
                }
            }
            Inbound::Closed { worker } => self.handle(Event::Detached { worker, queue: None }),
            message @ Inbound::Submit { .. } if self.disk_space.for_work().is_err() => {
                if let (true, Err(why)) = (self.held_builds.is_empty(), self.disk_space.for_work()) {
                    error!("builds stay in the submission queue: {why}");
                }
                self.held_builds.push(message);
            }
            Inbound::Submit { body, content_type, message_id, user, reply_to, correlation_id, receipt } => {
                let spec = match content_type.as_deref() {
                    Some("application/msgpack" | "application/x-msgpack" | "application/vnd.msgpack") => {
                        submission::from_msgpack(&body)
                    }
                    _ => submission::from_json(&body),
                };
                let requester = Requester::Queue { reply_to, correlation_id };
                self.submit(spec, message_id, user, requester);
                self.batch.receipts.push(receipt);
            }
        }
    }

    /// Looks up which of the submitted builds the ledger has already. If it cannot be read, they wait: an answer would
    /// take them from the queue.
    fn look_up(&mut self, inbound: &mut Vec<Inbound>) {
        let ids = inbound.iter().filter_map(|message| match message {
            Inbound::Submit { message_id, .. } => message_id.as_deref(),
            _ => None,
        });
        let ids: Vec<&str> = ids.collect();
        match self.store.by_message_ids(&ids) {
            Ok(known) => {
                if !ids.is_empty() && self.commit_error.is_none() {
                    self.logged.clear();
                }
                self.known = known;
            }
            Err(error) => {
                let why = Chain(&error).to_string();
                if self.logged.insert(why.clone()) {
                    error!("builds stay in the submission queue: {why}");
                }
                let is_build = |message: &mut Inbound| matches!(message, Inbound::Submit { .. });
                self.held_builds.extend(inbound.extract_if(.., is_build));
            }
        }
    }

    fn submit(
        &mut self,
        spec: Result<BuildSpec, Invalid>,
        message_id: Option<String>,
        user: Option<String>,
        requester: Requester,
    ) {
        // A second build with the same message id could never be committed.
        let known = message_id.map(|id| (self.known.get(&id).copied(), id)).map(|(build, id)| (id, build));
        match spec {
            Ok(spec) => {
                let request = self.executor.pending.add(requester);
                let command = Command::Submit { spec: Arc::new(spec), message_id: known };
                let name = user.unwrap_or_else(|| BUILDS.to_owned());
                let principal = Principal { name, kind: PrincipalKind::Queue };
                let by = Caller { principal, from: BUILDS.to_owned(), note: None };
                self.handle(Event::Command { request, by, command });
            }
            Err(Invalid { field, reason }) => self.executor.refuse(requester, &field, &reason),
        }
    }

    fn request(&mut self, request: Request) {
        let (by, command, reply) = match request {
            Request::Query(query) => return self.queries.push(query),
            Request::Command { by, command, reply } => (by, command, reply),
        };
        if matches!(command, Command::Submit { .. })
            && let Err(why) = self.disk_space.for_work()
        {
            return drop(reply.send(Reply::Unavailable(format!("no new build is accepted: {why}"))));
        }
        let request = self.executor.pending.add(Requester::Api(reply));
        self.handle(Event::Command { request, by, command });
    }

    /// Commits the batch, however long the disk takes. Then performs the effects, answers the queries and acknowledges
    /// the deliveries. Fails if another master has the ledger.
    async fn finish(&mut self, inputs: &mut Inputs, waiting: &mut Waiting) -> Result<(), String> {
        loop {
            if !self.batch.records.is_empty() {
                let begun = clock::since_boot();
                self.commit(inputs, waiting).await?;
                self.meters.commit(clock::since_boot().saturating_sub(begun));
            }
            // What needs no commit must not be performed either.
            if let Some(why) = self.store.over() {
                return Err(why);
            }
            let mut batch = std::mem::take(&mut self.batch);
            batch.records.iter().for_each(|record| self.meters.committed(record));
            for effect in batch.effects.drain(..) {
                if let Effect::Publish(change) = &effect {
                    self.count_ended(change);
                    self.meters.changed(change);
                }
                if let Some(event) = self.executor.perform(effect, &self.config) {
                    self.handle(event);
                }
            }
            ack_all(batch.receipts);
            for performed in batch.performed {
                if performed.send(()).is_err() {
                    debug!("the caller has stopped waiting");
                }
            }
            if std::mem::take(&mut self.reported_down) && self.linked {
                self.handle(Event::BrokerUp);
            }
            if self.batch.records.is_empty() && self.batch.effects.is_empty() {
                break;
            }
        }
        for query in std::mem::take(&mut self.queries) {
            self.answer(query);
        }
        Ok(())
    }

    /// Commits the records of the batch, however long the ledger takes. Fails if another master has it.
    async fn commit(&mut self, inputs: &mut Inputs, waiting: &mut Waiting) -> Result<(), String> {
        loop {
            let count = self.batch.changes;
            let result = match self.store.start_commit(&self.batch.records) {
                Commit::Done(result) => result,
                Commit::Running(mut answer) => match tokio::time::timeout(COMMIT_PATIENCE, &mut answer).await {
                    Ok(result) => of_commit(result),
                    Err(_) => {
                        self.blocked(format!("the ledger has not answered for {} s", COMMIT_PATIENCE.as_secs()));
                        tokio::select! {
                            result = answer => of_commit(result),
                            () = self.serve_while_blocked(inputs, waiting) => continue,
                        }
                    }
                },
            };
            match result {
                // Answers to heartbeats may have added to it meanwhile. To write the whole again does no harm.
                Ok(()) if self.batch.changes == count => break,
                Ok(()) => {}
                Err(error @ StoreError::Deposed(_)) => return Err(Chain(&error).to_string()),
                Err(error) => {
                    self.blocked(Chain(&error).to_string());
                    // Always ends with the timeout.
                    drop(tokio::time::timeout(COMMIT_PAUSE, self.serve_while_blocked(inputs, waiting)).await);
                }
            }
        }
        if self.commit_error.take().is_some() {
            self.logged.clear();
            info!("the ledger can be written again");
        }
        Ok(())
    }

    /// The ledger cannot be written at present.
    fn blocked(&mut self, why: String) {
        if self.logged.insert(why.clone()) {
            error!("{why}; the master accepts nothing new until the ledger can be written");
        }
        self.commit_error = Some(why);
        if self.linked && !std::mem::replace(&mut self.reported_down, true) {
            self.handle(Event::BrokerDown);
        }
        for query in std::mem::take(&mut self.queries) {
            self.answer(query);
        }
    }

    pub(super) fn admit(&self, Admission { worker, password, reply }: Admission) {
        // The caller has a deadline of its own and may have gone away.
        if reply.is_closed() {
            return;
        }
        drop(reply.send(self.core.admit(worker.as_str(), &password)));
    }
}

/// The result of a commit whose answer was awaited.
fn of_commit(answer: Result<Result<(), StoreError>, oneshot::error::RecvError>) -> Result<(), StoreError> {
    answer.unwrap_or(Err(StoreError::NoAnswer))
}

/// The last connection of each run of an agent that says hello in these messages. After an outage an agent may have
/// given up some connections before the master has read what it sent over the first.
fn last_hellos(inbound: &[Inbound]) -> HashMap<Nonce, u64> {
    let mut last = HashMap::new();
    for message in inbound {
        if let Inbound::Agent { message: ToMaster::Hello(hello), .. } = message {
            let connection = last.entry(hello.nonce.clone()).or_insert(hello.connection);
            *connection = hello.connection.max(*connection);
        }
    }
    last
}

impl Waiting {
    /// Takes what is in the channels, without waiting.
    fn drain(&mut self, inputs: &mut Inputs) {
        fn take<T>(from: &mut mpsc::Receiver<T>, to: &mut Vec<T>) {
            while to.len() < TURN {
                match from.try_recv() {
                    Ok(item) => to.push(item),
                    Err(_) => return,
                }
            }
        }
        take(&mut inputs.events, &mut self.events);
        take(&mut inputs.inbound, &mut self.inbound);
        take(&mut inputs.requests, &mut self.requests);
        take(&mut inputs.admissions, &mut self.admissions);
        take(&mut inputs.controls, &mut self.controls);
    }
}

const _: () = assert!(TURN <= WAITING, "a turn takes no more than a channel holds");
