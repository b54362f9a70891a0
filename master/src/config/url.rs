//! Parses the URLs of brokers, relays and clouds, and explains errors.
//!
//! The messages never repeat the URL, because it may contain a password.

use super::reach::is_elsewhere;
use super::{Relay, RelayTls};
use rouse_shared::BrokerUrl;
use rouse_shared::broker_url;
use url::Url;

/// Checks the address of a broker: `amqp://` or `amqps://`, one host or several, at most one path segment (the vhost).
pub(super) fn broker(text: &str) -> Result<BrokerUrl, String> {
    BrokerUrl::parse(text).map_err(|error| error.to_string())
}

/// An address with one host and one of these schemes.
fn one_host(text: &str, schemes: [&str; 2]) -> Result<Url, String> {
    let [first, second] = schemes;
    if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err("an address must not contain spaces or line breaks".to_owned());
    }
    let (scheme, rest) = text
        .split_once("://")
        .ok_or_else(|| format!("not an address: it must begin with {first}:// or {second}://"))?;
    if !schemes.contains(&scheme) {
        return Err(format!("an address that begins with {first}:// or {second}:// is needed here"));
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    if authority.rsplit('@').next().unwrap_or(authority).contains(',') {
        return Err("one host, not several, is needed here".to_owned());
    }
    let url = broker_url::parse(text).map_err(|error| error.to_string())?;
    broker_url::login_of(&url).map_err(|error| error.to_string())?;
    Ok(url)
}

/// Whether what is sent to this address of a web service crosses a network in clear.
pub(super) fn is_in_clear(text: &str) -> bool {
    let host = broker_url::parse(text).ok().filter(|url| url.scheme() == "http");
    host.and_then(|url| broker_url::host(&url).ok()).is_some_and(|host| is_elsewhere(&host))
}

/// Checks the address of a web service.
pub(super) fn web(text: &str) -> Result<(), String> {
    one_host(text, ["http", "https"]).map(drop)
}

/// Checks the address of RabbitMQ's management API, with or without user and password. Returns whether it has them.
pub(super) fn management(text: &str) -> Result<bool, String> {
    let url = one_host(text, ["http", "https"])?;
    let login = broker_url::login_of(&url).map_err(|error| error.to_string())?;
    if login.is_some() && url.password().is_none() {
        return Err("has a user and no password: write user:password@host".to_owned());
    }
    Ok(login.is_some())
}

/// A mail relay: `smtp://host`, `smtps://user:password@host:port`, `smtp://host:587?tls=required`.
pub(super) fn relay(text: &str) -> Result<Relay, String> {
    let url = one_host(text, ["smtp", "smtps"])?;
    if !matches!(url.path(), "" | "/") {
        return Err("nothing but ?tls= comes after the host".to_owned());
    }
    let tls = match (url.scheme(), url.query().unwrap_or_default()) {
        ("smtps", "") => RelayTls::Implicit,
        ("smtps", _) => return Err("smtps:// is TLS from the first byte and takes no ?tls=".to_owned()),
        (_, "") => RelayTls::Opportunistic,
        (_, "tls=required") => RelayTls::Required,
        (_, "tls=opportunistic") => RelayTls::Opportunistic,
        (_, "tls=none") => RelayTls::Never,
        _ => return Err("expected ?tls=required, ?tls=opportunistic or ?tls=none after the host".to_owned()),
    };
    let login = broker_url::login_of(&url).map_err(|error| error.to_string())?;
    if login.is_some() && url.password().is_none() {
        return Err("has a user and no password: write user:password@host".to_owned());
    }
    let host = broker_url::host(&url).map_err(|error| error.to_string())?;
    let port = url.port().unwrap_or(if tls == RelayTls::Implicit { 465 } else { 25 });
    Ok(Relay { host, port, tls, login })
}
