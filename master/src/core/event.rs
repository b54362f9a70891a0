//! Two complete lists: what can happen to the core, and what the core can request. Read these first.

use super::audit::{AuditMode, AuditReport};
use super::blobs::Upload;
use super::build::{BuildSpec, BuildState};
use super::journal::{Action, Caller};
use super::mail::{DeliveryResult, Mail, MailId};
use super::plan::{Plan, ProviderKind};
use super::record::{Host, HostState, LaunchSpec, Record};
use super::retention::{Expired, Scan};
pub use super::workers::WorkerState;
use rouse_shared::message::{Hello, ToAgent, ToMaster};
use rouse_shared::{AttemptId, BuildId, HostId, SessionId, Timestamp, WorkerName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;
use utoipa::ToSchema;

/// Identifies a request, so that the reply reaches its sender. Assigned by the driver.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RequestId(pub u64);

/// Something that happened. "Twice" says that an event may be repeated, "late" that it may come after the state that
/// caused it has ended. Both must be harmless.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// A message from an agent. The broker guarantees that it comes from this worker. Late, twice and out of order.
    Agent {
        /// The worker that the agent belongs to.
        worker: WorkerName,
        /// The message.
        message: ToMaster,
    },
    /// A hello whose proof of the agent's machine is invalid. Late and twice.
    AttestationFailed {
        /// The worker's name, which the broker guarantees.
        worker: WorkerName,
        /// The hello.
        hello: Box<Hello>,
        /// What is wrong with the proof, in a sentence.
        why: String,
    },
    /// The broker no longer has the agent's queue, or reports that its connection is closed, so the agent is not
    /// attached. Its lease continues. Caused by [`Effect::Send`] or by the agent's end. Late and twice.
    Detached {
        /// The worker that the agent belonged to.
        worker: WorkerName,
        /// The queue that is gone; absent if only the worker is known.
        queue: Option<String>,
    },
    /// The master's link to the broker is up, or the ledger can be written again. Twice.
    BrokerUp,
    /// The master's link to the broker is down, or the ledger cannot be written. No agent can attach, so no worker
    /// becomes missing. Twice.
    BrokerDown,
    /// The broker accepts nothing that the master or an agent publishes, because it has too little memory or disk.
    /// Twice; late by less than [`rouse_shared::limits::BLOCKED_DETECTION`] while the link is up.
    BrokerBlocked {
        /// The reason, as the broker gives it.
        why: String,
    },
    /// It accepts messages again, or the link on which it did not is gone: before [`Event::BrokerDown`]. Twice.
    BrokerUnblocked,
    /// A user or an operator requests something. Not late; a submission twice only with the same `message_id`. Answered
    /// by [`Effect::Reply`]; an audit after some seconds.
    Command {
        /// Identifies the request for the reply.
        request: RequestId,
        /// Who requests it.
        by: Caller,
        /// What is requested.
        command: Command,
    },
    /// A new configuration.
    Configure(Arc<Plan>),
    /// The result of [`Effect::PrepareHost`], which creates nothing. Late and twice.
    Prepared {
        /// Which host.
        host: HostId,
        /// The alternative that was requested.
        number: u32,
        /// The launch spec, or why there is none.
        result: Result<LaunchSpec, StartError>,
    },
    /// The result of [`Effect::StartHost`]. Late and twice, because a start is repeated until it is answered.
    StartEnded {
        /// Which host.
        host: HostId,
        /// The alternative that was started.
        number: u32,
        /// The machine, or why there is none.
        result: Result<Started, StartError>,
    },
    /// The result of [`Effect::TerminateHost`]. Late and twice.
    TerminateEnded {
        /// Which host.
        host: HostId,
        /// The state of the termination, or why it is unknown.
        result: Result<Termination, String>,
    },
    /// The result of [`Effect::SuspendHost`]. Late, and once: a host has at most one such call at a time.
    SuspendEnded {
        /// Which host.
        host: HostId,
        /// The state of the suspension, or why it is unknown.
        result: Result<Suspension, String>,
    },
    /// The result of [`Effect::ResumeHost`]. Late, and once.
    ResumeEnded {
        /// Which host.
        host: HostId,
        /// Success, or why the machine was not resumed.
        result: Result<(), StartError>,
    },
    /// The result of [`Effect::TerminateOrphan`]. Late and twice.
    OrphanTerminateEnded {
        /// The provider that was asked.
        provider: ProviderKind,
        /// Its name for the machine.
        handle: String,
        /// How far it is, or why the machine was not terminated.
        result: Result<Termination, String>,
    },
    /// The provider has proof that the machine is gone. Late and twice.
    HostGone {
        /// Which host.
        host: HostId,
        /// How it ended, in a sentence.
        why: String,
        /// Whether the cloud took it back for lack of capacity: neither the image's fault nor the worker's.
        reclaimed: bool,
    },
    /// The result of [`Effect::FetchConsole`]. Late.
    Console {
        /// Which host.
        host: HostId,
        /// The last part of the machine's console output.
        text: Option<String>,
    },
    /// [`Effect::ListHosts`] came to an end.
    Listed {
        /// The provider that was asked.
        provider: ProviderKind,
        /// The machines that have our name, or why none of the provider's places was listed.
        result: Result<Listing, String>,
    },
    /// Every byte up to the lengths of [`Effect::CheckLogs`] is on the disk. Late and twice.
    LogsWhole {
        /// The attempt that the logs belong to.
        attempt: AttemptId,
    },
    /// A chunk does not continue the log, [`Effect::CheckLogs`] found bytes missing, or the disk has not taken them. Late
    /// and twice.
    LogGap {
        /// The attempt that the log belongs to.
        attempt: AttemptId,
        /// The number of the step, from 0.
        step: u32,
        /// The first missing byte.
        offset: u64,
    },
    /// The master has received a signal to end: extend every lease. Once.
    Shutdown,
    /// The time of [`super::Core::next_wakeup`] has come.
    Tick,
    /// The result of [`Effect::ListForAudit`]. Late.
    ListedForAudit {
        /// The audit.
        request: RequestId,
        /// The round of the audit.
        round: u32,
        /// The provider that was asked.
        provider: ProviderKind,
        /// The machines that have our name, or why none of the provider's places was listed.
        result: Result<Listing, String>,
    },
    /// The result of [`Effect::SendMail`]. Once. Mails that an earlier master was sending are sent again instead.
    MailSent {
        /// The mail.
        mail: MailId,
        /// The relay's answers.
        result: DeliveryResult,
    },
    /// The result of [`Effect::FindExpired`], or why the ledger or the logs could not be read. Late, and once: there is
    /// at most one such search at a time.
    Expired(Result<Expired, String>),
    /// The result of [`Effect::DeleteLogs`]. Late, and once.
    LogsDeleted {
        /// The builds of which no log file is left.
        builds: Vec<BuildId>,
        /// Why the files of another build could not be deleted.
        failed: Option<String>,
    },
    /// The driver uploads the logs of an ended build. It waits for [`Effect::UploadRecorded`] before it does more.
    Upload {
        /// The build.
        build: BuildId,
        /// Where the logs are uploaded to.
        store: Arc<str>,
        /// How far it is.
        upload: Upload,
    },
}

/// What users and operators can request. Queries do not reach the core; the driver answers them.
#[derive(Clone, PartialEq, Debug)]
pub enum Command {
    /// Accept a build. Answered by [`Reply::Accepted`] once it is committed.
    Submit {
        /// The build.
        spec: Arc<BuildSpec>,
        /// The submitter's id for the build, and the build with that id in the ledger.
        message_id: Option<(String, Option<BuildId>)>,
    },
    /// Cancel a build.
    CancelBuild(BuildId),
    /// Operate on a worker.
    Operate {
        /// Its name.
        worker: WorkerName,
        /// The operation.
        operation: Operation,
    },
    /// Terminate a host at once. Its builds are retried elsewhere; this does not count as one of their retries. Its
    /// worker stays in use.
    TerminateHost(HostId),
    /// Give up a host that is gone for good. Refused while its agent is attached.
    ForgetHost(HostId),
    /// The same for a place and all hosts there, by [`super::places::PlaceKey::id`].
    ForgetPlace(String),
    /// Compare the ledger with what each provider lists. Answered by [`Reply::Audit`].
    Audit(AuditMode),
    /// Write into the journal what the driver does itself.
    Record(Action),
}

/// The operations on a worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// No new builds.
    Pause,
    /// Take the worker back into use; also ends its backoff, and probes its place.
    Resume,
    /// Pause, then terminate its host when nothing runs on it.
    Drain,
}

impl Operation {
    /// As it is written in paths and commands.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Drain => "drain",
        }
    }
}

/// A machine that a provider has created.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Started {
    /// The provider's name for it.
    pub handle: String,
    /// The host identity that its agent will report, if the provider already knows it.
    pub identity: Option<String>,
}

/// Why a provider did not start a host. The kind matters, never the text. It determines what pauses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StartError {
    /// There is no capacity for this alternative (type, zone, market, size) now. It is not used for a while.
    Capacity(String),
    /// A quota or limit of the account rules out this alternative. It is not used for a while, and the place pauses if
    /// the quota rules out every alternative.
    Quota(String),
    /// The cloud rejects the order: wrong image, wrong type, no such thing. The worker and its image pause.
    Rejected(String),
    /// The place refuses all orders or cannot be queried: unreachable, credentials refused or expired, wrong clock,
    /// throttled, an internal error, a network or pool that is not active. Nothing was created. The place pauses.
    Place(String),
    /// Nothing was created, and the same call may succeed soon. The worker pauses.
    Transient(String),
    /// The machine may or may not have been created. The same start is repeated unchanged. The place pauses.
    Unknown(String),
}

impl StartError {
    /// The text for people.
    pub fn text(&self) -> &str {
        match self {
            Self::Capacity(t)
            | Self::Quota(t)
            | Self::Rejected(t)
            | Self::Place(t)
            | Self::Transient(t)
            | Self::Unknown(t) => t,
        }
    }
}

/// The state of a termination.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Termination {
    /// The provider has accepted the request. The machine may still exist.
    Requested,
    /// The machine is gone, or does not exist under this name.
    Gone,
}

/// The state of a suspension.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Suspension {
    /// The provider has accepted the request. The machine may still run.
    Requested,
    /// The machine does not run, and can be resumed.
    Suspended,
    /// The machine cannot be suspended, or is gone; the reason.
    Unable(String),
}

/// A machine with the master's name, as its provider lists it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListedHost {
    /// The host id in its owner tag.
    pub host: HostId,
    /// The provider's name for it.
    pub handle: String,
    /// The host identity that its agent will report, if it follows from the handle.
    pub identity: Option<String>,
    /// Whether it is this master's.
    pub owner: Owner,
    /// Whether it is suspended: it exists and does not run.
    pub suspended: bool,
}

/// What a provider has listed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Listing {
    /// The machines that have our name, of every place that was listed.
    pub machines: Vec<ListedHost>,
    /// The places that could not be listed. Nothing is known about the machines there.
    pub unlisted: Vec<UnlistedPlace>,
}

/// A place that a provider could not list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnlistedPlace {
    /// Its name, as [`super::plan::LatentPlan::place`] has it; absent if it may be any of the provider's.
    pub place: Option<String>,
    /// Why not, in a sentence.
    pub why: String,
}

impl From<Vec<ListedHost>> for Listing {
    /// All machines of all places.
    fn from(machines: Vec<ListedHost>) -> Self {
        Self { machines, unlisted: Vec::new() }
    }
}

impl Listing {
    /// None of the places could be queried.
    pub fn of_nobody(why: String) -> Self {
        Self { machines: Vec::new(), unlisted: vec![UnlistedPlace { place: None, why }] }
    }
}

/// The owner of a machine with the master's name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Owner {
    /// It has the master's name and id.
    Ours,
    /// It has the master's name and this other id. It belongs to another master, or to this one before its state
    /// directory was lost.
    Foreign(String),
}

/// Something to do once all records of the batch are committed, in the order of the list.
#[derive(Clone, PartialEq, Debug)]
#[expect(clippy::large_enum_variant, reason = "most effects are records; boxing each would cost more than moving it")]
pub enum Effect {
    /// Keep this record. It is committed before any other effect of the batch is performed.
    Save(Record),
    /// Put a message into an agent's queue. It may be lost: whatever matters is sent again at the next heartbeat or
    /// hello.
    Send {
        /// The queue of the agent's newest connection.
        queue: String,
        /// The message.
        message: ToAgent,
    },
    /// Reply to a request.
    Reply {
        /// The request.
        request: RequestId,
        /// The answer.
        reply: Reply,
    },
    /// Compute the launch spec: resolve the image and choose an alternative. Creates nothing. Answered by
    /// [`Event::Prepared`].
    PrepareHost {
        /// The host.
        host: Box<Host>,
        /// The first alternative that may be taken, from 0.
        number: u32,
        /// Alternatives of its place that are not used for lack of capacity ([`LaunchSpec::alternative`]). They are
        /// skipped.
        resting: BTreeSet<String>,
    },
    /// Create the machine from the host's launch spec. Idempotent by the host's id. Answered by [`Event::StartEnded`].
    StartHost(Box<Host>),
    /// Terminate the machine. May be repeated. Answered by [`Event::TerminateEnded`].
    TerminateHost(Box<Host>),
    /// Suspend the machine. May be repeated. Answered by [`Event::SuspendEnded`].
    SuspendHost(Box<Host>),
    /// Resume the machine with boot data that contain the host's new token. May be repeated. Answered by
    /// [`Event::ResumeEnded`].
    ResumeHost(Box<Host>),
    /// Terminate a machine with the master's name that is not in the ledger. A foreign machine only if a user has
    /// adopted it. May be repeated. Answered by [`Event::OrphanTerminateEnded`].
    TerminateOrphan {
        /// The provider that listed it.
        provider: ProviderKind,
        /// The machine.
        listed: ListedHost,
    },
    /// Fetch the machine's console output before the machine is terminated. Answered by [`Event::Console`].
    FetchConsole(Box<Host>),
    /// List the machines with the master's name. Answered by [`Event::Listed`].
    ListHosts(ProviderKind),
    /// Stop listing this place, unless it is in the configuration.
    ForgetPlace {
        /// The provider of the hosts there.
        provider: ProviderKind,
        /// Its name in the configuration.
        place: String,
    },
    /// Accept log chunks of this attempt from the agent of this session.
    OpenLogs {
        /// The attempt.
        attempt: AttemptId,
        /// The worker that may send them.
        worker: WorkerName,
        /// The session that the attempt belongs to.
        session: SessionId,
        /// The number of its steps.
        steps: usize,
    },
    /// Check whether the attempt's logs have these lengths. Answered by [`Event::LogsWhole`] or [`Event::LogGap`].
    CheckLogs {
        /// The attempt.
        attempt: AttemptId,
        /// Length of each step's log, bytes.
        lengths: Vec<u64>,
        /// Whether to report missing bytes at once. At first they may still be on their way.
        overdue: bool,
    },
    /// Accept no more chunks of this attempt. Its logs are kept.
    CloseLogs {
        /// The attempt.
        attempt: AttemptId,
    },
    /// Find ended builds that are to be deleted, some of them at a time. Answered by [`Event::Expired`].
    FindExpired(Scan),
    /// Delete the log files of these builds, which have ended. May be repeated. Answered by [`Event::LogsDeleted`].
    DeleteLogs(Vec<BuildId>),
    /// What [`Event::Upload`] reported of this build is in the ledger.
    UploadRecorded(BuildId),
    /// Publish a change to all listeners.
    Publish(Change),
    /// Write to the master's log.
    Log(Level, String),
    /// Write to the master's log that a hello was refused: once a minute for each worker and reason, because agents try
    /// again.
    LogRefused {
        /// The worker that the agent claims to be.
        worker: WorkerName,
        /// The machine that the agent claims to be on.
        identity: String,
        /// Why it was refused, in a sentence.
        reason: String,
    },
    /// List the machines with the master's name, for an audit. Answered by [`Event::ListedForAudit`].
    ListForAudit {
        /// The audit.
        request: RequestId,
        /// The round of the audit.
        round: u32,
        /// The provider to ask.
        provider: ProviderKind,
    },
    /// Pass a mail to the relay for its waiting recipients. May be repeated with the same message id. Answered by
    /// [`Event::MailSent`].
    SendMail(Box<Mail>),
}

/// The level of a line in the log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// Normal operation.
    Info,
    /// Somebody should look at it.
    Warn,
}

/// The answer to a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    /// The build is accepted and committed, now or earlier under the same message id.
    Accepted(BuildId),
    /// The command has been carried out.
    Done,
    /// There is no such build, worker or host.
    NotFound(String),
    /// The command cannot be carried out.
    Refused {
        /// The wrong field, such as `worker`, if there is one.
        field: Option<String>,
        /// The reason, in a sentence.
        reason: String,
    },
    /// The command cannot be carried out now, for a reason on the master's side. Sent by the driver.
    Unavailable(String),
    /// The result of an audit.
    Audit(Box<AuditReport>),
}

/// A change, for the page, the event streams and the exchange `rouse.events`.
#[derive(Clone, PartialEq, Debug)]
pub enum Change {
    /// A build's state.
    Build {
        /// The build.
        id: BuildId,
        /// Its state now.
        state: BuildState,
        /// The worker that runs it.
        worker: Option<WorkerName>,
        /// When it changed.
        at: Timestamp,
    },
    /// A worker's state.
    Worker {
        /// The worker.
        name: WorkerName,
        /// Its state now.
        state: WorkerState,
        /// When it changed.
        at: Timestamp,
    },
    /// A host's state.
    Host {
        /// The host.
        id: HostId,
        /// The worker that it belongs to.
        worker: WorkerName,
        /// Its state now.
        state: HostState,
        /// Why, if it is being terminated or has ended.
        why: Option<String>,
        /// When it changed.
        at: Timestamp,
    },
}
