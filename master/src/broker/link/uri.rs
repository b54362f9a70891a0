//! `amqps://user:password@mq1,mq2/vhost`: one URL, several brokers.

use super::super::limits::{AMQP_HEARTBEAT, FRAME_MAX};
use lapin::uri::AMQPUri;
use std::fmt;

/// Brokers in order of preference, with user, password and virtual host. Its `Debug` is without the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoints(Vec<AMQPUri>);

/// Why a text is not the URL of brokers. Says nothing of the password.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UrlError {
    /// It begins with neither `amqp://` nor `amqps://`.
    Scheme,
    /// A host is missing or is none.
    Host,
    /// The rest is malformed: the escapes, the port or the query.
    Malformed,
}

impl fmt::Display for UrlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scheme => "read the broker's URL: it must begin with amqp:// or amqps://",
            Self::Host => "read the broker's URL: it needs hosts, as in amqps://user:password@mq1,mq2:5671/vhost",
            Self::Malformed => {
                "read the broker's URL: a port or query is malformed, or a special character in user, password or \
                 vhost is not written as % and two hexadecimal digits"
            }
        })
    }
}

impl std::error::Error for UrlError {}

impl fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(shown)).finish()
    }
}

/// A broker as it may be logged.
pub fn shown(uri: &AMQPUri) -> String {
    format!("{}://{}:{}/{}", uri.scheme, uri.authority.host, uri.authority.port, uri.vhost)
}

impl Endpoints {
    /// Takes the URL apart: the hosts, each with its port where it has one, are separated by commas.
    ///
    /// # Errors
    /// What is wrong with the URL, without its text.
    pub fn parse(url: &str) -> Result<Self, UrlError> {
        let (scheme, rest) = url.split_once("://").ok_or(UrlError::Scheme)?;
        if !matches!(scheme, "amqp" | "amqps") {
            return Err(UrlError::Scheme);
        }
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let (user, hosts) = match authority.rsplit_once('@') {
            Some((user, hosts)) => (format!("{user}@"), hosts),
            None => (String::new(), authority),
        };
        hosts.split(',').map(|host| endpoint(scheme, &user, host.trim(), path)).collect::<Result<_, _>>().map(Self)
    }

    /// The virtual host, which the [`super::super::AuthServer`] must be told.
    pub fn vhost(&self) -> &str {
        self.0.first().map_or("/", |uri| uri.vhost.as_str())
    }

    /// One for each broker.
    pub(super) fn uris(&self) -> &[AMQPUri] {
        &self.0
    }
}

fn endpoint(scheme: &str, user: &str, host: &str, path: &str) -> Result<AMQPUri, UrlError> {
    // In brackets, with or without a port: lapin would dial localhost instead, so it is put in by hand.
    let (host, ipv6) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((ip, port)) => {
            (format!("ipv6{port}"), Some(ip.parse::<std::net::Ipv6Addr>().map_err(|_| UrlError::Host)?))
        }
        None => (host.to_owned(), None),
    };
    if host.is_empty() || host.starts_with(':') {
        return Err(UrlError::Host);
    }
    let mut uri: AMQPUri = format!("{scheme}://{user}{host}{path}").parse().map_err(|_| UrlError::Malformed)?;
    if let Some(ip) = ipv6 {
        uri.authority.host = ip.to_string();
    }
    if uri.vhost.is_empty() {
        uri.vhost = "/".to_owned();
    }
    uri.query.frame_max.get_or_insert(FRAME_MAX);
    uri.query.heartbeat.get_or_insert(AMQP_HEARTBEAT);
    uri.query.connection_timeout.get_or_insert(5_000);
    Ok(uri)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_become_endpoints_and_their_passwords_are_not_shown() {
        for (url, expected) in [
            (
                "amqps://rouse:se%2Fcret@mq1.example.org,mq2.example.org:5700/ci",
                r#"["amqps://mq1.example.org:5671/ci", "amqps://mq2.example.org:5700/ci"]"#,
            ),
            ("amqp://127.0.0.1", r#"["amqp://127.0.0.1:5672//"]"#),
            ("amqp://mq/", r#"["amqp://mq:5672//"]"#),
            ("amqp://mq/%2f?heartbeat=3", r#"["amqp://mq:5672//"]"#),
            ("amqp://u:se@cret@[::1]:5673/v", r#"["amqp://::1:5673/v"]"#),
        ] {
            let endpoints = Endpoints::parse(url).unwrap();
            assert_eq!(format!("{endpoints:?}"), expected);
        }
        let endpoints = Endpoints::parse("amqps://rouse:se%2Fcret@mq1,mq2/ci").unwrap();
        assert!(endpoints.uris().iter().all(|uri| uri.authority.userinfo.password == "se/cret"));
        assert_eq!(endpoints.vhost(), "ci");
        for (bad, why) in [
            ("mq1", UrlError::Scheme),
            ("http://mq1/", UrlError::Scheme),
            ("amqp://", UrlError::Host),
            ("amqp://u:p@mq1,,mq2/v", UrlError::Host),
            ("amqp://mq:port/v", UrlError::Malformed),
            ("amqp://[::z]/v", UrlError::Host),
        ] {
            assert_eq!(Endpoints::parse(bad), Err(why), "{bad}");
        }
    }
}
