//! The fake relay, and what must hold of mail: whatever crashes and whichever answers are lost, each recipient is told of
//! each loss and each return in exactly one mail, counted by message id.

use super::world::World;
use rouse_master::core::event::Event;
use rouse_master::core::mail::{DeliveryResult, Mail, MailError, MailId, Taken, What};
use rouse_master::core::record::WorkerRecord;
use rouse_shared::{Timestamp, WorkerName};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// An address that no relay knows.
pub(super) const NOBODY: &str = "nobody@example.org";
/// Longest that the driver waits.
const PATIENCE: u64 = 60_000;

/// Something that one recipient is to be told: who, of which worker, when it was told missing, and whether it is back.
type Told = (String, WorkerName, Timestamp, bool);

#[derive(Default)]
pub(super) struct Relay {
    /// What the ledger says that people are to be told.
    due: BTreeSet<Told>,
    /// The mails that told it.
    told: BTreeMap<Told, BTreeSet<MailId>>,
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
            self.relay.due.extend(before.told.into_iter().map(|to| (to, name.clone(), since, true)));
        }
        let Some(since) = record.missing_since else { return };
        self.relay.due.extend(record.told.iter().map(|to| (to.clone(), name.clone(), since, false)));
        // One that is quarantined had a host when a reload made it a standing one.
        let standing =
            self.script.plan.workers.get(name).filter(|w| w.latent.is_none() && record.quarantined.is_none());
        let linked = Duration::from_millis(self.now - self.relay.linked_at);
        if standing.is_some_and(|w| linked < w.missing_timeout) {
            self.violated(format!(
                "worker {name} is told missing, and it could attach for {} s only",
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
            let (back, handed) = if lost {
                (PATIENCE - there, Err(MailError::Relay("no answer within 60 s".to_owned())))
            } else {
                (20, answer)
            };
            w.master_event_of(epoch, back, Event::MailSent { mail: mail.id, handed });
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
                Taken::Refused("550 no such user".to_owned())
            } else if self.mishap(self.faults.relay) {
                Taken::Later("450 try again".to_owned())
            } else {
                self.deliver(to, mail);
                Taken::Yes
            };
            answers.push((to.clone(), taken));
        }
        Ok(answers)
    }

    fn deliver(&mut self, to: &str, mail: &Mail) {
        for item in &mail.items {
            let told = match &item.what {
                What::Missing { worker, .. } => (to.to_owned(), worker.clone(), item.at, false),
                What::Back { worker, missing_since } => (to.to_owned(), worker.clone(), *missing_since, true),
                What::Orphan { .. } | What::BrokerBlocked { .. } | What::BrokerUnblocked { .. } => continue,
            };
            if !self.relay.due.contains(&told) {
                self.violated(format!("{told:?} is told by mail, and the ledger knows nothing of it"));
            }
            let mails = self.relay.told.entry(told.clone()).or_default();
            mails.insert(mail.id.clone());
            if mails.len() > 1 {
                self.violated(format!("{told:?} is told in two mails"));
            }
        }
    }

    /// After quiet: everything was told.
    pub(super) fn check_mail(&mut self) {
        let untold = |told: &&Told| told.0 != NOBODY && !self.relay.told.contains_key(*told);
        if let Some(told) = self.relay.due.iter().find(untold) {
            let text = format!("{told:?} was never told by mail");
            return self.violated(text);
        }
        let waits = self.disk.mails.values().find(|mail| mail.waiting.iter().any(|to| to != NOBODY));
        if let Some(mail) = waits {
            let text = format!("mail {} still waits after quiet: {:?}", mail.id.0, mail.error);
            self.violated(text);
        }
    }
}
