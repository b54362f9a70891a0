//! The agent that runs builds on a host.
//!
//! `core` decides, `driver` acts: it feeds the core with what `link`, `logs` and `runner` report and performs what the
//! core asks for.

pub mod build_logs;
pub mod clock;
pub mod config;
pub mod core;
pub mod diagnostics;
pub mod driver;
pub mod http;
pub mod identity;
pub mod link;
pub mod network;
pub mod notices;
pub mod runner;
pub mod spool;
pub mod vitals;

#[cfg(test)]
mod meter;

#[cfg(test)]
#[path = "../tests/support/metadata.rs"]
mod fake_metadata;
