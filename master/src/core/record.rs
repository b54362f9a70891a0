//! What the ledger contains in addition to builds: hosts, sessions, and the effects of operators and failures on
//! workers.

use super::alarm::BlockedLease;
use super::blobs::Upload;
use super::build::{BuildSpec, BuildStatus};
use super::images::{ImageKey, ImageRecord};
use super::journal::Entry;
use super::mail::{Mail, MailId, News};
use super::places::{PlaceKey, PlaceRecord};
use super::plan::{Digest, ProviderKind};
use super::spend::Spent;
use rouse_shared::message::Facts;
use rouse_shared::{BuildId, HostId, Nonce, SessionId, Timestamp, WorkerName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// One machine, from the order until the provider reports that it is gone.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Host {
    /// Its id.
    pub id: HostId,
    /// The worker that it belongs to.
    pub worker: WorkerName,
    /// The provider that creates it.
    pub provider: ProviderKind,
    /// [`super::plan::LatentPlan::place`] when it was ordered.
    #[serde(default)]
    pub place: String,
    /// The id or name that the provider gives to it, once that is known.
    pub handle: Option<String>,
    /// Its state.
    pub state: HostState,
    /// [`super::plan::LatentPlan::image`] when it was ordered.
    pub image: String,
    /// What is sent to the provider; absent while it is being computed.
    #[serde(default)]
    pub launch: Option<LaunchSpec>,
    /// The one-time password in its boot data. Not hashed, because a start is repeated unchanged after a crash. Useless
    /// once its agent has the session secret.
    pub token: String,
    /// The host identity that its agent must report, once that is known.
    pub identity: Option<String>,
    /// The run of the agent that has used the token.
    pub nonce: Option<Nonce>,
    /// Whether the token is used up: its agent has the session secret.
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
    /// When its provider reported that it is gone.
    pub terminated: Option<Timestamp>,
    /// Number of attempts that it was assigned.
    pub uses: u32,
    /// If an operator has given it up: when this takes effect. After that, nothing that ran on it is running.
    #[serde(default)]
    pub forgotten: Option<Timestamp>,
    /// When the first call to terminate it was made.
    #[serde(default)]
    pub terminating: Option<Timestamp>,
    /// Who was notified that it stays although it was asked to end, and is notified of its end too; absent until then.
    #[serde(default)]
    pub lingering_notified: Option<BTreeSet<String>>,
    /// The build that it was started for; absent if it was started for `min_idle`.
    pub started_for: Option<BuildId>,
    /// Why it is being terminated or has ended, in a sentence.
    pub why: Option<String>,
    /// The last part of its console output. Only fetched if its agent never attached.
    pub console: Option<String>,
    /// What it has cost, USD, if its provider knows a price.
    pub cost: Option<f64>,
}

impl Host {
    /// When its newest start began: when it was ordered, or last resumed.
    pub fn begun(&self) -> Timestamp {
        self.resumed.unwrap_or(self.created)
    }
}

/// The complete call that creates a machine, computed by its provider. Committed before the provider is asked to
/// create anything, and repeated unchanged after a crash or a lost answer. Another alternative follows only after a
/// definite lack of capacity.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct LaunchSpec {
    /// Number of the alternative in the configuration (type, zone, market), from 0.
    pub number: u32,
    /// The alternative, for people and for the pause after a lack of capacity: the same for all workers of a place that
    /// use it. Empty if there are no alternatives.
    #[serde(default)]
    pub alternative: String,
    /// The image that the provider has selected: it changes if another image is selected by the same
    /// configuration.
    pub image: String,
    /// The whole call, as JSON in the provider's own form. It contains the boot data, so it is as secret as the token.
    pub spec: String,
    /// Whether there is another alternative after this one.
    pub more: bool,
    /// Whether its disk is created for this host only. Then an agent that finds another host's mark on it is refused.
    #[serde(default)]
    pub fresh: bool,
    /// The host identity that its agent will report, if that is known before the machine exists.
    pub identity: Option<String>,
    /// Price in USD per hour, if the provider knows one.
    pub price: Option<f64>,
    /// Whether it is bought on the spot market, from which the cloud may take it back.
    #[serde(default)]
    pub spot: bool,
}

/// The state of a host.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum HostState {
    /// Committed; the provider may or may not have received the order.
    Ordered,
    /// The provider has created it; its agent has not attached yet.
    Booting,
    /// Its agent has attached.
    Ready,
    /// Its agent was asked to accept no new builds and to report when nothing runs.
    Draining,
    /// Drained, and being suspended until the provider reports that it is suspended.
    Suspending,
    /// Its machine is kept but does not run. It is resumed instead of ordering another one.
    Suspended,
    /// Being resumed; the provider may or may not have received the request.
    Resuming,
    /// Being terminated, until the provider reports that it is gone.
    Terminating,
    /// The provider has reported that it is gone.
    Terminated,
}

impl HostState {
    /// Whether the master waits for its agent.
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

/// One attachment of an agent. Survives a restart of the master, so that the agent can continue.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// The worker.
    pub worker: WorkerName,
    /// The host, for a latent worker.
    pub host: Option<HostId>,
    /// The run of the agent.
    pub nonce: Nonce,
    /// The host identity that the agent reported.
    pub identity: String,
    /// Version of the agent.
    pub version: String,
    /// The agent's machine.
    pub facts: Facts,
    /// The newest connection of this run that has said hello.
    pub connection: u64,
    /// The queue of that connection.
    pub queue: String,
    /// Hash of its secret and of the previous one: an agent that never received the newest welcome still has the
    /// previous secret.
    pub secrets: Vec<Digest>,
    /// The lease that its agent has received last, milliseconds; absent if there is no lease. A reload may have changed
    /// it since.
    pub lease_ms: Option<u64>,
    /// When it began.
    pub since: Timestamp,
    /// Whether its agent turned out to be on another machine than the host. Such a session only lasts until its lease
    /// ends.
    #[serde(default)]
    pub impostor: bool,
    /// What its agent may do while the broker accepts nothing.
    #[serde(default)]
    pub blocked_lease: Option<BlockedLease>,
    /// The previous runs of the agent, newest first, a few at most. Late messages may come from them.
    #[serde(default)]
    pub replaced: Vec<Nonce>,
    /// Hash of the password that a standing worker had when its agent last proved that it knows the password. Absent in
    /// sessions of earlier versions, and of hosts.
    #[serde(default)]
    pub password: Option<Digest>,
}

/// The state of a worker that operators and failures have changed.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct WorkerRecord {
    /// What an operator has requested.
    pub desired: DesiredState,
    /// Failed starts in a row, of every kind.
    pub failures: u32,
    /// The number of those failed starts that its image or its configuration caused.
    #[serde(default)]
    pub faults: u32,
    /// Whether the provider refused to create the last one, for a reason that does not concern the provider itself.
    #[serde(default)]
    pub rejected: bool,
    /// No start before then.
    pub backoff_until: Option<Timestamp>,
    /// How its last host failed.
    pub last_failure: Option<String>,
    /// When it was reported as missing, if it is.
    pub missing_since: Option<Timestamp>,
    /// The recipients of that report. They are also notified when it is back.
    #[serde(rename = "told", default)]
    pub notified: BTreeSet<String>,
}

/// What an operator can request of a worker.
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

/// A record to be committed. The store writes all records of a batch in one transaction, before any effect is
/// performed.
#[derive(Clone, PartialEq, Debug)]
pub enum Record {
    /// A build that was accepted.
    NewBuild {
        /// Its number.
        id: BuildId,
        /// What was requested.
        spec: Arc<BuildSpec>,
        /// The submitter's id. A second submission with the same id is the same build.
        message_id: Option<String>,
        /// Its status.
        status: BuildStatus,
    },
    /// The status of a build.
    Build(BuildId, BuildStatus),
    /// The logs of this ended build take so many bytes.
    LogsMeasured(BuildId, u64),
    /// The logs of this ended build are to be deleted, since this time. Committed before the first file is removed, so
    /// that the next master continues.
    LogsExpired(BuildId, Timestamp),
    /// No file of those logs is left.
    LogsDeleted(BuildId),
    /// The logs of this ended build are in this store, or are being uploaded to it.
    LogsUploaded(BuildId, Arc<str>, Upload),
    /// This ended build is deleted. Its number is never given again.
    BuildDeleted(BuildId),
    /// A host.
    Host(Host),
    /// A session; replaces the worker's previous one.
    Session(Session),
    /// The worker's session is over.
    SessionOver(WorkerName),
    /// The state of a worker that operators and failures have changed.
    Worker(WorkerName, WorkerRecord),
    /// What the master knows about an image.
    Image(ImageKey, ImageRecord),
    /// The pause of a place; its default if there is none any more.
    Place(PlaceKey, PlaceRecord),
    /// What was spent today on hosts that are gone.
    Spent(Spent),
    /// Something to report to people.
    News(News),
    /// This piece of news has become part of a mail.
    NewsOver(u64),
    /// A mail that waits for the relay.
    Mail(Mail),
    /// No recipient waits for this mail any more.
    MailOver(MailId),
    /// How many times in a row the relay was unusable, and when it is tried again.
    MailPause(u32, Timestamp),
    /// This machine has been reported as an orphan.
    OrphanReported(ProviderKind, String),
    /// This orphan no longer exists.
    OrphanOver(ProviderKind, String),
    /// Since the master was asked to end, agents may have been promised a lease of this length; absent if no agent
    /// relies on it any more. A length instead of a time, because the clock may be stepped before the next master reads
    /// it.
    LeasesExtended(Option<Duration>),
    /// When an alarm was reported to people; absent: they have been informed that the broker accepts messages.
    AlarmTold(Option<Timestamp>),
    /// An entry of the journal. Those that are older than the newest [`super::journal::KEPT`] are deleted.
    Entry(Entry),
}

/// Everything that a master reads from its ledger when it starts.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Ledger {
    /// Builds that have not ended.
    pub builds: Vec<super::build::Build>,
    /// Hosts that are not gone.
    pub hosts: Vec<Host>,
    /// Sessions that are not over.
    pub sessions: Vec<Session>,
    /// Workers with a record.
    pub workers: Vec<(WorkerName, WorkerRecord)>,
    /// Images with a record.
    pub images: Vec<(ImageKey, ImageRecord)>,
    /// Places that pause.
    pub places: Vec<(PlaceKey, PlaceRecord)>,
    /// The highest build number so far.
    pub last_build: u64,
    /// The highest number of an entry of the journal so far.
    pub last_entry: u64,
    /// See [`Record::Spent`].
    pub spent: Spent,
    /// News that are not yet part of a mail.
    pub news: Vec<News>,
    /// Mails that wait for the relay.
    pub mails: Vec<Mail>,
    /// See [`Record::MailPause`].
    pub mail_pause: Option<(u32, Timestamp)>,
    /// See [`Record::OrphanReported`].
    pub reported_orphans: Vec<(ProviderKind, String)>,
    /// See [`Record::LeasesExtended`].
    pub leases_extended: Option<Duration>,
    /// See [`Record::AlarmTold`].
    pub alarm_told: Option<Timestamp>,
}
