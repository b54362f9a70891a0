//! Audits in the API.

use super::object::object;
use crate::core::audit::DifferenceKind;
use crate::core::plan::ProviderKind;
use rouse_shared::HostId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What an audit does about differences.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default, remote = "Self")]
pub struct AuditRequest {
    /// Terminate orphans, and mark hosts that no provider lists any more as terminated.
    pub fix: bool,
    /// With `fix`: also terminate machines with the master's name but another id.
    pub adopt: bool,
}

object!(AuditRequest, "an object, such as { \"fix\": true }");

/// What an audit has found.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Audit {
    /// Whether the ledger and the lists agree: there was no difference, or this audit has fixed all of them.
    pub clean: bool,
    /// The differences.
    pub differences: Vec<Difference>,
    /// Hosts in the ledger.
    pub hosts: usize,
    /// Machines that the providers list under the master's name.
    pub listed: usize,
}

/// One difference between the ledger and what a provider lists.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Difference {
    /// The kind of the difference.
    pub kind: DifferenceKind,
    /// The provider.
    pub provider: ProviderKind,
    /// The id or name that the provider gives to the machine.
    #[schema(required)]
    pub handle: Option<String>,
    /// The host's id.
    #[schema(required, value_type = Option<String>)]
    pub host: Option<HostId>,
    /// The id of the other master that the machine belongs to.
    #[schema(required)]
    pub owner: Option<String>,
    /// The difference, in one sentence.
    pub why: String,
    /// Whether this audit has fixed it.
    pub done: bool,
}
