//! Hosts that are libvirt domains: real libvirtd, real QEMU guests, in a network of the tests' own.

#![cfg(feature = "libvirt")]
#![allow(clippy::unwrap_used)]
#![expect(clippy::disallowed_methods, reason = "a death is to be noticed within a second, of the wall's clock")]

mod builds;
mod check;
mod clones;
mod contract;
mod deaths;
mod evidence;
mod faults;
mod ground;
mod images;
#[cfg(feature = "ec2")]
mod metadata;
mod names;
mod places;
mod session;
mod site;
mod steps;
mod upheavals;

use rouse_tests::virt::own_world;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

static IN_OUR_NETWORK: AtomicBool = AtomicBool::new(false);

extern "C" fn enter() {
    IN_OUR_NETWORK.store(own_world(), Ordering::Relaxed);
}

/// Before `main`, and so before the test runner has threads: those would stay in the network that they began in.
#[used]
#[unsafe(link_section = ".init_array")]
static ENTER: extern "C" fn() = enter;

/// Tests that run at a time, at most: guests are emulated, and the more there are the longer each takes.
const TOGETHER: usize = 2;
static FREE: Mutex<usize> = Mutex::new(TOGETHER);
static FREED: Condvar = Condvar::new();

/// A test's turn, until it is dropped.
struct Turn(usize);

impl Turn {
    fn take(places: usize) -> Self {
        let free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = FREED.wait_while(free, |free| *free < places).unwrap_or_else(PoisonError::into_inner);
        *free -= places;
        Self(places)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *FREE.lock().unwrap_or_else(PoisonError::into_inner) += self.0;
        FREED.notify_all();
    }
}

/// For a test that has workers of its own, and leaves libvirtd and the master as they are.
fn together() -> Turn {
    Turn::take(1)
}

/// For a test that nobody else may run beside.
fn alone() -> Turn {
    Turn::take(TOGETHER)
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
