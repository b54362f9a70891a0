//! Reading the firmware, in a directory that looks like the kernel's.
#![allow(clippy::unwrap_used)]

use super::*;

/// A directory with these files below it.
pub(in super::super) fn machine(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, bytes) in files {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    dir
}

/// Where the kernel shows boot data.
pub(in super::super) const BOOT_FILE: &str = "sys/firmware/qemu_fw_cfg/by_name/opt/rouse/boot/raw";

#[test]
fn boot_data_are_found_in_qemus_files() {
    let found = |files: &[(&str, &[u8])]| boot_data(machine(files).path());
    let boot = found(&[(BOOT_FILE, b"name = \"w7\"\n")]).unwrap();
    assert_eq!((boot.toml.as_deref(), boot.of_a_process), (Ok("name = \"w7\"\n"), false));
    assert!(found(&[]).is_none());
    assert!(found(&[(BOOT_FILE, b"\xff\xfe")]).unwrap().toml.is_err());
    // A copy of a machine has the file, from which the master has taken them.
    assert!(found(&[(BOOT_FILE, b"")]).unwrap().toml.unwrap_err().contains("another machine"));
}

#[test]
fn a_fw_cfg_device_without_its_module_is_noticed() {
    let device = ("sys/bus/acpi/devices/QEMU0002:00/hid", &b"QEMU0002"[..]);
    let tree = ("sys/firmware/devicetree/base/fw-cfg@9020000/compatible", &b"qemu,fw-cfg-mmio"[..]);
    let other = ("sys/bus/acpi/devices/QEMU0001:00/hid", &b"QEMU0001"[..]);
    let shown = ("sys/firmware/qemu_fw_cfg/rev", &b"3"[..]);
    for (files, hidden) in
        [(&[device][..], true), (&[tree], true), (&[other], false), (&[device, shown], false), (&[], false)]
    {
        assert_eq!(fw_cfg_is_hidden(machine(files).path()), hidden, "{files:?}");
    }
}

#[test]
fn clouds_are_distinguished_before_there_is_a_network() {
    for (files, expected) in [
        (&[("sys_vendor", "Amazon EC2\n"), ("product_name", "m5.large")][..], Some(Cloud::Ec2)),
        (
            &[("product_uuid", "ec2e1916-9099-7caf-fd21-012345abcdef"), ("bios_version", "4.11.amazon")],
            Some(Cloud::Ec2),
        ),
        (
            &[("product_uuid", "45e12aec-dcd1-b213-94ed-012345abcdef"), ("bios_version", "4.11.amazon")],
            Some(Cloud::Ec2),
        ),
        (&[("product_uuid", "ec2e1916-9099-7caf-fd21-012345abcdef"), ("bios_version", "1.2")], None),
        (&[("sys_vendor", "OpenStack Foundation"), ("product_name", "OpenStack Nova")], Some(Cloud::OpenStack)),
        (&[("product_name", "OpenStack Compute")], Some(Cloud::OpenStack)),
        (&[("chassis_asset_tag", "OpenTelekomCloud")], Some(Cloud::OpenStack)),
        (&[("sys_vendor", "QEMU"), ("product_name", "Standard PC (Q35 + ICH9, 2009)")], None),
        (&[("sys_vendor", "LENOVO"), ("product_uuid", "é")], None),
        (&[], None),
    ] {
        let paths: Vec<_> = files.iter().map(|(name, text)| (format!("sys/class/dmi/id/{name}"), *text)).collect();
        let files: Vec<_> = paths.iter().map(|(path, text)| (path.as_str(), text.as_bytes())).collect();
        assert_eq!(cloud(machine(&files).path()), expected, "{files:?}");
    }
    assert_eq!(cloud(machine(&[("sys/hypervisor/uuid", b"ec2f58af-2dad-c57e")]).path()), Some(Cloud::Ec2));
}
