//! The ledger: SQLite in WAL mode. Each batch is one transaction, which is committed before any effect is performed.
//!
//! A row consists of a key, the columns that are searched, and the rest as JSON. Therefore any SQLite tool can show it,
//! and a new field needs no migration.

use crate::config::PostgresUrl;
use crate::core::build::{Build, BuildSpec, BuildStatus};
use crate::core::images::ImageKey;
use crate::core::places::PlaceKey;
use crate::core::plan::ProviderKind;
use crate::core::record::{Ledger, Record};
use crate::core::spend::Spent;
use engine::{Engine, Row, Statement, Value, key};
use rouse_shared::{BuildId, Timestamp, WorkerName};
use sqlite::Sqlite;
use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

mod claim;
mod ended;
mod engine;
mod journal;
mod migrate;
#[cfg(feature = "postgres")]
mod postgres;
mod sqlite;
mod statements;
#[cfg(test)]
mod tests;
#[cfg(feature = "postgres")]
mod transfer;
mod uploads;

pub use claim::{Claim, Fellow};
#[cfg(feature = "postgres")]
pub use postgres::look;
pub use uploads::LogsAt;

/// Version of the tables, kept in `user_version`.
const SCHEMA: i32 = 6;

/// The tables that both databases have.
const TABLES: [&str; 13] = [
    "builds",
    "ended",
    "ended_where",
    "hosts",
    "sessions",
    "workers",
    "images",
    "places",
    "news",
    "mails",
    "told_orphans",
    "facts",
    "journal",
];

/// Why a batch could not be committed, or the ledger could not be read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite's own error: a full disk, a read-only directory. Not a source, since its own source repeats it.
    #[error("the ledger cannot be used: {0}")]
    Sqlite(rusqlite::Error),
    /// The file is not a database, or is damaged.
    #[error(
        "the ledger is damaged ({0}); restore a copy of ledger.sqlite, or move it away with its -wal and -shm: builds are \
         then forgotten, and running hosts become orphans"
    )]
    Damaged(rusqlite::Error),
    /// The file cannot be created or opened.
    #[error("the ledger cannot be opened")]
    File(#[source] io::Error),
    /// A row's JSON does not fit the types of this version.
    #[error("the ledger's row {row} is not readable")]
    Row {
        /// The table and key.
        row: String,
        /// The error.
        source: serde_json::Error,
    },
    /// A column has a value that rouse does not write.
    #[error("the ledger has an unexpected value in column {0} of an answer; something else has written to it")]
    Column(usize),
    /// This build cannot use PostgreSQL.
    #[error("store.url cannot be used: this build of rouse lacks the feature postgres")]
    NoPostgres,
    /// A ledger is copied only into a database without one.
    #[error("the database has a ledger already: {rows} rows in {table}; nothing was copied. Give it an empty database")]
    NotEmpty {
        /// A table with rows.
        table: &'static str,
        /// How many.
        rows: u64,
    },
    /// The thread that commits has ended.
    #[error("the commit was given up")]
    NoAnswer,
    /// PostgreSQL cannot be reached, or refuses something. The text says what to do.
    #[error("the ledger cannot be used: {0}")]
    Postgres(String),
    /// Another master writes to the database.
    #[error(
        "another master uses the database of the ledger ({0}): stop it, or give this one a database of its own in \
         store.url; if broker.url is set for both, this one stands by"
    )]
    InUse(String),
    /// Another master has begun to write to the database, so this one must not write any more.
    #[error("another master has taken over the ledger ({0}), so this one ends")]
    Deposed(String),
    /// The tables are those of an earlier version that this one cannot migrate.
    #[error("the ledger's tables have version {0}, which this version of rouse cannot migrate: it needs {SCHEMA}")]
    Older(i32),
    /// The file was written by a newer version of rouse.
    #[error(
        "the ledger's tables have version {0}, but this version of rouse supports only {SCHEMA}; install a newer one"
    )]
    Newer(i32),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) => Self::Damaged(error),
            Some(_) | None => Self::Sqlite(error),
        }
    }
}

/// Where the ledger is.
#[derive(Clone)]
pub struct Database(Place);

#[derive(Clone)]
enum Place {
    Sqlite(PathBuf),
    #[cfg(feature = "postgres")]
    Postgres(Arc<postgres::Shared>),
}

impl Database {
    /// The ledger in SQLite, in this file.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self(Place::Sqlite(path.into()))
    }

    /// The ledger of the master with this name, in PostgreSQL.
    ///
    /// # Errors
    /// If the thread for its connections cannot be started.
    #[cfg(feature = "postgres")]
    pub fn postgres(url: &PostgresUrl, master: &str) -> Result<Self, StoreError> {
        Ok(Self(Place::Postgres(postgres::Shared::new(url.clone(), master, None)?)))
    }

    /// The same for a master that others may share the ledger with.
    ///
    /// # Errors
    /// As [`Database::postgres`].
    #[cfg(feature = "postgres")]
    pub fn shared(url: &PostgresUrl, master: &str, claim: Claim) -> Result<Self, StoreError> {
        Ok(Self(Place::Postgres(postgres::Shared::new(url.clone(), master, Some(claim))?)))
    }

    /// Whether other masters may share it.
    pub fn is_shared(&self) -> bool {
        match &self.0 {
            Place::Sqlite(_) => false,
            #[cfg(feature = "postgres")]
            Place::Postgres(shared) => shared.is_shared(),
        }
    }

    /// Why the master that has opened this ledger must not act any more, if others share it.
    pub fn over(&self) -> Option<String> {
        match &self.0 {
            Place::Sqlite(_) => None,
            #[cfg(feature = "postgres")]
            Place::Postgres(shared) => shared.over(),
        }
    }

    /// Which master has the ledger, and the address of its API; nothing if it can be opened. Blocks for some seconds at
    /// most.
    ///
    /// # Errors
    /// If the database does not answer.
    pub fn holder(&self) -> Result<Option<(String, Option<String>)>, StoreError> {
        match &self.0 {
            Place::Sqlite(_) => Ok(None),
            #[cfg(feature = "postgres")]
            Place::Postgres(shared) => shared.look(),
        }
    }

    /// The masters that share the ledger, the active one first. Blocks as [`Database::holder`].
    ///
    /// # Errors
    /// If the database does not answer.
    pub fn fellows(&self) -> Result<Vec<Fellow>, StoreError> {
        match &self.0 {
            Place::Sqlite(_) => Ok(Vec::new()),
            #[cfg(feature = "postgres")]
            Place::Postgres(shared) => shared.fellows(),
        }
    }

    /// Lets another master take the ledger at once. Blocks as [`Database::holder`].
    ///
    /// # Errors
    /// If the database does not answer. Then the other one waits until the lease is over.
    pub fn give_up(&self) -> Result<(), StoreError> {
        match &self.0 {
            Place::Sqlite(_) => Ok(()),
            #[cfg(feature = "postgres")]
            Place::Postgres(shared) => shared.give_up(),
        }
    }

    /// Opens the ledger to write it, and creates it if there is none. There is one writer: with SQLite, whoever has
    /// locked the state directory.
    ///
    /// # Errors
    /// If it cannot be used, was written by a newer version, or belongs to another master.
    pub fn open(&self) -> Result<Store, StoreError> {
        Ok(Store {
            engine: match &self.0 {
                Place::Sqlite(path) => Engine::Sqlite(Sqlite::open(path)?),
                #[cfg(feature = "postgres")]
                Place::Postgres(shared) => Engine::Postgres(postgres::Postgres::open(shared)?),
            },
        })
    }

    /// Opens the ledger to read it beside the writer.
    ///
    /// # Errors
    /// If the file cannot be opened. PostgreSQL is asked when something is read.
    pub fn reader(&self) -> Result<Store, StoreError> {
        Ok(Store {
            engine: match &self.0 {
                Place::Sqlite(path) => Engine::Sqlite(Sqlite::reader(path)?),
                #[cfg(feature = "postgres")]
                Place::Postgres(shared) => Engine::Postgres(postgres::Postgres::reader(shared)),
            },
        })
    }
}

/// A commit that was started.
pub enum Commit {
    /// It is over.
    Done(Result<(), StoreError>),
    /// The database has not answered yet.
    Running(oneshot::Receiver<Result<(), StoreError>>),
}

/// The opened ledger.
pub struct Store {
    engine: Engine,
}

impl Store {
    /// Writes all records in one transaction. The last record of a key counts. If it fails, nothing is written.
    ///
    /// # Errors
    /// If the database cannot commit. Then the batch must not be performed.
    pub fn commit<'r>(&mut self, records: impl IntoIterator<Item = &'r Record>) -> Result<(), StoreError> {
        let statements = self.statements(records);
        match &mut self.engine {
            Engine::Sqlite(sqlite) => sqlite.commit(&statements),
            #[cfg(feature = "postgres")]
            Engine::Postgres(postgres) => postgres.commit(statements),
        }
    }

    /// Starts to write all records in one transaction, as [`Store::commit`] does. If the answer is an error, they may have
    /// been written all the same; to write them again has the same result.
    pub fn start_commit<'r>(&mut self, records: impl IntoIterator<Item = &'r Record>) -> Commit {
        let statements = self.statements(records);
        match &mut self.engine {
            Engine::Sqlite(sqlite) => Commit::Done(sqlite.commit(&statements)),
            #[cfg(feature = "postgres")]
            Engine::Postgres(postgres) => postgres.start_commit(statements),
        }
    }

    fn statements<'r>(&self, records: impl IntoIterator<Item = &'r Record>) -> Vec<Statement> {
        let mut statements = Vec::new();
        for record in records {
            statements::write(self.engine.dialect(), record, &mut statements);
        }
        statements
    }

    /// See [`Database::over`].
    pub fn over(&self) -> Option<String> {
        match &self.engine {
            Engine::Sqlite(_) => None,
            #[cfg(feature = "postgres")]
            Engine::Postgres(postgres) => postgres.over(),
        }
    }

    /// Takes the URL of a new configuration into use, for the next connection. Returns false if it leads to another
    /// database: then nothing changes.
    pub fn set_url(&self, url: Option<&PostgresUrl>) -> bool {
        match (&self.engine, url) {
            (Engine::Sqlite(_), url) => url.is_none(),
            #[cfg(feature = "postgres")]
            (Engine::Postgres(postgres), Some(url)) => postgres.set_url(url),
            #[cfg(feature = "postgres")]
            (Engine::Postgres(_), None) => false,
        }
    }

    /// Everything that has not ended.
    ///
    /// # Errors
    /// If a row cannot be read.
    pub fn load(&self) -> Result<Ledger, StoreError> {
        let mut ledger = Ledger {
            builds: self.rows_long(&builds_where("builds.live ORDER BY builds.id"), &[], build)?,
            hosts: self.parsed("hosts", "SELECT id, row FROM hosts ORDER BY id")?,
            sessions: self.parsed("sessions", "SELECT worker, row FROM sessions ORDER BY worker")?,
            news: self.parsed("news", "SELECT CAST(id AS TEXT), row FROM news ORDER BY id")?,
            mails: self.parsed("mails", "SELECT id, row FROM mails ORDER BY id")?,
            reported_orphans: self
                .parsed("told_orphans", "SELECT handle, row FROM told_orphans ORDER BY provider, handle")?,
            ..Ledger::default()
        };
        for mut row in self.engine.query_long("SELECT name, row FROM workers ORDER BY name", &[])? {
            let (name, text) = (row.text(0)?, row.text(1)?);
            // rouse writes valid names only. There is no worker with any other name.
            if let Ok(worker) = name.parse::<WorkerName>() {
                ledger.workers.push((worker, parse("workers", &name, &text)?));
            }
        }
        for mut row in self.engine.query_long("SELECT provider, name, row FROM images ORDER BY provider, name", &[])? {
            let (provider, name, text) = (row.text(0)?, row.text(1)?, row.text(2)?);
            // This version does not have the provider, so it has none of its hosts.
            if let Some(provider) = ProviderKind::ALL.into_iter().find(|p| p.as_str() == provider) {
                let record = parse("images", &name, &text)?;
                ledger.images.push((ImageKey { provider, image: name.into() }, record));
            }
        }
        for mut row in self.engine.query_long("SELECT provider, name, row FROM places ORDER BY provider, name", &[])? {
            let (provider, name, text) = (row.text(0)?, row.text(1)?, row.text(2)?);
            if let Some(provider) = ProviderKind::ALL.into_iter().find(|p| p.as_str() == provider) {
                let record = parse("places", &name, &text)?;
                ledger.places.push((PlaceKey { provider, name: name.into() }, record));
            }
        }
        let highest = self.rows_long("SELECT COALESCE(MAX(id), 0) FROM builds", &[], |row| row.int(0))?;
        let highest = highest.first().copied().unwrap_or(0).unsigned_abs();
        ledger.last_build = highest.max(self.highest_deleted()?.0);
        ledger.last_entry = self.last_entry()?;
        if let (Some(day), Some(micros)) = (self.fact("spent_day")?, self.fact("spent_micros")?) {
            ledger.spent = Spent { day, micros };
        }
        if let (Some(failures), Some(until)) = (self.fact("mail_failures")?, self.fact("mail_pause_until")?) {
            ledger.mail_pause = Some((u32::try_from(failures).unwrap_or(u32::MAX), Timestamp(until)));
        }
        ledger.leases_extended = self.fact("leases_extended")?.map(Duration::from_millis);
        ledger.alarm_told = self.fact("alarm_told")?.map(Timestamp);
        Ok(ledger)
    }

    /// The number of rows of each table. Reads all of it.
    ///
    /// # Errors
    /// If the database cannot read.
    pub fn tables(&self) -> Result<Vec<(&'static str, u64)>, StoreError> {
        let count = |table: &'static str| {
            let counted = self.rows_long(&format!("SELECT COUNT(*) FROM {table}"), &[], |row| row.int(0))?;
            Ok((table, counted.first().copied().unwrap_or(0).unsigned_abs()))
        };
        TABLES.into_iter().map(count).collect()
    }

    /// A text that belongs to the master and not to its machine, such as its generated id. Nothing with SQLite, because
    /// the state directory has it.
    ///
    /// # Errors
    /// If the database cannot read.
    #[cfg_attr(not(feature = "postgres"), expect(unused_variables, reason = "only PostgreSQL keeps them"))]
    pub fn kept(&self, name: &str) -> Result<Option<String>, StoreError> {
        match &self.engine {
            Engine::Sqlite(_) => Ok(None),
            #[cfg(feature = "postgres")]
            Engine::Postgres(postgres) => {
                let rows = postgres.query("SELECT value FROM ledger WHERE key = ?1", &[name.into()])?;
                rows.into_iter().next().map(|mut row| row.text(0)).transpose()
            }
        }
    }

    /// Keeps such a text in PostgreSQL, in the place of another one. Does nothing with SQLite.
    ///
    /// # Errors
    /// If the database cannot write.
    #[cfg_attr(not(feature = "postgres"), expect(unused_variables, reason = "only PostgreSQL keeps them"))]
    pub fn keep(&self, name: &str, text: &str) -> Result<(), StoreError> {
        match &self.engine {
            Engine::Sqlite(_) => Ok(()),
            #[cfg(feature = "postgres")]
            Engine::Postgres(postgres) => {
                let sql = "INSERT INTO ledger (key, value) VALUES (?1, ?2)
                           ON CONFLICT (key) DO UPDATE SET value = excluded.value";
                postgres.query(sql, &[name.into(), text.into()]).map(drop)
            }
        }
    }

    fn fact(&self, name: &str) -> Result<Option<u64>, StoreError> {
        let found = self.rows("SELECT value FROM facts WHERE name = ?1", &[name.into()], |row| row.int(0))?;
        Ok(found.first().map(|value| value.unsigned_abs()))
    }

    /// One build, ended or not.
    ///
    /// # Errors
    /// If its row cannot be read.
    pub fn build(&self, id: BuildId) -> Result<Option<Build>, StoreError> {
        Ok(self.rows(&builds_where("builds.id = ?1"), &[sql_id(id).into()], build)?.pop())
    }

    /// The builds with these ids of their submitters.
    ///
    /// # Errors
    /// If the database cannot read.
    pub fn by_message_ids(&self, message_ids: &[&str]) -> Result<HashMap<String, BuildId>, StoreError> {
        let mut found = HashMap::new();
        match &self.engine {
            Engine::Sqlite(_) => {
                let sql = "SELECT id FROM builds WHERE message_id = ?1";
                for message_id in message_ids {
                    let builds = self.rows(sql, &[key(*message_id)], ended::id)?;
                    found.extend(builds.first().map(|build| ((*message_id).to_owned(), *build)));
                }
            }
            // One question for all of them: each costs a round trip.
            #[cfg(feature = "postgres")]
            Engine::Postgres(_) if message_ids.is_empty() => {}
            #[cfg(feature = "postgres")]
            Engine::Postgres(_) => {
                let sql = "SELECT builds.id, asked.number
                           FROM unnest(CAST(?1 AS TEXT[])) WITH ORDINALITY AS asked (message_id, number)
                           JOIN builds ON builds.message_id = asked.message_id";
                let asked = Value::Keys(message_ids.iter().map(|id| (*id).to_owned()).collect());
                for (build, number) in self.rows(sql, &[asked], |row| Ok((ended::id(row)?, row.int(1)?)))? {
                    let asked = usize::try_from(number - 1).ok().and_then(|at| message_ids.get(at));
                    found.extend(asked.map(|message_id| ((*message_id).to_owned(), build)));
                }
            }
        }
        Ok(found)
    }

    /// Rows with a key and a JSON text.
    fn parsed<T: serde::de::DeserializeOwned>(&self, table: &str, sql: &str) -> Result<Vec<T>, StoreError> {
        self.rows_long(sql, &[], |row| parse(table, &row.text(0)?, &row.text(1)?))
    }

    fn rows<T>(
        &self,
        sql: &str,
        with: &[Value],
        mut read: impl FnMut(&mut Row) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        self.engine.query(sql, with)?.iter_mut().map(&mut read).collect()
    }

    fn rows_long<T>(
        &self,
        sql: &str,
        with: &[Value],
        mut read: impl FnMut(&mut Row) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        self.engine.query_long(sql, with)?.iter_mut().map(&mut read).collect()
    }
}

fn builds_where(condition: &str) -> String {
    format!(
        "SELECT builds.id, builds.spec, builds.status, ended.deleted,
                CASE WHEN ended.uploaded IS NULL OR ended.deleted IS NOT NULL THEN NULL ELSE ended.store END
         FROM builds LEFT JOIN ended ON ended.id = builds.id WHERE {condition}"
    )
}

fn build(row: &mut Row) -> Result<Build, StoreError> {
    let (id, spec, status) = (row.int(0)?, row.text(1)?, row.text(2)?);
    let key = id.to_string();
    Ok(Build {
        id: BuildId(id.unsigned_abs()),
        spec: Arc::new(parse::<BuildSpec>("builds", &key, &spec)?),
        status: parse::<BuildStatus>("builds", &key, &status)?,
        logs_deleted: row.opt_int(3)?.map(|at| Timestamp(at.unsigned_abs())),
        logs_store: row.opt_text(4)?.map(Arc::from),
    })
}

fn sql_id(id: BuildId) -> i64 {
    sql_number(id.0)
}

fn sql_number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("records have text keys only")
}

fn parse<T: serde::de::DeserializeOwned>(table: &str, key: &str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|source| StoreError::Row { row: format!("{table} {key}"), source })
}
