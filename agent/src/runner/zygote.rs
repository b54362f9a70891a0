//! The zygote: a small process with one thread that forks a supervisor for each step.
//!
//! Forking the zygote is cheap and safe. Forking the agent, which has threads, would be neither. The zygote is a
//! subreaper too: it inherits and kills the processes that a killed supervisor leaves behind.

use super::deadline::Deadline;
use super::lock;
use super::supervisor::{self, TICK, ZYGOTE_DIED};
use super::sys::{self, Pid, Reaped, SignalFd};
use super::wire::Frame;
use crate::clock;
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The first argument of a zygote; the lock file is the second.
const ARGUMENT: &str = rouse_shared::names::ZYGOTE_ARGUMENT;

/// How long after the end of the lease a supervisor may still be killing its step. After that it is taken to be frozen,
/// and is killed itself.
const OVERDUE: Duration = Duration::from_secs(1);

/// Starts a zygote from `program`. Its end of `control` and the file of the deadline become its standard input and
/// output. It inherits no other descriptors except standard error.
pub fn spawn(program: &Path, lock_file: &Path, control: OwnedFd, deadline: &OwnedFd) -> io::Result<Child> {
    Command::new(program).arg(ARGUMENT).arg(lock_file).stdin(control).stdout(Stdio::from(deadline.try_clone()?)).spawn()
}

/// Runs the zygote and exits, if this process was started as one. Must be called first in `main`, before there is any
/// thread.
pub fn zygote_main_if_asked() {
    let args: Vec<OsString> = std::env::args_os().collect();
    let [_, argument, lock_file] = args.as_slice() else { return };
    if argument != OsStr::new(ARGUMENT) {
        return;
    }
    match Zygote::new(Path::new(lock_file)).and_then(Zygote::run) {
        Ok(()) => std::process::exit(0),
        Err(error) => {
            eprintln!("rouse-agent: the process that starts steps failed: {error}");
            std::process::exit(1);
        }
    }
}

struct Zygote {
    /// `None` once the agent has closed its end.
    control: Option<UnixStream>,
    deadline: Deadline,
    signals: SignalFd,
    /// Held until this process and its supervisors, which inherit it, have ended.
    _lock: File,
    /// The living supervisors, and their ends of the stream to the agent. This process keeps them open until everything
    /// that a supervisor may have left behind is gone, so that the agent does not see the end of the stream any
    /// earlier.
    supervisors: BTreeMap<Pid, UnixStream>,
    /// The streams of supervisors that were killed and whose leftovers are being killed.
    orphaned: Vec<UnixStream>,
    /// Whether leftovers are being killed.
    killing_leftovers: bool,
}

/// Which process returns from a fork: the zygote, or a supervisor that has done its work.
enum Role {
    Zygote,
    Supervisor,
}

impl Zygote {
    fn new(lock_file: &Path) -> io::Result<Self> {
        sys::close_inherited();
        // A session of its own: only the agent handles a Ctrl-C in its terminal. This cannot fail in a new process,
        // which leads no group.
        let _ = rustix::process::setsid();
        // What `ps` shows; nothing depends on it.
        let _ = rustix::thread::set_name(c"rouse-zygote");
        sys::become_subreaper();
        // A service manager may send these to every process of the agent. Steps end only at the agent's request.
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
            // SAFETY: installs no handler.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
        let set = sys::signal_set(&[Signal::CHILD, ZYGOTE_DIED]);
        sys::block_exactly(&set);
        let signals = SignalFd::new(&set)?;
        let lock = lock::share(lock_file)?;

        let control = io::stdin().as_fd().try_clone_to_owned()?;
        let deadline = Deadline::map(io::stdout().as_fd())?;
        let null = File::options().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        // So that no file system is kept busy.
        std::env::set_current_dir("/")?;
        Ok(Self {
            control: Some(control.into()),
            deadline,
            signals,
            _lock: lock,
            supervisors: BTreeMap::new(),
            orphaned: Vec::new(),
            killing_leftovers: false,
        })
    }

    fn run(mut self) -> io::Result<()> {
        loop {
            let patience = match (self.killing_leftovers, self.supervisors.is_empty()) {
                (true, _) => 5,
                (false, false) => TICK,
                (false, true) => u64::MAX,
            };
            let control = self.control.as_ref().map(AsFd::as_fd);
            let [asked, signal] = sys::wait_for_input([control, Some(self.signals.fd())], patience)?;
            if signal {
                self.signals.drain(Signal::CHILD);
            }
            self.reap();
            if self.killing_leftovers {
                self.kill_leftovers();
            }
            if self.deadline.get().is_some_and(|end| clock::now() >= end + OVERDUE) {
                for &pid in self.supervisors.keys() {
                    // It may have ended already, but its number is not reused until it is reaped.
                    let _ = sys::kill(pid, Signal::KILL);
                }
            }
            if asked && let Role::Supervisor = self.serve()? {
                return Ok(());
            }
            if self.control.is_none() && self.supervisors.is_empty() && !self.killing_leftovers {
                return Ok(());
            }
        }
    }

    /// Receives one request and forks a supervisor for it.
    fn serve(&mut self) -> io::Result<Role> {
        let Some(control) = &self.control else { return Ok(Role::Zygote) };
        let Some([agent, job]) = sys::receive_fds(control.as_fd())? else {
            // The agent is gone, which its supervisors notice themselves.
            self.control = None;
            return Ok(Role::Zygote);
        };
        let agent = UnixStream::from(agent);
        let zygote = std::process::id() as Pid;
        // SAFETY: this process has one thread, so the child may do whatever its parent may do.
        match unsafe { libc::fork() } {
            -1 => {
                let reason = format!("no process can be created: {}", io::Error::last_os_error());
                let state = rouse_shared::message::StepState::NotStarted(reason);
                let frame = Frame::Ended { state, log_length: 0, log_cut: 0, took_ms: 0 };
                // If the agent is gone, nobody needs to know.
                let _ = (&agent).write_all(&frame.encode());
                Ok(Role::Zygote)
            }
            0 => {
                // A supervisor must not keep the streams of the others open.
                self.control = None;
                self.supervisors.clear();
                self.orphaned.clear();
                supervisor::run(agent, job, &self.deadline, zygote);
                Ok(Role::Supervisor)
            }
            pid => {
                self.supervisors.insert(pid, agent);
                Ok(Role::Zygote)
            }
        }
    }

    fn reap(&mut self) {
        while let Reaped::Ended(pid, status) = sys::reap(None) {
            // A supervisor that exits with 0 has left nothing and has reported the end of its step.
            if let Some(agent) = self.supervisors.remove(&pid)
                && status.as_raw() != 0
            {
                self.orphaned.push(agent);
                self.killing_leftovers = true;
            }
        }
    }

    /// Kills what this process has inherited from killed supervisors, and reports to the agent once nothing is left.
    fn kill_leftovers(&mut self) {
        let own = std::process::id() as Pid;
        let mut left = 0;
        for process in sys::processes() {
            if process.parent == own && !self.supervisors.contains_key(&process.pid) {
                // Processes that may not be killed, another user's, are not waited for.
                left += usize::from(sys::kill(process.pid, Signal::KILL).is_ok());
            }
        }
        if left == 0 {
            self.killing_leftovers = false;
            for mut agent in self.orphaned.drain(..) {
                // If the agent is gone, nobody needs to know.
                let _ = agent.write_all(&Frame::Lost("its supervisor was killed".to_owned()).encode());
            }
        }
    }
}
