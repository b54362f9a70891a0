//! The lease of the ledger: which of the masters that share it writes.
//!
//! The table `lease` has one row. Whoever begins to write increments its epoch, and each transaction fails unless the
//! epoch is its own. A lone master has the lease as long as its connection, by a lock that PostgreSQL drops with it. A
//! master with a claim has it for [`LASTING`] from its last renewal, because another one must be able to take over from a
//! master that is stopped while its connections stay. Times are those of the database, so the clocks of the masters'
//! machines do not matter. The holder measures its own part with a clock that also runs while the machine sleeps, from
//! before it sent the renewal: so it knows that its lease is over before the database does.

use super::connect::Live;
use super::{Shared, explain, tables};
use crate::clock;
use crate::config::PostgresUrl;
use crate::store::{Fellow, StoreError};
use crate::sync::lock;
use rouse_shared::Timestamp;
use std::sync::Weak;
use std::time::Duration;
use tracing::warn;

/// How long a lease lasts after its renewal.
pub(in crate::store) const LASTING: Duration = Duration::from_secs(15);
/// Pause between two renewals, and after one that has failed.
const RENEWAL: Duration = Duration::from_secs(3);
const RETRY: Duration = Duration::from_secs(1);
/// Longest wait for the answer to a renewal.
const PATIENCE: Duration = Duration::from_secs(5);
/// The holder gives the lease up so long before the database does.
const MARGIN: Duration = Duration::from_secs(1);
/// A master that has said nothing for so long is not counted.
const SILENT: Duration = Duration::from_secs(60);
/// Half of the number of the lock that masters take; the other half is the number of the table `lease`.
const LOCK: i32 = 0x726f_7573;
/// Which row of `pg_locks` is that of the lock.
const HELD: &str = "locktype = 'advisory' AND granted AND classid = 1919907187 AND objid = 'lease'::regclass::oid
    AND objsubid = 2 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
const _: () = assert!(LOCK == 1_919_907_187, "the number is written out in the text");

/// The columns and the table that ledgers of earlier versions lack.
const ADDED: &str = r#"
    ALTER TABLE lease ADD COLUMN IF NOT EXISTS instance TEXT, ADD COLUMN IF NOT EXISTS address TEXT,
        ADD COLUMN IF NOT EXISTS since TIMESTAMPTZ;
    CREATE TABLE IF NOT EXISTS masters (
        instance TEXT PRIMARY KEY, holder TEXT NOT NULL, address TEXT NOT NULL, version TEXT NOT NULL,
        broker BOOLEAN NOT NULL, configuration TEXT NOT NULL, since TIMESTAMPTZ NOT NULL, seen TIMESTAMPTZ NOT NULL)"#;

/// What is known here about the lease of this process.
#[derive(Default)]
pub(super) struct Tenure {
    /// Until when it lasts, by the clock of the machine since it was started.
    until: Duration,
    /// Who has taken it.
    deposed_by: Option<String>,
    /// Whether another master waited for it at the last renewal. Otherwise nobody takes it, and it need not be given up.
    awaited: bool,
}

impl Tenure {
    /// Why this master must not act any more.
    pub(super) fn over(&self) -> Option<String> {
        if let Some(holder) = &self.deposed_by {
            return Some(format!("another master has taken over the ledger ({holder})"));
        }
        (self.awaited && clock::since_boot() + MARGIN >= self.until)
            .then(|| "the lease of the ledger could not be renewed in time, and another master waits for it".to_owned())
    }
}

/// The row of the lease.
pub(super) struct Row {
    pub epoch: i64,
    pub holder: String,
    pub instance: Option<String>,
    pub address: Option<String>,
    /// How long it lasts, seconds; absent if it lasts as long as the holder's connection.
    pub left: Option<f64>,
    /// Whether a session has the lock.
    pub locked: bool,
}

/// Adds what a ledger of an earlier version lacks.
pub(super) async fn prepare(live: &Live, url: &PostgresUrl) -> Result<(), StoreError> {
    let sql = "SELECT to_regclass('masters') IS NULL, (SELECT value FROM ledger WHERE key = 'version')";
    let row = live.client.query_one(sql, &[]).await.map_err(|error| explain::error(url, &error))?;
    if row.get(0) {
        live.client.batch_execute(ADDED).await.map_err(|error| explain::error(url, &error))?;
    }
    let version: Option<String> = row.get(1);
    let version = version.and_then(|version| version.parse().ok()).ok_or(StoreError::Column(1))?;
    tables::add(live, url, version).await
}

pub(super) async fn read(live: &Live, url: &PostgresUrl) -> Result<Row, StoreError> {
    let sql = format!(
        "SELECT epoch, holder, instance, address, extract(epoch FROM until - clock_timestamp())::float8,
             EXISTS (SELECT FROM pg_locks WHERE {HELD}) FROM lease"
    );
    let row = live.client.query_one(&sql, &[]).await.map_err(|error| explain::error(url, &error))?;
    Ok(Row {
        epoch: row.get(0),
        holder: row.get(1),
        instance: row.get(2),
        address: row.get(3),
        left: row.get(4),
        locked: row.get(5),
    })
}

/// Takes the lock that one session holds. Returns false if another one has it.
pub(super) async fn take_lock(live: &Live, url: &PostgresUrl) -> Result<bool, StoreError> {
    let sql = format!("SELECT pg_try_advisory_lock({LOCK}, 'lease'::regclass::oid::bigint::bit(32)::int)");
    live.client.query_one(&sql, &[]).await.map(|row| row.get(0)).map_err(|error| explain::error(url, &error))
}

/// Ends the session that has the lock: its master has lost the lease, or was a former process of this one.
pub(super) async fn end_holder(live: &Live, url: &PostgresUrl) -> Result<(), StoreError> {
    let sql = format!("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE {HELD} AND pid <> pg_backend_pid()");
    live.client.query(&sql, &[]).await.map(drop).map_err(|error| explain::error(url, &error))
}

/// Begins the epoch after this one, and returns its number; nothing if another master has begun it.
pub(super) async fn begin(live: &Live, shared: &Shared, epoch: i64) -> Result<Option<i64>, StoreError> {
    let url = shared.url();
    let before = clock::since_boot();
    let claim = shared.claim.as_ref();
    let sql = "UPDATE lease SET epoch = epoch + 1, holder = $1, instance = $2, address = $3, since = clock_timestamp(),
                   until = clock_timestamp() + $4 * interval '1 second'
               WHERE epoch = $5 RETURNING epoch";
    let (instance, address) = (claim.map(|c| c.instance.as_str()), claim.map(|c| c.address.as_str()));
    let lasting = claim.map(|_| LASTING.as_secs_f64());
    let found = live.client.query_opt(sql, &[&shared.holder, &instance, &address, &lasting, &epoch]).await;
    let begun = found.map_err(|error| explain::error(&url, &error))?.map(|row| row.get(0));
    if begun.is_some() {
        *lock(&shared.tenure) = Tenure { until: before + LASTING, ..Tenure::default() };
    }
    Ok(begun)
}

/// Renews the lease until it is another's or nobody uses it any more.
pub(super) async fn keep(shared: Weak<Shared>, epoch: i64) {
    let mut live = None;
    loop {
        let pause = {
            let Some(shared) = shared.upgrade() else { return };
            let before = clock::since_boot();
            match tokio::time::timeout(PATIENCE, renew(&shared, &mut live, epoch)).await {
                Ok(Ok(Some(awaited))) => {
                    let mut tenure = lock(&shared.tenure);
                    (tenure.until, tenure.awaited) = (before + LASTING, awaited);
                    RENEWAL
                }
                Ok(Ok(None)) => {
                    let holder = match &live {
                        Some(live) => read(live, &shared.url()).await.map(|row| row.holder).unwrap_or_default(),
                        None => String::new(),
                    };
                    lock(&shared.tenure).deposed_by = Some(holder);
                    return;
                }
                Ok(Err(error)) => {
                    live = None;
                    warn!("the lease of the ledger was not renewed: {error}");
                    RETRY
                }
                Err(_) => {
                    live = None;
                    warn!("the lease of the ledger was not renewed: PostgreSQL does not answer");
                    RETRY
                }
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Returns whether another master waits, or nothing if the epoch is over.
async fn renew(shared: &Shared, live: &mut Option<Live>, epoch: i64) -> Result<Option<bool>, StoreError> {
    let url = shared.url();
    let failed = |error| explain::error(&url, &error);
    if live.is_none() {
        *live = Some(Live::open(&url, PATIENCE).await?);
    }
    let Some(live) = live else { return Err(StoreError::NoAnswer) };
    let sql = "UPDATE lease SET until = clock_timestamp() + $1 * interval '1 second' WHERE epoch = $2";
    let renewed = live.client.execute(sql, &[&LASTING.as_secs_f64(), &epoch]).await.map_err(failed)?;
    if renewed == 0 {
        return Ok(None);
    }
    enter(live, shared).await?;
    let Some(claim) = &shared.claim else { return Ok(Some(false)) };
    let sql = "SELECT count(*) > 0 FROM masters
               WHERE instance <> $1 AND seen > clock_timestamp() - $2 * interval '1 second'";
    let row = live.client.query_one(sql, &[&claim.instance, &SILENT.as_secs_f64()]).await.map_err(failed)?;
    Ok(Some(row.get(0)))
}

/// Ends the lease now, so that another master need not wait.
pub(super) async fn give_up(shared: &Shared) -> Result<(), StoreError> {
    let url = shared.url();
    let failed = |error| explain::error(&url, &error);
    let Some(claim) = &shared.claim else { return Ok(()) };
    let live = Live::open(&url, PATIENCE).await?;
    let sql = "UPDATE lease SET until = clock_timestamp() WHERE instance = $1 AND until > clock_timestamp()";
    live.client.execute(sql, &[&claim.instance]).await.map_err(failed)?;
    live.client.execute("DELETE FROM masters WHERE instance = $1", &[&claim.instance]).await.map(drop).map_err(failed)
}

/// Says that this master is there.
pub(super) async fn enter(live: &Live, shared: &Shared) -> Result<(), StoreError> {
    let Some(claim) = &shared.claim else { return Ok(()) };
    let sql = "INSERT INTO masters (instance, holder, address, version, broker, configuration, since, seen)
               VALUES ($1, $2, $3, $4, $5, $6, clock_timestamp(), clock_timestamp())
               ON CONFLICT (instance) DO UPDATE SET holder = excluded.holder, address = excluded.address,
                   version = excluded.version, broker = excluded.broker, configuration = excluded.configuration,
                   seen = excluded.seen,
                   since = CASE WHEN masters.holder = excluded.holder THEN masters.since ELSE excluded.since END";
    let (broker, version) = (claim.reaches_broker(), env!("CARGO_PKG_VERSION"));
    let configuration = lock(&claim.configuration).clone();
    live.client
        .execute(sql, &[&claim.instance, &shared.holder, &claim.address, &version, &broker, &configuration])
        .await
        .map(drop)
        .map_err(|error| explain::error(&shared.url(), &error))
}

/// The masters that share the ledger, the active one first.
pub(super) async fn fellows(live: &Live, url: &PostgresUrl) -> Result<Vec<Fellow>, StoreError> {
    let sql = "SELECT masters.holder, masters.address, masters.version, masters.broker, masters.configuration,
                   extract(epoch FROM masters.since)::float8, extract(epoch FROM masters.seen)::float8,
                   masters.instance = lease.instance AND lease.until > clock_timestamp(), lease.epoch, masters.instance
               FROM masters, lease WHERE masters.seen > clock_timestamp() - interval '1 day'
               ORDER BY 8 DESC NULLS LAST, masters.holder";
    let rows = live.client.query(sql, &[]).await.map_err(|error| explain::error(url, &error))?;
    let time = |seconds: f64| Timestamp((seconds * 1_000.0) as u64);
    Ok(rows
        .iter()
        .map(|row| {
            let active = row.get::<_, Option<bool>>(7).unwrap_or(false);
            Fellow {
                holder: row.get(0),
                address: row.get(1),
                version: row.get(2),
                broker: row.get(3),
                configuration: row.get(4),
                since: time(row.get(5)),
                seen: time(row.get(6)),
                epoch: active.then(|| row.get::<_, i64>(8).unsigned_abs()),
                instance: row.get(9),
            }
        })
        .collect())
}

/// Looks at the lease for a master that waits for it, and says that it is there.
pub(super) async fn look(shared: &Shared, live: &mut Option<Live>) -> Result<Row, StoreError> {
    let url = shared.url();
    let work = async {
        if live.is_none() {
            let new = Live::open(&url, PATIENCE).await?;
            prepare(&new, &url).await?;
            *live = Some(new);
        }
        let Some(live) = live.as_ref() else { return Err(StoreError::NoAnswer) };
        enter(live, shared).await?;
        read(live, &url).await
    };
    let late = || StoreError::Postgres(format!("PostgreSQL at {} does not answer", url.place()));
    let looked = tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| Err(late()));
    if looked.is_err() {
        *live = None;
    }
    looked
}
