//! The configuration: `rouse.toml` read into types that cannot be wrong, with everything that is wrong said at once.
//!
//! Three passes. `document` parses the text and keeps where each value stands; `general`, `workers` and `hosts` validate;
//! what comes out is wired to the core as a [`Plan`]. A fault never ends a pass: it is noted, a stand-in value goes on,
//! and a configuration with any fault is not handed out.

mod fault;
pub mod hosts;
mod secret;

pub use fault::{Fault, Faults};
pub use hosts::{Ec2Config, HostConfig, LibvirtConfig, OpenstackConfig, ProcessConfig};
pub use secret::Secret;

use crate::core::plan::{Plan, ProviderKind};
use rouse_shared::WorkerName;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The providers that this build of rouse has. The keys of the others are checked all the same.
pub const AVAILABLE: &[ProviderKind] = &[ProviderKind::Process];

/// A whole configuration, checked.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    /// The file that it came from, as it was named.
    pub path: PathBuf,
    /// `[master]`
    pub master: MasterConfig,
    /// `[broker]`
    pub broker: BrokerConfig,
    /// `[mail]`
    pub mail: MailConfig,
    /// USD a day, where the provider knows a price; absent: no cap. Above 0.
    pub max_spend_per_day: Option<f64>,
    /// Workers and limits, as the core knows them.
    pub plan: Plan,
    /// How the hosts of each latent worker are made. Exactly the workers of the plan that are latent.
    pub hosts: BTreeMap<WorkerName, HostConfig>,
    /// What is likely not meant, in the order of the file.
    pub warnings: Vec<Fault>,
}

/// The master itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MasterConfig {
    /// Stamped on every host that it starts: 1 to 63 of letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// Where the ledger, the logs, the identity and the private broker's data are.
    pub state_dir: PathBuf,
    /// Where the page and the HTTP API are served.
    pub listen: SocketAddr,
    /// Needed to change anything over HTTP; absent: made at start in the state directory.
    pub api_token: Option<Secret>,
    /// What every lease is extended by when the master is asked to end.
    pub restart_lease: Duration,
}

/// The broker: a private one, or the user's own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BrokerConfig {
    /// Where a private broker listens; at least one.
    pub listen: Vec<SocketAddr>,
    /// The user's own broker: an `amqp://` or `amqps://` address, hosts separated by commas in the order of preference.
    pub url: Option<Secret>,
    /// PEM file of what the broker's certificate is signed by.
    pub ca: Option<PathBuf>,
    /// What agents are told to dial, where it differs. Without user and password.
    pub agent_url: Option<String>,
    /// Where the broker asks who may connect and do what.
    pub auth_listen: SocketAddr,
}

/// How mail is sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MailConfig {
    /// The sender's address.
    pub from: String,
    /// Who takes the mail.
    pub relay: Relay,
    /// Told of every missing worker, besides the worker's own list.
    pub extra_recipients: Vec<String>,
}

/// An SMTP server that takes our mail.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Relay {
    /// Name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// How the connection is protected.
    pub tls: RelayTls,
    /// User and password.
    pub login: Option<(String, Secret)>,
}

/// How a connection to a mail relay is protected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RelayTls {
    /// `smtps://`: from the first byte.
    Implicit,
    /// `?tls=required`: STARTTLS, or nothing is sent.
    Required,
    /// STARTTLS where the relay offers it.
    Opportunistic,
    /// `?tls=none`: never.
    Never,
}
