//! The zygote: a small process with one thread that forks a supervisor for each step.
//!
//! Forking the zygote is cheap and safe. Forking the agent, which has threads, would be neither. The zygote is a
//! subreaper too: it inherits and kills the processes that a killed supervisor leaves behind.

use super::cgroup::Cgroup;
use super::deadline::Deadline;
use super::supervisor::{self, PATIENCE, TICK, ZYGOTE_DIED};
use super::sys::{self, Pid, Process, Reaped, SignalFd};
use super::wire::Frame;
use super::{killing, lock};
use crate::clock;
use rouse_shared::Timestamp;
use rustix::process::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The first argument of a zygote. The lock file is the second, and the cgroup for those of steps the third, if there is
/// one.
const ARGUMENT: &str = rouse_shared::names::ZYGOTE_ARGUMENT;

/// How long after the end of the lease a supervisor may still be killing its step. After that it is taken to be frozen,
/// and is killed itself.
const OVERDUE: Duration = Duration::from_secs(1);

/// Starts a zygote from `program`. Its end of `control` and the file of the deadline become its standard input and
/// output. It inherits no other descriptors except standard error.
pub fn spawn(
    program: &Path,
    lock_file: &Path,
    cgroups: Option<&Path>,
    control: OwnedFd,
    deadline: &OwnedFd,
) -> io::Result<Child> {
    let mut command = Command::new(program);
    command.arg(ARGUMENT).arg(lock_file).args(cgroups);
    command.stdin(control).stdout(Stdio::from(deadline.try_clone()?)).spawn()
}

/// Runs the zygote and exits, if this process was started as one. Must be called first in `main`, before there is any
/// thread.
pub fn zygote_main_if_asked() {
    let args: Vec<OsString> = std::env::args_os().collect();
    let [_, argument, lock_file, cgroups @ ..] = args.as_slice() else { return };
    if argument != OsStr::new(ARGUMENT) {
        return;
    }
    match Zygote::new(Path::new(lock_file), cgroups.first().map(PathBuf::from)).and_then(Zygote::run) {
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
    /// While leftovers are being killed: when that is given up.
    killing_leftovers: Option<Timestamp>,
    /// The cgroup for those of steps, if steps have any.
    cgroups: Option<PathBuf>,
    /// The cgroups of supervisors that were killed.
    orphaned_cgroups: Vec<Cgroup>,
}

/// Which process returns from a fork: the zygote, or a supervisor that has done its work.
enum Role {
    Zygote,
    Supervisor,
}

impl Zygote {
    fn new(lock_file: &Path, cgroups: Option<PathBuf>) -> io::Result<Self> {
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
            killing_leftovers: None,
            cgroups,
            orphaned_cgroups: Vec::new(),
        })
    }

    fn run(mut self) -> io::Result<()> {
        loop {
            let patience = match (self.killing_leftovers.is_some(), self.supervisors.is_empty()) {
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
            if let Some(give_up) = self.killing_leftovers {
                self.kill_leftovers(give_up);
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
            if self.control.is_none() && self.supervisors.is_empty() && self.killing_leftovers.is_none() {
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
                let frame = Frame::never_ran(rouse_shared::message::StepState::NotStarted(reason), 0);
                // If the agent is gone, nobody needs to know.
                let _ = (&agent).write_all(&frame.encode());
                Ok(Role::Zygote)
            }
            0 => {
                // A supervisor must not keep the streams of the others open.
                self.control = None;
                self.supervisors.clear();
                self.orphaned.clear();
                supervisor::run(agent, job, &self.deadline, zygote, self.cgroups.as_deref());
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
                let own = std::process::id() as Pid;
                self.orphaned_cgroups.extend(self.cgroups.as_ref().map(|base| Cgroup::of(base, own, pid)));
                self.killing_leftovers = Some(clock::now() + PATIENCE);
            }
        }
    }

    /// Kills what this process has inherited from killed supervisors, and reports to the agent once nothing is left, or
    /// when it gives up.
    fn kill_leftovers(&mut self, give_up: Timestamp) {
        let of_supervisor = |process: &Process| self.supervisors.contains_key(&process.pid);
        let found = killing::stop_and_kill(give_up, of_supervisor);
        self.orphaned_cgroups.retain(|cgroup| {
            cgroup.kill();
            let empty = cgroup.is_empty();
            if empty {
                cgroup.remove();
            }
            !empty
        });
        let clean = found == 0 && self.orphaned_cgroups.is_empty();
        let mut why = "its supervisor was killed".to_owned();
        if !clean {
            if clock::now() < give_up {
                return;
            }
            let processes = sys::descendants(of_supervisor).into_iter().map(|process| process.pid);
            let in_cgroups = self.orphaned_cgroups.iter().flat_map(Cgroup::processes);
            let left: BTreeSet<Pid> = processes.chain(in_cgroups).collect();
            why = format!("{why}, and {}", supervisor::left_running(&left));
        }
        self.killing_leftovers = None;
        self.orphaned_cgroups.clear();
        for mut agent in self.orphaned.drain(..) {
            // If the agent is gone, nobody needs to know.
            let _ = agent.write_all(&Frame::Lost { why: why.clone(), unclean: !clean }.encode());
        }
    }
}
