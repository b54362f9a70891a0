//! Passes mails to the relay, with one connection for each mail. The core decides whom to notify of what, and when to
//! try again.
//!
//! **Invariant**: the same [`Mail`] is always the same message, including its `Message-ID`, however often it is sent.

mod text;

#[cfg(test)]
mod tests;

use crate::config::{MailConfig, RelayTls};
use crate::core::mail::{DeliveryResult, Mail, MailError, RecipientAnswer};
use lettre::address::Address;
use lettre::message::header::{HeaderName, HeaderValue};
use lettre::message::{Mailbox, Message, SinglePart};
use lettre::transport::smtp::authentication::{Credentials, DEFAULT_MECHANISMS};
use lettre::transport::smtp::client::{AsyncSmtpConnection, Certificate, CertificateStore, TlsParameters};
use lettre::transport::smtp::commands::{Data, Mail as MailFrom, Rcpt};
use lettre::transport::smtp::extension::{ClientId, Extension, MailParameter};
use lettre::transport::smtp::{Error, response::Severity};
use rouse_shared::broker_url::bracketed;
use std::error::Error as _;
use std::future::Future;
use std::time::{Duration, UNIX_EPOCH};

/// Time limits for the relay.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the connection with TLS, greeting and login, and for each later command.
    pub command: Duration,
    /// For the answer after the message. Some relays check for spam first, and would get the mail again if the master
    /// did not wait. RFC 5321 (4.5.3.2.6) asks for ten minutes.
    pub data: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { command: Duration::from_secs(60), data: Duration::from_secs(600) }
    }
}

/// How long to wait for the end of the connection. The relay has the mail by then.
const FAREWELL: Duration = Duration::from_secs(5);

/// Passes `mail` to the relay for its waiting recipients. Always ends, within [`Patience`].
///
/// # Errors
/// Why no recipient's mail was accepted.
pub async fn hand_over(config: &MailConfig, master: &str, mail: &Mail, patience: Patience) -> DeliveryResult {
    let message = message(config, master, mail)?;
    let name = format!("{}:{}", bracketed(&config.relay.host), config.relay.port);
    let mut connection = match tokio::time::timeout(patience.command, connect(config)).await {
        Ok(connected) => connected.map_err(|why| MailError::Relay(format!("{name}: {why}")))?,
        Err(_) => return Err(MailError::Relay(format!("{name}: {}", silent(patience.command)))),
    };
    let result = transact(&mut connection, config, mail, &message, patience).await;
    match result {
        Err(MailError::Relay(why)) => Err(MailError::Relay(format!("{name}: {why}"))),
        result => {
            // The result does not matter.
            drop(tokio::time::timeout(FAREWELL, connection.quit()).await);
            result
        }
    }
}

fn silent(limit: Duration) -> String {
    format!("no answer within {} s", limit.as_secs())
}

/// The message.
fn message(config: &MailConfig, master: &str, mail: &Mail) -> Result<Vec<u8>, MailError> {
    let mailbox = |address: &str| address.parse::<Address>().map(|address| Mailbox::new(None, address));
    let from = mailbox(&config.from).map_err(|e| MailError::Refused(format!("mail.from is no address: {e}")))?;
    let automatic = HeaderValue::new(HeaderName::new_from_ascii_str("Auto-Submitted"), "auto-generated".to_owned());
    let mut builder = Message::builder()
        .from(from)
        .subject(text::subject(master, &mail.items))
        .message_id(Some(format!("<{}>", mail.id.0)))
        .date(UNIX_EPOCH + Duration::from_millis(mail.created.0))
        .raw_header(automatic);
    for to in &mail.to {
        // An invalid address gets no mail.
        if let Ok(to) = mailbox(to) {
            builder = builder.to(to);
        }
    }
    let body = text::body(master, &mail.items);
    let message = builder
        .singlepart(SinglePart::plain(body))
        .map_err(|e| MailError::Refused(format!("no message can be made of it: {e}")))?;
    Ok(message.formatted())
}

async fn connect(config: &MailConfig) -> Result<AsyncSmtpConnection, String> {
    let relay = &config.relay;
    let (address, hello) = ((relay.host.as_str(), relay.port), ClientId::default());
    if relay.tls == RelayTls::Implicit {
        let tls = tls(config)?;
        let connected = AsyncSmtpConnection::connect_tokio1(address, None, &hello, Some(tls), None);
        return login(connected.await.map_err(said)?, config).await;
    }
    let connected = AsyncSmtpConnection::connect_tokio1(address, None, &hello, None, None);
    let mut connection = connected.await.map_err(said)?;
    if relay.tls != RelayTls::Never && connection.can_starttls() {
        connection.starttls(tls(config)?, &hello).await.map_err(said)?;
    } else if config.needs_tls() {
        let why = match relay.tls {
            RelayTls::Required | RelayTls::Implicit => "mail.relay asks for it",
            RelayTls::Opportunistic | RelayTls::Never => {
                "a password is only sent unprotected where mail.relay ends with ?tls=none"
            }
        };
        return Err(format!("it does not offer STARTTLS, and {why}"));
    }
    login(connection, config).await
}

/// The TLS settings. Reads the certificates that this machine trusts, if they are needed.
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

async fn login(mut connection: AsyncSmtpConnection, config: &MailConfig) -> Result<AsyncSmtpConnection, String> {
    if let Some((user, password)) = &config.relay.login {
        let credentials = Credentials::new(user.clone(), password.expose().to_owned());
        let refused = |error: Error| format!("the login of mail.relay: {}", said(error));
        connection.auth(DEFAULT_MECHANISMS, &credentials).await.map_err(refused)?;
    }
    Ok(connection)
}

async fn transact(
    connection: &mut AsyncSmtpConnection,
    config: &MailConfig,
    mail: &Mail,
    message: &[u8],
    patience: Patience,
) -> DeliveryResult {
    let from: Address = config.from.parse().map_err(|e| MailError::Refused(format!("mail.from is no address: {e}")))?;
    let recipients: Vec<(&String, Option<Address>)> = mail.waiting.iter().map(|to| (to, to.parse().ok())).collect();
    let wide = !mail.waiting.iter().chain([&config.from]).all(|address| address.is_ascii());
    let wide = wide && connection.server_info().supports_feature(Extension::SmtpUtfEight);
    let parameters = if wide { vec![MailParameter::SmtpUtfEight] } else { Vec::new() };
    within(patience.command, connection.command(MailFrom::new(Some(from), parameters))).await?;
    let mut answers = Vec::new();
    for (to, address) in recipients {
        let taken = match address {
            None => RecipientAnswer::Refused("it is no address that mail can be sent to".to_owned()),
            Some(_) if !wide && !to.is_ascii() => {
                RecipientAnswer::Refused("the relay takes no addresses beyond ASCII".to_owned())
            }
            Some(address) => match within(patience.command, connection.command(Rcpt::new(address, Vec::new()))).await {
                Ok(()) => RecipientAnswer::Accepted,
                Err(MailError::Later(why)) => RecipientAnswer::Later(why),
                Err(MailError::Refused(why)) => RecipientAnswer::Refused(why),
                Err(error @ MailError::Relay(_)) => return Err(error),
            },
        };
        answers.push((to.clone(), taken));
    }
    if answers.iter().any(|(_, taken)| *taken == RecipientAnswer::Accepted) {
        within(patience.command, connection.command(Data)).await?;
        within(patience.data, connection.message(message)).await?;
    }
    Ok(answers)
}

/// The answer to one command within a time limit.
async fn within<T>(limit: Duration, answer: impl Future<Output = Result<T, Error>>) -> Result<(), MailError> {
    match tokio::time::timeout(limit, answer).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(kind(error)),
        Err(_) => Err(MailError::Relay(silent(limit))),
    }
}

/// What a negative answer to a mail or a recipient means, by its code alone.
fn kind(error: Error) -> MailError {
    let Some(code) = error.status() else { return MailError::Relay(said(error)) };
    match (u16::from(code), code.severity) {
        // The relay closes the connection (421), or requires another login (RFC 4954, 6).
        (421 | 432 | 454 | 530 | 534 | 535 | 538, _) => MailError::Relay(said(error)),
        (_, Severity::TransientNegativeCompletion) => MailError::Later(said(error)),
        (_, Severity::PermanentNegativeCompletion) => MailError::Refused(said(error)),
        // An answer that does not fit the command.
        (_, Severity::PositiveCompletion | Severity::PositiveIntermediate) => MailError::Relay(said(error)),
    }
}

/// The text of the relay's or the system's error, for people.
fn said(error: Error) -> String {
    let text = match (error.status(), error.source()) {
        (Some(code), Some(words)) => format!("it said {code} {words}"),
        (Some(code), None) => format!("it said {code}"),
        (None, Some(cause)) => cause.to_string(),
        (None, None) => error.to_string(),
    };
    // Some relays send several lines.
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
