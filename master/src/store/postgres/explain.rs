//! Errors of PostgreSQL, as sentences that say what to do. They are told apart by their codes, never by their texts.

use crate::config::PostgresUrl;
use crate::store::StoreError;
use rouse_shared::error::Chain;
use tokio_postgres::Error;
use tokio_postgres::error::SqlState;

/// What an error means. Never contains the password: neither the server nor the client repeats it. The server's DETAIL
/// is left out, because it may repeat a row.
pub(super) fn error(url: &PostgresUrl, error: &Error) -> StoreError {
    let place = url.place();
    let Some(said) = error.as_db_error() else {
        let why = std::error::Error::source(error).map_or_else(|| error.to_string(), |why| Chain(why).to_string());
        return StoreError::Postgres(match error.is_closed() {
            true => format!("the connection to PostgreSQL at {place} was lost"),
            false => format!("PostgreSQL at {place} cannot be reached: {why}"),
        });
    };
    let (user, database, text) = (&url.user, &url.database, said.message());
    StoreError::Postgres(match *said.code() {
        SqlState::INVALID_PASSWORD => format!(
            "PostgreSQL at {place} refuses the password of the role {user}: set the right one in store.url, and reload or \
             start the master"
        ),
        SqlState::INVALID_AUTHORIZATION_SPECIFICATION => format!(
            "PostgreSQL at {place} does not let the role {user} in ({text}): the role must exist (`createuser {user}`), \
             and pg_hba.conf must allow it from this machine"
        ),
        SqlState::INVALID_CATALOG_NAME => format!(
            "PostgreSQL at {place} has no database {database}: create it with `createdb --owner={user} {database}`"
        ),
        SqlState::INSUFFICIENT_PRIVILEGE | SqlState::INVALID_SCHEMA_NAME => format!(
            "the role {user} lacks rights in the database {database} at {place} ({text}): make it the owner with \
             `ALTER DATABASE {database} OWNER TO {user}`, and of the tables"
        ),
        SqlState::DISK_FULL => format!("the disk of PostgreSQL at {place} is full ({text}): make room there"),
        SqlState::READ_ONLY_SQL_TRANSACTION => read_only(url),
        SqlState::TOO_MANY_CONNECTIONS => format!(
            "PostgreSQL at {place} has no connection left ({text}): rouse needs five; raise max_connections, or the limit \
             of the role or the database"
        ),
        SqlState::CANNOT_CONNECT_NOW => format!("PostgreSQL at {place} is starting or stopping ({text})"),
        SqlState::QUERY_CANCELED => format!("PostgreSQL at {place} took too long ({text})"),
        _ => format!("PostgreSQL at {place} reports an error: {text}"),
    })
}

/// The database takes no writes.
pub(super) fn read_only(url: &PostgresUrl) -> String {
    format!(
        "PostgreSQL at {} is read-only: it is a standby, or default_transaction_read_only is on; name the server that can \
         be written in store.url",
        url.place()
    )
}
