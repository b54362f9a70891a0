//! What the ledger promises with either database: it returns at the next start what was committed, and what it knows of
//! logs in blob stores.

use crate::World;
use rouse_master::core::blobs::Upload;
use rouse_master::core::build::{BuildEnd, BuildSpec, BuildState, BuildStatus, Requirement};
use rouse_master::core::images::{ImageKey, ImageRecord};
use rouse_master::core::journal::{Action, Entry, Filter, KEPT, Principal, PrincipalKind};
use rouse_master::core::mail::{Item, Mail, MailId, News, What};
use rouse_master::core::places::{PlaceKey, PlaceRecord};
use rouse_master::core::plan::ProviderKind;
use rouse_master::core::record::{Record, WorkerRecord};
use rouse_master::core::spend::Spent;
use rouse_master::core::view::BuildFilter;
use rouse_master::store::{LogsAt, Store};
use rouse_shared::message::Step;
use rouse_shared::{BuildId, Timestamp, WorkerName};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

fn spec() -> Arc<BuildSpec> {
    let step = Step {
        name: "a".into(),
        run: vec!["true".into()],
        workdir: String::new(),
        env: BTreeMap::new(),
        timeout_ms: None,
        silence_ms: None,
        always: false,
        limits: Default::default(),
    };
    Arc::new(BuildSpec {
        name: "b".into(),
        requirement: Requirement::Where([("os".into(), "linux".into())].into()),
        priority: -3,
        retries: 2,
        timeout_ms: Some(1),
        queue_timeout_ms: None,
        keep: false,
        env: BTreeMap::new(),
        limits: Default::default(),
        steps: vec![step],
    })
}

pub fn new_build(id: u64, message_id: Option<&str>) -> Record {
    let status = BuildStatus::new(Timestamp(5));
    Record::NewBuild { id: BuildId(id), spec: spec(), message_id: message_id.map(str::to_owned), status }
}

pub fn a_new_start_finds_what_was_committed_and_nothing_that_has_ended(world: &World) {
    let mut store = world.open();
    let mut ended = BuildStatus::new(Timestamp(5));
    ended.end = Some(BuildEnd::Failure("no".into()));
    let worker: WorkerName = "w1".parse().unwrap();
    let record = WorkerRecord { failures: 2, ..WorkerRecord::default() };
    let batch = [
        new_build(1, Some("m1")),
        new_build(2, None),
        Record::Build(BuildId(2), ended.clone()),
        Record::Worker(worker.clone(), record.clone()),
        Record::Spent(Spent { day: 20_000, micros: 1_500_000 }),
        Record::LeasesExtended(Some(Duration::from_secs(77))),
    ];
    store.commit(&batch).unwrap();
    drop(store);

    let store = world.open();
    let ledger = store.load().unwrap();
    assert_eq!(ledger.builds.len(), 1);
    assert_eq!(ledger.builds[0].spec, spec());
    assert_eq!(ledger.last_build, 2);
    assert_eq!(ledger.workers, [(worker, record)]);
    assert_eq!(ledger.leases_extended, Some(Duration::from_secs(77)));
    assert_eq!(store.by_message_ids(&["m2", "m1"]).unwrap(), [("m1".to_owned(), BuildId(1))].into());
    assert!(store.by_message_ids(&[]).unwrap().is_empty());

    let reader = world.reader();
    assert_eq!(reader.build(BuildId(2)).unwrap().unwrap().status, ended);
    let query = BuildFilter { state: Some(BuildState::Failure), limit: 10, ..BuildFilter::default() };
    assert_eq!(reader.ended_builds(&query).unwrap().len(), 1);
    let before = BuildFilter { before: Some(BuildId(2)), limit: 10, ..BuildFilter::default() };
    assert_eq!(reader.ended_builds(&before).unwrap().len(), 0);
}
pub fn a_batch_that_fails_leaves_nothing(world: &World) {
    let mut store = world.open();
    store.commit(&[new_build(1, Some("same"))]).unwrap();
    assert!(store.commit(&[new_build(2, None), new_build(3, Some("same"))]).is_err());
    assert_eq!(store.load().unwrap().last_build, 1);
}
pub fn news_and_mails_are_loaded_until_they_are_done(world: &World) {
    let item = |at| Item {
        at: Timestamp(at),
        what: What::Missing { worker: "w1".parse().unwrap(), why: "not attached for 300 s".to_owned() },
    };
    let news = |id| News { id, to: ["ops@example.org".to_owned()].into(), item: item(id) };
    let mail = |name: &str| Mail {
        id: MailId(format!("{name}@example.org")),
        created: Timestamp(9),
        to: vec!["ann@example.org".to_owned(), "ops@example.org".to_owned()],
        waiting: ["ops@example.org".to_owned()].into(),
        items: vec![item(8)],
        tries: 3,
        not_before: Timestamp(10),
        taken: true,
        error: Some("it said 451".to_owned()),
    };
    let mut store = world.open();
    assert_eq!(store.load().unwrap().mail_pause, None);
    let (ec2, handle) = (ProviderKind::Ec2, |name: &str| name.to_owned());
    let batch = [
        Record::News(news(1)),
        Record::News(news(2)),
        Record::NewsOver(1),
        Record::Mail(Mail { tries: 2, ..mail("a") }),
        Record::Mail(mail("a")),
        Record::Mail(mail("b")),
        Record::MailOver(mail("b").id),
        Record::MailPause(2, Timestamp(70)),
        Record::OrphanReported(ec2, handle("i-1")),
        Record::OrphanReported(ec2, handle("i-2")),
        Record::OrphanReported(ProviderKind::Libvirt, handle("i-2")),
        Record::OrphanOver(ec2, handle("i-2")),
    ];
    store.commit(&batch).unwrap();
    drop(store);
    let ledger = world.open().load().unwrap();
    assert_eq!(ledger.news, [news(2)]);
    assert_eq!(ledger.mails, [mail("a")]);
    assert_eq!(ledger.mail_pause, Some((2, Timestamp(70))));
    assert_eq!(ledger.reported_orphans, [(ec2, handle("i-1")), (ProviderKind::Libvirt, handle("i-2"))]);
}

fn ended(id: u64) -> [Record; 2] {
    let spec = Arc::new(BuildSpec {
        name: "b".to_owned(),
        requirement: Requirement::Where(BTreeMap::new()),
        priority: 0,
        retries: 0,
        timeout_ms: None,
        queue_timeout_ms: None,
        env: BTreeMap::new(),
        limits: Default::default(),
        keep: false,
        steps: Vec::new(),
    });
    let mut status = BuildStatus::new(Timestamp(1));
    let new = Record::NewBuild { id: BuildId(id), spec, message_id: None, status: status.clone() };
    (status.end, status.finished) = (Some(BuildEnd::Success), Some(Timestamp(2)));
    [new, Record::Build(BuildId(id), status)]
}

fn upload(id: u64, upload: Upload) -> Record {
    Record::LogsUploaded(BuildId(id), "s3://bucket?region=x".into(), upload)
}

fn at(store: Option<&str>, complete: bool) -> Option<LogsAt> {
    Some(LogsAt { store: store.map(str::to_owned), complete })
}

fn waiting(ledger: &Store) -> Vec<u64> {
    ledger.not_uploaded(BuildId(0)).unwrap().into_iter().map(|(build, _)| build.0).collect()
}

pub fn logs_are_in_the_store_once_all_of_them_are(world: &World) {
    let mut ledger = world.open();
    ledger.commit(&[ended(1), ended(2), ended(3)].concat()).unwrap();
    ledger.commit(&ended(4)[..1]).unwrap();
    assert_eq!(waiting(&ledger), [1, 2, 3], "the last one has not ended");
    assert_eq!((ledger.logs_at(BuildId(1)).unwrap(), ledger.logs_at(BuildId(4)).unwrap()), (at(None, false), None));

    ledger.commit(&[upload(1, Upload::Begun), upload(2, Upload::Begun), upload(2, Upload::Complete(7))]).unwrap();
    drop(ledger);
    let mut ledger = world.open();
    let store = Some("s3://bucket?region=x");
    assert_eq!(waiting(&ledger), [1, 3]);
    assert_eq!(ledger.not_uploaded(BuildId(0)).unwrap()[0].1.as_deref(), store);
    assert_eq!(ledger.logs_at(BuildId(1)).unwrap(), at(store, false));
    assert_eq!(ledger.logs_at(BuildId(2)).unwrap(), at(store, true));
    let logs_store = |ledger: &Store, id| ledger.build(BuildId(id)).unwrap().unwrap().logs_store;
    assert_eq!((logs_store(&ledger, 1), logs_store(&ledger, 2).as_deref()), (None, store));

    // The end is written again, and changes nothing of this.
    ledger.commit(&ended(2)[1..]).unwrap();
    assert_eq!(logs_store(&ledger, 2).as_deref(), store);
    // Once retention has begun, nobody reads the logs, and whoever deletes them knows where they are.
    ledger
        .commit(&[Record::LogsExpired(BuildId(2), Timestamp(3)), Record::LogsExpired(BuildId(1), Timestamp(3))])
        .unwrap();
    assert_eq!((logs_store(&ledger, 2), ledger.logs_at(BuildId(2)).unwrap()), (None, at(store, true)));
    assert_eq!(waiting(&ledger), [3]);
}

/// All that can be read of the ledger.
pub fn everything(store: &Store) -> String {
    let ids = (1..=5).map(BuildId);
    let builds: Vec<_> = ids.map(|id| (store.build(id).unwrap(), store.logs_at(id).unwrap())).collect();
    let highest = store.highest_deleted().unwrap();
    format!("{:?}{:?}{builds:?}{highest:?}", store.load().unwrap(), store.tables().unwrap())
}

pub fn entry(id: u64, target: Option<&str>) -> Record {
    let principal = Principal { name: "ann".to_owned(), kind: PrincipalKind::Local };
    Record::Entry(Entry {
        id,
        at: Timestamp(id * 10),
        action: Action::Pause,
        target: target.map(str::to_owned),
        principal,
        from: "socket".to_owned(),
        note: Some("a\0b".to_owned()),
    })
}

pub fn the_journal_has_the_newest_entries(world: &World) {
    let mut store = world.open();
    let batch = [entry(1, Some("w1")), entry(2, None), entry(3, Some("w2")), entry(4, Some("w1"))];
    store.commit(&batch).unwrap();
    drop(store);
    let mut store = world.open();
    assert_eq!(store.load().unwrap().last_entry, 4, "a number is not given again");
    let ids = |store: &Store, filter: &Filter| {
        store.journal(filter).unwrap().iter().map(|entry| entry.id).collect::<Vec<_>>()
    };
    let all = Filter { limit: 10, ..Filter::default() };
    assert_eq!(Record::Entry(store.journal(&all).unwrap()[3].clone()), batch[0]);
    assert_eq!(ids(&store, &all), [4, 3, 2, 1]);
    assert_eq!(ids(&store, &Filter { limit: 2, before: Some(4), ..all.clone() }), [3, 2]);
    assert_eq!(ids(&store, &Filter { since: Some(Timestamp(30)), ..all.clone() }), [4, 3]);
    assert_eq!(ids(&store, &Filter { target: Some("w1".to_owned()), ..all.clone() }), [4, 1]);
    store.commit(&[entry(KEPT + 2, None)]).unwrap();
    assert_eq!(ids(&world.reader(), &all), [KEPT + 2, 4, 3], "the oldest are deleted");
}

/// As if the answer to a commit was lost.
pub fn a_batch_is_the_same_if_it_is_written_twice(world: &World) {
    let mut store = world.open();
    for (number, batch) in batches().iter().enumerate() {
        let before = everything(&store);
        store.commit(batch).unwrap();
        let after = everything(&store);
        assert_ne!(before, after, "batch {number} changes something");
        store.commit(batch).unwrap();
        assert_eq!(everything(&store), after, "batch {number}");
    }
}

/// Fills a ledger: something in each table.
pub fn filled(store: &mut Store) {
    let all = batches();
    // The last one takes back what the one before has written.
    for batch in &all[..all.len() - 1] {
        store.commit(batch).unwrap();
    }
}

fn batches() -> Vec<Vec<Record>> {
    let worker: WorkerName = "w1".parse().unwrap();
    let place = PlaceKey { provider: ProviderKind::Ec2, name: "a".into() };
    let news = News {
        id: 1,
        to: ["ops@example.org".to_owned()].into(),
        item: Item { at: Timestamp(1), what: What::Missing { worker: worker.clone(), why: "gone".to_owned() } },
    };
    let mut over = BuildStatus::new(Timestamp(5));
    (over.end, over.finished) = (Some(BuildEnd::Success), Some(Timestamp(6)));
    let id = BuildId;
    vec![
        vec![new_build(1, Some("m1")), new_build(2, None), new_build(3, Some("m3"))],
        vec![Record::Build(id(1), over.clone()), Record::Build(id(2), over.clone()), Record::Build(id(3), over)],
        vec![Record::LogsMeasured(id(1), 7), upload(2, Upload::Begun), upload(3, Upload::Complete(9))],
        vec![upload(2, Upload::Complete(8)), Record::LogsExpired(id(1), Timestamp(9))],
        vec![Record::LogsDeleted(id(1)), Record::LogsExpired(id(3), Timestamp(9))],
        vec![Record::BuildDeleted(id(1)), Record::LogsDeleted(id(3))],
        vec![new_build(4, None), new_build(5, Some("m5"))],
        vec![
            Record::Worker(worker, WorkerRecord::default()),
            Record::Spent(Spent { day: 1, micros: 2 }),
            Record::Image(ImageKey { provider: ProviderKind::Ec2, image: "a".into() }, ImageRecord::default()),
            Record::Place(place.clone(), PlaceRecord { failures: 1, ..PlaceRecord::default() }),
            Record::News(news),
            Record::MailPause(1, Timestamp(2)),
            Record::OrphanReported(ProviderKind::Ec2, "i-1".to_owned()),
            Record::LeasesExtended(Some(Duration::from_secs(1))),
            Record::AlarmTold(Some(Timestamp(3))),
            entry(1, Some("w1")),
        ],
        vec![
            Record::Place(place, PlaceRecord::default()),
            Record::NewsOver(1),
            Record::OrphanOver(ProviderKind::Ec2, "i-1".to_owned()),
            Record::LeasesExtended(None),
            Record::AlarmTold(None),
        ],
    ]
}

/// PostgreSQL has no NUL character, limits what is in an index, and orders texts as its language does.
pub fn any_text_is_kept_as_it_is(world: &World) {
    let mut store = world.open();
    let long = "x".repeat(20_000);
    let properties: BTreeMap<_, _> =
        [("nul", "a\0b"), ("long", &long), ("private", "\u{e000}0")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    let mut spec = (*spec()).clone();
    spec.requirement = Requirement::Where(properties.clone());
    spec.env = [("text".to_owned(), "ü\n\t\"\\u0000".to_owned())].into();
    let spec = Arc::new(spec);
    let mut status = BuildStatus::new(Timestamp(5));
    let ids = ["m\0", "m", "m\u{e000}0", "M"];
    for (id, message_id) in (1..).zip(ids) {
        let message_id = Some(message_id.to_owned());
        let new = Record::NewBuild { id: BuildId(id), spec: spec.clone(), message_id, status: status.clone() };
        store.commit(&[new]).unwrap();
    }
    let expected = (1..).zip(ids).map(|(id, message_id)| (message_id.to_owned(), BuildId(id)));
    assert_eq!(store.by_message_ids(&ids).unwrap(), expected.collect());
    (status.end, status.finished) = (Some(BuildEnd::Failure("no\0".to_owned())), Some(Timestamp(2)));
    store.commit(&[Record::Build(BuildId(1), status.clone())]).unwrap();
    let build = store.build(BuildId(1)).unwrap().unwrap();
    assert_eq!((build.spec, build.status), (spec, status));
    for property in &properties {
        let property = vec![(property.0.clone(), property.1.clone())];
        let filter = BuildFilter { properties: property, limit: 10, ..BuildFilter::default() };
        assert_eq!(store.ended_builds(&filter).unwrap().len(), 1, "{filter:?}");
    }
    let place = |name: &str| PlaceKey { provider: ProviderKind::Ec2, name: name.into() };
    let pause = PlaceRecord { failures: 1, ..PlaceRecord::default() };
    let names = ["", "B", "a", "a b", "a\0", "ab", "ä"];
    store.commit(&names.map(|name| Record::Place(place(name), pause.clone()))).unwrap();
    let image = ImageKey { provider: ProviderKind::Ec2, image: long.into() };
    store.commit(&[Record::Image(image, ImageRecord::default())]).unwrap();
    let ledger = store.load().unwrap();
    let mut loaded: Vec<_> = ledger.places.iter().map(|(place, _)| place.name.to_string()).collect();
    // The only one that another database may order otherwise.
    loaded.sort();
    let mut names = names.map(str::to_owned);
    names.sort();
    assert_eq!(loaded, names);
    assert_eq!(ledger.images.len(), 1);
    let first: Vec<_> = ledger.places.iter().map(|(place, _)| &*place.name).take(3).collect();
    assert_eq!(first, ["", "B", "a"], "ordered by their bytes");
}

/// Prints the time of commits of 1, 20 and 500 builds: `cargo nextest run --release -p rouse-tests --test store
/// the_time_of_a_commit --run-ignored all --no-capture`.
#[expect(clippy::disallowed_methods, reason = "a test measures how long a commit takes")]
pub fn the_time_of_a_commit(world: &World) {
    let mut store = world.open();
    let mut next = 1;
    for (size, times) in [(1_u64, 300), (20, 100), (500, 20)] {
        let mut took = Vec::new();
        for _ in 0..times {
            let batch: Vec<_> = (next..next + size).map(|id| new_build(id, Some(&format!("m{id}")))).collect();
            next += size;
            let began = std::time::Instant::now();
            store.commit(&batch).unwrap();
            took.push(began.elapsed());
        }
        took.sort();
        let at = |part: usize| took[took.len() * part / 100].as_secs_f64() * 1e3;
        println!("{size} builds: p50 {:.2} ms, p99 {:.2} ms", at(50), at(99));
    }
}
