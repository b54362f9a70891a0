//! The ledger in PostgreSQL.
//!
//! The functions of the store are synchronous, and their callers may be inside of another runtime. Therefore a runtime
//! with one thread has the connections, and callers wait for its answers.
//!
//! A commit is sent as a whole, from BEGIN to COMMIT, and then the answers are read, so that it costs one round trip
//! however many records it has. If its answer is lost, nobody knows whether it has happened, and it is sent again.

mod connect;
mod explain;
pub(super) mod lease;
mod session;
mod tables;
mod tls;
mod values;

use super::engine::{Row, Statement, Value, key, statement};
use super::{Claim, Commit, Fellow, StoreError};
use crate::config::PostgresUrl;
use crate::core::build::{BuildSpec, Requirement};
use session::{Session, Use};
use std::sync::{Arc, Mutex};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};

pub use connect::look;

/// What all connections of this process share.
pub(super) struct Shared {
    runtime: Option<Runtime>,
    /// Where the database is, and how to log in.
    url: Mutex<Arc<PostgresUrl>>,
    /// `master.name`: the ledger belongs to it.
    master: String,
    /// Who writes, for people: the machine's name and the process.
    holder: String,
    /// Absent for a lone master.
    claim: Option<Claim>,
    tenure: Mutex<lease::Tenure>,
    /// The connection of a master that waits for the lease.
    waiting: tokio::sync::Mutex<Option<connect::Live>>,
}

impl Shared {
    pub(super) fn new(url: PostgresUrl, master: &str, claim: Option<Claim>) -> Result<Arc<Self>, StoreError> {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        runtime.worker_threads(1).thread_name("ledger").enable_all();
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Ok(Arc::new(Self {
            runtime: Some(runtime.build().map_err(StoreError::File)?),
            url: Mutex::new(Arc::new(url)),
            master: master.to_owned(),
            holder: format!("process {} on {}", std::process::id(), host.trim()),
            claim,
            tenure: Mutex::default(),
            waiting: tokio::sync::Mutex::default(),
        }))
    }

    fn url(&self) -> Arc<PostgresUrl> {
        crate::sync::lock(&self.url).clone()
    }

    pub(super) fn is_shared(&self) -> bool {
        self.claim.is_some()
    }

    /// Why this master must not act any more.
    pub(super) fn over(&self) -> Option<String> {
        self.claim.as_ref().and_then(|_| crate::sync::lock(&self.tenure).over())
    }

    /// Who has the lease, and where the API of that master is; nothing if it can be taken.
    pub(super) fn look(self: &Arc<Self>) -> Result<Option<(String, Option<String>)>, StoreError> {
        let shared = self.clone();
        let row = self.wait(async move {
            let mut live = shared.waiting.lock().await;
            lease::look(&shared, &mut live).await
        })?;
        let own = self.claim.as_ref().map(|claim| claim.instance.as_str());
        let held = row.left.map_or(row.locked, |left| left > 0.0);
        let taken = held && row.instance.as_deref() != own;
        Ok(taken.then_some((row.holder, row.address)))
    }

    pub(super) fn fellows(self: &Arc<Self>) -> Result<Vec<Fellow>, StoreError> {
        let shared = self.clone();
        self.wait(async move {
            let url = shared.url();
            let live = connect::Live::open(&url, std::time::Duration::from_secs(5)).await?;
            lease::prepare(&live, &url).await?;
            lease::fellows(&live, &url).await
        })
    }

    pub(super) fn give_up(self: &Arc<Self>) -> Result<(), StoreError> {
        let shared = self.clone();
        self.wait(async move { lease::give_up(&shared).await })
    }

    /// Starts work on the runtime. The answer is lost if the runtime ends.
    fn spawn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) {
        if let Some(runtime) = &self.runtime {
            runtime.spawn(work);
        }
    }

    /// Runs work on the runtime and waits for it. Also called inside of other runtimes, whose thread it blocks.
    fn wait<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = std::sync::mpsc::sync_channel(1);
        self.spawn(async move { drop(answer.send(work.await)) });
        answered.recv().unwrap_or_else(|_| Err(StoreError::Postgres("the connection to it was given up".to_owned())))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // It may be dropped inside of another runtime, which must not wait for it.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Takes a list of statements.
pub(super) type Take<'t> = dyn FnMut(Vec<Statement>) -> Result<(), StoreError> + 't;

/// The ledger in PostgreSQL: of the master that writes it, or of a reader.
pub(super) struct Postgres {
    shared: Arc<Shared>,
    /// Absent for a reader.
    writer: Option<Arc<Session>>,
    reader: Arc<Session>,
}

impl Postgres {
    /// Connects, makes the tables if there are none, and becomes the one master that writes.
    pub(super) fn open(shared: &Arc<Shared>) -> Result<Self, StoreError> {
        let writer = Session::new(shared.clone(), Use::Write);
        let postgres = Self { writer: Some(writer.clone()), ..Self::reader(shared) };
        let epoch = shared.wait(async move {
            writer.open().await?;
            Ok(writer.epoch().await)
        })?;
        if let (Some(epoch), Some(_)) = (epoch, &shared.claim) {
            shared.spawn(lease::keep(Arc::downgrade(shared), epoch));
        }
        Ok(postgres)
    }

    /// A reader. It connects when it first reads.
    pub(super) fn reader(shared: &Arc<Shared>) -> Self {
        Self { shared: shared.clone(), writer: None, reader: Session::new(shared.clone(), Use::Read) }
    }

    pub(super) fn over(&self) -> Option<String> {
        self.shared.over()
    }

    /// Takes a new URL into use, for the next connection. Returns false if it leads to another database.
    pub(super) fn set_url(&self, new: &PostgresUrl) -> bool {
        let mut url = crate::sync::lock(&self.shared.url);
        let same = url.leads_to_the_same_as(new);
        if same {
            *url = Arc::new(new.clone());
        }
        same
    }

    pub(super) fn query(&self, sql: &str, with: &[Value]) -> Result<Vec<Row>, StoreError> {
        self.ask(self.writer.as_ref().unwrap_or(&self.reader), sql, with)
    }

    /// The same for a query that may take long.
    pub(super) fn query_long(&self, sql: &str, with: &[Value]) -> Result<Vec<Row>, StoreError> {
        self.ask(&self.reader, sql, with)
    }

    fn ask(&self, session: &Arc<Session>, sql: &str, with: &[Value]) -> Result<Vec<Row>, StoreError> {
        let (session, sql, with) = (session.clone(), sql.to_owned(), with.to_vec());
        self.shared.wait(async move { session.query(sql, with).await })
    }

    pub(super) fn commit(&mut self, statements: Vec<Statement>) -> Result<(), StoreError> {
        let session = self.writer()?;
        self.shared.wait(async move { session.commit(statements).await })
    }

    /// Starts a commit.
    pub(super) fn start_commit(&mut self, statements: Vec<Statement>) -> Commit {
        let session = match self.writer() {
            Ok(session) => session,
            Err(error) => return Commit::Done(Err(error)),
        };
        let (answer, answered) = oneshot::channel();
        self.shared.spawn(async move {
            // The loop may have ended.
            drop(answer.send(session.commit(statements).await));
        });
        Commit::Running(answered)
    }

    /// Writes in one transaction what `read` passes on, a list at a time. If either fails, nothing is written. Blocks, and
    /// must not be called inside of a runtime.
    pub(super) fn fill(&self, read: impl FnOnce(&mut Take<'_>) -> Result<(), StoreError>) -> Result<(), StoreError> {
        let session = self.writer()?;
        let (lists, waiting) = mpsc::channel(2);
        let (answer, answered) = std::sync::mpsc::sync_channel(1);
        self.shared.spawn(async move { drop(answer.send(session.fill(waiting).await)) });
        let send = |list| lists.blocking_send(list).map_err(|_| StoreError::NoAnswer);
        let read = read(&mut |list| send(list)).and_then(|()| send(Vec::new()));
        drop(lists);
        // If the database has failed, its error is the cause of the other one.
        let written = answered.recv().unwrap_or(Err(StoreError::NoAnswer));
        match (read, written) {
            (Err(read), Err(StoreError::NoAnswer)) => Err(read),
            (_, written) => written,
        }
    }

    fn writer(&self) -> Result<Arc<Session>, StoreError> {
        self.writer.clone().ok_or_else(|| StoreError::Postgres("a reader does not write".to_owned()))
    }
}

/// The statement for a new build. It keeps apart from the specification what the build is listed by once it has ended:
/// PostgreSQL cannot take it out of JSON that has a NUL character in it.
pub(super) fn new_build(spec: &BuildSpec, with: impl IntoIterator<Item = Value>) -> Statement {
    let properties = match &spec.requirement {
        Requirement::Where(properties) => properties.iter().map(|(name, value)| format!("{name}={value}")).collect(),
        Requirement::Worker(_) => Vec::new(),
    };
    let name = Some(spec.name.as_str()).filter(|name| !name.is_empty());
    let more = [name.map_or(Value::Null, key), spec.keep.into(), Value::Keys(properties)];
    statement(NEW_BUILD, with.into_iter().chain(more))
}

const NEW_BUILD: &str = "
    INSERT INTO builds (id, state, live, message_id, spec, status, name, keep, properties)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
    ON CONFLICT (id) DO UPDATE SET state = excluded.state, live = excluded.live, message_id = excluded.message_id,
        spec = excluded.spec, status = excluded.status, name = excluded.name, keep = excluded.keep,
        properties = excluded.properties";
