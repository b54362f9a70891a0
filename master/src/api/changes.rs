//! The changes that `/api/events` and the exchange `rouse.events` publish.

use super::{Id, Time};
use crate::core::build::BuildState;
use crate::core::event::WorkerState;
use crate::core::record::HostState;
use rouse_shared::{HostId, WorkerName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A change of state.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Change {
    /// Of a build.
    Build(BuildChange),
    /// Of a worker.
    Worker(WorkerChange),
    /// Of a host.
    Host(HostChange),
}

/// A build has changed.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct BuildChange {
    /// Its number.
    pub id: Id,
    /// Its state now.
    pub state: BuildState,
    /// The worker that runs it.
    #[schema(required, value_type = Option<String>)]
    pub worker: Option<WorkerName>,
    /// When.
    pub at: Time,
}

/// A worker has changed.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct WorkerChange {
    /// Its name.
    #[schema(value_type = String)]
    pub name: WorkerName,
    /// Its state now.
    pub state: WorkerState,
    /// When.
    pub at: Time,
}

/// A host has changed.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct HostChange {
    /// Its id.
    #[schema(value_type = String)]
    pub id: HostId,
    /// Its worker.
    #[schema(value_type = String)]
    pub worker: WorkerName,
    /// Its state now.
    pub state: HostState,
    /// Why, if it is being terminated or has ended.
    #[schema(required)]
    pub why: Option<String>,
    /// When.
    pub at: Time,
}

/// The last event of a stream whose client was too slow: what it has missed cannot be sent again.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Lagged {
    /// How many changes it has missed.
    pub missed: u64,
}
