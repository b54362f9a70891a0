//! `[worker.libvirt]`: a domain of a libvirt connection.

use std::path::PathBuf;

/// How a libvirt host is made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LibvirtConfig {
    /// Such as `qemu:///session`.
    pub connection: String,
    /// Its disk. With a base image: made for each boot and thrown away after; without: the user's own, never made or
    /// deleted. Absent only where the domain brings its own.
    pub hd_image: Option<PathBuf>,
    /// What the disk is laid over; never written to.
    pub base_image: Option<PathBuf>,
    /// The domain.
    pub xml: DomainXml,
    /// Memory of a built-in domain, megabytes.
    pub memory_mb: u32,
    /// Processors of a built-in domain.
    pub cpus: u32,
    /// Network of a built-in domain.
    pub network: String,
}

/// Where a domain's description comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DomainXml {
    /// The domain is already defined under the worker's name.
    Defined,
    /// A virtio machine from the keys of the section.
    Builtin,
    /// The content of the file that was named.
    Text(String),
}
