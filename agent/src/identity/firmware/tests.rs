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

/// A structure of an SMBIOS table.
fn structure(kind: u8, formatted: &[u8], strings: &[&str]) -> Vec<u8> {
    let mut bytes = vec![kind, u8::try_from(4 + formatted.len()).unwrap(), 7, 0];
    bytes.extend(formatted);
    for string in strings {
        bytes.extend(string.as_bytes());
        bytes.push(0);
    }
    bytes.push(0);
    if strings.is_empty() {
        bytes.push(0);
    }
    bytes
}

/// A table that holds the strings among others.
pub(in super::super) fn table(strings: &[&str]) -> Vec<u8> {
    let mut table = structure(0, &[1, 2], &["SeaBIOS", "rouse.boot:not-here"]);
    table.extend(structure(32, &[0; 7], &[]));
    table.extend(structure(OEM_STRINGS, &[2], &["somebody's"]));
    table.extend(structure(OEM_STRINGS, &[u8::try_from(strings.len()).unwrap()], strings));
    table.extend(structure(127, &[], &[]));
    table
}

const TOML: &str = "name = \"w7\"\n";

fn found(files: &[(&str, &[u8])]) -> Option<BootText> {
    boot_data(machine(files).path()).unwrap()
}

#[test]
fn boot_data_are_found_in_the_table_and_in_its_entries_and_in_qemus_files() {
    let strings = boot::oem_strings(TOML);
    let strings: Vec<&str> = strings.iter().map(String::as_str).collect();
    let entry = structure(OEM_STRINGS, &[1], &strings);
    for (path, bytes) in [
        (TABLE, table(&strings)),
        ("sys/firmware/dmi/entries/11-0/raw", entry),
        ("sys/firmware/qemu_fw_cfg/by_name/opt/rouse/boot/raw", TOML.as_bytes().to_vec()),
    ] {
        let boot = found(&[(path, &bytes)]).unwrap();
        assert_eq!((boot.toml.as_deref(), boot.of_a_process), (Ok(TOML), false), "{path}");
    }
    assert!(found(&[]).is_none());
    assert!(found(&[(TABLE, &table(&["another's"]))]).is_none());
    let cut = machine(&[(TABLE, &table(&["rouse.boot:1/2:AAAA"]))]);
    let error = boot_data(cut.path()).unwrap_err().to_string();
    assert!(error.contains("firmware strings") && error.contains("in 2 pieces"), "{error}");
    let fw_cfg = "sys/firmware/qemu_fw_cfg/by_name/opt/rouse/boot/raw";
    assert!(found(&[(fw_cfg, b"\xff\xfe")]).unwrap().toml.is_err());
    // A copy of a machine has the file, from which the master has taken them.
    assert!(found(&[(fw_cfg, b"")]).unwrap().toml.unwrap_err().contains("another machine"));
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
fn a_broken_table_ends_where_it_breaks() {
    let whole = table(&["a", "bc"]);
    assert_eq!(strings_in(&whole), ["somebody's", "a", "bc"]);
    // No truncation and no wrong byte makes it panic or loop.
    for cut in 0..whole.len() {
        let found = strings_in(&whole[..cut]);
        assert!(found.len() <= 3);
        let mut wrong = whole.clone();
        for byte in [0, 1, 3, 4, 11, 127, 255] {
            wrong[cut] = byte;
            strings_in(&wrong);
        }
    }
    assert!(strings_in(&[OEM_STRINGS, 3, 0, 0, b'x', 0, 0]).is_empty());
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
