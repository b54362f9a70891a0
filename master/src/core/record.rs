//! What the ledger keeps beside builds: hosts, sessions, and what operators and failures have done to workers.

use super::alarm::BlockedLease;
use super::build::{BuildSpec, BuildStatus};
use super::images::{ImageKey, ImageRecord};
use super::mail::{Mail, MailId, News};
use super::plan::{Digest, ProviderKind};
use super::spend::Spent;
use rouse_shared::message::Facts;
use rouse_shared::{BuildId, HostId, Nonce, SessionId, Timestamp, WorkerName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// One machine, from the order to start it until its provider says that it is gone.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Host {
    /// Its id.
    pub id: HostId,
    /// The worker that it is for.
    pub worker: WorkerName,
    /// What makes it.
    pub provider: ProviderKind,
    /// What its provider calls it, once that is known.
    pub handle: Option<String>,
    /// Where it is in its life.
    pub state: HostState,
    /// [`super::plan::LatentPlan::image`] when it was ordered.
    pub image: String,
    /// What was, or is being, ordered of the provider; absent while that is being worked out.
    #[serde(default)]
    pub launch: Option<LaunchSpec>,
    /// The one-time password in its boot data. Kept in clear, since a try is repeated word for word after a crash;
    /// worthless once the session secret has been used.
    pub token: String,
    /// What its agent must give as its host identity, once that is known.
    pub identity: Option<String>,
    /// The life of the agent that the token was used by.
    pub nonce: Option<Nonce>,
    /// Whether the token is spent: its agent has come back with the session secret.
    pub token_spent: bool,
    /// [`super::plan::LatentPlan::fingerprint`] when it was ordered.
    pub fingerprint: u64,
    /// When it was ordered.
    pub created: Timestamp,
    /// When the provider took the order.
    pub booted: Option<Timestamp>,
    /// When its agent first attached.
    pub attached: Option<Timestamp>,
    /// Since when it is suspended, while it is: nothing is paid for it.
    #[serde(default)]
    pub suspended: Option<Timestamp>,
    /// When it was last resumed.
    #[serde(default)]
    pub resumed: Option<Timestamp>,
    /// What it had cost when it was last suspended, USD.
    #[serde(default)]
    pub paid: f64,
    /// When its provider said that it is gone.
    pub terminated: Option<Timestamp>,
    /// Attempts that were given to it.
    pub uses: u32,
    /// The build that it was started for; none for `min_idle`.
    pub started_for: Option<BuildId>,
    /// Why it is being terminated or has ended, in a sentence.
    pub why: Option<String>,
    /// The last of what it printed, fetched where it never attached.
    pub console: Option<String>,
    /// What it has cost, USD, where its provider knows a price.
    pub cost: Option<f64>,
}

impl Host {
    /// When its newest start began: when it was ordered, or last resumed.
    pub fn begun(&self) -> Timestamp {
        self.resumed.unwrap_or(self.created)
    }
}

/// One try to make a host, worked out by its provider. Committed before the provider is asked to make anything, and
/// repeated word for word after a crash or a lost reply. Another try follows only a definite lack of capacity.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct LaunchSpec {
    /// Which alternative of the configuration it is (type, zone, market), from 0.
    pub number: u32,
    /// What it boots, as the provider has resolved it: differs where another image stands behind the same
    /// configuration.
    pub image: String,
    /// The whole call, in the provider's own JSON; with the boot data, so it is as secret as the token.
    pub spec: String,
    /// Whether there is another alternative after this one.
    pub more: bool,
    /// Whether its disk is made for this host and for no other: an agent that finds another host's mark there is
    /// refused.
    #[serde(default)]
    pub fresh: bool,
    /// What its agent will give as its host identity, where that can be known before the machine is there.
    pub identity: Option<String>,
    /// USD an hour, where the provider knows a price.
    pub price: Option<f64>,
}

/// Where a host is in its life.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum HostState {
    /// Committed; its provider may or may not have heard of it.
    Ordered,
    /// Its provider has made it; its agent has not attached yet.
    Booting,
    /// Its agent has attached.
    Ready,
    /// Its agent was asked to take nothing new and to say when nothing runs.
    Draining,
    /// Drained, and being suspended until its provider says that it is suspended.
    Suspending,
    /// Its machine is kept without running, to be resumed instead of another being bought.
    Suspended,
    /// Being resumed; its provider may or may not have heard of it.
    Resuming,
    /// Being terminated, until its provider says that it is gone.
    Terminating,
    /// Its provider says that it is gone.
    Terminated,
}

impl HostState {
    /// Whether its agent is waited for.
    pub fn is_starting(self) -> bool {
        match self {
            Self::Ordered | Self::Resuming | Self::Booting => true,
            Self::Ready
            | Self::Draining
            | Self::Suspending
            | Self::Suspended
            | Self::Terminating
            | Self::Terminated => false,
        }
    }

    /// As it is written in listings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ordered => "ordered",
            Self::Booting => "booting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Suspending => "suspending",
            Self::Suspended => "suspended",
            Self::Resuming => "resuming",
            Self::Terminating => "terminating",
            Self::Terminated => "terminated",
        }
    }
}

/// One agent's attachment. Kept across restarts of the master, so that its agent can go on.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// The worker.
    pub worker: WorkerName,
    /// The host, for a latent worker.
    pub host: Option<HostId>,
    /// The life of the agent.
    pub nonce: Nonce,
    /// What the agent gave as its host identity.
    pub identity: String,
    /// Version of the agent.
    pub version: String,
    /// The agent's machine.
    pub facts: Facts,
    /// The newest connection of this life that said hello.
    pub connection: u64,
    /// The queue of that connection.
    pub queue: String,
    /// Hash of its secret, and of the one before it: an agent that never got the newest welcome still has that one.
    pub secrets: Vec<Digest>,
    /// The lease that its agent was last welcomed with, ms; none without a lease. A reload may have set another since.
    pub lease_ms: Option<u64>,
    /// When it began.
    pub since: Timestamp,
    /// Its agent has turned out to be on another machine than the host: nothing is left of it but its lease.
    #[serde(default)]
    pub impostor: bool,
    /// What its agent may do while the broker accepts nothing.
    #[serde(default)]
    pub blocked_lease: Option<BlockedLease>,
    /// The lives of the agent before this one, newest first and few: what one of them said may come late.
    #[serde(default)]
    pub replaced: Vec<Nonce>,
}

/// What operators and failures have done to a worker.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct WorkerRecord {
    /// What an operator has asked for.
    pub desired: DesiredState,
    /// Failed starts in a row, of every kind.
    pub failures: u32,
    /// Those of them that are the host's own fault, and count for quarantine.
    #[serde(default)]
    pub faults: u32,
    /// No start before then.
    pub backoff_until: Option<Timestamp>,
    /// Why it is quarantined, once it is.
    pub quarantined: Option<String>,
    /// How its last host failed.
    pub last_failure: Option<String>,
    /// Since when it has been told missing.
    pub missing_since: Option<Timestamp>,
    /// Who was told so, and is to be told when it is back.
    #[serde(default)]
    pub told: BTreeSet<String>,
}

/// What an operator has asked of a worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum DesiredState {
    /// To work.
    #[default]
    Work,
    /// No new builds.
    Pause,
    /// No new builds, and terminate its host when nothing runs.
    Drain,
}

/// One row to be kept. The ledger writes all rows of a batch in one transaction, before any effect is performed.
#[derive(Clone, PartialEq, Debug)]
pub enum Record {
    /// A build that was accepted.
    NewBuild {
        /// Its number.
        id: BuildId,
        /// What was asked for.
        spec: Arc<BuildSpec>,
        /// What the submitter calls it: the same one is the same build.
        message_id: Option<String>,
        /// What has become of it.
        status: BuildStatus,
    },
    /// What has become of a build.
    Build(BuildId, BuildStatus),
    /// A host.
    Host(Host),
    /// A session; replaces the worker's one.
    Session(Session),
    /// The worker's session is over.
    SessionOver(WorkerName),
    /// What operators and failures have done to a worker.
    Worker(WorkerName, WorkerRecord),
    /// What has become of an image's hosts.
    Image(ImageKey, ImageRecord),
    /// What was spent today on hosts that are gone.
    Spent(Spent),
    /// Something that people are to be told.
    News(News),
    /// This piece of news is part of a mail now.
    NewsOver(u64),
    /// A mail that waits for the relay.
    Mail(Mail),
    /// Nobody waits for this mail any more.
    MailOver(MailId),
    /// How often in a row the relay did not serve us, and when it is tried again.
    MailPause(u32, Timestamp),
    /// People were told of this machine.
    OrphanTold(ProviderKind, String),
    /// This machine is not there any more.
    OrphanOver(ProviderKind, String),
    /// Every agent may have been told that its lease is so long, since the master was asked to end; absent: not any
    /// more. A length and not a moment, since the clock may be stepped before the next master reads it.
    LeasesExtended(Option<Duration>),
    /// When people were told that the broker accepts nothing; absent: they were told that it does.
    AlarmTold(Option<Timestamp>),
}

/// All that a master finds in its ledger when it starts.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Ledger {
    /// Builds that have not ended.
    pub builds: Vec<super::build::Build>,
    /// Hosts that are not gone.
    pub hosts: Vec<Host>,
    /// Sessions that are not over.
    pub sessions: Vec<Session>,
    /// Workers that something was done to.
    pub workers: Vec<(WorkerName, WorkerRecord)>,
    /// Images that hosts were made of.
    pub images: Vec<(ImageKey, ImageRecord)>,
    /// The highest build number given out.
    pub last_build: u64,
    /// See [`Record::Spent`].
    pub spent: Spent,
    /// News that are not part of a mail yet.
    pub news: Vec<News>,
    /// Mails that wait.
    pub mails: Vec<Mail>,
    /// See [`Record::MailPause`].
    pub mail_pause: Option<(u32, Timestamp)>,
    /// See [`Record::OrphanTold`].
    pub told_orphans: Vec<(ProviderKind, String)>,
    /// See [`Record::LeasesExtended`].
    pub leases_extended: Option<Duration>,
    /// See [`Record::AlarmTold`].
    pub alarm_told: Option<Timestamp>,
}
