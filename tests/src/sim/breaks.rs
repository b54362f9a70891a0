//! The ways to break the system on purpose, each a switch at run time, to see that the simulation notices.
//!
//! Nothing of it is in the programs: a switch has the fake world around the cores go wrong in the way that a driver, an
//! adapter or a decision would, by what it passes on, keeps back or alters.

/// A way to break the system on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Break {
    /// Effects are performed although their batch was never committed.
    PerformBeforeCommit,
    /// Deliveries are acknowledged before what they have led to is committed.
    AckBeforeCommit,
    /// The disk loses what it has said is committed.
    DiskForgets,
    /// A host that is asked to drain is stopped without waiting for its answer.
    ForgetDrain,
    /// The master's lease timers come early.
    EarlyRequeue,
    /// An agent is told of a lease twice as long as the one that the master counts.
    LongLease,
    /// A step's supervisor does not hold the lease's deadline: only the agent does.
    NoDeadline,
    /// What the provider says that a host's machine is is not held against who has attached as the host.
    NoIdentity,
    /// The master forgets that it has extended every lease when it was asked to end.
    ForgetExtension,
    /// The provider makes another machine each time that a start is repeated.
    StartsTwice,
    /// A list that failed is taken for an empty one.
    FailedListIsEmpty,
    /// Half a list is taken for a whole one.
    PartialListIsWhole,
    /// A stop that the provider has heard is taken for a machine that is gone.
    HeardIsGone,
    /// A stop is asked for once, whatever comes of it.
    StopOnce,
    /// A machine that was told to sleep is taken for one that sleeps.
    HeardIsAsleep,
    /// `max_age` is not looked at: hosts sleep for ever.
    NoMaxAge,
    /// A master that starts knows nothing of the hosts that sleep.
    ForgetSleepers,
    /// A host is resumed with the boot data that it was made with.
    OldToken,
    /// Machines that the ledger does not know are left running.
    LeaveOrphans,
    /// Machines with our name are ours, whatever id they bear.
    OwnerByName,
    /// A latent host's agent does not switch it off, whatever becomes of its master.
    NoDeadMan,
    /// Log chunks are confirmed to the agent and counted as whole by the master, but some are not written.
    LogsLie,
    /// A log that an agent has sent is not kept until it is settled.
    SendLogsOnce,
    /// The logs that an agent has sent only a part of are lost when its lease is over.
    ForgetLogs,
    /// A boot token is good for any agent, any number of times.
    ReuseToken,
    /// A second agent of a name is taken for the one that has the lease.
    NoFence,
    /// `max_hosts` is not looked at.
    NoMaxHosts,
    /// `max_builds` is not looked at.
    NoMaxBuilds,
    /// Idle hosts are kept for ever.
    KeepIdle,
    /// `min_idle` is not looked at.
    NoMinIdle,
    /// A build that bears a known id is accepted as a new one.
    ForgetMessageIds,
    /// `retries` is not looked at: a build is lost with its first attempt.
    NoRetries,
    /// A user who cancels a build is told that it is done, and it is not.
    ForgetCancel,
    /// An agent whose connection breaks is taken for dead.
    BlipIsDeath,
    /// The disk keeps news that were put into a mail.
    MailTwice,
    /// The disk keeps no mail beyond its first try.
    MailForgotten,
    /// A build that was lost under an agent is taken for one that has succeeded.
    LostIsSuccess,
    /// The master is not told that the broker accepts nothing.
    AlarmUnheard,
    /// An agent does not notice that a connection on which the broker accepts nothing is dead.
    DeadLinkUnnoticed,
}

impl Break {
    /// All of them.
    pub const ALL: [Break; 39] = [
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
        Self::HeardIsGone,
        Self::StopOnce,
        Self::HeardIsAsleep,
        Self::NoMaxAge,
        Self::ForgetSleepers,
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
        Self::AlarmUnheard,
        Self::DeadLinkUnnoticed,
    ];
}
