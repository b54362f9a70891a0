//! The ledger, with both databases: what both promise, and what PostgreSQL does when it is killed, stopped, cut off, or
//! not as it should be.
#![allow(clippy::unwrap_used)]

mod contract;
mod ended;
#[cfg(feature = "postgres")]
mod faults;
#[cfg(feature = "postgres")]
mod transfer;

use rouse_master::store::{Database, Store};
#[cfg(feature = "postgres")]
use rouse_tests::harness::{Keeper, Postgres, kept};

/// Where a test has its ledger.
pub enum World {
    /// In a directory.
    Sqlite(tempfile::TempDir),
    /// In the database with this URL.
    #[cfg(feature = "postgres")]
    Postgres(String),
}

impl World {
    fn database(&self) -> Database {
        match self {
            Self::Sqlite(dir) => Database::file(dir.path().join("ledger")),
            #[cfg(feature = "postgres")]
            Self::Postgres(url) => postgres_database(url, "ci"),
        }
    }

    fn open(&self) -> Store {
        self.database().open().unwrap()
    }

    fn reader(&self) -> Store {
        self.database().reader().unwrap()
    }
}

#[cfg(feature = "postgres")]
fn postgres_database(url: &str, master: &str) -> Database {
    let url = rouse_master::config::PostgresUrl::parse(url, std::path::Path::new("/")).unwrap();
    Database::postgres(&url, master).unwrap()
}

fn sqlite(test: impl Fn(&World)) {
    test(&World::Sqlite(tempfile::tempdir().unwrap()));
}

/// A database that nobody has used, of the server that the tests share; nothing if PostgreSQL is not installed.
#[cfg(feature = "postgres")]
fn fresh() -> Option<(Postgres, String)> {
    Postgres::programs()?;
    let server = Postgres::of_keeper(&kept()["postgres"])?;
    let database = server.database();
    Some((server, database))
}

#[cfg(feature = "postgres")]
fn postgres(test: impl Fn(&World)) {
    let Some((server, database)) = fresh() else { return };
    test(&World::Postgres(server.url(&database)));
}

#[cfg(feature = "postgres")]
#[test]
#[ignore = "keeps the shared server for the other tests, which start it"]
fn keeper() {
    let Some(keeper) = Keeper::here() else { return };
    // What a power failure does is not tested here.
    let server = Postgres::start("shared", "fsync = off\nmax_connections = 200").unwrap();
    let about = serde_json::json!({ "postgres": server.description() });
    keeper.serve(&about, |request| panic!("nobody may {request} it"));
}

#[test]
#[ignore = "measures"]
fn the_time_of_a_commit() {
    println!("SQLite");
    sqlite(contract::the_time_of_a_commit);
    #[cfg(feature = "postgres")]
    if let Some(server) = Postgres::start("commits", "") {
        println!("PostgreSQL, over loopback");
        contract::the_time_of_a_commit(&World::Postgres(server.url(&server.database())));
    }
}

/// Runs each contract with both databases.
macro_rules! contracts {
    ($($(#[$ignore:meta])? $module:ident :: $name:ident;)*) => {
        mod in_sqlite {
            $(#[test] $(#[$ignore])? fn $name() { super::sqlite(super::$module::$name); })*
        }
        #[cfg(feature = "postgres")]
        mod in_postgres {
            $(#[test] $(#[$ignore])? fn $name() { super::postgres(super::$module::$name); })*
        }
    };
}

contracts! {
    contract::a_new_start_finds_what_was_committed_and_nothing_that_has_ended;
    contract::a_batch_that_fails_leaves_nothing;
    contract::a_batch_is_the_same_if_it_is_written_twice;
    contract::any_text_is_kept_as_it_is;
    contract::news_and_mails_are_loaded_until_they_are_done;
    contract::the_journal_has_the_newest_entries;
    contract::logs_are_in_the_store_once_all_of_them_are;
    ended::each_filter_and_all_of_them_together_find_the_newest;
    ended::a_build_is_deleted_in_steps_and_its_number_is_never_given_again;
    ended::sizes_are_measured_once_and_those_of_kept_builds_count;
    ended::a_search_finds_a_batch_of_the_oldest;
    #[ignore = "takes minutes, and gigabytes of disk"]
    ended::a_million_ended_builds_make_no_listing_slower;
}
