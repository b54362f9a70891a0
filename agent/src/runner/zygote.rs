//! The zygote: a small process with one thread that forks a supervisor for each step.
//!
//! Forking it is cheap and safe, where forking the agent with its threads would be neither. It is a subreaper too: what
//! a killed supervisor leaves behind comes here and is killed.

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

/// How far past the lease's end a supervisor may still be busy with killing. One that is not done by then is frozen,
/// and is killed itself.
const OVERDUE: Duration = Duration::from_secs(1);

/// Starts a zygote from `program`. Its end of `control` and the file of the deadline become its standard input and
/// output, the only descriptors that it is given beside standard error.
pub fn spawn(program: &Path, lock_file: &Path, control: OwnedFd, deadline: &OwnedFd) -> io::Result<Child> {
    Command::new(program).arg(ARGUMENT).arg(lock_file).stdin(control).stdout(Stdio::from(deadline.try_clone()?)).spawn()
}

/// Runs the zygote and exits where this process was started as one; else does nothing. Call it first thing in `main`,
/// before there is any thread.
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
    /// Nothing once the agent has closed its end.
    control: Option<UnixStream>,
    deadline: Deadline,
    signals: SignalFd,
    /// Held as long as this process or a supervisor, which inherits it, lives.
    _lock: File,
    /// The supervisors that live, and their ends of the stream to the agent. Ours stays open until what the supervisor
    /// may have left behind is gone, so that the agent sees the stream's end no earlier.
    supervisors: BTreeMap<Pid, UnixStream>,
    /// Those of supervisors that were killed and whose leftovers are being killed.
    orphaned: Vec<UnixStream>,
    /// Leftovers are being looked for.
    killing_leftovers: bool,
}

/// Whether the loop goes on as the zygote or the caller is a new supervisor that has done its work.
enum Role {
    Zygote,
    Supervisor,
}

impl Zygote {
    fn new(lock_file: &Path) -> io::Result<Self> {
        sys::close_inherited();
        // Its own session: a Ctrl-C in the agent's terminal is the agent's to deal with. This cannot fail in a process
        // that was just made and leads no group.
        let _ = rustix::process::setsid();
        // What `ps` shows; nothing depends on it.
        let _ = rustix::thread::set_name(c"rouse-zygote");
        sys::become_subreaper();
        // A service manager may send these to every process of the agent: its steps end when the agent says so.
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
            // SAFETY: no handler is installed.
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
        // No file system is held busy.
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
                    // It may be over already: its number is its own until we reap it.
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

    /// Takes one request and forks its supervisor.
    fn serve(&mut self) -> io::Result<Role> {
        let Some(control) = &self.control else { return Ok(Role::Zygote) };
        let Some([agent, order]) = sys::receive_fds(control.as_fd())? else {
            // The agent is gone. Its supervisors see that themselves.
            self.control = None;
            return Ok(Role::Zygote);
        };
        let agent = UnixStream::from(agent);
        let zygote = std::process::id() as Pid;
        // SAFETY: this process has one thread, so the child may do whatever it could do itself.
        match unsafe { libc::fork() } {
            -1 => {
                let reason = format!("no process could be made: {}", io::Error::last_os_error());
                let state = rouse_shared::message::StepState::NotStarted(reason);
                let frame = Frame::Ended { state, log_length: 0, log_cut: 0, took_ms: 0 };
                // Where the agent is gone there is nobody to tell.
                let _ = (&agent).write_all(&frame.encode());
                Ok(Role::Zygote)
            }
            0 => {
                // The streams of the others are not ours to hold open.
                self.control = None;
                self.supervisors.clear();
                self.orphaned.clear();
                supervisor::run(agent, order, &self.deadline, zygote);
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
            // A supervisor that exits with 0 has left nothing and has said how its step ended.
            if let Some(agent) = self.supervisors.remove(&pid)
                && status.as_raw() != 0
            {
                self.orphaned.push(agent);
                self.killing_leftovers = true;
            }
        }
    }

    /// Kills what came to us from supervisors that were killed; once nothing of that is left, tells the agent.
    fn kill_leftovers(&mut self) {
        let own = std::process::id() as Pid;
        let mut left = 0;
        for process in sys::processes() {
            if process.parent == own && !self.supervisors.contains_key(&process.pid) {
                // What we may not kill, another user's, would keep us waiting for ever.
                left += usize::from(sys::kill(process.pid, Signal::KILL).is_ok());
            }
        }
        if left == 0 {
            self.killing_leftovers = false;
            for mut agent in self.orphaned.drain(..) {
                // Where the agent is gone there is nobody to tell.
                let _ = agent.write_all(&Frame::Lost("its supervisor was killed".to_owned()).encode());
            }
        }
    }
}
