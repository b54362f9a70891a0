//! The agent's configuration: a TOML file, which environment variables override.

mod units;

pub(crate) use units::exposed;
pub use units::{SecretSource, Size};

use crate::http::Server;
use crate::tls::Trust;
use rouse_shared::duration::{self, HumanDuration};
use rouse_shared::fingerprint::FingerprintError;
use rouse_shared::{Fingerprint, Secret, WorkerName};
use serde::Deserialize;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;

/// The configuration file that is read if no other is given; it may be absent.
pub const DEFAULT_PATH: &str = "/etc/rouse/agent.toml";
/// Prefix of the environment variables that override keys.
const ENV_PREFIX: &str = "ROUSE_AGENT_";
/// Default command to power a machine off; the driver tries others if it fails.
pub(crate) const USUAL_POWER_OFF: [&str; 2] = ["systemctl", "poweroff"];
/// Address of the metadata service of EC2 and OpenStack.
const METADATA: &str = "http://169.254.169.254";
/// The keys, as [`File`] has them.
const KEYS: [&str; 15] = [
    "broker",
    "identity",
    "name",
    "password",
    "work_dir",
    "run_as",
    "max_log_size",
    "power_off",
    "power_off_after",
    "power_off_command",
    "ca",
    "fingerprint",
    "boot_data",
    "default_hostnames",
    "metadata",
];

/// The source of the agent's identity.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IdentityKind {
    /// Whatever the machine offers, in the order of [`crate::identity`].
    Auto,
    /// `name` and `password` of the configuration.
    Static,
    /// The host name, and `password` of the configuration.
    Hostname,
    /// EC2's metadata service.
    Ec2,
    /// OpenStack's config drive or metadata service, whichever exists.
    OpenStack,
    /// OpenStack's config drive.
    ConfigDrive,
    /// Boot data in the file `boot_data`, otherwise in the firmware.
    BootData,
}

/// A valid configuration.
#[derive(Clone, PartialEq, Eq)]
pub struct AgentConfig {
    /// `amqp://` or `amqps://`, one or more hosts, without user and password; absent: from boot data.
    pub broker: Option<String>,
    /// Source of the agent's identity.
    pub identity: IdentityKind,
    /// The worker's name, for a static identity.
    pub name: Option<WorkerName>,
    /// The worker's password.
    pub password: Option<String>,
    /// Directory for builds and for the session secret. Absolute.
    pub work_dir: PathBuf,
    /// The user that steps run as; if absent, the one that the build names, otherwise the agent's own.
    pub run_as: Option<String>,
    /// Largest log of a step, bytes.
    pub max_log_size: u64,
    /// Whether the host powers itself off if no master wants it.
    pub latent: bool,
    /// How long a latent host that has never attached stays on.
    pub power_off_after: Duration,
    /// Command that powers the machine off; if empty, the agent exits instead.
    pub power_off_command: Vec<String>,
    /// PEM file with the authority that signed the broker's certificate, in addition to the system's authorities.
    pub ca: Option<PathBuf>,
    /// Fingerprint of the authority that signed the broker's certificate; then no other authority is trusted. Never set
    /// together with `ca`.
    pub fingerprint: Option<Fingerprint>,
    /// TOML file with [`rouse_shared::boot::BootData`].
    pub boot_data: Option<PathBuf>,
    /// Host names that belong to an image instead of a worker, in addition to the well-known ones.
    pub default_hostnames: Vec<String>,
    /// The cloud's metadata service.
    pub metadata: Server,
}

/// Leaves out the password.
impl fmt::Debug for AgentConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

/// What is wrong with a configuration, preceded by its place: `agent.toml:3:8: name: …` or `$ROUSE_AGENT_NAME: …`.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{0}")]
pub struct ConfigError(String);

#[derive(Deserialize, Default)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
struct File {
    #[cfg_attr(test, schemars(regex(pattern = r"^amqps?://[^@\s]+$")))]
    broker: Option<String>,
    #[cfg_attr(test, schemars(extend("enum" = schema_tests::IDENTITIES.map(IdentityKind::as_str), "default" = "auto")))]
    identity: Option<String>,
    #[cfg_attr(test, schemars(with = "Option<String>", regex(pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")))]
    name: Option<WorkerName>,
    password: Option<SecretSource>,
    #[cfg_attr(test, schemars(regex(pattern = "^/"), extend("default" = "/var/lib/rouse/work")))]
    work_dir: Option<PathBuf>,
    run_as: Option<String>,
    #[cfg_attr(test, schemars(extend("default" = "64MB")))]
    max_log_size: Option<Size>,
    #[cfg_attr(test, schemars(extend("enum" = ["never", "latent"], "default" = "never")))]
    power_off: Option<String>,
    #[cfg_attr(test, schemars(with = "Option<schema_tests::Time>", extend("default" = "20m")))]
    power_off_after: Option<HumanDuration>,
    #[cfg_attr(test, schemars(extend("default" = USUAL_POWER_OFF)))]
    power_off_command: Option<Vec<String>>,
    ca: Option<PathBuf>,
    #[cfg_attr(test, schemars(with = "Option<String>", regex(pattern = "^sha256:[0-9A-Fa-f:]{64,95}$")))]
    fingerprint: Option<Fingerprint>,
    boot_data: Option<PathBuf>,
    #[cfg_attr(test, schemars(extend("default" = [])))]
    default_hostnames: Option<Vec<String>>,
    #[cfg_attr(test, schemars(regex(pattern = "^http://"), extend("default" = METADATA)))]
    metadata: Option<String>,
}

/// Environment variables and their values.
pub type Environment = Vec<(String, String)>;

impl AgentConfig {
    /// The configuration in the file `path`, overridden by `env`. Without a path, [`DEFAULT_PATH`] if it exists.
    ///
    /// # Errors
    /// If the file cannot be read, or anything in it or in the environment is invalid.
    pub fn load(path: Option<&Path>, env: &Environment) -> Result<Self, ConfigError> {
        let chosen = path.unwrap_or(Path::new(DEFAULT_PATH));
        let (text, exposed) = match units::read_private(chosen) {
            Ok(read) => read,
            Err(error) if path.is_none() && error.kind() == std::io::ErrorKind::NotFound => (String::new(), None),
            Err(error) => return Err(ConfigError(format!("{} cannot be read: {error}", chosen.display()))),
        };
        Self::parse_file(&text, &chosen.display().to_string(), exposed, env)
    }

    /// The configuration in `text`, which is from `source`, overridden by `env`.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn parse(text: &str, source: &str, env: &Environment) -> Result<Self, ConfigError> {
        Self::parse_file(text, source, None, env)
    }

    /// `exposed` is why no secret may be in the file of the text.
    fn parse_file(text: &str, source: &str, exposed: Option<String>, env: &Environment) -> Result<Self, ConfigError> {
        let mut file: File = toml::from_str(text).map_err(|error| at(source, text, &error))?;
        if let (Some(SecretSource::Text(_)), Some(why)) = (&file.password, exposed) {
            return Err(ConfigError(format!("{source}: password: {why}")));
        }
        file.override_by(env)?;
        file.validate(source, env)
    }

    /// The configuration as TOML, with the defaults filled in and secrets hidden.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        let mut line = |key: &str, value: String| text.push_str(&format!("{key} = {value}\n"));
        if let Some(broker) = &self.broker {
            line("broker", format!("{broker:?}"));
        }
        line("identity", format!("{:?}", self.identity.as_str()));
        if let Some(name) = &self.name {
            line("name", format!("{:?}", name.as_str()));
        }
        if self.password.is_some() {
            line("password", "\"…\"".to_owned());
        }
        line("work_dir", format!("{:?}", self.work_dir));
        if let Some(user) = &self.run_as {
            line("run_as", format!("{user:?}"));
        }
        line("max_log_size", self.max_log_size.to_string());
        line("power_off", format!("{:?}", if self.latent { "latent" } else { "never" }));
        line("power_off_after", format!("{:?}", duration::exact(self.power_off_after)));
        line("power_off_command", format!("{:?}", self.power_off_command));
        if let Some(ca) = &self.ca {
            line("ca", format!("{ca:?}"));
        }
        if let Some(fingerprint) = self.fingerprint {
            line("fingerprint", format!("\"{fingerprint}\""));
        }
        if let Some(path) = &self.boot_data {
            line("boot_data", format!("{path:?}"));
        }
        line("default_hostnames", format!("{:?}", self.default_hostnames));
        line("metadata", format!("{:?}", self.metadata.to_string()));
        text
    }
}

impl IdentityKind {
    /// The value of the key `identity`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Static => "static",
            Self::Hostname => "hostname",
            Self::Ec2 => "ec2",
            Self::OpenStack => "openstack",
            Self::ConfigDrive => "config-drive",
            Self::BootData => "boot-data",
        }
    }
}

/// `file:line:column: message`.
fn at(source: &str, text: &str, error: &toml::de::Error) -> ConfigError {
    let place = error.span().map(|span| {
        let before = text.get(..span.start).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |l| l.chars().count()) + 1;
        format!(":{line}:{column}")
    });
    // The span of an invalid value begins after its key, which people look for.
    let key = error.span().and_then(|span| key_before(text, span.start));
    let key = key.map(|key| format!("{key}: ")).unwrap_or_default();
    ConfigError(format!("{source}{}: {key}{}", place.unwrap_or_default(), error.message()))
}

/// The key of the value that holds the byte at `start`.
fn key_before(text: &str, start: usize) -> Option<String> {
    let line = text.get(..start)?.rsplit('\n').next()?;
    let key = line.split_once('=')?.0.trim();
    KEYS.contains(&key).then(|| key.to_owned())
}

impl File {
    fn override_by(&mut self, env: &Environment) -> Result<(), ConfigError> {
        for (variable, value) in env {
            let Some(key) = variable.strip_prefix(ENV_PREFIX) else { continue };
            let wrong = |why: String| ConfigError(format!("${variable}: {why}"));
            let value = value.clone();
            match key.to_ascii_lowercase().as_str() {
                "broker" => self.broker = Some(value),
                "identity" => self.identity = Some(value),
                "name" => {
                    self.name =
                        Some(value.parse().map_err(|e: rouse_shared::ids::WorkerNameError| wrong(e.to_string()))?)
                }
                "password" => self.password = Some(SecretSource::Text(Secret::new(value))),
                "work_dir" => self.work_dir = Some(value.into()),
                "run_as" => self.run_as = Some(value),
                "max_log_size" => self.max_log_size = Some(value.parse().map_err(wrong)?),
                "power_off" => self.power_off = Some(value),
                "power_off_after" => {
                    self.power_off_after = Some(duration::parse(&value).map(HumanDuration).map_err(wrong)?)
                }
                "power_off_command" => self.power_off_command = Some(list(&value).map_err(wrong)?),
                "ca" => self.ca = Some(value.into()),
                "fingerprint" => {
                    self.fingerprint = Some(value.parse().map_err(|e: FingerprintError| wrong(e.to_string()))?)
                }
                "boot_data" => self.boot_data = Some(value.into()),
                "metadata" => self.metadata = Some(value),
                "default_hostnames" => self.default_hostnames = Some(list(&value).map_err(wrong)?),
                other => return Err(wrong(format!("unknown key {other:?}; the keys are {}", KEYS.join(", ")))),
            }
        }
        Ok(())
    }

    fn validate(self, source: &str, env: &Environment) -> Result<AgentConfig, ConfigError> {
        let wrong = |key: &str, why: String| ConfigError(format!("{source}: {key}: {why}"));
        let identity = match self.identity.as_deref() {
            None | Some("auto") => IdentityKind::Auto,
            Some("static") => IdentityKind::Static,
            Some("hostname") => IdentityKind::Hostname,
            Some("ec2") => IdentityKind::Ec2,
            Some("openstack") => IdentityKind::OpenStack,
            Some("config-drive") => IdentityKind::ConfigDrive,
            Some("boot-data") => IdentityKind::BootData,
            Some(other) => {
                let why =
                    format!("{other:?} is not one of auto, static, hostname, ec2, openstack, config-drive, boot-data");
                return Err(wrong("identity", why));
            }
        };
        let latent = match self.power_off.as_deref() {
            None | Some("never") => false,
            Some("latent") => true,
            Some(other) => return Err(wrong("power_off", format!("{other:?} is neither \"never\" nor \"latent\""))),
        };
        let lookup = |name: &str| env.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        let password = self.password.map(|secret| secret.reveal(&lookup)).transpose();
        let password = password.map_err(|why| wrong("password", why))?;
        if let Some(broker) = &self.broker {
            let trust = self.fingerprint.map_or(Trust::Authorities(None), Trust::Only);
            crate::link::Target::parse(broker, trust).map_err(|why| wrong("broker", why))?;
        }
        if self.fingerprint.is_some() && self.ca.is_some() {
            let why = "set together with ca: choose one of them, because with a fingerprint no other authority counts";
            return Err(wrong("fingerprint", why.to_owned()));
        }
        // A latent host is given boot data even if its image has a name, and then needs nothing else.
        let from_here = match identity {
            IdentityKind::Static | IdentityKind::Hostname => true,
            IdentityKind::Auto => self.name.is_some() && !latent && self.boot_data.is_none(),
            IdentityKind::Ec2 | IdentityKind::OpenStack | IdentityKind::ConfigDrive | IdentityKind::BootData => false,
        };
        if from_here {
            if identity == IdentityKind::Static && self.name.is_none() {
                return Err(wrong("name", "missing: identity \"static\" needs the worker's name".to_owned()));
            }
            for (key, missing) in [("broker", self.broker.is_none()), ("password", password.is_none())] {
                if missing {
                    return Err(wrong(key, "missing: it is required without boot data".to_owned()));
                }
            }
        }
        let metadata = self.metadata.as_deref().unwrap_or(METADATA);
        let metadata = Server::parse(metadata).map_err(|error| wrong("metadata", error.to_string()))?;
        let work_dir = self.work_dir.unwrap_or_else(|| "/var/lib/rouse/work".into());
        if !work_dir.is_absolute() {
            return Err(wrong("work_dir", format!("{} is not an absolute path", work_dir.display())));
        }
        let power_off_command = self.power_off_command.unwrap_or_else(|| USUAL_POWER_OFF.map(str::to_owned).to_vec());
        let power_off_after = self.power_off_after.map_or(Duration::from_secs(1_200), |after| after.0);
        if latent && power_off_after.is_zero() {
            return Err(wrong("power_off_after", "0 would power the host off before it could attach".to_owned()));
        }
        Ok(AgentConfig {
            broker: self.broker,
            identity,
            name: self.name,
            password,
            work_dir,
            run_as: self.run_as.filter(|user| !user.is_empty()),
            max_log_size: self.max_log_size.map_or(64_000_000, |size| size.0),
            latent,
            power_off_after,
            power_off_command,
            ca: self.ca,
            fingerprint: self.fingerprint,
            boot_data: self.boot_data,
            default_hostnames: self.default_hostnames.unwrap_or_default(),
            metadata,
        })
    }
}

/// A list in an environment variable: a TOML array, or words.
fn list(value: &str) -> Result<Vec<String>, String> {
    #[derive(Deserialize)]
    struct One {
        list: Vec<String>,
    }
    if !value.trim_start().starts_with('[') {
        return Ok(value.split_whitespace().map(str::to_owned).collect());
    }
    toml::from_str::<One>(&format!("list = {value}")).map(|one| one.list).map_err(|e| e.message().to_owned())
}

#[cfg(test)]
mod schema_tests;
#[cfg(test)]
mod tests;
