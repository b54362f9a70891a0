//! The journal of operations: its newest entries.

use super::engine::{Statement, Value, key, statement};
use super::{Store, StoreError, json, parse, sql_number};
use crate::core::journal::{Entry, Filter, KEPT};
use rouse_shared::Timestamp;

/// The table in SQLite. Ledgers of earlier versions get it when they are opened.
pub(super) const TABLE: &str = "
    CREATE TABLE IF NOT EXISTS journal (id INTEGER PRIMARY KEY, at INTEGER NOT NULL, target TEXT, row TEXT NOT NULL);
    CREATE INDEX IF NOT EXISTS journal_target ON journal (target, id) WHERE target IS NOT NULL;";

/// The same in PostgreSQL.
#[cfg(feature = "postgres")]
pub(super) const POSTGRES_TABLE: &str = r#"
    CREATE TABLE IF NOT EXISTS journal (
        id BIGINT PRIMARY KEY, at BIGINT NOT NULL, target TEXT COLLATE "C", row TEXT NOT NULL);
    CREATE INDEX IF NOT EXISTS journal_target ON journal (target, id) WHERE target IS NOT NULL;
"#;

/// Appends the statements that add an entry, and delete those that are too many with it.
pub(super) fn add(entry: &Entry, to: &mut Vec<Statement>) {
    let sql = "INSERT INTO journal (id, at, target, row) VALUES (?1, ?2, ?3, ?4)
               ON CONFLICT (id) DO UPDATE SET at = excluded.at, target = excluded.target, row = excluded.row";
    let target = entry.target.clone().map_or(Value::Null, key);
    let with = [sql_number(entry.id).into(), sql_number(entry.at.0).into(), target, json::<Entry>(entry).into()];
    to.push(statement(sql, with));
    if let Some(last) = entry.id.checked_sub(KEPT) {
        to.push(statement("DELETE FROM journal WHERE id <= ?1", [sql_number(last).into()]));
    }
}

impl Store {
    /// The entries that fit, newest first.
    ///
    /// # Errors
    /// If a row cannot be read.
    pub fn journal(&self, filter: &Filter) -> Result<Vec<Entry>, StoreError> {
        let mut sql = "SELECT id, row FROM journal WHERE id < ?1 AND at >= ?2".to_owned();
        let before = filter.before.map_or(i64::MAX, sql_number);
        let since = filter.since.map_or(0, |Timestamp(at)| sql_number(at));
        let mut with = vec![before.into(), since.into(), sql_number(filter.limit as u64).into()];
        if let Some(target) = &filter.target {
            sql.push_str(" AND target = ?4");
            with.push(key(target.as_str()));
        }
        sql.push_str(" ORDER BY id DESC LIMIT ?3");
        self.rows_long(&sql, &with, |row| parse("journal", &row.int(0)?.to_string(), &row.text(1)?))
    }

    /// The number of the newest entry, 0 if there is none.
    pub(super) fn last_entry(&self) -> Result<u64, StoreError> {
        let found = self.rows_long("SELECT COALESCE(MAX(id), 0) FROM journal", &[], |row| row.int(0))?;
        Ok(found.first().copied().unwrap_or(0).unsigned_abs())
    }
}
