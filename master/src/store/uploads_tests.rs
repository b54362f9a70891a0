//! What the ledger knows of logs in blob stores.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::core::blobs::Upload;
use crate::core::build::{BuildEnd, BuildSpec, BuildStatus, Requirement};
use crate::core::record::Record;
use rouse_shared::Timestamp;
use rusqlite::Connection;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

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

fn open(dir: &Path) -> Store {
    Store::open(&dir.join("ledger")).unwrap()
}

#[test]
fn logs_are_in_the_store_once_all_of_them_are() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = open(dir.path());
    ledger.commit(&[ended(1), ended(2), ended(3)].concat()).unwrap();
    ledger.commit(&ended(4)[..1]).unwrap();
    assert_eq!(waiting(&ledger), [1, 2, 3], "the last one has not ended");
    assert_eq!((ledger.logs_at(BuildId(1)).unwrap(), ledger.logs_at(BuildId(4)).unwrap()), (at(None, false), None));

    ledger.commit(&[upload(1, Upload::Begun), upload(2, Upload::Begun), upload(2, Upload::Complete(7))]).unwrap();
    drop(ledger);
    let mut ledger = open(dir.path());
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

#[test]
fn a_ledger_of_version_4_has_all_logs_on_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = open(dir.path());
    ledger.commit(&ended(1)).unwrap();
    drop(ledger);
    let old = Connection::open(dir.path().join("ledger")).unwrap();
    let back = "ALTER TABLE ended DROP COLUMN store; ALTER TABLE ended DROP COLUMN uploaded; PRAGMA user_version = 4;";
    old.execute_batch(back).unwrap();
    drop(old);
    let mut ledger = open(dir.path());
    assert_eq!(waiting(&ledger), [1]);
    ledger.commit(&[upload(1, Upload::Complete(7))]).unwrap();
    assert!(waiting(&ledger).is_empty());
}
