//! Hosts that are libvirt domains: real libvirtd, real QEMU guests, in a network of the tests.

#![cfg(feature = "libvirt")]
#![allow(clippy::unwrap_used)]

mod apart;
mod builds;
mod check;
mod claims;
mod clones;
mod contract;
mod deaths;
mod evidence;
mod faults;
mod images;
mod limits;
mod machines;
#[cfg(feature = "ec2")]
mod metadata;
mod names;
mod places;
mod secrets;
mod session;
mod steps;
mod system;
mod upheavals;

use rouse_tests::harness::{BEGIN, Keeper, is_keeper, kept, turn};
use rouse_tests::virt::{enter_world_of, own_world};
use serde_json::{Value, json};
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};

static IN_OUR_NETWORK: AtomicBool = AtomicBool::new(false);

extern "C" fn enter() {
    if is_keeper() {
        IN_OUR_NETWORK.store(own_world(), Ordering::Relaxed);
    }
}

/// Before `main`, and so before the keeper has threads: those would stay in the network that they began in.
#[used]
#[unsafe(link_section = ".init_array")]
static ENTER: extern "C" fn() = enter;

#[test]
#[ignore = "keeps the shared libvirtd and its master for the other tests, which start them"]
fn keeper() {
    let Some(keeper) = Keeper::here() else { return };
    if !IN_OUR_NETWORK.load(Ordering::Relaxed) {
        return keeper.serve(&json!({ "world": Value::Null }), |_| {});
    }
    let system = system::start();
    keeper.serve(&system.description(), |request| {
        assert_eq!(request, BEGIN);
        system.master.begin();
    });
    system.end();
}

/// A test's turn, until it is dropped, if it has workers of its own and leaves libvirtd and the master as they are.
/// How many there are at a time .config/nextest.toml says: guests are emulated, and the more there are the longer each
/// takes.
fn together() -> File {
    turn(false)
}

/// For a test that nobody else may run beside.
fn alone() -> File {
    turn(true)
}

/// Whether virtual machines can be had here: only root can have a network of its own. CI has to. This thread is then in
/// that network.
fn may_run() -> bool {
    let world = kept()["world"].as_i64();
    assert!(
        world.is_some() || std::env::var_os("CI").is_none(),
        "not root: these tests cannot run, and CI must run them"
    );
    match world {
        Some(pid) => enter_world_of(pid),
        None => eprintln!("not tested: libvirt (only root can have a network of its own)"),
    }
    world.is_some()
}

/// Runs a test with Tokio, whose threads are in the network of this one.
fn block_on(test: impl Future<Output = ()>) {
    tokio::runtime::Runtime::new().unwrap().block_on(test);
}
