//! What the firmware of a virtual machine contains: the cloud that the machine runs on, and boot data.

use super::BootText;
use crate::core::Level;
use crate::diagnostics::log;
use rouse_shared::boot::FW_CFG;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// What QEMU's fw_cfg device contains. A kernel module shows it.
const FW_CFG_ROOT: &str = "sys/firmware/qemu_fw_cfg";
/// That module.
const FW_CFG_MODULE: &str = "qemu_fw_cfg";
/// How long the agent waits for it to be loaded.
const MODULE_LIMIT: Duration = Duration::from_secs(5);

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

/// The boot data in QEMU's fw_cfg device. What may not be read counts as absent: an agent that is not root runs on a
/// machine that belongs to somebody else.
pub(super) fn boot_data(root: &Path) -> Option<BootText> {
    let path = root.join(FW_CFG_ROOT).join("by_name").join(FW_CFG).join("raw");
    let bytes = read_at_most(&path, rouse_shared::limits::MAX_BOOT_DATA as u64).ok()?;
    let toml = match String::from_utf8(bytes) {
        Ok(text) if text.is_empty() => Err("empty: the master has given them to another machine".to_owned()),
        text => text.map_err(|_| "they are not text".to_owned()),
    };
    Some(BootText { source: path.display().to_string(), toml, of_a_process: false })
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
