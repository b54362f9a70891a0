//! Sends mails to the relay, with one connection for each mail. The core decides whom to notify of what, and when to
//! retry.
//!
//! **Invariant**: the same [`Mail`] is always the same message, including its `Message-ID`, however often it is sent.

mod connection;
mod login;
mod online;
mod text;

#[cfg(test)]
mod tests;

pub use connection::full_name;
pub use online::check;

use crate::config::MailConfig;
use crate::core::mail::{DeliveryResult, Mail, MailError, RecipientAnswer};
use lettre::address::Address;
use lettre::message::header::{HeaderName, HeaderValue};
use lettre::message::{Mailbox, Message, SinglePart};
use lettre::transport::smtp::client::AsyncSmtpConnection;
use lettre::transport::smtp::commands::{Data, Mail as MailFrom, Rcpt};
use lettre::transport::smtp::extension::{ClientId, Extension, MailParameter};
use lettre::transport::smtp::{Error, response::Severity};
use rouse_shared::broker_url::bracketed;
use std::collections::BTreeSet;
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
    let name = name(config);
    let (mut connection, _) = open(config, patience).await?;
    let handed = transact(&mut connection, config, mail, &message, patience).await;
    match handed {
        Err(MailError::Relay(why)) => Err(MailError::Relay(format!("{name}: {why}"))),
        result => {
            // The result does not matter.
            drop(tokio::time::timeout(FAREWELL, connection.quit()).await);
            result
        }
    }
}

fn name(config: &MailConfig) -> String {
    format!("{}:{}", bracketed(&config.relay.host), config.relay.port)
}

/// A connection to the relay that has let us in, in time, and the name under which we greeted it.
async fn open(config: &MailConfig, patience: Patience) -> Result<(AsyncSmtpConnection, ClientId), MailError> {
    let why = match tokio::time::timeout(patience.command, connection::open(config)).await {
        Ok(Ok(opened)) => return Ok(opened),
        Ok(Err(why)) => why,
        Err(_) => silent(patience.command),
    };
    Err(MailError::Relay(format!("{}: {why}", name(config))))
}

fn silent(limit: Duration) -> String {
    format!("no answer within {} s", limit.as_secs())
}

/// The message.
fn message(config: &MailConfig, master: &str, mail: &Mail) -> Result<Vec<u8>, MailError> {
    let mailbox = |address: &str| address.parse::<Address>().map(|address| Mailbox::new(None, address));
    let from = mailbox(&config.from).map_err(|e| MailError::Refused(format!("mail.from is not an address: {e}")))?;
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
        .map_err(|e| MailError::Refused(format!("no message can be created from it: {e}")))?;
    Ok(message.formatted())
}

async fn transact(
    connection: &mut AsyncSmtpConnection,
    config: &MailConfig,
    mail: &Mail,
    message: &[u8],
    patience: Patience,
) -> DeliveryResult {
    let answers = address(connection, config, &mail.waiting, patience).await?;
    if answers.iter().any(|(_, taken)| *taken == RecipientAnswer::Accepted) {
        within(patience.command, connection.command(Data)).await?;
        within(patience.data, connection.message(message)).await?;
    }
    Ok(answers)
}

/// Names the sender and the recipients of a mail, and gets the relay's answer whether it would accept it.
async fn address(
    connection: &mut AsyncSmtpConnection,
    config: &MailConfig,
    recipients: &BTreeSet<String>,
    patience: Patience,
) -> DeliveryResult {
    let from: Address =
        config.from.parse().map_err(|e| MailError::Refused(format!("mail.from is not an address: {e}")))?;
    let wide = !recipients.iter().chain([&config.from]).all(|address| address.is_ascii());
    let wide = wide && connection.server_info().supports_feature(Extension::SmtpUtfEight);
    let parameters = if wide { vec![MailParameter::SmtpUtfEight] } else { Vec::new() };
    within(patience.command, connection.command(MailFrom::new(Some(from), parameters))).await?;
    let mut answers = Vec::new();
    for to in recipients {
        let taken = match to.parse::<Address>().ok() {
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
