//! The supervisor: one process for each step, which makes sure that no process of the step is left when the step is
//! over.
//!
//! Every process of a step descends from its supervisor, which is a subreaper and therefore inherits processes that
//! lose their parent. If steps have cgroups, the step is in one of its own as well. The supervisor kills the step when the
//! lease expires by the supervisor's own clock, and when the agent or the zygote is gone.

use super::cgroup::Cgroup;
use super::child::Plan;
use super::deadline::Deadline;
use super::killing;
use super::sys::{self, Pid, Reaped, SignalFd};
use super::users;
use super::wire::{Frame, KILL, SEEN, STOP, StepJob};
use crate::clock;
use crate::core::words;
use rouse_shared::error::Chain;
use rouse_shared::limits::TERM_TO_KILL;
use rouse_shared::message::StepState;
use rouse_shared::{Timestamp, codec};
use rustix::process::{Signal, WaitStatus};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Sent by the kernel when the zygote dies. Not SIGTERM, which a service manager may send to every process of the
/// agent.
pub const ZYGOTE_DIED: Signal = Signal::USR1;

/// Longest wait before the end of the lease is read again, milliseconds: it may be moved closer, and the clock of
/// `poll` stands still while the machine is suspended.
pub const TICK: u64 = 250;

/// Size of the output pipe, bytes. A step can continue to print while its output is written.
const PIPE: usize = 256 << 10;

/// How long to try to end a step's processes: a process that forks all the time may escape for a while, the kernel may
/// block one, and one of a setuid program may not be signalled if the agent is not root.
pub const PATIENCE: Duration = Duration::from_secs(5);

const LEASE_ENDED: &str = "the lease ended";

/// The step's output: its pipe, its spool file, and the lengths of what is kept and cut.
struct Output {
    pipe: File,
    spool: File,
    buffer: Vec<u8>,
    length: u64,
    cut: u64,
    max: u64,
    /// The disk has refused output. Everything after it is cut, so that the log has no hole.
    full: bool,
    /// No process holds the other end of the pipe any more.
    closed: bool,
}

impl Output {
    /// Moves one buffer from the pipe to the file. False if there is no output, or its end is reached.
    fn pump(&mut self) -> bool {
        let Ok(count @ 1..) = self.pipe.read(&mut self.buffer) else { return false };
        let room = if self.full { 0 } else { self.max.saturating_sub(self.length) };
        let keep = count.min(usize::try_from(room).unwrap_or(usize::MAX));
        if self.spool.write_all(&self.buffer[..keep]).is_ok() {
            self.length += keep as u64;
            self.cut += (count - keep) as u64;
        } else {
            self.full = true;
            // What was written before the failure counts; the position shows how much that is.
            let written =
                self.spool.stream_position().unwrap_or(self.length).clamp(self.length, self.length + keep as u64);
            self.cut += count as u64 - (written - self.length);
            self.length = written;
        }
        true
    }
}

/// Why the loop ends.
enum Leave {
    /// The step is over: kill what is left, and report this state.
    With(StepState),
    /// The agent is gone: kill what is left.
    Silently,
}

struct Supervisor<'a> {
    agent: UnixStream,
    deadline: &'a Deadline,
    plan: Plan,
    job: StepJob,
    output: Output,
    main: Pid,
    /// The cgroup of the step, if steps have any.
    cgroup: Option<Cgroup>,
    /// How the command ended, once it has.
    status: Option<WaitStatus>,
    /// The descriptor from [`Plan::start`], until it has been read.
    failure: Option<OwnedFd>,
    started: Timestamp,
    last_output: Timestamp,
    /// Length of the output as last reported to the agent.
    reported_length: u64,
    /// The agent has not confirmed that report yet.
    unanswered: bool,
    /// Once the step is being stopped: its final state, and when SIGKILL follows SIGTERM.
    ending: Option<(StepState, Timestamp)>,
}

/// Runs one step, described by the file `job`, and talks to the agent over `agent`. Called in a fresh child of the
/// zygote `zygote`, whose steps have cgroups below `cgroups`; the process is to exit when this returns.
pub fn run(agent: UnixStream, job: OwnedFd, deadline: &Deadline, zygote: Pid, cgroups: Option<&Path>) {
    // What `ps` shows; nothing depends on it.
    let _ = rustix::thread::set_name(c"rouse-step");
    let set = sys::signal_set(&[Signal::CHILD, ZYGOTE_DIED]);
    sys::block_exactly(&set);
    sys::become_subreaper();
    // If the agent has died since it requested the step, the next agent must not find it running.
    if !sys::signal_on_parent_death(ZYGOTE_DIED, zygote) || sys::hung_up(&agent) {
        return;
    }
    let began = clock::now();
    if deadline.get().is_some_and(|end| began >= end) {
        // If the agent is gone, nobody needs to know.
        let _ = (&agent).write_all(&Frame::never_ran(StepState::Lost(LEASE_ENDED.to_owned()), 0).encode());
        return;
    }
    let result = SignalFd::new(&set).map_err(|e| format!("the step's supervisor cannot be set up: {e}"));
    let cgroup = cgroups.map(|base| Cgroup::of(base, zygote, std::process::id() as Pid));
    let result = result.and_then(|signals| begin(agent.try_clone(), job, deadline, cgroup).map(|step| (signals, step)));
    match result {
        Ok((signals, step)) => step.supervise(&signals),
        Err(reason) => {
            let took_ms = clock::now().since(began).as_millis() as u64;
            let frame = Frame::never_ran(StepState::NotStarted(words::cut(reason)), took_ms);
            // If the agent is gone, nobody needs to know.
            let _ = (&agent).write_all(&frame.encode());
        }
    }
}

/// Everything up to the start of the command.
fn begin(
    agent: io::Result<UnixStream>,
    job: OwnedFd,
    deadline: &Deadline,
    mut cgroup: Option<Cgroup>,
) -> Result<Supervisor<'_>, String> {
    let setup = |e: io::Error| format!("the step's supervisor cannot be set up: {e}");
    let agent = agent.map_err(setup)?;
    agent.set_nonblocking(true).map_err(setup)?;
    let mut bytes = Vec::new();
    let mut job = File::from(job);
    // The agent wrote it through the same open file.
    job.rewind().and_then(|()| job.read_to_end(&mut bytes)).map_err(setup)?;
    let job: StepJob = codec::decode(&bytes).map_err(|e| format!("the step cannot be decoded: {}", Chain(&e)))?;

    let own = rustix::process::geteuid();
    let user = job.run_as.as_deref().map(users::lookup).transpose().map_err(|e| Chain(&e).to_string())?;
    // An agent without privileges can run steps as its own user, and needs no change of user for that.
    let user = user.filter(|user| own.is_root() || user.uid != own.as_raw());
    let plan = Plan::new(&job, user)?;

    let spool = Path::new(OsStr::from_bytes(&job.spool));
    let spool = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(spool)
        .map_err(|e| format!("the log file {} cannot be created: {e}", spool.display()))?;
    let (read, write) = sys::pipe().map_err(setup)?;
    // A refusal (the user's quota of pipe pages) only costs speed.
    let _ = rustix::pipe::fcntl_setpipe_size(&read, PIPE);
    let started = match &mut cgroup {
        None => plan.start(write, None),
        Some(cgroup) => {
            let entry = cgroup.make(job.limits).and_then(|()| cgroup.entry()).inspect_err(|_| cgroup.remove())?;
            plan.start(write, Some(&entry)).inspect_err(|_| cgroup.remove())
        }
    };
    let (main, failure) = started.map_err(|e| format!("no process can be created: {e}"))?;
    let now = clock::now();
    let max = job.max_log;
    let buffer = vec![0; 64 << 10];
    Ok(Supervisor {
        agent,
        deadline,
        plan,
        job,
        output: Output { pipe: File::from(read), spool, buffer, length: 0, cut: 0, max, full: false, closed: false },
        main,
        cgroup,
        status: None,
        failure: Some(failure),
        started: now,
        last_output: now,
        reported_length: 0,
        unanswered: false,
        ending: None,
    })
}

impl Supervisor<'_> {
    fn supervise(mut self, signals: &SignalFd) {
        let leave = loop {
            if let Some(leave) = self.step(signals) {
                break leave;
            }
        };
        let left = self.end_all();
        // No process is left that could write, or none that can be ended: the rest of the output is in the pipe.
        let mut rest = 2 * PIPE / self.output.buffer.len();
        while rest > 0 && self.output.pump() {
            rest -= 1;
        }
        let usage = self.cgroup.as_ref().and_then(Cgroup::usage);
        if let Some(cgroup) = self.cgroup.as_ref().filter(|_| left.is_none()) {
            cgroup.remove();
        }
        let Leave::With(state) = leave else { return };
        let unclean = left.is_some();
        let state = left.map_or(state, StepState::Lost);
        let took_ms = clock::now().since(self.started).as_millis() as u64;
        let (log_length, log_cut) = (self.output.length, self.output.cut);
        self.send(&Frame::Ended { state, log_length, log_cut, took_ms, usage, unclean });
    }

    /// Waits once, and handles what has happened.
    fn step(&mut self, signals: &SignalFd) -> Option<Leave> {
        let now = clock::now();
        if self.deadline.get().is_some_and(|end| now >= end) {
            return Some(Leave::With(StepState::Lost(LEASE_ENDED.to_owned())));
        }
        match &self.ending {
            Some((state, kill)) if now >= *kill => return Some(Leave::With(state.clone())),
            Some(_) => {}
            None if self.job.timeout.is_some_and(|limit| now >= self.started + limit) => {
                self.terminate(StepState::TimedOut, now);
            }
            None if self.job.silence.is_some_and(|limit| now >= self.last_output + limit) => {
                self.terminate(StepState::Silent, now);
            }
            None => {}
        }

        // The output only after the command was executed, so that the start is reported first.
        let third = match &self.failure {
            Some(failure) => Some(failure.as_fd()),
            // A step may close its output and go on.
            None => Some(self.output.pipe.as_fd()).filter(|_| !self.output.closed),
        };
        let ready = sys::wait_for_input([Some(self.agent.as_fd()), Some(signals.fd()), third], self.until_due(now));
        let Ok([agent, signal, third]) = ready else {
            return Some(Leave::With(StepState::Lost("its supervisor cannot wait for it".to_owned())));
        };
        if agent && let Some(leave) = self.read_commands() {
            return Some(leave);
        }
        if third {
            match self.failure.take() {
                Some(failure) => {
                    if let Some(leave) = self.exec_ended(failure) {
                        return Some(leave);
                    }
                }
                None if self.output.pump() => {
                    self.last_output = clock::now();
                    self.report_output();
                }
                // Ready, and yet without bytes: the end of the output.
                None => self.output.closed = true,
            }
        }
        if signal {
            if signals.drain(ZYGOTE_DIED) {
                return Some(Leave::With(StepState::Lost("the process that starts steps was killed".to_owned())));
            }
            return self.reap();
        }
        None
    }

    /// Milliseconds until something is due.
    fn until_due(&self, now: Timestamp) -> u64 {
        let limits = match &self.ending {
            Some((_, kill)) => [Some(*kill), None],
            None => [self.job.timeout.map(|t| self.started + t), self.job.silence.map(|t| self.last_output + t)],
        };
        let due = limits.into_iter().flatten().chain(self.deadline.get()).min();
        due.map_or(TICK, |due| TICK.min(due.since(now).as_millis() as u64))
    }

    /// Reads and performs commands of the agent.
    fn read_commands(&mut self) -> Option<Leave> {
        let mut bytes = [0; 64];
        let count = match self.agent.read(&mut bytes) {
            Ok(0) => return Some(Leave::Silently),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Err(_) => return Some(Leave::Silently),
        };
        for &byte in &bytes[..count] {
            match byte {
                STOP => self.terminate(StepState::Stopped, clock::now()),
                KILL => return Some(Leave::With(self.ending.take().map_or(StepState::Stopped, |(state, _)| state))),
                SEEN => {
                    self.unanswered = false;
                    self.report_output();
                }
                // The agent is the same program, and sends no other bytes.
                _ => {}
            }
        }
        None
    }

    /// The command was executed, or could not be.
    fn exec_ended(&mut self, failure: OwnedFd) -> Option<Leave> {
        let mut message = Vec::new();
        // Cannot block: the other end is closed, or a complete message is there.
        let _ = File::from(failure).read_to_end(&mut message);
        if let Some(reason) = self.plan.explain(&message) {
            // It quotes the user's own words, which may be long.
            return Some(Leave::With(StepState::NotStarted(words::cut(reason))));
        }
        self.last_output = clock::now();
        self.send(&Frame::Started);
        None
    }

    /// Reports new output to the agent, unless the last report is unanswered.
    fn report_output(&mut self) {
        if !self.unanswered && self.output.length > self.reported_length {
            self.reported_length = self.output.length;
            self.unanswered = true;
            self.send(&Frame::Output { length: self.reported_length });
        }
    }

    fn send(&mut self, frame: &Frame) {
        // It always fits (see `Frame`). If the agent is gone, the end of its stream is noticed.
        let _ = self.agent.write_all(&frame.encode());
    }

    /// Sends SIGTERM to every process of the step; what is left after [`TERM_TO_KILL`] is killed. The first reason
    /// counts.
    fn terminate(&mut self, state: StepState, now: Timestamp) {
        if self.ending.is_none() {
            self.ending = Some((state, now + TERM_TO_KILL));
            for process in sys::descendants(|_| false) {
                // It may have ended meanwhile, or belong to another user. SIGKILL follows in any case.
                let _ = sys::signal(&process, Signal::TERM);
            }
        }
    }

    /// Reaps children. The loop ends when the command has exited by itself. If the step is being stopped, it ends when
    /// all its processes have.
    fn reap(&mut self) -> Option<Leave> {
        loop {
            match sys::reap(None) {
                Reaped::Ended(pid, status) if pid == self.main => self.status = Some(status),
                Reaped::Ended(..) => {}
                Reaped::None | Reaped::Childless if self.ending.is_none() => return self.own_end().map(Leave::With),
                Reaped::None => return None,
                Reaped::Childless => return self.ending.take().map(|(state, _)| Leave::With(state)),
            }
        }
    }

    /// How the command ended, if it ended by itself.
    fn own_end(&mut self) -> Option<StepState> {
        let status = self.status?;
        // It may have failed to start since the last check.
        if let Some(failure) = self.failure.take()
            && let Some(Leave::With(state)) = self.exec_ended(failure)
        {
            return Some(state);
        }
        Some(match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => StepState::Exited(code),
            // A wait without options reports no other ends.
            (None, signal) => StepState::Signalled(signal.unwrap_or(0)),
        })
    }

    /// Ends every process of the step, and reaps those that this process has inherited. Gives up after [`PATIENCE`], and
    /// returns what is left, for people.
    fn end_all(&self) -> Option<String> {
        let set = sys::signal_set(&[Signal::CHILD]);
        let give_up = clock::now() + PATIENCE;
        loop {
            let childless = loop {
                match sys::reap(None) {
                    Reaped::Ended(..) => {}
                    Reaped::Childless => break true,
                    Reaped::None => break false,
                }
            };
            let outside = self.cgroup.as_ref().filter(|cgroup| !cgroup.is_empty());
            if childless && outside.is_none() {
                return None;
            }
            if clock::now() >= give_up {
                let children = sys::descendants(|_| false).into_iter().map(|process| process.pid);
                let left: BTreeSet<Pid> = children.chain(outside.into_iter().flat_map(Cgroup::processes)).collect();
                return Some(left_running(&left));
            }
            if let Some(cgroup) = outside {
                cgroup.kill();
            }
            if !childless {
                killing::stop_and_kill(give_up, |_| false);
            }
            sys::wait_signal(&set, 10);
        }
    }
}

/// What to report if these processes of a step cannot be ended.
pub fn left_running(left: &BTreeSet<Pid>) -> String {
    let first = left.first().map_or_else(String::new, |pid| format!(", such as {pid},"));
    let count = left.len();
    let seconds = PATIENCE.as_secs();
    format!(
        "{count} of the step's processes{first} are still running: they could not be ended within {seconds} s, because \
         the kernel blocks them, they belong to another user, or they multiply"
    )
}
