//! The journal of operations in the API.

use super::Time;
use crate::core::journal::{Action, PrincipalKind};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An operation that somebody has carried out.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct JournalEntry {
    /// Its number.
    pub id: String,
    /// When it was carried out.
    pub at: Time,
    /// Who has carried it out: the name of a token, or of a user.
    pub who: String,
    /// Where the name comes from.
    pub kind: PrincipalKind,
    /// The address that the request came from; `socket` for the socket of the commands, `signal` for a signal.
    pub from: String,
    /// What was done.
    pub action: Action,
    /// The worker, host, place or build; null if it concerns the master.
    #[schema(required)]
    pub target: Option<String>,
    /// Why, if somebody has said it.
    #[schema(required)]
    pub note: Option<String>,
}

/// A configuration that the master has read again.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Reloaded {
    /// Keys that have changed and take effect when the master is restarted.
    pub needs_restart: Vec<String>,
    /// What is probably not intended, with its place in the file.
    pub warnings: Vec<String>,
}
