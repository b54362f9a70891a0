//! The ledger returns at the next start what was committed.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::core::build::{BuildEnd, BuildState, Requirement};
use crate::core::mail::{Item, MailId, What};
use crate::core::plan::ProviderKind;
use crate::core::record::DesiredState;
use crate::core::spend::Spent;
use crate::core::view::BuildFilter;
use rouse_shared::Timestamp;
use rouse_shared::message::Step;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
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

fn filter_all() -> BuildFilter {
    BuildFilter { limit: 10, ..BuildFilter::default() }
}

fn new_build(id: u64, message_id: Option<&str>) -> Record {
    let status = BuildStatus::new(Timestamp(5));
    Record::NewBuild { id: BuildId(id), spec: spec(), message_id: message_id.map(str::to_owned), status }
}

#[test]
fn a_new_start_finds_what_was_committed_and_nothing_that_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger");
    let mut store = Store::open(&path).unwrap();
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
    for file in ["ledger", "ledger-wal"] {
        let mode = fs::metadata(dir.path().join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file} holds tokens");
    }
    drop(store);

    let store = Store::open(&path).unwrap();
    let ledger = store.load().unwrap();
    assert_eq!(ledger.builds.len(), 1);
    assert_eq!(ledger.builds[0].spec, spec());
    assert_eq!(ledger.last_build, 2);
    assert_eq!(ledger.workers, [(worker, record)]);
    assert_eq!(ledger.leases_extended, Some(Duration::from_secs(77)));
    assert_eq!(store.by_message_id("m1").unwrap(), Some(BuildId(1)));
    assert_eq!(store.by_message_id("m2").unwrap(), None);

    let reader = Store::reader(&path).unwrap();
    assert_eq!(reader.build(BuildId(2)).unwrap().unwrap().status, ended);
    let query = BuildFilter { state: Some(BuildState::Failure), limit: 10, ..BuildFilter::default() };
    assert_eq!(reader.ended_builds(&query).unwrap().len(), 1);
    let before = BuildFilter { before: Some(BuildId(2)), limit: 10, ..BuildFilter::default() };
    assert_eq!(reader.ended_builds(&before).unwrap().len(), 0);
}

#[test]
fn a_batch_that_fails_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(&dir.path().join("ledger")).unwrap();
    store.commit(&[new_build(1, Some("same"))]).unwrap();
    assert!(store.commit(&[new_build(2, None), new_build(3, Some("same"))]).is_err());
    assert_eq!(store.load().unwrap().last_build, 1);
}

#[test]
fn a_ledger_of_a_newer_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger");
    Store::open(&path).unwrap().connection.pragma_update(None, "user_version", SCHEMA + 1).unwrap();
    assert!(matches!(Store::open(&path), Err(StoreError::Newer(_))));
}

#[test]
fn news_and_mails_are_loaded_until_they_are_done() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger");
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
    let mut store = Store::open(&path).unwrap();
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
    let ledger = Store::open(&path).unwrap().load().unwrap();
    assert_eq!(ledger.news, [news(2)]);
    assert_eq!(ledger.mails, [mail("a")]);
    assert_eq!(ledger.mail_pause, Some((2, Timestamp(70))));
    assert_eq!(ledger.reported_orphans, [(ec2, handle("i-1")), (ProviderKind::Libvirt, handle("i-2"))]);
}

#[test]
fn a_ledger_of_the_first_version_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger");
    Connection::open(&path).unwrap().execute_batch(include_str!("fixtures/ledger_v1.sql")).unwrap();
    let ledger = Store::open(&path).unwrap().load().unwrap();
    let host = |id: &str| ledger.hosts.iter().find(|h| h.id.as_str() == id).unwrap();
    for (id, state) in [
        ("h-ordered", HostState::Ordered),
        ("h-booting", HostState::Booting),
        ("h-awake", HostState::Ready),
        ("h-draining", HostState::Draining),
        ("h-suspending", HostState::Suspending),
        ("h-stopped", HostState::Suspended),
        ("h-waking", HostState::Resuming),
        ("h-stopping", HostState::Terminating),
    ] {
        let host = host(id);
        assert_eq!(host.state, state, "{id}");
        assert_eq!(host.launch.as_ref().unwrap().price, Some(0.1), "{id}");
        assert_eq!(host.started_for, Some(BuildId(1)), "{id}");
    }
    assert_eq!(ledger.hosts.len(), 8, "the one that is gone is not loaded");
    let stopped = host("h-stopped");
    assert_eq!((stopped.suspended, stopped.paid), (Some(Timestamp(4_000)), 0.5));
    assert!(stopped.launch.as_ref().unwrap().fresh && stopped.token_spent);
    assert_eq!(host("h-waking").resumed, Some(Timestamp(5_000)));
    assert!(ledger.sessions[0].impostor);
    let desired: Vec<_> = ledger.workers.iter().map(|(name, w)| (name.as_str(), w.desired, w.failures)).collect();
    assert_eq!(
        desired,
        [
            ("w-drain", DesiredState::Drain, 2),
            ("w-pause", DesiredState::Pause, 2),
            ("w-stop", DesiredState::Drain, 2),
            ("w-work", DesiredState::Work, 2),
        ]
    );
    let orphan = |what: &What| matches!(what, What::Orphan { terminated: true, handle, .. } if handle == "i-9");
    assert!(orphan(&ledger.news[0].item.what) && orphan(&ledger.mails[0].items[0].what));
    assert_eq!(ledger.builds.len(), 2);
    assert_eq!(ledger.builds[1].status.attempts[0].host.as_ref().unwrap().as_str(), "h-awake");
    assert_eq!(ledger.spent, Spent { day: 20_000, micros: 1_500_000 });
    // Read as it is from now on, not a second time.
    let store = Store::open(&path).unwrap();
    assert_eq!(store.load().unwrap(), ledger);
    // The build that had ended is listed by what it was submitted with.
    let linux = vec![("os".to_owned(), "linux".to_owned())];
    let filter =
        BuildFilter { name: Some("b".to_owned()), properties: linux, state: Some(BuildState::Success), ..filter_all() };
    let listed = store.ended_builds(&filter).unwrap();
    assert_eq!(listed.iter().map(|build| build.id).collect::<Vec<_>>(), [BuildId(2)]);
    assert_eq!(store.count_ended().unwrap(), [(BuildState::Success, 1)].into());
}

#[test]
fn an_unreadable_row_is_named_with_its_cause() {
    let source = serde_json::from_str::<u8>("x").unwrap_err();
    let error = StoreError::Row { row: "build 7".to_owned(), source };
    let text = "the ledger's row build 7 is not readable: expected value at line 1 column 1";
    assert_eq!(rouse_shared::error::Chain(&error).to_string(), text);
}

#[test]
fn nothing_of_a_terminated_host_stays_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger");
    Connection::open(&path).unwrap().execute_batch(include_str!("fixtures/ledger_v1.sql")).unwrap();
    let mut store = Store::open(&path).unwrap();
    let mut hosts = store.load().unwrap().hosts;
    for host in &mut hosts {
        host.token = "what-nobody-may-find".into();
    }
    let records = |hosts: &[Host]| hosts.iter().map(|host| Record::Host(host.clone())).collect::<Vec<_>>();
    store.commit(&records(&hosts)).unwrap();
    for host in &mut hosts {
        host.state = HostState::Terminated;
    }
    store.commit(&records(&hosts)).unwrap();
    assert!(store.load().unwrap().hosts.is_empty());
    // The journal is emptied when the last connection closes.
    drop(store);
    let found = fs::read(&path).unwrap().windows(20).any(|bytes| bytes == b"what-nobody-may-find");
    assert!(!found, "a token of a host that is terminated");
}
