//! Who this agent is: its worker's name, its password, its broker, and the machine that it runs on.
//!
//! With `identity = "auto"` the first of these that exists is used:
//!
//! 1. the file `boot_data`;
//! 2. boot data in the firmware: QEMU's fw_cfg device;
//! 3. `name` in the configuration, unless the host is latent;
//! 4. boot data in the user data of EC2 or OpenStack, if the firmware says that the machine is one of theirs;
//! 5. boot data on a config drive;
//! 6. `name` in the configuration;
//! 7. the host name.
//!
//! A machine of a cloud waits for the cloud's answer, because nothing else identifies its worker. It continues with
//! the next source only if the cloud answers that there are no boot data. No other machine waits for a metadata
//! service.

mod boot_text;
mod config_drive;
pub(crate) mod ec2;
mod fat;
mod firmware;
mod host;
mod hostname;
mod iso9660;
mod leases;
mod openstack;

pub use hostname::kernel_name;

use crate::config::{AgentConfig, IdentityKind};
use crate::core::{Level, NETWORK_DEBOUNCE};
use crate::diagnostics::log;
use crate::http::HttpError;
use crate::network::Changes;
use crate::tls::Trust;
use boot_text::BootText;
use firmware::Cloud;
use rouse_shared::WorkerName;
use rouse_shared::error::Chain;
use rouse_shared::message::Proof;
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;

/// First and longest pause between requests to a cloud that does not answer.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// Everything that an agent needs to know about itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// The worker that the agent runs builds for.
    pub worker: WorkerName,
    /// Host identity, as [`rouse_shared::message::Hello::identity`] describes it.
    pub host: String,
    /// Evidence of the host identity.
    pub proof: Proof,
    /// The user of the machine's disk: the host id of the boot data, otherwise the host identity.
    pub user: String,
    /// The worker's password, or the boot token.
    pub password: String,
    /// Address of the broker: `amqp://` or `amqps://`, one or more hosts.
    pub broker: String,
    /// Which certificates of the broker are accepted.
    pub trust: Trust,
    /// Replaces the configuration's `power_off_after`.
    pub power_off_after: Option<Duration>,
    /// Whether the identity is from EC2's metadata service, which will then announce the end of the instance.
    pub is_ec2: bool,
}

/// Why there is no identity.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// A file cannot be read.
    #[error("{} cannot be read", .0.display())]
    Unreadable(PathBuf, #[source] std::io::Error),
    /// The boot data are invalid: where they are, and why.
    #[error("the boot data in {0} cannot be used: {1}")]
    BadBootData(String, String),
    /// The configuration lacks a key that is always needed.
    #[error("this agent has no identity: the configuration has no {0}")]
    Missing(&'static str),
    /// There are no boot data, and the configuration lacks a key that would replace them.
    #[error("this agent has no identity: there are no boot data, and the configuration has no {0}")]
    NoBootData(&'static str),
    /// There are boot data neither in a file nor in the firmware, and nothing else may be used.
    #[error("this agent has no identity: boot_data is not set, and the firmware has no boot data that it may read")]
    NoLocalBootData,
}

/// A machine as its cloud describes it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Machine {
    /// Host identity; if absent, the firmware's is used.
    host: Option<String>,
    proof: Proof,
    boot: Option<BootText>,
    is_ec2: bool,
}

/// Why a cloud has not identified this machine. All but [`CloudError::Off`] may be temporary.
#[derive(Debug, Error)]
pub(crate) enum CloudError {
    /// No usable response.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// A path is answered with an unexpected status.
    #[error("{0} is answered with status {1}")]
    Status(String, u16),
    /// The service is disabled for this machine.
    #[error("the service is disabled for this machine")]
    Off,
    /// The cloud's data are invalid; how.
    #[error("{0}")]
    Odd(&'static str),
    /// There is no config drive.
    #[error("no disk is labelled config-2")]
    NoDrive,
    /// The config drive cannot be read.
    #[error("{} cannot be read", .0.display())]
    Disk(PathBuf, #[source] std::io::Error),
}

/// The identity that the configuration asks for. Waits without limit for what a machine may get only after its start: a
/// metadata service, a config drive, a host name.
///
/// # Errors
/// If something is unreadable or invalid; never because a machine has no name yet.
pub async fn identify(config: &AgentConfig) -> Result<Identity, IdentityError> {
    identify_below(config, Path::new("/")).await
}

/// The same, with the machine's files below `root`.
async fn identify_below(config: &AgentConfig, root: &Path) -> Result<Identity, IdentityError> {
    match config.identity {
        IdentityKind::Static => by_name(config, root, Machine::default()),
        IdentityKind::Hostname => by_host_name(config, root, Machine::default()).await,
        IdentityKind::BootData => match local_boot_data(config, root).await? {
            Some(boot) => boot.identity(config, root, Machine::default()),
            None => Err(IdentityError::NoLocalBootData),
        },
        IdentityKind::Ec2 => by_machine(config, root, ec2(config, false).await),
        IdentityKind::OpenStack => by_machine(config, root, openstack(config, root).await),
        IdentityKind::ConfigDrive => {
            let machine = ask("the config drive", async || config_drive::look(root).await).await;
            by_machine(config, root, machine)
        }
        IdentityKind::Auto => auto(config, root).await,
    }
}

async fn auto(config: &AgentConfig, root: &Path) -> Result<Identity, IdentityError> {
    if let Some(boot) = local_boot_data(config, root).await? {
        return boot.identity(config, root, Machine::default());
    }
    if config.name.is_some() && !config.latent {
        return by_name(config, root, Machine::default());
    }
    let machine = match firmware::cloud(root) {
        Some(Cloud::Ec2) => ec2(config, true).await,
        Some(Cloud::OpenStack) => openstack(config, root).await,
        None => match config_drive::look(root).await {
            Ok(machine) => machine,
            Err(error) => {
                if !matches!(error, CloudError::NoDrive) {
                    log(Level::Warn, &format!("ignoring the config drive: {}", Chain(&error)));
                }
                Machine::default()
            }
        },
    };
    if machine.boot.is_some() || config.name.is_some() {
        return by_machine(config, root, machine);
    }
    by_host_name(config, root, machine).await
}

async fn ec2(config: &AgentConfig, may_be_off: bool) -> Machine {
    let mut service = ec2::Metadata::new(config.metadata.clone());
    ask("EC2's metadata service", async || match ec2::look(&mut service).await {
        Err(CloudError::Off) if may_be_off => {
            log(Level::Warn, "EC2's metadata service is disabled for this machine");
            Ok(Machine::default())
        }
        other => other,
    })
    .await
}

async fn openstack(config: &AgentConfig, root: &Path) -> Machine {
    ask("OpenStack's metadata", async || openstack::look(&config.metadata, root).await).await
}

/// Asks until there is an answer, and logs what it waits for.
async fn ask(what: &str, mut question: impl AsyncFnMut() -> Result<Machine, CloudError>) -> Machine {
    let network = Changes::listen();
    let mut logged = String::new();
    let mut pause = ASK_AGAIN.0;
    loop {
        let why = match question().await {
            Ok(machine) => return machine,
            Err(error) => Chain(&error).to_string(),
        };
        if logged != why {
            log(Level::Warn, &format!("waiting for {what}: {why}"));
            logged = why;
        }
        match tokio::time::timeout(pause, network.next()).await {
            Err(_) => pause = (pause * 2).min(ASK_AGAIN.1),
            Ok(()) => {
                tokio::time::sleep(NETWORK_DEBOUNCE).await;
                pause = ASK_AGAIN.0;
            }
        }
    }
}

/// Boot data that need no network: from the file that the configuration names, otherwise from the firmware.
async fn local_boot_data(config: &AgentConfig, root: &Path) -> Result<Option<BootText>, IdentityError> {
    match &config.boot_data {
        Some(path) => BootText::in_file(path).map(Some),
        None => {
            firmware::show_fw_cfg(root).await;
            Ok(firmware::boot_data(root))
        }
    }
}

/// By the machine's boot data, otherwise as the worker that the configuration names: an image can be tested as a
/// standing worker before latent hosts are started from it.
fn by_machine(config: &AgentConfig, root: &Path, mut machine: Machine) -> Result<Identity, IdentityError> {
    match machine.boot.take() {
        Some(boot) => boot.identity(config, root, machine),
        None if config.name.is_some() => by_name(config, root, machine),
        None => Err(IdentityError::NoBootData("name")),
    }
}

fn by_name(config: &AgentConfig, root: &Path, machine: Machine) -> Result<Identity, IdentityError> {
    let worker = config.name.clone().ok_or(IdentityError::Missing("name"))?;
    standing(config, root, worker, machine)
}

async fn by_host_name(config: &AgentConfig, root: &Path, machine: Machine) -> Result<Identity, IdentityError> {
    // Before the wait, which would not change what the configuration lacks.
    for (key, missing) in [("password", config.password.is_none()), ("broker", config.broker.is_none())] {
        if missing {
            return Err(IdentityError::NoBootData(key));
        }
    }
    let worker = hostname::wait(root, &config.default_hostnames, config.latent).await;
    standing(config, root, worker, machine)
}

fn standing(
    config: &AgentConfig,
    root: &Path,
    worker: WorkerName,
    machine: Machine,
) -> Result<Identity, IdentityError> {
    let host = machine.host.or_else(|| host::identity(root)).unwrap_or_else(|| format!("name:{worker}"));
    Ok(Identity {
        worker,
        user: host.clone(),
        host,
        proof: machine.proof,
        password: config.password.clone().ok_or(IdentityError::NoBootData("password"))?,
        broker: config.broker.clone().ok_or(IdentityError::NoBootData("broker"))?,
        trust: trust(config)?,
        power_off_after: None,
        is_ec2: machine.is_ec2,
    })
}

/// Which certificates of the broker the configuration accepts.
fn trust(config: &AgentConfig) -> Result<Trust, IdentityError> {
    if let Some(fingerprint) = config.fingerprint {
        return Ok(Trust::Only(fingerprint));
    }
    let Some(path) = &config.ca else { return Ok(Trust::Authorities(None)) };
    let pem = std::fs::read_to_string(path).map_err(|e| IdentityError::Unreadable(path.clone(), e))?;
    Ok(Trust::Authorities(Some(pem)))
}

#[cfg(test)]
mod fuzz_tests;
#[cfg(test)]
mod tests;
