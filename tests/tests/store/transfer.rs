//! A ledger is copied from SQLite into PostgreSQL: all of it, or nothing.

use super::contract::{everything, filled};
use super::{fresh, postgres_database};
use rouse_master::store::{Database, StoreError};

#[test]
fn all_of_it_is_copied_into_an_empty_database() {
    let Some((server, database)) = fresh() else { return };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ledger");
    let mut old = Database::file(&file).open().unwrap();
    filled(&mut old);
    let expected = everything(&old);
    drop(old);
    let new = postgres_database(&server.url(&database), "ci").open().unwrap();
    let copied = new.copy_from(&file, &[("id", "abc".to_owned())]).unwrap();
    assert_eq!(everything(&new), expected);
    let rows = |table: &str| copied.iter().find(|(name, _)| *name == table).unwrap().1;
    assert_eq!((rows("builds"), rows("ended"), rows("news")), (4, 2, 1));
    assert_eq!(new.kept("id").unwrap().as_deref(), Some("abc"));
    assert_eq!(everything(&Database::file(&file).open().unwrap()), expected, "the file is as it was");
    match new.copy_from(&file, &[]) {
        Err(StoreError::NotEmpty { table, rows }) => assert_eq!((table, rows), ("builds", 4)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_is_copied_if_the_last_table_fails() {
    let Some((server, database)) = fresh() else { return };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ledger");
    filled(&mut Database::file(&file).open().unwrap());
    let new = postgres_database(&server.url(&database), "ci").open().unwrap();
    server.sql(&database, "ALTER TABLE facts ADD CONSTRAINT never CHECK (value < 0)");
    let error = new.copy_from(&file, &[("id", "abc".to_owned())]).unwrap_err().to_string();
    assert!(error.contains("never"), "{error}");
    assert!(new.tables().unwrap().iter().all(|(_, rows)| *rows == 0));
    assert_eq!(new.kept("id").unwrap(), None);
    server.sql(&database, "ALTER TABLE facts DROP CONSTRAINT never");
    new.copy_from(&file, &[]).unwrap();
}
