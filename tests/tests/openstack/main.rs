//! Hosts of OpenStack, on the real Keystone, Glance and Nova. All tests share one cloud.
#![allow(clippy::unwrap_used)]

mod account;
mod contract;
mod faults;
mod servers;
mod stand;
