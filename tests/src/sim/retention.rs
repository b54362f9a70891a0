//! Retention: the search for what is to be deleted, as the store and its thread do it, and what must hold of it.

use super::Break;
use super::disk::Disk;
use super::world::World;
use crate::chance::Chance;
use rouse_master::core::build::Build;
use rouse_master::core::event::Event;
use rouse_master::core::plan::Retention;
use rouse_master::core::record::Record;
use rouse_master::core::retention::{BATCH, EndedBuild, Expired, Scan};
use rouse_shared::{BuildId, Timestamp};
use std::time::Duration;

/// How long after its time something may still be there when all is quiet: searches come a minute apart, and one may have
/// failed.
const LATE: Duration = Duration::from_secs(200);

/// The retention of a seed: none in most of them. It takes no number from the seed's own row, which stays as it was.
pub(super) fn of_seed(seed: u64) -> Retention {
    let mut chance = Chance::new(seed ^ 0x0dd5_eed5);
    if !chance.permille(350) {
        return Retention::default();
    }
    Retention {
        builds: chance.pick(&[None, Some(120), Some(600), Some(3_600)]).map(Duration::from_secs),
        logs: chance.pick(&[None, Some(60), Some(300)]).map(Duration::from_secs),
        max_size: chance.pick(&[None, Some(1), Some(500), Some(5_000)]),
    }
}

/// Whether the submission with this number asks to be kept.
pub(super) fn keeps(submission: usize) -> bool {
    submission % 7 == 3
}

impl Disk {
    /// Bytes of a build's logs.
    fn log_bytes(&self, id: BuildId) -> u64 {
        self.logs.iter().filter(|((attempt, _), _)| attempt.build == id).map(|(_, bytes)| bytes).sum()
    }

    /// Ended builds, in the order in which they ended.
    fn ended(&self) -> Vec<(Timestamp, &Build)> {
        let ended = self.builds.values().filter_map(|build| Some((build.status.finished?, build)));
        let mut ended: Vec<_> = ended.filter(|(_, build)| build.status.end.is_some()).collect();
        ended.sort_by_key(|(at, build)| (*at, build.id));
        ended
    }

    fn expired(&self, scan: Scan, ignores_keep: bool) -> Expired {
        let mut found = Expired::default();
        let is_before = |at: Timestamp, before: Option<Timestamp>| before.is_some_and(|before| at < before);
        for (at, build) in self.ended() {
            let (id, kept) = (build.id, build.spec.keep && !ignores_keep);
            let size = self.sizes.get(&id).copied();
            let ended = EndedBuild { id, state: build.status.state(), finished: at, size };
            match self.expired.get(&id) {
                Some(false) => found.unfinished.push(ended),
                Some(true) if is_before(at, scan.builds_before) => found.builds.push(ended),
                None if !kept && is_before(at, scan.logs_before) => found.logs.push(ended),
                None if scan.sizes && size.is_none() => found.measured.push((id, self.log_bytes(id))),
                Some(true) | None => {}
            }
            if scan.sizes && !kept && !self.expired.contains_key(&id) {
                found.oldest.extend(size.filter(|size| *size > 0).map(|_| ended));
            }
        }
        let known = self.sizes.iter().filter(|(id, _)| !self.expired.contains_key(id)).map(|(_, size)| size);
        found.total = scan.total.then(|| known.sum());
        found.unfinished.truncate(BATCH);
        found.logs.truncate(BATCH);
        found.builds.truncate(BATCH);
        found.measured.truncate(BATCH);
        found.oldest.truncate(BATCH);
        found
    }
}

impl World {
    pub(super) fn find_expired(&mut self, scan: Scan) {
        let (delay, epoch) = (self.delay(1, 200), self.master.epoch);
        self.after(delay, move |w| {
            let failed = w.mishap(50);
            let found = w.disk.expired(scan, w.broken == Some(Break::ForgetKeep));
            let found = if failed { Err("the disk does not answer".to_owned()) } else { Ok(found) };
            w.master_event_of(epoch, 1, Event::Expired(found));
        });
    }

    /// The files go one after another, and the master may die meanwhile.
    pub(super) fn delete_logs(&mut self, builds: Vec<BuildId>) {
        let (delay, epoch) = (self.delay(1, 2_000), self.master.epoch);
        self.after(delay, move |w| {
            let mut builds = builds;
            let failed = w.mishap(100).then(|| "the disk does not answer".to_owned());
            if failed.is_some() || w.master.epoch != epoch {
                builds.truncate(builds.len() / 2);
            }
            if w.broken != Some(Break::FilesStay) {
                w.disk.logs.retain(|(attempt, _), _| !builds.contains(&attempt.build));
            }
            w.master_event_of(epoch, 1, Event::LogsDeleted { builds, failed });
        });
    }

    /// A record of retention is about to be committed.
    pub(super) fn check_retention(&mut self, record: &Record) {
        let retention = self.master.plan.retention;
        let now = self.time();
        let (id, whole) = match record {
            Record::LogsExpired(id, _) => (*id, false),
            Record::BuildDeleted(id) => (*id, true),
            _ => return,
        };
        let Some(build) = self.disk.builds.get(&id).filter(|build| build.status.end.is_some()) else {
            return self.violated(format!("build {id} is deleted, and has not ended or is not there"));
        };
        if build.spec.keep {
            return self.violated(format!("build {id} is deleted although it is to be kept"));
        }
        let age = build.status.finished.map_or(Duration::ZERO, |at| now.since(at));
        let is_old = |most: Option<Duration>| most.is_some_and(|most| age > most);
        let is_full = || {
            let there = self.disk.ended().into_iter().filter(|(_, build)| !self.disk.expired.contains_key(&build.id));
            let bytes = there.map(|(_, build)| self.disk.log_bytes(build.id)).sum::<u64>();
            retention.max_size.is_some_and(|most| bytes > most)
        };
        if whole && !is_old(retention.builds) {
            self.violated(format!("build {id} is deleted after {} s", age.as_secs()));
        } else if whole && self.disk.log_bytes(id) > 0 {
            self.violated(format!("build {id} is deleted and has logs"));
        } else if !whole && !is_old(retention.builds) && !is_old(retention.logs) && !is_full() {
            self.violated(format!("the logs of build {id} are deleted after {} s", age.as_secs()));
        }
    }

    /// After quiet: what was to be deleted is, and nothing of it is left.
    pub(super) fn check_deleted(&mut self) {
        let retention = self.master.plan.retention;
        let now = self.time();
        let left = self.disk.logs.keys().find(|(attempt, _)| !self.disk.builds.contains_key(&attempt.build));
        if let Some((attempt, step)) = left {
            let text = format!("the log of step {step} of {attempt} is there, and its build is deleted");
            return self.violated(text);
        }
        let unkept = self.disk.ended().into_iter().filter(|(_, build)| !build.spec.keep);
        let is_due = |at: Timestamp, age: Option<Duration>| age.is_some_and(|age| now.since(at) > age + LATE);
        let mut bytes = 0;
        let mut late = None;
        for (at, build) in unkept {
            let there = self.disk.log_bytes(build.id);
            bytes += there;
            if is_due(at, retention.builds) {
                late = Some(format!("build {} is still there after quiet", build.id));
            } else if there > 0 && is_due(at, retention.logs) {
                late = Some(format!("the logs of build {} are still there after quiet", build.id));
            }
        }
        if let Some(most) = retention.max_size.filter(|most| bytes > *most) {
            late = Some(format!("logs take {bytes} bytes after quiet, and max_size is {most}"));
        }
        if let Some(text) = late {
            self.violated(text);
        }
    }
}
