//! The master's side of RabbitMQ: a private node as its own child, the answers to who may do what, and the connection.
//!
//! This module communicates through channels and does not use the core. [`Node`] runs a broker if the
//! operator has none, [`AuthServer`] answers the broker's requests about every agent, and [`Link`] carries messages in
//! both directions and reconnects without a time limit.
//!
//! **Invariant**: no part of a private node outlives the master, and nothing here touches a broker of the operating
//! system.

pub mod auth;
pub mod authority;
pub mod limits;
pub mod link;
pub mod node;
pub mod online;
pub mod rate_limiter;
pub mod refusals;

pub use auth::{Admission, Askers, AuthServer};
pub use authority::Authority;
pub use link::{
    Dropped, Endpoints, Inbound, Link, LinkHandle, LinkSettings, LogDelivery, Outbound, Receipt, Trust, ack_all,
};
pub use node::{Node, NodeError, NodeSettings, NodeState, NodeTls};
pub use rate_limiter::RateLimiter;
pub use refusals::Refusals;

/// The virtual host of the private node.
pub const VHOST: &str = crate::config::PRIVATE_VHOST;

/// The master's own account on the private node. The underscore keeps it from ever being a worker's name.
pub const MASTER_USER: &str = "rouse_master";

/// Directive for the tracing filter: lapin prints whole returned messages, secrets included, and its errors are
/// reported by [`link`] already.
pub const LOG_FILTER: &str = "lapin=off";
