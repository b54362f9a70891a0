//! The fake relay, and the invariants about mail: whatever crashes and whichever answers are lost, each recipient gets
//! exactly one mail about each missing worker and each return, counted by message id.

use super::world::World;
use rouse_master::core::event::Event;
use rouse_master::core::mail::{DeliveryResult, Mail, MailError, MailId, RecipientAnswer, What};
use rouse_master::core::record::WorkerRecord;
use rouse_shared::{Timestamp, WorkerName};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// An address that no relay knows.
pub(super) const NOBODY: &str = "nobody@example.org";
/// Longest that the driver waits.
const PATIENCE: u64 = 60_000;

/// A notification: recipient, worker, when the worker was reported as missing, and whether it is back.
type Notification = (String, WorkerName, Timestamp, bool);

#[derive(Default)]
pub(super) struct Relay {
    /// The notifications that the ledger requires.
    due: BTreeSet<Notification>,
    /// The mails that contained each notification.
    sent: BTreeMap<Notification, BTreeSet<MailId>>,
    /// Since when the master is linked to the broker.
    pub linked_at: u64,
}

impl World {
    /// A worker's record is about to be committed: it may say that the worker is missing, or back.
    pub(super) fn check_missing(&mut self, name: &WorkerName, record: &WorkerRecord) {
        let before = self.disk.workers.get(name).cloned().unwrap_or_default();
        if record.missing_since == before.missing_since {
            return;
        }
        // One that a reload has taken out is forgotten, and comes back to nobody.
        if let Some(since) = before.missing_since.filter(|_| self.script.plan.workers.contains_key(name)) {
            self.relay.due.extend(before.notified.into_iter().map(|to| (to, name.clone(), since, true)));
        }
        let Some(since) = record.missing_since else { return };
        self.relay.due.extend(record.notified.iter().map(|to| (to.clone(), name.clone(), since, false)));
        // One of which several hosts did not start had one when a reload made it a standing one.
        let standing = self.script.plan.workers.get(name).filter(|w| w.latent.is_none() && record.faults == 0);
        let linked = Duration::from_millis(self.now - self.relay.linked_at);
        if standing.is_some_and(|w| linked < w.missing_timeout) {
            self.violated(format!(
                "worker {name} is reported as missing, and it could attach for {} s only",
                linked.as_secs()
            ));
        }
    }

    pub(super) fn send_mail(&mut self, mail: Mail) {
        if !self.disk.mails.contains_key(&mail.id) {
            return self.violated(format!("mail {} is sent and is not in the ledger", mail.id.0));
        }
        let epoch = self.master.epoch;
        let there = self.delay(10, 3_000);
        self.after(there, move |w| {
            let answer = w.take_mail(&mail);
            let lost = w.mishap(w.faults.relay);
            w.say(|| format!("relay: {} -> {answer:?}{}", mail.id.0, if lost { ", and it is lost" } else { "" }));
            let (back, result) = if lost {
                (PATIENCE - there, Err(MailError::Relay("no answer within 60 s".to_owned())))
            } else {
                (20, answer)
            };
            w.master_event_of(epoch, back, Event::MailSent { mail: mail.id, result });
        });
    }

    fn take_mail(&mut self, mail: &Mail) -> DeliveryResult {
        if self.mishap(self.faults.relay) {
            let why = "it is one of those days".to_owned();
            return Err(match self.chance.range(0, 2) {
                0 => MailError::Later(why),
                1 => MailError::Refused(why),
                _ => MailError::Relay(why),
            });
        }
        let mut answers = Vec::new();
        for to in &mail.waiting {
            let taken = if to == NOBODY {
                RecipientAnswer::Refused("550 no such user".to_owned())
            } else if self.mishap(self.faults.relay) {
                RecipientAnswer::Later("450 try again".to_owned())
            } else {
                self.deliver(to, mail);
                RecipientAnswer::Accepted
            };
            answers.push((to.clone(), taken));
        }
        Ok(answers)
    }

    fn deliver(&mut self, to: &str, mail: &Mail) {
        for item in &mail.items {
            let notification = match &item.what {
                What::Missing { worker, .. } => (to.to_owned(), worker.clone(), item.at, false),
                What::Back { worker, missing_since } => (to.to_owned(), worker.clone(), *missing_since, true),
                What::Orphan { .. }
                | What::PlacePaused { .. }
                | What::PlaceBack { .. }
                | What::Lingering { .. }
                | What::LingeringOver { .. }
                | What::BrokerBlocked { .. }
                | What::BrokerUnblocked { .. } => continue,
            };
            if !self.relay.due.contains(&notification) {
                self.violated(format!("{notification:?} was sent, and it is not in the ledger"));
            }
            let mails = self.relay.sent.entry(notification.clone()).or_default();
            mails.insert(mail.id.clone());
            if mails.len() > 1 {
                self.violated(format!("{notification:?} is in two mails"));
            }
        }
    }

    /// After quiet: every notification was sent.
    pub(super) fn check_mail(&mut self) {
        let unsent =
            |notification: &&Notification| notification.0 != NOBODY && !self.relay.sent.contains_key(*notification);
        if let Some(notification) = self.relay.due.iter().find(unsent) {
            let text = format!("{notification:?} was never sent");
            return self.violated(text);
        }
        let waits = self.disk.mails.values().find(|mail| mail.waiting.iter().any(|to| to != NOBODY));
        if let Some(mail) = waits {
            let text = format!("mail {} still waits after quiet: {:?}", mail.id.0, mail.error);
            self.violated(text);
        }
    }
}
