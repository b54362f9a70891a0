//! What the configuration asks of the core: the workers, and the limits. Made by `config`, replaced whole by a reload.

use rouse_shared::WorkerName;
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

/// All that the core knows of the configuration.
#[derive(Clone, PartialEq, Debug)]
pub struct Plan {
    /// The workers by name.
    pub workers: BTreeMap<WorkerName, Arc<WorkerPlan>>,
    /// Latent hosts that may be alive at once, unknown ones included.
    pub max_hosts: Option<u32>,
    /// USD that may be spent on hosts in a day, as far as their prices are known.
    pub max_spend_per_day: Option<f64>,
    /// Failed starts in a row before a worker is quarantined; at least 1.
    pub quarantine_after: u32,
    /// Between two audits of a provider.
    pub audit_interval: Duration,
    /// Whether an orphan is terminated, or only told of.
    pub stop_orphans: bool,
    /// What every lease is extended by when the master is asked to end.
    pub restart_lease: Duration,
    /// Whether agents may go on past their lease while the broker accepts nothing. Only if master and agents use the same
    /// node of it, and the master notices within seconds that its own link is dead: see [`super::BlockedLease`]. Like the
    /// broker itself, it stays as it was when the master was started.
    pub outlives_alarms: bool,
    /// What the core has to know of mail.
    pub mail: MailPlan,
}

/// What the core has to know of mail: how it is sent is the adapter's business.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MailPlan {
    /// Told of every missing worker and every orphan, besides the workers' own lists.
    pub extra_recipients: BTreeSet<String>,
    /// What new message ids end with: the domain that mail is sent from.
    pub domain: String,
}

/// One worker of the configuration.
#[derive(Clone, PartialEq, Debug)]
pub struct WorkerPlan {
    /// Its name.
    pub name: WorkerName,
    /// Hash of its password.
    pub password: Digest,
    /// Builds at once; absent: no limit of ours.
    pub max_builds: Option<u32>,
    /// Between heartbeats.
    pub keepalive: Duration,
    /// Length of a session's lease; absent (`keepalive_interval = "none"`): only proof of death frees a build.
    pub lease: Option<Duration>,
    /// A latent host powers itself off when its lease has been over for so long.
    pub grace: Duration,
    /// Detached for so long, a worker is missing; a latent host that has not attached by then has failed.
    pub missing_timeout: Duration,
    /// Told when it goes missing.
    pub notify_on_missing: Vec<String>,
    /// Matched by `where`, and in every step's environment.
    pub properties: BTreeMap<String, String>,
    /// The user that builds run as.
    pub run_as: Option<String>,
    /// How its hosts are started; absent for a standing worker.
    pub latent: Option<LatentPlan>,
}

/// How the hosts of a latent worker are kept.
#[derive(Clone, PartialEq, Debug)]
pub struct LatentPlan {
    /// What makes its hosts.
    pub provider: ProviderKind,
    /// Idle time before the host is shut down; absent: never.
    pub build_wait_timeout: Option<Duration>,
    /// Builds before the host is retired; 0: no limit.
    pub max_uses: u32,
    /// The template that it comes from: workers of one template share `min_idle`.
    pub template: String,
    /// Whether an idle host is suspended rather than terminated, and how long it is kept.
    pub suspend: Option<Suspend>,
    /// Hosts of its template that are kept ready without work.
    pub min_idle: u32,
    /// What its hosts boot, as the configuration names it: workers with the same one share its failures.
    pub image: Arc<str>,
    /// Changes when anything changes that a new host would be started with: hosts of an older one are retired when
    /// idle.
    pub fingerprint: u64,
}

/// Hosts that are suspended when they are idle.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Suspend {
    /// A host that is older, counted from its order, is terminated instead, and while it is suspended.
    pub max_age: Duration,
}

/// The kinds of things that make hosts.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum ProviderKind {
    /// A child process of the master.
    Process,
    /// Amazon EC2, or what is compatible with it.
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
