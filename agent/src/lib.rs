//! The agent that runs builds on a host.

pub mod clock;
pub mod runner;
pub mod spool;
