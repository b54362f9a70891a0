//! The provider sections of a worker: one file a provider.

mod ec2;
mod libvirt;
mod openstack;
mod process;

pub use ec2::{BlockDevice, Ec2Config, Ec2Image, IdleHost, Spot, Volume};
pub use libvirt::{DomainXml, LibvirtConfig};
pub use openstack::{ImagePick, OpenstackConfig, OpenstackImage};
pub use process::ProcessConfig;

use crate::core::plan::ProviderKind;

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
