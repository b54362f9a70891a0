//! Descriptions of domains: the built-in machine, and what is added to it or to a user's own description. The owner tag
//! names the owner of a domain and what was created for it. It is part of the call that creates the domain.

use super::disk::Format;
use super::network::Apart;
use super::{kvm, xml};
use rouse_shared::boot::FW_CFG;
use std::path::Path;
use xmltree::{Element, Namespace};

/// The namespace of our element in a domain's metadata.
pub const NAMESPACE: &str = "urn:rouse:host:1";
/// The name of the owner tag's element.
const ELEMENT: &str = "host";

/// The owner tag of a domain.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OwnerTag {
    /// The master's name.
    pub master: String,
    /// The master's id.
    pub id: String,
    /// The host's id.
    pub host: String,
    /// The domain's UUID. A cloned domain has another UUID, so its copy of the tag is not valid.
    pub uuid: String,
    /// Whether a disk was created for it. Which one is not read from here: whoever may create a domain could name any
    /// file of the master's machine.
    pub has_disk: bool,
}

impl OwnerTag {
    fn element(&self) -> Element {
        let mut tag = Element::new(ELEMENT);
        let mut namespaces = Namespace::empty();
        namespaces.put("rouse", NAMESPACE);
        tag.prefix = Some("rouse".to_owned());
        tag.namespace = Some(NAMESPACE.to_owned());
        tag.namespaces = Some(namespaces);
        let mut put = |key: &str, value: &str| tag.attributes.insert(key.to_owned(), value.to_owned());
        put("master", &self.master);
        put("id", &self.id);
        put("host", &self.host);
        put("uuid", &self.uuid);
        if self.has_disk {
            put("disk", "fresh");
        }
        tag
    }

    /// The owner tag in an element of the metadata; none if it is incomplete, or if its host id is none.
    pub fn read(text: &str) -> Option<Self> {
        let element = xml::parse(text).ok()?;
        let get = |key: &str| element.attributes.get(key).cloned();
        // It becomes part of file names.
        let host = get("host").filter(|host| is_plain(host))?;
        Some(Self {
            master: get("master")?,
            id: get("id")?,
            host,
            uuid: get("uuid")?,
            // An earlier version has written the path.
            has_disk: get("disk").is_some(),
        })
    }
}

/// Whether a text can be the id of a host.
fn is_plain(id: &str) -> bool {
    !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// The settings of the built-in machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Machine<'a> {
    /// Whether the processor's own virtualisation is used.
    pub kvm: bool,
    /// Memory, megabytes.
    pub memory_mb: u32,
    /// Processors.
    pub cpus: u32,
    /// The network that it is on.
    pub network: &'a str,
    /// How it is kept apart from the others there.
    pub apart: &'a Apart,
}

/// A virtio machine that boots from its disk. It ends if the guest reboots or panics: it was created for one boot, and
/// its build is retried at once instead of after a timeout.
///
/// Its devices are on the root bus. Otherwise firmware and kernel would examine each port that libvirt adds, and
/// nothing is ever plugged into this machine.
pub fn builtin(machine: &Machine<'_>) -> Element {
    let kind = if machine.kvm { "kvm" } else { "qemu" };
    // Without hardware virtualisation libvirt's default processor is the fastest to emulate.
    let cpu = if machine.kvm { kvm::CPU } else { "" };
    let Machine { memory_mb, cpus, network, apart, .. } = machine;
    let network = network.replace('&', "&amp;").replace('\'', "&apos;").replace('<', "&lt;");
    let at = |slot: u32| format!("<address type='pci' domain='0' bus='0' slot='{slot}' function='0'/>");
    let (card, disk, rng) = (at(2), at(3), at(4));
    let text = format!(
        "<domain type='{kind}'><memory unit='MiB'>{memory_mb}</memory><vcpu>{cpus}</vcpu>{cpu}\
         <os><type arch='x86_64' machine='q35'>hvm</type><bios useserial='yes'/></os><features><acpi/><apic/></features>\
         <clock offset='utc'/>\
         <on_poweroff>destroy</on_poweroff><on_reboot>destroy</on_reboot><on_crash>destroy</on_crash>\
         <devices><controller type='usb' model='none'/>\
         <interface type='network'><source network='{network}'/><model type='virtio'/><rom enabled='no'/>{card}</interface>\
         <disk type='file' device='disk'><target dev='vda' bus='virtio'/>{disk}</disk>\
         <serial type='pty'/><rng model='virtio'><backend model='random'>/dev/urandom</backend>{rng}</rng>\
         <panic model='isa'/><memballoon model='none'/></devices></domain>"
    );
    // The text is constant except for numbers, so it is well formed.
    let mut domain = xml::parse(&text).unwrap_or_else(|_| Element::new("domain"));
    if let Some(card) = domain.get_mut_child("devices").and_then(|devices| devices.get_mut_child("interface")) {
        apart.elements().into_iter().for_each(|element| xml::push(card, element));
    }
    domain
}

/// The disk of a domain, as the configuration wants it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Disk<'a> {
    /// As in the domain's own description.
    AsDescribed,
    /// The user's own disk, if the description does not have it: path and format. The description
    /// may have another one than raw.
    Own(&'a Path, &'static str),
    /// Created for each boot from a base image; whether that is raw.
    Fresh(&'a Path, bool),
}

/// What is added to a description.
pub struct Wanted<'a> {
    /// The domain's name: the worker's.
    pub name: &'a str,
    /// Its UUID; absent: the description's own.
    pub uuid: Option<&'a str>,
    /// Its hardware address, if the description has none.
    pub mac: &'a str,
    /// Its owner tag.
    pub tag: &'a OwnerTag,
    /// The file with its boot data.
    pub boot_file: &'a Path,
    /// The file for its console output.
    pub console: Option<&'a Path>,
    /// Its disk.
    pub disk: Disk<'a>,
}

/// Adds all of this to the description. Returns how to create the disk, if one is created.
///
/// # Errors
/// If the description is not suitable: a sentence.
pub fn patch(domain: &mut Element, wanted: &Wanted<'_>) -> Result<Format, String> {
    if domain.name != "domain" {
        return Err(format!("its XML describes a {}, not a domain", domain.name));
    }
    xml::set_text(domain, "name", wanted.name);
    if let Some(uuid) = wanted.uuid {
        xml::set_text(domain, "uuid", uuid);
    }
    // This is left from an earlier run.
    domain.attributes.remove("id");
    if let Some(metadata) = xml::child_or_new(domain, "metadata") {
        metadata.children.retain(|node| node.as_element().is_none_or(|e| e.namespace.as_deref() != Some(NAMESPACE)));
        xml::push(metadata, wanted.tag.element());
    }
    put_boot_file(domain, wanted.boot_file);
    let devices = xml::child_or_new(domain, "devices").ok_or("its XML has no devices")?;
    put_mac(devices, wanted.mac);
    if let Some(console) = wanted.console {
        put_console(devices, console);
    }
    put_disk(devices, wanted.disk)
}

/// Passes the boot data in QEMU's fw_cfg device: a description, and a command line, that has only the path.
fn put_boot_file(domain: &mut Element, path: &Path) {
    let is_kind = |e: &Element, kind: &str| e.name == "sysinfo" && xml::attribute(e, None, "type") == Some(kind);
    let smbios = xml::elements_mut(domain).find(|e| is_kind(e, "smbios"));
    // libvirt refuses another UUID here than the domain's.
    if let Some(system) = smbios.and_then(|sysinfo| sysinfo.get_mut_child("system")) {
        system.children.retain(|n| n.as_element().is_none_or(|e| xml::attribute(e, None, "name") != Some("uuid")));
    }
    if !xml::elements(domain).any(|e| is_kind(e, "fwcfg")) {
        xml::push(domain, xml::element("sysinfo", &[("type", "fwcfg")]));
    }
    let Some(sysinfo) = xml::elements_mut(domain).find(|e| is_kind(e, "fwcfg")) else { return };
    let is_ours = |e: &Element| xml::attribute(e, None, "name") == Some(FW_CFG);
    sysinfo.children.retain(|node| node.as_element().is_none_or(|e| !is_ours(e)));
    xml::push(sysinfo, xml::element("entry", &[("name", FW_CFG), ("file", &path.to_string_lossy())]));
}

/// Sets the hardware address of the first network card, unless the user has set one.
fn put_mac(devices: &mut Element, mac: &str) {
    let card = xml::elements_mut(devices).find(|e| e.name == "interface");
    if let Some(card) = card.filter(|card| card.get_child("mac").is_none()) {
        xml::push(card, xml::element("mac", &[("address", mac)]));
    }
}

/// Also writes the output of the first serial port to a file, from the first byte and even if nobody reads it.
fn put_console(devices: &mut Element, path: &Path) {
    if !xml::elements(devices).any(|e| e.name == "serial") {
        xml::push(devices, xml::element("serial", &[("type", "pty")]));
    }
    if let Some(serial) = devices.get_mut_child("serial") {
        xml::remove(serial, "log");
        xml::push(serial, xml::element("log", &[("file", &path.to_string_lossy()), ("append", "on")]));
    }
}

fn put_disk(devices: &mut Element, disk: Disk<'_>) -> Result<Format, String> {
    let (path, described) = match disk {
        Disk::AsDescribed => return Ok(Format::Overlay),
        Disk::Own(path, format) => (path, format),
        Disk::Fresh(path, _) => (path, "qcow2"),
    };
    let shown = path.to_string_lossy();
    let is_disk = |e: &Element| e.name == "disk" && matches!(xml::attribute(e, None, "device"), None | Some("disk"));
    let is_this = |e: &Element| is_disk(e) && xml::attribute(e, Some("source"), "file") == Some(shown.as_ref());
    let all = xml::elements(devices).filter(|e| is_disk(e)).count();
    let found = if xml::elements(devices).any(is_this) {
        if matches!(disk, Disk::Own(..)) {
            return Ok(Format::Overlay);
        }
        xml::elements_mut(devices).find(|e| is_this(e))
    } else if all > 1 {
        return Err(format!(
            "its XML has {all} disks and none of them is {shown}: give one of them the path in hd_image"
        ));
    } else {
        if all == 0 {
            let mut fresh = xml::element("disk", &[("device", "disk")]);
            xml::push(&mut fresh, xml::element("target", &[("dev", "vda"), ("bus", "virtio")]));
            xml::push(devices, fresh);
        }
        xml::elements_mut(devices).find(|e| is_disk(e))
    };
    let Some(element) = found else { return Err("its XML has no place for a disk".to_owned()) };
    element.attributes.insert("type".to_owned(), "file".to_owned());
    for name in ["source", "backingStore"] {
        xml::remove(element, name);
    }
    xml::push(element, xml::element("source", &[("file", &shown)]));
    if element.get_child("driver").is_none() {
        let mut driver = xml::element("driver", &[("discard", "unmap")]);
        if matches!(disk, Disk::Fresh(..)) {
            // The disk is removed after the boot, so nothing has to be synchronised.
            driver.attributes.insert("cache".to_owned(), "unsafe".to_owned());
        }
        xml::push(element, driver);
    }
    let driver = xml::child_or_new(element, "driver").ok_or("its disk has no driver")?;
    let is_raw = driver.attributes.get("type").is_some_and(|kind| kind == "raw");
    if matches!(disk, Disk::Fresh(_, true)) && is_raw {
        // The user's machine needs a raw disk, which an overlay is not.
        return Ok(Format::Copy);
    }
    driver.attributes.entry("name".to_owned()).or_insert_with(|| "qemu".to_owned());
    if matches!(disk, Disk::Own(_, "raw")) {
        // Its name says nothing, but the description may.
        driver.attributes.entry("type".to_owned()).or_insert_with(|| described.to_owned());
    } else {
        driver.attributes.insert("type".to_owned(), described.to_owned());
    }
    Ok(Format::Overlay)
}
