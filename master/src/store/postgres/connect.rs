//! One connection to PostgreSQL: its settings, and the checks that come before it is used.

use super::{explain, tables, tls};
use crate::config::{PostgresHost, PostgresUrl, SslMode};
use crate::store::{SCHEMA, StoreError};
use std::collections::HashMap;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_postgres::config::{SslMode as Ssl, TargetSessionAttrs};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, Statement};

/// How long it may take to connect to one host, and how long data may stay without an answer on the way.
const CONNECT: Duration = Duration::from_secs(3);
const UNANSWERED: Duration = Duration::from_secs(10);
/// The oldest PostgreSQL that is supported, as it numbers itself.
const OLDEST: i64 = 130_000;
/// Prepared statements that one connection keeps. The texts of a listing depend on its filter.
const PREPARED: usize = 128;

/// A connection, with the statements that it has prepared.
pub(super) struct Live {
    pub client: Client,
    prepared: HashMap<String, Statement>,
    connection: JoinHandle<()>,
}

impl Drop for Live {
    fn drop(&mut self) {
        // A server that does not answer would keep it open.
        self.connection.abort();
    }
}

impl Live {
    /// Connects, and makes the session's settings. `limit` is that of each statement.
    pub(super) async fn open(url: &PostgresUrl, limit: Duration) -> Result<Self, StoreError> {
        let tls = tls::connector(url)?;
        let failed = |error| explain::error(url, &error);
        let (client, connection) = config(url).connect(tls).await.map_err(failed)?;
        let connection = tokio::spawn(async move {
            // Whoever waits for an answer gets the error.
            drop(connection.await);
        });
        let live = Self { client, prepared: HashMap::new(), connection };
        live.client.batch_execute(&settings(limit)).await.map_err(failed)?;
        // Since version 14, and not on every system.
        drop(live.client.batch_execute("SET client_connection_check_interval = '5s'").await);
        Ok(live)
    }

    /// The text prepared by the server. `?1` is `$1` in PostgreSQL.
    pub(super) async fn prepare(&mut self, sql: &str) -> Result<Statement, tokio_postgres::Error> {
        if let Some(known) = self.prepared.get(sql) {
            return Ok(known.clone());
        }
        if self.prepared.len() >= PREPARED {
            self.prepared.clear();
        }
        let statement = self.client.prepare(&sql.replace('?', "$")).await?;
        self.prepared.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }
}

fn config(url: &PostgresUrl) -> Config {
    let mut config = Config::new();
    for (host, port) in &url.hosts {
        match host {
            PostgresHost::Tcp(name) => config.host(name),
            PostgresHost::Socket(dir) => config.host_path(dir),
        };
        config.port(*port);
    }
    config.user(&url.user).dbname(&url.database).application_name("rouse");
    if let Some(password) = &url.password {
        config.password(password.expose());
    }
    if let Some(options) = &url.options {
        config.options(options);
    }
    config.ssl_mode(match url.ssl_mode {
        SslMode::Disable => Ssl::Disable,
        SslMode::Prefer => Ssl::Prefer,
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => Ssl::Require,
    });
    config.connect_timeout(CONNECT).tcp_user_timeout(UNANSWERED);
    config.keepalives_idle(Duration::from_secs(5)).keepalives_interval(Duration::from_secs(2)).keepalives_retries(3);
    if url.hosts.len() > 1 {
        // One of them can be written.
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
    }
    config
}

/// A commit is on the disk before it is answered. A server whose client is gone notices it within a quarter of a minute,
/// because nobody else can write until then. A transaction that its client does not end is ended.
fn settings(limit: Duration) -> String {
    format!(
        "SELECT set_config('synchronous_commit', 'on', false)
             WHERE current_setting('synchronous_commit') NOT IN ('on', 'remote_apply');
         SET statement_timeout = '{}ms'; SET lock_timeout = '5s'; SET idle_in_transaction_session_timeout = '10s';
         SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 3; SET tcp_keepalives_count = 3;
         SET client_min_messages = warning",
        limit.as_millis()
    )
}

/// What the server says about itself.
struct Server {
    version: i64,
    encoding: String,
    read_only: bool,
    /// The version of the tables and the name of the master; absent: there are none.
    ledger: Option<(String, String)>,
}

async fn ask(live: &Live, url: &PostgresUrl) -> Result<Server, StoreError> {
    let failed = |error| explain::error(url, &error);
    let sql = "SELECT current_setting('server_version_num')::bigint, current_setting('server_encoding'),
                      pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean,
                      to_regclass('ledger') IS NOT NULL, to_regclass('builds') IS NOT NULL";
    let row = live.client.query_one(sql, &[]).await.map_err(failed)?;
    let (has_ledger, has_builds): (bool, bool) = (row.get(3), row.get(4));
    let mut server = Server { version: row.get(0), encoding: row.get(1), read_only: row.get(2), ledger: None };
    if server.version < OLDEST {
        return Err(StoreError::Postgres(format!(
            "PostgreSQL at {} has version {}, and rouse needs 13 or newer",
            url.place(),
            server.version / 10_000
        )));
    }
    if server.encoding != "UTF8" {
        return Err(StoreError::Postgres(format!(
            "the database {} at {} has the encoding {}: create one with `createdb --encoding=UTF8 --template=template0 \
             --owner={} {}`",
            url.database,
            url.place(),
            server.encoding,
            url.user,
            url.database
        )));
    }
    if has_ledger {
        let sql =
            "SELECT (SELECT value FROM ledger WHERE key = 'version'), (SELECT value FROM ledger WHERE key = 'master')";
        let row = live.client.query_one(sql, &[]).await.map_err(failed)?;
        let (version, master): (Option<String>, Option<String>) = (row.get(0), row.get(1));
        server.ledger = version.zip(master);
    }
    if server.ledger.is_none() && (has_ledger || has_builds) {
        return Err(StoreError::Postgres(format!(
            "the database {} at {} has tables of something else: give rouse a database of its own",
            url.database,
            url.place()
        )));
    }
    Ok(server)
}

/// Whether the tables are those of this version and of this master. Makes them if there are none.
pub(super) async fn check_tables(live: &Live, url: &PostgresUrl, master: &str, write: bool) -> Result<(), StoreError> {
    let server = ask(live, url).await?;
    if write && server.read_only {
        return Err(StoreError::Postgres(explain::read_only(url)));
    }
    match server.ledger {
        Some((version, name)) => compare(&version, &name, master, url),
        None if write => create(live, url, master).await,
        None => Err(StoreError::Postgres(format!("the database {} at {} has no ledger", url.database, url.place()))),
    }
}

fn compare(version: &str, name: &str, master: &str, url: &PostgresUrl) -> Result<(), StoreError> {
    let version = version.parse().map_err(|_| StoreError::Column(0))?;
    if version > SCHEMA {
        return Err(StoreError::Newer(version));
    }
    if version < tables::OLDEST {
        return Err(StoreError::Older(version));
    }
    if name != master {
        return Err(StoreError::Postgres(format!(
            "the database {} at {} is the ledger of the master {name:?}, and this master is {master:?}: give it a database \
             of its own in store.url, or the same master.name",
            url.database,
            url.place()
        )));
    }
    Ok(())
}

/// Makes the tables. Two masters may do it at once: the second one finds those of the first.
async fn create(live: &Live, url: &PostgresUrl, master: &str) -> Result<(), StoreError> {
    // A name of a master needs no quotes.
    let sql = format!(
        "BEGIN; {} INSERT INTO ledger (key, value) VALUES ('master', '{}'); COMMIT",
        tables::create(),
        master.replace('\'', "''")
    );
    match live.client.batch_execute(&sql).await {
        Ok(()) => Ok(()),
        Err(error) => {
            let raced = [SqlState::DUPLICATE_TABLE, SqlState::UNIQUE_VIOLATION];
            let raced = error.code().is_some_and(|code| raced.contains(code));
            let failed = explain::error(url, &error);
            live.client.batch_execute("ROLLBACK").await.map_err(|error| explain::error(url, &error))?;
            match ask(live, url).await?.ledger {
                Some((version, name)) if raced => compare(&version, &name, master, url),
                _ => Err(failed),
            }
        }
    }
}

/// Looks at the database for `rouse check --online`, and changes nothing. Returns what is right with it.
///
/// # Errors
/// What is wrong, and what to do.
pub async fn look(url: &PostgresUrl, master: &str) -> Result<String, StoreError> {
    let limit = Duration::from_secs(10);
    let late = || StoreError::Postgres(format!("PostgreSQL at {} has not answered for 10 s", url.place()));
    tokio::time::timeout(limit, look_now(url, master, limit)).await.map_err(|_| late())?
}

async fn look_now(url: &PostgresUrl, master: &str, limit: Duration) -> Result<String, StoreError> {
    let live = Live::open(url, limit).await?;
    let server = ask(&live, url).await?;
    if server.read_only {
        return Err(StoreError::Postgres(explain::read_only(url)));
    }
    let what = match server.ledger {
        Some((version, name)) => {
            compare(&version, &name, master, url)?;
            "has the ledger of this master"
        }
        None => {
            // Tried, and taken back.
            let sql = "BEGIN; CREATE TABLE rouse_check (); ROLLBACK";
            live.client.batch_execute(sql).await.map_err(|error| explain::error(url, &error))?;
            "is empty, and tables can be made in it"
        }
    };
    let durable = live.client.query_one("SELECT current_setting('fsync')", &[]).await;
    let durable: String = durable.map_err(|error| explain::error(url, &error))?.get(0);
    if durable != "on" {
        return Err(StoreError::Postgres(format!(
            "PostgreSQL at {} runs with fsync = off: a power failure would destroy the ledger; set it on",
            url.place()
        )));
    }
    let (major, minor) = (server.version / 10_000, server.version % 10_000);
    Ok(format!("PostgreSQL {major}.{minor} at {}: the database {} {what}", url.place(), url.database))
}
