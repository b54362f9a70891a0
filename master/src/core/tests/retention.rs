//! Retention: what is searched for and when, and what is decided about what was found.

use super::*;
use crate::core::build::BuildState;
use crate::core::plan::Retention;
use crate::core::retention::{BATCH, EndedBuild, Expired};

fn with(builds: Option<u64>, logs: Option<u64>, max_size: Option<u64>) -> Plan {
    let retention = Retention { builds: builds.map(secs), logs: logs.map(secs), max_size };
    Plan { retention, ..plan(Vec::new()) }
}

fn ids(numbers: impl IntoIterator<Item = u64>) -> Vec<BuildId> {
    numbers.into_iter().map(BuildId).collect()
}

/// A build that ended when the clock showed so many seconds. It shows 1,000 when a test begins.
fn ended(id: u64, finished: u64, size: Option<u64>) -> EndedBuild {
    EndedBuild { id: BuildId(id), state: BuildState::Lost, finished: Timestamp::default() + secs(finished), size }
}

impl Bench {
    fn found(&mut self, found: Expired) {
        self.event("found", Event::Expired(Ok(found)));
    }

    fn deleted(&mut self, builds: Vec<BuildId>) {
        self.event("deleted", Event::LogsDeleted { builds, failed: None });
    }
}

#[test]
fn logs_are_deleted_before_their_builds_and_each_step_is_committed_first() {
    let mut bench = Bench::quietly(with(Some(1_000), Some(100), None));
    bench.pass(5);
    // 1 is too old itself, 2 only its logs.
    bench.found(Expired { logs: vec![ended(1, 0, None), ended(2, 500, Some(7))], ..Expired::default() });
    // The next search waits for the files, however long that takes.
    bench.pass(600);
    bench.deleted(ids([1, 2]));
    bench.pass(59);
    bench.pass(1);
    bench.found(Expired { builds: vec![ended(3, 0, Some(0))], ..Expired::default() });
    // What an earlier master has begun goes on.
    bench.pass(60);
    bench.found(Expired { unfinished: vec![ended(4, 0, None)], ..Expired::default() });
    bench.event("failed", Event::LogsDeleted { builds: Vec::new(), failed: Some("build 4: no".to_owned()) });
    bench.pass(60);
    bench.event("not found", Event::Expired(Err("the disk is broken".to_owned())));
    bench.pass(60);
    bench.found(Expired::default());
    bench.check("retention");
    let deleted = bench.core.deleted();
    assert_eq!((deleted.logs, deleted.builds.clone()), (2, [(BuildState::Lost, 2)].into()));
}

#[test]
fn the_oldest_logs_go_until_the_rest_fits() {
    let mut bench = Bench::quietly(with(None, None, Some(100)));
    let (four, five) = (ended(4, 0, Some(30)), ended(5, 1, Some(20)));
    bench.pass(5);
    // Kept builds have 60 bytes of it.
    bench.found(Expired { total: Some(60), measured: vec![(four.id, 30), (five.id, 20)], ..Expired::default() });
    bench.pass(60);
    bench.found(Expired { oldest: vec![four, five], ..Expired::default() });
    bench.deleted(ids([4]));
    bench.pass(60);
    bench.found(Expired { oldest: vec![five], ..Expired::default() });
    // What is kept may take more, which is reported once.
    bench.pass(60);
    bench.found(Expired { oldest: vec![five], measured: vec![(BuildId(6), 500)], ..Expired::default() });
    bench.deleted(ids([5]));
    bench.pass(60);
    bench.found(Expired::default());
    bench.check("retention_size");
}

#[test]
fn a_full_batch_is_followed_by_the_next_one_soon() {
    let next = |bench: &Bench| bench.core.next_wakeup().map(|at| at.since(bench.now).as_millis());
    let mut bench = Bench::quietly(with(Some(1_000), None, None));
    bench.pass(5);
    let many = || (1..=BATCH as u64).map(|id| ended(id, 0, None)).collect::<Vec<_>>();
    bench.found(Expired { logs: many(), ..Expired::default() });
    bench.deleted(ids(1..=BATCH as u64));
    assert_eq!(next(&bench), Some(100));
    bench.pass(1);
    bench.found(Expired { builds: many(), ..Expired::default() });
    assert_eq!(next(&bench), Some(100));
    // A failure is not repeated at that pace.
    bench.pass(1);
    bench.found(Expired { logs: many(), ..Expired::default() });
    bench.event("failed", Event::LogsDeleted { builds: Vec::new(), failed: Some("no".to_owned()) });
    assert_eq!(next(&bench), Some(60_000));
}

#[test]
fn a_reload_counts_for_what_was_found_before_it() {
    let next = |bench: &Bench| bench.core.next_wakeup().map(|at| at.since(bench.now).as_millis());
    let mut bench = Bench::quietly(with(Some(1_000), None, None));
    bench.pass(5);
    // What is found now may be what is to stay.
    bench.configure("longer", with(Some(100_000), None, Some(10)));
    bench.text.clear();
    let old = || vec![ended(1, 0, Some(50))];
    bench.found(Expired { logs: old(), oldest: old(), total: Some(50), ..Expired::default() });
    assert_eq!((bench.text.as_str(), next(&bench)), ("    5 found\n", Some(100)));
    bench.pass(1);
    bench.found(Expired::default());
    assert_eq!(next(&bench), Some(60_000));
    bench.configure("shorter", with(Some(1), None, None));
    assert_eq!(next(&bench), Some(5_000), "it is looked for soon");
    bench.configure("off", plan(Vec::new()));
    bench.text.clear();
    bench.pass(3_600);
    assert_eq!((bench.text.as_str(), next(&bench)), ("", None));
}
