//! Runs steps, so that nothing of a step is left when it is over, whatever it did and whoever dies.
//!
//! The agent starts a zygote ([`zygote`]), the zygote forks a supervisor for each step ([`supervisor`]), and the
//! supervisor runs the step's command ([`child`]). Each is a subreaper for the one below, so that a process that
//! daemonised falls to the supervisor, and what a killed supervisor leaves falls to the zygote. The agent and a
//! supervisor talk over a stream of their own whose end tells each that the other is gone.

mod child;
mod deadline;
mod link;
mod lock;
mod supervisor;
mod sys;
pub mod users;
mod wire;
mod zygote;

pub use lock::wait_for_leftovers;
pub use zygote::zygote_main_if_asked;

use deadline::Deadline;
use link::{Desired, Link};
use rouse_shared::message::StepState;
use rouse_shared::{AttemptId, Timestamp};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Updates that wait for the agent, at most. A step whose update finds no room waits, and with it only its own updates.
const UPDATES: usize = 256;

/// One command to run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Job {
    /// The attempt that it belongs to.
    pub attempt: AttemptId,
    /// Which of the attempt's steps, from 0. Each step of an attempt is run at most once at a time.
    pub step: u32,
    /// The program, by path or to be found in `PATH` of `env`, and its arguments.
    pub run: Vec<String>,
    /// The work directory, absolute.
    pub cwd: PathBuf,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// The user to run as, from `/etc/passwd`; absent: the agent's own.
    pub run_as: Option<String>,
    /// How long it may run.
    pub timeout: Option<Duration>,
    /// How long it may print nothing.
    pub silence: Option<Duration>,
    /// The file to create for the output, absolute; its directory exists.
    pub spool: PathBuf,
    /// How much of the output is kept, bytes.
    pub max_log: u64,
}

/// What a step has come to. `Started` comes at most once, `Ended` exactly once and last.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StepEvent {
    /// The command was exec'd.
    Started,
    /// More output is in the spool file. Several pieces may come as one, and the last ones with `Ended` alone.
    Output {
        /// Bytes that it holds by now, at least.
        length: u64,
    },
    /// Nothing of the step runs any more.
    Ended {
        /// How it ended; never `Running` nor `Skipped`.
        state: StepState,
        /// Bytes in the spool file.
        log_length: u64,
        /// Bytes that the step printed past `max_log`, or that the disk did not take, and that were thrown away.
        log_cut: u64,
        /// How long it ran, in whole milliseconds.
        took: Duration,
    },
}

/// What happened to which step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Update {
    /// The attempt.
    pub attempt: AttemptId,
    /// The step.
    pub step: u32,
    /// What happened.
    pub event: StepEvent,
}

type Steps = BTreeMap<(AttemptId, u32), watch::Sender<Desired>>;

struct Inner {
    deadline: Deadline,
    /// What is wanted of each step that is not over.
    steps: Mutex<Steps>,
    link: watch::Receiver<Option<Arc<Link>>>,
    updates: mpsc::Sender<Update>,
}

impl Inner {
    fn steps(&self) -> MutexGuard<'_, Steps> {
        // The map is whole between any two statements that hold the lock.
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The handle for running steps. Copies are the same runner.
#[derive(Clone)]
pub struct Runner(Arc<Inner>);

impl Runner {
    /// Starts the zygote from `program`, which must call [`zygote_main_if_asked`] first thing (normally
    /// `/proc/self/exe`), and returns the handle and the stream of updates. Dropping the stream kills all steps.
    ///
    /// The zygote and the supervisors hold `lock_file` (made where it is missing) for [`wait_for_leftovers`]. This
    /// process becomes a subreaper, and when a zygote dies it kills its own children of foreign sessions.
    ///
    /// # Errors
    /// Where the zygote cannot be started.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(program: &Path, lock_file: &Path) -> io::Result<(Self, mpsc::Receiver<Update>)> {
        sys::become_subreaper();
        let (deadline, shared) = Deadline::create()?;
        let link = link::keep(program.to_owned(), std::path::absolute(lock_file)?, shared)?;
        let (updates, receiver) = mpsc::channel(UPDATES);
        let steps = Mutex::new(BTreeMap::new());
        Ok((Self(Arc::new(Inner { deadline, steps, link, updates })), receiver))
    }

    /// Starts a step. Failures come back as [`StepState::NotStarted`].
    pub fn run(&self, job: Job) {
        let inner = self.0.clone();
        let key = (job.attempt, job.step);
        let (wish, desired) = watch::channel(Desired::Run);
        let known = {
            let mut steps = inner.steps();
            let known = steps.contains_key(&key);
            if !known {
                steps.insert(key, wish);
            }
            known
        };
        tokio::spawn(async move {
            let state = StepState::NotStarted("this step runs already".to_owned());
            let mut end = StepEvent::Ended { state, log_length: 0, log_cut: 0, took: Duration::ZERO };
            if !known {
                end = link::run(job, inner.link.clone(), desired, &inner.updates).await;
                inner.steps().remove(&key);
            }
            // Where nobody takes updates any more, the agent is ending.
            let _ = inner.updates.send(Update { attempt: key.0, step: key.1, event: end }).await;
        });
    }

    fn wish(&self, attempt: AttemptId, wish: Desired) {
        for sender in self.0.steps().range((attempt, 0)..=(attempt, u32::MAX)).map(|(_, sender)| sender) {
            sender.send_if_modified(|old| std::mem::replace(old, wish.max(*old)) < wish);
        }
    }

    /// Ends the attempt's steps: TERM, and KILL after [`rouse_shared::limits::TERM_TO_KILL`]. They come back as
    /// [`StepState::Stopped`]. Without effect where nothing of the attempt runs.
    pub fn stop(&self, attempt: AttemptId) {
        self.wish(attempt, Desired::Stop);
    }

    /// Ends the attempt's steps by KILL, at once.
    pub fn kill(&self, attempt: AttemptId) {
        self.wish(attempt, Desired::Kill);
    }

    /// Sets the end of the lease, in milliseconds of [`crate::clock`]; `None`: no lease. Past it, every step is killed
    /// at once and comes back as [`StepState::Lost`], and no step starts.
    pub fn set_deadline(&self, deadline: Option<Timestamp>) {
        self.0.deadline.set(deadline);
    }
}
