//! Builds in the API.

use super::{Id, Time};
use crate::core::build::BuildState;
use rouse_shared::{HostId, WorkerName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// A build as listings show it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Build {
    /// Its number.
    pub id: Id,
    /// What people call it; may be empty.
    pub name: String,
    /// Its state.
    pub state: BuildState,
    /// The worker of its last attempt.
    #[schema(required, value_type = Option<String>)]
    pub worker: Option<WorkerName>,
    /// How many attempts there were.
    pub attempts: u32,
    /// Higher runs first.
    pub priority: i32,
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

/// A build with its steps, attempts and evidence. Its environment is left out, since people put secrets there.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct BuildInFull {
    /// The build as listings show it.
    #[serde(flatten)]
    pub build: Build,
    /// The worker that it asks for.
    #[schema(required, value_type = Option<String>)]
    pub wanted_worker: Option<WorkerName>,
    /// The properties that it asks for.
    #[schema(required)]
    pub r#where: Option<BTreeMap<String, String>>,
    /// How many attempts may be lost beyond the first.
    pub retries: u32,
    /// Limit of one attempt, seconds.
    #[schema(required)]
    pub timeout: Option<f64>,
    /// The longest that it may wait for something that can run it, seconds, if the build says.
    #[schema(required)]
    pub queue_timeout: Option<f64>,
    /// Whether somebody has cancelled it.
    pub cancel_requested: bool,
    /// The steps that were asked for.
    pub steps: Vec<RequestedStep>,
    /// Its attempts, oldest first.
    pub tries: Vec<Attempt>,
    /// Hosts that were started for it and never attached.
    pub evidence: Vec<Evidence>,
}

/// A step that was asked for.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct RequestedStep {
    /// From 1.
    pub number: u32,
    /// What people call it.
    pub name: String,
    /// The program and its arguments.
    pub run: Vec<String>,
    /// Whether it also runs after a failed step.
    pub always: bool,
}

/// One try to run a build.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Attempt {
    /// From 1.
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
    /// When it was given to the worker.
    pub ordered: Time,
    /// When it started to run.
    #[schema(required)]
    pub started: Option<Time>,
    /// When it ended.
    #[schema(required)]
    pub ended: Option<Time>,
    /// Its steps.
    pub steps: Vec<Step>,
}

/// The states of an attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AttemptState {
    /// Given to a worker that has not begun it.
    Starting,
    /// Runs.
    Running,
    /// Every step exited with 0.
    Success,
    /// A step failed.
    Failure,
    /// Somebody cancelled the build.
    Cancelled,
    /// Its worker or host was lost.
    Lost,
    /// The worker did not take it.
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
    /// From 1.
    pub number: u32,
    /// What people call it.
    pub name: String,
    /// Its state.
    pub state: StepState,
    /// The code that it exited with.
    #[schema(required)]
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    #[schema(required)]
    pub signal: Option<i32>,
    /// Why it was not started or was lost.
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
    /// Bytes that it printed past the limit of log size and that were dropped.
    #[schema(required)]
    pub log_thrown_away: Option<u64>,
    /// Whether the end of its log was lost with its worker.
    pub log_lacks_end: bool,
}

/// The states of a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// Has not begun.
    Pending,
    /// Runs.
    Running,
    /// Exited with 0.
    Success,
    /// Exited with another code, or was ended by a signal.
    Failure,
    /// Ran longer than its timeout.
    TimedOut,
    /// Printed nothing for longer than it may.
    Silent,
    /// Was ended because its build was.
    Stopped,
    /// Did not run.
    Skipped,
    /// Its worker or host was lost while it ran.
    Lost,
    /// Could not be started.
    NotStarted,
}

impl StepState {
    /// As people read it.
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
    /// Why, in a sentence.
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
