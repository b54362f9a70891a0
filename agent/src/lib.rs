//! The agent that runs builds on a host.

pub mod core;
