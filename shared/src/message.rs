//! The messages between agents and master.
//!
//! Every message can be repeated: a report is a snapshot of its whole attempt, of which the newest revision counts, and a
//! request to run an attempt that is already known changes nothing. A message that is lost, late or delivered twice does no
//! harm, and what was lost is sent again with the next heartbeat or hello.
//!
//! # Changing the messages
//! Agents live in machine images for years, so a master talks to agents of every earlier version. Therefore:
//!
//! * A new field has `#[serde(default)]`, and its default means what its absence has always meant. A receiver ignores
//!   fields that it does not know.
//! * A new variant of [`ToAgent`] or [`ToMaster`] is dropped by a receiver that does not know it: an older agent logs the
//!   message and goes on. So its sender must not depend on an answer unless [`Hello::version`] says that there will be one.
//! * A new variant of an enum within a message ([`StepState`], [`Outcome`], [`CloudNotice`]) makes an older receiver drop
//!   the whole message. Agents may send it only once every supported master knows it.
//! * A field or a variant is never renamed or removed, and never changes its type or meaning. Anything else needs a higher
//!   [`crate::limits::PROTOCOL`]; a master refuses a hello whose version it does not speak, with a reason for people.
//! * Add the message to `tests/tests/wire.rs` and record its bytes: `ROUSE_ACCEPT=1 cargo test -p rouse-tests --test wire`.

use crate::ids::{AttemptId, MasterId, Nonce, SessionId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// From an agent to the master, under `<worker>.control`. The broker vouches for the worker's name (`user_id`).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum ToMaster {
    /// The first message of each connection.
    Hello(Box<Hello>),
    /// At each keepalive interval.
    Heartbeat(Heartbeat),
    /// Whenever an attempt moves on, and again with each heartbeat until its end is settled.
    Report(Box<Report>),
    /// Nothing runs here and nothing will: the answer to [`ToAgent::Drain`].
    Drained {
        /// The session that is drained.
        session: SessionId,
        /// Which drain is answered.
        drain: u64,
    },
    /// The agent ends when its builds have ended (SIGTERM); nothing new may be sent.
    Leaving {
        /// The session that ends.
        session: SessionId,
    },
    /// The agent ends now; nothing of its builds runs.
    Goodbye {
        /// The session that ends.
        session: SessionId,
    },
    /// The cloud has told the machine about its end. Said at once, at each welcome and with each heartbeat.
    Notice {
        /// The session that will end.
        session: SessionId,
        /// What the cloud said, the newest and gravest.
        notice: CloudNotice,
    },
}

/// What a cloud tells a machine about its end.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum CloudNotice {
    /// The cloud may take the machine back soon: EC2's rebalance recommendation. Nothing is certain.
    Rebalance {
        /// When the cloud said so, RFC 3339 in UTC as the cloud writes it.
        at: String,
    },
    /// The cloud takes the machine back: EC2's spot interruption notice.
    Interruption {
        /// What becomes of the machine, in the cloud's word: `terminate`, `stop` or `hibernate`.
        action: String,
        /// When, RFC 3339 in UTC as the cloud writes it. For a machine that hibernates it may be now.
        at: String,
    },
}

/// Who an agent is and what it is running.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// [`crate::limits::PROTOCOL`] of the agent.
    pub protocol: u16,
    /// Version of the agent, as its package has it.
    pub version: String,
    /// Which connection of this life of the agent, from 1: a late hello of an earlier one counts for nothing.
    pub connection: u64,
    /// The agent's own queue for this connection.
    pub queue: String,
    /// Host identity: `ec2:` and the instance id, `uuid:` and the UUID of the firmware or of OpenStack's metadata in lower
    /// case, `machine:` and the machine id, or what the boot data say (a process host's id).
    pub identity: String,
    /// This life of the agent.
    pub nonce: Nonce,
    /// The password that the agent connected with: the worker's, a boot token or a session secret. The broker has
    /// checked it, perhaps from a cache; what must hold at once is checked here again.
    pub credential: String,
    /// The master that the attempts below came from; of another master they count for nothing.
    #[serde(default)]
    pub master: Option<MasterId>,
    /// Attempts that run here, or have ended without being settled.
    #[serde(default)]
    pub attempts: Vec<AttemptReport>,
    /// The machine.
    #[serde(default)]
    pub facts: Facts,
    /// Whether the agent ends when its builds have ended: nothing new may be sent.
    #[serde(default)]
    pub leaving: bool,
    /// What speaks for the machine being the one that it says it is.
    #[serde(default)]
    pub proof: Proof,
}

/// What speaks for a machine being the one that it says it is. Whatever is not there is absent.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Proof {
    /// Whom the disk below the agent's work directory was first used for: the host of the boot data at the agent's first
    /// start there, else that machine's host identity. Another host's: the disk is not fresh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    /// EC2's instance identity document, as it is served (JSON).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<String>,
    /// Its signature, as it is served at `/latest/dynamic/instance-identity/signature`: PKCS #1 v1.5 with SHA-256, base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    /// The document with its signature, as served at `/latest/dynamic/instance-identity/rsa2048`: PKCS #7, base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rsa2048: Option<String>,
}

/// What an agent's machine is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Facts {
    /// Name of the operating system, as `uname` has it.
    #[serde(default)]
    pub os: String,
    /// Architecture, as `uname -m` has it.
    #[serde(default)]
    pub arch: String,
    /// Host name.
    #[serde(default)]
    pub hostname: String,
    /// Processors.
    #[serde(default)]
    pub cpus: u32,
    /// Memory, bytes.
    #[serde(default)]
    pub memory: u64,
}

/// A sign of life, which asks for the lease to be renewed.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The session that lives.
    pub session: SessionId,
    /// Counts from 1 in each session.
    pub seq: u64,
    /// How the machine is.
    #[serde(default)]
    pub vitals: Vitals,
}

/// How a machine is, from sysinfo.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Vitals {
    /// Load average of one minute.
    #[serde(default)]
    pub load: f32,
    /// Memory in use, bytes.
    #[serde(default)]
    pub memory_used: u64,
    /// Memory, bytes.
    #[serde(default)]
    pub memory_total: u64,
    /// Free space where builds run, bytes.
    #[serde(default)]
    pub disk_free: u64,
    /// Size of the file system where builds run, bytes.
    #[serde(default)]
    pub disk_total: u64,
}

/// The whole picture of one attempt, and the session that it runs in.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The session that the attempt belongs to.
    pub session: SessionId,
    /// The picture.
    pub attempt: AttemptReport,
}

/// The whole picture of one attempt.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct AttemptReport {
    /// The attempt.
    pub attempt: AttemptId,
    /// Grows with each change; an older picture counts for nothing.
    pub revision: u32,
    /// The steps that have begun, in their order. Steps that are passed over are listed as [`StepState::Skipped`].
    #[serde(default)]
    pub steps: Vec<StepReport>,
    /// How it ended; absent while it runs.
    #[serde(default)]
    pub outcome: Option<Outcome>,
}

/// How one step does.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StepReport {
    /// Running, or how it ended.
    pub state: StepState,
    /// Milliseconds from the attempt's beginning on the host to the step's.
    #[serde(default)]
    pub started_ms: u64,
    /// Milliseconds that it ran, once it has ended.
    #[serde(default)]
    pub took_ms: u64,
    /// Bytes of its log that the agent sends, once it has ended. What was cut is not counted.
    #[serde(default)]
    pub log_length: u64,
    /// Bytes that the step printed past the limit of log size, and that were thrown away.
    #[serde(default)]
    pub log_cut: u64,
}

/// Running, or how a step ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum StepState {
    /// Its command runs.
    Running,
    /// It ended by itself, with this exit code.
    Exited(i32),
    /// A signal ended it.
    Signalled(i32),
    /// It ran longer than its `timeout`.
    TimedOut,
    /// It printed nothing for longer than its `silence`.
    Silent,
    /// It was ended because the build was cancelled, or past the build's timeout.
    Stopped,
    /// It could not be started; why.
    NotStarted(String),
    /// Not run, since an earlier step failed.
    Skipped,
    /// Its supervisor was killed, or the machine failed under it; why. The attempt is lost.
    Lost(String),
}

/// How an attempt ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Outcome {
    /// Every step exited with 0.
    Success,
    /// A step failed, or the build took too long; which and how, in words.
    Failure(String),
    /// The master asked for it.
    Cancelled,
    /// Neither: the agent could not run it or lost it; why. The build may be tried again.
    Lost(String),
    /// It was never begun here and never will be (taken back before it arrived, or refused while draining); why.
    Declined(String),
}

/// From the master to one agent, into its own queue.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum ToAgent {
    /// The answer to a hello that is let in.
    Welcome(Box<Welcome>),
    /// The answer to a hello that is not.
    Refused {
        /// Why, and what to do.
        reason: String,
        /// Whether the host is to be powered off (a latent one that nobody expects).
        power_off: bool,
    },
    /// The answer to a heartbeat: the lease runs from the moment that heartbeat was sent.
    Renewed {
        /// The session.
        session: SessionId,
        /// The heartbeat that is answered.
        seq: u64,
        /// Length of the lease from that moment, milliseconds, where it is not that of the welcome (a master that is
        /// about to be restarted gives more).
        #[serde(default)]
        lease_ms: Option<u64>,
    },
    /// Run this.
    RunAttempt(Box<RunAttempt>),
    /// End this attempt, or never begin it. Answered by a report with an outcome.
    Cancel {
        /// The session.
        session: SessionId,
        /// The attempt.
        attempt: AttemptId,
    },
    /// The master has the ends of these attempts, logs included: forget them.
    Settled {
        /// The session.
        session: SessionId,
        /// The attempts.
        attempts: Vec<AttemptId>,
    },
    /// The log of a step has a gap: send again from there.
    Resend {
        /// The session.
        session: SessionId,
        /// The attempt.
        attempt: AttemptId,
        /// The step, from 0.
        step: u32,
        /// First byte that is missing.
        offset: u64,
    },
    /// Take nothing new, and say when nothing runs.
    Drain {
        /// The session.
        session: SessionId,
        /// To be repeated in the answer.
        drain: u64,
        /// Whether the machine may be put to sleep after that, and woken again: an agent that finds itself again when its
        /// lease is over has slept, and begins anew as after a boot.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        suspend: bool,
    },
    /// A drain is taken back: take orders again.
    Undrain {
        /// The session.
        session: SessionId,
    },
    /// End the agent's process (a standing worker that was stopped).
    Exit {
        /// The session.
        session: SessionId,
    },
}

/// What a session is given at its beginning, and again after each reconnection. It ends any drain: the master asks anew
/// where it still wants one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Welcome {
    /// The session.
    pub session: SessionId,
    /// The master, for [`Hello::master`].
    pub master: MasterId,
    /// The password from now on, in place of the one that was used; absent: the one that was used goes on.
    #[serde(default)]
    pub secret: Option<String>,
    /// Milliseconds between heartbeats.
    pub keepalive_ms: u64,
    /// Length of the lease, milliseconds; absent: no lease, the agent ends its builds when its link has been down for
    /// [`Welcome::link_patience_ms`].
    #[serde(default)]
    pub lease_ms: Option<u64>,
    /// Without a lease: how long the link may be down before builds are ended, milliseconds.
    #[serde(default)]
    pub link_patience_ms: Option<u64>,
    /// Whether somebody else starts this machine: the dead-man timer is disarmed.
    pub standing: bool,
    /// A latent host powers itself off when its lease has been over for so long, milliseconds.
    #[serde(default)]
    pub grace_ms: u64,
}

/// One attempt to run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RunAttempt {
    /// The session that it is for; of another session it counts for nothing.
    pub session: SessionId,
    /// The attempt.
    pub attempt: AttemptId,
    /// The environment of every step, complete but for `PATH`, `HOME` and their like.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// The user to run steps as, where the agent's own configuration names none.
    #[serde(default)]
    pub run_as: Option<String>,
    /// Limit of the whole build, milliseconds.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// The steps, at least one, at most [`crate::limits::MAX_STEPS`].
    pub steps: Vec<Step>,
}

/// One command of a build.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Step {
    /// What people call it.
    pub name: String,
    /// The program and its arguments, at least one.
    pub run: Vec<String>,
    /// Where it runs: below the build's own directory; empty: that directory itself.
    #[serde(default)]
    pub workdir: String,
    /// Added to the order's environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Limit of its run, milliseconds.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// How long it may print nothing, milliseconds.
    #[serde(default)]
    pub silence_ms: Option<u64>,
    /// Also run after a step has failed.
    #[serde(default)]
    pub always: bool,
}

/// A piece of a step's output, under `<worker>.log`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LogChunk {
    /// The attempt.
    pub attempt: AttemptId,
    /// The step, from 0.
    pub step: u32,
    /// Where in the step's log the bytes belong.
    pub offset: u64,
    /// At most [`crate::limits::LOG_CHUNK`] bytes of output, as the step wrote them (standard output and error together).
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}
