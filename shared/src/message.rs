//! The messages between agents and master.
//!
//! Every message can be repeated: a report is a snapshot of its whole attempt, of which the newest revision counts, and
//! a request to run an attempt that is already known changes nothing. A message that is lost, late or delivered twice
//! does no harm, and lost information is sent again with the next heartbeat or hello.
//!
//! # Changing the messages
//! Agents live in machine images for years, so a master talks to agents of every earlier version. Therefore:
//!
//! * A new field has `#[serde(default)]`, and its default means what its absence has always meant. A receiver ignores
//!   fields that it does not know.
//! * A new variant of [`ToAgent`] or [`ToMaster`] is dropped by a receiver that does not know it: an older agent logs
//!   the message and continues. Therefore its sender must not depend on an answer unless [`Hello::version`] says that
//!   there will be one.
//! * A new variant of an enum within a message ([`StepState`], [`Outcome`], [`CloudNotice`]) makes an older receiver
//!   drop the whole message. Agents may send it only once every supported master knows it.
//! * A field or a variant is never renamed on the wire (`serde(rename)` keeps its name there) nor removed, and never
//!   changes its type or meaning. Anything else needs a higher [`crate::limits::PROTOCOL`]; a master refuses a hello
//!   whose version it does not support, with a reason for people.
//! * Add the message to `tests/tests/wire.rs` and record its bytes: `ROUSE_ACCEPT=1 cargo test -p rouse-tests --test
//!   wire`.

use crate::ids::{AttemptId, MasterId, Nonce, SessionId};
use crate::size;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// From an agent to the master, with the routing key `<worker>.control`. The broker has checked the worker's name
/// (`user_id`).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum ToMaster {
    /// The first message of each connection.
    Hello(Box<Hello>),
    /// Sent at each keepalive interval.
    Heartbeat(Heartbeat),
    /// Sent whenever the state of an attempt changes, and again with each heartbeat from its end until it is settled.
    Report(Box<Report>),
    /// The answer to [`ToAgent::Drain`]: nothing runs here, and nothing will.
    Drained {
        /// The session that is drained.
        session: SessionId,
        /// The number from [`ToAgent::Drain`].
        drain: u64,
    },
    /// The agent exits once its builds have ended (SIGTERM), and accepts no new ones.
    Leaving {
        /// The session that is about to end.
        session: SessionId,
    },
    /// The agent exits now, and none of its builds runs.
    Goodbye {
        /// The session that ends.
        session: SessionId,
    },
    /// The cloud has announced the end of the machine. Sent at once, after each welcome and with each heartbeat.
    Notice {
        /// The session that will end with the machine.
        session: SessionId,
        /// The most serious notice so far; of equally serious ones, the newest.
        notice: CloudNotice,
    },
}

/// A cloud's announcement that a machine will end.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum CloudNotice {
    /// The cloud may take the machine back soon: EC2's rebalance recommendation.
    Rebalance {
        /// Time of the notice, RFC 3339 in UTC as the cloud writes it.
        at: String,
    },
    /// The cloud will take the machine back: EC2's spot interruption notice.
    Interruption {
        /// What the cloud will do with the machine, in its own word: `terminate`, `stop` or `hibernate`.
        action: String,
        /// Time of the action, RFC 3339 in UTC as the cloud writes it. It may be now for a machine that hibernates.
        at: String,
    },
}

/// Who an agent is and what it is running.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// [`crate::limits::PROTOCOL`] of the agent.
    pub protocol: u16,
    /// Version of the agent's package.
    pub version: String,
    /// Counts the connections of this run of the agent from 1. The master ignores a late hello of an earlier one.
    pub connection: u64,
    /// Name of the agent's own queue for this connection.
    pub queue: String,
    /// Host identity: `ec2:` and the instance id, `uuid:` and the UUID of the firmware or of OpenStack's metadata in
    /// lower case, `machine:` and the machine id, or the identity from the boot data (a process host's id).
    pub identity: String,
    /// This run of the agent.
    pub nonce: Nonce,
    /// The password that the agent connected with: the worker's, a boot token or a session secret. The broker has
    /// checked it, but perhaps against a cached answer; the master checks again what must take effect at once.
    pub credential: String,
    /// The master that requested the attempts below; any other master ignores them.
    #[serde(default)]
    pub master: Option<MasterId>,
    /// Attempts that run here, or have ended without being settled.
    #[serde(default)]
    pub attempts: Vec<AttemptReport>,
    /// Properties of the machine.
    #[serde(default)]
    pub facts: Facts,
    /// Whether the agent exits once its builds have ended, and accepts no new ones.
    #[serde(default)]
    pub leaving: bool,
    /// Evidence of the machine's identity.
    #[serde(default)]
    pub proof: Proof,
}

/// Evidence that a machine is the one that it claims to be. Evidence that the machine does not have is absent.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Proof {
    /// The first user of the disk that holds the agent's work directory: the host id of the boot data when an agent
    /// first started there, otherwise the host identity of the machine. If it is another host's, the disk is not fresh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    /// EC2's instance identity document as EC2 serves it (JSON).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<String>,
    /// Its signature as served at `/latest/dynamic/instance-identity/signature`: PKCS #1 v1.5 with SHA-256, base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    /// The document with its signature as served at `/latest/dynamic/instance-identity/rsa2048`: PKCS #7, base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rsa2048: Option<String>,
}

/// Properties of an agent's machine that do not change while it runs.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Facts {
    /// Name of the operating system, as `uname` prints it.
    #[serde(default)]
    pub os: String,
    /// Architecture, as `uname -m` prints it.
    #[serde(default)]
    pub arch: String,
    /// The kernel's host name.
    #[serde(default)]
    pub hostname: String,
    /// Number of processors that the agent may use; 0 if unknown.
    #[serde(default)]
    pub cpus: u32,
    /// Main memory, bytes.
    #[serde(default)]
    pub memory: u64,
    /// What the cgroups of steps can limit; absent if steps have none: everything that a step has started is then
    /// found by its descent, and limits are not enforced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroups: Option<Cgroups>,
    /// Why steps have no cgroups, for people. Absent if they have, and from agents that never make any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_cgroups: Option<String>,
    /// Whether the agent is root and its own configuration names no user: then it runs only builds whose request names
    /// one. False from agents that run such builds as root.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub needs_run_as: bool,
}

/// Which limits the cgroups of an agent's steps enforce. Everything in such a cgroup can be killed, whatever it does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Cgroups {
    /// [`Limits::memory`].
    #[serde(default)]
    pub memory: bool,
    /// [`Limits::pids`].
    #[serde(default)]
    pub pids: bool,
    /// [`Limits::cpu_millis`].
    #[serde(default)]
    pub cpu: bool,
}

/// What a step may use at most. What is absent is not limited.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Limits {
    /// Memory of all of its processes together, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Processes and threads at the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
    /// Processor time, thousandths of a processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u64>,
}

impl Limits {
    /// Thousandths of a number of processors, for [`Limits::cpu_millis`]; `None` if it is not above 0. The kernel takes
    /// no less than a hundredth of one.
    pub fn millis_of(cpus: f64) -> Option<u64> {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is within the bounds")]
        (cpus > 0.0).then(|| (cpus.min(1e6) * 1_000.0).round().max(10.0) as u64)
    }

    /// Whether nothing is limited.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// The narrower of both for each resource.
    #[must_use]
    pub fn narrowed(self, other: Self) -> Self {
        let least = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
        Self {
            memory: least(self.memory, other.memory),
            pids: least(self.pids, other.pids),
            cpu_millis: least(self.cpu_millis, other.cpu_millis),
        }
    }

    /// The limits that cgroups do not enforce, by the names that they have in configurations.
    pub fn unenforced(&self, by: Option<Cgroups>) -> Vec<&'static str> {
        let by = by.unwrap_or_default();
        let all = [
            ("memory", self.memory.is_some() && !by.memory),
            ("pids", self.pids.is_some() && !by.pids),
            ("cpus", self.cpu_millis.is_some() && !by.cpu),
        ];
        all.into_iter().filter(|(_, missing)| *missing).map(|(name, _)| name).collect()
    }
}

/// Shows that the agent is alive, and asks for the lease to be renewed.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The session whose lease is to be renewed.
    pub session: SessionId,
    /// Counts the session's heartbeats from 1.
    pub seq: u64,
    /// Load, memory and disk of the machine at this moment.
    #[serde(default)]
    pub vitals: Vitals,
    /// Why the machine is not fit for further builds, for people: processes of a step that is over cannot be ended. It
    /// stays so while the agent runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unclean: Option<String>,
}

/// Load, memory and disk of a machine.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Vitals {
    /// Load average of one minute.
    #[serde(default)]
    pub load: f32,
    /// Memory in use, bytes.
    #[serde(default)]
    pub memory_used: u64,
    /// Main memory, bytes.
    #[serde(default)]
    pub memory_total: u64,
    /// Free bytes, for a user without privileges, in the file system where builds run.
    #[serde(default)]
    pub disk_free: u64,
    /// Size of the file system where builds run, bytes.
    #[serde(default)]
    pub disk_total: u64,
}

/// A snapshot of one attempt, and the session that it runs in.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The session that the attempt belongs to.
    pub session: SessionId,
    /// The snapshot.
    pub attempt: AttemptReport,
}

/// A snapshot of one attempt.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct AttemptReport {
    /// The attempt that is reported.
    pub attempt: AttemptId,
    /// Grows with each change. The master ignores a snapshot that is older than one that it has.
    pub revision: u32,
    /// The steps that have begun, in their order; a step that was not run is listed as [`StepState::Skipped`].
    #[serde(default)]
    pub steps: Vec<StepReport>,
    /// How the attempt ended; absent while it runs.
    #[serde(default)]
    pub outcome: Option<Outcome>,
}

/// The progress of one step.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StepReport {
    /// Running, or how it ended.
    pub state: StepState,
    /// Milliseconds from the start of the attempt on the host to the start of the step.
    #[serde(default)]
    pub started_ms: u64,
    /// How long the step ran, milliseconds; 0 until it has ended.
    #[serde(default)]
    pub took_ms: u64,
    /// Bytes of the step's log that the agent sends, without what was cut; 0 until the step has ended.
    #[serde(default)]
    pub log_length: u64,
    /// Bytes that the step printed beyond the maximum log size, and that were discarded.
    #[serde(default)]
    pub log_cut: u64,
    /// What the step has used; absent until it has ended, and if steps have no cgroups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// Why an agent that is root runs no build whose request names no user, and what to do about it.
pub const NEEDS_RUN_AS: &str = "its agent is root, and neither the worker's section nor agent.toml says which user builds \
    run as: write run_as = \"…\" (\"root\" if they are to run as root)";

/// What a step that has ended has used, by its cgroup.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Processor time of all of its processes, milliseconds.
    #[serde(default)]
    pub cpu_ms: u64,
    /// The most memory that its processes had at once, bytes; absent if the kernel does not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory: Option<u64>,
    /// Whether the kernel has killed it because there was no memory left, of its own limit or of the machine.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub out_of_memory: bool,
    /// Its limit of memory, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<u64>,
}

impl Usage {
    /// What to say of a step that was killed because there was no memory left; `None` of any other.
    pub fn memory_failure(&self) -> Option<String> {
        if !self.out_of_memory {
            return None;
        }
        let used = self.peak_memory.map(size::show);
        Some(match (self.memory_limit.map(size::show_limit), used) {
            // The machine may have run out of memory before the step did.
            (Some(_), Some(used))
                if self.peak_memory.is_some_and(|peak| peak < self.memory_limit.unwrap_or(0) / 10 * 9) =>
            {
                format!("out of memory: the machine had none left when the step had {used}")
            }
            (Some(limit), Some(used)) => format!("out of memory: {used} of {limit}"),
            (Some(limit), None) => format!("out of memory: its limit is {limit}"),
            (None, Some(used)) => format!("out of memory: the machine had none left when the step had {used}"),
            (None, None) => "out of memory: the machine had none left".to_owned(),
        })
    }
}

/// Running, or how a step ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum StepState {
    /// The command is running.
    Running,
    /// The command exited with this code.
    Exited(i32),
    /// The command was terminated by this signal.
    Signalled(i32),
    /// The step ran longer than its `timeout`.
    TimedOut,
    /// The step printed nothing for longer than its `silence`.
    Silent,
    /// The step was stopped because the build was cancelled or exceeded its timeout.
    Stopped,
    /// The step could not be started, for this reason.
    NotStarted(String),
    /// The step was not run because an earlier one had failed.
    Skipped,
    /// The agent lost the step for this reason: its supervisor was killed, or the machine failed. The attempt is lost.
    Lost(String),
}

/// How an attempt ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Outcome {
    /// Every step exited with 0.
    Success,
    /// A step failed or the build took too long; the text explains it to people.
    Failure(String),
    /// The attempt was stopped at the master's request.
    Cancelled,
    /// The agent could not run the attempt, or lost it, for this reason. The build may be retried.
    Lost(String),
    /// The attempt was never started here and never will be, for this reason (cancelled before it arrived, or the host
    /// is being drained).
    Declined(String),
}

/// From the master to one agent, into its own queue.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum ToAgent {
    /// Accepts a hello.
    Welcome(Box<Welcome>),
    /// Refuses a hello.
    Refused {
        /// Why, and what to do about it; for people.
        reason: String,
        /// Whether the host is to power itself off (a latent host that the master does not expect).
        power_off: bool,
    },
    /// The answer to a heartbeat: the lease runs from the moment at which that heartbeat was sent.
    Renewed {
        /// The session whose lease is renewed.
        session: SessionId,
        /// Number of the heartbeat that is answered.
        seq: u64,
        /// Length of the lease from that moment, milliseconds, if it differs from that of the welcome (a master that is
        /// about to be restarted gives a longer one).
        #[serde(default)]
        lease_ms: Option<u64>,
    },
    /// Run an attempt. Agents in old images know it by its first name.
    #[serde(rename = "Order")]
    RunAttempt(Box<RunAttempt>),
    /// Stop an attempt, or do not start it. Answered by a report with an outcome.
    Cancel {
        /// The session that the attempt belongs to.
        session: SessionId,
        /// The attempt to stop.
        attempt: AttemptId,
    },
    /// The master has the outcomes of these attempts, with their complete logs: forget them.
    Settled {
        /// The session that the message is for.
        session: SessionId,
        /// The attempts to forget.
        attempts: Vec<AttemptId>,
    },
    /// The log of a step has a gap: send it again from there on.
    Resend {
        /// The session that the message is for.
        session: SessionId,
        /// The attempt that the step belongs to.
        attempt: AttemptId,
        /// Number of the step, from 0.
        step: u32,
        /// First byte that is missing.
        offset: u64,
    },
    /// Accept no new attempts, and report when none runs.
    Drain {
        /// The session to drain.
        session: SessionId,
        /// Number of the drain, which the answer repeats.
        drain: u64,
        /// Whether the machine may be suspended once it is drained. Then an agent whose lease has ended when it runs
        /// again assumes that it was suspended, and starts as it does after a boot. Named `sleep` on the wire.
        #[serde(rename = "sleep", default, skip_serializing_if = "std::ops::Not::not")]
        suspend: bool,
    },
    /// The drain is cancelled: accept attempts again.
    Undrain {
        /// The session that was being drained.
        session: SessionId,
    },
}

/// The terms of a session, sent at its start and after each reconnection. A welcome ends any drain: the master requests
/// it again if it still wants it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Welcome {
    /// The session that begins or continues.
    pub session: SessionId,
    /// The master, for [`Hello::master`].
    pub master: MasterId,
    /// The password to use from now on; if absent, the one that the agent has just used stays valid.
    #[serde(default)]
    pub secret: Option<String>,
    /// Milliseconds between heartbeats.
    pub keepalive_ms: u64,
    /// Length of the lease, milliseconds. If absent there is no lease, and the agent kills its builds when its link has
    /// been down for [`Welcome::link_patience_ms`].
    #[serde(default)]
    pub lease_ms: Option<u64>,
    /// Without a lease: how long the link may be down before the agent kills its builds, milliseconds.
    #[serde(default)]
    pub link_patience_ms: Option<u64>,
    /// How much longer than its lease the agent may run builds while the broker has blocked its connection,
    /// milliseconds. If absent, not at all.
    #[serde(default)]
    pub blocked_lease_ms: Option<u64>,
    /// Whether the worker is a standing one, whose machine the master did not start: disarms the dead-man timer.
    pub standing: bool,
    /// How long after the end of its lease a latent host powers itself off, milliseconds.
    #[serde(default)]
    pub grace_ms: u64,
}

/// Everything that an agent needs to run one attempt.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RunAttempt {
    /// The session that is to run it; an agent ignores the request in any other.
    pub session: SessionId,
    /// The attempt to run.
    pub attempt: AttemptId,
    /// The environment of every step, to which the agent adds `PATH`, `HOME` and similar variables.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// The user to run steps as, unless the agent's own configuration names one.
    #[serde(default)]
    pub run_as: Option<String>,
    /// Longest run of the whole build, milliseconds.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// Limits of each step: the narrower of the worker's and the build's.
    #[serde(default, skip_serializing_if = "Limits::is_none")]
    pub limits: Limits,
    /// 1 to [`crate::limits::MAX_STEPS`] steps.
    pub steps: Vec<Step>,
}

/// One command of a build.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Step {
    /// Name for people.
    pub name: String,
    /// The program and its arguments; not empty.
    pub run: Vec<String>,
    /// Work directory, relative to the build's own directory; empty for that directory itself.
    #[serde(default)]
    pub workdir: String,
    /// Variables in addition to [`RunAttempt::env`].
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Longest run, milliseconds.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// Longest time without output, milliseconds.
    #[serde(default)]
    pub silence_ms: Option<u64>,
    /// Whether the step runs even if an earlier one has failed.
    #[serde(default)]
    pub always: bool,
    /// Its own limits, which can only be narrower than [`RunAttempt::limits`].
    #[serde(default, skip_serializing_if = "Limits::is_none")]
    pub limits: Limits,
}

/// A piece of a step's output, with the routing key `<worker>.log`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LogChunk {
    /// The session whose [`RunAttempt`] it belongs to. Only its agent knows it, so nobody else can write this log. Without it
    /// the master takes none of it.
    #[serde(default = "no_session")]
    pub session: SessionId,
    /// The attempt that the step belongs to.
    pub attempt: AttemptId,
    /// Number of the step, from 0.
    pub step: u32,
    /// Position of the first of the bytes in the step's log.
    pub offset: u64,
    /// At most [`crate::limits::LOG_CHUNK`] bytes of standard output and error together, as the step wrote them.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

fn no_session() -> SessionId {
    SessionId(String::new())
}
