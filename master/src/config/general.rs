//! The sections that are not workers: `[master]`, `[broker]`, `[mail]`, `[audit]`, `[scheduling]`,
//! `[limits]`, `[retention]`.

use super::document::Table;
use super::keys::{self, Section};
use super::reach::Reach;
use super::{
    BrokerConfig, BrokerTls, Dialled, MailConfig, MasterConfig, PRIVATE_VHOST, Relay, RelayTls, encryption, read,
    shorten, url,
};
use crate::core::plan::{AmongEquals, Retention};
use rouse_shared::BrokerUrl;
use rouse_shared::Secret;
use rouse_shared::broker_url::{UrlError, is_loopback};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use toml::de::DeTable;

/// The master's name if the file gives none.
pub(super) const DEFAULT_NAME: &str = "rouse";
/// The default of `limits.max_log_size`, bytes: four times the agent's own limit.
pub(super) const DEFAULT_MAX_LOG_SIZE: u64 = 256_000_000;
/// The default of the state directory.
pub(super) const DEFAULT_STATE_DIR: &str = "/var/lib/rouse";
/// Shortest part of a path that nobody guesses, in characters.
const SHORTEST_SECRET: usize = 20;
/// The default extension of leases.
pub(super) const DEFAULT_RESTART_LEASE: Duration = Duration::from_secs(600);
/// The default interval of audits.
pub(super) const DEFAULT_AUDIT: Duration = Duration::from_secs(120);
/// The default of `mail_after_failed_starts`.
pub(super) const DEFAULT_MAIL_AFTER: u32 = 3;

/// The default address with this port.
pub(super) fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// A section, or an empty one if it is absent.
pub(super) fn section<'d>(
    root: &Table<'d>,
    key: &'static str,
    keys: &'static Section,
    empty: &'d DeTable<'d>,
) -> Table<'d> {
    let table = root.optional(key, |v| v.table(&format!("a section: write [{key}]"), keys));
    table.unwrap_or_else(|| root.absent(key, keys, empty))
}

pub(super) fn master<'d>(root: &Table<'d>, empty: &'d DeTable<'d>) -> MasterConfig {
    let table = section(root, "master", &keys::MASTER, empty);
    let name = table.or("name", DEFAULT_NAME.to_owned(), |v| {
        let name = v.word()?;
        let fits = name.len() <= 63 && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        if fits { Some(name) } else { v.error("must be 1 to 63 of letters, digits, '-', '_' and '.'") }
    });
    let master = MasterConfig {
        name,
        state_dir: table.or("state_dir", PathBuf::from(DEFAULT_STATE_DIR), |v| v.path()),
        listen: table.or("listen", local(8090), |v| v.address()),
        api_token: table.optional("api_token", |v| {
            let token = v.secret()?;
            // It is sent in a header and stored in a file with one line.
            if token.expose().bytes().all(|b| b.is_ascii_graphic()) {
                Some(token)
            } else {
                v.error("must consist of ASCII characters without spaces")
            }
        }),
        tls: table.optional("tls", |v| encryption::read_files(v, &[])),
        read_token: table.optional("read_token", |v| v.boolean()),
        restart_lease: table.or("restart_lease", DEFAULT_RESTART_LEASE, |v| v.duration(Duration::ZERO)),
    };
    if master.tls.is_none()
        && let Some(listen) = table.map.get("listen")
        && Reach::of(master.listen.ip()).leads_elsewhere()
    {
        let why =
            "other machines can reach it, and the API token, builds and logs cross the network in clear: set `tls`";
        table.notes.warn(listen.span().start, "master.listen", why);
    }
    table.finish();
    master
}

pub(super) fn broker<'d>(root: &Table<'d>, master: &MasterConfig, empty: &'d DeTable<'d>) -> BrokerConfig {
    let table = section(root, "broker", &keys::BROKER_KEYS, empty);
    let url = table.optional("url", |v| {
        let secret = v.perhaps_secret()?;
        match url::broker(secret.expose()) {
            Ok(url) => {
                encryption::warn_of_clear(v, &url);
                if url.login.is_some() {
                    v.note_secret();
                }
                Some(secret)
            }
            Err(why) => v.error(why),
        }
    });
    let listen = table.or("listen", vec![local(5672)], |v| {
        let listen = v.one_or_list(|v| v.address())?;
        if listen.is_empty() && v.items("a list").is_some_and(|items| items.is_empty()) {
            return v.error("must have at least one address: write [\"127.0.0.1:5672\"]");
        }
        if url.is_some() {
            v.warn("has no effect, because `url` names your own broker");
        }
        if listen.iter().any(|a| matches!(a.ip(), IpAddr::V6(ip) if ip.is_unicast_link_local())) {
            return v.error("RabbitMQ cannot listen on a link-local address (fe80::): give another one");
        }
        Some(listen)
    });
    let mut broker = BrokerConfig {
        listen,
        tls: BrokerTls::Default,
        encrypted: Vec::new(),
        ca: table.optional("ca", |v| v.readable()),
        agent_url: table.optional("agent_url", |v| {
            let text = v.word()?;
            match url::broker(&text) {
                Ok(url) if url.login.is_some() => {
                    v.error("must not contain a user and password: each agent has its own")
                }
                Ok(url) => {
                    encryption::warn_of_clear(v, &url);
                    Some(text)
                }
                Err(why) => v.error(why),
            }
        }),
        auth_listen: table.or("auth_listen", local(8091), |v| {
            let address = v.address()?;
            if url.is_some() && address.is_ipv6() {
                v.warn("RabbitMQ asks over IPv4 only, unless it is started as contrib/rabbitmq/README.md says");
            }
            Some(address)
        }),
        auth_secret: table.optional("auth_secret", |v| {
            let secret = v.secret()?;
            if url.is_none() {
                v.warn("has no effect, because the private broker has a secret of its own");
            }
            let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
            if secret.expose().len() >= SHORTEST_SECRET && secret.expose().bytes().all(fits) {
                Some(secret)
            } else {
                v.error("must be 20 or more letters, digits, '-' and '_': make one with `openssl rand -hex 16`")
            }
        }),
        management_url: table.optional("management_url", |v| {
            let secret = v.perhaps_secret()?;
            if url.is_none() {
                v.warn("has no effect, because the private broker needs no check");
            }
            match url::management(secret.expose()) {
                Ok(login) => {
                    if url::is_in_clear(secret.expose()) {
                        v.warn("the password crosses the network in clear: use https://");
                    }
                    if login {
                        v.note_secret();
                    }
                    Some(secret)
                }
                Err(why) => v.error(why),
            }
        }),
        url,
    };
    broker.tls = table.or("tls", BrokerTls::Default, |v| encryption::tls(v, &broker));
    broker.encrypted = encryption::encrypted(&table, &broker, &master.state_dir);
    // If two of the master's servers had one address, the second would fail to start.
    let mut taken = vec![("master.listen", master.listen)];
    if broker.url.is_none() {
        taken.extend(broker.listen.iter().map(|a| ("broker.listen", *a)));
    }
    taken.push(("broker.auth_listen", broker.auth_listen));
    for (i, (key, address)) in taken.iter().enumerate() {
        let other = taken[..i].iter().find(|(_, a)| a == address && a.port() != 0);
        if let Some((other, _)) = other {
            let at = key.strip_prefix("broker.").and_then(|k| table.map.get(k)).map_or(table.at, |v| v.span().start);
            let message = format!("{address} is already used by {other}: choose another port");
            table.notes.error(at, key, message);
        }
    }
    table.finish();
    broker
}

/// The default settings of mail.
pub(super) fn default_mail() -> MailConfig {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "localhost" } else { host.trim() };
    let relay = Relay { host: "localhost".to_owned(), port: 25, tls: RelayTls::Opportunistic, login: None };
    let from = format!("rouse@{host}");
    let from = if read::is_address(&from) { from } else { "rouse@localhost".to_owned() };
    MailConfig { from, hello_name: None, relay, extra_recipients: Vec::new(), ca: None }
}

pub(super) fn mail<'d>(root: &Table<'d>, empty: &'d DeTable<'d>) -> MailConfig {
    let table = section(root, "mail", &keys::MAIL, empty);
    let default = default_mail();
    let mail = MailConfig {
        from: table.or("from", default.from, |v| v.email()),
        hello_name: table.optional("hello_name", |v| {
            let name = v.word()?;
            let literal = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
            let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            let address = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | ':');
            if literal.map_or_else(|| name.chars().all(fits), |l| !l.is_empty() && l.chars().all(address)) {
                Some(name)
            } else {
                v.error("must be the full name of a machine, such as \"ci.example.org\", or \"[192.0.2.1]\"")
            }
        }),
        relay: table.or("relay", default.relay, |v| {
            let text: Secret = v.perhaps_secret()?;
            let relay = url::relay(text.expose()).map_or_else(|why| v.error(why), Some)?;
            if relay.login.is_some() {
                v.note_secret();
            }
            if relay.tls == RelayTls::Never && relay.login.is_some() && !is_loopback(&relay.host) {
                v.warn("sends the password across the network in clear: leave out ?tls=none");
            }
            Some(relay)
        }),
        extra_recipients: table.or("extra_recipients", Vec::new(), |v| v.one_or_list(|v| v.email())),
        ca: table.optional("ca", |v| v.readable()),
    };
    table.finish();
    mail
}

/// `[audit]`: the interval, and whether an orphan is terminated.
pub(super) fn audit<'d>(root: &Table<'d>, empty: &'d DeTable<'d>) -> (Duration, bool) {
    let table = section(root, "audit", &keys::AUDIT, empty);
    let interval = table.or("interval", DEFAULT_AUDIT, |v| v.duration(Duration::from_secs(1)));
    let terminate = table.or("on_orphan", true, |v| {
        v.choice_since_renamed(&[("terminate", true), ("report", false)], &[("stop", "terminate")])
    });
    table.finish();
    (interval, terminate)
}

/// `[scheduling]`: which of several templates is woken first.
pub(super) fn scheduling<'d>(root: &Table<'d>, empty: &'d DeTable<'d>) -> AmongEquals {
    let table = section(root, "scheduling", &keys::SCHEDULING, empty);
    let choices = [("pack", AmongEquals::Pack), ("spread", AmongEquals::Spread), ("cheapest", AmongEquals::Cheapest)];
    let among = table.or("among_equals", AmongEquals::default(), |v| v.choice(&choices));
    table.finish();
    among
}

/// `[limits]`.
pub(super) struct Limits {
    pub(super) max_hosts: Option<u32>,
    pub(super) mail_after_failed_starts: u32,
    pub(super) queue_timeout: Option<Duration>,
    pub(super) max_spend_per_day: Option<f64>,
    pub(super) max_log_size: u64,
}

pub(super) fn limits<'d>(root: &Table<'d>, empty: &'d DeTable<'d>) -> Limits {
    let table = section(root, "limits", &keys::LIMITS, empty);
    let limits = Limits {
        max_hosts: table.optional("max_hosts", |v| {
            if v.whole(0)? == 0 { v.error("must be at least 1; for no limit, leave the key out") } else { v.whole(1) }
        }),
        mail_after_failed_starts: table.or("mail_after_failed_starts", DEFAULT_MAIL_AFTER, |v| v.whole(1)),
        queue_timeout: table.optional("queue_timeout", |v| v.duration(Duration::from_secs(1))),
        max_spend_per_day: table.optional("max_spend_per_day", |v| v.number()).filter(|most| *most > 0.0),
        max_log_size: table.or("max_log_size", DEFAULT_MAX_LOG_SIZE, |v| v.size(1)),
    };
    table.finish();
    limits
}

/// `[retention]`: what is deleted, and when.
pub(super) fn retention<'d>(root: &Table<'d>, empty: &'d DeTable<'d>) -> Retention {
    let table = section(root, "retention", &keys::RETENTION, empty);
    let second = Duration::from_secs(1);
    let builds = table.optional("builds", |v| v.duration(second));
    let logs = table.optional("logs", |v| {
        let logs = v.duration(second)?;
        if builds.is_some_and(|builds| builds <= logs) {
            v.warn("has no effect, because builds are deleted with their logs at the age that `builds` gives");
        }
        Some(logs)
    });
    let retention = Retention { builds, logs, max_size: table.optional("max_size", |v| v.size(1)) };
    table.finish();
    retention
}

/// Longest interval of AMQP heartbeats, seconds, with which the master notices in time that its own link is dead.
const QUICK_HEARTBEAT: u32 = 10;

impl BrokerConfig {
    /// Whether master and agents use the same node, as far as this file tells, so that all of them see its alarms at
    /// the same time, and the master knows within seconds when it sees nothing any more.
    pub(super) fn is_one_node(&self) -> bool {
        let Some(url) = self.url.as_ref().and_then(|url| url::broker(url.expose()).ok()) else {
            return self.url.is_none();
        };
        let interval = url.query.split('&').filter_map(|pair| pair.strip_prefix("heartbeat=")).next_back();
        let is_quick = |text: &str| text.parse().is_ok_and(|n: u32| (1..=QUICK_HEARTBEAT).contains(&n));
        url.hosts.len() == 1 && interval.is_none_or(is_quick)
    }

    /// The broker URL that the master gives to agents, in full.
    ///
    /// # Errors
    /// If `url` is not one, which a configuration that was read never has.
    pub fn agents_dial(&self) -> Result<String, UrlError> {
        Ok(match self.dialled() {
            Dialled::AgentUrl(url) => url.to_owned(),
            Dialled::OwnBroker(url) => BrokerUrl::parse(url.expose())?.to_string(),
            Dialled::PrivateBroker(address) => {
                BrokerUrl::of_address(address, PRIVATE_VHOST, self.encrypted.contains(&address)).to_string()
            }
        })
    }

    /// The broker URL that the master gives to agents.
    pub fn dialled(&self) -> Dialled<'_> {
        match (&self.agent_url, &self.url) {
            (Some(url), _) => Dialled::AgentUrl(url),
            (None, Some(url)) => Dialled::OwnBroker(url),
            (None, None) => {
                let reachable = |a: &&SocketAddr| !a.ip().is_loopback() && !a.ip().is_unspecified();
                let address = self.listen.iter().find(reachable).or(self.listen.first());
                Dialled::PrivateBroker(address.copied().unwrap_or_else(|| local(5672)))
            }
        }
    }
}

/// Why a host elsewhere could not reach the broker; nothing if it could, as far as this file tells.
pub(super) fn unreachable(broker: &BrokerConfig) -> Option<&'static str> {
    let here = |text: &str| url::broker(text).is_ok_and(|url| url.is_loopback());
    match broker.dialled() {
        Dialled::AgentUrl(url) if here(url) => Some("broker.agent_url is an address of this machine alone"),
        Dialled::OwnBroker(url) if here(url.expose()) => {
            Some("broker.url is an address of this machine alone: set broker.agent_url")
        }
        Dialled::PrivateBroker(address) if address.ip().is_unspecified() => {
            Some("broker.listen says on which addresses and not which one to dial: set broker.agent_url")
        }
        Dialled::PrivateBroker(address) if address.ip().is_loopback() => {
            Some("the broker listens on this machine alone: add an address to broker.listen, or set broker.agent_url")
        }
        Dialled::AgentUrl(_) | Dialled::OwnBroker(_) | Dialled::PrivateBroker(_) => None,
    }
}

/// The check of a property's name.
pub(super) fn property_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.chars().any(|c| c.is_control() || c == '=') {
        return Err(format!(
            "{:?} cannot be the name of a property: it must not be empty or contain '=' or control characters",
            shorten(name)
        ));
    }
    Ok(())
}
