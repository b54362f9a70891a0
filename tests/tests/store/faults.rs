//! What PostgreSQL does to a master: it is killed, stopped and cut off, loses answers, and is not as it should be.

use super::contract::{entry, new_build};
use super::{fresh, postgres_database};
use rouse_master::core::journal::Filter;
use rouse_master::store::{Commit, Store, StoreError};
use rouse_shared::BuildId;
use rouse_tests::harness::{Cuts, DEADLINE, Postgres, ROLE, holds_within, make_certificates};

/// Opens the ledger of the master `ci`.
fn open(url: &str) -> Result<Store, String> {
    postgres_database(url, "ci").open().map_err(|error| error.to_string())
}

fn refused(url: &str) -> String {
    open(url).err().unwrap_or_else(|| panic!("{url} was accepted"))
}

/// Ends what masters have open to this database.
fn disconnect(server: &Postgres, database: &str) {
    let of = "application_name = 'rouse' AND datname = current_database()";
    server.sql(database, &format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {of}"));
}

/// Commits a build, again and again, as the loop does.
fn commit_in_time(store: &mut Store, id: u64) {
    let mut last = String::new();
    let committed = holds_within(DEADLINE, || match store.commit(&[new_build(id, None)]) {
        Ok(()) => true,
        Err(error) => {
            last = error.to_string();
            false
        }
    });
    assert!(committed, "{last}");
}

fn builds(store: &Store) -> Vec<u64> {
    store.load().unwrap().builds.iter().map(|build| build.id.0).collect()
}

#[test]
fn each_thing_that_is_wrong_is_said_and_never_the_password() {
    let Some((server, database)) = fresh() else { return };
    let url = server.url(&database);
    let right = format!("{}:{}@", ROLE.0, ROLE.1);
    let mut said = Vec::new();
    let mut wrong = |url: &str, expected: &[&str]| {
        let text = refused(url);
        for part in expected {
            assert!(text.contains(part), "{part:?} is not in {text:?}");
        }
        said.push(text);
    };
    wrong(&url.replace(&right, "rouse:another-secret@"), &["refuses the password of the role rouse", "store.url"]);
    wrong(&url.replace(&right, "rouse@"), &["password"]);
    wrong(&url.replace(&right, "nobody:not-a-secret@"), &["refuses the password of the role nobody"]);
    wrong(&server.url("absent"), &["has no database absent", "createdb --owner=rouse absent"]);
    wrong(&url.replace(&server.address.port().to_string(), "1"), &["cannot be reached", "refused"]);
    wrong(&format!("{url}?sslmode=require"), &["cannot be reached", "TLS"]);
    let socket = server.socket().display().to_string();
    wrong(
        &format!("postgres://stranger@/{database}?host={socket}&port={}", server.address.port()),
        &["stranger", "createuser"],
    );
    // A database of something else, in another encoding, without rights, and that cannot be written.
    server.sql(&database, "CREATE TABLE builds (id INTEGER)");
    wrong(&url, &["tables of something else", "a database of its own"]);
    server.sql(
        &database,
        "DROP TABLE builds; ALTER SCHEMA public OWNER TO postgres; REVOKE ALL ON SCHEMA public FROM public",
    );
    wrong(&url, &["lacks rights", "OWNER TO rouse"]);
    let latin = format!("{database}_latin");
    server.sql(
        "postgres",
        &format!("CREATE DATABASE {latin} OWNER rouse ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"),
    );
    wrong(&server.url(&latin), &["encoding LATIN1", "--encoding=UTF8"]);
    let standby = server.database();
    server.sql("postgres", &format!("ALTER DATABASE {standby} SET default_transaction_read_only = on"));
    wrong(&server.url(&standby), &["read-only", "standby"]);
    let crowded = server.database();
    server.sql("postgres", &format!("ALTER DATABASE {crowded} CONNECTION LIMIT 0"));
    wrong(&server.url(&crowded), &["no connection left", "max_connections"]);
    for text in said {
        assert!(!text.contains("secret"), "{text}");
    }
}

#[test]
fn the_tables_of_another_version_or_of_another_master_are_refused() {
    let Some((server, database)) = fresh() else { return };
    let url = server.url(&database);
    drop(open(&url).unwrap());
    let other = postgres_database(&url, "other").open().err().unwrap().to_string();
    assert!(other.contains("the ledger of the master \"ci\"") && other.contains("master.name"), "{other}");
    server.sql(&database, "UPDATE ledger SET value = '99' WHERE key = 'version'");
    assert!(matches!(postgres_database(&url, "ci").open(), Err(StoreError::Newer(99))));
    server.sql(&database, "UPDATE ledger SET value = '1' WHERE key = 'version'");
    assert!(matches!(postgres_database(&url, "ci").open(), Err(StoreError::Older(1))));
}

#[test]
fn a_ledger_of_an_earlier_version_is_migrated_by_the_master_that_writes() {
    let Some((server, database)) = fresh() else { return };
    let url = server.url(&database);
    let mut store = open(&url).unwrap();
    store.commit(&[new_build(1, None)]).unwrap();
    drop(store);
    let version = || server.sql(&database, "SELECT value FROM ledger WHERE key = 'version'");
    let newest = version();
    server.sql(&database, "DROP TABLE journal; UPDATE ledger SET value = '5' WHERE key = 'version'");
    // A reader changes nothing.
    let builds = postgres_database(&url, "ci").reader().unwrap().build(BuildId(1)).unwrap();
    assert!(builds.is_some());
    assert_eq!(version(), "5");
    let mut store = open(&url).unwrap();
    assert_eq!((version(), store.load().unwrap().last_build), (newest, 1));
    store.commit(&[entry(1, Some("w1"))]).unwrap();
    assert_eq!(store.journal(&Filter { limit: 9, ..Filter::default() }).unwrap().len(), 1);
}

#[test]
fn one_master_writes_and_a_deposed_one_cannot() {
    let Some((server, database)) = fresh() else { return };
    let url = server.url(&database);
    let mut first = open(&url).unwrap();
    first.commit(&[new_build(1, None)]).unwrap();
    let second = refused(&url);
    assert!(second.contains("another master uses the database") && second.contains("process "), "{second}");
    // Its session ends, and another master begins an epoch before it is back.
    disconnect(&server, &database);
    let mut second = open(&url).unwrap();
    assert!(matches!(first.commit(&[new_build(2, None)]), Err(StoreError::Deposed(_))));
    second.commit(&[new_build(3, None)]).unwrap();
    assert_eq!(builds(&second), [1, 3]);
    // Even with a session that is as good as before, once there is another epoch.
    server.sql(&database, "UPDATE lease SET epoch = epoch + 1, holder = 'somebody'");
    match second.commit(&[new_build(4, None)]) {
        Err(StoreError::Deposed(holder)) => assert_eq!(holder, "somebody"),
        other => panic!("{other:?}"),
    }
    assert_eq!(builds(&second), [1, 3]);
}

#[test]
fn a_connection_that_was_lost_is_replaced_at_once() {
    let Some((server, database)) = fresh() else { return };
    let mut store = open(&server.url(&database)).unwrap();
    for id in 1..=3 {
        disconnect(&server, &database);
        store.commit(&[new_build(id, None)]).unwrap();
        disconnect(&server, &database);
        assert!(store.build(BuildId(id)).unwrap().is_some());
    }
    assert_eq!(builds(&store), [1, 2, 3]);
}

#[test]
fn a_commit_whose_answer_is_lost_is_sent_again() {
    let Some((server, database)) = fresh() else { return };
    let proxy = Cuts::to(server.address);
    let mut store = open(&Postgres::url_at(proxy.address(), &database)).unwrap();
    store.commit(&[new_build(1, Some("m1"))]).unwrap();
    proxy.lose_answer_to(b"COMMIT");
    commit_in_time(&mut store, 2);
    proxy.cut();
    commit_in_time(&mut store, 3);
    assert_eq!(builds(&store), [1, 2, 3]);
    assert_eq!(server.sql(&database, "SELECT epoch FROM lease"), "1", "it is the same master");
    // Nobody answers: that is said, and nobody waits for the pause to end.
    proxy.close(true);
    proxy.cut();
    assert!(store.commit(&[new_build(4, None)]).is_err());
    let error = store.build(BuildId(1)).unwrap_err().to_string();
    assert!(error.contains("PostgreSQL at 127.0.0.1"), "{error}");
    proxy.close(false);
    commit_in_time(&mut store, 4);
    assert_eq!(builds(&store), [1, 2, 3, 4]);
}

#[test]
fn a_server_that_is_killed_has_all_that_was_committed() {
    let Some(mut server) = Postgres::start("killed", "") else { return };
    let database = server.database();
    let mut store = open(&server.url(&database)).unwrap();
    store.commit(&[new_build(1, None)]).unwrap();
    server.kill();
    let error = store.commit(&[new_build(2, None)]).unwrap_err().to_string();
    assert!(error.contains("PostgreSQL at"), "{error}");
    server.begin();
    commit_in_time(&mut store, 2);
    assert_eq!(builds(&store), [1, 2]);
}

#[test]
fn a_server_that_hangs_keeps_nobody_for_ever() {
    let Some(server) = Postgres::start("frozen", "fsync = off") else { return };
    let database = server.database();
    let mut store = open(&server.url(&database)).unwrap();
    store.commit(&[new_build(1, None)]).unwrap();
    server.signal_all(libc::SIGSTOP);
    // The loop does not wait.
    let Commit::Running(mut answer) = store.start_commit(&[new_build(2, None)]) else { panic!("it is over") };
    let error = store.build(BuildId(1)).unwrap_err().to_string();
    assert!(error.contains("has not answered"), "{error}");
    let mut answered = None;
    assert!(holds_within(DEADLINE, || {
        answered = answer.try_recv().ok();
        answered.is_some()
    }));
    let error = answered.unwrap().unwrap_err().to_string();
    assert!(error.contains("has not answered for 15 s"), "{error}");
    server.signal_all(libc::SIGCONT);
    commit_in_time(&mut store, 3);
    // Nobody knows whether the second one was written; the loop would have sent it again.
    commit_in_time(&mut store, 2);
    assert_eq!(builds(&store), [1, 2, 3]);
}

#[test]
fn a_password_that_is_changed_takes_effect_without_a_restart() {
    let Some(server) = Postgres::start("password", "fsync = off") else { return };
    let database = server.database();
    let url = server.url(&database);
    let mut store = open(&url).unwrap();
    server.sql("postgres", "ALTER ROLE rouse PASSWORD 'changed'");
    disconnect(&server, &database);
    let error = store.commit(&[new_build(1, None)]).unwrap_err().to_string();
    assert!(error.contains("refuses the password") && error.contains("reload"), "{error}");
    let parse = |url: &str| rouse_master::config::PostgresUrl::parse(url, std::path::Path::new("/")).unwrap();
    assert!(!store.set_url(Some(&parse(&server.url("elsewhere")))), "another database needs a restart");
    assert!(store.set_url(Some(&parse(&url.replace(ROLE.1, "changed")))));
    commit_in_time(&mut store, 1);
}

#[test]
fn tls_is_what_sslmode_asks_for() {
    let Some(mut server) = Postgres::start("tls", "fsync = off") else { return };
    let authority = server.begin_with_tls().display().to_string();
    let other = tempfile::tempdir().unwrap();
    make_certificates(other.path());
    let other = other.path().join("ca.pem").display().to_string();
    let database = server.database();
    let url = server.url(&database);
    let by_name = url.replace("@127.0.0.1:", "@localhost:");
    let encrypted =
        "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'rouse' AND ssl";
    for (url, count) in [
        (format!("{url}?sslmode=disable"), "0"),
        (url.clone(), "1"),
        (format!("{url}?sslmode=require"), "1"),
        (format!("{url}?sslmode=verify-ca&sslrootcert={authority}"), "1"),
        (format!("{by_name}?sslmode=verify-full&sslrootcert={authority}"), "1"),
    ] {
        let store = open(&url).unwrap_or_else(|why| panic!("{url}: {why}"));
        assert_eq!(server.sql(&database, encrypted), count, "{url}");
        drop(store);
    }
    for url in [
        format!("{url}?sslmode=verify-full&sslrootcert={authority}"),
        format!("{by_name}?sslmode=verify-full&sslrootcert={other}"),
        format!("{by_name}?sslmode=verify-full"),
        format!("{url}?sslmode=verify-ca&sslrootcert={other}"),
        format!("{url}?sslmode=require&sslrootcert={other}"),
    ] {
        let error = refused(&url);
        assert!(error.contains("certificate"), "{url}: {error}");
    }
}
