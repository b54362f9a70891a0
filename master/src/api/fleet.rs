//! Workers, hosts, mails and the master's health in the API.

use super::{Id, Time};
use crate::core::event::WorkerState;
use crate::core::plan::ProviderKind;
use crate::core::record::HostState;
use crate::core::view::PlaceState;
use rouse_shared::{HostId, WorkerName};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use utoipa::ToSchema;

/// A worker.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Worker {
    /// Its name.
    #[schema(value_type = String)]
    pub name: WorkerName,
    /// The name of its `[[worker]]` as the configuration writes it, such as `w-{1..4}`; absent if it is no longer in the
    /// configuration.
    #[schema(required)]
    pub template: Option<String>,
    /// Whether its machine is kept running by somebody (`standing`) or started by the master (`latent`).
    pub kind: WorkerKind,
    /// The provider that starts its hosts, for a latent worker.
    #[schema(required)]
    pub provider: Option<ProviderKind>,
    /// Its state.
    pub state: WorkerState,
    /// Since when it has been in that state.
    pub since: Time,
    /// Number of attempts that it is running.
    pub running: u32,
    /// Maximum number of attempts at the same time.
    #[schema(required)]
    pub max_builds: Option<u32>,
    /// Its host, while there is one.
    #[schema(required, value_type = Option<String>)]
    pub host: Option<HostId>,
    /// Version of its agent, while one is attached.
    #[schema(required)]
    pub agent_version: Option<String>,
    /// Its properties, which `where` of a build selects.
    pub properties: BTreeMap<String, String>,
    /// Why its last host failed; absent once a host has attached.
    #[schema(required)]
    pub last_failure: Option<String>,
    /// When the master next tries to start a host for it, after failures.
    #[schema(required)]
    pub next_try: Option<Time>,
    /// The machine that its agent is on, while one is attached.
    #[schema(required)]
    pub facts: Option<Facts>,
    /// Why it takes no builds although its agent is attached and nobody has asked for that.
    #[schema(required)]
    pub unfit: Option<String>,
    /// Load, memory and disk of that machine at the last heartbeat.
    #[schema(required)]
    pub vitals: Option<Vitals>,
    /// When its agent was last heard.
    #[schema(required)]
    pub last_heard: Option<Time>,
    /// The last agent that was refused under its name in the last ten minutes.
    #[schema(required)]
    pub refused: Option<Refusal>,
}

/// The kinds of workers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum WorkerKind {
    /// Somebody keeps its machine running.
    Standing,
    /// The master starts its machine when a build waits.
    Latent,
}

impl WorkerKind {
    /// As it is written in listings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Standing => "standing",
            Self::Latent => "latent",
        }
    }
}

/// An operation on a worker that was carried out.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct WorkerOperation {
    /// The worker's name.
    #[schema(value_type = String)]
    pub name: WorkerName,
    /// The operation.
    pub operation: crate::core::event::Operation,
}

/// The machine that an agent is on.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Facts {
    /// Operating system, as `uname` prints it.
    pub os: String,
    /// Architecture, as `uname -m` prints it.
    pub arch: String,
    /// Host name.
    pub hostname: String,
    /// Number of processors.
    pub cpus: u32,
    /// Memory, bytes.
    pub memory: u64,
    /// The limits of steps that are enforced: `memory`, `pids`, `cpus`. Absent if its agent has no cgroups for steps.
    #[schema(required)]
    pub enforced_limits: Option<Vec<String>>,
    /// Why its agent has no cgroups for steps.
    #[schema(required)]
    pub no_cgroups: Option<String>,
}

/// Load, memory and disk of a machine at its agent's last heartbeat.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Vitals {
    /// Load average of one minute.
    pub load: f32,
    /// Memory in use, bytes.
    pub memory_used: u64,
    /// Memory, bytes.
    pub memory_total: u64,
    /// Free space of the file system that builds run on, bytes.
    pub disk_free: u64,
    /// Size of the file system that builds run on, bytes.
    pub disk_total: u64,
}

/// An agent that was refused.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Refusal {
    /// When.
    pub at: Time,
    /// The machine that it claims to be on.
    pub identity: String,
    /// Why.
    pub reason: String,
}

/// A host. Its token and its console output are left out.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Host {
    /// Its id.
    #[schema(value_type = String)]
    pub id: HostId,
    /// Its worker.
    #[schema(value_type = String)]
    pub worker: WorkerName,
    /// The provider that started it.
    pub provider: ProviderKind,
    /// The id or name that the provider gives to its machine.
    #[schema(required)]
    pub handle: Option<String>,
    /// Its state.
    pub state: HostState,
    /// When the master ordered it.
    pub created: Time,
    /// When the provider had created its machine.
    #[schema(required)]
    pub booted: Option<Time>,
    /// When its agent attached.
    #[schema(required)]
    pub attached: Option<Time>,
    /// How many builds it has run.
    pub uses: u32,
    /// The build that it was started for.
    #[schema(required)]
    pub build: Option<Id>,
    /// The builds that run on it now.
    pub builds: Vec<Id>,
    /// Since when it has been suspended.
    #[schema(required)]
    pub suspended_since: Option<Time>,
    /// Why it is being terminated, and why it is still there if that has failed.
    #[schema(required)]
    pub why: Option<String>,
    /// What it has cost, USD.
    #[schema(required)]
    pub cost: Option<f64>,
}

/// A host that is being terminated because an operator asked for it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct TerminatedHost {
    /// Its id.
    #[schema(value_type = String)]
    pub id: HostId,
}

/// A place: where hosts may all fail for the same reason, such as one region with one account, one hypervisor or one
/// cloud.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Place {
    /// Its id.
    pub id: String,
    /// The provider of the hosts there.
    pub provider: ProviderKind,
    /// Its name in the configuration.
    pub name: String,
    /// Its state.
    pub state: PlaceState,
    /// Number of hosts there that are not terminated.
    pub hosts: usize,
    /// Why it is paused.
    #[schema(required)]
    pub reason: Option<String>,
    /// When its pause began.
    #[schema(required)]
    pub since: Option<Time>,
    /// When the master probes it next.
    #[schema(required)]
    pub next_probe: Option<Time>,
}

/// A host that was given up.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ForgottenHost {
    /// Its id.
    #[schema(value_type = String)]
    pub id: HostId,
}

/// A place that was given up.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ForgottenPlace {
    /// Its id.
    pub id: String,
}

/// The API token was replaced.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct RotatedToken {
    /// The path of the file with the new token, on the machine of the master.
    pub file: String,
}

/// A mail that the relay has not accepted yet.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Mail {
    /// Its message id.
    pub id: String,
    /// The recipients that still wait.
    pub waiting: BTreeSet<String>,
    /// The events that it reports, one sentence for each.
    pub tells: Vec<String>,
    /// When it was written.
    pub created: Time,
    /// How often the master has tried to send it.
    pub tries: u32,
    /// When the master tries again.
    pub next_try: Time,
    /// Why the last try failed.
    #[schema(required)]
    pub error: Option<String>,
}

/// The uploads of logs to the blob store.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct LogUploads {
    /// The blob store; absent if logs stay on the master's disk.
    #[schema(required)]
    pub store: Option<String>,
    /// Ended builds whose logs are not in it yet.
    pub waiting: u64,
    /// Bytes of these logs.
    pub waiting_bytes: u64,
    /// What is wrong with it, since when, and when the next try is; absent if the last upload has succeeded.
    #[schema(required)]
    pub trouble: Option<String>,
}

/// The master can do its work.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// Always `ok`; a master that cannot do its work answers 503.
    pub status: HealthStatus,
    /// The master's name.
    pub master: String,
    /// The master's version.
    pub version: String,
    /// Whether it is active or stands by.
    pub role: Role,
}

/// What a master does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It has the ledger, starts hosts and assigns builds.
    Active,
    /// It waits until the active master gives the ledger up or is not heard of, and answers those who only read.
    Standby,
}

/// A master that shares the ledger.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Master {
    /// Its process and machine.
    pub holder: String,
    /// Whether it is active or stands by.
    pub role: Role,
    /// The URL of its API.
    pub address: String,
    /// Its version.
    pub version: String,
    /// Whether it reaches the broker.
    pub broker: bool,
    /// Since when this process has been there.
    pub since: Time,
    /// When it was last heard of.
    pub seen: Time,
    /// The number of the active master's lease. Each takeover increments it.
    #[schema(required)]
    pub epoch: Option<u64>,
}

/// The state of the master.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    /// It can do its work.
    Ok,
}
