//! The provider sections of a worker, one file for each provider.

pub(in crate::config) mod domain_xml;
mod ec2;
mod libvirt;
mod openstack;
mod process;
mod user_data;

pub(super) use ec2::credentials as aws_credentials;
pub use ec2::{BlockDevice, Ec2Config, Ec2Image, IdleHost, Spot, Volume, place_name as ec2_place_name};
pub use libvirt::{DomainXml, LibvirtConfig, connection_is_local};
pub use openstack::{ImagePick, OpenstackConfig, OpenstackImage};
pub use process::ProcessConfig;

use super::document::Table;
use super::keys;
use crate::core::plan::{ProviderKind, Suspend};
use sha2::{Digest as _, Sha256};

/// How the hosts of one latent worker are made.
#[derive(Clone, PartialEq, Debug)]
pub enum HostConfig {
    /// `[worker.process]`
    Process(ProcessConfig),
    /// `[worker.ec2]`
    Ec2(Box<Ec2Config>),
    /// `[worker.libvirt]`
    Libvirt(Box<LibvirtConfig>),
    /// `[worker.openstack]`
    Openstack(Box<OpenstackConfig>),
}

impl HostConfig {
    /// Whose hosts they are.
    pub fn provider(&self) -> ProviderKind {
        match self {
            Self::Process(_) => ProviderKind::Process,
            Self::Ec2(_) => ProviderKind::Ec2,
            Self::Libvirt(_) => ProviderKind::Libvirt,
            Self::Openstack(_) => ProviderKind::Openstack,
        }
    }
}

/// A provider's section: what is in [`HostConfig`] for workers of one kind.
pub trait Section: Sized {
    /// The section, if it is of this kind.
    fn of(host: &HostConfig) -> Option<&Self>;
}

macro_rules! section {
    ($variant:ident, $section:ty) => {
        impl Section for $section {
            fn of(host: &HostConfig) -> Option<&Self> {
                if let HostConfig::$variant(section) = host { Some(section) } else { None }
            }
        }
    };
}

section!(Process, ProcessConfig);
section!(Ec2, Ec2Config);
section!(Libvirt, LibvirtConfig);
section!(Openstack, OpenstackConfig);

impl HostConfig {
    /// Whether its hosts are suspended when they are idle.
    pub(super) fn suspend(&self) -> Option<Suspend> {
        match self {
            Self::Ec2(host) => match host.on_idle {
                IdleHost::Terminate => None,
                IdleHost::Stop | IdleHost::Hibernate => Some(Suspend { max_age: host.max_age }),
            },
            Self::Process(_) | Self::Libvirt(_) | Self::Openstack(_) => None,
        }
    }

    /// Price of its hosts in USD per hour, if the section sets it.
    pub(super) fn price(&self) -> Option<f64> {
        match self {
            Self::Ec2(host) => host.price_per_hour,
            Self::Openstack(host) => host.price_per_hour,
            Self::Process(_) | Self::Libvirt(_) => None,
        }
    }

    /// Where its hosts are made, in the words of the configuration: what fails together there.
    pub(super) fn place(&self) -> String {
        match self {
            Self::Process(_) => "this machine".to_owned(),
            Self::Ec2(host) => host.place(),
            Self::Libvirt(host) => host.connection.clone(),
            Self::Openstack(host) => host.place(),
        }
    }

    /// What its hosts boot, in the words of the configuration: hosts with the same one fail together.
    pub(super) fn image(&self) -> String {
        match self {
            Self::Process(host) => host.agent.display().to_string(),
            Self::Ec2(host) => host.image.to_string(),
            Self::Libvirt(host) => {
                let disk = host.base_image.as_ref().or(host.hd_image.as_ref());
                disk.map_or_else(|| "the domain's own disk".to_owned(), |path| path.display().to_string())
            }
            Self::Openstack(host) => host.image.to_string(),
        }
    }
}

/// The keys of a provider's section.
pub(super) fn keys_of(kind: ProviderKind) -> &'static keys::Section {
    match kind {
        ProviderKind::Process => &keys::PROCESS,
        ProviderKind::Ec2 => &keys::EC2,
        ProviderKind::Libvirt => &keys::LIBVIRT,
        ProviderKind::Openstack => &keys::OPENSTACK,
    }
}

/// Reads the section of a provider: how hosts are made (nothing if it is faulty), and the fingerprint of all that
/// shapes a new host. Prices, credentials and what is done with a host later are no part of that.
pub(super) fn read(kind: ProviderKind, table: &Table<'_>) -> (Option<HostConfig>, u64) {
    let (host, except) = match kind {
        ProviderKind::Process => (process::read(table).map(HostConfig::Process), process::NOT_OF_THE_HOST),
        ProviderKind::Ec2 => (ec2::read(table).map(|h| HostConfig::Ec2(Box::new(h))), ec2::NOT_OF_THE_HOST),
        ProviderKind::Libvirt => {
            (libvirt::read(table).map(|h| HostConfig::Libvirt(Box::new(h))), libvirt::NOT_OF_THE_HOST)
        }
        ProviderKind::Openstack => {
            (openstack::read(table).map(|h| HostConfig::Openstack(Box::new(h))), openstack::NOT_OF_THE_HOST)
        }
    };
    table.finish();
    let mut hash = Sha256::new();
    hash.update(format!("{}\n{}\n", kind.as_str(), table.canonical(except)));
    if let Some(HostConfig::Libvirt(host)) = &host
        && let DomainXml::Text(xml) = &host.xml
    {
        hash.update(xml);
    }
    // Of a file's content the keys have only the name.
    let user_data = match &host {
        Some(HostConfig::Ec2(host)) => host.user_data.as_deref(),
        Some(HostConfig::Openstack(host)) => host.user_data.as_deref(),
        Some(HostConfig::Process(_) | HostConfig::Libvirt(_)) | None => None,
    };
    if let Some(text) = user_data.filter(|_| table.map.get("user_data").is_some_and(|v| v.get_ref().is_table())) {
        hash.update(text);
    }
    let hash: [u8; 32] = hash.finalize().into();
    let mut first = [0; 8];
    first.copy_from_slice(&hash[..8]);
    (host, u64::from_be_bytes(first))
}
