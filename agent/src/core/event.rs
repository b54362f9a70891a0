//! The input and output of the agent's core: two closed enums. The comment of each variant says what causes it.

use rouse_shared::message::{CloudNotice, Limits, StepState, ToAgent, ToMaster, Usage};
use rouse_shared::{AttemptId, SessionId, Timestamp};
use std::collections::BTreeMap;
use std::time::Duration;

/// Something that happened.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// The agent has its identity, and nothing of an earlier agent runs. The first event; exactly once.
    Start,
    /// [`Effect::Connect`] succeeded: the queue is declared and consumed. At most once for each connection; ignored if
    /// the core has given up that connection meanwhile.
    LinkUp {
        /// Number from [`Effect::Connect`].
        connection: u64,
    },
    /// [`Effect::Connect`] failed, or the link has ended. May be late or repeated, which its number shows.
    LinkDown {
        /// Number from [`Effect::Connect`].
        connection: u64,
        /// Whether the broker refused the credential (or could not ask the master about it, which looks the same).
        refused: bool,
        /// The reason, for people.
        why: String,
    },
    /// The broker accepts no messages on this connection, because it has too little memory or disk. What is sent waits.
    /// May be repeated.
    LinkBlocked {
        /// Number from [`Effect::Connect`].
        connection: u64,
        /// The reason, as the broker gives it.
        why: String,
    },
    /// The broker accepts messages on this connection again. May be late.
    LinkUnblocked {
        /// Number from [`Effect::Connect`].
        connection: u64,
    },
    /// A message from the master, from the queue of this connection. May be late, repeated or out of order.
    FromMaster {
        /// Number from [`Effect::Connect`].
        connection: u64,
        /// The message.
        message: Box<ToAgent>,
    },
    /// [`Effect::RunStep`] failed: the attempt's directory cannot be created, or its user does not exist. Replaces
    /// every other event of that step.
    PrepareFailed {
        /// The attempt that cannot run.
        attempt: AttemptId,
        /// The reason, for people.
        why: String,
    },
    /// [`Effect::RunStep`]: the command was executed. At most once for each step.
    StepStarted {
        /// The attempt that the step belongs to.
        attempt: AttemptId,
        /// Number of the step, from 0.
        step: u32,
    },
    /// The step of [`Effect::RunStep`] has ended by itself, or because of [`Effect::StopAttempt`],
    /// [`Effect::KillAttempt`] or the deadline, and no process of it runs, unless the machine is `unclean`. Exactly once
    /// for each [`Effect::RunStep`], unless [`Event::PrepareFailed`] replaces it.
    StepEnded {
        /// The attempt that the step belongs to.
        attempt: AttemptId,
        /// Number of the step, from 0.
        step: u32,
        /// How the step ended.
        state: StepState,
        /// Bytes of its log in the spool.
        log_length: u64,
        /// Bytes that were discarded beyond the maximum log size.
        log_cut: u64,
        /// How long the step ran.
        took: Duration,
        /// What it has used, if steps have cgroups.
        usage: Option<Usage>,
        /// Processes of it still run and cannot be ended. Then the state is [`StepState::Lost`], and says so.
        unclean: bool,
    },
    /// [`Effect::SendLogFrom`]: the broker has every byte of the step's log before `offset`. Frequent; may be late.
    LogSent {
        /// The attempt that the step belongs to.
        attempt: AttemptId,
        /// Number of the step, from 0.
        step: u32,
        /// Bytes from the start of the log.
        offset: u64,
    },
    /// The cloud has announced the end of the machine. May be repeated, and a rebalance may follow an interruption.
    Notice(CloudNotice),
    /// The machine was suspended with its memory kept, for this long since the last such event. `now` includes that
    /// time. Comes before everything that happened after the machine was resumed.
    Resumed(Duration),
    /// An address or a route of the machine may have changed. Frequent; superfluous ones do no harm.
    NetworkChanged,
    /// The time of [`super::Core::next_wakeup`] has come. Early or superfluous ones do no harm.
    Tick,
    /// SIGTERM. The second kills all builds, and the third ends the agent at once.
    Terminate,
}

/// Something to do, in the order of the list.
#[derive(Clone, PartialEq, Debug)]
pub enum Effect {
    /// Connect, declare the exclusive queue and consume from it. Answered by [`Event::LinkUp`] or [`Event::LinkDown`].
    Connect {
        /// Counts the connections of this run of the agent from 1.
        connection: u64,
        /// Name of the queue.
        queue: String,
        /// The worker's password, the boot token or the session secret.
        credential: String,
    },
    /// Close the connection once everything has been sent. Its later events are ignored.
    Disconnect {
        /// Number from [`Effect::Connect`].
        connection: u64,
    },
    /// Publish to the master on the connection that is up. The driver fills in a heartbeat's vitals. May be lost; what
    /// matters is sent again.
    Send(Box<ToMaster>),
    /// Run a step. The attempt's fresh directory is created before its first step.
    RunStep(Box<RunStep>),
    /// Stop the attempt's step: SIGTERM, then SIGKILL. [`Event::StepEnded`] follows, unless it is already under way.
    StopAttempt(AttemptId),
    /// Kill the attempt's step now. [`Event::StepEnded`] follows, unless it is already under way.
    KillAttempt(AttemptId),
    /// Set the time at which supervisors kill their steps by themselves, unless it is moved before that.
    SetDeadline(Option<Timestamp>),
    /// Keep the session secret for a restart of the agent, readable for root only.
    StoreSecret(String),
    /// Remove the kept session secret, which is no longer valid.
    ForgetSecret,
    /// Remove the attempt's directory and spool, and send no more of its logs. No process of it runs.
    RemoveAttempt(AttemptId),
    /// Send the step's log from `offset` on, including what it has yet to print. Replaces an earlier request for the
    /// step. Ends with the connection. [`Event::LogSent`] follows.
    SendLogFrom {
        /// The attempt that the step belongs to.
        attempt: AttemptId,
        /// Number of the step, from 0.
        step: u32,
        /// First byte to send.
        offset: u64,
    },
    /// Power the machine off, or exit if no command is configured for that. No event follows.
    PowerOff {
        /// The reason, for people.
        why: String,
    },
    /// Exit with success. No event follows.
    Exit {
        /// The reason, for people.
        why: String,
    },
    /// Execute the program again. It starts as it does after a boot. No event follows.
    Restart {
        /// The reason, for people.
        why: String,
    },
    /// Write a line to the agent's own log.
    Log(Level, String),
}

/// One step to run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunStep {
    /// The session that has requested it.
    pub session: SessionId,
    /// The attempt that the step belongs to.
    pub attempt: AttemptId,
    /// Number of the step, from 0.
    pub step: u32,
    /// The program and its arguments; not empty.
    pub run: Vec<String>,
    /// Work directory, relative to the build's own; as the user wrote it, not yet checked.
    pub workdir: String,
    /// Variables of the build and of the step.
    pub env: BTreeMap<String, String>,
    /// The user to run as; if absent, the agent's own.
    pub run_as: Option<String>,
    /// Longest run.
    pub timeout: Option<Duration>,
    /// Longest time without output.
    pub silence: Option<Duration>,
    /// What it may use; not enforced if steps have no cgroups.
    pub limits: Limits,
}

/// Level of a line of the agent's log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// Normal operation.
    Info,
    /// Something is wrong, and the agent handles it.
    Warn,
    /// Something is lost, or needs a person.
    Error,
}
