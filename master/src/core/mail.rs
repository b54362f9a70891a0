//! Mail to people. The master collects news for a minute and then puts them into mails, which stay in the ledger until
//! the relay has accepted them.
//!
//! News are committed together with the event that caused them, and become mails in one transaction. Therefore each
//! recipient gets each piece of news in exactly one mail. Recipients with the same news share a mail. A mail never
//! changes its message id: if the relay's answer is lost in a crash, the same mail is sent again under the same id.
//!
//! If the relay does not answer or rejects the login, the master retries without a time limit, with growing pauses and
//! with one mail at a time. If the relay accepts a mail for some recipients and permanently rejects others, the
//! addresses of the others are probably wrong, and the master gives up on them. If the relay rejects all recipients or
//! the mail itself, it may be misconfigured, and the master retries for a day.

use super::event::{Effect, Level, ListedHost};
use super::plan::ProviderKind;
use super::record::Record;
use super::timers::Timer;
use super::{Core, Timestamp};
use rouse_shared::{HostId, WorkerName};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// News that come within this time of the first one are put into the same mail.
const GATHER: Duration = Duration::from_secs(60);
/// First pause after the relay was unusable. Doubled with each further failure in a row, up to [`PAUSE_MOST`].
const PAUSE_FIRST: Duration = Duration::from_secs(5);
/// Longest pause before the relay or a recipient is tried again.
const PAUSE_MOST: Duration = Duration::from_secs(900);
/// How long the master retries a mail that the relay permanently refuses.
const REFUSED_MOST: Duration = Duration::from_secs(24 * 3_600);
/// Maximum number of mails that are sent at the same time. With only one, a slow mail would delay all others.
const AT_ONCE: usize = 4;

/// Identifies a mail: its Message-ID without the angle brackets.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MailId(pub String);

/// Something to report to people that has not been put into a mail yet.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct News {
    /// Identifies this piece of news among those that wait.
    pub id: u64,
    /// Recipients; not empty.
    pub to: BTreeSet<String>,
    /// What to report.
    pub item: Item,
}

/// One entry of a mail.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Item {
    /// When the master noticed it.
    pub at: Timestamp,
    /// What happened.
    pub what: What,
}

/// The kinds of news.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// A worker is missing.
    Missing {
        /// The worker.
        worker: WorkerName,
        /// Why it counts as missing, in a sentence.
        why: String,
    },
    /// A worker that was reported as missing is back.
    Back {
        /// The worker.
        worker: WorkerName,
        /// When it was reported as missing.
        missing_since: Timestamp,
    },
    /// The audit has found a machine with the master's name and id that is not in the ledger.
    Orphan {
        /// The provider that lists it.
        provider: ProviderKind,
        /// The host id in its owner tag.
        host: HostId,
        /// The provider's name for it.
        handle: String,
        /// Whether the master terminates it. If not, `audit.on_orphan` is `"report"`.
        terminated: bool,
    },
    /// A place has refused to start hosts for a while.
    PlacePaused {
        /// The provider of the hosts there.
        provider: ProviderKind,
        /// Its name in the configuration.
        place: String,
        /// Its newest refusal, in a sentence.
        why: String,
        /// When the pause began.
        since: Timestamp,
    },
    /// The pause of a place is over.
    PlaceBack {
        /// The provider of the hosts there.
        provider: ProviderKind,
        /// Its name in the configuration.
        place: String,
        /// When the pause began.
        since: Timestamp,
    },
    /// A machine was asked to end some minutes ago, and is still there.
    Lingering {
        /// What made it.
        provider: ProviderKind,
        /// The host.
        host: HostId,
        /// The provider's name for it; the host's id if it has none.
        machine: String,
        /// Why it is still there, in a sentence.
        why: String,
        /// When it was first asked to end.
        since: Timestamp,
    },
    /// A machine that stayed although it was asked to end is gone.
    LingeringOver {
        /// What made it.
        provider: ProviderKind,
        /// The host.
        host: HostId,
        /// The provider's name for it; the host's id if it has none.
        machine: String,
        /// When it was first asked to end.
        since: Timestamp,
    },
    /// The broker accepts nothing.
    BrokerBlocked {
        /// The reason, as the broker gives it.
        why: String,
    },
    /// The broker accepts messages again.
    BrokerUnblocked {
        /// When the alarm was reported.
        since: Timestamp,
    },
}

impl What {
    /// A short text for lists.
    pub fn summary(&self) -> String {
        match self {
            Self::Missing { worker, .. } => format!("worker {worker} is missing"),
            Self::Back { worker, .. } => format!("worker {worker} is back"),
            Self::Orphan { provider, handle, .. } => format!("{handle} of {} is an orphan", provider.as_str()),
            Self::PlacePaused { provider, place, .. } => format!("{place} ({}) starts no hosts", provider.as_str()),
            Self::PlaceBack { provider, place, .. } => format!("{place} ({}) starts hosts again", provider.as_str()),
            Self::Lingering { provider, machine, .. } => {
                format!("{machine} of {} could not be terminated", provider.as_str())
            }
            Self::LingeringOver { provider, machine, .. } => format!("{machine} of {} is gone", provider.as_str()),
            Self::BrokerBlocked { why } => format!("the broker accepts no messages ({why})"),
            Self::BrokerUnblocked { .. } => "the broker accepts messages again".to_owned(),
        }
    }
}

/// A mail that the relay has not yet accepted for all of its recipients.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Mail {
    /// Its id, which is the same at every try.
    pub id: MailId,
    /// When it was written.
    pub created: Timestamp,
    /// All recipients.
    pub to: Vec<String>,
    /// The recipients for whom the relay has not accepted it yet.
    pub waiting: BTreeSet<String>,
    /// Its entries; not empty.
    pub items: Vec<Item>,
    /// How often it was tried.
    pub tries: u32,
    /// It is not tried again before this time.
    pub not_before: Timestamp,
    /// Whether the relay has accepted it for at least one recipient.
    pub taken: bool,
    /// Why the last try failed.
    pub error: Option<String>,
}

/// The relay's answer for one recipient.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RecipientAnswer {
    /// The relay has accepted the mail for this recipient.
    Accepted,
    /// The relay refuses this recipient for now.
    Later(String),
    /// The relay permanently refuses this recipient.
    Refused(String),
}

/// Why the relay accepted a mail for no recipient. The kind matters, never the text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MailError {
    /// The relay could not be reached, stopped answering or rejected the login. It may or may not have the mail.
    Relay(String),
    /// The relay does not accept this mail now.
    Later(String),
    /// The relay does not accept this mail, or no mail from this sender.
    Refused(String),
}

/// The result of passing a mail to the relay: an answer for each waiting recipient, or why there is none.
pub type DeliveryResult = Result<Vec<(String, RecipientAnswer)>, MailError>;

/// Counters for the metrics, since the start of this master.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MailCount {
    /// Mails that are done and were accepted for at least one recipient.
    pub sent: u64,
    /// Tries after which a mail still had waiting recipients.
    pub failed: u64,
    /// Recipients for whom a mail was given up.
    pub given_up: u64,
}

/// The waiting news and mails, and the state of the relay.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    news: BTreeMap<u64, News>,
    last_news: u64,
    outbox: BTreeMap<MailId, Mail>,
    /// Mails that are being sent.
    under_way: BTreeSet<MailId>,
    /// How many times in a row the relay was unusable.
    failures: u32,
    /// No mail is sent before this time.
    pause: Timestamp,
    count: MailCount,
    /// Orphans that have been reported.
    orphans: BTreeSet<(ProviderKind, String)>,
}

fn pause_after(failures: u32) -> Duration {
    PAUSE_FIRST.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(PAUSE_MOST)
}

impl Core {
    /// Continues with the previous master's news, mails and pause.
    pub(super) fn restore_mail(&mut self, now: Timestamp, ledger: &mut super::record::Ledger) {
        let news = std::mem::take(&mut ledger.news);
        self.mail.last_news = news.iter().map(|n| n.id).max().unwrap_or(0);
        if let Some(first) = news.iter().map(|n| n.item.at).min() {
            // If the clock was set back, the news must not wait longer than usual.
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
        self.mail.orphans = std::mem::take(&mut ledger.reported_orphans).into_iter().collect();
        self.send_mails(now);
    }

    /// Queues news for these recipients. The news are committed with everything else that the event changes.
    pub(super) fn report(&mut self, now: Timestamp, to: BTreeSet<String>, what: What) {
        if to.is_empty() {
            return;
        }
        self.mail.last_news += 1;
        let news = News { id: self.mail.last_news, to, item: Item { at: now, what } };
        self.out.push(Effect::Save(Record::News(news.clone())));
        self.mail.news.insert(news.id, news);
        self.timers.set_once(Timer::News, now + GATHER);
    }

    /// Reports an orphan, once: to `extra_recipients`, or if there are none, to the recipients of mail about missing
    /// workers of its provider.
    pub(super) fn report_orphan(
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
        let to = self.recipients_for(provider);
        if to.is_empty() {
            return;
        }
        self.out.push(Effect::Save(Record::OrphanReported(provider, handle.clone())));
        self.mail.orphans.insert((provider, handle.clone()));
        self.report(now, to, What::Orphan { provider, host, handle, terminated });
    }

    /// Forgets the reported orphans of a provider that no longer exist.
    pub(super) fn forget_reported_orphans(&mut self, provider: ProviderKind, there: impl Fn(&str) -> bool) {
        let Self { mail, out, .. } = self;
        mail.orphans.retain(|(of, handle)| {
            let stays = *of != provider || there(handle);
            if !stays {
                out.push(Effect::Save(Record::OrphanOver(*of, handle.clone())));
            }
            stays
        });
    }

    /// The first of the news has waited for [`GATHER`]. Writes all waiting news into mails: one mail for each group of
    /// recipients with the same news.
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

    /// Sends the mails that are due, those with the fewest tries first. If the relay was unusable, sends one at a time.
    pub(super) fn send_mails(&mut self, now: Timestamp) {
        self.timers.clear(&Timer::Mail);
        loop {
            let mail_state = &mut self.mail;
            let most = if mail_state.failures > 0 { 1 } else { AT_ONCE };
            if mail_state.under_way.len() >= most {
                // The result of one of them calls this function again.
                return;
            }
            let idle = |mail: &&Mail| !mail_state.under_way.contains(&mail.id);
            let Some(earliest) = mail_state.outbox.values().filter(idle).map(|m| m.not_before).min() else { return };
            let at = earliest.max(mail_state.pause);
            if at > now {
                return self.timers.set(Timer::Mail, at);
            }
            let due = mail_state.outbox.values().filter(idle).filter(|m| m.not_before <= now);
            let Some(mail) = due.min_by_key(|m| (m.tries, m.created, &m.id)).cloned() else { return };
            mail_state.under_way.insert(mail.id.clone());
            self.out.push(Effect::SendMail(Box::new(mail)));
        }
    }

    /// The configuration has changed, and the relay with it perhaps, so all mails are tried at once.
    pub(super) fn retry_mails(&mut self, now: Timestamp) {
        self.relay_is_usable(now);
        for mail in self.mail.outbox.values_mut() {
            mail.not_before = mail.not_before.min(now);
        }
        self.send_mails(now);
    }

    pub(super) fn on_mail_sent(&mut self, now: Timestamp, id: &MailId, result: DeliveryResult) {
        if !self.mail.under_way.remove(id) {
            return;
        }
        let Some(mut mail) = self.mail.outbox.remove(id) else { return };
        mail.tries += 1;
        match result {
            Err(MailError::Relay(why)) => {
                // A mail that was sent at the same time fails for the same reason, so it is not counted again.
                if self.mail.failures == 0 || now >= self.mail.pause {
                    self.mail.failures += 1;
                    let pause = pause_after(self.mail.failures);
                    self.mail.pause = now + pause;
                    self.out.push(Effect::Save(Record::MailPause(self.mail.failures, self.mail.pause)));
                    let text = format!("cannot send mail: {why}; trying again in {} s", pause.as_secs());
                    self.note(Level::Warn, text);
                }
                mail.error = Some(why);
            }
            Err(MailError::Later(why)) => {
                self.relay_is_usable(now);
                self.retry_later(now, &mut mail, why);
            }
            Err(MailError::Refused(why)) => {
                self.relay_is_usable(now);
                // That the relay accepted the mail for others before makes no difference: this refusal is not about
                // addresses.
                let all = mail.waiting.clone();
                self.retry_or_give_up(now, &mut mail, all, &why, false);
            }
            Ok(answers) => {
                self.relay_is_usable(now);
                self.on_answers(now, &mut mail, answers);
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

    fn on_answers(&mut self, now: Timestamp, mail: &mut Mail, answers: Vec<(String, RecipientAnswer)>) {
        let (mut refused, mut why_not, mut later) = (BTreeSet::new(), String::new(), None);
        let mut sent = Vec::new();
        for (recipient, answer) in answers {
            match answer {
                RecipientAnswer::Accepted if mail.waiting.remove(&recipient) => sent.push(recipient),
                RecipientAnswer::Accepted => {}
                RecipientAnswer::Later(why) => later = Some(why),
                RecipientAnswer::Refused(why) => {
                    why_not = why;
                    refused.insert(recipient);
                }
            }
        }
        if !sent.is_empty() {
            mail.taken = true;
            self.note(Level::Info, format!("mail {} was accepted for {}", mail.id.0, sent.join(", ")));
        }
        if !refused.is_empty() {
            let others = mail.taken;
            self.retry_or_give_up(now, mail, refused, &why_not, others);
        }
        if let Some(why) = later {
            self.retry_later(now, mail, why);
        }
    }

    fn retry_later(&mut self, now: Timestamp, mail: &mut Mail, why: String) {
        let pause = pause_after(mail.tries);
        mail.not_before = now + pause;
        let text = format!("mail {} was not accepted: {why}; trying again in {} s", mail.id.0, pause.as_secs());
        self.note(Level::Warn, text);
        mail.error = Some(why);
    }

    /// The relay permanently refuses these recipients. Gives them up at once if only their addresses can be wrong,
    /// otherwise when the mail is a day old.
    fn retry_or_give_up(
        &mut self,
        now: Timestamp,
        mail: &mut Mail,
        refused: BTreeSet<String>,
        why: &str,
        at_once: bool,
    ) {
        if !at_once && now.since(mail.created) < REFUSED_MOST {
            return self.retry_later(now, mail, why.to_owned());
        }
        self.mail.count.given_up += refused.len() as u64;
        for recipient in refused {
            mail.waiting.remove(&recipient);
            self.note(Level::Warn, format!("mail {} is given up for {recipient}: {why}", mail.id.0));
        }
    }

    fn relay_is_usable(&mut self, now: Timestamp) {
        if std::mem::take(&mut self.mail.failures) > 0 {
            self.mail.pause = now;
            self.out.push(Effect::Save(Record::MailPause(0, now)));
        }
    }

    /// The mails that wait for the relay, oldest first. Their `not_before` includes the relay's pause.
    pub fn mails(&self) -> Vec<Mail> {
        let with_pause = |mail: &Mail| Mail { not_before: mail.not_before.max(self.mail.pause), ..mail.clone() };
        let mut mails: Vec<_> = self.mail.outbox.values().map(with_pause).collect();
        mails.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        mails
    }

    /// The number of mails that wait for the relay, and the counters.
    pub fn mail_count(&self) -> (usize, MailCount) {
        (self.mail.outbox.len(), self.mail.count)
    }
}
