//! The connection to the relay: its encryption, and the name in the greeting.

use super::{login, said};
use crate::config::{MailConfig, RelayTls};
use lettre::transport::smtp::client::{AsyncSmtpConnection, Certificate, CertificateStore, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use rouse_shared::certificate;
use std::ffi::{CStr, CString};
use std::time::Duration;

/// How long the name service may take to answer with the full name of this machine.
const NAME_SERVICE: Duration = Duration::from_secs(5);

/// Connects, protects the connection as the relay's address asks for, and logs in. Also returns the name that was
/// given.
///
/// # Errors
/// Why not, in words that do without the relay's name.
pub(super) async fn open(config: &MailConfig) -> Result<(AsyncSmtpConnection, ClientId), String> {
    let relay = &config.relay;
    let hello = ClientId::Domain(hello_name(config).await);
    let address = (relay.host.as_str(), relay.port);
    let implicit = if relay.tls == RelayTls::Implicit { Some(tls(config)?) } else { None };
    let connected = AsyncSmtpConnection::connect_tokio1(address, None, &hello, implicit, None);
    let mut connection = connected.await.map_err(|error| greeted(error, config, &hello))?;
    if relay.tls == RelayTls::Implicit {
        // Protected from its first byte.
    } else if relay.tls != RelayTls::Never && connection.can_starttls() {
        connection.starttls(tls(config)?, &hello).await.map_err(|error| greeted(error, config, &hello))?;
    } else if config.needs_tls() {
        let why = match relay.tls {
            RelayTls::Required | RelayTls::Implicit => "mail.relay asks for it",
            RelayTls::Opportunistic | RelayTls::Never => {
                "a password is sent without TLS only if mail.relay ends with ?tls=none"
            }
        };
        return Err(format!("it does not offer STARTTLS, and {why}"));
    }
    login::login(&mut connection, config, &hello).await?;
    Ok((connection, hello))
}

/// The relay's answer when it knew only our name, which may be the reason.
fn greeted(error: lettre::transport::smtp::Error, config: &MailConfig, hello: &ClientId) -> String {
    let refused = error.status().is_some();
    let explained = certificate::explain(&error, &config.relay.host);
    let mut why = said(error);
    why.extend(explained.map(|text| format!(": {text}")));
    if refused { format!("{why} (the name given to it is {hello}, see mail.hello_name)") } else { why }
}

/// The name to greet the relay with. Many relays refuse one without a domain.
async fn hello_name(config: &MailConfig) -> String {
    if let Some(name) = &config.hello_name {
        return name.clone();
    }
    let asked = tokio::time::timeout(NAME_SERVICE, tokio::task::spawn_blocking(full_name)).await;
    choose_name(asked.ok().and_then(Result::ok).flatten().as_deref(), &config.from)
}

/// The machine's full name if it has one, otherwise the domain of `from`.
pub(super) fn choose_name(machine: Option<&str>, from: &str) -> String {
    if let Some(name) = machine.map(|name| name.trim_end_matches('.')).filter(|name| is_full(name)) {
        return name.to_owned();
    }
    let domain = from.rsplit('@').next().unwrap_or_default();
    // A domain in other letters travels as ASCII.
    url::Host::parse(domain).map_or_else(|_| domain.to_owned(), |host| host.to_string())
}

/// Whether a relay elsewhere can make anything of this name.
fn is_full(name: &str) -> bool {
    let letters = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    // What /etc/hosts gives a machine that nobody has named.
    let last = name.rsplit('.').next().unwrap_or_default();
    letters && name.contains('.') && !matches!(last, "localhost" | "localdomain" | "localdomain4" | "localdomain6")
}

/// What `hostname --fqdn` prints: the host name if it is a full one, otherwise the name that the name service has for
/// it. May wait for the name service.
pub fn full_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?.trim().to_owned();
    if is_full(&name) {
        return Some(name);
    }
    let asked = CString::new(name).ok()?;
    // SAFETY: all zeros is a valid value of this struct of integers and pointers, and means "any".
    let mut hints: libc::addrinfo = unsafe { std::mem::zeroed() };
    hints.ai_flags = libc::AI_CANONNAME;
    hints.ai_socktype = libc::SOCK_STREAM;
    let mut found = std::ptr::null_mut();
    // SAFETY: the name ends with a NUL, the hints are initialised, and the result is freed below and not used after.
    unsafe {
        if libc::getaddrinfo(asked.as_ptr(), std::ptr::null(), &raw const hints, &raw mut found) != 0 {
            return None;
        }
        let canonical = (*found).ai_canonname;
        let name = (!canonical.is_null()).then(|| CStr::from_ptr(canonical).to_string_lossy().into_owned());
        libc::freeaddrinfo(found);
        name
    }
}

/// How TLS is done. Reads what certificates this machine trusts, if they matter.
fn tls(config: &MailConfig) -> Result<TlsParameters, String> {
    let mut builder = TlsParameters::builder(config.relay.host.clone());
    if config.verifies() {
        if let Some(path) = &config.ca {
            let cannot = |e: &dyn std::fmt::Display| format!("cannot read {} (mail.ca): {e}", path.display());
            let pem = std::fs::read(path).map_err(|e| cannot(&e))?;
            builder = builder.add_root_certificate(Certificate::from_pem(&pem).map_err(|e| cannot(&e))?);
        }
    } else {
        builder = builder.certificate_store(CertificateStore::None);
        builder = builder.dangerous_accept_invalid_certs(true).dangerous_accept_invalid_hostnames(true);
    }
    builder.build().map_err(said)
}
