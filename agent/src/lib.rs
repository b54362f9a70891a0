//! The agent that runs builds on a host.

pub mod clock;
pub mod core;
pub mod runner;
pub mod spool;
