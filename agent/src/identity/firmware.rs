//! What the firmware of a virtual machine says: the cloud that it runs on, and boot data.

use super::{BootText, IdentityError};
use crate::core::Level;
use crate::diagnostics::log;
use rouse_shared::boot::{self, FW_CFG};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Largest SMBIOS table, bytes. Those of virtual machines have a few KiB.
const MAX_TABLE: u64 = 1 << 20;
/// The SMBIOS table, readable for root only. Unlike its single entries it needs no kernel module.
const TABLE: &str = "sys/firmware/dmi/tables/DMI";
/// Single entries of the table, for machines whose kernel does not show the whole.
const ENTRIES: &str = "sys/firmware/dmi/entries";
/// What QEMU's fw_cfg device contains. A kernel module shows it.
const FW_CFG_ROOT: &str = "sys/firmware/qemu_fw_cfg";
/// That module.
const FW_CFG_MODULE: &str = "qemu_fw_cfg";
/// How long the agent waits for it to be loaded.
const MODULE_LIMIT: Duration = Duration::from_secs(5);
/// SMBIOS type of the OEM strings.
const OEM_STRINGS: u8 = 11;

/// A cloud that the firmware identifies, before there is a network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cloud {
    Ec2,
    OpenStack,
}

/// The cloud that the firmware names; `root` is `/` except in tests.
pub(super) fn cloud(root: &Path) -> Option<Cloud> {
    let read = |name: &str| {
        let text = std::fs::read_to_string(root.join(name)).unwrap_or_default();
        text.trim().to_ascii_lowercase()
    };
    let dmi = |name: &str| read(&format!("sys/class/dmi/id/{name}"));
    // On Xen only the UUID identifies EC2, in either byte order.
    let of_ec2 = |uuid: &str| {
        uuid.starts_with("ec2") || uuid.get(4..8).is_some_and(|s| s.starts_with("2a") && uuid[6..].starts_with("ec"))
    };
    let xen = of_ec2(&read("sys/hypervisor/uuid"))
        || (of_ec2(&dmi("product_uuid")) && dmi("bios_version").contains("amazon"));
    if dmi("sys_vendor") == "amazon ec2" || dmi("chassis_asset_tag") == "amazon ec2" || xen {
        return Some(Cloud::Ec2);
    }
    // As in cloud-init: the names of Nova, and of some clouds that are built with it.
    let products = ["openstack nova", "openstack compute"];
    let tags = ["huaweicloud", "opentelekomcloud", "sap ccloud vm", "samsung cloud platform"];
    let (product, tag) = (dmi("product_name"), dmi("chassis_asset_tag"));
    let openstack = products.contains(&product.as_str())
        || products.contains(&tag.as_str())
        || tags.contains(&tag.as_str())
        || dmi("sys_vendor") == "openstack foundation";
    openstack.then_some(Cloud::OpenStack)
}

/// Loads the kernel module that shows QEMU's fw_cfg device, if the machine has the device and the kernel does not show it
/// yet: the agent may start before udev has loaded the module, and some images have no udev.
pub(super) async fn show_fw_cfg(root: &Path) {
    if !fw_cfg_is_hidden(root) || !rustix::process::geteuid().is_root() {
        return;
    }
    let load = || Command::new("modprobe").arg(FW_CFG_MODULE).stdin(Stdio::null()).output();
    let why = match tokio::time::timeout(MODULE_LIMIT, tokio::task::spawn_blocking(load)).await {
        Ok(Ok(Ok(output))) if output.status.success() => return,
        Ok(Ok(Ok(output))) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Ok(Ok(Err(error))) => format!("modprobe cannot be run: {error}"),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("modprobe has not ended within {} s", MODULE_LIMIT.as_secs()),
    };
    let what = "cannot load the kernel module qemu_fw_cfg, without which boot data of libvirt cannot be read";
    log(Level::Warn, &format!("{what}: {why}"));
}

/// Whether the machine has an fw_cfg device whose content the kernel does not show. ACPI or the device tree lists the
/// device.
fn fw_cfg_is_hidden(root: &Path) -> bool {
    let lists = |dir: &str, name: &str| {
        let entries = std::fs::read_dir(root.join(dir)).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(name))
    };
    !root.join(FW_CFG_ROOT).exists()
        && (lists("sys/bus/acpi/devices", "QEMU0002:") || lists("sys/firmware/devicetree/base", "fw-cfg@"))
}

/// The boot data in the firmware: in its OEM strings, or in QEMU's fw_cfg device. What may not be read counts as
/// absent: an agent that is not root runs on a machine that belongs to somebody else.
///
/// # Errors
/// If there are boot data, and they are incomplete.
pub(super) fn boot_data(root: &Path) -> Result<Option<BootText>, IdentityError> {
    let source = "the firmware strings";
    let strings = oem_strings(root);
    let toml = boot::from_oem_strings(strings.iter().map(String::as_str))
        .map_err(|why| IdentityError::BadBootData(source.to_owned(), why.to_string()))?;
    if let Some(toml) = toml {
        return Ok(Some(BootText { source: source.to_owned(), toml: Ok(toml), of_a_process: false }));
    }
    let path = root.join(FW_CFG_ROOT).join("by_name").join(FW_CFG).join("raw");
    let Ok(bytes) = read_at_most(&path, rouse_shared::limits::MAX_BOOT_DATA as u64) else { return Ok(None) };
    let toml = match String::from_utf8(bytes) {
        Ok(text) if text.is_empty() => Err("empty: the master has given them to another machine".to_owned()),
        text => text.map_err(|_| "they are not text".to_owned()),
    };
    Ok(Some(BootText { source: path.display().to_string(), toml, of_a_process: false }))
}

/// The OEM strings of the firmware.
fn oem_strings(root: &Path) -> Vec<String> {
    if let Ok(table) = read_at_most(&root.join(TABLE), MAX_TABLE) {
        return strings_in(&table);
    }
    let Ok(entries) = std::fs::read_dir(root.join(ENTRIES)) else { return Vec::new() };
    let mut paths: Vec<_> = entries.filter_map(|entry| entry.ok().map(|e| e.path())).collect();
    paths.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("11-")));
    paths.sort();
    let tables = paths.iter().filter_map(|path| read_at_most(&path.join("raw"), MAX_TABLE).ok());
    tables.flat_map(|table| strings_in(&table)).collect()
}

/// The OEM strings in an SMBIOS table. A malformed table ends at the first error.
pub(super) fn strings_in(mut table: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    // Each structure has a type, the length of the part before its strings, and a handle. An empty string ends its
    // strings.
    while let [kind, length, _, _, ..] = *table {
        let Some(mut rest) = (length >= 4).then(|| table.get(usize::from(length)..)).flatten() else { break };
        // A structure without any string ends in two zeros as well.
        if let [0, 0, behind @ ..] = rest {
            table = behind;
            continue;
        }
        loop {
            let Some(end) = rest.iter().position(|b| *b == 0) else { return found };
            let (string, behind) = (&rest[..end], &rest[end + 1..]);
            rest = behind;
            if string.is_empty() {
                break;
            }
            if kind == OEM_STRINGS {
                found.push(String::from_utf8_lossy(string).into_owned());
            }
        }
        table = rest;
    }
    found
}

/// The content of a file.
///
/// # Errors
/// If it cannot be read, or has more than `limit` bytes.
pub(super) fn read_at_most(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("the file is longer than {limit} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
pub(super) mod tests;
