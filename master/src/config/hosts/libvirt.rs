//! `[worker.libvirt]`: a domain of a libvirt connection.

use crate::config::document::{Table, Value};
use std::path::PathBuf;

/// How a libvirt host is made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LibvirtConfig {
    /// Such as `qemu:///session`.
    pub connection: String,
    /// Its disk. With a base image: made for each boot and thrown away after; without: the user's own, never made or
    /// deleted. Absent only if the domain brings its own.
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

/// Why there is no fresh disk if libvirt is elsewhere: the master makes it as a file.
const NEEDS_LOCAL: &str = "needs a libvirt on the master's own machine, and this connection leads elsewhere: leave it \
                           out, and have the disk that hd_image names made there";

/// Whether files that this connection's machines name are files of this machine.
pub fn connection_is_local(connection: &str) -> bool {
    connection.split_once("://").is_none_or(|(_, rest)| rest.starts_with('/'))
}

/// Keys that do not shape a new host.
pub(super) const NOT_OF_THE_HOST: &[&str] = &[];

pub(super) fn read(table: &Table<'_>) -> Option<LibvirtConfig> {
    let connection = table.required("connection", "connection = \"qemu:///session\"", |v| {
        let text = v.word()?;
        if text.contains(":/") { Some(text) } else { v.error("not an address of libvirt: write \"qemu:///session\"") }
    });
    let xml = table.or("xml", DomainXml::Defined, xml);
    let hd_image = table.optional("hd_image", |v| v.path());
    let base_image = table.optional("base_image", |v| v.path());
    if let Some(value) = table.get("hd_image").filter(|_| hd_image.is_some() && hd_image == base_image) {
        value.error::<()>("is the base image itself, which is never written to: name another file");
    }
    if !table.map.contains_key("hd_image") && (base_image.is_some() || xml == DomainXml::Builtin) {
        table.missing("hd_image", "hd_image = \"/path/to/disk.qcow2\", the disk to boot from");
    }
    if let (Some(base), Some(connection), Some(value)) = (&base_image, &connection, table.get("base_image")) {
        if !connection_is_local(connection) {
            value.error::<()>(NEEDS_LOCAL);
        } else if !base.exists() {
            // It may still be on its way.
            value.warn(format!("{} is not there", base.display()));
        }
    }
    Some(LibvirtConfig {
        memory_mb: table.or("memory_mb", 2048, |v| v.whole(1)),
        cpus: table.or("cpus", 2, |v| v.whole(1)),
        network: table.or("network", "default".to_owned(), |v| v.word()),
        connection: connection?,
        hd_image,
        base_image,
        xml,
    })
}

fn xml(value: &Value<'_>) -> Option<DomainXml> {
    const SHAPE: &str = "\"builtin\" or { file = \"domain.xml\" }";
    if !value.is_text() {
        return value.file_content(SHAPE).map(DomainXml::Text);
    }
    if value.text()? == "builtin" { Some(DomainXml::Builtin) } else { value.error(format!("expected {SHAPE}")) }
}
