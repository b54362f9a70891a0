//! Runs steps. When a step is over, none of its processes is left, whatever the step did and whichever of rouse's own
//! processes died.
//!
//! The agent starts a zygote (`zygote`), the zygote forks a supervisor for each step (`supervisor`), and the supervisor
//! runs the step's command (`child`). The zygote and each supervisor are subreapers: the supervisor inherits processes
//! that daemonise, and the zygote inherits the processes that a killed supervisor leaves behind. The agent and each
//! supervisor share a stream; the end of the stream shows each of them that the other is gone. If the agent has a cgroup of
//! its own, each step gets one below it (`cgroup`).

mod cgroup;
mod child;
mod deadline;
mod killing;
mod link;
mod lock;
mod supervisor;
mod sys;
pub mod users;
mod wire;
mod zygote;

pub use cgroup::{Cgroups, NoCgroups};
pub use lock::wait_for_leftovers;
pub use zygote::zygote_main_if_asked;

use crate::mutex;
use deadline::Deadline;
use link::{Desired, Link};
use rouse_shared::message::{Limits, StepState, Usage};
use rouse_shared::{AttemptId, Timestamp};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Capacity of the channel of updates. A step whose update finds no room waits, and delays no other step.
const UPDATES: usize = 256;

/// One command to run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Job {
    /// The attempt that the step belongs to.
    pub attempt: AttemptId,
    /// Number of the step, from 0. A step must not be run while it is running already.
    pub step: u32,
    /// The program, as a path or a name to look up in `PATH` of `env`, and its arguments.
    pub run: Vec<String>,
    /// Work directory; absolute.
    pub cwd: PathBuf,
    /// The complete environment.
    pub env: BTreeMap<String, String>,
    /// A user in `/etc/passwd` to run as; if absent, the agent's own.
    pub run_as: Option<String>,
    /// Longest run.
    pub timeout: Option<Duration>,
    /// Longest time without output.
    pub silence: Option<Duration>,
    /// The file to create for the output, absolute; its directory must exist.
    pub spool: PathBuf,
    /// Largest part of the output that is kept, bytes.
    pub max_log: u64,
    /// What the step may use; without effect if steps have no cgroups.
    pub limits: Limits,
}

/// An event of a step. `Started` is reported at most once, `Ended` exactly once and last.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StepEvent {
    /// The command was executed.
    Started,
    /// More output is in the spool file. Several pieces may be reported as one, and the last ones by `Ended` only.
    Output {
        /// Bytes in the spool file so far.
        length: u64,
    },
    /// The step is over, and no process of it runs any more, unless the machine is `unclean`.
    Ended {
        /// How the step ended; neither `Running` nor `Skipped`.
        state: StepState,
        /// Bytes in the spool file.
        log_length: u64,
        /// Bytes that were discarded because they exceeded `max_log` or could not be written.
        log_cut: u64,
        /// How long the step ran; whole milliseconds.
        took: Duration,
        /// What it has used, if steps have cgroups.
        usage: Option<Usage>,
        /// Processes of it still run and cannot be ended. The state is [`StepState::Lost`], and says so.
        unclean: bool,
    },
}

impl StepEvent {
    /// The end of a step of which only this is known.
    fn ended(state: StepState, log_length: u64, took: Duration) -> Self {
        Self::Ended { state, log_length, log_cut: 0, took, usage: None, unclean: false }
    }
}

/// An event and the step that it is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Update {
    /// The attempt that the step belongs to.
    pub attempt: AttemptId,
    /// Number of the step, from 0.
    pub step: u32,
    /// The event.
    pub event: StepEvent,
}

type Steps = BTreeMap<(AttemptId, u32), watch::Sender<Desired>>;

struct Inner {
    deadline: Deadline,
    /// What is to become of each step that is not over.
    steps: Mutex<Steps>,
    link: watch::Receiver<Option<Arc<Link>>>,
    updates: mpsc::Sender<Update>,
}

impl Inner {
    fn steps(&self) -> MutexGuard<'_, Steps> {
        mutex::lock(&self.steps)
    }
}

/// The handle for running steps. Clones share one runner.
#[derive(Clone)]
pub struct Runner(Arc<Inner>);

impl Runner {
    /// Starts the zygote from `program` (normally `/proc/self/exe`), which must call [`zygote_main_if_asked`] first,
    /// and returns the handle and the stream of updates. Dropping the stream kills all steps.
    ///
    /// The zygote and the supervisors hold a lock on `lock_file`, which is created if necessary, for
    /// [`wait_for_leftovers`]. This process becomes a subreaper, and kills its own children of other sessions when a
    /// zygote dies. Each step gets a cgroup below `cgroups`, if there are any.
    ///
    /// # Errors
    /// If the zygote cannot be started.
    ///
    /// # Panics
    /// If called outside of a tokio runtime.
    pub fn start(
        program: &Path,
        lock_file: &Path,
        cgroups: Option<&Cgroups>,
    ) -> io::Result<(Self, mpsc::Receiver<Update>)> {
        sys::become_subreaper();
        let (deadline, shared) = Deadline::create()?;
        let start = link::Start {
            program: program.to_owned(),
            lock_file: std::path::absolute(lock_file)?,
            cgroups: cgroups.map(|cgroups| cgroups.base().to_owned()),
            deadline: shared,
        };
        let link = link::keep(start)?;
        let (updates, receiver) = mpsc::channel(UPDATES);
        let steps = Mutex::new(BTreeMap::new());
        Ok((Self(Arc::new(Inner { deadline, steps, link, updates })), receiver))
    }

    /// Starts a step. Failures are reported as [`StepState::NotStarted`].
    pub fn run(&self, job: Job) {
        let inner = self.0.clone();
        let key = (job.attempt, job.step);
        let (sender, desired) = watch::channel(Desired::Run);
        let known = {
            let mut steps = inner.steps();
            let known = steps.contains_key(&key);
            if !known {
                steps.insert(key, sender);
            }
            known
        };
        tokio::spawn(async move {
            let state = StepState::NotStarted("the step is already running".to_owned());
            let mut end = StepEvent::ended(state, 0, Duration::ZERO);
            if !known {
                end = link::run(job, inner.link.clone(), desired, &inner.updates).await;
                inner.steps().remove(&key);
            }
            // If nobody receives updates any more, the agent is exiting.
            let _ = inner.updates.send(Update { attempt: key.0, step: key.1, event: end }).await;
        });
    }

    fn set_desired(&self, attempt: AttemptId, desired: Desired) {
        for sender in self.0.steps().range((attempt, 0)..=(attempt, u32::MAX)).map(|(_, sender)| sender) {
            sender.send_if_modified(|old| std::mem::replace(old, desired.max(*old)) < desired);
        }
    }

    /// Stops the attempt's steps: SIGTERM, and SIGKILL after [`rouse_shared::limits::TERM_TO_KILL`]. They are reported
    /// as [`StepState::Stopped`]. Without effect if no step of the attempt runs.
    pub fn stop(&self, attempt: AttemptId) {
        self.set_desired(attempt, Desired::Stop);
    }

    /// Kills the attempt's steps at once.
    pub fn kill(&self, attempt: AttemptId) {
        self.set_desired(attempt, Desired::Kill);
    }

    /// Sets the end of the lease by [`crate::clock::now`]; `None` for no lease. After it every step is killed at once
    /// and reported as [`StepState::Lost`], and no step starts.
    pub fn set_deadline(&self, deadline: Option<Timestamp>) {
        self.0.deadline.set(deadline);
    }
}
