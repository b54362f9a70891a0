//! Hosts in OpenStack, with the real Keystone, Glance and Nova. All tests share one cloud.
#![allow(clippy::unwrap_used)]

mod account;
mod check;
mod contract;
mod extras;
mod faults;
mod fixture;
mod full_system;
mod images;
mod lost;
mod places;
mod refusals;
mod servers;

use rouse_tests::harness::Keeper;
use rouse_tests::openstack::Cloud;
use serde_json::json;

#[test]
#[ignore = "keeps the shared cloud for the other tests, which start it"]
fn keeper() {
    let Some(keeper) = Keeper::here() else { return };
    let (cloud, _process) = Cloud::start();
    keeper.serve(&json!({ "cloud": cloud.description() }), |request| panic!("nobody may {request} it"));
    std::fs::remove_dir_all(cloud.dir).ok();
}
