//! Masters that share a ledger in PostgreSQL: one of them is active, the others stand by.

use rouse_shared::Timestamp;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// What a master says about itself to those that it shares the ledger with.
#[derive(Clone)]
pub struct Claim {
    /// Which installation it is: the same after a restart, and different for each state directory.
    pub instance: String,
    /// The URL of its API, as the others and their users reach it.
    pub address: String,
    /// Whether it reaches the broker.
    pub broker: Arc<AtomicBool>,
    /// A fingerprint of each part of its configuration, as JSON.
    pub configuration: Arc<Mutex<String>>,
}

impl Claim {
    /// Whether it reaches the broker.
    pub fn reaches_broker(&self) -> bool {
        self.broker.load(Ordering::Relaxed)
    }
}

/// A master that shares the ledger.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fellow {
    /// [`Claim::instance`].
    pub instance: String,
    /// Its process and machine, for people.
    pub holder: String,
    /// The URL of its API.
    pub address: String,
    /// Its version.
    pub version: String,
    /// Whether it reaches the broker.
    pub broker: bool,
    /// [`Claim::configuration`].
    pub configuration: String,
    /// Since when this process has been there, by the clock of the database.
    pub since: Timestamp,
    /// When it was last heard of, by the same clock.
    pub seen: Timestamp,
    /// The number of its lease, if it is active. Each takeover increments it.
    pub epoch: Option<u64>,
}
