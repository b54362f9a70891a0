//! The two closed lists: what can happen to the core, and what it asks for. Read these first.

use super::audit::{AuditMode, AuditReport};
use super::build::{BuildSpec, BuildState};
use super::mail::{DeliveryResult, Mail, MailId};
use super::plan::{Plan, ProviderKind};
use super::record::{Host, HostState, LaunchSpec, Record};
pub use super::workers::WorkerState;
use rouse_shared::message::{Hello, ToAgent, ToMaster};
use rouse_shared::{AttemptId, BuildId, HostId, Timestamp, WorkerName};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

/// Identifies a request, so that its answer finds whoever made it; drawn by the driver.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RequestId(pub u64);

/// Something that happened. "Twice" says whether it may be told again, "late" whether it may come after the state that
/// caused it is gone; either must be harmless.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// An agent said something; the broker vouches for the worker. Late, twice and out of order.
    Agent {
        /// The worker whose agent it is.
        worker: WorkerName,
        /// What it said.
        message: ToMaster,
    },
    /// An agent said hello, and its proof of the machine that it is on is invalid. Late and twice.
    AttestationFailed {
        /// Who it says it is; the broker vouches for that.
        worker: WorkerName,
        /// What it said.
        hello: Box<Hello>,
        /// What is wrong with the proof, in a sentence.
        why: String,
    },
    /// The broker has no such queue any more, or says that the connection is closed: the agent is not attached now. Its
    /// lease goes on. Caused by [`Effect::Send`] or by the agent's end. Late and twice.
    Detached {
        /// The worker whose agent it was.
        worker: WorkerName,
        /// The queue that is gone; absent where only the worker is known.
        queue: Option<String>,
    },
    /// The master's own link to the broker came up, or the ledger can be written again. Twice.
    BrokerUp,
    /// The master's own link to the broker went down, or the ledger cannot be written, so that nobody can attach.
    /// Nobody counts as missing until it is back. Twice.
    BrokerDown,
    /// The broker accepts nothing that the master or an agent publishes, because it has too little memory or disk. Twice;
    /// late by less than [`rouse_shared::limits::BLOCKED_DETECTION`] while the link is up.
    BrokerBlocked {
        /// The reason, as the broker gives it.
        why: String,
    },
    /// It accepts messages again, or the link on which it did not is gone: before [`Event::BrokerDown`]. Twice.
    BrokerUnblocked,
    /// A user or an operator wants something done. Not late; a submission twice only with the same `message_id`. Answered
    /// by [`Effect::Reply`]; an audit after some seconds.
    Command {
        /// To be answered.
        request: RequestId,
        /// What is to be done.
        command: Command,
    },
    /// A new configuration.
    Configure(Arc<Plan>),
    /// [`Effect::PrepareHost`] came to an end; nothing has been made by it. Late and twice.
    Prepared {
        /// Which host.
        host: HostId,
        /// The alternative that was asked for.
        number: u32,
        /// What is to be ordered, or why there is nothing.
        result: Result<LaunchSpec, StartError>,
    },
    /// [`Effect::StartHost`] came to an end. Late and twice (a start is repeated until it is answered).
    StartEnded {
        /// Which host.
        host: HostId,
        /// The number of the order that it was started with.
        number: u32,
        /// The machine, or why there is none.
        result: Result<Started, StartError>,
    },
    /// [`Effect::TerminateHost`] came to an end. Late and twice.
    TerminateEnded {
        /// Which host.
        host: HostId,
        /// How it stands, or why that is not known.
        result: Result<Termination, String>,
    },
    /// [`Effect::SuspendHost`] came to an end. Late, and once: there is never more than one such call of a host.
    SuspendEnded {
        /// Which host.
        host: HostId,
        /// How it stands, or why that is not known.
        result: Result<Suspension, String>,
    },
    /// [`Effect::ResumeHost`] came to an end. Late, and once.
    ResumeEnded {
        /// Which host.
        host: HostId,
        /// Success, or why the machine was not resumed.
        result: Result<(), StartError>,
    },
    /// The provider has proof that the machine is gone. Late and twice.
    HostGone {
        /// Which host.
        host: HostId,
        /// How it ended, in a sentence.
        why: String,
    },
    /// [`Effect::FetchConsole`] came to an end. Late.
    Console {
        /// Which host.
        host: HostId,
        /// The last of what it printed.
        text: Option<String>,
    },
    /// [`Effect::ListHosts`] came to an end. A list is whole, or an error.
    Listed {
        /// Whose list.
        provider: ProviderKind,
        /// The machines that have our name.
        result: Result<Vec<ListedHost>, PartialList>,
    },
    /// The log adapter holds every byte of these logs up to the lengths of [`Effect::CheckLogs`]. Late and twice.
    LogsWhole {
        /// Whose logs.
        attempt: AttemptId,
    },
    /// A chunk came that does not join on to what is there, or [`Effect::CheckLogs`] found bytes missing. Late and
    /// twice.
    LogGap {
        /// Whose log.
        attempt: AttemptId,
        /// Which step, from 0.
        step: u32,
        /// First byte that is missing.
        offset: u64,
    },
    /// The operating system asks the master to end: extend every lease. Once.
    Shutdown,
    /// [`super::Core::next_wakeup`] has come.
    Tick,
    /// [`Effect::ListForAudit`] came to an end. Late.
    ListedForAudit {
        /// Whose audit.
        request: RequestId,
        /// Which of its rounds asked for it.
        round: u32,
        /// Whose list.
        provider: ProviderKind,
        /// The machines that have our name: all of them, or an error.
        result: Result<Vec<ListedHost>, PartialList>,
    },
    /// [`Effect::SendMail`] came to an end. Once; never for what an earlier master was sending, which is sent again.
    MailSent {
        /// Which mail.
        mail: MailId,
        /// What the relay made of it.
        handed: DeliveryResult,
    },
}

/// What users and operators can ask for. What only asks a question never reaches the core: the driver answers it.
#[derive(Clone, PartialEq, Debug)]
pub enum Command {
    /// Accept a build. Answered by [`Reply::Accepted`] once it is committed.
    Submit {
        /// The build.
        spec: Arc<BuildSpec>,
        /// What the submitter calls it, and the build that the ledger already has under that name.
        message_id: Option<(String, Option<BuildId>)>,
    },
    /// Cancel a build.
    CancelBuild(BuildId),
    /// Do something to a worker.
    Operate {
        /// Its name.
        worker: WorkerName,
        /// What to do.
        operation: Operation,
    },
    /// Terminate a host now. What runs on it is tried again elsewhere without using up a retry; its worker stays in use.
    TerminateHost(HostId),
    /// Compare the ledger with what each provider lists. Answered by [`Reply::Audit`].
    Audit(AuditMode),
}

/// What an operator may want of a worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// No new builds.
    Pause,
    /// Work again; lifts backoff and quarantine too.
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

/// A machine that a provider has made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Started {
    /// What the provider calls it.
    pub handle: String,
    /// What its agent will give as its host identity, if the provider knows it already.
    pub identity: Option<String>,
}

/// Why a provider did not start a host. Told apart by kind, never by text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StartError {
    /// The provider has no capacity now: not the image's fault.
    Capacity(String),
    /// It will not be made like this: wrong image, wrong type, no such thing.
    Rejected(String),
    /// Our credentials are rejected.
    Auth(String),
    /// Nothing was made; the same call may succeed later.
    Transient(String),
    /// It may or may not have been made: the same start is repeated, word for word.
    Unknown(String),
}

impl StartError {
    /// The words.
    pub fn text(&self) -> &str {
        match self {
            Self::Capacity(t) | Self::Rejected(t) | Self::Auth(t) | Self::Transient(t) | Self::Unknown(t) => t,
        }
    }
}

/// How the termination of a host stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Termination {
    /// The provider has heard; the machine may still be there.
    Requested,
    /// The machine is gone, or there is none under this name.
    Gone,
}

/// How the suspension of a host stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Suspension {
    /// The provider has heard; the machine may still run.
    Requested,
    /// It does not run, and can be resumed.
    Suspended,
    /// It cannot be suspended, or is gone; why.
    Unable(String),
}

/// A machine that has our name, as its provider lists it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListedHost {
    /// The host id that it is stamped with.
    pub host: HostId,
    /// What the provider calls it.
    pub handle: String,
    /// What its agent will give as its host identity, if that follows from the handle.
    pub identity: Option<String>,
    /// Whose it is.
    pub owner: Owner,
    /// Whether it is suspended: it exists and does not run.
    pub suspended: bool,
}

/// Why a provider's list is not whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartialList {
    /// Who could not be asked, in a sentence.
    pub why: String,
    /// What the others have: these are there, and of what is not among them nothing is known.
    pub heard: Vec<ListedHost>,
}

impl From<String> for PartialList {
    fn from(why: String) -> Self {
        Self { why, heard: Vec::new() }
    }
}

/// Whose a machine with our name is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Owner {
    /// It has our name and our id.
    Ours,
    /// It has our name and this other id: another master's, or ours from before the state directory was lost.
    Foreign(String),
}

/// Something to be done, after all records of the batch are committed. In the order of the list.
#[derive(Clone, PartialEq, Debug)]
#[expect(clippy::large_enum_variant, reason = "most effects are records; boxing each would cost more than moving it")]
pub enum Effect {
    /// Keep this; committed before anything else of the batch is done.
    Save(Record),
    /// Put a message into an agent's queue. May be lost: what matters is said again at the next heartbeat or hello.
    Send {
        /// The queue of the agent's newest connection.
        queue: String,
        /// The message.
        message: ToAgent,
    },
    /// Answer a request.
    Reply {
        /// The request.
        request: RequestId,
        /// The answer.
        reply: Reply,
    },
    /// Work out what to order: resolve the image, choose an alternative. Makes nothing. Answered by
    /// [`Event::Prepared`].
    PrepareHost {
        /// The host.
        host: Box<Host>,
        /// Which alternative, from 0.
        number: u32,
    },
    /// Make the machine of the host's order, word for word; idempotent by the host's id. Answered by
    /// [`Event::StartEnded`].
    StartHost(Box<Host>),
    /// Terminate the machine; repeatable. Answered by [`Event::TerminateEnded`].
    TerminateHost(Box<Host>),
    /// Suspend the machine; repeatable. Answered by [`Event::SuspendEnded`].
    SuspendHost(Box<Host>),
    /// Resume the machine, with boot data that hold the host's new token; repeatable. Answered by
    /// [`Event::ResumeEnded`].
    ResumeHost(Box<Host>),
    /// Terminate a machine that has our name and that the ledger does not know; a foreign one only if a user said to
    /// adopt.
    TerminateOrphan {
        /// The provider that listed it.
        provider: ProviderKind,
        /// The machine.
        listed: ListedHost,
    },
    /// Fetch what the machine printed, before it is terminated. Answered by [`Event::Console`].
    FetchConsole(Box<Host>),
    /// List the machines that have our name. Answered by [`Event::Listed`].
    ListHosts(ProviderKind),
    /// Take log chunks of this attempt from this worker.
    OpenLogs {
        /// The attempt.
        attempt: AttemptId,
        /// Who may send them.
        worker: WorkerName,
    },
    /// The attempt's logs should have these lengths, a step each. Answered by [`Event::LogsWhole`] or
    /// [`Event::LogGap`].
    CheckLogs {
        /// The attempt.
        attempt: AttemptId,
        /// Bytes of each step's log.
        lengths: Vec<u64>,
        /// Whether to report at once what is missing. At first it may only be on its way.
        overdue: bool,
    },
    /// Take no more chunks of this attempt; its logs stay.
    CloseLogs {
        /// The attempt.
        attempt: AttemptId,
    },
    /// Publish to everyone that listens.
    Publish(Change),
    /// Write to the master's own log.
    Log(Level, String),
    /// Write to the master's own log that an agent was refused at its hello: once a minute for the same one and reason,
    /// since it asks again.
    LogRefused {
        /// Who it says it is.
        worker: WorkerName,
        /// The machine that it says it is on.
        identity: String,
        /// Why it was refused, in a sentence.
        reason: String,
    },
    /// List the machines that have our name, for an audit. Answered by [`Event::ListedForAudit`].
    ListForAudit {
        /// Whose audit.
        request: RequestId,
        /// Which of its rounds.
        round: u32,
        /// Whose list.
        provider: ProviderKind,
    },
    /// Hand a mail to the relay, for those who still wait for it; may be repeated, with the same message id. Answered
    /// by [`Event::MailSent`].
    SendMail(Box<Mail>),
}

/// How loud a note is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// As it should be.
    Info,
    /// Somebody should look.
    Warn,
}

/// The answer to a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    /// The build is accepted (committed), or was before under the same message id.
    Accepted(BuildId),
    /// It is done.
    Done,
    /// There is no such build or worker.
    NotFound(String),
    /// It cannot be done, and why; with the field that is wrong, if there is one.
    Refused {
        /// Such as `worker`.
        field: Option<String>,
        /// A sentence.
        reason: String,
    },
    /// It cannot be done now, through no fault of the asker's, and why. Given by the driver.
    Unavailable(String),
    /// What an audit has found.
    Audit(Box<AuditReport>),
}

/// What has changed, for the page, the event streams and the exchange `rouse.events`.
#[derive(Clone, PartialEq, Debug)]
pub enum Change {
    /// A build's state.
    Build {
        /// The build.
        id: BuildId,
        /// Its state now.
        state: BuildState,
        /// Who runs it.
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
        /// The worker that it is for.
        worker: WorkerName,
        /// Its state now.
        state: HostState,
        /// Why, if it is being terminated or has ended.
        why: Option<String>,
        /// When it changed.
        at: Timestamp,
    },
}
