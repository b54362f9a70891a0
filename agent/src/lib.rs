//! The agent that runs builds on a host.
//!
//! `core` decides and `driver` acts: it passes to the core what `link`, `build_logs` and `runner` report, and performs
//! the effects that the core returns.

pub mod build_logs;
pub mod clock;
pub mod config;
pub mod core;
pub mod diagnostics;
pub mod driver;
mod files;
pub mod http;
pub mod identity;
pub mod link;
mod mutex;
pub mod network;
pub mod notices;
pub mod runner;
pub mod spool;
pub mod tls;
pub mod vitals;

#[cfg(test)]
mod meter;

#[cfg(test)]
#[path = "../tests/support/metadata.rs"]
mod fake_metadata;
