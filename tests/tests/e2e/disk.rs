//! A full disk, and a disk that cannot be written: new work is refused with the reason, nothing that was accepted is
//! lost, and everything continues when there is space.

use rouse_tests::harness::{DEADLINE, Disk, Master, Process, free_address, program, standing};
use std::fs;
use std::path::Path;
use std::process::Command;

fn waits_for(file: &Path, words: &str) -> String {
    format!("while ! test -e {}; do sleep 0.05; done; {words}", file.display())
}

#[test]
fn a_full_disk_refuses_new_work_and_loses_nothing() {
    let disk = Disk::mount("full", 256);
    let workers = standing("w", "max_builds = 3\nkeepalive_interval = 1\nlease = 240\n");
    let master = Master::start_private("full", &workers);
    let _agent = master.agent("w");
    let (talk, mute, stay) = (master.dir.join("talk"), master.dir.join("mute"), master.dir.join("stay"));
    let begin = |script: &str| {
        let id = master.detach(&["--worker", "w", "--", "sh", "-c", script]);
        master.until_state(&id, "running");
        id
    };
    let talking = begin(&waits_for(&talk, "seq 100000"));
    let silent = begin(&waits_for(&mute, "true"));
    let staying = begin(&waits_for(&stay, "true"));

    // Little room: nothing new, and logs stay at their agents.
    disk.leave(20);
    let refused = master.rouse(&["build", "--detach", "--worker", "w", "--", "true"]).ended(4);
    assert!(refused.err.contains("MiB left"), "{}", refused.err);
    let refused = master.post("/api/builds", "{\"worker\":\"w\",\"step\":[{\"run\":[\"true\"]}]}");
    assert_eq!(refused.status, 507);
    assert_eq!(master.get("/healthz").status, 503);
    fs::write(&talk, "").unwrap();

    // None at all: what ends cannot be written down.
    disk.leave(0);
    // Until the room is used up that the ledger has in its own files.
    master.until("the ledger cannot be written", || {
        master.post("/api/workers/w/pause", "");
        master.log().contains("accepts nothing new")
    });
    fs::write(&mute, "").unwrap();
    assert_eq!(master.post("/api/workers/w/pause", "").status, 507);
    assert_eq!(master.get("/api/builds").status, 200);
    assert_eq!(master.get(&format!("/api/builds/{staying}/why")).status, 200);

    disk.make_room();
    master.until("the master can work again", || master.get("/healthz").status == 200);
    master.rouse(&["resume", "w"]).ended(0);
    master.until_state(&talking, "success");
    master.until_state(&silent, "success");
    let log = master.rouse(&["log", &talking]).ended(0);
    assert_eq!(log.text().lines().count(), 100_000);
    assert_eq!(master.state(&staying), "running");
    fs::write(&stay, "").unwrap();
    master.until_state(&staying, "success");
    for id in [&talking, &silent, &staying] {
        assert_eq!(master.show(id)["attempts"], 1, "build {id} was lost on the way");
    }
    let next = master.detach(&["--worker", "w", "--", "true"]);
    master.until_state(&next, "success");
    master.end();
}

#[test]
fn a_state_directory_that_cannot_be_written_is_an_error_at_the_start() {
    let disk = Disk::mount("readonly", 64);
    disk.make_read_only();
    let config = disk.path().with_file_name("rouse.toml");
    let (listen, amqp, auth) = (free_address(), free_address(), free_address());
    let text = format!(
        "[master]\nstate_dir = \"{}\"\nlisten = \"{listen}\"\n[broker]\nlisten = [\"{amqp}\"]\nauth_listen = \"{auth}\"\n",
        disk.path().display()
    );
    fs::write(&config, text).unwrap();
    let mut command = Command::new(program("rouse"));
    command.args(["master", "-c"]).arg(&config);
    let said = Process::start(command, disk.path().parent().unwrap(), "master").wait(DEADLINE);
    let errors = said.err;
    assert!(errors.contains("ead-only file system") && errors.contains("state"), "{errors}");
    assert!(said.code.is_some_and(|code| code != 0));
}
