//! `[store]`: where the ledger is, if not in SQLite in the state directory.
//!
//! The URL is that of PostgreSQL's own programs. What this build of rouse does not do is refused by name, because it
//! would otherwise be done without the protection that was asked for.

use super::document::{Table, Value};
use super::general::section;
use super::keys;
use super::reach::is_elsewhere;
use rouse_shared::Secret;
use std::path::{Path, PathBuf};
use toml::de::DeTable;

#[cfg(test)]
#[path = "tests/store.rs"]
mod tests;

const NEEDED: &str = "write \"postgres://user:password@host/database\"";
/// PostgreSQL's port.
const PORT: u16 = 5_432;

/// How a connection to PostgreSQL is protected, as libpq defines it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum SslMode {
    /// Not at all.
    Disable,
    /// By TLS if the server has it, with any certificate.
    Prefer,
    /// By TLS, with any certificate; one of the authority's if `sslrootcert` is given.
    Require,
    /// By TLS, with a certificate of the authority's.
    VerifyCa,
    /// By TLS, with a certificate of the authority's for this host.
    VerifyFull,
}

impl SslMode {
    const ALL: [(&str, Self); 5] = [
        ("disable", Self::Disable),
        ("prefer", Self::Prefer),
        ("require", Self::Require),
        ("verify-ca", Self::VerifyCa),
        ("verify-full", Self::VerifyFull),
    ];
}

/// Where PostgreSQL listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PostgresHost {
    /// A name or address, without brackets.
    Tcp(String),
    /// The directory of a socket on this machine.
    Socket(PathBuf),
}

/// The address of a database, and how to log in to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PostgresUrl {
    /// At least one, in the order in which they are tried.
    pub hosts: Vec<(PostgresHost, u16)>,
    /// The role.
    pub user: String,
    /// Its password, if it needs one.
    pub password: Option<Secret>,
    /// The database.
    pub database: String,
    /// How the connection is protected.
    pub ssl_mode: SslMode,
    /// PEM file with the certificate authority of the server; absent: those that this machine trusts.
    pub root_cert: Option<PathBuf>,
    /// Settings of the session, such as `-c search_path=rouse`.
    pub options: Option<String>,
}

impl PostgresUrl {
    /// Reads a URL. Relative paths are below `base`.
    ///
    /// # Errors
    /// What is wrong with it. The message does not repeat it, because it may contain a password.
    pub fn parse(text: &str, base: &Path) -> Result<Self, String> {
        let rest = text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://"));
        let rest = rest.ok_or_else(|| format!("not the address of a database: {NEEDED}"))?;
        if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err("an address must not contain spaces or line breaks: write %20 for a space".to_owned());
        }
        if rest.contains('#') {
            return Err("must not contain '#': write %23 in its place".to_owned());
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = match login.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (login, None),
        };
        if path.contains('/') {
            return Err(format!("only the name of the database comes after the host: {NEEDED}"));
        }
        let (mut user, mut database) = (decoded(user)?, decoded(path)?);
        let mut password = password.map(decoded).transpose()?.map(Secret::new);
        let mut hosts = hosts.split(',').filter(|host| !host.is_empty()).map(host).collect::<Result<Vec<_>, _>>()?;
        let (mut ssl_mode, mut root_cert, mut options, mut port) = (SslMode::Prefer, None, None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').ok_or("each parameter after '?' is name=value")?;
            let value = decoded(value)?;
            match name {
                "host" => hosts = value.split(',').map(named_host).collect(),
                "port" => port = Some(value.parse().map_err(|_| "port: a number from 1 to 65535 is needed")?),
                "user" => user = value,
                "password" => password = Some(Secret::new(value)),
                "dbname" => database = value,
                "options" => options = Some(value),
                "sslrootcert" if value == "system" => root_cert = None,
                "sslrootcert" => root_cert = Some(base.join(value)),
                "sslmode" => {
                    let mode = SslMode::ALL.into_iter().find(|(name, _)| *name == value);
                    let names = || SslMode::ALL.map(|(name, _)| name).join(", ");
                    ssl_mode = mode.ok_or_else(|| format!("sslmode: must be one of {}", names()))?.1;
                }
                "sslcert" | "sslkey" | "sslpassword" => {
                    return Err(format!("{name}: rouse cannot log in with a certificate; use a password"));
                }
                _ => {
                    return Err(format!(
                        "{}: rouse does not have this parameter; it has sslmode, sslrootcert, host, port, user, password, \
                         dbname and options",
                        super::shorten(name)
                    ));
                }
            }
        }
        if hosts.is_empty() {
            return Err(format!("names no host: {NEEDED}; for a socket, add ?host=/run/postgresql"));
        }
        if let Some(port) = port {
            hosts.iter_mut().for_each(|host| host.1 = port);
        }
        if user.is_empty() {
            return Err(format!("names no user: {NEEDED}"));
        }
        if database.is_empty() {
            return Err(format!("names no database: {NEEDED}"));
        }
        if root_cert.is_some() && ssl_mode == SslMode::Require {
            ssl_mode = SslMode::VerifyCa;
        }
        if let (Some(_), SslMode::Disable | SslMode::Prefer) = (&root_cert, ssl_mode) {
            return Err("sslrootcert has no effect unless sslmode is verify-full or verify-ca".to_owned());
        }
        Ok(Self { hosts, user, password, database, ssl_mode, root_cert, options })
    }

    /// The hosts, the database and the role, for people. Has no password.
    pub fn place(&self) -> String {
        let hosts: Vec<_> = self
            .hosts
            .iter()
            .map(|(host, port)| match host {
                PostgresHost::Tcp(name) if name.contains(':') => format!("[{name}]:{port}"),
                PostgresHost::Tcp(name) => format!("{name}:{port}"),
                PostgresHost::Socket(dir) => format!("{}/.s.PGSQL.{port}", dir.display()),
            })
            .collect();
        hosts.join(",")
    }

    /// Whether it is the same database, whoever logs in to it and however.
    pub fn leads_to_the_same_as(&self, other: &Self) -> bool {
        (&self.hosts, &self.database, &self.options) == (&other.hosts, &other.database, &other.options)
    }

    /// Whether others could read what is sent, or answer in the place of the database.
    fn is_exposed(&self) -> bool {
        let elsewhere = |(host, _): &(PostgresHost, u16)| matches!(host, PostgresHost::Tcp(name) if is_elsewhere(name));
        self.ssl_mode < SslMode::VerifyCa && self.hosts.iter().any(elsewhere)
    }
}

/// `host`, `host:port`, `[address]:port`, or the directory of a socket with `%2F` for `/`.
fn host(text: &str) -> Result<(PostgresHost, u16), String> {
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => {
            (name, port.parse().map_err(|_| "a port is a number from 1 to 65535")?)
        }
        _ => (text, PORT),
    };
    let name = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    Ok((named_host(&decoded(name)?).0, port))
}

fn named_host(name: &str) -> (PostgresHost, u16) {
    let host = if name.starts_with('/') { PostgresHost::Socket(name.into()) } else { PostgresHost::Tcp(name.into()) };
    (host, PORT)
}

/// A part of a URL with its `%XX` as what they stand for.
fn decoded(text: &str) -> Result<String, String> {
    const WRONG: &str = "a '%' stands before two hexadecimal digits: write %25 for the character itself";
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next().ok_or(WRONG)?, rest.next().ok_or(WRONG)?];
            bytes.push(hex::decode(digits).map_err(|_| WRONG)?[0]);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).map_err(|_| "what the '%XX' stand for is not UTF-8".to_owned())
}

pub(super) fn read<'d>(root: &Table<'d>, empty: &'d DeTable<'d>) -> Option<PostgresUrl> {
    let table = section(root, "store", &keys::STORE_KEYS, empty);
    let url = table.optional("url", |v| url(v, &table));
    table.finish();
    url
}

fn url(v: &Value<'_>, table: &Table<'_>) -> Option<PostgresUrl> {
    let text = v.perhaps_secret()?;
    let url = match PostgresUrl::parse(text.expose(), &table.notes.base) {
        Ok(url) => url,
        Err(why) => return v.error(why),
    };
    if !cfg!(feature = "postgres") {
        v.warn("this build of rouse lacks the feature postgres, so the master does not start with it");
    }
    if url.password.is_some() {
        v.note_secret();
    }
    if let Some(file) = &url.root_cert
        && let Err(error) = std::fs::File::open(file)
    {
        return v.error(format!("sslrootcert: {} cannot be read: {error}", file.display()));
    }
    if url.is_exposed() {
        v.warn("others on the network could read it or answer in its place: add ?sslmode=verify-full");
    }
    Some(url)
}
