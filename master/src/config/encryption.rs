//! Which connections are encrypted: the addresses of the private broker that speak TLS, certificates, and warnings of what
//! crosses a network in clear.

use super::document::{Table, Value};
use super::reach::{Reach, is_elsewhere};
use super::{BrokerConfig, BrokerTls, Dialled, keys, url};
use crate::clock;
use crate::tls::TlsFiles;
use rouse_shared::broker_url::is_loopback;
use rouse_shared::error::Chain;
use rouse_shared::{BrokerUrl, Timestamp};
use rustls::pki_types::UnixTime;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

/// The file in which the master tells a private broker where to listen, below the state directory.
const BROKER_FILE: &str = "broker/rabbitmq.conf";
/// What begins each of its lines with an address without TLS.
const PLAIN_LISTENER: &str = "listeners.tcp.";

/// `[broker] tls`
pub(super) fn tls(v: &Value<'_>, broker: &BrokerConfig) -> Option<BrokerTls> {
    if broker.url.is_some() {
        v.warn("has no effect, because `url` names your own broker");
    } else if broker.listen.iter().all(|address| Reach::of(address.ip()) == Reach::Loopback) {
        v.warn("has no effect: at a loopback address the broker speaks no TLS, because nothing leaves this machine");
    }
    if v.is_text() {
        let on = v.choice(&[("on", true), ("off", false)])?;
        return Some(if on { BrokerTls::Own } else { BrokerTls::Off });
    }
    let dialled = match broker.dialled() {
        Dialled::AgentUrl(url) => url::broker(url).map(|url| url.hosts).unwrap_or_default(),
        Dialled::PrivateBroker(address) if !address.ip().is_unspecified() => vec![(address.ip().to_string(), 0)],
        Dialled::PrivateBroker(_) | Dialled::OwnBroker(_) => Vec::new(),
    };
    let dialled: Vec<String> = dialled.into_iter().map(|(host, _)| host).filter(|host| !is_loopback(host)).collect();
    read_files(v, &dialled).map(BrokerTls::Files)
}

/// Reads `{ cert, key }`. Warns of what clients that dial one of `hosts` will refuse.
pub(super) fn read_files(v: &Value<'_>, hosts: &[String]) -> Option<TlsFiles> {
    let table = v.table("a table: write { cert = \"path\", key = \"path\" }", &keys::TLS)?;
    let cert = table.required("cert", "cert = \"path\"", |v| v.path());
    let key = table.required("key", "key = \"path\"", |v| v.path());
    table.finish();
    let files = TlsFiles { cert: cert?, key: key? };
    // If it cannot be read, that is an error below.
    if let Ok(metadata) = fs::metadata(&files.key)
        && let Some(why) = v.notes.exposed(&files.key, &metadata)
    {
        return v.error(why);
    }
    match files.faults(hosts, UnixTime::since_unix_epoch(clock::wall().since(Timestamp(0)))) {
        Ok(faults) => faults.into_iter().for_each(|fault| v.warn(fault)),
        Err(why) => return v.error(Chain(&why).to_string()),
    }
    Some(files)
}

/// Warns if the URL of a broker is that of another machine, without TLS.
pub(super) fn warn_of_clear(v: &Value<'_>, url: &BrokerUrl) {
    if !url.tls && url.hosts.iter().any(|(host, _)| is_elsewhere(host)) {
        v.warn("begins with amqp://, so passwords, builds and their output cross the network in clear: use amqps://");
    }
}

/// The addresses at which a private broker speaks TLS. It is an error if agents dial one of them without: an earlier
/// version has served all of them in clear, and agents in old images do not notice a change.
pub(super) fn encrypted(table: &Table<'_>, broker: &BrokerConfig, state_dir: &Path) -> Vec<SocketAddr> {
    if broker.url.is_some() {
        return Vec::new();
    }
    let listen = table.map.get("listen").map_or(table.at, |v| v.span().start);
    let error = |text: String| table.notes.error(listen, "broker.listen", text);
    let mut encrypted = Vec::new();
    // Without those that only seem to lead elsewhere, because no interface has them yet.
    let mut surely = Vec::new();
    let plain_so_far = plain_listeners(&state_dir.join(BROKER_FILE));
    for address in &broker.listen {
        let reach = Reach::of(address.ip());
        if reach != Reach::Unknown || broker.tls != BrokerTls::Default {
            surely.push(*address);
        }
        match &broker.tls {
            BrokerTls::Off if reach.leads_elsewhere() => {
                let what = "passwords, builds and their output cross the network in clear, because `tls` is \"off\"";
                table.notes.warn(listen, "broker.listen", format!("other machines can reach {address}, and {what}"));
            }
            BrokerTls::Off => {}
            BrokerTls::Own | BrokerTls::Files(_) if reach != Reach::Loopback => encrypted.push(*address),
            BrokerTls::Own | BrokerTls::Files(_) => {}
            BrokerTls::Default if !reach.leads_elsewhere() => {}
            BrokerTls::Default if !plain_so_far.iter().any(|plain| covers(plain, address)) => encrypted.push(*address),
            BrokerTls::Default => {
                let place = if reach == Reach::Unknown {
                    "no interface of this machine has the address now (if it is that of a bridge, bring the bridge up)"
                } else {
                    "other machines can reach it"
                };
                error(format!(
                    "agents have dialled {address} in clear so far, and {place}: write tls = \"on\" or tls = {{ cert, key \
                     }}, and then amqps:// in every agent.toml (docs/security.md), or write tls = \"off\" to leave it so"
                ));
            }
        }
    }
    if let Some(url) = broker.agent_url.as_ref().and_then(|text| url::broker(text).ok()) {
        let speaks_tls = |port: u16| encrypted.iter().any(|address| surely.contains(address) && address.port() == port);
        let speaks_plain = |port| broker.listen.iter().any(|a| a.port() == port && !encrypted.contains(a));
        if !url.tls && url.hosts.iter().any(|(_, port)| speaks_tls(*port) && !speaks_plain(*port)) {
            let at = table.map.get("agent_url").map_or(table.at, |v| v.span().start);
            let why = "begins with amqp://, and the broker speaks TLS at this port: write amqps://, with the port";
            table.notes.error(at, "broker.agent_url", why);
        }
    }
    encrypted
}

/// Whether somebody may have dialled `now` at the listener `before`.
fn covers(before: &SocketAddr, now: &SocketAddr) -> bool {
    let every = |address: &SocketAddr| address.ip().is_unspecified();
    let here = Reach::of(before.ip()) == Reach::Loopback;
    before.port() == now.port() && (before.ip() == now.ip() || every(before) || (every(now) && !here))
}

/// The addresses at which the broker has listened without TLS the last time. None, if the file cannot be read: whoever
/// starts the master can.
fn plain_listeners(file: &Path) -> Vec<SocketAddr> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let address = |line: &str| -> Option<SocketAddr> {
        let (_, address) = line.strip_prefix(PLAIN_LISTENER)?.split_once(" = ")?;
        // RabbitMQ writes an IPv6 address without brackets.
        let (ip, port) = address.rsplit_once(':')?;
        Some(SocketAddr::new(ip.parse().ok()?, port.parse().ok()?))
    };
    text.lines().filter_map(address).collect()
}
