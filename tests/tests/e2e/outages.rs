//! The master or its broker dies or is restarted during a build: the build continues, runs once, and its log is
//! complete.

use rouse_tests::harness::{DEADLINE, Master, Process, latent, processes_with, program, standing, text};
use std::process::Command;

fn workers() -> String {
    // The lease is longer than a private broker takes to come back.
    let standing = standing("stands", "keepalive_interval = 2\nlease = 240");
    standing + &latent("sleeps", "keepalive_interval = 2\nlease = 240\nbuild_wait_timeout = 600")
}

/// Builds on both kinds of workers, through what `outage` does in the middle.
fn through(name: &str, outage: impl FnOnce(&Master)) {
    let master = Master::start_private(name, &workers());
    let _agent = master.agent("stands");
    let trace = master.trace("builds");
    let gate = master.dir.join("gate");
    let script = format!(
        "echo begin $ROUSE_WORKER >> {0}; seq 2000; until [ -e {1} ]; do sleep 0.05; echo tick; done; seq 3000 5000; \
         echo end $ROUSE_WORKER >> {0}",
        trace.path(),
        gate.display()
    );
    let ids = ["stands", "sleeps"].map(|worker| master.detach(&["--worker", worker, "--", "sh", "-c", &script]));
    master.until("both run", || trace.lines().len() == 2 && ids.iter().all(|id| master.state(id) == "running"));
    let following = master.begin_rouse(&["log", "--follow", &ids[0]]);
    master.until("it is followed", || following.out().ends_with(b"tick\n"));
    let host = master.hosts("sleeps").remove(0);

    outage(&master);

    assert_eq!(trace.lines().len(), 2, "both still run: {:?}", trace.lines());
    std::fs::write(gate, "").unwrap();
    for id in &ids {
        master.until_state(id, "success");
        let log = master.rouse(&["log", id]).ended(0).text();
        let numbers: Vec<u32> = log.lines().filter(|line| *line != "tick").map(|line| line.parse().unwrap()).collect();
        let expected: Vec<u32> = (1..=2000).chain(3000..=5000).collect();
        assert_eq!(numbers, expected, "the log is whole");
        assert_eq!(master.show(id)["attempts"], 1);
    }
    // Whoever followed has seen it all, too.
    assert_eq!(following.wait(DEADLINE).ended(0).out, master.rouse(&["log", &ids[0]]).ended(0).out);
    let mut lines = trace.lines();
    lines.sort();
    assert_eq!(lines, ["begin sleeps", "begin stands", "end sleeps", "end stands"], "each ran once");
    let now = master.hosts("sleeps").remove(0);
    assert_eq!((text(&now["id"]), text(&now["handle"])), (text(&host["id"]), text(&host["handle"])), "adopted");
    assert_eq!(now["state"], "ready");
}

#[test]
fn a_killed_master_goes_on_where_it_was() {
    through("killed", |master| {
        master.kill();
        // Its broker does not outlive it.
        let broker = master.dir.join("state/broker").display().to_string();
        master.until("its broker is gone", || processes_with(&broker).is_empty());
        master.begin();
    });
}

/// As when the machine of the master is started again.
#[test]
fn hosts_that_ended_with_the_master_are_given_up_at_once() {
    // Neither a lease nor two audits would be over in time.
    let sleeps = latent("sleeps", "keepalive_interval = 2\nlease = 600\nbuild_wait_timeout = 600");
    let master = Master::start("rebooted", &sleeps);
    let trace = master.trace("builds");
    let (trace_path, gate) = (trace.path().to_owned(), master.dir.join("gate"));
    let script = format!("echo begin >> {trace_path}; until [ -e {} ]; do sleep 0.05; done", gate.display());
    let id = master.detach(&["--worker", "sleeps", "--retries", "1", "--", "sh", "-c", &script]);
    master.until("it runs", || trace.lines().len() == 1 && master.state(&id) == "running");
    let host = master.hosts("sleeps").remove(0);

    master.kill();
    let pid: i32 = text(&host["handle"]).split(':').next().unwrap().parse().unwrap();
    // SAFETY: only numbers are passed; the process is the host's, which nothing else ends.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    std::fs::write(&gate, "").unwrap();
    master.begin();

    master.until_state(&id, "success");
    assert_eq!(trace.lines(), ["begin", "begin"]);
    let tries = master.show(&id)["tries"].to_string();
    assert!(tries.contains("its agent ended while no master was there"), "{tries}");
}

#[test]
fn a_restarted_master_goes_on_where_it_was() {
    through("restarted", |master| {
        master.terminate();
        let broker = master.dir.join("state/broker").display().to_string();
        assert!(processes_with(&broker).is_empty(), "its broker ends before it does");
        master.begin();
    });
}

#[test]
fn a_killed_broker_comes_back_and_nothing_is_lost() {
    through("broker", |master| {
        let broker = master.dir.join("state/broker").display().to_string();
        let beams = || {
            let all = processes_with(&broker).into_iter();
            all.filter(|(_, line)| line.contains("beam")).map(|(pid, _)| pid).collect::<Vec<_>>()
        };
        let first = beams();
        assert!(!first.is_empty());
        for pid in &first {
            // SAFETY: only numbers are passed.
            assert_eq!(unsafe { libc::kill(*pid, libc::SIGKILL) }, 0);
        }
        master.until("the master notices", || master.get("/healthz").status != 200);
        master.until("the broker is back", || master.get("/healthz").status == 200);
        assert!(beams().iter().all(|pid| !first.contains(pid)));
    });
}

#[test]
fn a_log_that_nobody_reads_holds_up_no_master() {
    let master = Master::start("unread", &latent("sleeps", "build_wait_timeout = 1"));
    master.terminate();
    let mut shell = Command::new("bash");
    // Its standard error is a pipe that is full to the last byte, whose other end is open and silent.
    let full = "rm -f unread; mkfifo unread; exec 2<>unread; timeout 1 cat /dev/zero >&2; exec \"$@\"";
    shell.args(["-c", full, "bash"]).arg(program("rouse"));
    let silent = master.log();
    master.begin_by(shell);
    master.rouse(&["build", "--worker", "sleeps", "--", "true"]).ended(0);
    master.until("its host is shut down", || master.hosts("sleeps").is_empty());
    assert_eq!(master.log(), silent, "its output goes into the pipe");
    master.terminate();

    // One that cannot run has a last word, and does not wait for a reader of that either.
    std::fs::write(master.dir.join("broken.toml"), "[master]\nstate_dir = \"/proc/nowhere\"\n").unwrap();
    let mut shell = Command::new("bash");
    shell.args(["-c", full, "bash"]).arg(program("rouse")).args(["master", "-c", "broken.toml"]);
    shell.current_dir(&master.dir);
    Process::start(shell, &master.dir, "broken").wait(DEADLINE).ended(2);
}
