//! The part of the configuration that the core uses: workers and limits. `config` builds it, and a reload replaces it
//! as a whole.

use rouse_shared::WorkerName;
use rouse_shared::message::Limits;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// The hash of a secret. The core compares hashes only, so it can neither log nor store a password.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The SHA-256 hash of `secret`.
    pub fn of(secret: &str) -> Self {
        Self(Sha256::digest(secret.as_bytes()).into())
    }
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Digest(..)")
    }
}

/// Everything that the core knows about the configuration.
#[derive(Clone, PartialEq, Debug)]
pub struct Plan {
    /// The workers by name.
    pub workers: BTreeMap<WorkerName, Arc<WorkerPlan>>,
    /// Latent hosts in the ledger that may be alive at once.
    pub max_hosts: Option<u32>,
    /// USD that may be spent on hosts in a day, as far as prices are known.
    pub max_spend_per_day: Option<f64>,
    /// Number of failed starts of a worker in a row after which the master sends a mail; at least 1.
    pub mail_after_failed_starts: u32,
    /// When ended builds and their logs are deleted.
    pub retention: Retention,
    /// How long a build without its own `queue_timeout` may wait for something that can run it; absent: forever.
    pub queue_timeout: Option<Duration>,
    /// Largest log of a step that the master keeps, bytes.
    pub max_log_size: u64,
    /// Which of several templates with the same preference is woken first.
    pub among_equals: AmongEquals,
    /// Between two audits of a provider.
    pub audit_interval: Duration,
    /// Whether an orphan is terminated, or only reported.
    pub stop_orphans: bool,
    /// The length of every lease once the master is asked to end.
    pub restart_lease: Duration,
    /// Whether agents may continue past their lease while the broker accepts nothing. Only if master and agents use the
    /// same node of it, and the master notices within seconds that its own link is dead: see [`super::BlockedLease`].
    /// Like the broker itself, it stays as it was when the master was started.
    pub outlives_alarms: bool,
    /// What the core needs to know about mail.
    pub mail: MailPlan,
}

/// When ended builds and their logs are deleted. Builds that were submitted with `keep` never are. By default, nothing
/// is deleted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Retention {
    /// Age, counted from the end of a build, at which the build is deleted with its logs; absent: never.
    pub builds: Option<Duration>,
    /// The same for its logs alone.
    pub logs: Option<Duration>,
    /// Bytes that the logs of ended builds may take together. If they take more, the oldest are deleted; absent: no
    /// limit.
    pub max_size: Option<u64>,
}

impl Retention {
    /// Whether anything is ever deleted.
    pub fn is_on(&self) -> bool {
        *self != Self::default()
    }
}

/// What the core needs to know about mail. The mail adapter knows how to send it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MailPlan {
    /// Notified of every missing worker and every orphan, in addition to the workers' own lists.
    pub extra_recipients: BTreeSet<String>,
    /// The domain of the sender's address, which ends every new message id.
    pub domain: String,
}

/// One worker of the configuration.
#[derive(Clone, PartialEq, Debug)]
pub struct WorkerPlan {
    /// Its name.
    pub name: WorkerName,
    /// The name of its `[[worker]]` as the configuration writes it, such as `w-{1..4}`.
    pub template: String,
    /// Hash of its password.
    pub password: Digest,
    /// Builds at the same time; absent if the master sets no limit.
    pub max_builds: Option<u32>,
    /// Interval of heartbeats.
    pub keepalive: Duration,
    /// Length of a session's lease; absent with `keepalive_interval = "none"`, and then only proof of the agent's death
    /// frees a build.
    pub lease: Option<Duration>,
    /// How long after the end of its lease a latent host powers itself off.
    pub grace: Duration,
    /// How long a worker may be detached before it is missing, and a latent host may take to attach before it has
    /// failed.
    pub missing_timeout: Duration,
    /// Notified when it is missing.
    pub notify_on_missing: Vec<String>,
    /// Matched by `where`, and in every step's environment.
    pub properties: BTreeMap<String, String>,
    /// The user that builds run as.
    pub run_as: Option<String>,
    /// What each step of its builds may use.
    pub limits: Limits,
    /// How its hosts are started; absent for a standing worker.
    pub latent: Option<LatentPlan>,
}

/// How the hosts of a latent worker are started and kept.
#[derive(Clone, PartialEq, Debug)]
pub struct LatentPlan {
    /// Creates its hosts.
    pub provider: ProviderKind,
    /// Their place: where they may all fail for the same reason, such as one region with one account, or one
    /// hypervisor.
    pub place: Arc<str>,
    /// Idle time before the host is shut down; absent: never.
    pub build_wait_timeout: Option<Duration>,
    /// Number of builds after which a host is replaced; 0 for no limit.
    pub max_uses: u32,
    /// Templates with a higher number are woken first.
    pub prefer: i32,
    /// Price in USD per hour, if the configuration sets it.
    pub price: Option<f64>,
    /// The template that it comes from: workers of one template share `min_idle`.
    pub template: String,
    /// Whether an idle host is suspended rather than terminated, and how long it is kept.
    pub suspend: Option<Suspend>,
    /// Number of hosts of its template that are kept ready without work.
    pub min_idle: u32,
    /// The image of its hosts, as the configuration names it. Workers with the same image share its failures.
    pub image: Arc<str>,
    /// Changes with every setting that a new host is started with. An idle host with an older fingerprint is replaced.
    pub fingerprint: u64,
}

/// Which of several templates with the same preference is woken first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AmongEquals {
    /// The one that has the most hosts, so that the others can stay asleep.
    #[default]
    Pack,
    /// The one that has the fewest hosts.
    Spread,
    /// The one whose hosts cost least, as far as their price is known.
    Cheapest,
}

impl AmongEquals {
    /// As it is written in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pack => "pack",
            Self::Spread => "spread",
            Self::Cheapest => "cheapest",
        }
    }
}

/// Hosts that are suspended when they are idle.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Suspend {
    /// Age from the order at which a host is terminated instead of suspended. Also ends a host that is suspended.
    pub max_age: Duration,
}

/// The kinds of providers.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum ProviderKind {
    /// A child process of the master.
    Process,
    /// Amazon EC2, or a compatible cloud.
    Ec2,
    /// A libvirt connection.
    Libvirt,
    /// OpenStack Nova.
    Openstack,
}

impl ProviderKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Process, Self::Ec2, Self::Libvirt, Self::Openstack];

    /// As it is written in configuration, listings and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Ec2 => "ec2",
            Self::Libvirt => "libvirt",
            Self::Openstack => "openstack",
        }
    }
}
