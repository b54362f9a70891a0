//! The tables in PostgreSQL. They are those of SQLite, with these differences: numbers of 64 bits and true or false have
//! their own types, texts are ordered by their bytes, `builds` has three more columns, and `ledger` and `lease` are new.

use super::connect::Live;
use super::explain;
use crate::config::PostgresUrl;
use crate::store::{SCHEMA, StoreError, journal};
use std::fmt::Write as _;

/// Makes the tables, and records their version.
pub(super) fn create() -> String {
    let mut sql = String::from(TABLES);
    sql.push_str(journal::POSTGRES_TABLE);
    // Writing to a string does not fail.
    write!(sql, "INSERT INTO ledger (key, value) VALUES ('version', '{SCHEMA}');").ok();
    sql
}

/// The oldest version of the tables that can be migrated.
pub(super) const OLDEST: i32 = 5;

/// What a version of the tables has in addition to the one before. It does no harm to a master that does not know it, and
/// nothing if it is there already: a master that stands by may be newer than the active one.
const ADDED: [(i32, &str); 1] = [(6, journal::POSTGRES_TABLE)];

/// Adds the tables that a ledger of this earlier version lacks. Its version stays.
pub(super) async fn add(live: &Live, url: &PostgresUrl, version: i32) -> Result<(), StoreError> {
    for (_, sql) in ADDED.into_iter().filter(|(added, _)| *added > version) {
        live.client.batch_execute(sql).await.map_err(|error| explain::error(url, &error))?;
    }
    Ok(())
}

/// Records that the tables are those of this version. Only for the master that has the lease: an older one cannot use the
/// ledger after that.
pub(super) async fn migrated(live: &Live, url: &PostgresUrl) -> Result<(), StoreError> {
    let sql = "UPDATE ledger SET value = $1 WHERE key = 'version' AND value <> $1";
    live.client.execute(sql, &[&SCHEMA.to_string()]).await.map(drop).map_err(|error| explain::error(url, &error))
}

/// `ledger` has: `version`, that of the tables; `master`, the name of the master whose ledger it is. `lease` has one row:
/// each master that begins to write increments the epoch (lease.rs). `until` is absent if the lease lasts as long as the
/// holder's connection.
const TABLES: &str = r#"
    CREATE TABLE ledger (key TEXT COLLATE "C" PRIMARY KEY, value TEXT NOT NULL);
    CREATE TABLE lease (
        one BOOLEAN PRIMARY KEY DEFAULT true CHECK (one), epoch BIGINT NOT NULL, holder TEXT NOT NULL, until TIMESTAMPTZ);
    INSERT INTO lease (epoch, holder) VALUES (0, '');
    CREATE TABLE builds (
        id BIGINT PRIMARY KEY, state TEXT COLLATE "C" NOT NULL, live BOOLEAN NOT NULL,
        message_id TEXT COLLATE "C" UNIQUE, spec TEXT NOT NULL, status TEXT NOT NULL,
        name TEXT COLLATE "C", keep BOOLEAN NOT NULL, properties TEXT[] COLLATE "C" NOT NULL);
    CREATE INDEX builds_live ON builds (id) WHERE live;
    CREATE TABLE hosts (id TEXT COLLATE "C" PRIMARY KEY, row TEXT NOT NULL);
    CREATE TABLE sessions (worker TEXT COLLATE "C" PRIMARY KEY, row TEXT NOT NULL);
    CREATE TABLE workers (name TEXT COLLATE "C" PRIMARY KEY, row TEXT NOT NULL);
    CREATE TABLE images (
        provider TEXT COLLATE "C" NOT NULL, name TEXT COLLATE "C" NOT NULL, row TEXT NOT NULL,
        PRIMARY KEY (provider, name));
    CREATE TABLE places (
        provider TEXT COLLATE "C" NOT NULL, name TEXT COLLATE "C" NOT NULL, row TEXT NOT NULL,
        PRIMARY KEY (provider, name));
    CREATE TABLE news (id BIGINT PRIMARY KEY, row TEXT NOT NULL);
    CREATE TABLE mails (id TEXT COLLATE "C" PRIMARY KEY, row TEXT NOT NULL);
    CREATE TABLE told_orphans (
        provider TEXT COLLATE "C" NOT NULL, handle TEXT COLLATE "C" NOT NULL, row TEXT NOT NULL,
        PRIMARY KEY (provider, handle));
    CREATE TABLE facts (name TEXT COLLATE "C" PRIMARY KEY, value BIGINT NOT NULL);
    CREATE TABLE ended (
        id BIGINT PRIMARY KEY, state TEXT COLLATE "C" NOT NULL, worker TEXT COLLATE "C", name TEXT COLLATE "C",
        finished BIGINT NOT NULL, keep BOOLEAN NOT NULL, size BIGINT, deleted BIGINT, store TEXT, uploaded BIGINT);
    CREATE INDEX ended_state ON ended (state, id);
    CREATE INDEX ended_worker ON ended (worker, state, id) WHERE worker IS NOT NULL;
    CREATE INDEX ended_name ON ended (name, state, id) WHERE name IS NOT NULL;
    CREATE TABLE ended_where (
        property TEXT COLLATE "C" NOT NULL, state TEXT COLLATE "C" NOT NULL, id BIGINT NOT NULL,
        PRIMARY KEY (property, state, id));
    CREATE INDEX ended_logs ON ended (finished) WHERE deleted IS NULL AND NOT keep;
    CREATE INDEX ended_unmeasured ON ended (id) WHERE deleted IS NULL AND size IS NULL;
    CREATE INDEX ended_size ON ended (finished) WHERE deleted IS NULL AND NOT keep AND size > 0;
    CREATE INDEX ended_unfinished ON ended (finished) WHERE deleted IS NOT NULL AND size IS DISTINCT FROM 0;
    CREATE INDEX ended_empty ON ended (finished) WHERE deleted IS NOT NULL AND size = 0;
"#;
