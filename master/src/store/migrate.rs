//! Takes over a ledger that an earlier version has written: one step for each version of the tables, all in one
//! transaction, so a ledger is of the old version or of the new one and never of both.

use super::{SCHEMA, StoreError};
use rusqlite::{Connection, Transaction};

/// Brings a ledger of the tables' version `from` up to this version.
///
/// # Errors
/// If SQLite cannot commit. A row that is not JSON is left as it is: reading it names it, if it is ever read.
pub(super) fn bring_up(connection: &mut Connection, from: i32) -> Result<(), StoreError> {
    if from == SCHEMA {
        return Ok(());
    }
    let transaction = connection.transaction()?;
    if from < 2 {
        to_2(&transaction)?;
    }
    transaction.pragma_update(None, "user_version", SCHEMA)?;
    transaction.commit()?;
    Ok(())
}

/// Version 2 has the clouds' words for hosts: states, and the names of what is kept of a host, a session, a worker and an
/// orphan.
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
    // A worker that was to be drained and switched off: it stays drained until somebody resumes it.
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

/// Gives a field of an object of each row another name, if the row has the object and the field. Its type stays.
fn rename(ledger: &Transaction<'_>, table: &str, object: &str, old: &str, new: &str) -> Result<(), StoreError> {
    let sql = format!(
        "UPDATE {table} SET row = json_remove(json_set(row, ?2, json(row -> ?1)), ?1)
         WHERE json_valid(row) AND json_type(row, ?1) IS NOT NULL"
    );
    ledger.execute(&sql, [format!("{object}.{old}"), format!("{object}.{new}")])?;
    Ok(())
}
