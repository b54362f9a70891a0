//! The ledger: SQLite in WAL mode. Each batch is one transaction, which is committed before any effect is performed.
//!
//! A row consists of a key, the columns that are searched, and the rest as JSON. Therefore any SQLite tool can show it,
//! and a new field needs no migration.

use crate::core::build::{Build, BuildSpec, BuildStatus};
use crate::core::images::{ImageKey, ImageRecord};
use crate::core::mail::{Mail, News};
use crate::core::places::{PlaceKey, PlaceRecord};
use crate::core::plan::ProviderKind;
use crate::core::record::{Host, HostState, Ledger, Record, Session, WorkerRecord};
use crate::core::spend::Spent;
use rouse_shared::{BuildId, Timestamp, WorkerName};
use rusqlite::{Connection, OptionalExtension as _, params};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

mod ended;
mod migrate;
#[cfg(test)]
mod tests;
mod uploads;

pub use uploads::LogsAt;

/// Version of the tables, kept in `user_version`.
const SCHEMA: i32 = 5;

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

/// The opened ledger.
pub struct Store {
    connection: Connection,
}

impl Store {
    /// Opens the ledger, and creates it if it does not exist.
    ///
    /// # Errors
    /// If the file cannot be used or was written by a newer version.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        // It contains tokens of hosts. Its journals get the same mode.
        fs::File::options().create(true).append(true).mode(0o600).open(path).map_err(StoreError::File)?;
        let mut connection = Connection::open(path)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        // An accepted build must survive a power failure. WAL alone would sync only at checkpoints.
        connection.pragma_update(None, "synchronous", "FULL")?;
        // Deleted rows are overwritten: they had tokens.
        connection.pragma_update(None, "secure_delete", "ON")?;
        let version: i32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version > SCHEMA {
            return Err(StoreError::Newer(version));
        }
        connection.execute_batch(
            "CREATE TABLE IF NOT EXISTS builds (
                 id INTEGER PRIMARY KEY, state TEXT NOT NULL, live INTEGER NOT NULL, message_id TEXT UNIQUE,
                 spec TEXT NOT NULL, status TEXT NOT NULL);
             CREATE INDEX IF NOT EXISTS builds_live ON builds (id) WHERE live;
             CREATE TABLE IF NOT EXISTS hosts (id TEXT PRIMARY KEY, row TEXT NOT NULL);
             CREATE TABLE IF NOT EXISTS sessions (worker TEXT PRIMARY KEY, row TEXT NOT NULL);
             CREATE TABLE IF NOT EXISTS workers (name TEXT PRIMARY KEY, row TEXT NOT NULL);
             CREATE TABLE IF NOT EXISTS images (
                 provider TEXT NOT NULL, name TEXT NOT NULL, row TEXT NOT NULL, PRIMARY KEY (provider, name));
             CREATE TABLE IF NOT EXISTS places (
                 provider TEXT NOT NULL, name TEXT NOT NULL, row TEXT NOT NULL, PRIMARY KEY (provider, name));
             CREATE TABLE IF NOT EXISTS news (id INTEGER PRIMARY KEY, row TEXT NOT NULL);
             CREATE TABLE IF NOT EXISTS mails (id TEXT PRIMARY KEY, row TEXT NOT NULL);
             CREATE TABLE IF NOT EXISTS told_orphans (
                 provider TEXT NOT NULL, handle TEXT NOT NULL, row TEXT NOT NULL, PRIMARY KEY (provider, handle));
             CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL);",
        )?;
        connection.execute_batch(ended::TABLES)?;
        if version == 0 {
            connection.pragma_update(None, "user_version", SCHEMA)?;
        } else {
            migrate::bring_up(&mut connection, version)?;
        }
        connection.set_prepared_statement_cache_capacity(64);
        Ok(Self { connection })
    }

    /// Opens the same ledger a second time, to read beside the driver.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub fn reader(path: &Path) -> Result<Self, StoreError> {
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY | rusqlite::OpenFlags::SQLITE_OPEN_NO_MUTEX;
        Ok(Self { connection: Connection::open_with_flags(path, flags)? })
    }

    /// Writes all records in one transaction. The last record of a key counts. If it fails, nothing is written.
    ///
    /// # Errors
    /// If SQLite cannot commit. Then the batch must not be performed.
    pub fn commit<'r>(&mut self, records: impl IntoIterator<Item = &'r Record>) -> Result<(), StoreError> {
        let transaction = self.connection.transaction()?;
        for record in records {
            write(&transaction, record)?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// Everything that has not ended.
    ///
    /// # Errors
    /// If a row cannot be read.
    pub fn load(&self) -> Result<Ledger, StoreError> {
        let mut ledger = Ledger {
            builds: self.builds_where("builds.live ORDER BY builds.id", [])?,
            hosts: self.rows("hosts", "SELECT id, row FROM hosts ORDER BY id")?,
            sessions: self.rows("sessions", "SELECT worker, row FROM sessions ORDER BY worker")?,
            news: self.rows("news", "SELECT CAST(id AS TEXT), row FROM news ORDER BY id")?,
            mails: self.rows("mails", "SELECT id, row FROM mails ORDER BY id")?,
            reported_orphans: self
                .rows("told_orphans", "SELECT handle, row FROM told_orphans ORDER BY provider, handle")?,
            ..Ledger::default()
        };
        let mut statement = self.connection.prepare("SELECT name, row FROM workers ORDER BY name")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (name, text): (String, String) = (row.get(0)?, row.get(1)?);
            // rouse writes valid names only. There is no worker with any other name.
            if let Ok(worker) = name.parse::<WorkerName>() {
                ledger.workers.push((worker, parse("workers", &name, &text)?));
            }
        }
        let mut statement =
            self.connection.prepare("SELECT provider, name, row FROM images ORDER BY provider, name")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (provider, name, text): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
            // This version does not have the provider, so it has none of its hosts.
            if let Some(provider) = ProviderKind::ALL.into_iter().find(|p| p.as_str() == provider) {
                let record = parse("images", &name, &text)?;
                ledger.images.push((ImageKey { provider, image: name.into() }, record));
            }
        }
        let mut statement =
            self.connection.prepare("SELECT provider, name, row FROM places ORDER BY provider, name")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (provider, name, text): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
            if let Some(provider) = ProviderKind::ALL.into_iter().find(|p| p.as_str() == provider) {
                let record = parse("places", &name, &text)?;
                ledger.places.push((PlaceKey { provider, name: name.into() }, record));
            }
        }
        let highest = "SELECT COALESCE(MAX(id), 0) FROM builds";
        let highest = self.connection.query_row(highest, [], |row| row.get::<_, i64>(0))?.unsigned_abs();
        ledger.last_build = highest.max(self.highest_deleted()?.0);
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

    fn fact(&self, name: &str) -> Result<Option<u64>, StoreError> {
        let sql = "SELECT value FROM facts WHERE name = ?1";
        let value = self.connection.query_row(sql, [name], |row| row.get::<_, i64>(0)).optional()?;
        Ok(value.map(i64::unsigned_abs))
    }

    /// One build, ended or not.
    ///
    /// # Errors
    /// If its row cannot be read.
    pub fn build(&self, id: BuildId) -> Result<Option<Build>, StoreError> {
        Ok(self.builds_where("builds.id = ?1", [sql_id(id)])?.pop())
    }

    /// The build with a submitter's id.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn by_message_id(&self, message_id: &str) -> Result<Option<BuildId>, StoreError> {
        let mut statement = self.connection.prepare_cached("SELECT id FROM builds WHERE message_id = ?1")?;
        let id = statement.query_row([message_id], |row| row.get::<_, i64>(0)).optional()?;
        Ok(id.map(|id| BuildId(id.unsigned_abs())))
    }

    fn builds_where(&self, condition: &str, with: impl rusqlite::Params) -> Result<Vec<Build>, StoreError> {
        let sql = format!(
            "SELECT builds.id, builds.spec, builds.status, ended.deleted, 
                    iif(ended.uploaded IS NULL OR ended.deleted IS NOT NULL, NULL, ended.store)
             FROM builds LEFT JOIN ended ON ended.id = builds.id WHERE {condition}"
        );
        let mut statement = self.connection.prepare_cached(&sql)?;
        let mut rows = statement.query(with)?;
        let mut builds = Vec::new();
        while let Some(row) = rows.next()? {
            let (id, spec, status): (i64, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let key = id.to_string();
            builds.push(Build {
                id: BuildId(id.unsigned_abs()),
                spec: Arc::new(parse::<BuildSpec>("builds", &key, &spec)?),
                status: parse::<BuildStatus>("builds", &key, &status)?,
                logs_deleted: row.get::<_, Option<i64>>(3)?.map(|at| Timestamp(at.unsigned_abs())),
                logs_store: row.get::<_, Option<String>>(4)?.map(Arc::from),
            });
        }
        Ok(builds)
    }

    fn rows<T: serde::de::DeserializeOwned>(&self, table: &str, sql: &str) -> Result<Vec<T>, StoreError> {
        let mut statement = self.connection.prepare(sql)?;
        let mut rows = statement.query([])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let (key, text): (String, String) = (row.get(0)?, row.get(1)?);
            found.push(parse(table, &key, &text)?);
        }
        Ok(found)
    }
}

fn write(to: &Connection, record: &Record) -> Result<(), StoreError> {
    match record {
        Record::NewBuild { id, spec, message_id, status } => {
            let sql = "INSERT INTO builds (id, state, live, message_id, spec, status) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
            let state = status.state();
            let row = params![sql_id(*id), state.as_str(), !state.is_final(), message_id, json(&**spec), json(status)];
            to.prepare_cached(sql)?.execute(row)?;
            if state.is_final() {
                ended::add(to, "builds.id = ?1", [sql_id(*id)])?;
            }
        }
        Record::Build(id, status) => {
            let state = status.state();
            let sql = "UPDATE builds SET state = ?2, live = ?3, status = ?4 WHERE id = ?1";
            to.prepare_cached(sql)?.execute(params![sql_id(*id), state.as_str(), !state.is_final(), json(status)])?;
            if state.is_final() {
                ended::add(to, "builds.id = ?1", [sql_id(*id)])?;
            }
        }
        Record::LogsMeasured(id, bytes) => ended::set_size(to, *id, *bytes)?,
        Record::LogsExpired(id, at) => ended::expire_logs(to, *id, *at)?,
        Record::LogsDeleted(id) => ended::logs_deleted(to, *id)?,
        Record::LogsUploaded(id, store, upload) => ended::uploaded(to, *id, store, *upload)?,
        Record::BuildDeleted(id) => ended::delete(to, *id)?,
        // What people may ask about it is kept with its builds. Its order has a token, and what the user gave to the
        // machine.
        Record::Host(host) if host.state == HostState::Terminated => {
            to.prepare_cached("DELETE FROM hosts WHERE id = ?1")?.execute([host.id.as_str()])?;
        }
        Record::Host(host) => {
            let sql = "INSERT INTO hosts (id, row) VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET row = excluded.row";
            to.prepare_cached(sql)?.execute(params![host.id.as_str(), json::<Host>(host)])?;
        }
        Record::Session(session) => {
            let sql = "INSERT INTO sessions (worker, row) VALUES (?1, ?2)
                       ON CONFLICT (worker) DO UPDATE SET row = excluded.row";
            to.prepare_cached(sql)?.execute(params![session.worker.as_str(), json::<Session>(session)])?;
        }
        Record::SessionOver(worker) => {
            to.prepare_cached("DELETE FROM sessions WHERE worker = ?1")?.execute([worker.as_str()])?;
        }
        Record::Worker(name, record) => {
            let sql = "INSERT INTO workers (name, row) VALUES (?1, ?2)
                       ON CONFLICT (name) DO UPDATE SET row = excluded.row";
            to.prepare_cached(sql)?.execute(params![name.as_str(), json::<WorkerRecord>(record)])?;
        }
        Record::Image(key, record) => {
            let sql = "INSERT INTO images (provider, name, row) VALUES (?1, ?2, ?3)
                       ON CONFLICT (provider, name) DO UPDATE SET row = excluded.row";
            let row = params![key.provider.as_str(), &*key.image, json::<ImageRecord>(record)];
            to.prepare_cached(sql)?.execute(row)?;
        }
        Record::Place(key, record) if *record == PlaceRecord::default() => {
            let sql = "DELETE FROM places WHERE provider = ?1 AND name = ?2";
            to.prepare_cached(sql)?.execute(params![key.provider.as_str(), &*key.name])?;
        }
        Record::Place(key, record) => {
            let sql = "INSERT INTO places (provider, name, row) VALUES (?1, ?2, ?3)
                       ON CONFLICT (provider, name) DO UPDATE SET row = excluded.row";
            let row = params![key.provider.as_str(), &*key.name, json::<PlaceRecord>(record)];
            to.prepare_cached(sql)?.execute(row)?;
        }
        Record::Spent(spent) => {
            write_fact(to, "spent_day", spent.day)?;
            write_fact(to, "spent_micros", spent.micros)?;
        }
        Record::News(news) => {
            let sql = "INSERT INTO news (id, row) VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET row = excluded.row";
            to.prepare_cached(sql)?.execute(params![sql_number(news.id), json::<News>(news)])?;
        }
        Record::NewsOver(id) => {
            to.prepare_cached("DELETE FROM news WHERE id = ?1")?.execute([sql_number(*id)])?;
        }
        Record::Mail(mail) => {
            let sql = "INSERT INTO mails (id, row) VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET row = excluded.row";
            to.prepare_cached(sql)?.execute(params![mail.id.0, json::<Mail>(mail)])?;
        }
        Record::MailOver(id) => {
            to.prepare_cached("DELETE FROM mails WHERE id = ?1")?.execute([&id.0])?;
        }
        Record::MailPause(failures, until) => {
            write_fact(to, "mail_failures", u64::from(*failures))?;
            write_fact(to, "mail_pause_until", until.0)?;
        }
        Record::OrphanReported(provider, handle) => {
            let sql = "INSERT OR REPLACE INTO told_orphans (provider, handle, row) VALUES (?1, ?2, ?3)";
            to.prepare_cached(sql)?.execute(params![provider.as_str(), handle, json(&(provider, handle))])?;
        }
        Record::OrphanOver(provider, handle) => {
            let sql = "DELETE FROM told_orphans WHERE provider = ?1 AND handle = ?2";
            to.prepare_cached(sql)?.execute([provider.as_str(), handle.as_str()])?;
        }
        Record::LeasesExtended(Some(by)) => {
            write_fact(to, "leases_extended", u64::try_from(by.as_millis()).unwrap_or(u64::MAX))?;
        }
        Record::LeasesExtended(None) => {
            to.prepare_cached("DELETE FROM facts WHERE name = 'leases_extended'")?.execute([])?;
        }
        Record::AlarmTold(Some(at)) => write_fact(to, "alarm_told", at.0)?,
        Record::AlarmTold(None) => {
            to.prepare_cached("DELETE FROM facts WHERE name = 'alarm_told'")?.execute([])?;
        }
    }
    Ok(())
}

fn write_fact(to: &Connection, name: &str, value: u64) -> Result<(), StoreError> {
    let sql = "INSERT INTO facts (name, value) VALUES (?1, ?2)
               ON CONFLICT (name) DO UPDATE SET value = excluded.value";
    to.prepare_cached(sql)?.execute(params![name, sql_number(value)])?;
    Ok(())
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
