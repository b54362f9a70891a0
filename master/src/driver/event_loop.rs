//! The loop: each turn takes what waits on every side, and commits it at once. So throughput grows with load.

use super::batch::Batch;
use super::disk_space::DiskSpace;
use super::perform::{Asker, Executor};
use super::{MasterError, WAITING, ended};
use crate::broker::{Admission, Inbound, ack_all};
use crate::config::Config;
use crate::core::build::BuildState;
use crate::core::event::{Command, Effect, Event, Reply};
use crate::core::view::{BuildView, Why};
use crate::core::{Core, Start, of_status};
use crate::store::{self, Store, StoreError};
use crate::submission::{self, Invalid};
use crate::web::{BuildFilter, Figure, Health, Metrics, Query, Request};
use crate::{clock, core::build::BuildSpec};
use rouse_shared::error::Chain;
use rouse_shared::message::ToMaster;
use rouse_shared::{BuildId, WorkerName};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, error};

/// Inputs of one turn from one side, at most: more would make the first of them wait.
pub(super) const TURN: usize = 1_024;
/// Between two looks whether there is room again for the builds of the inbox.
const HELD_PAUSE: Duration = Duration::from_secs(1);

/// What the process wants of the loop.
pub(super) enum Control {
    /// Take a new configuration.
    Configure(Box<Config>),
    /// Extend every lease, and say when the messages are handed over.
    Shutdown(oneshot::Sender<()>),
}

/// Everything that the loop takes from.
pub(super) struct Inputs {
    pub events: mpsc::Receiver<Event>,
    pub inbound: mpsc::Receiver<Inbound>,
    pub requests: mpsc::Receiver<Request>,
    pub admissions: mpsc::Receiver<Admission>,
    pub orders: mpsc::Receiver<Control>,
}

/// What waits for one turn.
#[derive(Default)]
pub(super) struct Waiting {
    events: Vec<Event>,
    pub inbound: Vec<Inbound>,
    requests: Vec<Request>,
    admissions: Vec<Admission>,
    orders: Vec<Control>,
}

/// Starts the loop on a thread of its own. The receiver hears why it ended, should it ever.
pub(super) fn spawn(
    store: Store,
    start: Start,
    doer: Executor,
    inputs: Inputs,
    config: Config,
) -> Result<oneshot::Receiver<String>, MasterError> {
    let (end, ended) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.map_err(|e| MasterError::new("cannot start the loop", &e))?;
    let room = DiskSpace::new(&config.master.state_dir);
    let body = move || {
        let (core, effects) = Core::new(clock::now(), start);
        let mut turner = EventLoop {
            core,
            store,
            doer,
            config,
            batch: Batch::default(),
            commit_error: None,
            room,
            linked: false,
            shut: false,
            held: Vec::new(),
            ended: BTreeMap::new(),
            queries: Vec::new(),
        };
        turner.count_ended();
        turner.batch.take(effects);
        let why = runtime.block_on(turner.run(inputs));
        // Nobody listens any more where the whole process ends.
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
    pub doer: Executor,
    pub config: Config,
    pub batch: Batch,
    pub commit_error: Option<String>,
    /// Whether the link to the broker is up, as far as the core has been told of it.
    pub linked: bool,
    /// The core was told that the broker is away, since nobody is let in while the ledger cannot be written.
    pub shut: bool,
    room: DiskSpace,
    /// Builds of the inbox for which there is no room: unacknowledged, so they are the broker's to keep.
    held: Vec<Inbound>,
    /// Ended builds by state.
    ended: BTreeMap<BuildState, u64>,
    /// Questions of this turn, answered after its commit.
    pub queries: Vec<Query>,
}

impl EventLoop {
    async fn run(mut self, mut inputs: Inputs) -> String {
        let mut waiting = Waiting::default();
        self.finish(&mut inputs, &mut waiting).await;
        loop {
            let pause = self.core.next_wakeup().map_or(Duration::from_secs(3_600), |at| at.since(clock::now()));
            // What was put aside while the ledger could not be written waits no longer.
            let pause = if waiting.inbound.is_empty() { pause } else { Duration::ZERO };
            // Builds that are left in the inbox for want of room are looked at again.
            let pause = if self.held.is_empty() { pause } else { pause.min(HELD_PAUSE) };
            tokio::select! {
                n = inputs.events.recv_many(&mut waiting.events, TURN) => if n == 0 { return "its events ended".into() },
                n = inputs.inbound.recv_many(&mut waiting.inbound, TURN), if !inputs.inbound.is_closed() => if n == 0 { continue },
                n = inputs.requests.recv_many(&mut waiting.requests, TURN), if !inputs.requests.is_closed() => if n == 0 { continue },
                n = inputs.admissions.recv_many(&mut waiting.admissions, TURN), if !inputs.admissions.is_closed() => if n == 0 { continue },
                n = inputs.orders.recv_many(&mut waiting.orders, 16) => if n == 0 { return "nobody needs it".into() },
                () = tokio::time::sleep(pause) => {}
            }
            waiting.drain(&mut inputs);
            self.turn(&mut waiting);
            self.finish(&mut inputs, &mut waiting).await;
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
        for order in waiting.orders.drain(..) {
            match order {
                Control::Configure(config) => {
                    self.doer.hosts.configure(&config);
                    self.handle(Event::Configure(Arc::new(config.plan.clone())));
                    self.config = *config;
                }
                Control::Shutdown(told) => {
                    self.handle(Event::Shutdown);
                    self.batch.told.push(told);
                }
            }
        }
        if !self.held.is_empty() && self.room.for_work().is_ok() {
            waiting.inbound.append(&mut self.held);
        }
        for message in waiting.inbound.drain(..) {
            self.inbound(message);
        }
        for request in waiting.requests.drain(..) {
            self.request(request);
        }
        self.handle(Event::Tick);
        for admission in waiting.admissions.drain(..) {
            self.admit(admission);
        }
    }

    /// What an agent said; of a hello whose papers are worth nothing that it is so.
    fn vouched(&self, worker: WorkerName, message: ToMaster) -> Event {
        if let ToMaster::Hello(hello) = &message
            && let Some(host) = self.config.hosts.get(&worker)
            && let Some(provider) = self.doer.hosts.provider(host.provider())
            && let Err(why) = provider.attest(&worker, hello)
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
                self.held.clear();
                // The next link is told anew.
                self.handle(Event::BrokerUnblocked);
                self.handle(Event::BrokerDown);
            }
            Inbound::Blocked { why } => self.handle(Event::BrokerBlocked { why }),
            Inbound::Unblocked => self.handle(Event::BrokerUnblocked),
            Inbound::Agent { worker, message, receipt } => {
                let event = self.vouched(worker, message);
                self.handle(event);
                self.batch.receipts.push(receipt);
            }
            Inbound::Unroutable { queue } => {
                if let Some(worker) = worker_of(&queue) {
                    self.handle(Event::Detached { worker, queue: Some(queue) });
                }
            }
            Inbound::Closed { worker } => self.handle(Event::Detached { worker, queue: None }),
            message @ Inbound::Submit { .. } if self.room.for_work().is_err() => {
                if let (true, Err(why)) = (self.held.is_empty(), self.room.for_work()) {
                    error!("builds stay in the inbox: {why}");
                }
                self.held.push(message);
            }
            Inbound::Submit { body, content_type, message_id, reply_to, correlation_id, receipt } => {
                let spec = match content_type.as_deref() {
                    Some("application/msgpack" | "application/x-msgpack" | "application/vnd.msgpack") => {
                        submission::from_msgpack(&body)
                    }
                    _ => submission::from_json(&body),
                };
                let asker = Asker::Inbox { reply_to, correlation_id };
                self.submit(spec, message_id, asker);
                self.batch.receipts.push(receipt);
            }
        }
    }

    fn submit(&mut self, spec: Result<BuildSpec, Invalid>, message_id: Option<String>, asker: Asker) {
        // Taken for a new one, a build that the ledger has could never be committed.
        let known = match message_id.map(|id| Ok((self.store.by_message_id(&id)?, id))).transpose() {
            Ok(known) => known.map(|(build, id)| (id, build)),
            Err(error) => {
                let error: StoreError = error;
                error!("{}", Chain(&error));
                return self.doer.refuse(asker, "message_id", &format!("{}; try again", Chain(&error)));
            }
        };
        match spec {
            Ok(spec) => {
                let request = self.doer.askers.add(asker);
                let command = Command::Submit { spec: Arc::new(spec), message_id: known };
                self.handle(Event::Command { request, command });
            }
            Err(Invalid { field, reason }) => self.doer.refuse(asker, &field, &reason),
        }
    }

    fn request(&mut self, request: Request) {
        let (command, reply) = match request {
            Request::Query(query) => return self.queries.push(query),
            Request::Command { command, reply } => (command, reply),
        };
        if matches!(command, Command::Submit { .. })
            && let Err(why) = self.room.for_work()
        {
            return drop(reply.send(Reply::Unavailable(format!("no new build is accepted: {why}"))));
        }
        let request = self.doer.askers.add(Asker::Web(reply));
        self.handle(Event::Command { request, command });
    }

    /// Commits the batch, however long the disk takes, then performs, answers and acknowledges.
    async fn finish(&mut self, inputs: &mut Inputs, waiting: &mut Waiting) {
        loop {
            if !self.batch.records.is_empty() {
                self.commit(inputs, waiting).await;
            }
            let mut batch = std::mem::take(&mut self.batch);
            for effect in batch.effects.drain(..) {
                if let Effect::Publish(change) = &effect
                    && let Some(state) = ended(change)
                {
                    *self.ended.entry(state).or_default() += 1;
                }
                if let Some(event) = self.doer.perform(effect, &self.config) {
                    self.handle(event);
                }
            }
            ack_all(batch.receipts);
            for told in batch.told {
                if told.send(()).is_err() {
                    debug!("whoever asked has stopped waiting");
                }
            }
            if std::mem::take(&mut self.shut) && self.linked {
                self.handle(Event::BrokerUp);
            }
            if self.batch.records.is_empty() && self.batch.effects.is_empty() {
                break;
            }
        }
        for query in std::mem::take(&mut self.queries) {
            self.answer(query);
        }
    }

    /// Answers from what is committed. An asker that is gone needs no answer.
    pub(super) fn answer(&self, query: Query) {
        let core = &self.core;
        match query {
            Query::Build { id, reply } => drop(reply.send(self.build(id).map_err(unreadable))),
            Query::Builds { filter, reply } => drop(reply.send(self.builds(&filter).map_err(unreadable))),
            Query::Why { id, reply } => drop(reply.send(self.why(id).map_err(unreadable))),
            Query::Workers { reply } => drop(reply.send(core.worker_views(clock::now()))),
            Query::Hosts { reply } => drop(reply.send(core.host_views(clock::now()))),
            Query::Mails { reply } => drop(reply.send(core.mails())),
            Query::Health { reply } => {
                let ledger = self.commit_error.clone().map_or_else(|| self.room.for_work(), Err);
                let alarm = core.alarm().map(str::to_owned);
                drop(reply.send(Health { broker: self.doer.link_is_up(), alarm, ledger }));
            }
            Query::Metrics { reply } => drop(reply.send(self.metrics())),
        }
    }

    fn build(&self, id: BuildId) -> Result<Option<BuildView>, StoreError> {
        if let Some(live) = self.core.build(id) {
            return Ok(Some(live));
        }
        let ended = self.store.build(id)?;
        Ok(ended.map(|build| BuildView { state: build.status.state(), build }))
    }

    fn why(&self, id: BuildId) -> Result<Option<Why>, StoreError> {
        if let Some(why) = self.core.why(clock::now(), id) {
            return Ok(Some(why));
        }
        let ended = self.build(id)?;
        let sentence = ended.and_then(|view| of_status(&view.build.status));
        Ok(sentence.map(|sentence| Why { sentence, next_try: None }))
    }

    fn builds(&self, filter: &BuildFilter) -> Result<Vec<BuildView>, StoreError> {
        let fits = |view: &BuildView| {
            filter.state.is_none_or(|state| view.state == state)
                && filter.before.is_none_or(|before| view.build.id < before)
        };
        let live = self.core.live_builds();
        let mut views: Vec<_> = live.filter(fits).take(filter.limit).collect();
        if filter.state.is_none_or(BuildState::is_final) {
            let ended = self.store.ended_builds(store::Query {
                state: filter.state,
                limit: filter.limit,
                before: filter.before,
            })?;
            views.extend(ended.into_iter().map(|build| BuildView { state: build.status.state(), build }));
            views.sort_by_key(|view| std::cmp::Reverse(view.build.id));
            views.truncate(filter.limit);
        }
        Ok(views)
    }

    fn count_ended(&mut self) {
        match self.store.count_ended() {
            Ok(counts) => self.ended = counts,
            Err(error) => error!("{}", Chain(&error)),
        }
    }

    fn metrics(&self) -> Metrics {
        let core = &self.core;
        let counts = core.counts();
        let mut builds = counts.builds;
        builds.extend(self.ended.iter().map(|(state, count)| (*state, *count)));
        let figure = |name, help, counter, value: u64| Figure { name, help, counter, value: value as f64 };
        let up = u64::from(self.doer.link_is_up());
        let mut figures = vec![
            figure("rouse_broker_up", "Whether the master is connected to the broker.", false, up),
            figure(
                "rouse_broker_blocked",
                "Whether the broker accepts no messages, because it has too little memory or disk.",
                false,
                u64::from(core.alarm().is_some()),
            ),
            figure(
                "rouse_log_chunks_unexpected_total",
                "Log chunks that belong to nothing that runs.",
                true,
                self.doer.logs.unexpected(),
            ),
        ];
        let (orphans, foreign_machines) = core.foreign_counts();
        let (orphans, foreign_machines) = (orphans as u64, foreign_machines as u64);
        figures.extend([
            figure("rouse_orphans", "Machines with our name and id that the ledger does not know.", false, orphans),
            figure(
                "rouse_foreign_machines",
                "Machines with our name and an id that is not ours.",
                false,
                foreign_machines,
            ),
        ]);
        let (waiting, mails) = core.mail_count();
        figures.extend([
            figure(
                "rouse_mails_waiting",
                "Mails that the relay has not taken for everyone yet.",
                false,
                waiting as u64,
            ),
            figure("rouse_mails_sent_total", "Mails that the relay has taken.", true, mails.sent),
            figure("rouse_mail_tries_failed_total", "Tries after which a mail still waited.", true, mails.failed),
            figure("rouse_mail_recipients_given_up_total", "Recipients that the relay refuses.", true, mails.given_up),
        ]);
        figures.extend(self.doer.link_figures());
        Metrics { builds, workers: counts.workers, hosts: counts.hosts, figures }
    }
}

impl Waiting {
    /// Takes what else waits, without waiting for it.
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
        take(&mut inputs.orders, &mut self.orders);
    }
}

/// What to answer if the ledger cannot be read; logged here, since the asker may be anybody.
fn unreadable(error: StoreError) -> String {
    let text = Chain(&error).to_string();
    error!("{text}");
    text
}

/// Whose queue this is.
fn worker_of(queue: &str) -> Option<WorkerName> {
    let rest = queue.strip_prefix("rouse.agent.")?;
    rest.split('.').next()?.parse().ok()
}

const _: () = assert!(TURN <= WAITING, "a turn takes what fits a channel");
