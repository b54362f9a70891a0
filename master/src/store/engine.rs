//! What the ledger needs of a database, and what the two databases differ in.
//!
//! A statement has one text for both, with placeholders as SQLite has them (`?1`). What they say differently is in
//! [`Dialect`].

use super::StoreError;
#[cfg(feature = "postgres")]
use super::postgres::Postgres;
use super::sqlite::Sqlite;
use std::borrow::Cow;

/// A value that is bound to a placeholder, or read from a column.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Value {
    Null,
    Int(i64),
    Bool(bool),
    Text(String),
    /// A text in an index. PostgreSQL limits its length, so a long one is replaced by its beginning and its hash.
    Key(String),
    /// A list of those; only PostgreSQL has lists.
    #[cfg(feature = "postgres")]
    Keys(Vec<String>),
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Bool(flag)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// A text that is part of an index.
pub(super) fn key(text: impl Into<String>) -> Value {
    Value::Key(text.into())
}

/// A statement that changes the ledger, with its values. Executed twice, it has the same result as executed once: a
/// commit whose answer was lost is repeated.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Statement {
    pub sql: Cow<'static, str>,
    pub with: Vec<Value>,
}

pub(super) fn statement(sql: impl Into<Cow<'static, str>>, with: impl IntoIterator<Item = Value>) -> Statement {
    Statement { sql: sql.into(), with: with.into_iter().collect() }
}

/// A row of an answer. Each column is read once.
pub(super) struct Row(Vec<Value>);

impl Row {
    pub(super) fn new(values: Vec<Value>) -> Self {
        Self(values)
    }

    fn take(&mut self, column: usize) -> Result<Value, StoreError> {
        let value = self.0.get_mut(column).ok_or(StoreError::Column(column))?;
        Ok(std::mem::replace(value, Value::Null))
    }

    pub(super) fn int(&mut self, column: usize) -> Result<i64, StoreError> {
        self.opt_int(column)?.ok_or(StoreError::Column(column))
    }

    pub(super) fn opt_int(&mut self, column: usize) -> Result<Option<i64>, StoreError> {
        match self.take(column)? {
            Value::Null => Ok(None),
            Value::Int(number) => Ok(Some(number)),
            _ => Err(StoreError::Column(column)),
        }
    }

    /// SQLite has numbers instead.
    pub(super) fn flag(&mut self, column: usize) -> Result<bool, StoreError> {
        match self.take(column)? {
            Value::Bool(flag) => Ok(flag),
            Value::Int(number) => Ok(number != 0),
            _ => Err(StoreError::Column(column)),
        }
    }

    pub(super) fn text(&mut self, column: usize) -> Result<String, StoreError> {
        self.opt_text(column)?.ok_or(StoreError::Column(column))
    }

    pub(super) fn opt_text(&mut self, column: usize) -> Result<Option<String>, StoreError> {
        match self.take(column)? {
            Value::Null => Ok(None),
            Value::Text(text) => Ok(Some(text)),
            _ => Err(StoreError::Column(column)),
        }
    }
}

/// What the two databases say differently.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Dialect {
    Sqlite,
    #[cfg(feature = "postgres")]
    Postgres,
}

impl Dialect {
    /// Makes a query use this index. PostgreSQL chooses by itself.
    pub(super) fn index(self, name: &str) -> String {
        match self {
            Self::Sqlite => format!(" INDEXED BY {name}"),
            #[cfg(feature = "postgres")]
            Self::Postgres => String::new(),
        }
    }

    /// The condition that a text fits the pattern of [`Dialect::pattern`] that is bound to the placeholder of this number.
    pub(super) fn like(self, number: usize) -> String {
        match self {
            Self::Sqlite => format!("GLOB ?{number}"),
            #[cfg(feature = "postgres")]
            Self::Postgres => format!("LIKE CAST(?{number} AS TEXT) ESCAPE '!'"),
        }
    }

    /// A pattern with `*` and `?`, as the database writes it.
    pub(super) fn pattern(self, glob: &str) -> String {
        match self {
            Self::Sqlite => glob.replace('[', "[[]"),
            #[cfg(feature = "postgres")]
            Self::Postgres => {
                glob.replace('!', "!!").replace('%', "!%").replace('_', "!_").replace('*', "%").replace('?', "_")
            }
        }
    }

    /// The numbers in the JSON list that is bound to `?1`, one a row.
    pub(super) fn listed(self) -> &'static str {
        match self {
            Self::Sqlite => "SELECT value FROM json_each(?1)",
            #[cfg(feature = "postgres")]
            Self::Postgres => "SELECT CAST(json_array_elements_text(CAST(CAST(?1 AS TEXT) AS JSON)) AS BIGINT)",
        }
    }
}

/// The database.
pub(super) enum Engine {
    Sqlite(Sqlite),
    #[cfg(feature = "postgres")]
    Postgres(Postgres),
}

impl Engine {
    pub(super) fn dialect(&self) -> Dialect {
        match self {
            Self::Sqlite(_) => Dialect::Sqlite,
            #[cfg(feature = "postgres")]
            Self::Postgres(_) => Dialect::Postgres,
        }
    }

    /// Reads a few rows.
    pub(super) fn query(&self, sql: &str, with: &[Value]) -> Result<Vec<Row>, StoreError> {
        match self {
            Self::Sqlite(sqlite) => sqlite.query(sql, with),
            #[cfg(feature = "postgres")]
            Self::Postgres(postgres) => postgres.query(sql, with),
        }
    }

    /// The same for an answer that may take long, at the start and by readers.
    pub(super) fn query_long(&self, sql: &str, with: &[Value]) -> Result<Vec<Row>, StoreError> {
        match self {
            Self::Sqlite(sqlite) => sqlite.query(sql, with),
            #[cfg(feature = "postgres")]
            Self::Postgres(postgres) => postgres.query_long(sql, with),
        }
    }
}
