//! What the tests of a program share, although nextest runs each test in its own process.
//!
//! The first test that needs a shared server starts its program once more, as its keeper. The keeper runs only the
//! ignored test `keeper`, which starts the server, records its address, and stops it when the run ends, however the run
//! ends. A test that is run by `cargo test` has a keeper of its own program in the same way.

use super::brokers;
use super::place::dir_of;
use super::process::{DEADLINE, LOOK, holds_within, runs, started};
use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

/// In the environment of a keeper: where it is to write what it has.
const DIR: &str = "ROUSE_TESTS_KEEPER";
/// In the environment of a keeper: the process whose end is the end of the run.
const RUN: &str = "ROUSE_TESTS_RUN";
/// In the environment of a keeper that keeps a broker of the pool instead of what the tests of its program share.
const BROKER: &str = "ROUSE_TESTS_BROKER";
/// How long a keeper may take to start what it keeps. Shorter than what nextest gives a test: one that waits in vain is to
/// fail with what the keeper said. `make test` installs the programs of an OpenStack cloud before the tests begin.
const START: Duration = Duration::from_secs(480);

/// Whether this process is a keeper.
pub fn is_keeper() -> bool {
    std::env::var_os(DIR).is_some()
}

/// The process that runs the tests: nextest, or the test program itself.
fn run() -> u32 {
    match (std::env::var(RUN), std::env::var_os("NEXTEST")) {
        (Ok(run), _) => run.parse().expect("the pid of the run"),
        (Err(_), Some(_)) => std::os::unix::process::parent_id(),
        (Err(_), None) => std::process::id(),
    }
}

/// A directory of the run. Its name has the start of the run's process in it, so that a later run, whose process has the
/// same pid, does not find what was left by this one.
pub(super) fn dir_of_run(name: &str) -> PathBuf {
    let began = began(run()).expect("the run is a process");
    dir_of(run(), &name_in_run(began, name))
}

fn name_in_run(began: u64, name: &str) -> String {
    format!("{began:x}-{name}")
}

fn began(run: u32) -> Option<u64> {
    i32::try_from(run).ok().and_then(started)
}

/// What the keeper of this program has written down. It is started if no test of this run has started it yet.
///
/// # Panics
/// If the keeper cannot start what it keeps.
pub fn kept() -> &'static Value {
    static KEPT: OnceLock<Value> = OnceLock::new();
    KEPT.get_or_init(|| {
        let program = std::env::current_exe().expect("this program has a path");
        let name = program.file_name().expect("a program has a name").to_string_lossy().into_owned();
        let dir = dir_of_run(&name);
        let lock = File::create(dir.join("lock")).expect("a lock of the run");
        lock.lock().expect("the lock can be waited for");
        let log = dir.join("log");
        if !dir.join("ready").exists() && !log.exists() {
            start(&program, &dir, false);
        }
        let ready = fs::read(dir.join("ready")).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let mut ready: Value = ready.unwrap_or_else(|| {
            panic!("there is nothing to share; its keeper said: {}", fs::read_to_string(&log).unwrap_or_default())
        });
        ready["keeper"] = dir.display().to_string().into();
        ready
    })
}

/// Starts a keeper of what the tests of this program share, or of a broker, and waits until it is ready or has ended.
pub(super) fn start(program: &Path, dir: &Path, of_broker: bool) {
    let out = File::create(dir.join("log")).expect("a file for its output");
    let mut command = Command::new(program);
    command.args(["keeper", "--exact", "--ignored", "--nocapture"]).env(DIR, dir).env(RUN, run().to_string());
    if of_broker {
        command.env(BROKER, "");
    }
    command.stdin(Stdio::null()).stdout(out.try_clone().expect("a second handle")).stderr(out);
    // Outside of the group that is ended with a test that takes too long.
    command.process_group(0);
    let mut keeper = command.spawn().expect("this program can be started");
    holds_within(START, || {
        let ended = keeper.try_wait().expect("our own child can be waited for").is_some();
        ended || dir.join("ready").exists()
    });
}

/// A keeper, from its own point of view.
pub struct Keeper {
    dir: PathBuf,
}

impl Keeper {
    /// This process, if it is one. One that keeps a broker does so, and comes back at the end of the run.
    pub fn here() -> Option<Self> {
        let keeper = Self { dir: std::env::var_os(DIR)?.into() };
        if std::env::var_os(BROKER).is_none() {
            return Some(keeper);
        }
        brokers::keep(&keeper);
        None
    }

    /// Says what it has, waits for the end of the run, and meanwhile does what tests ask for.
    pub fn serve(&self, what: &Value, mut does: impl FnMut(&str)) {
        write(&self.dir.join("ready"), &what.to_string());
        let run = i32::try_from(run()).expect("a pid is small");
        let began = started(run);
        while runs(run) && started(run) == began {
            let request = self.dir.join("request");
            if let Ok(words) = fs::read_to_string(&request) {
                does(&words);
                fs::remove_file(request).expect("a request can be removed");
            }
            std::thread::sleep(LOOK);
        }
        // A test of this run may still be on its way out.
        fs::remove_dir_all(&self.dir).ok();
    }
}

/// Asks the keeper in `dir` for something, and waits until it is done. One test at a time may do so.
///
/// # Panics
/// If it is not done in time.
#[track_caller]
pub fn ask_keeper(dir: &Path, words: &str) {
    let request = dir.join("request");
    write(&request, words);
    let log = || fs::read_to_string(dir.join("log")).unwrap_or_default();
    assert!(holds_within(super::READY + DEADLINE, || !request.exists()), "the keeper does not {words}: {}", log());
}

/// A turn among the tests of this run that use what is kept: beside others, or alone. It ends with the file.
///
/// # Panics
/// If the keeper cannot be had.
pub fn turn(alone: bool) -> File {
    let dir = kept()["keeper"].as_str().expect("a directory");
    let file = File::create(Path::new(dir).join("turn")).expect("a lock of the run");
    let taken = if alone { file.lock() } else { file.lock_shared() };
    taken.expect("the lock can be waited for");
    file
}

/// A place among the masters of this run that start for the first time, one for each processor: the broker's start needs
/// one for seconds, and with all at once each would take longer than whoever waits for it allows. It is free again when
/// the file is dropped.
///
/// # Panics
/// If the lock cannot be had.
pub(super) fn place_to_start() -> File {
    let dir = dir_of_run("starting");
    let places = std::thread::available_parallelism().map_or(1, usize::from);
    let files = (0..places).map(|n| File::create(dir.join(n.to_string())).expect("a lock of the run"));
    let mut files: Vec<File> = files.collect();
    let mut free = None;
    let found = holds_within(START, || {
        free = files.iter().position(|file| file.try_lock().is_ok());
        free.is_some()
    });
    assert!(found, "no place to start a master");
    files.swap_remove(free.unwrap_or_default())
}

/// In one piece, since it is read at any time.
fn write(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).expect("a file of the keeper's");
    fs::rename(new, path).expect("a file of the keeper's");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_outlives_its_wait_for_a_keeper() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../.config/nextest.toml");
        let settings: toml::Table = fs::read_to_string(path).expect("nextest's settings").parse().expect("TOML");
        let slow = &settings["profile"]["default"]["slow-timeout"];
        let period = slow["period"].as_str().and_then(|text| text.strip_suffix('s')?.parse::<u64>().ok());
        let periods = slow["terminate-after"].as_integer().and_then(|n| u64::try_from(n).ok());
        let limit = Duration::from_secs(period.expect("seconds") * periods.expect("a number"));
        assert!(START + DEADLINE <= limit, "nextest ends a test after {limit:?}: nobody sees what the keeper said");
    }

    #[test]
    fn a_directory_belongs_to_one_run() {
        let began = began(run()).expect("the run is a process");
        let dir = dir_of_run("of-test");
        assert!(dir.is_dir() && dir.ends_with(format!("rouse-test-{}-{began:x}-of-test", run())), "{}", dir.display());
        fs::remove_dir(&dir).expect("it is empty");
        assert_ne!(name_in_run(began, "x"), name_in_run(began + 1, "x"));
        let mut child = Command::new("sleep").arg("60").spawn().expect("a process");
        let later = self::began(child.id()).expect("it runs");
        child.kill().and_then(|()| child.wait()).expect("it ends");
        assert!(later >= self::began(std::process::id()).expect("we run") && self::began(child.id()).is_none());
    }
}
