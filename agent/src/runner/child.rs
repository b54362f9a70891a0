//! The step's own process, from fork to exec.

use super::sys::{self, Pid};
use super::users::User;
use super::wire::StepJob;
use rustix::fs::Mode;
use rustix::process::{Gid, Signal, Uid};
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

/// Search path for the command of a step without a `PATH`.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// OOM score adjustment of steps, so that a kernel that is short of memory kills a build before the agent.
const OOM_SCORE: &[u8] = b"500";

/// What can fail between fork and exec; reported to the supervisor as a number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    User = 1,
    Directory = 2,
    Exec = 3,
    Setup = 4,
    Cgroup = 5,
}

/// Everything that the child needs, prepared before the fork.
pub struct Plan {
    args: Vec<CString>,
    env: Vec<CString>,
    /// The paths to try, in this order.
    programs: Vec<CString>,
    cwd: CString,
    user: Option<User>,
}

fn c_string(bytes: &[u8], what: &str) -> Result<CString, String> {
    CString::new(bytes).map_err(|_| format!("{what} contains a NUL character"))
}

impl Plan {
    /// Prepares a step.
    ///
    /// # Errors
    /// Why the step cannot be started, for people.
    pub fn new(job: &StepJob, user: Option<User>) -> Result<Self, String> {
        let program = job.run.first().ok_or("the step has no command")?;
        let mut programs = Vec::new();
        if program.contains('/') {
            programs.push(c_string(program.as_bytes(), "the command")?);
        } else if !program.is_empty() {
            let path = job.env.get("PATH").map_or(DEFAULT_PATH, String::as_str);
            // An empty entry stands for the step's work directory, as in a shell.
            for dir in path.split(':') {
                let full = Path::new(if dir.is_empty() { "." } else { dir }).join(program);
                programs.push(c_string(full.as_os_str().as_bytes(), "the command")?);
            }
        }
        let mut env = Vec::new();
        for (key, value) in &job.env {
            if key.is_empty() || key.contains('=') {
                return Err(format!("{key:?} is not a valid name of an environment variable"));
            }
            env.push(c_string(format!("{key}={value}").as_bytes(), "the environment")?);
        }
        Ok(Self {
            args: job.run.iter().map(|arg| c_string(arg.as_bytes(), "the command")).collect::<Result<_, _>>()?,
            env,
            programs,
            cwd: c_string(&job.cwd, "the work directory")?,
            user,
        })
    }

    /// Starts the command with its output going to `output`, in the cgroup of which `cgroup` is the entry. The returned descriptor is at its end once the command has
    /// been executed. If that fails, it holds a message for [`Plan::explain`].
    ///
    /// # Errors
    /// If the system has no process or descriptor left.
    pub fn start(&self, output: OwnedFd, cgroup: Option<&File>) -> io::Result<(Pid, OwnedFd)> {
        let (failure_read, failure_write) = sys::pipe()?;
        let supervisor = std::process::id() as Pid;
        // SAFETY: this process has one thread, so the child may do whatever its parent may do.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                let (stage, error) = match self.enter(&output, cgroup, supervisor) {
                    Ok(()) => (Stage::Exec, self.exec()),
                    Err(failure) => failure,
                };
                let mut message = vec![stage as u8];
                message.extend(error.raw_os_error().unwrap_or(libc::EINVAL).to_le_bytes());
                // Nothing can be done if the pipe is gone.
                let _ = rustix::io::write(&failure_write, &message);
                // SAFETY: ends this process, which has one thread, without running exit handlers of the supervisor.
                unsafe { libc::_exit(127) }
            }
            pid => Ok((pid, failure_read)),
        }
    }

    /// In the child: sets up cgroup, output, user, directory and signals of the command.
    fn enter(&self, output: &OwnedFd, cgroup: Option<&File>, supervisor: Pid) -> Result<(), (Stage, io::Error)> {
        let at = |stage| move |error: rustix::io::Errno| (stage, io::Error::from(error));
        if let Some(cgroup) = cgroup {
            // 0 is the process that writes it.
            rustix::io::write(cgroup, b"0").map_err(at(Stage::Cgroup))?;
        }
        // Before the change of user, after which /proc/self belongs to root. Not permitted everywhere, and not
        // essential.
        let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE);
        rustix::process::setsid().map_err(at(Stage::Setup))?;
        // Standard input is /dev/null already, inherited from the zygote. Everything else is closed on exec.
        rustix::stdio::dup2_stdout(output).map_err(at(Stage::Setup))?;
        rustix::stdio::dup2_stderr(output).map_err(at(Stage::Setup))?;
        rustix::process::umask(Mode::WGRP | Mode::WOTH);
        if let Some(user) = &self.user {
            // These calls change the calling thread only, and this process has no other.
            let groups: Vec<Gid> = user.groups.iter().map(|&group| Gid::from_raw(group)).collect();
            rustix::thread::set_thread_groups(&groups).map_err(at(Stage::User))?;
            rustix::thread::set_thread_gid(Gid::from_raw(user.gid)).map_err(at(Stage::User))?;
            rustix::thread::set_thread_uid(Uid::from_raw(user.uid)).map_err(at(Stage::User))?;
        }
        // As that user, so that a directory that it may not enter is reported.
        rustix::process::chdir(self.cwd.as_c_str()).map_err(at(Stage::Directory))?;
        // After the change of user, which resets it.
        if !sys::signal_on_parent_death(Signal::KILL, supervisor) {
            // SAFETY: as in `start`.
            unsafe { libc::_exit(127) };
        }
        sys::default_signals();
        sys::block_exactly(&sys::signal_set(&[]));
        Ok(())
    }

    /// In the child: executes the command. Returns only if that fails.
    fn exec(&self) -> io::Error {
        let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
            list.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
        };
        let (args, env) = (pointers(&self.args), pointers(&self.env));
        let mut found = io::Error::from_raw_os_error(libc::ENOENT);
        for program in &self.programs {
            // SAFETY: NULL-terminated lists of C strings that live in `self`.
            unsafe { libc::execve(program.as_ptr(), args.as_ptr(), env.as_ptr()) };
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                // It may be in the next directory.
                Some(libc::ENOENT | libc::ENOTDIR) => {}
                Some(libc::EACCES) => found = error,
                // A script whose first line does not name an interpreter.
                Some(libc::ENOEXEC) => {
                    let mut script = vec![c"/bin/sh".as_ptr(), program.as_ptr()];
                    script.extend(args.iter().skip(1));
                    // SAFETY: as above.
                    unsafe { libc::execve(script[0], script.as_ptr(), env.as_ptr()) };
                    return io::Error::last_os_error();
                }
                _ => return error,
            }
        }
        found
    }

    /// Why the command was not executed, for people; `None` if `message` is not a failure.
    pub fn explain(&self, message: &[u8]) -> Option<String> {
        let (&stage, code) = message.split_first()?;
        let error = io::Error::from_raw_os_error(i32::from_le_bytes(code.try_into().ok()?));
        let program = self.args.first().map(|arg| arg.to_string_lossy()).unwrap_or_default();
        Some(match stage {
            s if s == Stage::User as u8 => {
                let name = self.user.as_ref().map_or("", |user| &user.name);
                format!("the command cannot run as user {name:?}: {error}; only an agent that is root can change users")
            }
            s if s == Stage::Directory as u8 => {
                let cwd = Path::new(OsStr::from_bytes(self.cwd.as_bytes()));
                format!("the work directory {} cannot be entered: {error}", cwd.display())
            }
            s if s == Stage::Exec as u8 => match error.kind() {
                io::ErrorKind::NotFound => format!("the command {program:?} was not found"),
                _ => format!("the command {program:?} cannot be run: {error}"),
            },
            s if s == Stage::Cgroup as u8 => format!("the step's process cannot enter its cgroup: {error}"),
            _ => format!("the step's process could not be set up: {error}"),
        })
    }
}
