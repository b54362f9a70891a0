//! `rouse check --online`: connects to the relay, names the sender and the recipients, and disconnects before it would
//! send a mail.

use super::{FAREWELL, Patience, address, name, open};
use crate::config::{Config, MailConfig};
use crate::core::mail::{MailError, RecipientAnswer};
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// Asks the relay whether it would accept mail for all recipients in the configuration: sentences, and whether each is
/// as it should be. Nothing is said of a relay that nobody has named and that has no mail to take.
pub async fn check(config: &Config, patience: Patience) -> Vec<(bool, String)> {
    let mut recipients: BTreeSet<String> = config.mail.extra_recipients.iter().cloned().collect();
    recipients.extend(config.plan.workers.values().flat_map(|worker| worker.notify_on_missing.iter().cloned()));
    if recipients.is_empty() && config.mail.is_default() {
        return Vec::new();
    }
    let found = ask(&config.mail, &recipients, patience).await;
    found.into_iter().map(|(good, text)| (good, format!("mail.relay: {text}"))).collect()
}

async fn ask(config: &MailConfig, recipients: &BTreeSet<String>, patience: Patience) -> Vec<(bool, String)> {
    let (mut connection, hello) = match open(config, patience).await {
        Ok(opened) => opened,
        Err(MailError::Relay(why) | MailError::Later(why) | MailError::Refused(why)) => return vec![(false, why)],
    };
    let relay = name(config);
    let answers = address(&mut connection, config, recipients, patience).await;
    let mut how = format!("greeted as {hello}");
    how += if connection.is_encrypted() { ", with TLS" } else { ", without TLS" };
    if let Some((user, _)) = &config.relay.login {
        write!(how, ", logged in as {user}").ok();
    }
    let answers = match answers {
        Ok(answers) => {
            // Without it some relays take the end of the connection for a failure, and note it.
            drop(tokio::time::timeout(FAREWELL, connection.quit()).await);
            answers
        }
        Err(MailError::Relay(why) | MailError::Later(why) | MailError::Refused(why)) => {
            return vec![(false, format!("{relay} ({how}) accepts no mail from {}: {why}", config.from))];
        }
    };
    let taken: Vec<&str> =
        answers.iter().filter(|(_, taken)| *taken == RecipientAnswer::Accepted).map(|(to, _)| to.as_str()).collect();
    let mut found = Vec::new();
    if recipients.is_empty() {
        found.push((true, format!("{relay} ({how}) accepts mail from {}; no setting names a recipient", config.from)));
    } else if !taken.is_empty() {
        found.push((true, format!("{relay} ({how}) accepts mail from {} to {}", config.from, taken.join(", "))));
    }
    for (to, taken) in &answers {
        match taken {
            RecipientAnswer::Accepted => {}
            RecipientAnswer::Later(why) => {
                found.push((false, format!("{relay} ({how}) does not accept mail to {to} at the moment: {why}")))
            }
            RecipientAnswer::Refused(why) => {
                found.push((false, format!("{relay} ({how}) accepts no mail to {to}: {why}")))
            }
        }
    }
    found
}
