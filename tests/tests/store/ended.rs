//! Ended builds: listed by each filter, deleted with everything that belongs to them, and as fast with a million others.
#![allow(clippy::disallowed_methods, reason = "a test measures how long queries take")]

use crate::World;
use rouse_master::core::build::{Attempt, BuildEnd, BuildSpec, BuildState, BuildStatus, Requirement};
use rouse_master::core::record::Record;
use rouse_master::core::retention::{BATCH, EndedBuild, Expired, Scan};
use rouse_master::core::view::BuildFilter;
use rouse_master::store::Store;
use rouse_shared::message::{Outcome, Step};
use rouse_shared::{BuildId, SessionId, Timestamp, WorkerName};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

struct Ledger<'w> {
    world: &'w World,
    store: Store,
}

fn ledger(world: &World) -> Ledger<'_> {
    Ledger { world, store: world.open() }
}

fn spec(name: &str, requirement: Requirement, keep: bool) -> Arc<BuildSpec> {
    let run = vec!["make".to_owned()];
    let env = BTreeMap::new();
    let step = |name: &str| Step {
        name: name.to_owned(),
        run: run.clone(),
        workdir: String::new(),
        env: env.clone(),
        timeout_ms: None,
        silence_ms: None,
        always: false,
        limits: Default::default(),
    };
    Arc::new(BuildSpec {
        name: name.to_owned(),
        requirement,
        priority: 0,
        retries: 2,
        timeout_ms: None,
        queue_timeout_ms: None,
        env: env.clone(),
        limits: Default::default(),
        keep,
        steps: ["fetch", "compile", "test"].map(step).to_vec(),
    })
}

fn needs(properties: &[(&str, &str)]) -> Requirement {
    Requirement::Where(properties.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
}

/// A status that ended at this time, in milliseconds; its last attempt ran on this worker, if there is one.
fn status(worker: Option<&str>, end: BuildEnd, finished: u64) -> BuildStatus {
    let attempt = |worker: &str| Attempt {
        number: 1,
        worker: worker.parse().unwrap(),
        host: None,
        session: SessionId("s".to_owned()),
        ordered: Timestamp(1),
        started: None,
        ended: Some(Timestamp(finished)),
        revision: 3,
        steps: Vec::new(),
        outcome: Some(Outcome::Success),
        cut_logs: Vec::new(),
        excused: false,
        unenforced: None,
    };
    // The tests end the builds of which they select by time so many seconds after 0 as they have accepted them milliseconds.
    let mut status = BuildStatus::new(Timestamp(finished / 1_000));
    status.attempts.extend(worker.map(attempt));
    status.finished = Some(Timestamp(finished));
    status.end = Some(end);
    status
}

fn new_build(id: u64, spec: Arc<BuildSpec>) -> Record {
    let message_id = Some(format!("m{id}"));
    Record::NewBuild { id: BuildId(id), spec, message_id, status: BuildStatus::new(Timestamp(id)) }
}

fn ended(id: u64, worker: &str, end: BuildEnd, finished: u64) -> Record {
    Record::Build(BuildId(id), status(Some(worker), end, finished))
}

fn filter() -> BuildFilter {
    BuildFilter { limit: 100, ..BuildFilter::default() }
}

impl Ledger<'_> {
    fn commit(&mut self, records: &[Record]) {
        self.store.commit(records).unwrap();
    }

    fn list(&self, filter: BuildFilter) -> Vec<u64> {
        self.store.ended_builds(&filter).unwrap().into_iter().map(|build| build.id.0).collect()
    }
}

/// Eight builds that have ended, one a second; 8 was cancelled before it was given to a worker, and 9 runs.
fn filled(world: &World) -> Ledger<'_> {
    let mut ledger = ledger(world);
    let linux = || needs(&[("os", "linux"), ("arch", "arm")]);
    for id in 1..=9 {
        let requirement = match id % 3 {
            0 => linux(),
            1 => needs(&[("os", "linux")]),
            _ => Requirement::Worker("w2".parse().unwrap()),
        };
        ledger.commit(&[new_build(id, spec(if id % 2 == 0 { "nightly" } else { "" }, requirement, id == 2))]);
    }
    for id in 1..=7 {
        let end = if id < 4 { BuildEnd::Success } else { BuildEnd::Failure("no".to_owned()) };
        ledger.commit(&[ended(id, if id % 3 == 2 { "w2" } else { "w1" }, end, id * 1_000)]);
    }
    ledger.commit(&[Record::Build(BuildId(8), status(None, BuildEnd::Cancelled, 8_000))]);
    ledger
}

pub fn each_filter_and_all_of_them_together_find_the_newest(world: &World) {
    let ledger = filled(world);
    let worker = |name: &str| Some(name.parse::<WorkerName>().unwrap());
    let pairs = |all: &[(&str, &str)]| all.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Vec<_>>();
    let nightly = || Some("nightly".to_owned());
    for (filter, expected) in [
        (filter(), &[8, 7, 6, 5, 4, 3, 2, 1][..]),
        (BuildFilter { limit: 3, ..filter() }, &[8, 7, 6]),
        (BuildFilter { before: Some(BuildId(4)), limit: 2, ..filter() }, &[3, 2]),
        (BuildFilter { state: Some(BuildState::Failure), ..filter() }, &[7, 6, 5, 4]),
        (BuildFilter { state: Some(BuildState::Failure), before: Some(BuildId(6)), limit: 1, ..filter() }, &[5]),
        (BuildFilter { worker: worker("w1"), ..filter() }, &[7, 6, 4, 3, 1]),
        (BuildFilter { worker: worker("w1"), limit: 2, before: Some(BuildId(6)), ..filter() }, &[4, 3]),
        (BuildFilter { name: nightly(), ..filter() }, &[8, 6, 4, 2]),
        (BuildFilter { name: nightly(), state: Some(BuildState::Success), ..filter() }, &[2]),
        (BuildFilter { name: nightly(), worker: worker("w1"), ..filter() }, &[6, 4]),
        (BuildFilter { properties: pairs(&[("os", "linux")]), ..filter() }, &[7, 6, 4, 3, 1]),
        (BuildFilter { properties: pairs(&[("os", "linux"), ("arch", "arm")]), ..filter() }, &[6, 3]),
        (BuildFilter { properties: pairs(&[("arch", "arm")]), worker: worker("w2"), ..filter() }, &[]),
        (
            BuildFilter {
                properties: pairs(&[("os", "linux")]),
                name: nightly(),
                state: Some(BuildState::Failure),
                worker: worker("w1"),
                ..filter()
            },
            &[6, 4],
        ),
        (BuildFilter { name: Some("night".to_owned()), ..filter() }, &[]),
        (BuildFilter { name: Some("n*".to_owned()), ..filter() }, &[8, 6, 4, 2]),
        (BuildFilter { name: Some("?ight*y".to_owned()), worker: worker("w1"), ..filter() }, &[6, 4]),
        (BuildFilter { name: Some("[n]*".to_owned()), ..filter() }, &[]),
        (BuildFilter { name: Some("*_%!*".to_owned()), ..filter() }, &[]),
        (BuildFilter { name: Some("*".to_owned()), limit: 1, ..filter() }, &[8]),
        (BuildFilter { name: Some("**".to_owned()), ..filter() }, &[8, 7, 6, 5, 4, 3, 2, 1]),
        (BuildFilter { since: Some(Timestamp(1)), ..filter() }, &[8, 7, 6, 5, 4, 3, 2, 1]),
        (BuildFilter { since: Some(Timestamp(5)), ..filter() }, &[8, 7, 6, 5]),
        (BuildFilter { since: Some(Timestamp(9)), ..filter() }, &[]),
        (BuildFilter { until: Some(Timestamp(1)), ..filter() }, &[]),
        (BuildFilter { until: Some(Timestamp(3)), ..filter() }, &[2, 1]),
        (BuildFilter { since: Some(Timestamp(2)), until: Some(Timestamp(7)), name: nightly(), ..filter() }, &[6, 4, 2]),
        (BuildFilter { until: Some(Timestamp(7)), before: Some(BuildId(3)), ..filter() }, &[2, 1]),
    ] {
        assert_eq!(ledger.list(filter.clone()), expected, "{filter:?}");
        // As the core selects among builds that have not ended.
        let all = ledger.store.ended_builds(&self::filter()).unwrap();
        let matching = all.iter().filter(|build| filter.matches(build, build.status.state()));
        assert_eq!(matching.take(filter.limit).map(|b| b.id.0).collect::<Vec<_>>(), expected, "{filter:?}");
    }
    let counts = ledger.store.count_ended().unwrap();
    assert_eq!(counts, [(BuildState::Success, 3), (BuildState::Failure, 4), (BuildState::Cancelled, 1)].into());
}

fn scan(builds: u64, logs: u64, sizes: bool) -> Scan {
    Scan { builds_before: Some(Timestamp(builds)), logs_before: Some(Timestamp(logs)), sizes, total: sizes }
}

pub fn a_build_is_deleted_in_steps_and_its_number_is_never_given_again(world: &World) {
    let mut ledger = filled(world);
    let id = BuildId;
    let build =
        |n: u64| EndedBuild { id: id(n), state: BuildState::Success, finished: Timestamp(n * 1_000), size: None };
    // The search is for those before 4 s; build 2 is kept.
    let found = ledger.store.expired(scan(4_000, 4_000, false)).unwrap();
    assert_eq!(found, Expired { logs: vec![build(1), build(3)], ..Expired::default() });
    ledger.commit(&[Record::LogsExpired(id(1), Timestamp(9)), Record::LogsExpired(id(2), Timestamp(9))]);
    assert_eq!(ledger.store.build(id(1)).unwrap().unwrap().logs_deleted, Some(Timestamp(9)));
    assert_eq!(ledger.store.build(id(2)).unwrap().unwrap().logs_deleted, None, "it is kept");
    let found = ledger.store.expired(scan(4_000, 4_000, false)).unwrap();
    assert_eq!(found, Expired { unfinished: vec![build(1)], logs: vec![build(3)], ..Expired::default() });
    ledger.commit(&[Record::LogsDeleted(id(1))]);
    let found = ledger.store.expired(scan(4_000, 0, false)).unwrap();
    let empty = EndedBuild { size: Some(0), ..build(1) };
    assert_eq!(found, Expired { builds: vec![empty], ..Expired::default() });
    assert_eq!(ledger.store.expired(scan(1_000, 0, false)).unwrap(), Expired::default(), "not before its time");
    // Nothing of builds that retention has not touched, or that the ledger has never known.
    assert_eq!(ledger.store.without_logs(vec![id(1), id(3), id(99)]).unwrap(), [id(1)]);
    ledger.commit(&[Record::BuildDeleted(id(1))]);
    assert_eq!(ledger.list(filter()), [8, 7, 6, 5, 4, 3, 2]);
    assert_eq!((ledger.store.build(id(1)).unwrap(), ledger.store.by_message_ids(&["m1"]).unwrap().len()), (None, 0));
    assert_eq!(ledger.store.count_ended().unwrap()[&BuildState::Success], 2);

    // All that have ended, up to the newest; 9 has not.
    ledger.commit(&(2..=9).map(|n| Record::BuildDeleted(id(n))).collect::<Vec<_>>());
    assert_eq!(ledger.list(filter()), [0_u64; 0]);
    assert_eq!(ledger.store.load().unwrap().builds.len(), 1, "a build that has not ended stays");
    let mut ended = status(None, BuildEnd::Cancelled, 9_000);
    ended.cancelled = true;
    ledger.commit(&[Record::Build(id(9), ended), Record::BuildDeleted(id(9)), Record::BuildDeleted(id(4))]);
    let left = ledger.store.tables().unwrap();
    let left = |table: &str| left.iter().find(|(name, _)| *name == table).unwrap().1;
    assert_eq!((left("ended_where"), left("ended"), left("builds")), (0, 0, 0));
    drop(ledger.store);
    let store = ledger.world.open();
    assert_eq!((store.load().unwrap().last_build, store.highest_deleted().unwrap()), (9, id(9)));
    assert_eq!(store.without_logs(vec![id(4), id(9), id(10)]).unwrap(), [id(4), id(9)]);
}

pub fn sizes_are_measured_once_and_those_of_kept_builds_count(world: &World) {
    let mut ledger = filled(world);
    let id = BuildId;
    let oldest =
        |found: &Expired| found.oldest.iter().map(|build| (build.id.0, build.size.unwrap())).collect::<Vec<_>>();
    let found = ledger.store.expired(scan(0, 0, true)).unwrap();
    assert_eq!((found.total, oldest(&found)), (Some(0), Vec::new()));
    let unmeasured = |ledger: &Ledger<'_>, after| {
        let found = ledger.store.unmeasured(scan(0, after, true)).unwrap();
        found.into_iter().map(|(build, _)| build).collect::<Vec<_>>()
    };
    assert_eq!(unmeasured(&ledger, 5_000), [2, 5, 6, 7, 8].map(id), "the others expire");
    let sizes = [(1, 10), (2, 20), (3, 0), (7, 70)];
    ledger.commit(&sizes.map(|(n, bytes)| Record::LogsMeasured(id(n), bytes)));
    assert_eq!(unmeasured(&ledger, 0), [4, 5, 6, 8].map(id));
    let found = ledger.store.expired(scan(0, 0, true)).unwrap();
    assert_eq!((found.total, oldest(&found)), (Some(100), vec![(1, 10), (7, 70)]));
    ledger.commit(&[Record::LogsExpired(id(7), Timestamp(9)), Record::LogsMeasured(id(7), 70)]);
    let found = ledger.store.expired(scan(0, 0, true)).unwrap();
    assert_eq!((found.total, oldest(&found)), (Some(30), vec![(1, 10)]));
    assert_eq!(found.unfinished.iter().map(|build| build.id).collect::<Vec<_>>(), [id(7)]);
}

pub fn a_search_finds_a_batch_of_the_oldest(world: &World) {
    let mut ledger = ledger(world);
    let many = BATCH as u64 + 5;
    let records = (1..=many).flat_map(|id| {
        // They end in the opposite order.
        let status = status(None, BuildEnd::Success, 1_000_000 - id);
        [new_build(id, spec("", needs(&[]), false)), Record::Build(BuildId(id), status)]
    });
    ledger.commit(&records.collect::<Vec<_>>());
    let found = ledger.store.expired(scan(0, 2_000_000, false)).unwrap().logs;
    assert_eq!((found.len(), found[0].id, found[BATCH - 1].id), (BATCH, BuildId(many), BuildId(6)));
}

/// Prints the times; `cargo nextest run --release -p rouse-master --lib a_million --run-ignored all --no-capture`. With
/// `ROUSE_ENDED_BUILDS=n`, there are n builds, a multiple of 10,000.
pub fn a_million_ended_builds_make_no_listing_slower(world: &World) {
    let many = std::env::var("ROUSE_ENDED_BUILDS").map_or(1_000_000, |n| n.parse().unwrap());
    let mut ledger = ledger(world);
    let started = Instant::now();
    for from in (1..=many).step_by(10_000) {
        let mut records = Vec::new();
        for id in from..from + 10_000 {
            let os = ["linux", "solaris", "plan9"][(id % 3) as usize];
            let requirement = needs(&[("os", os), ("pool", &format!("p{}", id % 40))]);
            let end = match id % 1_000 {
                7 => BuildEnd::Lost("gone".to_owned()),
                n if n % 10 == 1 => BuildEnd::Failure("no".to_owned()),
                _ => BuildEnd::Success,
            };
            records.push(new_build(id, spec(&format!("job {}", id % 500), requirement, id % 100 == 0)));
            records.push(ended(id, &format!("w{}", id % 200), end, id));
        }
        ledger.commit(&records);
    }
    println!("{many} builds written in {:.1} s", started.elapsed().as_secs_f64());
    let worker = |name: &str| Some(name.parse::<WorkerName>().unwrap());
    let os = || vec![("os".to_owned(), "plan9".to_owned())];
    let page = || BuildFilter { limit: 50, ..BuildFilter::default() };
    let lost = Some(BuildState::Lost);
    let mut slowest = Duration::ZERO;
    for (what, filter) in [
        ("newest", page()),
        ("in the middle", BuildFilter { before: Some(BuildId(many / 2)), ..page() }),
        ("oldest", BuildFilter { before: Some(BuildId(60)), ..page() }),
        ("lost", BuildFilter { state: lost, ..page() }),
        ("cancelled: none", BuildFilter { state: Some(BuildState::Cancelled), ..page() }),
        ("of a worker", BuildFilter { worker: worker("w7"), ..page() }),
        ("lost of a worker", BuildFilter { worker: worker("w7"), state: lost, ..page() }),
        ("lost of another worker: none", BuildFilter { worker: worker("w8"), state: lost, ..page() }),
        ("of a name", BuildFilter { name: Some("job 7".to_owned()), ..page() }),
        ("with a property", BuildFilter { properties: os(), ..page() }),
        ("lost with a property", BuildFilter { properties: os(), state: lost, ..page() }),
        (
            "lost, a name, a property and a worker: none",
            BuildFilter {
                since: None,
                until: None,
                properties: os(),
                state: lost,
                name: Some("job 7".to_owned()),
                worker: worker("w8"),
                before: None,
                limit: 50,
            },
        ),
    ] {
        let mut best = Duration::MAX;
        let mut found = 0;
        for _ in 0..5 {
            let started = Instant::now();
            found = ledger.list(filter.clone()).len();
            best = best.min(started.elapsed());
        }
        println!("{what}: {found} builds in {:.2} ms", best.as_secs_f64() * 1e3);
        slowest = slowest.max(best);
    }
    // Without an index, each would read a million rows.
    assert!(slowest < Duration::from_millis(50), "{slowest:?}");

    let started = Instant::now();
    let found = ledger.store.expired(scan(many, many, true)).unwrap();
    println!("a search, with the sum of all sizes: {:.1} ms", started.elapsed().as_secs_f64() * 1e3);
    let ids: Vec<_> = found.logs.iter().map(|build| build.id).collect();
    let all = |record: &dyn Fn(BuildId) -> Record| ids.iter().map(|id| record(*id)).collect::<Vec<_>>();
    let steps = [
        ("mark", all(&|id| Record::LogsExpired(id, Timestamp(1)))),
        ("unmark", all(&Record::LogsDeleted)),
        ("delete", all(&Record::BuildDeleted)),
    ];
    for (what, records) in steps {
        let started = Instant::now();
        ledger.commit(&records);
        let took = started.elapsed();
        println!("{what} {}: {:.1} ms", ids.len(), took.as_secs_f64() * 1e3);
        assert!(took < Duration::from_millis(250), "{what}: {took:?}");
    }
    let started = Instant::now();
    let counts = ledger.store.count_ended().unwrap();
    println!("counted in {:.1} ms: {counts:?}", started.elapsed().as_secs_f64() * 1e3);
}
