//! The master's side of the broker with a real RabbitMQ: private node, permissions, link, TLS.
//!
//! Most tests share one node. Each test has its own worker names.
#![allow(clippy::unwrap_used)]

mod auth;
mod harness;
mod ipv6;
mod life;
mod link;
mod owner;
mod throughput;
