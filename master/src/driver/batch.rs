//! The batch of one turn: the records to commit, and the effects to perform after that. If there are several records
//! with the same key, only the last one is kept.

use crate::broker::Receipt;
use crate::core::event::Effect;
use crate::core::images::ImageKey;
use crate::core::mail::MailId;
use crate::core::places::PlaceKey;
use crate::core::plan::ProviderKind;
use crate::core::record::Record;
use rouse_shared::{BuildId, WorkerName};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use tokio::sync::oneshot;

/// The records to commit, and what to do after the commit.
#[derive(Default)]
pub(super) struct Batch {
    pub records: Vec<Record>,
    /// How many records were added or replaced.
    pub changes: u64,
    index: BTreeMap<Key, usize>,
    pub effects: Vec<Effect>,
    pub receipts: Vec<Receipt>,
    /// Informed once the effects have been performed.
    pub performed: Vec<oneshot::Sender<()>>,
}

/// Identifies records that replace each other within a batch.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Build(BuildId),
    Ended(BuildId),
    Upload(BuildId),
    Host(String),
    Session(WorkerName),
    Worker(WorkerName),
    Image(ImageKey),
    Place(PlaceKey),
    Entry(u64),
    Leases,
    Alarm,
    Spent,
    News(u64),
    Mail(MailId),
    MailPause,
    Orphan(ProviderKind, String),
}

impl Batch {
    fn save(&mut self, record: Record) {
        self.changes += 1;
        let key = match &record {
            Record::NewBuild { id, .. } | Record::Build(id, _) => Key::Build(*id),
            // A build has only one of them in a batch: each follows from a search after the commit of the one before.
            Record::LogsMeasured(id, _)
            | Record::LogsExpired(id, _)
            | Record::LogsDeleted(id)
            | Record::BuildDeleted(id) => Key::Ended(*id),
            Record::LogsUploaded(id, ..) => Key::Upload(*id),
            Record::Host(host) => Key::Host(host.id.0.clone()),
            Record::Session(session) => Key::Session(session.worker.clone()),
            Record::SessionOver(worker) => Key::Session(worker.clone()),
            Record::Worker(worker, _) => Key::Worker(worker.clone()),
            Record::Image(key, _) => Key::Image(key.clone()),
            Record::Place(key, _) => Key::Place(key.clone()),
            Record::Spent(_) => Key::Spent,
            Record::News(news) => Key::News(news.id),
            Record::NewsOver(id) => Key::News(*id),
            Record::Mail(mail) => Key::Mail(mail.id.clone()),
            Record::MailOver(id) => Key::Mail(id.clone()),
            Record::MailPause(..) => Key::MailPause,
            Record::OrphanReported(provider, handle) | Record::OrphanOver(provider, handle) => {
                Key::Orphan(*provider, handle.clone())
            }
            Record::LeasesExtended(_) => Key::Leases,
            Record::AlarmTold(_) => Key::Alarm,
            Record::Entry(entry) => Key::Entry(entry.id),
        };
        match self.index.entry(key) {
            Entry::Vacant(entry) => {
                entry.insert(self.records.len());
                self.records.push(record);
            }
            Entry::Occupied(entry) => {
                let kept = &mut self.records[*entry.get()];
                match (kept, record) {
                    (Record::NewBuild { status, .. }, Record::Build(_, newer)) => *status = newer,
                    (kept, record) => *kept = record,
                }
            }
        }
    }

    pub(super) fn take(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Save(record) => self.save(record),
                other => self.effects.push(other),
            }
        }
    }
}
