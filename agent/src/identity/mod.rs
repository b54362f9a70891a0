//! Who this agent is: its worker's name, its password, its broker, and which machine it runs on.

mod host;
mod hostname;

pub use hostname::kernel_name;

use crate::config::{AgentConfig, IdentityKind};
use rouse_shared::WorkerName;
use rouse_shared::boot::BootData;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a source of identity has found.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// The worker.
    pub worker: WorkerName,
    /// Which machine: what hello gives as the host identity.
    pub host: String,
    /// The worker's password, or the boot token.
    pub password: String,
    /// Where the broker is.
    pub broker: String,
    /// PEM certificates that the broker's is signed by, beside the system's.
    pub ca: Option<String>,
    /// Replaces the configuration's `power_off_after`.
    pub power_off_after: Option<Duration>,
}

/// Why there is no identity.
#[derive(Debug)]
pub enum IdentityError {
    /// A file cannot be read.
    Unreadable(PathBuf, std::io::Error),
    /// The boot data are not what they should be.
    BadBootData(PathBuf, String),
    /// A key of the configuration is needed and missing.
    Missing(&'static str),
}

impl fmt::Display for IdentityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(path, error) => write!(f, "read {}: {error}", path.display()),
            Self::BadBootData(path, why) => write!(f, "use the boot data in {}: {why}", path.display()),
            Self::Missing(key) => write!(f, "learn who this agent is: the configuration has no {key}"),
        }
    }
}

impl std::error::Error for IdentityError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreadable(_, error) => Some(error),
            Self::BadBootData(..) | Self::Missing(_) => None,
        }
    }
}

/// The identity that the configuration asks for. With `hostname` this waits, without limit, for a name to come.
///
/// # Errors
/// Where a file is unreadable or wrong; never for a machine that has no name yet.
pub async fn identify(config: &AgentConfig) -> Result<Identity, IdentityError> {
    match config.identity {
        IdentityKind::BootData => from_boot_data(config),
        IdentityKind::Auto if config.boot_data.is_some() => from_boot_data(config),
        IdentityKind::Static => from_config(config),
        IdentityKind::Auto if config.name.is_some() => from_config(config),
        IdentityKind::Auto | IdentityKind::Hostname => {
            let worker = hostname::wait(&config.default_hostnames).await;
            standing(config, worker)
        }
    }
}

fn from_config(config: &AgentConfig) -> Result<Identity, IdentityError> {
    standing(config, config.name.clone().ok_or(IdentityError::Missing("name"))?)
}

fn standing(config: &AgentConfig, worker: WorkerName) -> Result<Identity, IdentityError> {
    let host = host::identity(Path::new("/")).unwrap_or_else(|| format!("name:{worker}"));
    Ok(Identity {
        worker,
        host,
        password: config.password.clone().ok_or(IdentityError::Missing("password"))?,
        broker: config.broker.clone().ok_or(IdentityError::Missing("broker"))?,
        ca: read_ca(config)?,
        power_off_after: None,
    })
}

fn from_boot_data(config: &AgentConfig) -> Result<Identity, IdentityError> {
    let path = config.boot_data.as_ref().ok_or(IdentityError::Missing("boot_data"))?;
    let text = std::fs::read_to_string(path).map_err(|e| IdentityError::Unreadable(path.clone(), e))?;
    // Only the message: the whole error would quote the line, and that may hold the token.
    let boot: BootData =
        toml::from_str(&text).map_err(|error| IdentityError::BadBootData(path.clone(), error.message().to_owned()))?;
    let ca = match boot.ca {
        Some(ca) => Some(ca),
        None => read_ca(config)?,
    };
    crate::link::Target::parse(&boot.broker, None).map_err(|why| IdentityError::BadBootData(path.clone(), why))?;
    let host =
        boot.identity.or_else(|| host::identity(Path::new("/"))).unwrap_or_else(|| format!("name:{}", boot.name));
    Ok(Identity {
        worker: boot.name,
        host,
        password: boot.token,
        broker: boot.broker,
        ca,
        power_off_after: boot.power_off_after.map(Duration::from_secs),
    })
}

fn read_ca(config: &AgentConfig) -> Result<Option<String>, IdentityError> {
    let Some(path) = &config.ca else { return Ok(None) };
    std::fs::read_to_string(path).map(Some).map_err(|e| IdentityError::Unreadable(path.clone(), e))
}

#[cfg(test)]
mod tests;
