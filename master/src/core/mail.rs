//! What is told by mail: news are gathered for a minute, then put into mails, which stay in the ledger until the relay
//! has taken them.
//!
//! A piece of news is committed with what caused it, and goes over into a mail in one transaction: so each is named to
//! each of its recipients in exactly one mail. Recipients with the same news share the mail. A mail keeps its message
//! id for ever: one that is sent again after a crash, because the relay's answer was lost, is the same mail.
//!
//! A relay that does not answer, or does not let us in, is asked again with growing pauses for as long as it takes, by
//! one mail at a time. Where it takes the mail for some recipients and refuses others for good, those are given up: the
//! relay works, the address does not. Where it refuses all of them, or the mail, its own rules may be at fault: that is
//! tried for a day.

use super::event::{Effect, Level, ListedHost};
use super::plan::ProviderKind;
use super::record::Record;
use super::timers::Timer;
use super::{Core, Timestamp};
use rouse_shared::{HostId, WorkerName};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// News that come within this time of the first share its mail.
const GATHER: Duration = Duration::from_secs(60);
/// First pause after a relay did not serve us; doubled with each further time in a row, up to [`PAUSE_MOST`].
const PAUSE_FIRST: Duration = Duration::from_secs(5);
/// Longest pause before a relay or a recipient is tried again.
const PAUSE_MOST: Duration = Duration::from_secs(900);
/// How long a mail is offered that the relay refuses for good.
const REFUSED_MOST: Duration = Duration::from_secs(24 * 3_600);
/// Mails on their way at once, at most: a relay that is slow with one must not hold up the next.
const AT_ONCE: usize = 4;

/// Names a mail: its Message-ID without the brackets.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MailId(pub String);

/// Something that people are to be told, and has not been put into a mail yet.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct News {
    /// Tells it from other news that wait.
    pub id: u64,
    /// Who is to be told; not empty.
    pub to: BTreeSet<String>,
    /// What.
    pub item: Item,
}

/// One thing that a mail tells.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Item {
    /// When it was found.
    pub at: Timestamp,
    /// What was found.
    pub what: What,
}

/// What people are told of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// A worker has gone missing.
    Missing {
        /// Which.
        worker: WorkerName,
        /// Why it counts as missing, in a sentence.
        why: String,
    },
    /// A worker that was told missing is back.
    Back {
        /// Which.
        worker: WorkerName,
        /// When it was told missing.
        missing_since: Timestamp,
    },
    /// The audit has found a machine that is ours and that the ledger does not know.
    Orphan {
        /// Where.
        provider: ProviderKind,
        /// The host id that it is stamped with.
        host: HostId,
        /// What its provider calls it.
        handle: String,
        /// Whether it is being terminated; otherwise `audit.on_orphan` says to leave it.
        terminated: bool,
    },
    /// The broker accepts nothing.
    BrokerBlocked {
        /// The reason, as the broker gives it.
        why: String,
    },
    /// The broker accepts messages again.
    BrokerUnblocked {
        /// When it was told that it does not.
        since: Timestamp,
    },
}

impl What {
    /// In a few words.
    pub fn summary(&self) -> String {
        match self {
            Self::Missing { worker, .. } => format!("worker {worker} is missing"),
            Self::Back { worker, .. } => format!("worker {worker} is back"),
            Self::Orphan { provider, handle, .. } => format!("{handle} of {} is an orphan", provider.as_str()),
            Self::BrokerBlocked { why } => format!("the broker accepts no messages ({why})"),
            Self::BrokerUnblocked { .. } => "the broker accepts messages again".to_owned(),
        }
    }
}

/// A mail that the relay has not taken for all of its recipients yet.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Mail {
    /// Its id, the same however often it is sent.
    pub id: MailId,
    /// When it was made.
    pub created: Timestamp,
    /// Everyone that it is for.
    pub to: Vec<String>,
    /// Those that the relay has not taken it for yet.
    pub waiting: BTreeSet<String>,
    /// What it tells; not empty.
    pub items: Vec<Item>,
    /// How often it was tried.
    pub tries: u32,
    /// Not tried again before then.
    pub not_before: Timestamp,
    /// Whether the relay has taken it for somebody.
    pub taken: bool,
    /// How the last try failed.
    pub error: Option<String>,
}

/// What the relay made of one recipient.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Taken {
    /// It has the mail for this one.
    Yes,
    /// Not now: the same may be tried again.
    Later(String),
    /// Never.
    Refused(String),
}

/// Why nothing of a mail was taken. Told apart by kind, never by text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MailError {
    /// The relay could not be reached, went silent, or did not let us in; or whether it has the mail is not known.
    Relay(String),
    /// It does not take this mail now.
    Later(String),
    /// It does not take this mail, or not from this sender.
    Refused(String),
}

/// What has come of handing a mail to the relay: an answer for each recipient that still waited, or none at all.
pub type DeliveryResult = Result<Vec<(String, Taken)>, MailError>;

/// Numbers for metrics, since the start of this master.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MailCount {
    /// Mails that the relay has taken for everyone it was going to take them for.
    pub sent: u64,
    /// Tries after which somebody still waited.
    pub failed: u64,
    /// Recipients that a mail was given up for.
    pub given_up: u64,
}

/// The news and mails that wait, and how the relay is.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    news: BTreeMap<u64, News>,
    last_news: u64,
    outbox: BTreeMap<MailId, Mail>,
    /// Mails that the relay is being handed.
    under_way: BTreeSet<MailId>,
    /// Times in a row that the relay did not serve us.
    failures: u32,
    /// Nothing is handed to it before then.
    pause: Timestamp,
    count: MailCount,
    /// Orphans that people were told of.
    orphans: BTreeSet<(ProviderKind, String)>,
}

fn pause_after(failures: u32) -> Duration {
    PAUSE_FIRST.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(PAUSE_MOST)
}

impl Core {
    /// Goes on with what the master before has left: its news, its mails, and its patience with the relay.
    pub(super) fn restore_mail(&mut self, now: Timestamp, ledger: &mut super::record::Ledger) {
        let news = std::mem::take(&mut ledger.news);
        self.mail.last_news = news.iter().map(|n| n.id).max().unwrap_or(0);
        if let Some(first) = news.iter().map(|n| n.item.at).min() {
            // A clock that was put back must not keep them for ever.
            self.timers.set(Timer::News, (first + GATHER).min(now + GATHER));
        }
        self.mail.news = news.into_iter().map(|n| (n.id, n)).collect();
        for mut mail in std::mem::take(&mut ledger.mails) {
            mail.not_before = mail.not_before.min(now + PAUSE_MOST);
            self.mail.outbox.insert(mail.id.clone(), mail);
        }
        if let Some((failures, until)) = ledger.mail_pause {
            self.mail.failures = failures;
            self.mail.pause = until.min(now + PAUSE_MOST);
        }
        self.mail.orphans = std::mem::take(&mut ledger.told_orphans).into_iter().collect();
        self.send_mails(now);
    }

    /// Has people told. Committed with what the event has brought about.
    pub(super) fn tell(&mut self, now: Timestamp, to: BTreeSet<String>, what: What) {
        if to.is_empty() {
            return;
        }
        self.mail.last_news += 1;
        let news = News { id: self.mail.last_news, to, item: Item { at: now, what } };
        self.out.push(Effect::Save(Record::News(news.clone())));
        self.mail.news.insert(news.id, news);
        self.timers.set_once(Timer::News, now + GATHER);
    }

    /// Says once of an orphan that it is there: to those who are told of everything, or else to those who look after
    /// the workers of its provider.
    pub(super) fn tell_orphan(
        &mut self,
        now: Timestamp,
        provider: ProviderKind,
        machine: &ListedHost,
        terminated: bool,
    ) {
        let (host, handle) = (machine.host.clone(), machine.handle.clone());
        if self.mail.orphans.contains(&(provider, handle.clone())) {
            return;
        }
        let mut to = self.plan.mail.extra_recipients.clone();
        if to.is_empty() {
            let of = |w: &&std::sync::Arc<super::WorkerPlan>| w.latent.as_ref().is_some_and(|l| l.provider == provider);
            to = self.plan.workers.values().filter(of).flat_map(|w| w.notify_on_missing.iter().cloned()).collect();
        }
        if to.is_empty() {
            return;
        }
        self.out.push(Effect::Save(Record::OrphanTold(provider, handle.clone())));
        self.mail.orphans.insert((provider, handle.clone()));
        self.tell(now, to, What::Orphan { provider, host, handle, terminated });
    }

    /// Forgets the orphans of a provider that are not there any more.
    pub(super) fn forget_told_orphans(&mut self, provider: ProviderKind, there: impl Fn(&str) -> bool) {
        let Self { mail, out, .. } = self;
        mail.orphans.retain(|(of, handle)| {
            let stays = *of != provider || there(handle);
            if !stays {
                out.push(Effect::Save(Record::OrphanOver(*of, handle.clone())));
            }
            stays
        });
    }

    /// The first of the news has waited for [`GATHER`]: all that wait go into mails, a mail for each group of
    /// recipients that have the same news.
    pub(super) fn write_mails(&mut self, now: Timestamp) {
        let news = std::mem::take(&mut self.mail.news);
        let mut by_recipient: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for (id, piece) in &news {
            for recipient in &piece.to {
                by_recipient.entry(recipient).or_default().push(*id);
            }
        }
        let mut groups: BTreeMap<Vec<u64>, Vec<String>> = BTreeMap::new();
        for (recipient, ids) in by_recipient {
            groups.entry(ids).or_default().push(recipient.to_owned());
        }
        for (ids, to) in groups {
            let id = MailId(format!("{}@{}", self.random_hex(16), self.plan.mail.domain));
            let mail = Mail {
                id: id.clone(),
                created: now,
                waiting: to.iter().cloned().collect(),
                to,
                items: ids.iter().filter_map(|id| news.get(id)).map(|n| n.item.clone()).collect(),
                tries: 0,
                not_before: now,
                taken: false,
                error: None,
            };
            self.out.push(Effect::Save(Record::Mail(mail.clone())));
            self.mail.outbox.insert(id, mail);
        }
        for id in news.into_keys() {
            self.out.push(Effect::Save(Record::NewsOver(id)));
        }
        self.send_mails(now);
    }

    /// Hands mails to the relay: those first that were tried least. While it does not serve us, one at a time.
    pub(super) fn send_mails(&mut self, now: Timestamp) {
        self.timers.clear(&Timer::Mail);
        loop {
            let desk = &mut self.mail;
            let most = if desk.failures > 0 { 1 } else { AT_ONCE };
            if desk.under_way.len() >= most {
                // The end of one of them comes back here.
                return;
            }
            let idle = |mail: &&Mail| !desk.under_way.contains(&mail.id);
            let Some(earliest) = desk.outbox.values().filter(idle).map(|m| m.not_before).min() else { return };
            let at = earliest.max(desk.pause);
            if at > now {
                return self.timers.set(Timer::Mail, at);
            }
            let due = desk.outbox.values().filter(idle).filter(|m| m.not_before <= now);
            let Some(mail) = due.min_by_key(|m| (m.tries, m.created, &m.id)).cloned() else { return };
            desk.under_way.insert(mail.id.clone());
            self.out.push(Effect::SendMail(Box::new(mail)));
        }
    }

    /// The configuration is another now, and with it perhaps the relay: it is tried at once.
    pub(super) fn retry_mails(&mut self, now: Timestamp) {
        self.relay_serves(now);
        for mail in self.mail.outbox.values_mut() {
            mail.not_before = mail.not_before.min(now);
        }
        self.send_mails(now);
    }

    pub(super) fn on_mail_sent(&mut self, now: Timestamp, id: &MailId, handed: DeliveryResult) {
        if !self.mail.under_way.remove(id) {
            return;
        }
        let Some(mut mail) = self.mail.outbox.remove(id) else { return };
        mail.tries += 1;
        match handed {
            Err(MailError::Relay(why)) => {
                // What was under way beside it fails for the same reason, and says nothing new.
                if self.mail.failures == 0 || now >= self.mail.pause {
                    self.mail.failures += 1;
                    let pause = pause_after(self.mail.failures);
                    self.mail.pause = now + pause;
                    self.out.push(Effect::Save(Record::MailPause(self.mail.failures, self.mail.pause)));
                    let text = format!("no mail gets away: {why}; trying again in {} s", pause.as_secs());
                    self.note(Level::Warn, text);
                }
                mail.error = Some(why);
            }
            Err(MailError::Later(why)) => {
                self.relay_serves(now);
                self.put_off(now, &mut mail, why);
            }
            Err(MailError::Refused(why)) => {
                self.relay_serves(now);
                // That it took the mail for others before says nothing: this is not about the addresses.
                let all = mail.waiting.clone();
                self.put_off_or_give_up(now, &mut mail, all, &why, false);
            }
            Ok(answers) => {
                self.relay_serves(now);
                self.take_answers(now, &mut mail, answers);
            }
        }
        if mail.waiting.is_empty() {
            self.mail.count.sent += u64::from(mail.taken);
            self.out.push(Effect::Save(Record::MailOver(mail.id)));
        } else {
            self.mail.count.failed += 1;
            self.out.push(Effect::Save(Record::Mail(mail.clone())));
            self.mail.outbox.insert(mail.id.clone(), mail);
        }
        self.send_mails(now);
    }

    fn take_answers(&mut self, now: Timestamp, mail: &mut Mail, answers: Vec<(String, Taken)>) {
        let (mut refused, mut why_not, mut later) = (BTreeSet::new(), String::new(), None);
        let mut sent = Vec::new();
        for (recipient, taken) in answers {
            match taken {
                Taken::Yes if mail.waiting.remove(&recipient) => sent.push(recipient),
                Taken::Yes => {}
                Taken::Later(why) => later = Some(why),
                Taken::Refused(why) => {
                    why_not = why;
                    refused.insert(recipient);
                }
            }
        }
        if !sent.is_empty() {
            mail.taken = true;
            self.note(Level::Info, format!("mail {} is on its way to {}", mail.id.0, sent.join(", ")));
        }
        if !refused.is_empty() {
            let others = mail.taken;
            self.put_off_or_give_up(now, mail, refused, &why_not, others);
        }
        if let Some(why) = later {
            self.put_off(now, mail, why);
        }
    }

    fn put_off(&mut self, now: Timestamp, mail: &mut Mail, why: String) {
        let pause = pause_after(mail.tries);
        mail.not_before = now + pause;
        let text = format!("mail {} was not taken: {why}; trying again in {} s", mail.id.0, pause.as_secs());
        self.note(Level::Warn, text);
        mail.error = Some(why);
    }

    /// The relay refuses these recipients for good: at once where only their addresses can be at fault, else after a
    /// day.
    fn put_off_or_give_up(
        &mut self,
        now: Timestamp,
        mail: &mut Mail,
        refused: BTreeSet<String>,
        why: &str,
        at_once: bool,
    ) {
        if !at_once && now.since(mail.created) < REFUSED_MOST {
            return self.put_off(now, mail, why.to_owned());
        }
        self.mail.count.given_up += refused.len() as u64;
        for recipient in refused {
            mail.waiting.remove(&recipient);
            self.note(Level::Warn, format!("mail {} does not reach {recipient}, and is given up: {why}", mail.id.0));
        }
    }

    fn relay_serves(&mut self, now: Timestamp) {
        if std::mem::take(&mut self.mail.failures) > 0 {
            self.mail.pause = now;
            self.out.push(Effect::Save(Record::MailPause(0, now)));
        }
    }

    /// The mails that wait for the relay, oldest first, as they stand: none is tried before the relay is.
    pub fn mails(&self) -> Vec<Mail> {
        let stands = |mail: &Mail| Mail { not_before: mail.not_before.max(self.mail.pause), ..mail.clone() };
        let mut mails: Vec<_> = self.mail.outbox.values().map(stands).collect();
        mails.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        mails
    }

    /// How many mails wait for the relay, and what has come of the others.
    pub fn mail_count(&self) -> (usize, MailCount) {
        (self.mail.outbox.len(), self.mail.count)
    }
}
