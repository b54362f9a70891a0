//! EC2 hosts and logs in S3 with moto's server, through a proxy that loses selected messages.
#![allow(clippy::unwrap_used)]

mod ami;
mod blobs;
mod check;
mod contract;
mod failures;
mod fixture;
mod full_system;
mod misfortunes;
mod options;
mod places;
mod refusals;
mod spot;
mod suspend;

use rouse_tests::ec2::Clouds;
use rouse_tests::harness::{Keeper, scratch};
use serde_json::json;

#[test]
#[ignore = "keeps what clouds are forked from for the other tests, which start it"]
fn keeper() {
    let Some(keeper) = Keeper::here() else { return };
    let dir = scratch("clouds");
    let socket = dir.join("socket");
    let clouds = Clouds::start(&socket);
    keeper.serve(&json!({ "clouds": socket }), |request| panic!("nobody may {request} it"));
    drop(clouds);
    std::fs::remove_dir_all(dir).unwrap();
}
