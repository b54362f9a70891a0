//! Shared by the tests of the runner: a runner in its own directory, and the processes of the machine.
#![allow(dead_code)] // Each test program uses its own part.

use rouse_agent::clock;
use rouse_agent::runner::{Cgroups, Job, Runner, StepEvent, Update};
use rouse_shared::message::{Limits, StepState, Usage};
use rouse_shared::{AttemptId, BuildId};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::mpsc::Receiver;

pub const AGENT: &str = env!("CARGO_BIN_EXE_rouse-agent");
pub const PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin";

/// A variable in the environment of a test's steps, whose unique value identifies their processes.
pub const MARK: &str = "ROUSE_TEST_MARK";

pub fn attempt(number: u32) -> AttemptId {
    AttemptId { build: BuildId(1), number }
}

pub fn new_mark() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

pub fn job(dir: &Path, mark: &str, run: &[&str]) -> Job {
    Job {
        attempt: attempt(1),
        step: 0,
        run: run.iter().map(|s| s.to_string()).collect(),
        cwd: dir.to_owned(),
        env: BTreeMap::from([("PATH".into(), PATH.into()), (MARK.into(), mark.into())]),
        run_as: None,
        timeout: None,
        silence: None,
        spool: dir.join("spool"),
        max_log: 1 << 40,
        limits: Limits::default(),
    }
}

pub struct Bench {
    pub dir: TempDir,
    pub mark: String,
    pub runner: Runner,
    pub updates: Receiver<Update>,
}

#[derive(Debug)]
pub struct End {
    pub state: StepState,
    pub log: Vec<u8>,
    pub cut: u64,
    pub took: Duration,
    pub usage: Option<Usage>,
    pub events: Vec<StepEvent>,
}

impl Bench {
    pub fn new() -> Self {
        Self::with(None)
    }

    /// A runner whose steps have cgroups.
    pub fn with(cgroups: Option<&Cgroups>) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (runner, updates) =
            Runner::start(Path::new(AGENT), &dir.path().join(".supervisors.lock"), cgroups).expect("a zygote");
        Self { dir, mark: new_mark(), runner, updates }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn job(&self, run: &[&str]) -> Job {
        job(self.dir.path(), &self.mark, run)
    }

    pub fn shell(&self, script: &str) -> Job {
        self.job(&["sh", "-c", script])
    }

    /// Runs a job to its end.
    pub async fn run(&mut self, job: Job) -> End {
        self.runner.run(job.clone());
        self.end(&job).await
    }

    pub async fn next(&mut self) -> StepEvent {
        let update = tokio::time::timeout(Duration::from_secs(60), self.updates.recv()).await;
        update.expect("an update in time").expect("the runner lives").event
    }

    /// Waits for the end of a job, after which none of its processes may run.
    pub async fn end(&mut self, job: &Job) -> End {
        let mut events = Vec::new();
        loop {
            let event = self.next().await;
            events.push(event.clone());
            if let StepEvent::Ended { state, log_length, log_cut, took, usage, unclean } = event {
                assert!(!unclean, "{state:?}");
                assert_eq!(alive(&self.mark), [] as [i32; 0], "left running after {state:?}");
                let log = fs::read(&job.spool).unwrap_or_default();
                assert_eq!(log.len() as u64, log_length);
                return End { state, log, cut: log_cut, took, usage, events };
            }
        }
    }

    /// Waits until this many processes of the step run.
    pub async fn until_alive(&self, count: usize) -> Vec<i32> {
        until("the step's processes run", || Some(alive(&self.mark)).filter(|pids| pids.len() >= count)).await
    }
}

/// Waits for a condition, at most half a minute.
pub async fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = clock::now() + Duration::from_secs(30);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(clock::now() < end, "not within the time limit: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn pids() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc").expect("/proc").flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The processes with a mark.
pub fn alive(mark: &str) -> Vec<i32> {
    let wanted = format!("{MARK}={mark}");
    pids()
        .filter(|pid| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|&b| b == 0).any(|entry| entry == wanted.as_bytes())
        })
        .collect()
}

/// One field of a process's status.
pub fn status(pid: i32, field: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(value.trim().to_owned())
}

/// The nearest ancestor of that name.
pub fn ancestor(mut pid: i32, name: &str) -> Option<i32> {
    while status(pid, "Name")? != name {
        pid = status(pid, "PPid")?.parse().ok()?;
    }
    Some(pid)
}

pub fn children(parent: i32) -> Vec<i32> {
    pids().filter(|&pid| status(pid, "PPid").is_some_and(|p| p == parent.to_string())).collect()
}

pub fn kilobytes(pid: i32, field: &str) -> Option<u64> {
    status(pid, field)?.strip_suffix(" kB")?.parse().ok()
}

pub fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).expect("a pid"), signal).expect("signalled");
}
