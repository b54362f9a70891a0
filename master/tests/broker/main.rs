//! The master's side of the broker with a real RabbitMQ: private node, permissions, link, TLS.
//!
//! The tests in `auth` and `link` share one node. nextest runs each test in its own process, and each would start a node.
//! Therefore [`on_one_node`] runs them together, in one process. Each test has its own worker names.
#![allow(clippy::unwrap_used)]

mod auth;
mod harness;
mod ipv6;
mod life;
mod link;
mod owner;

use std::process::Command;

#[test]
fn on_one_node() {
    let mut tests = Command::new(std::env::current_exe().unwrap());
    let said = tests.args(["--ignored", "auth::", "link::"]).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    assert!(said.status.success() && out.contains("test result: ok. 9 passed"), "{out}\n{err}");
}
