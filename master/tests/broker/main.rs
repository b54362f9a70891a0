//! The broker's side of the master against a real RabbitMQ: private node, who may do what, link, TLS.
//!
//! One node is shared by most tests; each test has worker names of its own.
#![allow(clippy::unwrap_used)]

mod auth;
mod harness;
mod ipv6;
mod life;
mod link;
mod owner;
mod throughput;
