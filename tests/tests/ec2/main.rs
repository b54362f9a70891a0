//! EC2 hosts: the provider against moto's server, through the real SDK and a proxy that loses what it is told to.
#![allow(clippy::unwrap_used)]

mod ami;
mod check;
mod contract;
mod failures;
mod options;
mod spot;
mod stand;
mod suspend;
mod whole;
