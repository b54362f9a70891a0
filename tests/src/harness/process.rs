//! Processes that end with the test run, however it ends.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, OnceLock, mpsc};
use std::time::Duration;

/// How long anything may take that has no deadline of its own.
pub const DEADLINE: Duration = Duration::from_secs(120);
/// Between two looks, at first.
pub(super) const LOOK: Duration = Duration::from_millis(20);
/// Between two looks after a long wait. Looks cost processor time that what is waited for may need.
const RARE_LOOK: Duration = Duration::from_millis(200);

/// Polls until `holds`, and says whether it did within `limit`. The time that the looks take does not count.
pub fn holds_within(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let mut waited = Duration::ZERO;
    while !holds() {
        if waited >= limit {
            return false;
        }
        let pause = (waited / 20).clamp(LOOK, RARE_LOOK);
        std::thread::sleep(pause);
        waited += pause;
    }
    true
}

type Order = (Command, mpsc::SyncSender<io::Result<Child>>);

/// Starts a process from a thread that lives as long as this one: the kernel's signal at a parent's death follows the
/// thread, and the threads of tests end early.
fn spawn(mut command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<Mutex<mpsc::SyncSender<Order>>> = OnceLock::new();
    let orders = SPAWNER.get_or_init(|| {
        let (orders, taken) = mpsc::sync_channel::<Order>(16);
        std::thread::spawn(move || {
            while let Ok((mut command, reply)) = taken.recv() {
                reply.send(command.spawn()).expect("the test waits for its process");
            }
        });
        Mutex::new(orders)
    });
    // SAFETY: `prctl` is async-signal-safe and touches nothing of the parent's.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
    let (reply, child) = mpsc::sync_channel(1);
    orders.lock().expect("no test panics here").send((command, reply)).expect("the spawner lives");
    child.recv().expect("the spawner answers")
}

/// A process of a test's, which is killed when this is dropped.
pub struct Process {
    child: Child,
    out: PathBuf,
    err: PathBuf,
}

/// How a process ended, and what it said.
#[derive(Debug)]
pub struct Said {
    /// Its exit code; absent if a signal ended it.
    pub code: Option<i32>,
    /// Its stdout.
    pub out: Vec<u8>,
    /// Its stderr.
    pub err: String,
}

impl Said {
    /// Its stdout, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    /// Its stdout, as JSON.
    ///
    /// # Panics
    /// If it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.out).unwrap_or_else(|error| panic!("no JSON: {error}: {self:?}"))
    }

    /// Itself, if it ended with `code`.
    ///
    /// # Panics
    /// If it did not.
    #[track_caller]
    pub fn ended(self, code: i32) -> Self {
        assert!(self.code == Some(code), "ended with {:?} rather than {code}: {}{}", self.code, self.text(), self.err);
        self
    }
}

impl Process {
    /// Starts it; what it prints is appended to `NAME.out` and `NAME.err` in `dir`.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(command: Command, dir: &Path, name: &str) -> Self {
        Self::start_with_input(command, dir, name, Stdio::null())
    }

    /// As [`Self::start`], with this standard input; a pipe stays open as long as this is kept.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start_with_input(mut command: Command, dir: &Path, name: &str, input: Stdio) -> Self {
        let (out, err) = (dir.join(format!("{name}.out")), dir.join(format!("{name}.err")));
        let open = |path: &Path| File::options().create(true).append(true).open(path).expect("a file for its output");
        command.stdin(input).stdout(open(&out)).stderr(open(&err));
        let child = spawn(command).unwrap_or_else(|error| panic!("{name} cannot be started: {error}"));
        Self { child, out, err }
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid is small")
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: only numbers are passed; the child is not yet waited for, so the pid is its own.
        assert_eq!(unsafe { libc::kill(self.pid(), signal) }, 0, "a signal must reach its process");
    }

    /// What it said on stderr up to now.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.err).unwrap_or_default()).into_owned()
    }

    /// What it said on stdout up to now.
    pub fn out(&self) -> Vec<u8> {
        fs::read(&self.out).unwrap_or_default()
    }

    /// Whether it has ended, and how.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("our own child can be waited for")
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it does not come within `limit`.
    #[track_caller]
    pub fn wait(mut self, limit: Duration) -> Said {
        let mut status = None;
        let ended = holds_within(limit, || {
            status = self.try_wait();
            status.is_some()
        });
        assert!(ended, "process {} did not end in time; it said: {}", self.pid(), self.err());
        Said { code: status.and_then(|s| s.code()), out: self.out(), err: self.err() }
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        // It may have ended before.
        if self.try_wait().is_none() {
            self.child.kill().expect("our own child can be killed");
            self.child.wait().expect("our own child can be waited for");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The most memory that a process has had, bytes.
///
/// # Panics
/// If it does not run.
pub fn peak_memory(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process that runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux tells it");
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").trim().parse().expect("a number");
    kilobytes * 1_024
}

/// The live processes (no zombies) whose environment or command line has `needle`, besides this one: pid and command.
pub fn processes_with(needle: &str) -> Vec<(i32, String)> {
    let has = |bytes: &[u8]| bytes.windows(needle.len()).any(|window| window == needle.as_bytes());
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        if u32::try_from(pid) == Ok(std::process::id()) {
            continue;
        }
        let read = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
        let line = read("cmdline");
        if has(&line) || has(&read("environ")) {
            found.push((pid, String::from_utf8_lossy(&line).replace('\0', " ")));
        }
    }
    found
}

/// Whether a process runs; a zombie does not.
pub fn runs(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// When a process was started, in the kernel's ticks since the machine's start: with it a pid names one process and no
/// later one. Absent if there is no such process.
pub(super) fn started(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, which may have any characters in it; this is field 22.
    stat.rsplit_once(") ")?.1.split_whitespace().nth(19)?.parse().ok()
}
