//! Builds and their attempts, as they are stored in the ledger.

use super::journal::Principal;
use rouse_shared::message::{Limits, Outcome, Step, StepReport};
use rouse_shared::{AttemptId, BuildId, HostId, SessionId, Timestamp, WorkerName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a user has requested. Never changes once the build is accepted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BuildSpec {
    /// A name for people; may be empty.
    pub name: String,
    /// Which workers may run it.
    pub requirement: Requirement,
    /// Higher first.
    pub priority: i32,
    /// How many attempts may be lost, beyond the first, before the build is lost.
    pub retries: u32,
    /// Time limit of one attempt, milliseconds.
    pub timeout_ms: Option<u64>,
    /// How long it may wait for something that can run it, counted from zero each time that it is queued, milliseconds;
    /// absent: the value in the configuration.
    #[serde(default)]
    pub queue_timeout_ms: Option<u64>,
    /// Added to every step's environment.
    pub env: BTreeMap<String, String>,
    /// What each step may use, if that is less than the worker allows.
    #[serde(default, skip_serializing_if = "Limits::is_none")]
    pub limits: Limits,
    /// Whether it is never deleted, whatever the retention.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep: bool,
    /// At least one.
    pub steps: Vec<Step>,
}

/// Which workers may run a build.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Requirement {
    /// This worker.
    Worker(WorkerName),
    /// Any worker that has all of these properties; if there are none, any worker.
    Where(BTreeMap<String, String>),
}

/// A build with its status.
#[derive(Clone, PartialEq, Debug)]
pub struct Build {
    /// Its number.
    pub id: BuildId,
    /// What was requested.
    pub spec: Arc<BuildSpec>,
    /// Its status.
    pub status: BuildStatus,
    /// When retention has deleted its logs, if it has.
    pub logs_deleted: Option<Timestamp>,
    /// The blob store that its logs are in; absent if they are on the master's disk.
    pub logs_store: Option<Arc<str>>,
}

/// The status of a build.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct BuildStatus {
    /// When it was accepted.
    pub created: Timestamp,
    /// Who has submitted it; absent in builds of earlier versions.
    #[serde(default)]
    pub submitter: Option<Principal>,
    /// When it was last queued, if that was later: an attempt was lost under it.
    #[serde(default)]
    pub requeued: Option<Timestamp>,
    /// When the master first received that its last attempt runs.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub finished: Option<Timestamp>,
    /// How it ended; absent until then.
    pub end: Option<BuildEnd>,
    /// Whether a user has cancelled it.
    pub cancelled: bool,
    /// Its attempts, oldest first.
    pub attempts: Vec<Attempt>,
    /// Hosts that were started for it and never attached, with what they left behind: the last few.
    pub failed_hosts: Vec<FailedHost>,
}

/// How a build ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum BuildEnd {
    /// Every step exited with 0.
    Success,
    /// A step failed: which one, and how.
    Failure(String),
    /// A user cancelled it.
    Cancelled,
    /// Attempts were lost under it, or nothing has run it within its `queue_timeout`; what was tried.
    Lost(String),
}

/// One try to run a build in one session.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Attempt {
    /// From 1.
    pub number: u32,
    /// The worker that runs it.
    pub worker: WorkerName,
    /// The host that runs it, for a latent worker.
    pub host: Option<HostId>,
    /// The session that it belongs to.
    pub session: SessionId,
    /// When it was assigned.
    pub ordered: Timestamp,
    /// When the agent first reported that it runs.
    pub started: Option<Timestamp>,
    /// When the master settled it.
    pub ended: Option<Timestamp>,
    /// The newest revision of the agent's report.
    pub revision: u32,
    /// Its steps, as the agent reported them.
    pub steps: Vec<StepReport>,
    /// Its outcome, as the agent reported it. While `ended` is absent, logs may still be missing.
    pub outcome: Option<Outcome>,
    /// Steps whose log is known to be incomplete, with the number of bytes that are there.
    #[serde(default)]
    pub cut_logs: Vec<(u32, u64)>,
    /// Whether an operator terminated its host while it ran. If it is lost because of that, it uses up no retry.
    #[serde(default)]
    pub excused: bool,
    /// Which limits of its steps are not enforced, and why, in a sentence; absent if there is none.
    #[serde(default)]
    pub unenforced: Option<String>,
}

impl Attempt {
    /// Whether it may still run.
    pub fn is_live(&self) -> bool {
        self.ended.is_none()
    }
}

/// A host that was started for a build and never attached.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct FailedHost {
    /// The host.
    pub host: HostId,
    /// Its worker.
    pub worker: WorkerName,
    /// When it was given up.
    pub at: Timestamp,
    /// Why, in a sentence.
    pub why: String,
    /// The last part of its console output, if the provider keeps that.
    pub console: Option<String>,
}

/// The states that scripts and people see.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum BuildState {
    /// Waits for a worker.
    Queued,
    /// Assigned to a worker that has not started it, or a host is being started for it.
    Starting,
    /// Runs.
    Running,
    /// Every step exited with 0.
    Success,
    /// A step failed, or it took too long.
    Failure,
    /// Somebody cancelled it.
    Cancelled,
    /// Attempts or hosts were lost under it.
    Lost,
}

impl BuildState {
    /// Every state, in the order of a build's life.
    pub const ALL: [BuildState; 7] =
        [Self::Queued, Self::Starting, Self::Running, Self::Success, Self::Failure, Self::Cancelled, Self::Lost];

    /// As it is written in listings and queries.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Cancelled => "cancelled",
            Self::Lost => "lost",
        }
    }

    /// Whether nothing more will happen to the build.
    pub fn is_final(self) -> bool {
        match self {
            Self::Queued | Self::Starting | Self::Running => false,
            Self::Success | Self::Failure | Self::Cancelled | Self::Lost => true,
        }
    }
}

impl BuildStatus {
    /// A build that has just been accepted.
    pub fn new(now: Timestamp) -> Self {
        Self {
            created: now,
            submitter: None,
            requeued: None,
            started: None,
            finished: None,
            end: None,
            cancelled: false,
            attempts: Vec::new(),
            failed_hosts: Vec::new(),
        }
    }

    /// When it was last queued.
    pub fn queued_at(&self) -> Timestamp {
        self.requeued.unwrap_or(self.created)
    }

    /// The attempt that may be running.
    pub fn live_attempt(&self) -> Option<&Attempt> {
        self.attempts.last().filter(|a| a.is_live())
    }

    /// The state according to this record. The core also knows whether a host is being started for a queued build.
    pub fn state(&self) -> BuildState {
        match (&self.end, self.live_attempt()) {
            (Some(BuildEnd::Success), _) => BuildState::Success,
            (Some(BuildEnd::Failure(_)), _) => BuildState::Failure,
            (Some(BuildEnd::Cancelled), _) => BuildState::Cancelled,
            (Some(BuildEnd::Lost(_)), _) => BuildState::Lost,
            (None, Some(attempt)) if attempt.started.is_some() => BuildState::Running,
            (None, Some(_)) => BuildState::Starting,
            (None, None) => BuildState::Queued,
        }
    }
}

impl Build {
    /// Whether it waits for something that can run it.
    pub fn is_queued(&self) -> bool {
        self.status.end.is_none() && self.status.live_attempt().is_none()
    }

    /// The id of its attempt of this number.
    pub fn attempt_id(&self, number: u32) -> AttemptId {
        AttemptId { build: self.id, number }
    }
}
