//! Migrates a ledger of an earlier version. There is one step for each version of the tables, and all steps run in one
//! transaction.

use super::{SCHEMA, StoreError};
use rusqlite::{Connection, Transaction};

/// Migrates a ledger from version `from` of the tables to this version.
///
/// # Errors
/// If SQLite cannot commit. A row that is not JSON stays as it is; if it is ever read, the error names it.
pub(super) fn bring_up(connection: &mut Connection, from: i32) -> Result<(), StoreError> {
    if from == SCHEMA {
        return Ok(());
    }
    let transaction = connection.transaction()?;
    if from < 2 {
        to_2(&transaction)?;
    }
    if from < 3 {
        to_3(&transaction)?;
    }
    if from < 4 {
        to_4(&transaction)?;
    }
    if from < 5 {
        to_5(&transaction)?;
    }
    // Version 6 has the journal, whose table is made when the file is opened.
    transaction.pragma_update(None, "user_version", SCHEMA)?;
    transaction.commit()?;
    Ok(())
}

/// Version 2 uses the clouds' words for hosts: for states, and for fields of hosts, sessions, workers and orphans.
fn to_2(ledger: &Transaction<'_>) -> Result<(), StoreError> {
    let states = [
        ("awake", "ready"),
        ("stopped", "suspended"),
        ("waking", "resuming"),
        ("stopping", "terminating"),
        ("gone", "terminated"),
    ];
    for (old, new) in states {
        let sql = "UPDATE hosts SET row = json_replace(row, '$.state', ?2) WHERE json_valid(row) AND json_extract(row, '$.state') = ?1";
        ledger.execute(sql, [old, new])?;
    }
    for (old, new) in [
        ("order", "launch"),
        ("asleep", "suspended"),
        ("woken", "resumed"),
        ("gone", "terminated"),
        ("woken_for", "started_for"),
    ] {
        rename(ledger, "hosts", "$", old, new)?;
    }
    rename(ledger, "sessions", "$", "stray", "impostor")?;
    rename(ledger, "workers", "$", "wish", "desired")?;
    ledger.execute("UPDATE workers SET row = json_remove(row, '$.off') WHERE json_valid(row)", [])?;
    // A worker that was stopped stays drained until somebody resumes it.
    let stopped = "UPDATE workers SET row = json_replace(row, '$.desired', 'Drain')
                   WHERE json_valid(row) AND json_extract(row, '$.desired') = 'Stop'";
    ledger.execute(stopped, [])?;
    rename(ledger, "news", "$.item.what.orphan", "stopped", "terminated")?;
    let most: i64 = ledger.query_row(
        "SELECT COALESCE(MAX(json_array_length(row, '$.items')), 0) FROM mails WHERE json_valid(row)",
        [],
        |r| r.get(0),
    )?;
    for item in 0..most {
        rename(ledger, "mails", &format!("$.items[{item}].what.orphan"), "stopped", "terminated")?;
    }
    Ok(())
}

/// Version 3 keeps no hosts that are terminated.
fn to_3(ledger: &Transaction<'_>) -> Result<(), StoreError> {
    let has_live = "SELECT EXISTS (SELECT 1 FROM pragma_table_info('hosts') WHERE name = 'live')";
    if ledger.query_row(has_live, [], |row| row.get(0))? {
        ledger.execute("DELETE FROM hosts WHERE NOT live", [])?;
        ledger.execute("DROP INDEX IF EXISTS hosts_live", [])?;
        ledger.execute("ALTER TABLE hosts DROP COLUMN live", [])?;
    }
    Ok(())
}

/// Version 4 lists ended builds in a table of their own.
fn to_4(ledger: &Transaction<'_>) -> Result<(), StoreError> {
    ledger.execute("DROP INDEX IF EXISTS builds_state", [])?;
    // A row that is not JSON is left out.
    let ended = "NOT builds.live AND json_valid(builds.spec) AND json_valid(builds.status)";
    ledger.execute_batch(&format!(
        "INSERT OR REPLACE INTO ended (id, state, worker, name, finished, keep)
         SELECT id, state, json_extract(status, '$.attempts[#-1].worker'), NULLIF(json_extract(spec, '$.name'), ''),
                COALESCE(json_extract(status, '$.finished'), json_extract(status, '$.created'), 0),
                COALESCE(json_extract(spec, '$.keep'), 0)
         FROM builds WHERE {ended};
         INSERT OR REPLACE INTO ended_where
         SELECT property.key || '=' || property.value, builds.state, builds.id
         FROM builds, json_each(builds.spec, '$.requirement.Where') AS property WHERE {ended};"
    ))?;
    Ok(())
}

/// Version 5 knows which logs are in a blob store.
fn to_5(ledger: &Transaction<'_>) -> Result<(), StoreError> {
    let has_store = "SELECT EXISTS (SELECT 1 FROM pragma_table_info('ended') WHERE name = 'store')";
    if !ledger.query_row(has_store, [], |row| row.get(0))? {
        ledger
            .execute_batch("ALTER TABLE ended ADD COLUMN store TEXT; ALTER TABLE ended ADD COLUMN uploaded INTEGER;")?;
    }
    Ok(())
}

/// Renames a field in an object of each row, if the row has the object and the field. Its type stays.
fn rename(ledger: &Transaction<'_>, table: &str, object: &str, old: &str, new: &str) -> Result<(), StoreError> {
    let sql = format!(
        "UPDATE {table} SET row = json_remove(json_set(row, ?2, json(row -> ?1)), ?1)
         WHERE json_valid(row) AND json_type(row, ?1) IS NOT NULL"
    );
    ledger.execute(&sql, [format!("{object}.{old}"), format!("{object}.{new}")])?;
    Ok(())
}
