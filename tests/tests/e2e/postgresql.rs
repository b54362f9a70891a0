//! A master whose ledger is in PostgreSQL, and one that moves it there.

use rouse_tests::harness::{DEADLINE, Master, Postgres, standing};
use std::fs;

fn section(server: &Postgres, database: &str) -> String {
    format!("[store]\nurl = \"{}\"\n", server.url(database))
}

/// The generated id of the master, as its state directory has it.
fn identity(master: &Master) -> String {
    fs::read_to_string(master.dir.join("state/identity")).unwrap().trim().to_owned()
}

/// The master and the database are killed while a build runs, one after the other and both at once.
#[test]
fn nothing_is_lost_if_the_master_and_the_database_are_killed() {
    let Some(mut server) = Postgres::start("e2e", "") else { return };
    let database = server.database();
    let workers = standing("one", "keepalive_interval = 2\nlease = 240\nmax_builds = 1");
    let master = Master::start_on("postgres", &section(&server, &database), &workers);
    let _agent = master.agent("one");
    let gate = master.dir.join("gate");
    let script = format!("seq 1000; until [ -e {} ]; do sleep 0.05; done; seq 1001 2000", gate.display());
    let running = master.detach(&["--worker", "one", "--", "sh", "-c", &script]);
    master.until_state(&running, "running");
    let waiting = master.detach(&["--worker", "one", "--", "true"]);
    let id = identity(&master);

    // The database is away: what was in hand waits, nothing new is accepted, and the reason is said.
    server.kill();
    let submitted = master.begin_rouse(&["build", "--detach", "--worker", "one", "--", "true"]);
    master.until("it says so", || master.get("/healthz").status == 503);
    let refused = master.rouse(&["build", "--detach", "--worker", "one", "--", "true"]);
    assert!(refused.code != Some(0) && refused.err.contains("PostgreSQL"), "{refused:?}");
    assert_eq!(master.state(&running), "running");
    server.begin();
    let later = submitted.wait(DEADLINE).ended(0).text().trim().to_owned();

    // Another machine's master with the same database is the same master.
    master.kill();
    server.kill();
    for file in ["identity", "api-token"] {
        fs::remove_file(master.dir.join("state").join(file)).unwrap();
    }
    server.begin();
    master.begin();
    assert_eq!(identity(&master), id);
    master.until("its agent is back", || master.worker("one")["state"] == "busy");
    assert_eq!(master.state(&running), "running");
    fs::write(gate, "").unwrap();
    for build in [&running, &waiting, &later] {
        master.until_state(build, "success");
        assert_eq!(master.show(build)["attempts"], 1);
    }
    let expected: String = (1..=2000).map(|n| format!("{n}\n")).collect();
    assert_eq!(master.rouse(&["log", &running]).ended(0).text(), expected);
    let listed = master.rouse(&["builds", "--state", "success", "--json"]).ended(0).json();
    assert_eq!(listed.as_array().unwrap().len(), 3, "{listed}");
}

#[test]
fn a_ledger_moves_to_the_database_with_all_that_is_the_masters() {
    let Some(server) = Postgres::start("move", "") else { return };
    let database = server.database();
    let workers = standing("one", "keepalive_interval = 2");
    let mut master = Master::start("moves", &workers);
    let agent = master.agent("one");
    let first = master.detach(&["--worker", "one", "--", "true"]);
    master.until_state(&first, "success");
    let waiting = master.detach(&["--worker", "one", "--", "sleep", "600"]);
    master.until_state(&waiting, "running");
    let config = master.config().display().to_string();
    let migrate = |master: &Master| master.rouse(&["store", "migrate", "-c", &config]);
    assert!(migrate(&master).ended(2).err.contains("store.url is not set"));
    master.add_to_master(&section(&server, &database));
    master.configure(&workers);
    assert!(migrate(&master).ended(2).err.contains("stop it"), "the master runs");
    let id = identity(&master);
    let token = master.token();
    master.terminate();

    let said = migrate(&master).ended(0).text();
    assert!(
        said.contains("builds: 2 rows") && said.contains("ended: 1 rows") && said.contains("it as a backup"),
        "{said}"
    );
    assert!(master.dir.join("state/ledger.sqlite").exists());
    assert!(migrate(&master).ended(2).err.contains("has a ledger already"));
    for file in ["identity", "api-token"] {
        fs::remove_file(master.dir.join("state").join(file)).unwrap();
    }
    master.begin();
    assert_eq!((identity(&master), master.token()), (id, token));
    assert_eq!((master.state(&first), master.state(&waiting)), ("success".to_owned(), "running".to_owned()));
    let checked = master.rouse(&["check", "--online", "-c", &config]).text();
    assert!(checked.contains("has the ledger of this master"), "{checked}");
    master.rouse(&["cancel", &waiting]).ended(0);
    master.until_state(&waiting, "cancelled");
    assert_eq!(master.detach(&["--worker", "one", "--", "true"]), "3", "no number is given twice");
    drop(agent);
}
