//! Hosts of OpenStack, on the real Keystone, Glance and Nova. All tests share one cloud.
#![allow(clippy::unwrap_used)]

mod account;
mod check;
mod contract;
mod extras;
mod faults;
mod images;
mod lost;
mod servers;
mod stand;
mod whole;
