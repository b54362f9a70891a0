//! The phases of a host, and the transition function from each to the next. Normal operation, recovery after a restart
//! and the audit all use it.

use crate::core::record::{Host, HostState};

/// The phase of a host, with what is needed only in that phase. The ledger keeps [`HostState`], which follows from it.
///
/// `call` is true until the call that starts or resumes the machine is answered. An agent may attach before that
/// answer, and a machine is terminated only after it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::core) enum Phase {
    /// The provider computes the launch spec for this alternative, from 0. Nothing is created.
    Preparing { number: u32 },
    /// The launch spec is committed, and the machine may exist.
    Launching {
        call: bool,
        /// Number of calls that may have created the machine.
        tries: u32,
        /// Why the result of the last call is unknown.
        trouble: Option<String>,
    },
    /// The machine exists, and its agent has not attached.
    Booting { call: bool },
    /// Its agent has attached.
    Ready { call: bool },
    /// Its agent was asked to accept no new attempts and to report when nothing runs.
    Draining { call: bool },
    /// The machine is being suspended.
    Suspending {
        /// Whether the call that suspends it has not been answered yet. There is one such call at a time: a late one
        /// must not suspend the machine again after it was resumed.
        call: bool,
        /// Number of calls.
        tries: u32,
    },
    /// The machine exists and does not run. The ledger's row has the time since when, from which costs are calculated.
    Suspended,
    /// The machine is being resumed.
    Resuming {
        call: bool,
        /// Number of calls that failed.
        tries: u32,
        /// Why the last call failed.
        trouble: Option<String>,
    },
    /// The machine is being terminated. The call is repeated until the provider reports that the machine is gone.
    Terminating {
        call: bool,
        /// Number of calls.
        tries: u32,
        /// Whether it never attached, and its console output is fetched before it is terminated: once no call is
        /// unanswered, since a machine may have no name before.
        console: bool,
    },
    /// The provider has reported that the machine is gone, or it was never created.
    Terminated,
}

/// The events of a host. Answers of providers may be late or repeated, as [`crate::core::event::Event`] says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::core) enum HostEvent {
    /// The launch spec for this alternative is committed.
    Prepared { number: u32 },
    /// No machine is started: there is no launch spec, or its image must first be proven to work.
    NotPrepared,
    /// The call of the phase is being made: to start, resume, suspend or terminate the machine.
    Called,
    /// A call to start the machine was answered.
    StartEnded(StartOutcome),
    /// The call to resume the machine succeeded.
    Resumed,
    /// The call to resume the machine failed; why.
    ResumeFailed { why: String },
    /// Its agent has attached.
    Attached,
    /// The agent that has attached turned out to be on another machine.
    Disowned,
    /// A request to drain it: it gets no more builds.
    Drain,
    /// It is to be suspended: it has been drained, or it runs although it should be suspended.
    Suspend,
    /// The call to suspend the machine was answered; whether the machine is known to be suspended.
    SuspendEnded { suspended: bool },
    /// A request to resume it.
    Resume,
    /// A request to terminate it.
    Terminate,
    /// Its agent has not attached in time.
    GiveUp,
    /// Its console output has arrived, or the master no longer waits for it.
    Console,
    /// A call to terminate the machine was answered; whether the machine is known to be gone.
    TerminateEnded { gone: bool },
    /// Its provider has proof that the machine is gone.
    Gone,
    /// An operator has given it up, and whatever ran on it has ended by now.
    Forgotten,
}

/// The results of a call to start a machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::core) enum StartOutcome {
    /// The machine exists.
    Made,
    /// The machine may exist; why this is unknown.
    Unclear { why: String },
    /// There was no capacity. The next alternative has this number.
    NoCapacity { next: u32 },
    /// The machine does not exist, and will not be created.
    NotMade,
}

/// The event cannot happen in this phase, so the core or an adapter has a bug.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::core) struct IllegalEvent;

/// The next phase. The function is total: for each pair there is a transition, no effect for the reason in the comment,
/// or an error.
pub(super) fn next(phase: &Phase, event: &HostEvent) -> Result<Phase, IllegalEvent> {
    use Phase::{
        Booting, Draining, Launching, Preparing, Ready, Resuming, Suspended, Suspending, Terminated, Terminating,
    };
    let unchanged = || Ok(phase.clone());
    match event {
        HostEvent::Prepared { number } => match phase {
            Preparing { number: asked } if asked == number => Ok(Launching { call: false, tries: 0, trouble: None }),
            // Repeated or late: another alternative has been requested since, or the host has gone on without it.
            Preparing { .. } | Launching { .. } | Booting { .. } | Ready { .. } | Draining { .. } => unchanged(),
            Suspending { .. } | Suspended | Resuming { .. } | Terminating { .. } | Terminated => unchanged(),
        },
        HostEvent::NotPrepared => match phase {
            Preparing { .. } => Ok(Terminated),
            Launching { .. } | Booting { .. } | Ready { .. } | Draining { .. } => Err(IllegalEvent),
            Suspending { .. } | Suspended | Resuming { .. } | Terminating { .. } | Terminated => Err(IllegalEvent),
        },
        HostEvent::Called => match phase {
            Launching { call: false, tries, trouble } => {
                Ok(Launching { call: true, tries: *tries, trouble: trouble.clone() })
            }
            Resuming { call: false, tries, trouble } => {
                Ok(Resuming { call: true, tries: *tries, trouble: trouble.clone() })
            }
            Suspending { call: false, tries } => Ok(Suspending { call: true, tries: tries + 1 }),
            // Termination is repeated without waiting for an answer, except for the answer to a call that may create
            // the machine.
            Terminating { call: false, tries, console: false } => {
                Ok(Terminating { call: false, tries: tries + 1, console: false })
            }
            Launching { call: true, .. } | Resuming { call: true, .. } => Err(IllegalEvent),
            Suspending { call: true, .. } | Terminating { .. } => Err(IllegalEvent),
            Preparing { .. } | Booting { .. } | Ready { .. } | Draining { .. } | Suspended | Terminated => {
                Err(IllegalEvent)
            }
        },
        HostEvent::StartEnded(outcome) => match (phase, outcome) {
            // The machine exists although its provider had reported no capacity. No other is needed.
            (Preparing { .. } | Launching { .. }, StartOutcome::Made) => Ok(Booting { call: false }),
            (Launching { tries, .. }, StartOutcome::Unclear { why }) => {
                Ok(Launching { call: false, tries: tries + 1, trouble: Some(why.clone()) })
            }
            (Launching { .. }, StartOutcome::NoCapacity { next }) => Ok(Preparing { number: *next }),
            (Launching { .. }, StartOutcome::NotMade) => Ok(Terminated),
            // Repeated: it is about the previous alternative.
            (
                Preparing { .. },
                StartOutcome::Unclear { .. } | StartOutcome::NoCapacity { .. } | StartOutcome::NotMade,
            ) => unchanged(),
            // The agent attached before the answer, or the start was repeated. The machine exists, whatever the answer
            // is.
            (Booting { .. }, _) => Ok(Booting { call: false }),
            (Ready { .. }, _) => Ok(Ready { call: false }),
            (Draining { .. }, _) => Ok(Draining { call: false }),
            (Terminating { tries, console, .. }, _) => {
                Ok(Terminating { call: false, tries: *tries, console: *console })
            }
            // Repeated, or late.
            (Suspending { .. } | Suspended | Resuming { .. } | Terminated, _) => unchanged(),
        },
        HostEvent::Resumed => match phase {
            Resuming { .. } | Booting { .. } => Ok(Booting { call: false }),
            // The agent attached before the answer.
            Ready { .. } => Ok(Ready { call: false }),
            Draining { .. } => Ok(Draining { call: false }),
            Terminating { tries, console, .. } => Ok(Terminating { call: false, tries: *tries, console: *console }),
            // Late.
            Terminated => unchanged(),
            Preparing { .. } | Launching { .. } | Suspending { .. } | Suspended => Err(IllegalEvent),
        },
        HostEvent::ResumeFailed { why } => match phase {
            Resuming { tries, .. } => Ok(Resuming { call: false, tries: tries + 1, trouble: Some(why.clone()) }),
            // The agent attached before the answer. The machine was resumed, whatever the answer is.
            Booting { .. } => Ok(Booting { call: false }),
            Ready { .. } => Ok(Ready { call: false }),
            Draining { .. } => Ok(Draining { call: false }),
            Terminating { tries, console, .. } => Ok(Terminating { call: false, tries: *tries, console: *console }),
            // Late.
            Terminated => unchanged(),
            Preparing { .. } | Launching { .. } | Suspending { .. } | Suspended => Err(IllegalEvent),
        },
        HostEvent::Attached => match phase {
            // As in `StartEnded`: the machine exists although there was no capacity.
            Preparing { .. } => Ok(Ready { call: false }),
            Launching { call, .. } | Booting { call } | Resuming { call, .. } => Ok(Ready { call: *call }),
            // The agent has started again.
            Ready { .. } | Draining { .. } | Terminating { .. } => unchanged(),
            // No agent is accepted in these phases.
            Suspending { .. } | Suspended | Terminated => Err(IllegalEvent),
        },
        HostEvent::Disowned => match phase {
            Ready { call } => Ok(Booting { call: *call }),
            Preparing { .. } | Launching { .. } | Booting { .. } | Draining { .. } => Err(IllegalEvent),
            Suspending { .. } | Suspended | Resuming { .. } | Terminating { .. } | Terminated => Err(IllegalEvent),
        },
        HostEvent::Drain => match phase {
            Ready { call } => Ok(Draining { call: *call }),
            // It already gets no more builds.
            Draining { .. } | Terminating { .. } => unchanged(),
            Preparing { .. } | Launching { .. } | Booting { .. } | Resuming { .. } => Err(IllegalEvent),
            Suspending { .. } | Suspended | Terminated => Err(IllegalEvent),
        },
        HostEvent::Suspend => match phase {
            Draining { call: false } | Suspended => Ok(Suspending { call: false, tries: 0 }),
            Draining { call: true } => Err(IllegalEvent),
            Preparing { .. } | Launching { .. } | Booting { .. } | Ready { .. } => Err(IllegalEvent),
            Suspending { .. } | Resuming { .. } | Terminating { .. } | Terminated => Err(IllegalEvent),
        },
        HostEvent::SuspendEnded { suspended } => match phase {
            Suspending { call: true, .. } if *suspended => Ok(Suspended),
            Suspending { call: true, tries } => Ok(Suspending { call: false, tries: *tries }),
            // Late: suspending took too long, or the machine is gone.
            Terminating { .. } | Terminated => unchanged(),
            // There is one such call at a time, and it is answered once.
            Suspending { call: false, .. } | Suspended | Resuming { .. } => Err(IllegalEvent),
            Preparing { .. } | Launching { .. } | Booting { .. } | Ready { .. } | Draining { .. } => Err(IllegalEvent),
        },
        HostEvent::Resume => match phase {
            Suspended => Ok(Resuming { call: false, tries: 0, trouble: None }),
            Preparing { .. } | Launching { .. } | Booting { .. } | Ready { .. } | Draining { .. } => Err(IllegalEvent),
            Suspending { .. } | Resuming { .. } | Terminating { .. } | Terminated => Err(IllegalEvent),
        },
        HostEvent::Terminate => match phase {
            Preparing { .. } | Suspending { .. } | Suspended => {
                Ok(Terminating { call: false, tries: 0, console: false })
            }
            Launching { call, .. } | Booting { call } | Ready { call } | Draining { call } | Resuming { call, .. } => {
                Ok(Terminating { call: *call, tries: 0, console: false })
            }
            // It is already being terminated, for an earlier reason.
            Terminating { .. } => unchanged(),
            Terminated => Err(IllegalEvent),
        },
        HostEvent::GiveUp => match phase {
            Preparing { .. } => Ok(Terminating { call: false, tries: 0, console: true }),
            Launching { call, .. } | Booting { call } | Resuming { call, .. } => {
                Ok(Terminating { call: *call, tries: 0, console: true })
            }
            Ready { .. } | Draining { .. } | Suspending { .. } | Suspended => Err(IllegalEvent),
            Terminating { .. } | Terminated => Err(IllegalEvent),
        },
        HostEvent::Console => match phase {
            Terminating { call, tries, .. } => Ok(Terminating { call: *call, tries: *tries, console: false }),
            // Late: the machine was gone before the answer.
            Terminated => unchanged(),
            Preparing { .. } | Launching { .. } | Booting { .. } | Ready { .. } | Draining { .. } => Err(IllegalEvent),
            Suspending { .. } | Suspended | Resuming { .. } => Err(IllegalEvent),
        },
        HostEvent::TerminateEnded { gone } => match phase {
            Terminating { call: false, .. } if *gone => Ok(Terminated),
            // The machine still exists, or a call that may create it has not been answered yet.
            Terminating { .. } => unchanged(),
            // Repeated.
            Terminated => unchanged(),
            Preparing { .. } | Launching { .. } | Booting { .. } | Ready { .. } | Draining { .. } => Err(IllegalEvent),
            Suspending { .. } | Suspended | Resuming { .. } => Err(IllegalEvent),
        },
        HostEvent::Forgotten => match phase {
            Terminating { .. } => Ok(Terminated),
            // It went first.
            Terminated => unchanged(),
            Preparing { .. } | Launching { .. } | Booting { .. } | Ready { .. } | Draining { .. } => Err(IllegalEvent),
            Suspending { .. } | Suspended | Resuming { .. } => Err(IllegalEvent),
        },
        HostEvent::Gone => match phase {
            // The machine ended before its agent attached. Its console output may still be available.
            Preparing { .. } => Ok(Terminating { call: false, tries: 0, console: true }),
            Launching { call, .. } | Booting { call } | Resuming { call, .. } => {
                Ok(Terminating { call: *call, tries: 0, console: true })
            }
            Ready { .. } | Draining { .. } | Suspending { .. } | Suspended | Terminating { .. } => Ok(Terminated),
            // Repeated.
            Terminated => unchanged(),
        },
    }
}

impl Phase {
    /// The phase of a host in the ledger before the master continues: this master has no call under way.
    pub(in crate::core) fn restored(host: &Host) -> Self {
        match host.state {
            HostState::Ordered if host.launch.is_none() => Self::Preparing { number: 0 },
            // The previous master may have made the call.
            HostState::Ordered => Self::Launching { call: false, tries: 1, trouble: None },
            HostState::Booting => Self::Booting { call: false },
            HostState::Ready => Self::Ready { call: false },
            HostState::Draining => Self::Draining { call: false },
            HostState::Suspending => Self::Suspending { call: false, tries: 0 },
            HostState::Suspended => Self::Suspended,
            HostState::Resuming => Self::Resuming { call: false, tries: 0, trouble: None },
            HostState::Terminating => Self::Terminating { call: false, tries: 0, console: false },
            HostState::Terminated => Self::Terminated,
        }
    }

    /// Whether a call is under way that may start or resume the machine.
    pub(in crate::core) fn may_be_started(&self) -> bool {
        match self {
            Self::Launching { call, .. } | Self::Booting { call } | Self::Ready { call } | Self::Draining { call } => {
                *call
            }
            Self::Resuming { call, .. } => *call,
            // The call of the phase before.
            Self::Terminating { call, tries, .. } => *call && *tries == 0,
            Self::Preparing { .. } | Self::Suspending { .. } | Self::Suspended | Self::Terminated => false,
        }
    }

    /// The state for the ledger and for people.
    pub(in crate::core) fn state(&self) -> HostState {
        match self {
            Self::Preparing { .. } | Self::Launching { .. } => HostState::Ordered,
            Self::Booting { .. } => HostState::Booting,
            Self::Ready { .. } => HostState::Ready,
            Self::Draining { .. } => HostState::Draining,
            Self::Suspending { .. } => HostState::Suspending,
            Self::Suspended => HostState::Suspended,
            Self::Resuming { .. } => HostState::Resuming,
            Self::Terminating { .. } => HostState::Terminating,
            Self::Terminated => HostState::Terminated,
        }
    }

    /// Whether a call that starts or resumes the machine has not been answered yet.
    pub(in crate::core) fn may_be_starting(&self) -> bool {
        match self {
            Self::Launching { call, .. }
            | Self::Booting { call }
            | Self::Ready { call }
            | Self::Draining { call }
            | Self::Resuming { call, .. }
            | Self::Terminating { call, .. } => *call,
            Self::Preparing { .. } | Self::Suspending { .. } | Self::Suspended | Self::Terminated => false,
        }
    }

    /// Why it has not been started or resumed yet.
    pub(in crate::core) fn trouble(&self) -> Option<&str> {
        match self {
            Self::Launching { trouble, .. } | Self::Resuming { trouble, .. } => trouble.as_deref(),
            Self::Preparing { .. }
            | Self::Booting { .. }
            | Self::Ready { .. }
            | Self::Draining { .. }
            | Self::Suspending { .. }
            | Self::Suspended
            | Self::Terminating { .. }
            | Self::Terminated => None,
        }
    }
}

impl HostEvent {
    /// Its name in the log and in ARCHITECTURE.md.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Prepared { .. } => "prepared",
            Self::NotPrepared => "not prepared",
            Self::Called => "called",
            Self::StartEnded(StartOutcome::Made) => "made",
            Self::StartEnded(StartOutcome::Unclear { .. }) => "start unclear",
            Self::StartEnded(StartOutcome::NoCapacity { .. }) => "no capacity",
            Self::StartEnded(StartOutcome::NotMade) => "not made",
            Self::Resumed => "resumed",
            Self::ResumeFailed { .. } => "resume failed",
            Self::Attached => "attached",
            Self::Disowned => "disowned",
            Self::Drain => "drain",
            Self::Suspend => "suspend",
            Self::SuspendEnded { suspended: true } => "suspended",
            Self::SuspendEnded { suspended: false } => "not suspended yet",
            Self::Resume => "resume",
            Self::Terminate => "terminate",
            Self::GiveUp => "give up",
            Self::Console => "console",
            Self::TerminateEnded { gone: true } => "terminated",
            Self::TerminateEnded { gone: false } => "not terminated yet",
            Self::Gone => "gone",
            Self::Forgotten => "forgotten",
        }
    }
}
