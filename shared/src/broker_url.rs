//! The URL of the broker, which can name several hosts: `amqps://user:password@mq1,mq2:5671,[fd00::1]/vhost`.

use crate::Secret;
use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use url::{Host, ParseError, Url};

/// Why a text is not the URL of brokers. It never quotes the text, which may have a password in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UrlError {
    /// A character that no URL has.
    #[error("an address must not contain spaces or line breaks")]
    Space,
    /// Another scheme, or none.
    #[error("the address of a broker must begin with amqp:// or amqps://")]
    Scheme,
    /// A host is missing.
    #[error("a host is missing in the address")]
    NoHost,
    /// A host has characters that host names do not have.
    #[error(
        "the host contains characters that are not allowed in a host name (in a password, write them as %40 and so on)"
    )]
    Host,
    /// An address in brackets is not closed or is no IPv6 address.
    #[error("a host in brackets is not an IPv6 address")]
    Ipv6,
    /// A port is out of range.
    #[error("the port is not a number from 1 to 65535")]
    Port,
    /// A malformed escape.
    #[error(
        "a % in user, password or vhost must begin two hexadecimal digits, and what they stand for must be UTF-8: \
         write %25 for the sign itself"
    )]
    Escape,
    /// More than one segment follows the hosts.
    #[error("only one name, the vhost, can follow the hosts; write / in it as %2f")]
    Vhost,
    /// A parameter behind the `?` has a value that the client library does not accept.
    #[error("a parameter after the ? has a wrong value")]
    Query,
}

/// A list of brokers, any of which will do, with what is the same for all of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BrokerUrl {
    /// Whether connections are encrypted.
    pub tls: bool,
    /// User and password, decoded.
    pub login: Option<(String, Secret)>,
    /// Hosts with their ports in order of preference, at least one. IPv6 addresses are without brackets.
    pub hosts: Vec<(String, u16)>,
    /// The virtual host, decoded; `/` if the URL has none.
    pub vhost: String,
    /// What follows the `?`, as it was written.
    pub query: String,
    /// Path and query, as they were written.
    tail: String,
}

impl BrokerUrl {
    /// Parses a URL; the hosts, each with its port unless it is the default, are separated by commas.
    ///
    /// # Errors
    /// If it is not the URL of brokers; what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(UrlError::Space);
        }
        let (scheme, rest) = text.split_once("://").ok_or(UrlError::Scheme)?;
        let tls = match scheme {
            "amqp" => false,
            "amqps" => true,
            _ => return Err(UrlError::Scheme),
        };
        let rest = rest.split('#').next().unwrap_or(rest);
        let (authority, tail) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (login, hosts) = match authority.rsplit_once('@') {
            Some((login, hosts)) => (format!("{login}@"), hosts),
            None => (String::new(), authority),
        };
        let urls = hosts.split(',').map(|host| parse(&format!("{scheme}://{login}{host}{tail}")));
        let urls = urls.collect::<Result<Vec<_>, _>>()?;
        let first = urls.first().ok_or(UrlError::NoHost)?;
        let vhost = first.path().strip_prefix('/').unwrap_or_default();
        if vhost.contains('/') {
            return Err(UrlError::Vhost);
        }
        let vhost = if vhost.is_empty() { "/".to_owned() } else { decode(vhost)? };
        let query = first.query().unwrap_or_default().to_owned();
        let hosts = urls.iter().map(|url| Ok((host(url)?, url.port().unwrap_or(default_port(tls)))));
        let hosts = hosts.collect::<Result<_, UrlError>>()?;
        Ok(Self { tls, login: login_of(first)?, hosts, vhost, query, tail: tail.to_owned() })
    }

    /// The URL of one broker.
    pub fn of_address(address: SocketAddr, vhost: &str, tls: bool) -> Self {
        // Of a form's escapes only that of the space differs from a path's.
        let escaped = url::form_urlencoded::byte_serialize(vhost.as_bytes()).collect::<String>().replace('+', "%20");
        let tail = format!("/{escaped}");
        let hosts = vec![(address.ip().to_string(), address.port())];
        Self { tls, login: None, hosts, vhost: vhost.to_owned(), query: String::new(), tail }
    }

    /// Whether every host is the machine itself.
    pub fn is_loopback(&self) -> bool {
        self.hosts.iter().all(|(host, _)| is_loopback(host))
    }
}

/// Without user and password: as agents are given it, and as it may be logged.
impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.tls { "amqps://" } else { "amqp://" })?;
        for (at, (host, port)) in self.hosts.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{}", bracketed(host))?;
            if *port != default_port(self.tls) {
                write!(f, ":{port}")?;
            }
        }
        f.write_str(&self.tail)
    }
}

/// A host as it is written before a port: an IPv6 address is in brackets.
pub fn bracketed(host: &str) -> Cow<'_, str> {
    if host.contains(':') { Cow::Owned(format!("[{host}]")) } else { Cow::Borrowed(host) }
}

fn default_port(tls: bool) -> u16 {
    if tls { 5671 } else { 5672 }
}

/// Parses a URL that has one host, of any scheme, and checks host and port.
///
/// # Errors
/// If it is no URL, has no host, or a host or port that cannot be.
pub fn parse(text: &str) -> Result<Url, UrlError> {
    let url = Url::parse(text).map_err(|error| match error {
        ParseError::EmptyHost => UrlError::NoHost,
        ParseError::InvalidPort => UrlError::Port,
        ParseError::InvalidIpv6Address => UrlError::Ipv6,
        _ => UrlError::Host,
    })?;
    host(&url)?;
    // The colon of an empty port is gone from what was parsed.
    let authority = text.split_once("://").map_or(text, |(_, rest)| rest);
    let authority = authority.split(['/', '?', '#']).next().unwrap_or(authority);
    if authority.is_empty() {
        // Of `http:///a` the parser makes `http://a`.
        return Err(UrlError::NoHost);
    }
    if url.port() == Some(0) || authority.ends_with(':') { Err(UrlError::Port) } else { Ok(url) }
}

/// The host of a URL; of an IPv6 address without the brackets.
///
/// # Errors
/// If there is none, or it has characters that no host name has.
pub fn host(url: &Url) -> Result<String, UrlError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    match url.host() {
        None | Some(Host::Domain("")) => Err(UrlError::NoHost),
        Some(Host::Domain(name)) if name.chars().all(plain) => Ok(name.to_owned()),
        Some(Host::Domain(_)) => Err(UrlError::Host),
        Some(Host::Ipv4(ip)) => Ok(ip.to_string()),
        Some(Host::Ipv6(ip)) => Ok(ip.to_string()),
    }
}

/// User and password of a URL, decoded; a missing password is empty.
///
/// # Errors
/// If an escape in them is malformed.
pub fn login_of(url: &Url) -> Result<Option<(String, Secret)>, UrlError> {
    if url.username().is_empty() && url.password().is_none() {
        return Ok(None);
    }
    Ok(Some((decode(url.username())?, Secret::new(decode(url.password().unwrap_or_default())?))))
}

/// Whether a host is the machine itself.
pub fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Replaces `%41` and its like by what they stand for. A malformed one is an error, as a `%` that nobody has escaped.
fn decode(text: &str) -> Result<String, UrlError> {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2).ok_or(UrlError::Escape)?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(UrlError::Escape);
        }
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| UrlError::Escape)?);
        bytes.extend(rest.as_bytes());
    }
    String::from_utf8(bytes).map_err(|_| UrlError::Escape)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(text: &str) -> Vec<String> {
        let url = BrokerUrl::parse(text).unwrap();
        url.hosts.iter().map(|(host, port)| format!("{host} {port}")).collect()
    }

    #[test]
    fn hosts_stay_in_their_order_and_have_ports() {
        assert_eq!(hosts("amqp://127.0.0.1"), ["127.0.0.1 5672"]);
        assert_eq!(
            hosts("amqps://mq1,mq2.example.org:5700,[fd00::1]/ci"),
            ["mq1 5671", "mq2.example.org 5700", "fd00::1 5671"]
        );
        assert_eq!(hosts("amqp://u:se@cret@[::1]:5673/v"), ["::1 5673"]);
        assert_eq!(hosts("amqp://[fd00:0::0:1],mq"), ["fd00::1 5672", "mq 5672"]);
    }

    #[test]
    fn escapes_are_decoded() {
        let url = BrokerUrl::parse("amqps://ro%75se:s%40c%C3%A9+@mq1,mq2/a%2fb?heartbeat=3#x").unwrap();
        assert_eq!(url.login, Some(("rouse".to_owned(), Secret::new("s@cé+"))));
        assert_eq!((url.vhost.as_str(), url.query.as_str(), url.tls), ("a/b", "heartbeat=3", true));
        for (text, vhost) in [("amqp://mq", "/"), ("amqp://mq/", "/"), ("amqp://mq/%2F", "/"), ("amqp://mq?x=1", "/")] {
            assert_eq!(BrokerUrl::parse(text).unwrap().vhost, vhost, "{text}");
        }
        assert_eq!(BrokerUrl::parse("amqp://u@mq").unwrap().login, Some(("u".to_owned(), Secret::new(""))));
    }

    #[test]
    fn a_url_is_printed_without_its_login() {
        for (text, printed) in [
            ("amqps://u:p@mq1,mq2:5700/ci", "amqps://mq1,mq2:5700/ci"),
            ("amqp://u:p@q@[FD00::1]:5672,[::1]:1/a%2Fb?heartbeat=3", "amqp://[fd00::1],[::1]:1/a%2Fb?heartbeat=3"),
            ("amqp://mq", "amqp://mq"),
        ] {
            let url = BrokerUrl::parse(text).unwrap();
            assert_eq!(url.to_string(), printed);
            let again = BrokerUrl::parse(printed).unwrap();
            assert_eq!((again.login, again.hosts, again.vhost), (None, url.hosts, url.vhost));
            assert!(!format!("{:?}", BrokerUrl::parse("amqp://u:hush@mq").unwrap()).contains("hush"));
        }
        for (address, printed) in
            [("[fd00::1]:5673", "amqp://[fd00::1]:5673/rouse"), ("10.0.0.1:5672", "amqp://10.0.0.1/rouse")]
        {
            let url = BrokerUrl::of_address(address.parse().unwrap(), "rouse", false);
            assert_eq!(url.to_string(), printed);
            assert_eq!(BrokerUrl::parse(printed), Ok(url));
        }
    }

    #[test]
    fn what_is_no_broker_is_refused() {
        for (text, error) in [
            ("", UrlError::Scheme),
            ("mq", UrlError::Scheme),
            ("http://mq/", UrlError::Scheme),
            ("amqp://m q/", UrlError::Space),
            ("amqp://", UrlError::NoHost),
            ("amqp:///v", UrlError::NoHost),
            ("amqp://u:p@", UrlError::NoHost),
            ("amqp://a,,b/v", UrlError::NoHost),
            ("amqp://:5672/v", UrlError::NoHost),
            ("amqp://h!/v", UrlError::Host),
            ("amqp://fd00::1/v", UrlError::Port),
            ("amqp://[::z]/v", UrlError::Ipv6),
            ("amqp://[::1/v", UrlError::Ipv6),
            ("amqp://mq:port/v", UrlError::Port),
            ("amqp://mq:0/v", UrlError::Port),
            ("amqp://mq:/v", UrlError::Port),
            ("amqp://mq:99999", UrlError::Port),
            ("amqp://mq,b:1,c:x", UrlError::Port),
            ("amqp://u:%zz@mq/v", UrlError::Escape),
            ("amqp://u:%+f@mq/v", UrlError::Escape),
            ("amqp://u:a%@mq/v", UrlError::Escape),
            ("amqp://u:%ff@mq/v", UrlError::Escape),
            ("amqp://mq/%zz", UrlError::Escape),
            ("amqp://mq/a/b", UrlError::Vhost),
        ] {
            assert_eq!(BrokerUrl::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn a_web_address_needs_its_host_too() {
        assert_eq!(parse("https://a.example.com:8774/v3").map(|url| host(&url)), Ok(Ok("a.example.com".to_owned())));
        for (text, error) in
            [("http:///a", UrlError::NoHost), ("http://a:0", UrlError::Port), ("http://a!b", UrlError::Host)]
        {
            assert_eq!(parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn loopback_is_the_machine_alone() {
        for (text, expected) in
            [("amqp://localhost,127.0.0.2,[::1]", true), ("amqp://localhost,mq", false), ("amqp://[fd00::1]", false)]
        {
            assert_eq!(BrokerUrl::parse(text).unwrap().is_loopback(), expected, "{text}");
        }
    }
}
