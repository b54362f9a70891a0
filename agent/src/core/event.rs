//! What the agent's core is told, and what it asks for: two closed enums, each variant documented by its cause.

use rouse_shared::message::{CloudNotice, StepState, ToAgent, ToMaster};
use rouse_shared::{AttemptId, Timestamp};
use std::collections::BTreeMap;
use std::time::Duration;

/// Something that happened.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// The agent knows who it is and nothing of an earlier life runs. The first event, once.
    Start,
    /// [`Effect::Connect`] came through: the queue is declared and consumed. At most once a connection; late if the
    /// core has given that connection up meanwhile, and then ignored.
    LinkUp {
        /// The connection.
        connection: u64,
    },
    /// [`Effect::Connect`] failed, or the link broke later. Late or twice: ignored, by its number.
    LinkDown {
        /// The connection.
        connection: u64,
        /// Whether the broker refused the credential (or could not ask the master about it: the two look alike).
        refused: bool,
        /// What happened, in words.
        why: String,
    },
    /// A message of the master's, from the queue of this connection. May come late, twice or out of order.
    FromMaster {
        /// The connection.
        connection: u64,
        /// What it says.
        message: Box<ToAgent>,
    },
    /// [`Effect::RunStep`]: the directory for the attempt could not be made. Instead of any other event of that step.
    PrepareFailed {
        /// The attempt.
        attempt: AttemptId,
        /// What happened, in words.
        why: String,
    },
    /// [`Effect::RunStep`]: the command was executed. At most once a step.
    StepStarted {
        /// The attempt.
        attempt: AttemptId,
        /// The step, from 0.
        step: u32,
    },
    /// [`Effect::RunStep`] has come to its end: by itself, or by [`Effect::StopAttempt`], [`Effect::KillAttempt`] or the
    /// deadline. Exactly once a step that was asked for, unless [`Event::PrepareFailed`] came; nothing of it runs then.
    StepEnded {
        /// The attempt.
        attempt: AttemptId,
        /// The step, from 0.
        step: u32,
        /// How it ended.
        state: StepState,
        /// Bytes of its log in the spool.
        log_length: u64,
        /// Bytes that were thrown away past the limit.
        log_cut: u64,
        /// How long it ran.
        took: Duration,
    },
    /// [`Effect::SendLogFrom`]: the broker has every byte of the step's log before `offset`. Often; may come late.
    LogSent {
        /// The attempt.
        attempt: AttemptId,
        /// The step, from 0.
        step: u32,
        /// Bytes from the beginning.
        offset: u64,
    },
    /// The cloud has told the machine about its end. May come again, and a rebalance after an interruption.
    Notice(CloudNotice),
    /// The machine has slept for so long, its memory kept, since it was told so last: [`super::Core::handle`]'s clock went
    /// on meanwhile. It comes before all that happened since.
    Resumed(Duration),
    /// The machine has another address or route than before, or so it may be. Often; too often does no harm.
    NetworkChanged,
    /// The moment of [`super::Core::next_wakeup`] has come. Too early or too often does no harm.
    Tick,
    /// SIGTERM. The second one ends builds at once, the third the agent.
    Terminate,
}

/// Something to be done, in the order given.
#[derive(Clone, PartialEq, Debug)]
pub enum Effect {
    /// Connect, declare the exclusive queue and consume from it. Answered by [`Event::LinkUp`] or [`Event::LinkDown`].
    Connect {
        /// Which connection of this life, from 1.
        connection: u64,
        /// The queue's name.
        queue: String,
        /// The password.
        credential: String,
    },
    /// Close that connection, after what was sent on it. Its later events are ignored.
    Disconnect {
        /// The connection.
        connection: u64,
    },
    /// Publish to the master on the connection that is up. The driver fills in a heartbeat's vitals. May be lost: what
    /// matters is said again.
    Send(Box<ToMaster>),
    /// Run one step, making the attempt's fresh directory first where this is the attempt's first.
    RunStep(Box<RunStep>),
    /// End what the attempt runs: TERM, then KILL. [`Event::StepEnded`] follows, unless it is under way already.
    StopAttempt(AttemptId),
    /// Kill what the attempt runs, now. [`Event::StepEnded`] follows, unless it is under way already.
    KillAttempt(AttemptId),
    /// Until when steps may run without a word from the core: their supervisors kill them then, by themselves.
    SetDeadline(Option<Timestamp>),
    /// Keep the session secret for a restart of the agent, for root only.
    StoreSecret(String),
    /// The kept session secret is of no use any more.
    ForgetSecret,
    /// Remove the attempt's directory and spool, and send nothing more of its logs. Nothing of it runs.
    RemoveAttempt(AttemptId),
    /// Send the step's log from there on, what is still to be printed included. Replaces an earlier one for the step.
    /// Stops by itself when the connection ends. [`Event::LogSent`] follows.
    SendLogFrom {
        /// The attempt.
        attempt: AttemptId,
        /// The step, from 0.
        step: u32,
        /// First byte to send.
        offset: u64,
    },
    /// Switch the machine off, or end the agent where there is nothing to switch off. No event follows.
    PowerOff {
        /// Why, in words.
        why: String,
    },
    /// End the agent's process with success. No event follows.
    Exit {
        /// Why, in words.
        why: String,
    },
    /// Begin anew, as after a boot. No event follows.
    Restart {
        /// Why, in words.
        why: String,
    },
    /// Say something in the agent's own log.
    Log(Level, String),
}

/// One step to run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunStep {
    /// The attempt.
    pub attempt: AttemptId,
    /// The step, from 0.
    pub step: u32,
    /// The program and its arguments, at least one.
    pub run: Vec<String>,
    /// Where, below the attempt's directory. Not yet checked: it comes from the user.
    pub workdir: String,
    /// The build's and the step's environment.
    pub env: BTreeMap<String, String>,
    /// The user to run as, where it is not the agent's own.
    pub run_as: Option<String>,
    /// Longest run.
    pub timeout: Option<Duration>,
    /// Longest time without output.
    pub silence: Option<Duration>,
}

/// How much a line of the agent's log matters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// The normal course.
    Info,
    /// Something is not as it should be; the agent goes on.
    Warn,
    /// Something is lost or needs a person.
    Error,
}
