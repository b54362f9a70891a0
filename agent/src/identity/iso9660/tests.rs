//! Valid and corrupted file systems, which the tests create. The tests of OpenStack hosts use file systems that mkisofs
//! creates.
#![allow(clippy::unwrap_used)]

use super::*;
use std::io::Cursor;

fn record(name: &[u8], sector: u32, length: usize, directory: bool) -> Vec<u8> {
    let mut bytes = vec![0; 33];
    bytes[2..6].copy_from_slice(&sector.to_le_bytes());
    bytes[10..14].copy_from_slice(&u32::try_from(length).unwrap().to_le_bytes());
    bytes[25] = if directory { DIRECTORY } else { 0 };
    bytes[32] = u8::try_from(name.len()).unwrap();
    bytes.extend(name);
    if bytes.len() % 2 == 1 {
        bytes.push(0);
    }
    bytes[0] = u8::try_from(bytes.len()).unwrap();
    bytes
}

/// An image of this name with the files of a config drive in openstack/latest.
pub(in super::super) fn image(name: &str, files: &[(&str, &[u8])], joliet: bool) -> Vec<u8> {
    let spelt = |name: &str| -> Vec<u8> {
        if joliet {
            name.encode_utf16().flat_map(u16::to_be_bytes).collect()
        } else {
            // As mkisofs writes plain names, with a version at the end.
            format!("{};1", name.to_uppercase()).into_bytes()
        }
    };
    let folder = |name: &str| if joliet { spelt(name) } else { name.to_uppercase().into_bytes() };
    let size = SECTOR as usize;
    let mut sectors: Vec<Vec<u8>> = vec![Vec::new(); 16];
    let descriptor = |kind: u8, escapes: &[u8], root: u32| {
        let mut sector = vec![0; size];
        sector[0] = kind;
        sector[1..6].copy_from_slice(b"CD001");
        sector[VOLUME_NAME].copy_from_slice(format!("{name:<32}").as_bytes());
        sector[ESCAPES][..escapes.len()].copy_from_slice(escapes);
        sector[ROOT].copy_from_slice(&record(&[0], root, size, true));
        sector
    };
    // With Joliet the plain tree leads nowhere, so that it is not taken by mistake.
    sectors.push(descriptor(PRIMARY, b"", if joliet { 30 } else { 20 }));
    sectors.push(if joliet { descriptor(SUPPLEMENTARY, b"%/E", 20) } else { descriptor(0, b"", 0) });
    sectors.push(descriptor(TERMINATOR, b"", 0));
    sectors.push(Vec::new());
    let dots = |sector| [record(&[0], sector, size, true), record(&[1], 20, size, true)].concat();
    sectors.push([dots(20), record(&folder("openstack"), 21, size, true)].concat());
    sectors.push(
        [dots(21), record(&folder("2015-10-15"), 21, size, true), record(&folder("latest"), 22, size, true)].concat(),
    );
    let mut latest = dots(22);
    let mut contents = Vec::new();
    for (number, (name, bytes)) in files.iter().enumerate() {
        latest.extend(record(&spelt(name), 40 + 100 * u32::try_from(number).unwrap(), bytes.len(), false));
        contents.push((40 + 100 * number, bytes));
    }
    sectors.push(latest);
    for sector in &mut sectors {
        sector.resize(size, 0);
    }
    let mut image = sectors.concat();
    for (sector, bytes) in contents {
        image.resize(image.len().max((sector + 1) * size), 0);
        let at = sector * size;
        image.resize(image.len().max(at + bytes.len()), 0);
        image[at..at + bytes.len()].copy_from_slice(bytes);
    }
    image
}

const PATH: [&str; 3] = ["openstack", "latest", "meta_data.json"];

#[test]
fn files_are_found_by_either_kind_of_name() {
    for joliet in [true, false] {
        let image = image("config-2", &[("user_data", b"u"), ("meta_data.json", b"{}")], joliet);
        let mut iso = Iso::open(Cursor::new(&image)).unwrap().unwrap();
        assert_eq!(iso.name, "config-2");
        assert_eq!(iso.read(&PATH, 10).unwrap().unwrap(), b"{}");
        assert_eq!(iso.read(&["openstack", "latest", "user_data"], 10).unwrap().unwrap(), b"u");
        for none in
            [&["openstack", "latest", "none"][..], &["openstack", "latest"], &["openstack", "latest", "user_data", "x"]]
        {
            assert_eq!(iso.read(none, 10).unwrap(), None);
        }
        assert!(iso.read(&PATH, 1).is_err(), "it is longer");
    }
}

#[test]
fn what_is_no_such_file_system_is_none_and_what_is_broken_an_error() {
    assert!(Iso::open(Cursor::new(Vec::new())).unwrap().is_none());
    assert!(Iso::open(Cursor::new(vec![0; 100_000])).unwrap().is_none());
    let whole = image("config-2", &[("meta_data.json", b"{}")], true);
    let mut cut = Iso::open(Cursor::new(&whole[..22 * 2_048])).unwrap().unwrap();
    assert!(cut.read(&PATH, 10).is_err());
    // No wrong byte in descriptors and directories makes it panic, or allocate more memory than the limit.
    for at in (16 * 2_048..23 * 2_048).filter(|at| at % 2_048 < 300) {
        for byte in [0, 1, 2, 0x22, 0x7f, 0xff] {
            let mut wrong = whole.clone();
            wrong[at] = byte;
            if let Ok(Some(mut iso)) = Iso::open(Cursor::new(&wrong)) {
                drop(iso.read(&PATH, 10));
            }
        }
    }
}
