//! Converts the brokers of a URL to the form that lapin needs.

use super::super::limits::{AMQP_HEARTBEAT, FRAME_MAX, SHARED_HEARTBEAT};
use lapin::uri::{AMQPScheme, AMQPUri};
use rouse_shared::BrokerUrl;
use rouse_shared::broker_url::{UrlError, bracketed};
use std::fmt;

/// Brokers in order of preference, with user, password and virtual host. `Debug` omits the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoints(Vec<AMQPUri>);

impl fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(shown)).finish()
    }
}

/// A broker's URL for logs.
pub fn shown(uri: &AMQPUri) -> String {
    format!("{}://{}:{}/{}", uri.scheme, bracketed(&uri.authority.host), uri.authority.port, uri.vhost)
}

impl Endpoints {
    /// For a master that shares its ledger: the broker notices sooner that it is gone, and lets another one read.
    #[must_use]
    pub fn hurried(mut self) -> Self {
        for uri in &mut self.0 {
            uri.query.heartbeat = Some(SHARED_HEARTBEAT.min(uri.query.heartbeat.unwrap_or(SHARED_HEARTBEAT)));
        }
        self
    }

    /// Host and port of each.
    pub fn addresses(&self) -> impl Iterator<Item = (String, u16)> {
        self.0.iter().map(|uri| (uri.authority.host.clone(), uri.authority.port))
    }

    /// Parses the URL like [`BrokerUrl::parse`].
    ///
    /// # Errors
    /// What is wrong with the URL, without its text.
    pub fn parse(url: &str) -> Result<Self, UrlError> {
        let url = BrokerUrl::parse(url)?;
        // lapin parses only the query: it would turn an IPv6 address into localhost.
        let mut uri: AMQPUri = format!("amqp://broker/?{}", url.query).parse().map_err(|_| UrlError::Query)?;
        uri.scheme = if url.tls { AMQPScheme::AMQPS } else { AMQPScheme::AMQP };
        uri.vhost = url.vhost;
        if let Some((user, password)) = url.login {
            uri.authority.userinfo.username = user;
            uri.authority.userinfo.password = password.expose().to_owned();
        }
        uri.query.frame_max.get_or_insert(FRAME_MAX);
        uri.query.heartbeat.get_or_insert(AMQP_HEARTBEAT);
        let with_host = |(host, port)| {
            let mut uri = uri.clone();
            uri.authority.host = host;
            uri.authority.port = port;
            uri
        };
        Ok(Self(url.hosts.into_iter().map(with_host).collect()))
    }

    /// The virtual host, which the [`super::super::AuthServer`] needs.
    pub fn vhost(&self) -> &str {
        self.0.first().map_or("/", |uri| uri.vhost.as_str())
    }

    /// One for each broker.
    pub(in crate::broker) fn uris(&self) -> &[AMQPUri] {
        &self.0
    }
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
            ("amqp://u:se@cret@[::1]:5673/v", r#"["amqp://[::1]:5673/v"]"#),
        ] {
            let endpoints = Endpoints::parse(url).unwrap();
            assert_eq!(format!("{endpoints:?}"), expected);
        }
        let endpoints = Endpoints::parse("amqps://rouse:se%2Fcret@mq1,mq2/ci").unwrap();
        assert!(endpoints.uris().iter().all(|uri| uri.authority.userinfo.password == "se/cret"));
        assert_eq!(endpoints.vhost(), "ci");
        assert_eq!(Endpoints::parse("amqp://mq/v?heartbeat=soon"), Err(UrlError::Query));
    }
}
