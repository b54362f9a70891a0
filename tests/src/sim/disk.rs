//! The fake disk: the ledger as the store writes it, and the master's log files.

use rouse_master::core::build::Build;
use rouse_master::core::images::{ImageKey, ImageRecord};
use rouse_master::core::mail::{Mail, MailId, News};
use rouse_master::core::places::{PlaceKey, PlaceRecord};
use rouse_master::core::plan::ProviderKind;
use rouse_master::core::record::{Host, HostState, Ledger, Record, Session, WorkerRecord};
use rouse_master::core::spend::Spent;
use rouse_shared::{AttemptId, BuildId, HostId, Timestamp, WorkerName};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

#[derive(Default)]
pub(super) struct Disk {
    /// Ended builds too.
    pub builds: BTreeMap<BuildId, Build>,
    pub message_ids: BTreeMap<String, BuildId>,
    /// Hosts that are not gone.
    pub hosts: BTreeMap<HostId, Host>,
    /// Those of them that should be asleep and were found running: somebody else has started them.
    pub stirred: BTreeSet<HostId>,
    /// Every host that there ever was.
    pub known_hosts: BTreeSet<HostId>,
    pub sessions: BTreeMap<WorkerName, Session>,
    pub workers: BTreeMap<WorkerName, WorkerRecord>,
    pub images: BTreeMap<ImageKey, ImageRecord>,
    pub places: BTreeMap<PlaceKey, PlaceRecord>,
    pub spent: Spent,
    pub news: BTreeMap<u64, News>,
    pub mails: BTreeMap<MailId, Mail>,
    pub mail_pause: Option<(u32, Timestamp)>,
    pub reported_orphans: BTreeSet<(ProviderKind, String)>,
    pub leases_extended: Option<Duration>,
    pub alarm_told: Option<Timestamp>,
    pub last_entry: u64,
    /// Ended builds whose logs retention deletes, and whether it has.
    pub expired: BTreeMap<BuildId, bool>,
    /// The bytes of logs of ended builds, as they were measured.
    pub sizes: BTreeMap<BuildId, u64>,
    /// The builds that retention has deleted, with their names.
    pub deleted: BTreeMap<BuildId, String>,
    /// Whether nothing more can be written.
    pub full: bool,
    /// Bytes of each step's log.
    pub logs: BTreeMap<(AttemptId, u32), u64>,
}

impl Disk {
    pub(super) fn apply(&mut self, record: Record) {
        match record {
            Record::NewBuild { id, spec, message_id, status } => {
                self.builds.insert(id, Build { id, spec, status, logs_deleted: None, logs_store: None });
                if let Some(message_id) = message_id {
                    self.message_ids.insert(message_id, id);
                }
            }
            Record::Build(id, status) => {
                if let Some(build) = self.builds.get_mut(&id) {
                    build.status = status;
                }
            }
            Record::LogsMeasured(id, bytes) => drop(self.sizes.insert(id, bytes)),
            Record::LogsExpired(id, _) => drop(self.expired.insert(id, false)),
            Record::LogsDeleted(id) => drop(self.expired.insert(id, true)),
            // The logs of the simulation stay on the disk.
            Record::LogsUploaded(..) => {}
            Record::BuildDeleted(id) => {
                if let Some(build) = self.builds.remove(&id) {
                    self.deleted.insert(id, build.spec.name.clone());
                }
                self.expired.remove(&id);
                self.sizes.remove(&id);
                self.message_ids.retain(|_, build| *build != id);
            }
            Record::Host(host) => {
                self.known_hosts.insert(host.id.clone());
                match (self.hosts.get(&host.id).map(|before| before.state), host.state) {
                    (Some(HostState::Suspended), HostState::Suspending) => drop(self.stirred.insert(host.id.clone())),
                    (_, HostState::Resuming | HostState::Terminated) => drop(self.stirred.remove(&host.id)),
                    _ => {}
                }
                if host.state == HostState::Terminated {
                    self.hosts.remove(&host.id);
                } else {
                    self.hosts.insert(host.id.clone(), host);
                }
            }
            Record::Session(session) => {
                self.sessions.insert(session.worker.clone(), session);
            }
            Record::SessionOver(worker) => {
                self.sessions.remove(&worker);
            }
            Record::Worker(name, record) => {
                self.workers.insert(name, record);
            }
            Record::Image(key, record) => {
                self.images.insert(key, record);
            }
            Record::Place(key, record) if record == PlaceRecord::default() => drop(self.places.remove(&key)),
            Record::Place(key, record) => drop(self.places.insert(key, record)),
            Record::Spent(spent) => self.spent = spent,
            Record::News(news) => {
                self.news.insert(news.id, news);
            }
            Record::NewsOver(id) => {
                self.news.remove(&id);
            }
            Record::Mail(mail) => {
                self.mails.insert(mail.id.clone(), mail);
            }
            Record::MailOver(id) => {
                self.mails.remove(&id);
            }
            Record::MailPause(failures, until) => self.mail_pause = Some((failures, until)),
            Record::OrphanReported(provider, handle) => {
                self.reported_orphans.insert((provider, handle));
            }
            Record::OrphanOver(provider, handle) => {
                self.reported_orphans.remove(&(provider, handle));
            }
            Record::LeasesExtended(by) => self.leases_extended = by,
            Record::AlarmTold(at) => self.alarm_told = at,
            Record::Entry(entry) => self.last_entry = entry.id,
        }
    }

    pub(super) fn load(&self) -> Ledger {
        Ledger {
            builds: self.builds.values().filter(|b| b.status.end.is_none()).cloned().collect(),
            hosts: self.hosts.values().cloned().collect(),
            sessions: self.sessions.values().cloned().collect(),
            workers: self.workers.iter().map(|(n, r)| (n.clone(), r.clone())).collect(),
            images: self.images.iter().map(|(k, r)| (k.clone(), r.clone())).collect(),
            places: self.places.iter().map(|(k, r)| (k.clone(), r.clone())).collect(),
            last_build: self.builds.keys().chain(self.deleted.keys()).max().map_or(0, |b| b.0),
            spent: self.spent,
            news: self.news.values().cloned().collect(),
            mails: self.mails.values().cloned().collect(),
            mail_pause: self.mail_pause,
            reported_orphans: self.reported_orphans.iter().cloned().collect(),
            leases_extended: self.leases_extended,
            alarm_told: self.alarm_told,
            last_entry: self.last_entry,
        }
    }
}
