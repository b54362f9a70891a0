//! The configuration: reads `rouse.toml` into types that are always valid, and reports all errors at once.
//!
//! There are three passes. `document` parses the text and keeps the position of each value. `general`, `workers` and
//! `hosts` validate with the readers of `read`. The result includes the [`Plan`] for the core. An error does not end a
//! pass: it is recorded, and the pass continues with a substitute value. A configuration with an error is never
//! returned. `keys` lists every key, and `schema` makes the JSON Schema for editors from it.

mod access;
mod blobs;
mod check;
mod document;
mod encryption;
mod general;
pub mod hosts;
#[cfg_attr(not(test), expect(dead_code, reason = "the schema, which a test makes, reads more of it than the reader"))]
mod keys;
mod problem;
mod reach;
mod read;
#[cfg(test)]
pub(crate) mod schema;
mod store;
mod template;
mod url;
mod workers;

#[cfg(test)]
mod tests;

pub use access::is_token_name;
pub use blobs::{BlobsConfig, StoreUrl};
pub use check::{Look, check};
pub use hosts::{Ec2Config, HostConfig, LibvirtConfig, OpenstackConfig, ProcessConfig};
pub use problem::{ConfigErrors, Problem};
pub use rouse_shared::Secret;
pub use store::{PostgresHost, PostgresUrl, SslMode};

use crate::access::Rules;
use crate::core::plan::{AmongEquals, MailPlan, Plan, ProviderKind, Retention};
use crate::tls::TlsFiles;
use rouse_shared::WorkerName;
use rouse_shared::exposure::Groups;
use rustix::process::{getegid, geteuid};
use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The providers that this build of rouse has. The keys of the others are checked all the same.
pub const AVAILABLE: &[ProviderKind] = &[
    ProviderKind::Process,
    #[cfg(feature = "ec2")]
    ProviderKind::Ec2,
    #[cfg(feature = "libvirt")]
    ProviderKind::Libvirt,
    #[cfg(feature = "openstack")]
    ProviderKind::Openstack,
];

/// A complete and valid configuration.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    /// The file that it was read from.
    pub path: PathBuf,
    /// `[master]`
    pub master: MasterConfig,
    /// `[broker]`
    pub broker: BrokerConfig,
    /// `[mail]`
    pub mail: MailConfig,
    /// `[blobs]`: where the logs of ended builds are kept; absent: in the state directory.
    pub blobs: Option<BlobsConfig>,
    /// `[store]`: the database of the ledger; absent: SQLite in the state directory.
    pub store: Option<PostgresUrl>,
    /// `[[token]]` and `[remote_user]`
    pub access: Rules,
    /// Workers and limits for the core.
    pub plan: Plan,
    /// How the hosts of each latent worker are created. Has exactly the latent workers of the plan.
    pub hosts: BTreeMap<WorkerName, HostConfig>,
    /// What is probably not intended, in the order of the file.
    pub warnings: Vec<Problem>,
}

/// The master itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MasterConfig {
    /// Part of the owner tag of every host that it starts: 1 to 63 letters, digits, `-`, `_` or `.`.
    pub name: String,
    /// Where the ledger, the logs, the identity and the private broker's data are.
    pub state_dir: PathBuf,
    /// Where the page and the HTTP API are served.
    pub listen: SocketAddr,
    /// The token for requests that change something; absent if it is generated at the start in the state directory.
    pub api_token: Option<Secret>,
    /// The certificate of the page and the API; absent: they are served over HTTP.
    pub tls: Option<TlsFiles>,
    /// Whether requests that only read need the token too; absent: see [`Config::read_needs_token`].
    pub read_token: Option<bool>,
    /// The length of every lease once the master is asked to end.
    pub restart_lease: Duration,
}

/// The broker: a private one, or the user's own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BrokerConfig {
    /// Where a private broker listens; at least one.
    pub listen: Vec<SocketAddr>,
    /// The user's own broker: an `amqp://` or `amqps://` address, hosts separated by commas in the order of preference.
    pub url: Option<Secret>,
    /// PEM file with the certificate authority of the broker.
    pub ca: Option<PathBuf>,
    /// The URL for agents, if it is another one. Without user and password.
    pub agent_url: Option<String>,
    /// Where the master answers the broker's requests about who may connect.
    pub auth_listen: SocketAddr,
    /// The certificate of a private broker.
    pub tls: BrokerTls,
    /// Those of `listen` at which a private broker speaks TLS. At the others it does not.
    pub encrypted: Vec<SocketAddr>,
    /// A part of the paths of these requests. Only for the user's own broker: the private one has a secret anyway.
    pub auth_secret: Option<Secret>,
    /// The management API of the user's own broker, which `rouse check --online` asks: an `http://` or `https://` address.
    pub management_url: Option<Secret>,
}

/// `[broker] tls`
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BrokerTls {
    /// Absent: TLS with a certificate of the master's own authority, at the addresses that other machines can reach.
    Default,
    /// `"on"`: the same at every address that is not loopback.
    Own,
    /// `"off"`: nowhere.
    Off,
    /// `{ cert, key }`: TLS with this certificate at every address that is not loopback.
    Files(TlsFiles),
}

/// The virtual host of a private broker.
pub const PRIVATE_VHOST: &str = "rouse";

/// The broker URL that the master gives to agents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dialled<'c> {
    /// The value of `agent_url`.
    AgentUrl(&'c str),
    /// The user's own broker, without the master's user and password.
    OwnBroker(&'c Secret),
    /// The private broker: its first address that other machines may reach, otherwise its first.
    PrivateBroker(SocketAddr),
}

/// How mail is sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MailConfig {
    /// The sender's address.
    pub from: String,
    /// The name in the SMTP greeting; absent: the machine's full name, otherwise the domain of `from`.
    pub hello_name: Option<String>,
    /// The SMTP server.
    pub relay: Relay,
    /// Notified of every missing worker and every orphan, in addition to the workers' own lists.
    pub extra_recipients: Vec<String>,
    /// PEM file with the certificate authority of the relay, in addition to those that this machine trusts.
    pub ca: Option<PathBuf>,
}

impl MailConfig {
    /// Whether mail is only sent over TLS: because the relay's URL requires it, or because there is a password to
    /// protect.
    pub fn needs_tls(&self) -> bool {
        let relay = &self.relay;
        match relay.tls {
            RelayTls::Implicit | RelayTls::Required => true,
            RelayTls::Opportunistic => relay.login.is_some() && !rouse_shared::broker_url::is_loopback(&relay.host),
            RelayTls::Never => false,
        }
    }

    /// Whether the relay's certificate must be valid. If TLS is optional, any TLS is better than none, and a relay on
    /// this machine seldom has a signed certificate.
    pub fn verifies(&self) -> bool {
        self.ca.is_some() || (self.needs_tls() && !rouse_shared::broker_url::is_loopback(&self.relay.host))
    }

    /// Whether it is what an absent section gives.
    pub fn is_default(&self) -> bool {
        *self == general::default_mail()
    }

    /// What the core needs to know about mail.
    fn plan(&self) -> MailPlan {
        MailPlan {
            extra_recipients: self.extra_recipients.iter().cloned().collect(),
            domain: self.from.rsplit('@').next().unwrap_or_default().to_owned(),
        }
    }
}

/// An SMTP server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Relay {
    /// Name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// How the connection is protected.
    pub tls: RelayTls,
    /// User and password.
    pub login: Option<(String, Secret)>,
}

/// How a connection to a mail relay is protected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RelayTls {
    /// `smtps://`: from the first byte.
    Implicit,
    /// `?tls=required`: STARTTLS, or nothing is sent.
    Required,
    /// STARTTLS if the relay offers it.
    Opportunistic,
    /// `?tls=none`: never.
    Never,
}

/// The result of reading: the configuration if there is no error, the errors, and the warnings.
struct Reading {
    config: Option<Config>,
    errors: Vec<Problem>,
    warnings: Vec<Problem>,
}

/// Reads the configuration file at `path`, and the files and variables that it names.
///
/// # Errors
/// Everything that is wrong with it.
pub fn load(path: &Path) -> Result<Config, ConfigErrors> {
    let reading = read_file(path);
    reading.config.ok_or(ConfigErrors(reading.errors))
}

fn read_file(path: &Path) -> Reading {
    let whole = |message: String| {
        let error = Problem { file: path.to_owned(), line: 0, column: 0, key: String::new(), message };
        Reading { config: None, errors: vec![error], warnings: Vec::new() }
    };
    let read = || {
        let mut file = File::open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok::<_, io::Error>((bytes, file.metadata()?))
    };
    let (bytes, metadata) = match read() {
        Ok(read) => read,
        Err(why) => return whole(format!("cannot be read: {why}")),
    };
    match String::from_utf8(bytes) {
        Ok(text) => read_text(&text, path, Some(&metadata), &|name| std::env::var(name).ok()),
        Err(_) => whole("is not UTF-8 text".to_owned()),
    }
}

/// `file` is that of the text, if it is from one.
fn read_text(text: &str, path: &Path, file: Option<&Metadata>, env: document::Environment<'_>) -> Reading {
    // Absolute, so that it stays right if the master changes its directory.
    let base = std::path::absolute(path).ok().and_then(|p| p.parent().map(Path::to_owned)).unwrap_or_default();
    let mut notes = document::Notes::new(path, text, base, env);
    let parsed = document::parse(text, &notes);
    if let Some(root) = &parsed {
        notes.groups = own_groups(&notes.base.join(state_dir(root.get_ref())));
    }
    let config = parsed.map(|root| {
        let empty = toml::de::DeTable::new();
        let root = document::Table::root(&notes, root.get_ref(), &keys::ROOT);
        let master = general::master(&root, &empty);
        let broker = general::broker(&root, &master, &empty);
        let mail = general::mail(&root, &empty);
        let (audit_interval, stop_orphans) = general::audit(&root, &empty);
        let limits = general::limits(&root, &empty);
        let among_equals = general::scheduling(&root, &empty);
        let blobs = blobs::read(&root, &master.state_dir, &empty);
        let store = store::read(&root, &empty);
        let retention = general::retention(&root, &empty);
        let access = access::read(&root, &master);
        let workers = workers::read(&root, &broker);
        let in_clouds = workers.hosts.values().any(|host| host.provider() != ProviderKind::Process);
        if in_clouds && !names_master(&root) {
            let why = "not given, so hosts are tagged with \"rouse\": choose a different name for each master";
            notes.warn(0, "master.name", why);
        }
        root.finish();
        if let Some(file) = file {
            notes.check_file(file);
        }
        let plan = Plan {
            workers: workers.plans,
            max_hosts: limits.max_hosts,
            max_spend_per_day: limits.max_spend_per_day,
            mail_after_failed_starts: limits.mail_after_failed_starts,
            queue_timeout: limits.queue_timeout,
            max_log_size: limits.max_log_size,
            retention,
            among_equals,
            audit_interval,
            stop_orphans,
            restart_lease: master.restart_lease,
            outlives_alarms: broker.is_one_node(),
            mail: mail.plan(),
        };
        let hosts = workers.hosts;
        Config { path: path.to_owned(), master, broker, mail, blobs, store, access, plan, hosts, warnings: Vec::new() }
    });
    let (errors, warnings) = notes.finish();
    let config = config.filter(|_| errors.is_empty()).map(|c| Config { warnings: warnings.clone(), ..c });
    Reading { config, errors, warnings }
}

/// The state directory that the text names, before it is validated.
fn state_dir<'t>(root: &'t toml::de::DeTable<'_>) -> &'t str {
    let named = root.get("master").and_then(|v| v.get_ref().get("state_dir")).and_then(|v| v.get_ref().as_str());
    named.unwrap_or(general::DEFAULT_STATE_DIR)
}

/// The groups that may read the master's secrets: that of this process, and that of the state directory, because the
/// user who checks may not be the one who runs the master. If root checks before the master was ever started, nobody
/// knows which group the service has.
fn own_groups(state_dir: &Path) -> Groups {
    match state_dir.metadata() {
        Err(_) if geteuid().is_root() => Groups::Any,
        service => {
            let own = [0, getegid().as_raw()];
            Groups::These(own.into_iter().chain(service.ok().map(|dir| dir.gid())).collect())
        }
    }
}

fn names_master(root: &document::Table<'_>) -> bool {
    root.map.get("master").and_then(|v| v.get_ref().as_table()).is_some_and(|master| master.contains_key("name"))
}

impl MasterConfig {
    /// The directory of the master's own authority.
    pub fn authority(&self) -> PathBuf {
        self.state_dir.join("tls")
    }
}

impl Config {
    /// Reads a configuration from text. `path` is for messages, and relative paths are below its directory.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigErrors> {
        let reading = read_text(text, path, None, &|name| std::env::var(name).ok());
        reading.config.ok_or(ConfigErrors(reading.errors))
    }

    /// Whether requests that only read need the API token. If the file does not say, they do if others than the users of
    /// this machine can send them, or if builds run on this machine.
    pub fn read_needs_token(&self) -> bool {
        let builds_here = || self.sections::<ProcessConfig>().next().is_some();
        self.master.read_token.unwrap_or_else(|| !self.master.listen.ip().is_loopback() || builds_here())
    }

    /// Whether the ledger is in the same database. Whoever logs in to it, and how, may change while the master runs.
    fn has_store_of(&self, other: &Config) -> bool {
        match (&self.store, &other.store) {
            (Some(a), Some(b)) => a.leads_to_the_same_as(b),
            (a, b) => a.is_none() && b.is_none(),
        }
    }

    /// The workers whose hosts one kind of provider creates, with their sections.
    pub fn sections<T: hosts::Section + 'static>(&self) -> impl Iterator<Item = (&WorkerName, &T)> {
        self.hosts.iter().filter_map(|(worker, host)| Some((worker, T::of(host)?)))
    }

    /// The configuration of an empty file, except for the state directory: every default, and no worker.
    pub fn without_file(state_dir: PathBuf) -> Config {
        Config {
            path: PathBuf::new(),
            master: MasterConfig {
                name: general::DEFAULT_NAME.to_owned(),
                state_dir,
                listen: general::local(8090),
                api_token: None,
                read_token: None,
                tls: None,
                restart_lease: general::DEFAULT_RESTART_LEASE,
            },
            broker: BrokerConfig {
                listen: vec![general::local(5672)],
                url: None,
                ca: None,
                agent_url: None,
                auth_listen: general::local(8091),
                tls: BrokerTls::Default,
                encrypted: Vec::new(),
                auth_secret: None,
                management_url: None,
            },
            mail: general::default_mail(),
            blobs: None,
            store: None,
            access: Rules::default(),
            plan: Plan {
                workers: BTreeMap::new(),
                max_hosts: None,
                max_spend_per_day: None,
                mail_after_failed_starts: general::DEFAULT_MAIL_AFTER,
                queue_timeout: None,
                max_log_size: general::DEFAULT_MAX_LOG_SIZE,
                retention: Retention::default(),
                among_equals: AmongEquals::default(),
                audit_interval: general::DEFAULT_AUDIT,
                stop_orphans: true,
                restart_lease: general::DEFAULT_RESTART_LEASE,
                outlives_alarms: true,
                mail: general::default_mail().plan(),
            },
            hosts: BTreeMap::new(),
            warnings: Vec::new(),
        }
    }
}

/// The changed keys that take effect only when the master is started again, in the order of the file.
pub fn changes_needing_restart(old: &Config, new: &Config) -> Vec<String> {
    let (a, b) = ((&old.master, &old.broker), (&new.master, &new.broker));
    let keys = [
        ("master.name", a.0.name != b.0.name),
        ("master.state_dir", a.0.state_dir != b.0.state_dir),
        ("master.listen", a.0.listen != b.0.listen),
        ("broker.listen", a.1.listen != b.1.listen),
        ("broker.url", a.1.url != b.1.url),
        ("broker.ca", a.1.ca != b.1.ca),
        ("broker.agent_url", a.1.agent_url != b.1.agent_url),
        ("broker.auth_listen", a.1.auth_listen != b.1.auth_listen),
        // The files of the page are read again by a reload, and those of the broker by RabbitMQ.
        ("master.tls", a.0.tls.is_some() != b.0.tls.is_some()),
        ("broker.tls", a.1.tls != b.1.tls || a.1.encrypted != b.1.encrypted),
        ("broker.auth_secret", a.1.auth_secret != b.1.auth_secret),
        ("store.url", !old.has_store_of(new)),
    ];
    keys.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key.to_owned()).collect()
}

/// The beginning of a text, for a message.
pub(crate) fn shorten(text: &str) -> String {
    const MOST: usize = 60;
    if text.chars().count() <= MOST { text.to_owned() } else { text.chars().take(MOST).chain(['…']).collect() }
}
