//! Steps of the wall clock while a master and an agent run: no lease ends early, and none is extended.

use rouse_tests::harness::{Master, holds_within, standing};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Seconds.
const LEASE: u64 = 4;

/// A wall clock that can be stepped, for programs that are started with it; no other clock of theirs is changed.
struct Clock {
    library: String,
    file: PathBuf,
}

impl Clock {
    fn new(dir: &Path) -> Self {
        let found = fs::read_dir("/usr/lib").unwrap().filter_map(Result::ok);
        let library = found.map(|dir| dir.path().join("faketime/libfaketimeMT.so.1")).find(|path| path.exists());
        let library = library.expect("tests/setup installs libfaketime").display().to_string();
        let clock = Self { library, file: dir.join("clock") };
        clock.step("+0");
        clock
    }

    /// Seconds from the right time.
    fn step(&self, by: &str) {
        // In one piece, since it is read at any time.
        let new = self.file.with_extension("new");
        fs::write(&new, by).unwrap();
        fs::rename(&new, &self.file).unwrap();
    }

    fn env(&self) -> [(&str, &str); 4] {
        [
            ("LD_PRELOAD", &self.library),
            ("FAKETIME_TIMESTAMP_FILE", self.file.to_str().unwrap()),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ]
    }

    /// Seconds since 1970, as a program that is started with it sees them.
    fn seen(&self) -> i64 {
        let date = Command::new("date").arg("+%s").envs(self.env()).output().unwrap();
        String::from_utf8(date.stdout).unwrap().trim().parse().unwrap()
    }
}

#[test]
fn an_hour_forward_and_back_ends_no_lease_and_keeps_none() {
    let lease = format!("keepalive_interval = 1\nlease = {LEASE}\n");
    let master = Master::start("clock", &standing("stepped", &lease));
    master.terminate();
    let clock = Clock::new(&master.dir);
    let now = clock.seen();
    clock.step("+3600");
    assert!((3_600..3_700).contains(&(clock.seen() - now)), "programs see the step");
    clock.step("+0");

    master.begin_with(&clock.env());
    let agent = master.begin_agent("stepped", &clock.env());
    master.until_worker("stepped", "idle");
    let trace = master.trace("clock");
    let script = format!("while :; do echo tick >> {}; sleep 0.1; done", trace.path());
    let id = begin(&master, &script);
    let goes_on = |id: &str, what: &str| {
        let ended = holds_within(Duration::from_secs(LEASE + 6), || master.state(id) != "running");
        assert!(!ended, "{what}: {}", master.show(id));
        let ticks = trace.lines().len();
        master.until(&format!("its step runs, {what}"), || trace.lines().len() > ticks);
    };
    clock.step("+3600");
    goes_on(&id, "an hour forward");
    clock.step("-3600");
    goes_on(&id, "two hours back");

    // A lease that is over is over, whatever the clock says.
    clock.step("-7200");
    agent.signal(libc::SIGSTOP);
    master.until_within(Duration::from_secs(LEASE + 16), "the build is lost with the lease", || {
        master.state(&id) == "lost"
    });
    let ticks = trace.lines().len();
    assert!(!holds_within(Duration::from_secs(1), || trace.lines().len() > ticks), "its step was ended");
    agent.signal(libc::SIGCONT);
    master.until_worker("stepped", "idle");

    // A master that starts by another clock goes on with a build as well.
    for step in ["+3600", "-3600"] {
        let id = begin(&master, &script);
        master.terminate();
        clock.step(step);
        master.begin_with(&clock.env());
        goes_on(&id, step);
        master.rouse(&["cancel", &id]).ended(0);
        master.until_worker("stepped", "idle");
    }
}

/// Begins a build that runs forever.
fn begin(master: &Master, script: &str) -> String {
    let id = master.detach(&["--worker", "stepped", "--retries", "0", "--", "sh", "-c", script]);
    master.until_state(&id, "running");
    id
}
