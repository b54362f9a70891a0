//! Who this agent is: its worker's name, its password, its broker, and which machine it runs on.
//!
//! With `identity = "auto"` the first of these that is there counts:
//!
//! 1. the file `boot_data`;
//! 2. boot data in the firmware's strings, or in a file of qemu's;
//! 3. `name` in the configuration, unless the host is latent;
//! 4. boot data in the user data of EC2 or OpenStack, where the firmware says that the machine is one of theirs;
//! 5. boot data on a config drive;
//! 6. `name` in the configuration;
//! 7. the host name.
//!
//! A machine of a cloud's waits for the cloud's answer, since nothing else tells a worker from the next; only its word
//! that there are no boot data leads on. No other machine is ever kept waiting for a metadata service.

mod boot_text;
mod config_drive;
pub(crate) mod ec2;
mod firmware;
mod host;
mod hostname;
mod iso9660;
mod leases;
mod openstack;

pub use hostname::kernel_name;

use crate::config::{AgentConfig, IdentityKind};
use crate::core::{Level, SETTLES};
use crate::http::HttpError;
use crate::log;
use crate::network::Changes;
use boot_text::BootText;
use firmware::Cloud;
use rouse_shared::WorkerName;
use rouse_shared::error::Chain;
use rouse_shared::message::Proof;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// First and longest pause between questions to a cloud that does not answer.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// What a source of identity has found.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// The worker.
    pub worker: WorkerName,
    /// Which machine: what hello gives as the host identity.
    pub host: String,
    /// What speaks for it.
    pub proof: Proof,
    /// Whom the machine's disk is used for: the host of the boot data, else the machine.
    pub user: String,
    /// The worker's password, or the boot token.
    pub password: String,
    /// Where the broker is.
    pub broker: String,
    /// PEM certificates that the broker's is signed by, beside the system's.
    pub ca: Option<String>,
    /// Replaces the configuration's `power_off_after`.
    pub power_off_after: Option<Duration>,
    /// Whether EC2's metadata service told who it is, and will tell of its end.
    pub is_ec2: bool,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read.
    #[error("{} is not readable", .0.display())]
    Unreadable(PathBuf, #[source] std::io::Error),
    /// The boot data are not what they should be: where they are, and why.
    #[error("the boot data in {0} cannot be used: {1}")]
    BadBootData(String, String),
    /// A key of the configuration is needed and missing.
    #[error("the agent has no identity: the configuration has no {0}")]
    Missing(&'static str),
    /// There are no boot data, and a key of the configuration that would do instead is missing.
    #[error("the agent has no identity: there are no boot data, and the configuration has no {0}")]
    NoBootData(&'static str),
}

/// A machine as its cloud tells of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Machine {
    /// Its host identity; absent: the firmware's.
    host: Option<String>,
    proof: Proof,
    boot: Option<BootText>,
    is_ec2: bool,
}

/// Why a cloud has not said which machine this is; all but [`Trouble::Off`] may pass.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    /// No answer.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// Not the answer that it should be; at which path, and its status.
    #[error("{0} is answered by {1}")]
    Status(String, u16),
    /// The service is switched off for this machine.
    #[error("it is switched off for this machine")]
    Off,
    /// An answer that makes no sense; which.
    #[error("{0}")]
    Odd(&'static str),
    /// There is no config drive.
    #[error("there is no disk of the name config-2")]
    NoDrive,
    /// The config drive cannot be read.
    #[error("{} is not readable", .0.display())]
    Disk(PathBuf, #[source] std::io::Error),
}

/// The identity that the configuration asks for. This waits, without limit, for what is still to come: a metadata service,
/// a config drive, a host name.
///
/// # Errors
/// Where something is unreadable or wrong; never for a machine that has no name yet.
pub async fn identify(config: &AgentConfig) -> Result<Identity, IdentityError> {
    identify_below(config, Path::new("/")).await
}

/// The same, with the machine's files below `root`.
async fn identify_below(config: &AgentConfig, root: &Path) -> Result<Identity, IdentityError> {
    match config.identity {
        IdentityKind::Static => by_name(config, root, Machine::default()),
        IdentityKind::Hostname => by_host_name(config, root, Machine::default()).await,
        IdentityKind::BootData => match local_boot_data(config, root)? {
            Some(boot) => boot.identity(config, root, Machine::default()),
            None => Err(IdentityError::Missing("boot_data, the firmware has none that this agent may read, and it")),
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
    if let Some(boot) = local_boot_data(config, root)? {
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
            Err(trouble) => {
                if !matches!(trouble, Trouble::NoDrive) {
                    log::line(Level::Warn, &format!("passing over the config drive: {trouble}"));
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
        Err(Trouble::Off) if may_be_off => {
            log::line(Level::Warn, "EC2's metadata service is switched off for this machine");
            Ok(Machine::default())
        }
        other => other,
    })
    .await
}

async fn openstack(config: &AgentConfig, root: &Path) -> Machine {
    ask("OpenStack's metadata", async || openstack::look(&config.metadata, root).await).await
}

/// Asks until there is an answer, and says what it waits for.
async fn ask(what: &str, mut question: impl AsyncFnMut() -> Result<Machine, Trouble>) -> Machine {
    let network = Changes::listen();
    let mut told = String::new();
    let mut pause = ASK_AGAIN.0;
    loop {
        let why = match question().await {
            Ok(machine) => return machine,
            Err(trouble) => Chain(&trouble).to_string(),
        };
        if told != why {
            log::line(Level::Warn, &format!("waiting for {what}: {why}"));
            told = why;
        }
        match tokio::time::timeout(pause, network.next()).await {
            Err(_) => pause = (pause * 2).min(ASK_AGAIN.1),
            Ok(()) => {
                tokio::time::sleep(SETTLES).await;
                pause = ASK_AGAIN.0;
            }
        }
    }
}

/// Boot data that need no network: the file that the configuration names, else the firmware's.
fn local_boot_data(config: &AgentConfig, root: &Path) -> Result<Option<BootText>, IdentityError> {
    match &config.boot_data {
        Some(path) => BootText::in_file(path).map(Some),
        None => firmware::boot_data(root),
    }
}

/// By the machine's boot data, else as the worker that the configuration names: an image is tried as a standing worker
/// before its hosts are latent.
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
    // Before the wait: what is missing then is missing now.
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
        ca: read_ca(config)?,
        power_off_after: None,
        is_ec2: machine.is_ec2,
    })
}

fn read_ca(config: &AgentConfig) -> Result<Option<String>, IdentityError> {
    let Some(path) = &config.ca else { return Ok(None) };
    std::fs::read_to_string(path).map(Some).map_err(|e| IdentityError::Unreadable(path.clone(), e))
}

#[cfg(test)]
mod random;
#[cfg(test)]
mod tests;
