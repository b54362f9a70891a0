//! Deletes ended builds and their logs, a few at a time.
//!
//! The core does not hold ended builds, so it has the driver search the ledger, and decides about what was found. The
//! deletion of logs is committed before the first file is removed, and a build is deleted only when none of its files is
//! left. Therefore nothing is left over, wherever the master dies: the next one finds the same builds again.

use super::build::BuildState;
use super::event::{Effect, Level};
use super::plan::Retention;
use super::record::Record;
use super::timers::Timer;
use super::{Core, Timestamp};
use rouse_shared::{BuildId, size};
use std::collections::BTreeMap;
use std::time::Duration;

/// Builds of each kind that one search finds at most: a commit that deletes so many takes a few milliseconds.
pub const BATCH: usize = 100;
/// Pause before the first search, so that a start is not slowed down.
const DELAY: Duration = Duration::from_secs(5);
/// Pause between two searches.
const INTERVAL: Duration = Duration::from_secs(60);
/// Pause after a search that did not find everything. Other work comes between.
const PAUSE: Duration = Duration::from_millis(100);

/// What to find.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scan {
    /// Builds that ended before this time are deleted; absent: none.
    pub builds_before: Option<Timestamp>,
    /// The logs of builds that ended before this time are deleted; absent: none because of its age. Not earlier than
    /// `builds_before`.
    pub logs_before: Option<Timestamp>,
    /// Whether the sizes of logs matter.
    pub sizes: bool,
    /// Whether their sum is wanted.
    pub total: bool,
}

/// An ended build.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EndedBuild {
    /// Its number.
    pub id: BuildId,
    /// Its final state.
    pub state: BuildState,
    /// When it ended.
    pub finished: Timestamp,
    /// The bytes of its logs, if they were measured.
    pub size: Option<u64>,
}

/// What was found: at most [`BATCH`] of each, those that ended first. Builds that are kept are never among them, except
/// in `measured`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Expired {
    /// Builds whose logs were to be deleted by an earlier master, or could not be.
    pub unfinished: Vec<EndedBuild>,
    /// Builds that ended before [`Scan::logs_before`] and have their logs.
    pub logs: Vec<EndedBuild>,
    /// Builds that ended before [`Scan::builds_before`] and whose logs were deleted some time ago.
    pub builds: Vec<EndedBuild>,
    /// The bytes of logs that were not measured before, if [`Scan::sizes`].
    pub measured: Vec<(BuildId, u64)>,
    /// Builds with logs of a known size above 0, if [`Scan::sizes`].
    pub oldest: Vec<EndedBuild>,
    /// The sum of all known sizes, without `measured`, if [`Scan::total`]. Builds that are kept count too.
    pub total: Option<u64>,
}

/// What need not survive a restart.
#[derive(Default, Debug)]
pub(super) struct Sweeper {
    /// The search, or the deletion of what it found, that is under way.
    search: Option<Search>,
    /// Bytes of the logs of ended builds, as far as they are known.
    total: Option<u64>,
    /// Whether the logs take too much, and nothing of it may be deleted; reported once.
    full: bool,
    /// The last failure, which is reported once.
    failure: Option<String>,
    deleted: Deleted,
}

/// A search that is under way.
#[derive(Debug)]
struct Search {
    /// The setting that it is for.
    retention: Retention,
    scan: Scan,
    /// Whether it did not find everything.
    more: bool,
    /// The builds whose log files are being removed.
    removing: BTreeMap<BuildId, EndedBuild>,
}

/// What was deleted since the master was started.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Deleted {
    /// Builds by their final state.
    pub builds: BTreeMap<BuildState, u64>,
    /// Builds whose logs were deleted.
    pub logs: u64,
}

impl Core {
    /// What retention has deleted since this master was started.
    pub fn deleted(&self) -> &Deleted {
        &self.retention.deleted
    }

    /// A start or a reload, which may have changed the setting.
    pub(super) fn arm_retention(&mut self, now: Timestamp, changed: bool) {
        if !self.plan.retention.is_on() {
            self.timers.clear(&Timer::Retention);
        } else if changed {
            self.timers.set(Timer::Retention, now + DELAY);
        } else {
            self.timers.set_once(Timer::Retention, now + DELAY);
        }
    }

    pub(super) fn look_for_expired(&mut self, now: Timestamp) {
        let retention = self.plan.retention;
        // Its end sets the timer again.
        if !retention.is_on() || self.retention.search.is_some() {
            return;
        }
        let before = |age: Option<Duration>| age.map(|age| now - age);
        let (builds_before, logs_before) = (before(retention.builds), before(retention.logs));
        let sizes = retention.max_size.is_some();
        let scan = Scan {
            builds_before,
            logs_before: logs_before.max(builds_before),
            sizes,
            total: sizes && self.retention.total.is_none(),
        };
        self.retention.search = Some(Search { retention, scan, more: false, removing: BTreeMap::new() });
        self.out.push(Effect::FindExpired(scan));
    }

    pub(super) fn on_expired(&mut self, now: Timestamp, found: Result<Expired, String>) {
        let Some(mut search) = self.retention.search.take() else { return };
        let found = match found {
            // What was found for another setting may have to stay.
            Ok(_) if search.retention != self.plan.retention => return self.end_search(now, true, None),
            Ok(found) => found,
            Err(why) => return self.end_search(now, false, Some(format!("ended builds cannot be searched: {why}"))),
        };
        let full = |found: usize| found >= BATCH;
        let Expired { unfinished, logs, builds, measured, oldest, total } = found;
        search.more = full(unfinished.len()) || full(logs.len()) || full(builds.len()) || full(measured.len());
        for build in &builds {
            self.delete_build(build);
        }
        let mut total = self.retention.total.or(total);
        // What was measured now may be deleted after the next search.
        let grown = !measured.is_empty();
        for (id, bytes) in measured {
            total = total.map(|total| total.saturating_add(bytes));
            self.out.push(Effect::Save(Record::LogsMeasured(id, bytes)));
        }
        for build in logs {
            total = total.map(|total| total.saturating_sub(build.size.unwrap_or(0)));
            self.expire_logs(now, build, &mut search);
        }
        if let (Some(most), Some(total)) = (search.retention.max_size, &mut total) {
            let all = !full(oldest.len()) && !grown;
            for build in oldest {
                if *total > most && !search.removing.contains_key(&build.id) {
                    *total = total.saturating_sub(build.size.unwrap_or(0));
                    self.expire_logs(now, build, &mut search);
                }
            }
            search.more |= *total > most && !all;
            self.report_full(*total, most, search.more);
        }
        // Without the limit, sizes are not measured. The sum is computed again if it is needed later.
        self.retention.total = total.filter(|_| search.scan.sizes);
        search.removing.extend(unfinished.into_iter().map(|build| (build.id, build)));
        if search.removing.is_empty() {
            return self.end_search(now, search.more, None);
        }
        self.out.push(Effect::DeleteLogs(search.removing.keys().copied().collect()));
        self.retention.search = Some(search);
    }

    fn expire_logs(&mut self, now: Timestamp, build: EndedBuild, search: &mut Search) {
        self.out.push(Effect::Save(Record::LogsExpired(build.id, now)));
        search.removing.insert(build.id, build);
    }

    fn delete_build(&mut self, build: &EndedBuild) {
        self.out.push(Effect::Save(Record::BuildDeleted(build.id)));
        *self.retention.deleted.builds.entry(build.state).or_default() += 1;
    }

    /// Reports once that the logs take too much although nothing more can be deleted.
    fn report_full(&mut self, total: u64, most: u64, more: bool) {
        let full = total > most && !more;
        if full && !std::mem::replace(&mut self.retention.full, true) {
            let (total, most) = (size::show(total), size::show_limit(most));
            let text = format!(
                "the logs of builds that are to be kept take {total}, more than retention.max_size ({most}); nothing else \
                 is left to delete"
            );
            self.note(Level::Warn, text);
        }
        self.retention.full = full;
    }

    pub(super) fn on_logs_deleted(&mut self, now: Timestamp, builds: &[BuildId], failed: Option<String>) {
        let Some(search) = self.retention.search.take() else { return };
        for build in builds.iter().filter_map(|id| search.removing.get(id)) {
            if search.scan.builds_before.is_some_and(|before| build.finished < before) {
                self.delete_build(build);
            } else {
                self.out.push(Effect::Save(Record::LogsDeleted(build.id)));
            }
            self.retention.deleted.logs += 1;
        }
        self.end_search(now, search.more, failed.map(|why| format!("logs cannot be deleted: {why}")));
    }

    /// After a failure, the next search waits, whatever there is left to find.
    fn end_search(&mut self, now: Timestamp, more: bool, failure: Option<String>) {
        let soon = more && failure.is_none();
        if let Some(why) = failure.as_ref().filter(|why| self.retention.failure.as_ref() != Some(why)) {
            self.note(Level::Warn, format!("{why}; retrying"));
        }
        self.retention.failure = failure;
        if self.plan.retention.is_on() {
            self.timers.set(Timer::Retention, now + if soon { PAUSE } else { INTERVAL });
        }
    }
}
