//! Changes of the network are reported, in a network of the test.
#![allow(clippy::unwrap_used)]

use rouse_agent::network::Changes;
use std::future::Future as _;
use std::pin::pin;
use std::process::Command;
use std::task::{Context, Waker};
use std::time::Duration;

#[test]
fn a_change_of_the_network_is_reported() {
    // SAFETY: no pointers. Only this thread, which ends with the test, gets another network.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        assert!(std::env::var_os("CI").is_none(), "only root can have a network of its own");
        eprintln!("skipped: only root can have a network of its own");
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let changes = Changes::listen();
        let is_reported = || pin!(changes.next()).poll(&mut Context::from_waker(Waker::noop())).is_ready();
        for change in [["link", "set", "lo", "up"], ["address", "add", "192.0.2.7/32", "dev lo"]] {
            while is_reported() {}
            let words = change.iter().flat_map(|word| word.split(' '));
            assert!(Command::new("ip").args(words).status().unwrap().success(), "{change:?}");
            tokio::time::timeout(Duration::from_secs(60), changes.next()).await.unwrap();
        }
    });
}
