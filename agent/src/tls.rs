//! TLS to the broker: whom the agent trusts.

use lapin::tcp::{AsyncTcpStream, RustlsConnector, RustlsConnectorConfig};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Connection, ConnectionProperties, runtime};
use rouse_shared::Fingerprint;
use rouse_shared::fingerprint::client_config;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::timeout;

/// Which certificates of a broker the agent accepts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Trust {
    /// Those that an authority of this machine or one in these PEM certificates has signed.
    Authorities(Option<String>),
    /// The one with this fingerprint, and those that it has signed.
    Only(Fingerprint),
}

impl Trust {
    fn connector(&self) -> io::Result<RustlsConnector> {
        match self {
            Self::Authorities(pem) => {
                let config = authorities(RustlsConnectorConfig::new_with_native_certs(), pem.as_deref())?;
                config.connector_with_no_client_auth()
            }
            Self::Only(fingerprint) => {
                let config = client_config(vec![*fingerprint]).map_err(|error| invalid(error.to_string()))?;
                Ok(RustlsConnector::from(Arc::new(config)))
            }
        }
    }
}

/// The authorities of this machine, and those in PEM. A small image has none of its own, and the given ones suffice.
fn authorities(native: io::Result<RustlsConnectorConfig>, pem: Option<&str>) -> io::Result<RustlsConnectorConfig> {
    let Some(pem) = pem else { return native };
    let parsed = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    let parsed = parsed.map_err(|error| invalid(format!("the certificates of `ca`: {error}")))?;
    let mut config = native.unwrap_or_default();
    config.add_parsable_certificates(parsed);
    Ok(config)
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Connects to the broker. `within` is the time limit for TCP.
///
/// # Errors
/// If it cannot be reached, its certificate is not accepted, or it refuses the login.
pub async fn connect(
    uri: AMQPUri,
    properties: ConnectionProperties,
    trust: Trust,
    within: Duration,
) -> lapin::Result<Connection> {
    let runtime = runtime::default_runtime()?;
    // Before anything else is made for a connection: after an outage, thousands of agents on one machine may be refused
    // again and again.
    let place = runtime.to_socket_addrs((uri.authority.host.clone(), uri.authority.port));
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", within.as_secs()));
    let stream = timeout(within, AsyncTcpStream::connect(&runtime, place)).await.map_err(late)??;
    let stream = Mutex::new(Some(stream));
    // Not `Connection::connect_uri_with_config`, which has only `Trust::Authorities`, and with which the agent would be
    // larger by what reads the keys of clients.
    let open = async move |uri: AMQPUri, _| {
        let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A connection is never repaired, so this is called once.
        let stream = stream.ok_or_else(|| io::Error::other("the connection was used before"))?;
        Ok(match uri.scheme {
            AMQPScheme::AMQP => stream,
            AMQPScheme::AMQPS => stream.into_rustls(&trust.connector()?, &uri.authority.host).await?,
        })
    };
    Connection::connector(uri, runtime, open, properties).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_without_authorities_trusts_the_given_ones() {
        let none = || Err(io::Error::other("Could not load any valid native certificates"));
        authorities(none(), None).expect_err("nobody is trusted");
        let pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        authorities(none(), Some(pem)).expect("one is given");
        authorities(none(), Some(&pem.replace("AAAA", "A"))).expect_err("not PEM");
    }
}
