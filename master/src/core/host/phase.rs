//! The life of a host: its phases, and the one function that leads from each to the next. What providers and agents
//! report, what the core decides, recovery after a restart and the audit all go through it.

use crate::core::record::{Host, HostState};

/// Where a host is in its life, with what is worth knowing only there. Not kept: [`HostState`] is, which follows from
/// it.
///
/// `call` says whether the call that starts or resumes the machine has not been answered yet. An agent may be faster
/// than the answer, and a machine is terminated only after it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::core) enum Phase {
    /// Its provider works out the alternative of this number, from 0. Nothing is made.
    Preparing { number: u32 },
    /// What to start is committed, and the machine may exist.
    Launching {
        call: bool,
        /// Calls of which it is not known whether they made the machine.
        tries: u32,
        /// Why it is not known of the last one.
        trouble: Option<String>,
    },
    /// The machine exists, and its agent has not attached.
    Booting { call: bool },
    /// Its agent has attached.
    Ready { call: bool },
    /// Its agent was asked to take nothing new and to report when nothing runs.
    Draining { call: bool },
    /// The machine is being suspended.
    Suspending {
        /// Whether the call that suspends it has not been answered yet. There is one at a time: a late one must not
        /// suspend the machine again after it was resumed.
        call: bool,
        /// Calls that were made.
        tries: u32,
    },
    /// The machine is kept and does not run; since when is in the ledger's row, which costs are reckoned from.
    Suspended,
    /// The machine is being resumed.
    Resuming {
        call: bool,
        /// Calls that failed.
        tries: u32,
        /// Why the last of them failed.
        trouble: Option<String>,
    },
    /// The machine is being terminated, until its provider reports that it is gone.
    Terminating {
        call: bool,
        /// Calls that were made.
        tries: u32,
        /// It never attached, and what it printed is fetched before it is terminated: once no call is unanswered, since
        /// a machine may have no name before.
        console: bool,
    },
    /// Its provider has reported that it is gone, or it was never made.
    Terminated,
}

/// What can happen to a host. The answers of providers may be late or repeated as [`crate::core::event::Event`] says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::core) enum HostEvent {
    /// The alternative of this number was worked out, and its order is committed.
    Prepared { number: u32 },
    /// Nothing is ordered: there is nothing to order, or its image must prove itself first.
    NotPrepared,
    /// The call of the phase is made: to start, resume, suspend or terminate the machine.
    Called,
    /// A call to start the machine was answered.
    StartEnded(StartOutcome),
    /// The call to resume the machine succeeded.
    Resumed,
    /// The call to resume the machine failed; why.
    ResumeFailed { why: String },
    /// Its agent has attached.
    Attached,
    /// The agent that had attached is on another machine.
    Disowned,
    /// It is to take nothing new.
    Drain,
    /// It is to be suspended: it was drained, or runs though it should be suspended.
    Suspend,
    /// The call to suspend the machine was answered; whether the machine is known to be suspended.
    SuspendEnded { suspended: bool },
    /// It is to be resumed.
    Resume,
    /// It is to be terminated.
    Terminate,
    /// Its agent has not attached in time.
    GiveUp,
    /// What it printed has come, or is waited for no longer.
    Console,
    /// A call to terminate the machine was answered; whether the machine is known to be gone.
    TerminateEnded { gone: bool },
    /// Its provider has proof that the machine is gone.
    Gone,
}

/// How a call to start a machine was answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::core) enum StartOutcome {
    /// The machine exists.
    Made,
    /// Whether the machine exists is not known; why.
    Unclear { why: String },
    /// There was no capacity, and the alternative of this number is next.
    NoCapacity { next: u32 },
    /// The machine does not exist, and will not.
    NotMade,
}

/// An event that cannot happen in the phase: the core, or an adapter, is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::core) struct IllegalEvent;

/// The phase that follows. Total: each pair is a step, has no effect for the reason beside it, or is illegal.
pub(super) fn next(phase: &Phase, event: &HostEvent) -> Result<Phase, IllegalEvent> {
    use Phase::{
        Booting, Draining, Launching, Preparing, Ready, Resuming, Suspended, Suspending, Terminated, Terminating,
    };
    let unchanged = || Ok(phase.clone());
    match event {
        HostEvent::Prepared { number } => match phase {
            Preparing { number: asked } if asked == number => Ok(Launching { call: false, tries: 0, trouble: None }),
            // Repeated, or late: another alternative was asked for since, or the host went on without it.
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
            // Terminating is repeated without waiting for an answer; but for one to a call that may make the machine.
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
            // The machine came all the same after its provider had no capacity: no other is needed.
            (Preparing { .. } | Launching { .. }, StartOutcome::Made) => Ok(Booting { call: false }),
            (Launching { tries, .. }, StartOutcome::Unclear { why }) => {
                Ok(Launching { call: false, tries: tries + 1, trouble: Some(why.clone()) })
            }
            (Launching { .. }, StartOutcome::NoCapacity { next }) => Ok(Preparing { number: *next }),
            (Launching { .. }, StartOutcome::NotMade) => Ok(Terminated),
            // Repeated: it is of the alternative before.
            (
                Preparing { .. },
                StartOutcome::Unclear { .. } | StartOutcome::NoCapacity { .. } | StartOutcome::NotMade,
            ) => unchanged(),
            // Its agent was faster, or the start was repeated: whatever the answer is, the machine exists.
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
            // Its agent was faster.
            Ready { .. } => Ok(Ready { call: false }),
            Draining { .. } => Ok(Draining { call: false }),
            Terminating { tries, console, .. } => Ok(Terminating { call: false, tries: *tries, console: *console }),
            // Late.
            Terminated => unchanged(),
            Preparing { .. } | Launching { .. } | Suspending { .. } | Suspended => Err(IllegalEvent),
        },
        HostEvent::ResumeFailed { why } => match phase {
            Resuming { tries, .. } => Ok(Resuming { call: false, tries: tries + 1, trouble: Some(why.clone()) }),
            // Its agent was faster: the call did what was asked, whatever the answer is.
            Booting { .. } => Ok(Booting { call: false }),
            Ready { .. } => Ok(Ready { call: false }),
            Draining { .. } => Ok(Draining { call: false }),
            Terminating { tries, console, .. } => Ok(Terminating { call: false, tries: *tries, console: *console }),
            // Late.
            Terminated => unchanged(),
            Preparing { .. } | Launching { .. } | Suspending { .. } | Suspended => Err(IllegalEvent),
        },
        HostEvent::Attached => match phase {
            // As in `StartEnded`: it came all the same.
            Preparing { .. } => Ok(Ready { call: false }),
            Launching { call, .. } | Booting { call } | Resuming { call, .. } => Ok(Ready { call: *call }),
            // Its agent was started again.
            Ready { .. } | Draining { .. } | Terminating { .. } => unchanged(),
            // Nobody is let in.
            Suspending { .. } | Suspended | Terminated => Err(IllegalEvent),
        },
        HostEvent::Disowned => match phase {
            Ready { call } => Ok(Booting { call: *call }),
            Preparing { .. } | Launching { .. } | Booting { .. } | Draining { .. } => Err(IllegalEvent),
            Suspending { .. } | Suspended | Resuming { .. } | Terminating { .. } | Terminated => Err(IllegalEvent),
        },
        HostEvent::Drain => match phase {
            Ready { call } => Ok(Draining { call: *call }),
            // It takes nothing new already.
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
            // Late: it took too long, or the machine is gone.
            Terminating { .. } | Terminated => unchanged(),
            // There is one such call at a time, and its answer comes once.
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
            // It is being terminated already, for a reason that came first.
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
            // Late: the machine went first.
            Terminated => unchanged(),
            Preparing { .. } | Launching { .. } | Booting { .. } | Ready { .. } | Draining { .. } => Err(IllegalEvent),
            Suspending { .. } | Suspended | Resuming { .. } => Err(IllegalEvent),
        },
        HostEvent::TerminateEnded { gone } => match phase {
            Terminating { call: false, .. } if *gone => Ok(Terminated),
            // It is still there, or a call that may make it is not answered yet.
            Terminating { .. } => unchanged(),
            // Repeated.
            Terminated => unchanged(),
            Preparing { .. } | Launching { .. } | Booting { .. } | Ready { .. } | Draining { .. } => Err(IllegalEvent),
            Suspending { .. } | Suspended | Resuming { .. } => Err(IllegalEvent),
        },
        HostEvent::Gone => match phase {
            // It went before its agent attached: what it printed may still be had.
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
    /// The phase of a host in the ledger, before the master goes on with it: no call of this master is under way.
    pub(in crate::core) fn restored(host: &Host) -> Self {
        match host.state {
            HostState::Ordered if host.launch.is_none() => Self::Preparing { number: 0 },
            // The master before this one may have made the call.
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

    /// What the ledger keeps of it and people see.
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
    /// What it is called in the log and in ARCHITECTURE.md.
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
        }
    }
}
