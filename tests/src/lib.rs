//! Simulation, contract tests and end-to-end tests: what they share.

pub mod harness;
