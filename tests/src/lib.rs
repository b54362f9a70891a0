//! Tests that need more than one crate: the simulation of both cores, the contract of the providers, and the harness of
//! the end-to-end tests.

pub mod browser;
pub mod chance;
pub mod contract;
#[cfg(feature = "ec2")]
pub mod ec2;
pub mod harness;
#[cfg(feature = "openstack")]
pub mod openstack;
pub mod proxy;
pub mod rogue;
pub mod sim;
pub mod virt;
