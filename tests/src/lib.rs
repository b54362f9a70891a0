//! What needs more than one crate: the simulation of both cores, the contract of the providers, and the harness of the end-to-end tests.

pub mod contract;
pub mod harness;
pub mod sim;
pub mod virt;
