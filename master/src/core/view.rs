//! What people see of the core's state: plain data for lists and pages.

use super::build::{Build, BuildState};
use super::event::WorkerState;
use super::plan::ProviderKind;
use super::record::{DesiredState, Host};
use rouse_shared::message::{Facts, Vitals};
use rouse_shared::{BuildId, HostId, Timestamp, WorkerName};
use std::collections::BTreeMap;

/// A build as people see it.
#[derive(Clone, PartialEq, Debug)]
pub struct BuildView {
    /// The build.
    pub build: Build,
    /// Its state, including whether a host is being started for it.
    pub state: BuildState,
}

/// A worker as people see it.
#[derive(Clone, PartialEq, Debug)]
pub struct WorkerView {
    /// Its name.
    pub name: WorkerName,
    /// The provider of its hosts; absent for a standing worker.
    pub provider: Option<ProviderKind>,
    /// Its state.
    pub state: WorkerState,
    /// Since when it is in that state.
    pub since: Timestamp,
    /// Number of assigned attempts that have not ended.
    pub running: u32,
    /// Largest number of builds at the same time.
    pub max_builds: Option<u32>,
    /// Its host, while there is one.
    pub host: Option<HostId>,
    /// Version of its agent, while one is attached.
    pub agent_version: Option<String>,
    /// Its agent's machine, while one is attached.
    pub facts: Option<Facts>,
    /// The load of its machine at the last heartbeat.
    pub vitals: Option<Vitals>,
    /// When its agent last sent a hello or a heartbeat; absent after a restart of the master until the next one.
    pub last_heard: Option<Timestamp>,
    /// The agent that was last refused under its name, within the last ten minutes and since the master started.
    pub refused: Option<Refusal>,
    /// What an operator has requested.
    pub wish: DesiredState,
    /// Properties for `where`.
    pub properties: BTreeMap<String, String>,
    /// Why its last host failed, until one succeeds.
    pub last_failure: Option<String>,
    /// When the next start is tried after failures.
    pub next_try: Option<Timestamp>,
}

/// An agent that the master has refused under a worker's name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// When it was last refused.
    pub at: Timestamp,
    /// The machine that it claims to be on, at most 100 characters.
    pub identity: String,
    /// The reason, at most 300 characters.
    pub reason: String,
}

/// A host as people see it.
#[derive(Clone, PartialEq, Debug)]
pub struct HostView {
    /// The host.
    pub host: Host,
    /// The builds that run on it now.
    pub builds: Vec<BuildId>,
}

/// Why a build has not started, or what it is doing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Why {
    /// One sentence.
    pub sentence: String,
    /// When the next try is, if there will be one.
    pub next_try: Option<Timestamp>,
}
