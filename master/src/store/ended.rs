//! Builds that have ended: a narrow table beside `builds`, with what they are listed and deleted by. A query reads about
//! as many rows as it returns, however many builds there are. Only a listing that combines several of worker, name and
//! properties may read more.

use super::{Store, StoreError, sql_id, sql_number, write_fact};
use crate::core::blobs::Upload;
use crate::core::build::{Build, BuildState};
use crate::core::retention::{BATCH, EndedBuild, Expired, Scan};
use crate::core::view::BuildFilter;
use rouse_shared::{BuildId, Timestamp};
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension as _, Params, Row, params, params_from_iter};
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
    CREATE INDEX IF NOT EXISTS ended_unfinished ON ended (finished) WHERE deleted IS NOT NULL AND size IS NOT 0;
    CREATE INDEX IF NOT EXISTS ended_empty ON ended (finished) WHERE deleted IS NOT NULL AND size = 0;";

/// The highest number of a build that retention has deleted.
pub(super) const HIGHEST_DELETED: &str = "highest_deleted_build";

/// The properties that a build requires, one a row.
const PROPERTIES: &str = "SELECT property.key || '=' || property.value, builds.state, builds.id
    FROM builds, json_each(builds.spec, '$.requirement.Where') AS property";

/// Adds the builds that have ended and meet the condition.
pub(super) fn add(to: &Connection, condition: &str, with: impl Params + Copy) -> Result<(), StoreError> {
    let condition =
        format!("NOT builds.live AND json_valid(builds.spec) AND json_valid(builds.status) AND {condition}");
    let sql = format!(
        "INSERT INTO ended (id, state, worker, name, finished, keep)
         SELECT id, state, json_extract(status, '$.attempts[#-1].worker'), NULLIF(json_extract(spec, '$.name'), ''),
                COALESCE(json_extract(status, '$.finished'), json_extract(status, '$.created'), 0),
                COALESCE(json_extract(spec, '$.keep'), 0)
         FROM builds WHERE {condition}
         ON CONFLICT (id) DO UPDATE SET state = excluded.state, worker = excluded.worker, name = excluded.name,
             finished = excluded.finished, keep = excluded.keep"
    );
    to.prepare_cached(&sql)?.execute(with)?;
    let sql = format!("INSERT OR REPLACE INTO ended_where {PROPERTIES} WHERE {condition}");
    to.prepare_cached(&sql)?.execute(with)?;
    Ok(())
}

pub(super) fn set_size(to: &Connection, id: BuildId, bytes: u64) -> Result<(), StoreError> {
    let sql = "UPDATE ended SET size = ?2 WHERE id = ?1 AND deleted IS NULL";
    to.prepare_cached(sql)?.execute(params![sql_id(id), sql_number(bytes)])?;
    Ok(())
}

pub(super) fn expire_logs(to: &Connection, id: BuildId, at: Timestamp) -> Result<(), StoreError> {
    // If they took no space, there is nothing to delete; the files are looked for all the same.
    let sql = "UPDATE ended SET deleted = ?2, size = NULL WHERE id = ?1 AND NOT keep";
    to.prepare_cached(sql)?.execute(params![sql_id(id), sql_number(at.0)])?;
    Ok(())
}

pub(super) fn uploaded(to: &Connection, id: BuildId, store: &str, upload: Upload) -> Result<(), StoreError> {
    // Retention may delete the logs at the same time. It looks for them in the store that is named here. What is complete
    // stays so: the files may be gone.
    let bytes = match upload {
        Upload::Begun => None,
        Upload::Complete(bytes) => Some(sql_number(bytes)),
    };
    let sql = "UPDATE ended SET store = ?2, uploaded = ?3 WHERE id = ?1 AND uploaded IS NULL";
    to.prepare_cached(sql)?.execute(params![sql_id(id), store, bytes])?;
    Ok(())
}

pub(super) fn logs_deleted(to: &Connection, id: BuildId) -> Result<(), StoreError> {
    to.prepare_cached("UPDATE ended SET size = 0 WHERE id = ?1 AND deleted IS NOT NULL")?.execute([sql_id(id)])?;
    Ok(())
}

/// Deletes a build. The highest number is recorded, because it may have been that of the newest build.
pub(super) fn delete(from: &Connection, id: BuildId) -> Result<(), StoreError> {
    // One by one: SQLite would search all builds with a property and a state for those in a list.
    let sql = format!("{PROPERTIES} WHERE builds.id = ?1 AND json_valid(builds.spec)");
    let mut statement = from.prepare_cached(&sql)?;
    let properties = statement.query_map([sql_id(id)], |row| Ok((row.get(0)?, row.get(1)?)))?;
    for (property, state) in properties.collect::<Result<Vec<(String, String)>, _>>()? {
        let sql = "DELETE FROM ended_where WHERE property = ?1 AND state = ?2 AND id = ?3";
        from.prepare_cached(sql)?.execute(params![property, state, sql_id(id)])?;
    }
    from.prepare_cached("DELETE FROM ended WHERE id = ?1")?.execute([sql_id(id)])?;
    if from.prepare_cached("DELETE FROM builds WHERE id = ?1 AND NOT live")?.execute([sql_id(id)])? == 0 {
        return Ok(());
    }
    let highest = "SELECT COALESCE(MAX(value), 0) FROM facts WHERE name = ?1";
    let highest: i64 = from.prepare_cached(highest)?.query_row([HIGHEST_DELETED], |row| row.get(0))?;
    if sql_id(id) > highest {
        write_fact(from, HIGHEST_DELETED, id.0)?;
    }
    Ok(())
}

impl Store {
    /// Builds that have ended, newest first. The filter's state is a final one, or absent.
    ///
    /// # Errors
    /// If a row cannot be read.
    pub fn ended_builds(&self, filter: &BuildFilter) -> Result<Vec<Build>, StoreError> {
        let mut ids = self.ended_ids(filter)?;
        // Each of several queries has found the newest of its state.
        ids.sort_unstable_by(|a, b| b.cmp(a));
        ids.truncate(filter.limit);
        let mut builds = Vec::with_capacity(ids.len());
        for id in ids {
            builds.extend(self.build(id)?);
        }
        Ok(builds)
    }

    fn ended_ids(&self, filter: &BuildFilter) -> Result<Vec<BuildId>, StoreError> {
        let text = |text: &str| Value::Text(text.to_owned());
        let mut properties = filter.properties.iter().map(|(key, value)| text(&format!("{key}={value}")));
        let mut worker = filter.worker.as_ref().map(|worker| text(worker.as_str()));
        // The column whose index is read: the one that likely fits the fewest builds.
        let (from, first) = if let Some(name) = &filter.name {
            ("ended AS e INDEXED BY ended_name WHERE e.name = ?1 AND", Some(text(name)))
        } else if let Some(property) = properties.next() {
            ("ended_where AS e WHERE e.property = ?1 AND", Some(property))
        } else if let Some(worker) = worker.take() {
            ("ended AS e INDEXED BY ended_worker WHERE e.worker = ?1 AND", Some(worker))
        } else if filter.state.is_some() {
            ("ended AS e INDEXED BY ended_state WHERE ?1 IS NULL AND", None)
        } else {
            ("ended AS e WHERE ?1 IS NULL AND ?2 IS NULL AND", None)
        };
        let states = match filter.state {
            Some(state) => vec![text(state.as_str())],
            None if first.is_none() => vec![Value::Null],
            None => FINAL.map(|state| text(state.as_str())).to_vec(),
        };
        let mut sql = format!("SELECT e.id FROM {from} e.id < ?3");
        if states != [Value::Null] {
            sql.push_str(" AND e.state = ?2");
        }
        let before = filter.before.map_or(i64::MAX, sql_id);
        let limit = i64::try_from(filter.limit).unwrap_or(i64::MAX);
        let mut with = vec![first.unwrap_or(Value::Null), Value::Null, before.into(), limit.into()];
        if let Some(worker) = worker {
            with.push(worker);
            sql.push_str(&format!(
                " AND EXISTS (SELECT 1 FROM ended WHERE ended.id = e.id AND ended.worker = ?{})",
                with.len()
            ));
        }
        for property in properties {
            with.push(property);
            sql.push_str(&format!(
                " AND EXISTS (SELECT 1 FROM ended_where AS w WHERE w.property = ?{} AND w.state = e.state AND w.id = e.id)",
                with.len()
            ));
        }
        sql.push_str(" ORDER BY e.id DESC LIMIT ?4");
        let mut found = Vec::new();
        for state in states {
            with[1] = state;
            found.extend(self.ended(&sql, params_from_iter(&with), id)?);
        }
        Ok(found)
    }

    /// What retention may delete. `measured` is left to the caller: see [`Store::unmeasured`].
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn expired(&self, scan: Scan) -> Result<Expired, StoreError> {
        let before = |time: Option<Timestamp>| time.map_or(0, |time| sql_number(time.0));
        let find = |from: &str, time: i64| {
            let sql = format!(
                "SELECT id, state, finished, size FROM ended INDEXED BY {from} AND finished < ?1 ORDER BY finished LIMIT ?2"
            );
            self.ended(&sql, [time, LIMIT], ended_build)
        };
        let mut found = Expired {
            unfinished: find("ended_unfinished WHERE deleted IS NOT NULL AND size IS NOT 0", i64::MAX)?,
            logs: find("ended_logs WHERE deleted IS NULL AND NOT keep", before(scan.logs_before))?,
            builds: find("ended_empty WHERE deleted IS NOT NULL AND size = 0", before(scan.builds_before))?,
            ..Expired::default()
        };
        if scan.sizes {
            found.oldest = find("ended_size WHERE deleted IS NULL AND NOT keep AND size > 0", i64::MAX)?;
        }
        if scan.total {
            let sum = "SELECT COALESCE(SUM(size), 0) FROM ended WHERE deleted IS NULL";
            found.total = self.ended(sum, [], |row| row.get::<_, i64>(0))?.pop().map(i64::unsigned_abs);
        }
        Ok(found)
    }

    /// Builds of whose logs nobody has measured the size, oldest first, and that do not expire by their age; with the
    /// bytes that are in a blob store, if the logs are in one.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn unmeasured(&self, scan: Scan) -> Result<Vec<(BuildId, Option<u64>)>, StoreError> {
        let after = scan.logs_before.map_or(0, |time| sql_number(time.0));
        self.ended(
            "SELECT id, uploaded FROM ended INDEXED BY ended_unmeasured
             WHERE deleted IS NULL AND size IS NULL AND (keep OR finished >= ?1) ORDER BY id LIMIT ?2",
            [after, LIMIT],
            |row| Ok((id(row)?, row.get::<_, Option<i64>>(1)?.map(i64::unsigned_abs))),
        )
    }

    /// Which of these builds have no logs any more: retention has deleted them, or the logs alone.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn without_logs(&self, ids: Vec<BuildId>) -> Result<Vec<BuildId>, StoreError> {
        let highest = self.highest_deleted()?;
        let sql = "SELECT ended.deleted IS NOT NULL AND ended.size IS 0
                   FROM builds LEFT JOIN ended ON ended.id = builds.id WHERE builds.id = ?1";
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut without = Vec::new();
        for id in ids {
            let known = statement.query_row([sql_id(id)], |row| row.get(0)).optional()?;
            if known.unwrap_or(id <= highest) {
                without.push(id);
            }
        }
        Ok(without)
    }

    /// The highest number of a build that retention has deleted; 0 if it has deleted none. Below it, a number without a
    /// build is that of a deleted build.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn highest_deleted(&self) -> Result<BuildId, StoreError> {
        Ok(BuildId(self.fact(HIGHEST_DELETED)?.unwrap_or(0)))
    }

    /// The number of builds that have ended in each state. Reads the whole index, so it is only for the start.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn count_ended(&self) -> Result<BTreeMap<BuildState, u64>, StoreError> {
        let counts: Vec<(String, i64)> =
            self.ended("SELECT state, COUNT(*) FROM ended GROUP BY state", [], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(counts.into_iter().filter_map(|(state, n)| Some((final_state(&state)?, n.unsigned_abs()))).collect())
    }

    pub(super) fn ended<T>(
        &self,
        sql: &str,
        with: impl Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, StoreError> {
        Ok(self.connection.prepare_cached(sql)?.query_map(with, read)?.collect::<Result<_, _>>()?)
    }
}

const LIMIT: i64 = BATCH as i64;

/// The final states.
const FINAL: [BuildState; 4] = [BuildState::Success, BuildState::Failure, BuildState::Cancelled, BuildState::Lost];

fn final_state(name: &str) -> Option<BuildState> {
    FINAL.into_iter().find(|state| state.as_str() == name)
}

fn ended_build(row: &Row<'_>) -> rusqlite::Result<EndedBuild> {
    let name: String = row.get(1)?;
    Ok(EndedBuild {
        id: id(row)?,
        // rouse writes no other state.
        state: final_state(&name).unwrap_or(BuildState::Lost),
        finished: Timestamp(row.get::<_, i64>(2)?.unsigned_abs()),
        size: row.get::<_, Option<i64>>(3)?.map(i64::unsigned_abs),
    })
}

pub(super) fn id(row: &Row<'_>) -> rusqlite::Result<BuildId> {
    Ok(BuildId(row.get::<_, i64>(0)?.unsigned_abs()))
}

#[cfg(test)]
#[path = "ended_tests.rs"]
mod tests;
