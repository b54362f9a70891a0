//! What needs more than one crate: the simulation of both cores, and the harness of the end-to-end tests.

pub mod harness;
pub mod sim;
