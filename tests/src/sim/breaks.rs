//! Ways to break the system on purpose, each a switch at run time, to prove that the simulation notices.
//!
//! The programs contain none of this. A switch makes the simulated world around the cores behave like a faulty driver,
//! adapter or decision, by what it passes on, keeps back or changes.

/// A way to break the system on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Break {
    /// Effects are performed although their batch was never committed.
    PerformBeforeCommit,
    /// Deliveries are acknowledged before what they have led to is committed.
    AckBeforeCommit,
    /// The disk loses what it has reported as committed.
    DiskForgets,
    /// A host that is asked to drain is terminated without waiting for its answer.
    ForgetDrain,
    /// The master's lease timers come early.
    EarlyRequeue,
    /// An agent gets a lease twice as long as the one that the master counts.
    LongLease,
    /// A step's supervisor does not know the lease's deadline: only the agent does.
    NoDeadline,
    /// The machine that the provider names is not compared with the one that has attached as the host.
    NoIdentity,
    /// The master forgets that it has extended every lease when it was asked to end.
    ForgetExtension,
    /// The provider creates another machine each time that a start is repeated.
    StartsTwice,
    /// A failed list is taken for an empty one.
    FailedListIsEmpty,
    /// A partial list is taken for a complete one.
    PartialListIsWhole,
    /// A termination that the provider has accepted is taken for a machine that is gone.
    AcceptedIsGone,
    /// A termination is requested once, whatever its result.
    StopOnce,
    /// A suspension that the provider has accepted is taken for a suspended machine.
    AcceptedIsSuspended,
    /// `max_age` is ignored: hosts stay suspended forever.
    NoMaxAge,
    /// A master that starts forgets the suspended hosts.
    ForgetSuspended,
    /// A host is resumed with the boot data of its start.
    OldToken,
    /// Orphans are left running.
    LeaveOrphans,
    /// Machines with this master's name are its own, whatever their id.
    OwnerByName,
    /// A latent host's agent never powers it off.
    NoDeadMan,
    /// Log chunks are confirmed to the agent and counted as complete by the master, but some are not written.
    LogsLie,
    /// A log that an agent has sent is not kept until it is settled.
    SendLogsOnce,
    /// Logs that an agent has sent only partly are lost when its lease ends.
    ForgetLogs,
    /// A boot token is accepted from any agent, any number of times.
    ReuseToken,
    /// A second agent with the same name is taken for the one that has the lease.
    NoFence,
    /// `max_hosts` is ignored.
    NoMaxHosts,
    /// `max_builds` is ignored.
    NoMaxBuilds,
    /// Idle hosts are kept forever.
    KeepIdle,
    /// `min_idle` is ignored.
    NoMinIdle,
    /// A build with a known message id is accepted as a new one.
    ForgetMessageIds,
    /// `retries` is ignored: a build is lost with its first attempt.
    NoRetries,
    /// A user who cancels a build gets the reply that it is cancelled, and it is not.
    ForgetCancel,
    /// An agent whose connection breaks is taken for dead.
    BlipIsDeath,
    /// The disk keeps news that were put into a mail.
    MailTwice,
    /// The disk keeps no mail after its first try.
    MailForgotten,
    /// A lost build is taken for a successful one.
    LostIsSuccess,
    /// A place that cannot be listed hides all others of its provider.
    PauseAll,
    /// A place that refuses everybody never serves again.
    PlaceNeverBack,
    /// A build is lost when it has waited for a while, although nobody has asked for that.
    Impatient,
    /// The master is not told that the broker accepts nothing.
    AlarmUnheard,
    /// An agent does not notice that a connection on which the broker accepts nothing is dead.
    DeadLinkUnnoticed,
    /// Builds are deleted before their time.
    DeleteEarly,
    /// Builds that are to be kept are deleted like others.
    ForgetKeep,
    /// Log files that are reported as deleted are still there.
    FilesStay,
    /// A master that starts does not know the numbers of deleted builds.
    ForgetNumbers,
    /// A master that was stopped still writes into the ledger that another one has taken over.
    NoEpoch,
}

impl Break {
    /// All of them.
    pub const ALL: [Break; 47] = [
        Self::PerformBeforeCommit,
        Self::AckBeforeCommit,
        Self::DiskForgets,
        Self::ForgetDrain,
        Self::EarlyRequeue,
        Self::LongLease,
        Self::NoDeadline,
        Self::NoIdentity,
        Self::ForgetExtension,
        Self::StartsTwice,
        Self::FailedListIsEmpty,
        Self::PartialListIsWhole,
        Self::AcceptedIsGone,
        Self::StopOnce,
        Self::AcceptedIsSuspended,
        Self::NoMaxAge,
        Self::ForgetSuspended,
        Self::OldToken,
        Self::LeaveOrphans,
        Self::OwnerByName,
        Self::NoDeadMan,
        Self::LogsLie,
        Self::SendLogsOnce,
        Self::ForgetLogs,
        Self::ReuseToken,
        Self::NoFence,
        Self::NoMaxHosts,
        Self::NoMaxBuilds,
        Self::KeepIdle,
        Self::NoMinIdle,
        Self::ForgetMessageIds,
        Self::NoRetries,
        Self::ForgetCancel,
        Self::BlipIsDeath,
        Self::MailTwice,
        Self::MailForgotten,
        Self::LostIsSuccess,
        Self::PauseAll,
        Self::PlaceNeverBack,
        Self::Impatient,
        Self::AlarmUnheard,
        Self::DeadLinkUnnoticed,
        Self::DeleteEarly,
        Self::ForgetKeep,
        Self::FilesStay,
        Self::ForgetNumbers,
        Self::NoEpoch,
    ];
}
