//! The ledger in SQLite, in WAL mode.

use super::engine::{Row, Statement, Value};
use super::{SCHEMA, StoreError, ended, journal, migrate};
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, OpenFlags, ToSql, params_from_iter};
use std::fs;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// The tables, besides those of ended builds.
const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS builds (
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
    CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL);";

/// A connection to the file.
pub(super) struct Sqlite {
    pub(super) connection: Connection,
}

impl Sqlite {
    /// Opens the file, and creates it if it does not exist. An older one is migrated.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
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
        connection.execute_batch(TABLES)?;
        connection.execute_batch(ended::TABLES)?;
        connection.execute_batch(journal::TABLE)?;
        if version == 0 {
            connection.pragma_update(None, "user_version", SCHEMA)?;
        } else {
            migrate::bring_up(&mut connection, version)?;
        }
        connection.set_prepared_statement_cache_capacity(64);
        Ok(Self { connection })
    }

    /// Opens the file a second time, to read beside the driver.
    pub(super) fn reader(path: &Path) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        Ok(Self { connection: Connection::open_with_flags(path, flags)? })
    }

    pub(super) fn query(&self, sql: &str, with: &[Value]) -> Result<Vec<Row>, StoreError> {
        let mut found = Vec::new();
        self.read(sql, with, |row| {
            found.push(row);
            Ok(())
        })?;
        Ok(found)
    }

    /// Passes on one row after the other, of any number.
    #[cfg(feature = "postgres")]
    pub(super) fn each(&self, sql: &str, take: impl FnMut(Row) -> Result<(), StoreError>) -> Result<(), StoreError> {
        self.read(sql, &[], take)
    }

    fn read(
        &self,
        sql: &str,
        with: &[Value],
        mut take: impl FnMut(Row) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut statement = self.connection.prepare_cached(sql)?;
        let columns = statement.column_count();
        let mut rows = statement.query(params_from_iter(with))?;
        while let Some(row) = rows.next()? {
            let values = (0..columns).map(|column| read(row.get_ref(column)?, column));
            take(Row::new(values.collect::<Result<_, _>>()?))?;
        }
        Ok(())
    }

    pub(super) fn commit(&mut self, statements: &[Statement]) -> Result<(), StoreError> {
        let transaction = self.connection.transaction()?;
        for statement in statements {
            transaction.prepare_cached(&statement.sql)?.execute(params_from_iter(&statement.with))?;
        }
        transaction.commit()?;
        Ok(())
    }
}

fn read(value: ValueRef<'_>, column: usize) -> Result<Value, StoreError> {
    Ok(match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(number) => Value::Int(number),
        ValueRef::Text(text) => {
            Value::Text(std::str::from_utf8(text).map_err(|_| StoreError::Column(column))?.to_owned())
        }
        ValueRef::Real(_) | ValueRef::Blob(_) => return Err(StoreError::Column(column)),
    })
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self {
            Self::Null => ToSqlOutput::Borrowed(ValueRef::Null),
            Self::Int(number) => ToSqlOutput::Borrowed(ValueRef::Integer(*number)),
            Self::Bool(flag) => ToSqlOutput::Borrowed(ValueRef::Integer(i64::from(*flag))),
            Self::Text(text) | Self::Key(text) => ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes())),
            #[cfg(feature = "postgres")]
            Self::Keys(_) => return Err(rusqlite::Error::ToSqlConversionFailure("SQLite has no lists".into())),
        })
    }
}
