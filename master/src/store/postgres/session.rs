//! A connection that is made anew whenever it is lost, for one user: the master that writes, or a reader.

use super::connect::{self, Live};
use super::{Shared, explain, lease, tables, values};
use crate::clock;
use crate::config::PostgresUrl;
use crate::store::StoreError;
use crate::store::engine::{Row, Statement, Value};
use rouse_shared::Timestamp;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::sync::{Mutex, mpsc};
use tokio_postgres::Error;
use tokio_postgres::error::{DbError, Severity, SqlState};
use tokio_postgres::types::ToSql;
use tracing::{info, warn};

/// Longest wait of the loop for an answer that it reads, including that for a new connection.
const QUICK: Duration = Duration::from_secs(5);
/// Longest wait for the answer to a commit. The loop goes on meanwhile.
const COMMIT: Duration = Duration::from_secs(15);
/// Longest wait of a reader, which has a thread of its own.
const LONG: Duration = Duration::from_secs(60);
/// Pauses between two tries to connect: the first, and the longest.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long a master that starts waits for the session of one that has just ended.
const FORMER: Duration = Duration::from_secs(5);
/// How long a master that connects again waits for its own former session.
const MOMENT: Duration = Duration::from_secs(1);

/// Fails unless the master's epoch is the present one, and keeps another master from beginning a new one until the
/// transaction is over. PostgreSQL has no statement that fails by itself, so it divides by the number of rows.
const GUARD: &str = "SELECT 1 / count(*) FROM (SELECT 1 FROM lease WHERE epoch = ?1 FOR SHARE) AS held";

/// What a session is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Use {
    Write,
    Read,
}

/// A session.
pub(super) struct Session {
    shared: Arc<Shared>,
    purpose: Use,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    live: Option<Live>,
    /// When a connection may be tried again, the next pause, and why the last try failed.
    failed: Option<(Timestamp, Duration, String)>,
    /// The epoch in which this master writes.
    epoch: Option<i64>,
}

/// Why work on a connection has failed.
enum Failure {
    /// The statement was refused; the connection is as good as before.
    Refused(StoreError),
    /// Nobody knows what has happened.
    Lost(StoreError),
}

impl Session {
    pub(super) fn new(shared: Arc<Shared>, purpose: Use) -> Arc<Self> {
        Arc::new(Self { shared, purpose, state: Mutex::default() })
    }

    /// Connects for the first time, and begins an epoch.
    pub(super) async fn open(&self) -> Result<(), StoreError> {
        let mut state = self.state.lock().await;
        let since = clock::now();
        loop {
            let connected = tokio::time::timeout(COMMIT, self.connect(&mut state)).await;
            match connected.unwrap_or_else(|_| Err(self.late(COMMIT))) {
                Err(StoreError::InUse(_)) if clock::now().since(since) < FORMER => {
                    tokio::time::sleep(PAUSE).await;
                }
                result => return result,
            }
        }
    }

    async fn connect(&self, state: &mut State) -> Result<(), StoreError> {
        let url = self.shared.url();
        let limit = if self.purpose == Use::Write { QUICK } else { LONG };
        let live = Live::open(&url, limit).await?;
        connect::check_tables(&live, &url, &self.shared.master, self.purpose == Use::Write).await?;
        if self.purpose == Use::Write {
            self.take_lease(&live, &url, state).await?;
        }
        state.live = Some(live);
        Ok(())
    }

    async fn take_lease(&self, live: &Live, url: &PostgresUrl, state: &mut State) -> Result<(), StoreError> {
        lease::prepare(live, url).await?;
        let mut locked = lease::take_lock(live, url).await?;
        let row = lease::read(live, url).await?;
        if let Some(own) = state.epoch
            && row.epoch != own
        {
            return Err(StoreError::Deposed(row.holder));
        }
        // A former process of this master has ended, because this one has locked the state directory.
        let claim = self.shared.claim.as_ref();
        let ours = state.epoch.is_some() || claim.is_some_and(|own| row.instance.as_deref() == Some(&own.instance));
        let taken = match row.left {
            Some(left) => left > 0.0,
            None => !locked,
        };
        if taken && !ours {
            return Err(StoreError::InUse(row.holder));
        }
        if !locked && (row.left.is_some() || claim.is_some()) {
            lease::end_holder(live, url).await?;
        }
        // The server needs a moment to notice that a connection is gone.
        let since = clock::now();
        while !locked && clock::now().since(since) < MOMENT {
            tokio::time::sleep(Duration::from_millis(50)).await;
            locked = lease::take_lock(live, url).await?;
        }
        if !locked {
            let why = "PostgreSQL has not noticed yet that the former connection is gone";
            return Err(StoreError::Postgres(format!("{why} ({})", url.place())));
        }
        if state.epoch.is_none() {
            let epoch = lease::begin(live, &self.shared, row.epoch).await?;
            state.epoch = Some(epoch.ok_or(StoreError::InUse(row.holder))?);
            tables::migrated(live, url).await?;
        }
        Ok(())
    }

    /// The epoch in which this master writes.
    pub(super) async fn epoch(&self) -> Option<i64> {
        self.state.lock().await.epoch
    }

    /// The connection: the one that there is, or a new one. After a failure there is a pause, in which nothing is tried,
    /// so that nobody waits for a database that is away.
    async fn live<'s>(&self, state: &'s mut State) -> Result<&'s mut Live, StoreError> {
        if state.live.as_ref().is_none_or(|live| live.client.is_closed()) {
            state.live = None;
            if let Some((not_before, _, why)) = &state.failed
                && clock::now() < *not_before
            {
                return Err(StoreError::Postgres(why.clone()));
            }
            let connected = tokio::time::timeout(QUICK, self.connect(state)).await;
            if let Err(error) = connected.unwrap_or_else(|_| Err(self.late(QUICK))) {
                state.fail(&error);
                return Err(error);
            }
            if state.failed.take().is_some() {
                info!("connected to PostgreSQL at {} again", self.shared.url().place());
            }
        }
        state.live.as_mut().ok_or(StoreError::NoAnswer)
    }

    fn late(&self, limit: Duration) -> StoreError {
        let place = self.shared.url().place();
        StoreError::Postgres(format!("PostgreSQL at {place} has not answered for {} s", limit.as_secs()))
    }

    /// Reads. While a commit waits for its answer, whoever reads would wait too, and gets an error instead.
    pub(super) async fn query(&self, sql: String, with: Vec<Value>) -> Result<Vec<Row>, StoreError> {
        let Ok(mut state) = self.state.try_lock() else {
            let place = self.shared.url().place();
            return Err(StoreError::Postgres(format!("PostgreSQL at {place} has not answered the last commit yet")));
        };
        let limit = if self.purpose == Use::Write { QUICK } else { LONG };
        self.run(&mut state, limit, &Job::Query(sql, with)).await
    }

    /// Commits. If the connection is lost, all of it is sent again over a new one.
    pub(super) async fn commit(&self, statements: Vec<Statement>) -> Result<(), StoreError> {
        let mut state = self.state.lock().await;
        self.run(&mut state, COMMIT, &Job::Commit(statements)).await.map(drop)
    }

    /// Writes what comes through the channel in one transaction, which an empty list ends. If the channel ends before,
    /// nothing is written.
    pub(super) async fn fill(&self, mut lists: mpsc::Receiver<Vec<Statement>>) -> Result<(), StoreError> {
        let mut state = self.state.lock().await;
        let (url, epoch) = (self.shared.url(), state.epoch.unwrap_or_default());
        let filled = fill(self.live(&mut state).await?, epoch, &mut lists).await;
        // Whatever has failed, the end of the connection takes it back.
        state.live = None;
        filled.map_err(|error| explain::error(&url, &error))?.then_some(()).ok_or(StoreError::NoAnswer)
    }

    /// Does something over the connection, and once more over a new one if it was lost.
    async fn run(&self, state: &mut State, limit: Duration, job: &Job) -> Result<Vec<Row>, StoreError> {
        let mut again = state.live.is_some();
        loop {
            let url = self.shared.url();
            let epoch = state.epoch;
            let live = self.live(state).await?;
            let error = match tokio::time::timeout(limit, job.run(live, &url, epoch)).await {
                Ok(Ok(rows)) => return Ok(rows),
                Ok(Err(Failure::Refused(error))) => return Err(error),
                Ok(Err(Failure::Lost(error))) if std::mem::take(&mut again) => {
                    state.live = None;
                    warn!("{error}; connecting again");
                    continue;
                }
                Ok(Err(Failure::Lost(error))) => error,
                Err(_) => self.late(limit),
            };
            state.live = None;
            state.fail(&error);
            return Err(error);
        }
    }
}

impl State {
    fn fail(&mut self, error: &StoreError) {
        let pause = self.failed.as_ref().map_or(PAUSE, |(_, pause, _)| (*pause * 2).min(LONGEST_PAUSE));
        let why = match error {
            StoreError::Postgres(why) => why.clone(),
            other => other.to_string(),
        };
        self.failed = Some((clock::now() + pause, pause, why));
    }
}

/// What is done over a connection.
enum Job {
    Query(String, Vec<Value>),
    Commit(Vec<Statement>),
}

impl Job {
    async fn run(&self, live: &mut Live, url: &PostgresUrl, epoch: Option<i64>) -> Result<Vec<Row>, Failure> {
        match self {
            Self::Query(sql, with) => query(live, url, sql, with).await,
            Self::Commit(statements) => {
                let epoch = epoch.ok_or(Failure::Refused(StoreError::NoAnswer))?;
                commit(live, url, epoch, statements).await.map(|()| Vec::new())
            }
        }
    }
}

async fn query(live: &mut Live, url: &PostgresUrl, sql: &str, with: &[Value]) -> Result<Vec<Row>, Failure> {
    let failed = |error| failure(url, &error);
    let statement = live.prepare(sql).await.map_err(failed)?;
    let with: Vec<&(dyn ToSql + Sync)> = with.iter().map(|value| value as _).collect();
    let rows = live.client.query(&statement, &with).await.map_err(failed)?;
    rows.iter().map(values::row).collect::<Result<_, _>>().map_err(Failure::Refused)
}

type Answer<'a> = Pin<Box<dyn Future<Output = Result<(), Error>> + Send + 'a>>;

/// Sends a transaction as a whole, and then reads the answers. If a statement fails, PostgreSQL refuses those after it,
/// and COMMIT ends the transaction without it.
async fn commit(live: &mut Live, url: &PostgresUrl, epoch: i64, statements: &[Statement]) -> Result<(), Failure> {
    let failed = |error| failure(url, &error);
    let guard = live.prepare(GUARD).await.map_err(failed)?;
    let mut prepared = Vec::with_capacity(statements.len());
    for statement in statements {
        prepared.push(live.prepare(&statement.sql).await.map_err(failed)?);
    }
    let client = &live.client;
    let mut answers: Vec<Answer<'_>> = Vec::with_capacity(statements.len() + 3);
    answers.push(Box::pin(client.batch_execute("BEGIN")));
    answers.push(Box::pin(async { client.execute_raw(&guard, [epoch]).await.map(drop) }));
    for (statement, prepared) in statements.iter().zip(&prepared) {
        answers.push(Box::pin(async { client.execute_raw(prepared, &statement.with).await.map(drop) }));
    }
    answers.push(Box::pin(client.batch_execute("COMMIT")));
    let first = all(answers).await;
    match first {
        None => Ok(()),
        Some((1, error)) if error.code() == Some(&SqlState::DIVISION_BY_ZERO) => {
            let row = lease::read(live, url).await.map_err(Failure::Lost)?;
            Err(Failure::Refused(StoreError::Deposed(row.holder)))
        }
        Some((_, error)) => Err(failed(error)),
    }
}

/// Sends all of it at once, and waits for the answers. The first one that is an error, with its number.
async fn all(answers: Vec<Answer<'_>>) -> Option<(usize, Error)> {
    let mut first = None;
    let mut waiting = Vec::with_capacity(answers.len());
    // The first poll sends.
    for (at, mut answer) in answers.into_iter().enumerate() {
        match poll_fn(|context| Poll::Ready(answer.as_mut().poll(context))).await {
            Poll::Pending => waiting.push((at, answer)),
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => {
                first.get_or_insert((at, error));
            }
        }
    }
    for (at, answer) in waiting {
        if let Err(error) = answer.await
            && first.as_ref().is_none_or(|(before, _)| at < *before)
        {
            first = Some((at, error));
        }
    }
    first
}

/// Returns false if the channel has ended before the list.
async fn fill(live: &mut Live, epoch: i64, lists: &mut mpsc::Receiver<Vec<Statement>>) -> Result<bool, Error> {
    let guard = live.prepare(GUARD).await?;
    live.client.batch_execute("BEGIN").await?;
    live.client.execute_raw(&guard, [epoch]).await?;
    while let Some(list) = lists.recv().await {
        if list.is_empty() {
            live.client.batch_execute("COMMIT").await?;
            return Ok(true);
        }
        let mut prepared = Vec::with_capacity(list.len());
        for statement in &list {
            prepared.push(live.prepare(&statement.sql).await?);
        }
        let client = &live.client;
        let mut answers: Vec<Answer<'_>> = Vec::with_capacity(list.len());
        for (statement, prepared) in list.iter().zip(&prepared) {
            answers.push(Box::pin(async { client.execute_raw(prepared, &statement.with).await.map(drop) }));
        }
        if let Some((_, error)) = all(answers).await {
            return Err(error);
        }
    }
    Ok(false)
}

fn failure(url: &PostgresUrl, error: &Error) -> Failure {
    let explained = explain::error(url, error);
    let refused = error.as_db_error().and_then(DbError::parsed_severity);
    match refused {
        Some(Severity::Fatal | Severity::Panic) | None => Failure::Lost(explained),
        Some(_) => Failure::Refused(explained),
    }
}
