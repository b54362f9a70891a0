//! What a build is: what was asked for, and what has become of it. The records that the ledger keeps.

use rouse_shared::message::{Outcome, Step, StepReport};
use rouse_shared::{AttemptId, BuildId, HostId, SessionId, Timestamp, WorkerName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a user asked for. Never changes once it is accepted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BuildSpec {
    /// What people call it; may be empty.
    pub name: String,
    /// Which workers may run it.
    pub requirement: Requirement,
    /// Higher first.
    pub priority: i32,
    /// Attempts that may be lost under it beyond the first before the build is lost.
    pub retries: u32,
    /// Limit of one attempt, milliseconds.
    pub timeout_ms: Option<u64>,
    /// How long it may wait for something that can run it, counted anew each time that it is queued, milliseconds;
    /// absent: as the configuration says.
    #[serde(default)]
    pub queue_timeout_ms: Option<u64>,
    /// Added to every step's environment.
    pub env: BTreeMap<String, String>,
    /// At least one.
    pub steps: Vec<Step>,
}

/// Which workers may run a build.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Requirement {
    /// This one.
    Worker(WorkerName),
    /// Any whose properties have all of these; empty: any at all.
    Where(BTreeMap<String, String>),
}

/// A build and what has become of it.
#[derive(Clone, PartialEq, Debug)]
pub struct Build {
    /// Its number.
    pub id: BuildId,
    /// What was asked for.
    pub spec: Arc<BuildSpec>,
    /// What has become of it.
    pub status: BuildStatus,
}

/// What has become of a build.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct BuildStatus {
    /// When it was accepted.
    pub created: Timestamp,
    /// When it was last queued, if that was later: an attempt was lost under it.
    #[serde(default)]
    pub requeued: Option<Timestamp>,
    /// When its last attempt was first heard to run.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub finished: Option<Timestamp>,
    /// How it ended; absent until then.
    pub end: Option<BuildEnd>,
    /// Whether somebody has cancelled it.
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
    /// Which step failed and how.
    Failure(String),
    /// Somebody cancelled it.
    Cancelled,
    /// Attempts were lost under it, or nothing has run it within its `queue_timeout`; what was tried.
    Lost(String),
}

/// One try to run a build in one session.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Attempt {
    /// From 1.
    pub number: u32,
    /// Who runs it.
    pub worker: WorkerName,
    /// On which host, for a latent worker.
    pub host: Option<HostId>,
    /// In which session.
    pub session: SessionId,
    /// When it was given out.
    pub ordered: Timestamp,
    /// When the agent was first heard to run it.
    pub started: Option<Timestamp>,
    /// When it ended, as the master knows.
    pub ended: Option<Timestamp>,
    /// The newest revision of the agent's report.
    pub revision: u32,
    /// Its steps, as the agent reported them.
    pub steps: Vec<StepReport>,
    /// How it ended, as the agent reported it; the logs may still be on their way while `ended` is absent.
    pub outcome: Option<Outcome>,
    /// Steps whose log is known to lack its end, with the bytes that are there.
    #[serde(default)]
    pub cut_logs: Vec<(u32, u64)>,
    /// Whether an operator terminated its host while it ran: if it is lost by that, it uses up no retry.
    #[serde(default)]
    pub excused: bool,
}

impl Attempt {
    /// Whether it may still be running somewhere.
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
    /// The last of what it printed, where its provider keeps that.
    pub console: Option<String>,
}

/// The states that scripts and people see.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum BuildState {
    /// Waits for a worker.
    Queued,
    /// Given to a worker that has not begun it, or a host is being started for it.
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
            requeued: None,
            started: None,
            finished: None,
            end: None,
            cancelled: false,
            attempts: Vec::new(),
            failed_hosts: Vec::new(),
        }
    }

    /// The attempt that may be running.
    pub fn live_attempt(&self) -> Option<&Attempt> {
        self.attempts.last().filter(|a| a.is_live())
    }

    /// The state as far as this record tells it. (That a host is being started for a queued build is the core's to
    /// know.)
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
