//! Addresses of brokers, relays and clouds: taken apart far enough to say what is wrong with them.
//!
//! What is said never repeats the address itself, since it may have a password in it.

use super::{Relay, RelayTls};
use rouse_shared::Secret;

/// An address, taken apart.
struct Url<'t> {
    scheme: &'t str,
    login: Option<(String, Option<String>)>,
    /// At least one; IPv6 addresses without their brackets.
    hosts: Vec<(&'t str, Option<u16>)>,
    path: &'t str,
    query: &'t str,
}

fn split<'t>(text: &'t str, schemes: &[&str]) -> Result<Url<'t>, String> {
    let like = || schemes.iter().map(|s| format!("{s}://")).collect::<Vec<_>>().join(" or ");
    if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err("an address has no spaces or line breaks in it".to_owned());
    }
    let (scheme, rest) = text.split_once("://").ok_or_else(|| format!("not an address: it begins with {}", like()))?;
    if !schemes.contains(&scheme) {
        return Err(format!("an address that begins with {} is needed here", like()));
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    let tail = tail.split('#').next().unwrap_or(tail);
    let (path, query) = tail.split_once('?').unwrap_or((tail, ""));
    let (login, hosts) = match authority.rsplit_once('@') {
        Some((login, hosts)) => {
            let (user, password) = match login.split_once(':') {
                Some((user, password)) => (user, Some(decode(password)?)),
                None => (login, None),
            };
            (Some((decode(user)?, password)), hosts)
        }
        None => (None, authority),
    };
    let hosts = hosts.split(',').map(host).collect::<Result<Vec<_>, _>>()?;
    Ok(Url { scheme, login, hosts, path, query })
}

fn host(text: &str) -> Result<(&str, Option<u16>), String> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or("the host has a bracket that is not closed")?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| "what is in brackets is not an IPv6 address")?;
            (address, port.strip_prefix(':').or(if port.is_empty() { None } else { Some("?") }))
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | ':');
    if host.is_empty() {
        return Err("a host is missing in the address".to_owned());
    }
    if !host.chars().all(plain) {
        return Err("the host has characters that no host name has (in a password, write them as %40 and so on)".into());
    }
    let number = |port: &str| port.parse::<u16>().ok().filter(|p| *p > 0);
    let port = port.map(|p| number(p).ok_or("the port is not a number from 1 to 65535")).transpose()?;
    Ok((host, port))
}

/// What `%41` and its like stand for.
fn decode(text: &str) -> Result<String, String> {
    const BAD: &str = "a % in user or password must begin two hexadecimal digits: write %25 for the sign itself";
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|d| char::from(d).to_digit(16));
        let (high, low) = (digit().ok_or(BAD)?, digit().ok_or(BAD)?);
        bytes.push(u8::try_from(high * 16 + low).map_err(|_| BAD)?);
    }
    String::from_utf8(bytes).map_err(|_| "user or password are not UTF-8".to_owned())
}

/// What matters of a broker's address.
pub(super) struct Broker {
    /// Whether every host is this machine alone.
    pub(super) loopback: bool,
    /// Whether it has a user in it.
    pub(super) has_login: bool,
}

/// Checks the address of a broker: `amqp://` or `amqps://`, one host or several, at most one path segment (the vhost).
pub(super) fn broker(text: &str) -> Result<Broker, String> {
    let url = split(text, &["amqp", "amqps"])?;
    if url.path.trim_start_matches('/').contains('/') {
        return Err("after the host comes one name, the vhost; write / in it as %2f".to_owned());
    }
    decode(url.path)?;
    Ok(Broker { loopback: url.hosts.iter().all(|(host, _)| is_loopback(host)), has_login: url.login.is_some() })
}

/// Whether a host is this machine.
pub(super) fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Checks the address of a web service.
pub(super) fn web(text: &str) -> Result<(), String> {
    let url = split(text, &["http", "https"])?;
    if url.hosts.len() != 1 { Err("one host, not several, is needed here".to_owned()) } else { Ok(()) }
}

/// A mail relay: `smtp://host`, `smtps://user:password@host:port`, `smtp://host:587?tls=required`.
pub(super) fn relay(text: &str) -> Result<Relay, String> {
    let url = split(text, &["smtp", "smtps"])?;
    let [(host, port)] = url.hosts[..] else { return Err("one host, not several, is needed here".to_owned()) };
    if !matches!(url.path, "" | "/") {
        return Err("nothing but ?tls= comes after the host".to_owned());
    }
    let tls = match (url.scheme, url.query) {
        ("smtps", "") => RelayTls::Implicit,
        ("smtps", _) => return Err("smtps:// is TLS from the first byte and takes no ?tls=".to_owned()),
        (_, "") => RelayTls::Opportunistic,
        (_, "tls=required") => RelayTls::Required,
        (_, "tls=opportunistic") => RelayTls::Opportunistic,
        (_, "tls=none") => RelayTls::Never,
        _ => return Err("expected ?tls=required, ?tls=opportunistic or ?tls=none after the host".to_owned()),
    };
    let login = match url.login {
        Some((user, Some(password))) => Some((user, Secret::new(password))),
        Some((_, None)) => return Err("has a user and no password: write user:password@host".to_owned()),
        None => None,
    };
    let port = port.unwrap_or(if tls == RelayTls::Implicit { 465 } else { 25 });
    Ok(Relay { host: host.to_owned(), port, tls, login })
}
