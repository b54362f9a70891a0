//! What only SQLite has: a file, and ledgers of earlier versions. What both databases promise is tested in
//! `tests/tests/store`.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::core::blobs::Upload;
use crate::core::build::{BuildEnd, BuildState, Requirement};
use crate::core::journal::{Action, Caller, Entry, Filter};
use crate::core::mail::What;
use crate::core::record::{DesiredState, Host, HostState};
use crate::core::view::BuildFilter;
use rusqlite::Connection;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

fn filter_all() -> BuildFilter {
    BuildFilter { limit: 10, ..BuildFilter::default() }
}

#[test]
fn only_its_owner_can_read_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Database::file(dir.path().join("ledger")).open().unwrap();
    store.commit(&[Record::Spent(Spent { day: 20_000, micros: 1_500_000 })]).unwrap();
    for file in ["ledger", "ledger-wal"] {
        let mode = fs::metadata(dir.path().join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file} holds tokens");
    }
}

#[test]
fn a_ledger_of_a_newer_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger");
    drop(Database::file(&path).open().unwrap());
    Connection::open(&path).unwrap().pragma_update(None, "user_version", SCHEMA + 1).unwrap();
    assert!(matches!(Database::file(&path).open(), Err(StoreError::Newer(_))));
}

#[test]
fn a_ledger_of_the_first_version_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger");
    Connection::open(&path).unwrap().execute_batch(include_str!("fixtures/ledger_v1.sql")).unwrap();
    let ledger = Database::file(&path).open().unwrap().load().unwrap();
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
    let store = Database::file(&path).open().unwrap();
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
    let mut store = Database::file(&path).open().unwrap();
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

#[test]
fn a_ledger_of_version_4_has_all_logs_on_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger");
    let mut ledger = Database::file(&path).open().unwrap();
    let mut status = BuildStatus::new(Timestamp(1));
    let spec = BuildSpec {
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
    };
    let new = Record::NewBuild { id: BuildId(1), spec: Arc::new(spec), message_id: None, status: status.clone() };
    (status.end, status.finished) = (Some(BuildEnd::Success), Some(Timestamp(2)));
    ledger.commit(&[new, Record::Build(BuildId(1), status)]).unwrap();
    let waiting = |ledger: &Store| ledger.not_uploaded(BuildId(0)).unwrap().len();
    drop(ledger);
    let old = Connection::open(&path).unwrap();
    let back = "ALTER TABLE ended DROP COLUMN store; ALTER TABLE ended DROP COLUMN uploaded; PRAGMA user_version = 4;";
    old.execute_batch(back).unwrap();
    drop(old);
    let mut ledger = Database::file(&path).open().unwrap();
    assert_eq!(waiting(&ledger), 1);
    ledger.commit(&[Record::LogsUploaded(BuildId(1), "s3://bucket".into(), Upload::Complete(7))]).unwrap();
    assert_eq!(waiting(&ledger), 0);
}

#[test]
fn a_ledger_of_version_5_gets_a_journal() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger");
    drop(Database::file(&path).open().unwrap());
    let old = Connection::open(&path).unwrap();
    old.execute_batch("DROP TABLE journal; PRAGMA user_version = 5;").unwrap();
    drop(old);
    let mut ledger = Database::file(&path).open().unwrap();
    let entry = Entry {
        id: 1,
        at: Timestamp(5),
        action: Action::Reload,
        target: None,
        principal: Caller::signal("SIGHUP").principal,
        from: "signal".to_owned(),
        note: None,
    };
    ledger.commit(&[Record::Entry(entry.clone())]).unwrap();
    assert_eq!(ledger.journal(&Filter { limit: 9, ..Filter::default() }).unwrap(), [entry]);
    let version: i32 = Connection::open(&path).unwrap().pragma_query_value(None, "user_version", |r| r.get(0)).unwrap();
    assert_eq!(version, SCHEMA);
}
