//! Copies a ledger from SQLite into PostgreSQL, with all of its rows.

use super::engine::{Engine, Row, Statement, Value, key, statement};
use super::postgres;
use super::sqlite::Sqlite;
use super::{Store, StoreError, parse};
use crate::core::build::BuildSpec;
use std::path::Path;

/// Rows that are sent at once.
const LIST: usize = 500;

/// What a column has.
#[derive(Clone, Copy)]
enum Kind {
    Number,
    Flag,
    Text,
    /// Text in an index.
    Key,
}

use Kind::{Flag, Key, Number, Text};

/// The columns of each table. `builds` has more in PostgreSQL.
const COLUMNS: [(&str, &[(&str, Kind)]); 13] = [
    (
        "builds",
        &[("id", Number), ("state", Text), ("live", Flag), ("message_id", Key), ("spec", Text), ("status", Text)],
    ),
    (
        "ended",
        &[
            ("id", Number),
            ("state", Text),
            ("worker", Text),
            ("name", Key),
            ("finished", Number),
            ("keep", Flag),
            ("size", Number),
            ("deleted", Number),
            ("store", Text),
            ("uploaded", Number),
        ],
    ),
    ("ended_where", &[("property", Key), ("state", Text), ("id", Number)]),
    ("hosts", &[("id", Text), ("row", Text)]),
    ("sessions", &[("worker", Text), ("row", Text)]),
    ("workers", &[("name", Text), ("row", Text)]),
    ("images", &[("provider", Text), ("name", Key), ("row", Text)]),
    ("places", &[("provider", Text), ("name", Key), ("row", Text)]),
    ("news", &[("id", Number), ("row", Text)]),
    ("mails", &[("id", Key), ("row", Text)]),
    ("told_orphans", &[("provider", Text), ("handle", Key), ("row", Text)]),
    ("facts", &[("name", Text), ("value", Number)]),
    ("journal", &[("id", Number), ("at", Number), ("target", Key), ("row", Text)]),
];

impl Store {
    /// Copies the ledger in this file of SQLite into this one in PostgreSQL, which must be empty, with what belongs to
    /// the master: names and texts as of [`Store::keep`]. All of it is one transaction. Returns the number of rows of
    /// each table. Must not be called inside of a runtime.
    ///
    /// # Errors
    /// If this ledger is not empty, or either database fails. Nothing is copied then.
    pub fn copy_from(
        &self,
        file: &Path,
        belongings: &[(&'static str, String)],
    ) -> Result<Vec<(&'static str, u64)>, StoreError> {
        let Engine::Postgres(to) = &self.engine else { return Err(StoreError::NoPostgres) };
        if let Some((table, rows)) = self.tables()?.into_iter().find(|(_, rows)| *rows > 0) {
            return Err(StoreError::NotEmpty { table, rows });
        }
        let from = Sqlite::open(file)?;
        let mut copied = Vec::new();
        to.fill(|send| {
            let keep = "INSERT INTO ledger (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
            let kept = belongings.iter().map(|(name, text)| statement(keep, [(*name).into(), text.as_str().into()]));
            let mut list: Vec<Statement> = kept.collect();
            for (table, columns) in COLUMNS {
                let mut rows = 0;
                let names: Vec<_> = columns.iter().map(|(name, _)| *name).collect();
                let insert = insert(table, &names);
                from.each(&format!("SELECT {} FROM {table}", names.join(", ")), |mut row| {
                    rows += 1;
                    list.push(copy(table, columns, &insert, &mut row)?);
                    if list.len() >= LIST { send(std::mem::take(&mut list)) } else { Ok(()) }
                })?;
                copied.push((table, rows));
            }
            if list.is_empty() { Ok(()) } else { send(list) }
        })?;
        Ok(copied)
    }
}

fn insert(table: &str, names: &[&str]) -> String {
    let places: Vec<_> = (1..=names.len()).map(|n| format!("?{n}")).collect();
    format!("INSERT INTO {table} ({}) VALUES ({})", names.join(", "), places.join(", "))
}

fn copy(table: &str, columns: &[(&str, Kind)], insert: &str, row: &mut Row) -> Result<Statement, StoreError> {
    let mut with = Vec::with_capacity(columns.len() + 3);
    for (at, (_, kind)) in columns.iter().enumerate() {
        with.push(match kind {
            Number => row.opt_int(at)?.into(),
            Flag => row.flag(at)?.into(),
            Text => row.opt_text(at)?.into(),
            Key => row.opt_text(at)?.map_or(Value::Null, key),
        });
    }
    if table != "builds" {
        return Ok(statement(insert.to_owned(), with));
    }
    let (Some(Value::Int(id)), Some(Value::Text(spec))) = (with.first(), with.get(4)) else {
        return Err(StoreError::Column(4));
    };
    let spec = parse::<BuildSpec>("builds", &id.to_string(), spec)?;
    Ok(postgres::new_build(&spec, with))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn no_table_and_no_column_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Sqlite::open(&dir.path().join("ledger")).unwrap();
        let columns = |table: &str| {
            let statement = ledger.connection.prepare(&format!("SELECT * FROM {table}")).unwrap();
            statement.column_names().map(str::to_owned).collect::<Vec<_>>()
        };
        let sql = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name";
        let tables = ledger.query(sql, &[]).unwrap().into_iter().map(|mut row| row.text(0).unwrap());
        let mut listed: Vec<_> = COLUMNS.iter().map(|(table, _)| (*table).to_owned()).collect();
        listed.sort();
        assert_eq!(tables.collect::<Vec<_>>(), listed);
        for (table, listed) in COLUMNS {
            assert_eq!(columns(table), listed.iter().map(|(name, _)| *name).collect::<Vec<_>>(), "{table}");
        }
    }
}
