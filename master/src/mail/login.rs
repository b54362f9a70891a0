//! The login at the relay: AUTH PLAIN, or AUTH LOGIN as relays implement it.
//!
//! AUTH LOGIN was never standardised. The first prompt asks for the user and the second for the password, whatever
//! their text is: some relays translate the prompts, and some send empty ones.

use super::said;
use crate::config::MailConfig;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lettre::transport::smtp::Error;
use lettre::transport::smtp::authentication::Mechanism;
use lettre::transport::smtp::client::AsyncSmtpConnection;
use lettre::transport::smtp::extension::ClientId;
use std::fmt;

/// The relay wants more.
const PROMPT: u16 = 334;

/// A line of ours.
struct Line(String);

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\r\n", self.0)
    }
}

/// Logs in, if `mail.relay` has a user and a password.
///
/// # Errors
/// What the relay said; never with the password in it.
pub(super) async fn login(
    connection: &mut AsyncSmtpConnection,
    config: &MailConfig,
    hello: &ClientId,
) -> Result<(), String> {
    let Some((user, password)) = &config.relay.login else { return Ok(()) };
    let refused = |why: String| format!("the login of mail.relay: {why}");
    let mechanism = offered(connection, hello).await.map_err(refused)?;
    let password = password.expose();
    let (command, answers) = match mechanism {
        Mechanism::Login => ("AUTH LOGIN".to_owned(), vec![user.clone(), password.to_owned()]),
        Mechanism::Plain | Mechanism::Xoauth2 => {
            let response = format!("\0{user}\0{password}");
            // Some want it asked for, although it was sent with the command (RFC 4954, 4).
            (format!("AUTH PLAIN {}", STANDARD.encode(&response)), vec![response])
        }
    };
    let mut wants_more = ask(connection, command).await.map_err(|error| refused(said(error)))?;
    for answer in answers {
        if !wants_more {
            return Ok(());
        }
        wants_more = ask(connection, STANDARD.encode(answer)).await.map_err(|error| refused(said(error)))?;
    }
    if wants_more { Err(refused(format!("it asks for more than AUTH {mechanism} provides"))) } else { Ok(()) }
}

/// Sends a line; whether the relay answers with a prompt.
async fn ask(connection: &mut AsyncSmtpConnection, line: String) -> Result<bool, Error> {
    match connection.command(Line(line)).await {
        Ok(response) => Ok(response.has_code(PROMPT)),
        // A bare 334, without the space that belongs behind it, is a prompt without words. lettre takes it for no
        // answer; what is really wrong, the answer to the next line says.
        Err(error) if error.is_response() && error.status().is_none() && !connection.has_broken() => Ok(true),
        Err(error) => Err(error),
    }
}

/// The mechanism to use. PLAIN needs one message less.
async fn offered(connection: &mut AsyncSmtpConnection, hello: &ClientId) -> Result<Mechanism, String> {
    const OURS: [Mechanism; 2] = [Mechanism::Plain, Mechanism::Login];
    if let Some(mechanism) = connection.server_info().get_auth_mechanism(&OURS) {
        return Ok(mechanism);
    }
    // lettre knows the words in capitals, and not `AUTH=LOGIN`, which relays offer to old clients.
    let answer = connection.command(Line(format!("EHLO {hello}"))).await.map_err(said)?;
    choose(answer.message())
}

/// The mechanism to use, of those that the lines of an EHLO's answer offer.
fn choose<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Mechanism, String> {
    let mut all = Vec::new();
    for line in lines {
        let line = line.to_ascii_uppercase().replace('=', " ");
        let mut words = line.split_whitespace();
        if words.next() == Some("AUTH") {
            all.extend(words.map(str::to_owned));
        }
    }
    let has = |name: &str| all.iter().any(|word| word == name);
    match () {
        () if has("PLAIN") => Ok(Mechanism::Plain),
        () if has("LOGIN") => Ok(Mechanism::Login),
        () if all.is_empty() => Err("it offers none: leave user and password out".to_owned()),
        () => Err(format!("it offers AUTH {}, but rouse supports only PLAIN and LOGIN", all.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mechanisms_are_found_however_they_are_written() {
        let chosen = |lines: &[&str]| choose(lines.iter().copied());
        assert_eq!(chosen(&["mx", "AUTH LOGIN PLAIN"]), Ok(Mechanism::Plain));
        assert_eq!(chosen(&["mx", "auth login"]), Ok(Mechanism::Login));
        assert_eq!(chosen(&["mx", "AUTH=LOGIN", "AUTH CRAM-MD5"]), Ok(Mechanism::Login));
        assert!(chosen(&["mx", "AUTH CRAM-MD5 NTLM"]).unwrap_err().contains("CRAM-MD5, NTLM"));
        assert!(chosen(&["mx", "SIZE"]).unwrap_err().contains("offers none"));
    }
}
