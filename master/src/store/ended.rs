//! Builds that have ended: a narrow table beside `builds`, with what they are listed and deleted by. A query reads about
//! as many rows as it returns, however many builds there are. Only a listing that combines several of worker, name and
//! properties may read more.

use super::engine::{Dialect, Row, Statement, Value, key, statement};
use super::{Store, StoreError, build, builds_where, json, sql_id, sql_number};
use crate::core::blobs::Upload;
use crate::core::build::{Build, BuildState, BuildStatus};
use crate::core::retention::{BATCH, EndedBuild, Expired, Scan};
use crate::core::view::BuildFilter;
use rouse_shared::{BuildId, Timestamp};
use std::collections::BTreeMap;

/// The tables. `worker` is the worker of the last attempt. `size` is the bytes of the logs; absent if nobody has measured
/// them. `deleted` is when retention began to delete the logs, in milliseconds; once no file is left, `size` is 0. `store`
/// is the blob store that may have something of the logs; absent: none. `uploaded` is how many bytes of logs are there;
/// absent as long as the files on the disk count.
pub(super) const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS ended (
        id INTEGER PRIMARY KEY, state TEXT NOT NULL, worker TEXT, name TEXT, finished INTEGER NOT NULL,
        keep INTEGER NOT NULL, size INTEGER, deleted INTEGER, store TEXT, uploaded INTEGER);
    CREATE INDEX IF NOT EXISTS ended_state ON ended (state, id);
    CREATE INDEX IF NOT EXISTS ended_worker ON ended (worker, state, id) WHERE worker IS NOT NULL;
    CREATE INDEX IF NOT EXISTS ended_name ON ended (name, state, id) WHERE name IS NOT NULL;
    CREATE TABLE IF NOT EXISTS ended_where (
        property TEXT NOT NULL, state TEXT NOT NULL, id INTEGER NOT NULL, PRIMARY KEY (property, state, id)
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS ended_logs ON ended (finished) WHERE deleted IS NULL AND NOT keep;
    CREATE INDEX IF NOT EXISTS ended_unmeasured ON ended (id) WHERE deleted IS NULL AND size IS NULL;
    CREATE INDEX IF NOT EXISTS ended_size ON ended (finished) WHERE deleted IS NULL AND NOT keep AND size > 0;
    CREATE INDEX IF NOT EXISTS ended_unfinished ON ended (finished) WHERE deleted IS NOT NULL AND size IS DISTINCT FROM 0;
    CREATE INDEX IF NOT EXISTS ended_empty ON ended (finished) WHERE deleted IS NOT NULL AND size = 0;";

/// The highest number of a build that retention has deleted.
pub(super) const HIGHEST_DELETED: &str = "highest_deleted_build";

/// Records that this build has ended. Its row in `builds` has its final status already.
pub(super) fn add(dialect: Dialect, id: BuildId, status: &BuildStatus, to: &mut Vec<Statement>) {
    let worker = status.attempts.last().map(|attempt| attempt.worker.as_str());
    let finished = status.finished.unwrap_or(status.created);
    let (name, keep, properties) = match dialect {
        Dialect::Sqlite => {
            ("NULLIF(json_extract(spec, '$.name'), '')", "COALESCE(json_extract(spec, '$.keep'), 0)", SQLITE_PROPERTIES)
        }
        // Filled when the build was accepted.
        #[cfg(feature = "postgres")]
        Dialect::Postgres => ("name", "keep", POSTGRES_PROPERTIES),
    };
    let sql = format!(
        "INSERT INTO ended (id, state, worker, name, finished, keep)
         SELECT id, state, CAST(?2 AS TEXT), {name}, CAST(?3 AS BIGINT), {keep} FROM builds WHERE id = ?1 AND NOT live
         ON CONFLICT (id) DO UPDATE SET state = excluded.state, worker = excluded.worker, name = excluded.name,
             finished = excluded.finished, keep = excluded.keep"
    );
    to.push(statement(sql, [sql_id(id).into(), worker.into(), sql_number(finished.0).into()]));
    let sql = format!("INSERT INTO ended_where (property, state, id) {properties} ON CONFLICT DO NOTHING");
    to.push(statement(sql, [sql_id(id).into()]));
}

/// The properties that a build requires, one a row, with its state and its number.
const SQLITE_PROPERTIES: &str = "SELECT property.key || '=' || property.value, builds.state, builds.id
    FROM builds, json_each(builds.spec, '$.requirement.Where') AS property WHERE builds.id = ?1 AND NOT builds.live";
#[cfg(feature = "postgres")]
const POSTGRES_PROPERTIES: &str =
    "SELECT unnest(properties), builds.state, builds.id FROM builds WHERE builds.id = ?1 AND NOT builds.live";

pub(super) fn set_size(id: BuildId, bytes: u64) -> Statement {
    let sql = "UPDATE ended SET size = ?2 WHERE id = ?1 AND deleted IS NULL";
    statement(sql, [sql_id(id).into(), sql_number(bytes).into()])
}

pub(super) fn expire_logs(id: BuildId, at: Timestamp) -> Statement {
    // If they took no space, there is nothing to delete; the files are looked for all the same.
    let sql = "UPDATE ended SET deleted = ?2, size = NULL WHERE id = ?1 AND NOT keep";
    statement(sql, [sql_id(id).into(), sql_number(at.0).into()])
}

pub(super) fn uploaded(id: BuildId, store: &str, upload: Upload) -> Statement {
    // Retention may delete the logs at the same time. It looks for them in the store that is named here. What is complete
    // stays so: the files may be gone.
    let bytes = match upload {
        Upload::Begun => None,
        Upload::Complete(bytes) => Some(sql_number(bytes)),
    };
    let sql = "UPDATE ended SET store = ?2, uploaded = ?3 WHERE id = ?1 AND uploaded IS NULL";
    statement(sql, [sql_id(id).into(), store.into(), bytes.into()])
}

pub(super) fn logs_deleted(id: BuildId) -> Statement {
    statement("UPDATE ended SET size = 0 WHERE id = ?1 AND deleted IS NOT NULL", [sql_id(id).into()])
}

/// Deletes a build, if it has ended. The highest number is recorded, because it may have been that of the newest build.
pub(super) fn delete(dialect: Dialect, id: BuildId, to: &mut Vec<Statement>) {
    // The key of a row is complete, so that no index is searched for all builds with a property and a state.
    let properties = match dialect {
        Dialect::Sqlite => SQLITE_PROPERTIES,
        #[cfg(feature = "postgres")]
        Dialect::Postgres => POSTGRES_PROPERTIES,
    };
    let sql = format!("DELETE FROM ended_where WHERE (property, state, id) IN ({properties})");
    to.push(statement(sql, [sql_id(id).into()]));
    let sql = "INSERT INTO facts (name, value) SELECT CAST(?2 AS TEXT), id FROM builds WHERE id = ?1 AND NOT live
               ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE facts.value < excluded.value";
    to.push(statement(sql, [sql_id(id).into(), HIGHEST_DELETED.into()]));
    let sql = "DELETE FROM ended WHERE id = ?1 AND id IN (SELECT id FROM builds WHERE id = ?1 AND NOT live)";
    to.push(statement(sql, [sql_id(id).into()]));
    to.push(statement("DELETE FROM builds WHERE id = ?1 AND NOT live", [sql_id(id).into()]));
}

impl Store {
    /// Builds that have ended, newest first. The filter's state is a final one, or absent.
    ///
    /// # Errors
    /// If a row cannot be read.
    pub fn ended_builds(&self, filter: &BuildFilter) -> Result<Vec<Build>, StoreError> {
        let after = filter.since.map(|since| self.first_accepted(since)).transpose()?;
        let until = filter.until.map(|until| self.first_accepted(until)).transpose()?;
        let before = [filter.before, until].into_iter().flatten().min();
        let mut ids = self.ended_ids(filter, after.unwrap_or(BuildId(0)), before)?;
        // Each of several queries has found the newest of its state.
        ids.sort_unstable_by(|a, b| b.cmp(a));
        ids.truncate(filter.limit);
        let mut builds = self.rows(&builds_where(&self.listed("builds.id")), &[json(&ids).into()], build)?;
        builds.sort_unstable_by_key(|build| std::cmp::Reverse(build.id));
        Ok(builds)
    }

    /// The condition that a column has one of the numbers of the list `?1`.
    fn listed(&self, column: &str) -> String {
        format!("{column} IN ({})", self.engine.dialect().listed())
    }

    /// The first build that was accepted at this time or later, or a number that no build has yet. Numbers grow with time,
    /// so a few builds are read, however many there are.
    fn first_accepted(&self, time: Timestamp) -> Result<BuildId, StoreError> {
        let next = format!("{} ORDER BY builds.id LIMIT 1", builds_where("builds.id >= ?1"));
        let newest = self.rows("SELECT COALESCE(MAX(id), 0) FROM builds", &[], id)?.pop();
        let (mut low, mut high) = (0, newest.map_or(0, |newest| newest.0) + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.rows(&next, &[sql_id(BuildId(middle)).into()], build)?.pop() {
                Some(build) if build.status.created < time => low = build.id.0 + 1,
                Some(_) | None => high = middle,
            }
        }
        Ok(BuildId(low))
    }

    fn ended_ids(
        &self,
        filter: &BuildFilter,
        from: BuildId,
        before: Option<BuildId>,
    ) -> Result<Vec<BuildId>, StoreError> {
        let dialect = self.engine.dialect();
        let mut properties = filter.properties.iter().map(|(name, value)| key(format!("{name}={value}")));
        let mut worker = filter.worker.as_ref().map(|worker| worker.as_str().into());
        let before = before.map_or(i64::MAX, sql_id);
        let mut pattern = None;
        let exact = filter.name.as_ref().filter(|name| {
            let is_pattern = name.contains(['*', '?']);
            // Builds without a name fit this too.
            let fits_all = name.chars().all(|c| c == '*');
            pattern = (is_pattern && !fits_all).then(|| dialect.pattern(name));
            !is_pattern
        });
        let limit = i64::try_from(filter.limit).unwrap_or(i64::MAX);
        let mut with: Vec<Value> = vec![before.into(), limit.into(), sql_id(from).into()];
        // The column whose index is read: the one that likely fits the fewest builds.
        let (table, column, first) = if let Some(name) = exact {
            (format!("ended AS e{}", dialect.index("ended_name")), "name", Some(key(name)))
        } else if let Some(property) = properties.next() {
            ("ended_where AS e".to_owned(), "property", Some(property))
        } else if let Some(worker) = worker.take() {
            (format!("ended AS e{}", dialect.index("ended_worker")), "worker", Some(worker))
        } else if filter.state.is_some() {
            (format!("ended AS e{}", dialect.index("ended_state")), "", None)
        } else {
            ("ended AS e".to_owned(), "", None)
        };
        let mut sql = format!("SELECT e.id FROM {table} WHERE e.id < ?1 AND e.id >= ?3");
        let indexed = first.is_some();
        if let Some(first) = first {
            with.push(first);
            sql.push_str(&format!(" AND e.{column} = ?{}", with.len()));
        }
        if let Some(worker) = worker {
            with.push(worker);
            sql.push_str(&format!(
                " AND EXISTS (SELECT 1 FROM ended WHERE ended.id = e.id AND ended.worker = ?{})",
                with.len()
            ));
        }
        if let Some(pattern) = pattern {
            with.push(pattern.into());
            let like = dialect.like(with.len());
            sql.push_str(&format!(" AND EXISTS (SELECT 1 FROM ended WHERE ended.id = e.id AND ended.name {like})"));
        }
        for property in properties {
            with.push(property);
            sql.push_str(&format!(
                " AND EXISTS (SELECT 1 FROM ended_where AS w WHERE w.property = ?{} AND w.state = e.state AND w.id = e.id)",
                with.len()
            ));
        }
        let states = match filter.state {
            Some(state) => vec![state],
            None if indexed => FINAL.to_vec(),
            None => Vec::new(),
        };
        if !states.is_empty() {
            sql.push_str(&format!(" AND e.state = ?{}", with.len() + 1));
        }
        sql.push_str(" ORDER BY e.id DESC LIMIT ?2");
        if states.is_empty() {
            return self.rows(&sql, &with, id);
        }
        with.push(Value::Null);
        let mut found = Vec::new();
        for state in states {
            if let Some(last) = with.last_mut() {
                *last = state.as_str().into();
            }
            found.extend(self.rows(&sql, &with, id)?);
        }
        Ok(found)
    }

    /// What retention may delete. `measured` is left to the caller: see [`Store::unmeasured`].
    ///
    /// # Errors
    /// If the database cannot read.
    pub fn expired(&self, scan: Scan) -> Result<Expired, StoreError> {
        let before = |time: Option<Timestamp>| time.map_or(0, |time| sql_number(time.0));
        let find = |index: &str, condition: &str, time: i64| {
            let sql = format!(
                "SELECT id, state, finished, size FROM ended{} WHERE {condition} AND finished < ?1
                 ORDER BY finished LIMIT ?2",
                self.engine.dialect().index(index)
            );
            self.rows(&sql, &[time.into(), LIMIT.into()], ended_build)
        };
        let mut found = Expired {
            unfinished: find("ended_unfinished", "deleted IS NOT NULL AND size IS DISTINCT FROM 0", i64::MAX)?,
            logs: find("ended_logs", "deleted IS NULL AND NOT keep", before(scan.logs_before))?,
            builds: find("ended_empty", "deleted IS NOT NULL AND size = 0", before(scan.builds_before))?,
            ..Expired::default()
        };
        if scan.sizes {
            found.oldest = find("ended_size", "deleted IS NULL AND NOT keep AND size > 0", i64::MAX)?;
        }
        if scan.total {
            let sum = "SELECT CAST(COALESCE(SUM(size), 0) AS BIGINT) FROM ended WHERE deleted IS NULL";
            found.total = self.rows(sum, &[], |row| row.int(0))?.pop().map(i64::unsigned_abs);
        }
        Ok(found)
    }

    /// Builds of whose logs nobody has measured the size, oldest first, and that do not expire by their age; with the
    /// bytes that are in a blob store, if the logs are in one.
    ///
    /// # Errors
    /// If the database cannot read.
    pub fn unmeasured(&self, scan: Scan) -> Result<Vec<(BuildId, Option<u64>)>, StoreError> {
        let after = scan.logs_before.map_or(0, |time| sql_number(time.0));
        let sql = format!(
            "SELECT id, uploaded FROM ended{}
             WHERE deleted IS NULL AND size IS NULL AND (keep OR finished >= ?1) ORDER BY id LIMIT ?2",
            self.engine.dialect().index("ended_unmeasured")
        );
        self.rows(&sql, &[after.into(), LIMIT.into()], |row| Ok((id(row)?, row.opt_int(1)?.map(i64::unsigned_abs))))
    }

    /// Which of these builds have no logs any more: retention has deleted them, or the logs alone.
    ///
    /// # Errors
    /// If the database cannot read.
    pub fn without_logs(&self, ids: Vec<BuildId>) -> Result<Vec<BuildId>, StoreError> {
        let highest = self.highest_deleted()?;
        let sql = format!(
            "SELECT builds.id, ended.deleted IS NOT NULL AND ended.size IS NOT DISTINCT FROM 0
             FROM builds LEFT JOIN ended ON ended.id = builds.id WHERE {}",
            self.listed("builds.id")
        );
        let known = self.rows(&sql, &[json(&ids).into()], |row| Ok((id(row)?, row.flag(1)?)))?;
        let known: BTreeMap<_, _> = known.into_iter().collect();
        let is_without = |id: &BuildId| known.get(id).copied().unwrap_or(*id <= highest);
        Ok(ids.into_iter().filter(is_without).collect())
    }

    /// The highest number of a build that retention has deleted; 0 if it has deleted none. Below it, a number without a
    /// build is that of a deleted build.
    ///
    /// # Errors
    /// If the database cannot read.
    pub fn highest_deleted(&self) -> Result<BuildId, StoreError> {
        Ok(BuildId(self.fact(HIGHEST_DELETED)?.unwrap_or(0)))
    }

    /// The number of builds that have ended in each state. Reads the whole index, so it is only for the start.
    ///
    /// # Errors
    /// If the database cannot read.
    pub fn count_ended(&self) -> Result<BTreeMap<BuildState, u64>, StoreError> {
        let sql = "SELECT state, COUNT(*) FROM ended GROUP BY state";
        let counts = self.rows_long(sql, &[], |row| Ok((row.text(0)?, row.int(1)?)))?;
        Ok(counts.into_iter().filter_map(|(state, n)| Some((final_state(&state)?, n.unsigned_abs()))).collect())
    }
}

const LIMIT: i64 = BATCH as i64;

/// The final states.
const FINAL: [BuildState; 4] = [BuildState::Success, BuildState::Failure, BuildState::Cancelled, BuildState::Lost];

fn final_state(name: &str) -> Option<BuildState> {
    FINAL.into_iter().find(|state| state.as_str() == name)
}

fn ended_build(row: &mut Row) -> Result<EndedBuild, StoreError> {
    let name = row.text(1)?;
    Ok(EndedBuild {
        id: id(row)?,
        // rouse writes no other state.
        state: final_state(&name).unwrap_or(BuildState::Lost),
        finished: Timestamp(row.int(2)?.unsigned_abs()),
        size: row.opt_int(3)?.map(i64::unsigned_abs),
    })
}

pub(super) fn id(row: &mut Row) -> Result<BuildId, StoreError> {
    Ok(BuildId(row.int(0)?.unsigned_abs()))
}
