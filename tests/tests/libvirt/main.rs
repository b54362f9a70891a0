//! Hosts that are libvirt domains: real libvirtd, real QEMU guests, in a network of the tests' own.

#![cfg(feature = "libvirt")]
#![allow(clippy::unwrap_used)]
#![expect(clippy::disallowed_methods, reason = "a death is to be noticed within a second, of the wall's clock")]
#![expect(clippy::await_holding_lock, reason = "one test has libvirtd at a time, on a thread of its own")]

mod alone;
mod builds;
mod contract;
mod deaths;
mod faults;
mod ground;
mod site;
mod steps;

use rouse_tests::virt::own_world;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

static IN_OUR_NETWORK: AtomicBool = AtomicBool::new(false);

extern "C" fn enter() {
    IN_OUR_NETWORK.store(own_world(), Ordering::Relaxed);
}

/// Before `main`, and so before the test runner has threads: those would stay in the network that they began in.
#[used]
#[unsafe(link_section = ".init_array")]
static ENTER: extern "C" fn() = enter;

/// One test at a time: guests are emulated, and two of them have the machine to do.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether virtual machines can be had here: only root can have a network of its own. CI has to.
fn may_run() -> bool {
    let may = IN_OUR_NETWORK.load(Ordering::Relaxed);
    assert!(may || std::env::var_os("CI").is_none(), "not root: these tests cannot run, and CI must run them");
    if !may {
        eprintln!("not tested: libvirt (only root can have a network of its own)");
    }
    may
}
