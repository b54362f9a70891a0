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
    /// Terminate orphans, and take hosts that no provider lists any more for terminated.
    pub fix: bool,
    /// With `fix`: terminate machines that carry the master's name and another id too.
    pub adopt: bool,
}

object!(AuditRequest, "an object, such as { \"fix\": true }");

/// What an audit has found.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Audit {
    /// Whether nothing differs, or nothing any more.
    pub clean: bool,
    /// What differs.
    pub differences: Vec<Difference>,
    /// Hosts in the ledger.
    pub hosts: usize,
    /// Machines that the providers list under the master's name.
    pub listed: usize,
}

/// One difference between the ledger and what a provider lists.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Difference {
    /// How they differ.
    pub kind: DifferenceKind,
    /// The provider.
    pub provider: ProviderKind,
    /// What the provider calls the machine.
    #[schema(required)]
    pub handle: Option<String>,
    /// The host's id.
    #[schema(required, value_type = Option<String>)]
    pub host: Option<HostId>,
    /// The other id that the machine carries.
    #[schema(required)]
    pub owner: Option<String>,
    /// What differs, in a sentence.
    pub why: String,
    /// Whether this audit has put it right.
    pub done: bool,
}
