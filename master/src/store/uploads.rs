//! Which logs of ended builds are on the master's disk, and which are in a blob store.

use super::ended::id;
use super::engine::Row;
use super::{Store, StoreError, sql_id, sql_number};
use rouse_shared::BuildId;

/// Builds that one query reads at most.
const PAGE: usize = 1_000;

/// Where the logs of an ended build are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogsAt {
    /// The blob store that may have something of them; absent: none.
    pub store: Option<String>,
    /// Whether all of them are there, so that the files on the disk do not count any more.
    pub complete: bool,
}

impl Store {
    /// Builds that have ended after this one in the order of their numbers, and whose logs are on the disk: a thousand
    /// at most, each with the blob store that may have something of them.
    ///
    /// # Errors
    /// If the database cannot read.
    pub fn not_uploaded(&self, after: BuildId) -> Result<Vec<(BuildId, Option<String>)>, StoreError> {
        let sql =
            "SELECT id, store FROM ended WHERE id > ?1 AND uploaded IS NULL AND deleted IS NULL ORDER BY id LIMIT ?2";
        self.rows(sql, &[sql_id(after).into(), sql_number(PAGE as u64).into()], |row| Ok((id(row)?, row.opt_text(1)?)))
    }

    /// Where the logs of an ended build are; nothing if there is no such build, or if it has not ended.
    ///
    /// # Errors
    /// If the database cannot read.
    pub fn logs_at(&self, build: BuildId) -> Result<Option<LogsAt>, StoreError> {
        let sql = "SELECT store, uploaded IS NOT NULL FROM ended WHERE id = ?1";
        let read = |row: &mut Row| Ok(LogsAt { store: row.opt_text(0)?, complete: row.flag(1)? });
        Ok(self.rows(sql, &[sql_id(build).into()], read)?.pop())
    }
}
