//! Builds in the API.

use super::{Id, Time};
use crate::core::build::BuildState;
use rouse_shared::{HostId, WorkerName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// A build in lists.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Build {
    /// Its number.
    pub id: Id,
    /// Its name; may be empty.
    pub name: String,
    /// Its state.
    pub state: BuildState,
    /// The worker of its last attempt.
    #[schema(required, value_type = Option<String>)]
    pub worker: Option<WorkerName>,
    /// Number of attempts so far.
    pub attempts: u32,
    /// Its priority; builds with a higher one run first.
    pub priority: i32,
    /// Who has submitted it: the name of a token, or of a user; null if an earlier version of the master has accepted it.
    #[serde(default)]
    #[schema(required)]
    pub submitter: Option<String>,
    /// When it was accepted.
    pub created: Time,
    /// When its last attempt started to run.
    #[schema(required)]
    pub started: Option<Time>,
    /// When it ended.
    #[schema(required)]
    pub finished: Option<Time>,
    /// Why it failed or was lost.
    #[schema(required)]
    pub reason: Option<String>,
}

/// A build with its steps, attempts and evidence. Its environment is left out, because it may contain secrets.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct BuildInFull {
    /// The build as it is shown in lists.
    #[serde(flatten)]
    pub build: Build,
    /// The worker that it requires.
    #[schema(required, value_type = Option<String>)]
    pub wanted_worker: Option<WorkerName>,
    /// The properties that it requires.
    #[schema(required)]
    pub r#where: Option<BTreeMap<String, String>>,
    /// How many lost attempts are retried.
    pub retries: u32,
    /// Time limit of one attempt, seconds.
    #[schema(required)]
    pub timeout: Option<f64>,
    /// How long it may wait for something that can run it, seconds, if the build sets this.
    #[schema(required)]
    pub queue_timeout: Option<f64>,
    /// Whether somebody has cancelled it.
    pub cancel_requested: bool,
    /// Whether it is never deleted, whatever the master's `[retention]` says.
    pub keep: bool,
    /// When its logs were deleted by retention, if they were.
    #[schema(required)]
    pub logs_deleted: Option<Time>,
    /// The blob store that its logs are in; absent if they are on the master's disk, or deleted.
    #[schema(required)]
    pub logs_store: Option<String>,
    /// Why its logs are not in the blob store yet, if the store is away.
    #[schema(required)]
    pub upload_trouble: Option<String>,
    /// The steps that were submitted.
    pub steps: Vec<RequestedStep>,
    /// Its attempts, oldest first.
    pub tries: Vec<Attempt>,
    /// Hosts that were started for it and never attached.
    pub evidence: Vec<Evidence>,
}

/// A step that was submitted.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct RequestedStep {
    /// Its number, counted from 1.
    pub number: u32,
    /// Its name.
    pub name: String,
    /// The program and its arguments.
    pub run: Vec<String>,
    /// Whether it also runs after a failed step.
    pub always: bool,
}

/// One run of a build on a worker.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Attempt {
    /// Its number, counted from 1.
    pub number: u32,
    /// The worker that runs it.
    #[schema(value_type = String)]
    pub worker: WorkerName,
    /// The host that it runs on, for a latent worker.
    #[schema(required, value_type = Option<String>)]
    pub host: Option<HostId>,
    /// Its state.
    pub state: AttemptState,
    /// Why it failed or was lost.
    #[schema(required)]
    pub reason: Option<String>,
    /// When it was assigned to the worker.
    pub ordered: Time,
    /// When it started to run.
    #[schema(required)]
    pub started: Option<Time>,
    /// When it ended.
    #[schema(required)]
    pub ended: Option<Time>,
    /// Which limits of its steps were not enforced, and why.
    #[schema(required)]
    pub limits_not_enforced: Option<String>,
    /// Its steps.
    pub steps: Vec<Step>,
}

/// The states of an attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AttemptState {
    /// Assigned to a worker that has not started it yet.
    Starting,
    /// It is running.
    Running,
    /// Every step exited with 0.
    Success,
    /// A step failed.
    Failure,
    /// Somebody cancelled the build.
    Cancelled,
    /// Its worker or host was lost.
    Lost,
    /// The worker did not accept it.
    Declined,
}

impl AttemptState {
    /// As it is written in listings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Cancelled => "cancelled",
            Self::Lost => "lost",
            Self::Declined => "declined",
        }
    }
}

/// A step of an attempt.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Step {
    /// Its number, counted from 1.
    pub number: u32,
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: StepState,
    /// The code that it exited with.
    #[schema(required)]
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    #[schema(required)]
    pub signal: Option<i32>,
    /// Why it was not started, was lost, or was ended by the kernel.
    #[schema(required)]
    pub reason: Option<String>,
    /// When it started.
    #[schema(required)]
    pub started: Option<Time>,
    /// How long it ran, seconds.
    #[schema(required)]
    pub duration: Option<f64>,
    /// Length of its log, bytes.
    #[schema(required)]
    pub log_length: Option<u64>,
    /// Number of bytes that were dropped, because its log exceeded max_log_size.
    #[schema(required)]
    pub log_thrown_away: Option<u64>,
    /// Whether the end of its log was lost with its worker.
    pub log_lacks_end: bool,
    /// Processor time of all its processes, seconds, once it has ended and if its agent has cgroups for steps.
    #[schema(required)]
    pub cpu_seconds: Option<f64>,
    /// The most memory that its processes had at once, bytes; likewise, and only if the kernel records it.
    #[schema(required)]
    pub peak_memory: Option<u64>,
    /// Whether the kernel ended it because it had reached its limit of memory, or the machine had none left.
    pub out_of_memory: bool,
}

/// The states of a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// It has not started.
    Pending,
    /// It is running.
    Running,
    /// It exited with 0.
    Success,
    /// It exited with another code, or a signal ended it.
    Failure,
    /// It ran longer than its `timeout`.
    TimedOut,
    /// It printed nothing for longer than its `silence`.
    Silent,
    /// It was ended because its build was cancelled or exceeded its time limit.
    Stopped,
    /// It did not run.
    Skipped,
    /// Its worker or host was lost while it ran.
    Lost,
    /// It could not be started.
    NotStarted,
}

impl StepState {
    /// As it is shown to people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Success => "success",
            Self::Failure => "failure",
            Self::TimedOut => "timed out",
            Self::Silent => "silent",
            Self::Stopped => "stopped",
            Self::Skipped => "skipped",
            Self::Lost => "lost",
            Self::NotStarted => "not started",
        }
    }
}

/// A host that was started for a build and never attached.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Evidence {
    /// The host.
    #[schema(value_type = String)]
    pub host: HostId,
    /// Its worker.
    #[schema(value_type = String)]
    pub worker: WorkerName,
    /// When the master gave up on it.
    pub at: Time,
    /// Why, in one sentence.
    pub why: String,
    /// The last lines of its console, if its provider keeps them.
    #[schema(required)]
    pub console: Option<String>,
}

/// Why a build has not started, or what it is doing.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Why {
    /// The build's number.
    pub id: Id,
    /// One sentence.
    pub sentence: String,
    /// When the next try is, if one is set.
    #[schema(required)]
    pub next_try: Option<Time>,
}
