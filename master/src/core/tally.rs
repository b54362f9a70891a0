//! Counts what no record keeps, for the metrics: since this master was started.

use super::places::PlaceKey;
use std::collections::BTreeMap;

/// The counts.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Starts that failed.
    pub failed_starts: BTreeMap<FailedStart, u64>,
    /// Leases that ended because nothing was heard from the agent.
    pub expired_leases: u64,
}

/// Where and why a start failed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct FailedStart {
    /// [`PlaceKey::id`] of the host's place.
    pub place: String,
    /// [`super::plan::WorkerPlan::template`] of its worker; empty if the worker is no longer in the configuration.
    pub template: String,
    /// The kind.
    pub kind: FailureKind,
}

/// The kinds of failed starts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FailureKind {
    /// The machine ran, and its agent did not attach.
    Silent,
    /// The provider refused the order: wrong image, wrong type, no such thing.
    Rejected,
    /// The place could not be reached, or refused every order.
    Place,
    /// There was no capacity for any alternative.
    Capacity,
    /// A quota of the account ruled out every alternative.
    Quota,
    /// The cloud took the machine back before its agent attached.
    Reclaimed,
    /// An error that passes.
    Transient,
    /// The master or the broker was away, so no agent could attach.
    Outage,
}

impl FailureKind {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Silent,
        Self::Rejected,
        Self::Place,
        Self::Capacity,
        Self::Quota,
        Self::Reclaimed,
        Self::Transient,
        Self::Outage,
    ];

    /// As the metric has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::Rejected => "rejected",
            Self::Place => "place",
            Self::Capacity => "capacity",
            Self::Quota => "quota",
            Self::Reclaimed => "reclaimed",
            Self::Transient => "transient",
            Self::Outage => "outage",
        }
    }
}

impl Tally {
    /// A start has failed.
    pub(super) fn start_failed(&mut self, place: &PlaceKey, template: &str, kind: FailureKind) {
        let start = FailedStart { place: place.id(), template: template.to_owned(), kind };
        *self.failed_starts.entry(start).or_default() += 1;
    }
}
