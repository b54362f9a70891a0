//! Valid and corrupted file systems, which the tests create in the same way as mkfs.fat.
#![allow(clippy::unwrap_used)]

use super::*;
use std::io::Cursor;

const SECTOR: usize = 512;
const RESERVED: usize = 4;

/// Bits of a table, the sectors that it needs, and the number of clusters of one sector that make it that.
const KINDS: [(u32, usize, usize); 3] = [(12, 3, 1_000), (16, 20, 5_000), (32, 520, 66_000)];

struct Image {
    bytes: Vec<u8>,
    bits: u32,
    /// Where the data begin.
    data: usize,
    next: u32,
}

impl Image {
    fn new(bits: u32, label: &str) -> Self {
        let (_, table, clusters) = *KINDS.iter().find(|kind| kind.0 == bits).unwrap();
        let root = if bits == 32 { 0 } else { 32 };
        let data = RESERVED * SECTOR + table * SECTOR + root * ENTRY;
        let sectors = data / SECTOR + clusters;
        let mut bytes = vec![0; sectors * SECTOR];
        let label = format!("{label:<11}");
        bytes[11..13].copy_from_slice(&512_u16.to_le_bytes());
        bytes[13] = 1;
        bytes[14..16].copy_from_slice(&u16::try_from(RESERVED).unwrap().to_le_bytes());
        bytes[16] = 1;
        bytes[17..19].copy_from_slice(&u16::try_from(root).unwrap().to_le_bytes());
        bytes[21] = 0xf8;
        bytes[32..36].copy_from_slice(&u32::try_from(sectors).unwrap().to_le_bytes());
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        if bits == 32 {
            bytes[36..40].copy_from_slice(&u32::try_from(table).unwrap().to_le_bytes());
            bytes[44..48].copy_from_slice(&2_u32.to_le_bytes());
            bytes[71..82].copy_from_slice(label.as_bytes());
        } else {
            bytes[22..24].copy_from_slice(&u16::try_from(table).unwrap().to_le_bytes());
            bytes[43..54].copy_from_slice(label.as_bytes());
        }
        Self { bytes, bits, data, next: 2 }
    }

    fn set(&mut self, cluster: u32, value: u32) {
        let at = RESERVED * SECTOR + (cluster * self.bits / 8) as usize;
        match (self.bits, cluster % 2) {
            (12, 1) => {
                self.bytes[at] = self.bytes[at] & 0x0f | ((value & 0x0f) << 4) as u8;
                self.bytes[at + 1] = (value >> 4) as u8;
            }
            (12, _) => {
                self.bytes[at] = value as u8;
                self.bytes[at + 1] = self.bytes[at + 1] & 0xf0 | (value >> 8 & 0x0f) as u8;
            }
            (bits, _) => {
                let size = bits as usize / 8;
                self.bytes[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
            }
        }
    }

    /// Puts bytes into clusters that are not next to each other; the first one.
    fn put(&mut self, bytes: &[u8]) -> u32 {
        let first = self.next;
        let mut pieces = bytes.chunks(SECTOR).peekable();
        while let Some(piece) = pieces.next() {
            let at = self.data + (self.next as usize - 2) * SECTOR;
            self.bytes[at..at + piece.len()].copy_from_slice(piece);
            let (now, after) = (self.next, self.next + 2);
            self.set(now, if pieces.peek().is_some() { after } else { 0x0fff_ffff });
            self.next = after;
        }
        first
    }
}

/// The entries of a name: the pieces of the long one if it needs them, and the short one.
fn entry(name: &str, short: &[u8; 11], cluster: u32, length: Option<usize>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if !name.is_empty() {
        let mut units: Vec<u16> = name.encode_utf16().collect();
        units.push(0);
        while !units.len().is_multiple_of(13) {
            units.push(0xffff);
        }
        let pieces: Vec<&[u16]> = units.chunks(13).collect();
        for (number, piece) in pieces.iter().enumerate().rev() {
            let raw: Vec<u8> = piece.iter().flat_map(|unit| unit.to_le_bytes()).collect();
            let mut long = vec![0; ENTRY];
            long[0] = (number as u8 + 1) | if number + 1 == pieces.len() { 0x40 } else { 0 };
            long[1..11].copy_from_slice(&raw[..10]);
            long[11] = LONG_NAME;
            long[13] = checksum(short);
            long[14..26].copy_from_slice(&raw[10..22]);
            long[28..32].copy_from_slice(&raw[22..26]);
            bytes.extend(long);
        }
    }
    let mut plain = vec![0; ENTRY];
    plain[..11].copy_from_slice(short);
    plain[11] = if length.is_none() { DIRECTORY } else { 0x20 };
    plain[20..22].copy_from_slice(&((cluster >> 16) as u16).to_le_bytes());
    plain[26..28].copy_from_slice(&(cluster as u16).to_le_bytes());
    plain[28..32].copy_from_slice(&u32::try_from(length.unwrap_or(0)).unwrap().to_le_bytes());
    [bytes, plain].concat()
}

/// An image with this label and the files of a config drive in openstack/latest.
pub(in super::super) fn image(bits: u32, label: &str, files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut image = Image::new(bits, label);
    // The root directory of FAT32 is the first chain.
    let root_at = image.data - if bits == 32 { 0 } else { 32 * ENTRY };
    if bits == 32 {
        image.put(&[0; SECTOR]);
    }
    let mut latest = entry("deleted.json", b"DELETE~1JSO", 9, Some(9));
    latest.iter_mut().step_by(ENTRY).for_each(|first| *first = 0xe5);
    for (number, (name, bytes)) in files.iter().enumerate() {
        let cluster = if bytes.is_empty() { 0 } else { image.put(bytes) };
        let mut short = *b"FILE~0     ";
        short[5] = b'0' + number as u8;
        latest.extend(entry(name, &short, cluster, Some(bytes.len())));
    }
    // Longer than a cluster.
    latest.resize(latest.len() + 600, 0);
    let latest = image.put(&latest);
    let mut versions = entry("2015-10-15", b"2015-1~1   ", latest, None);
    versions.extend(entry("", b"LATEST     ", latest, None));
    let versions = image.put(&versions);
    let mut root = vec![0; ENTRY];
    root[..11].copy_from_slice(format!("{label:<11}").as_bytes());
    root[11] = VOLUME;
    root.extend(entry("openstack", b"OPENST~1   ", versions, None));
    image.bytes[root_at..root_at + root.len()].copy_from_slice(&root);
    image.bytes
}

const PATH: [&str; 3] = ["openstack", "latest", "meta_data.json"];

#[test]
fn files_are_found_in_every_kind() {
    for (bits, ..) in KINDS {
        let long = vec![b'x'; 3 * SECTOR + 7];
        let image = image(bits, "config-2", &[("user_data", &long), ("meta_data.json", b"{}"), ("empty.json", b"")]);
        let mut fat = Fat::open(Cursor::new(&image)).unwrap().unwrap();
        assert_eq!((fat.table.1, fat.name.as_str()), (bits, "config-2"));
        assert_eq!(fat.label().unwrap().as_deref(), Some("config-2"));
        assert_eq!(fat.read(&PATH, 10).unwrap().unwrap(), b"{}", "{bits}");
        assert_eq!(fat.read(&["OpenStack", "latest", "user_data"], 10_000).unwrap().unwrap(), long, "{bits}");
        assert_eq!(fat.read(&["openstack", "2015-10-15", "empty.json"], 10).unwrap().unwrap(), b"");
        for none in [
            &["openstack", "latest", "deleted.json"][..],
            &["openstack", "latest"],
            &["config-2"],
            &["openstack", "latest", "user_data", "x"],
        ] {
            assert_eq!(fat.read(none, 10_000).unwrap(), None, "{none:?}");
        }
        assert!(fat.read(&PATH, 1).is_err(), "it is longer");
    }
}

#[test]
fn what_is_no_such_file_system_is_none_and_what_is_broken_an_error() {
    assert!(Fat::open(Cursor::new(Vec::new())).unwrap().is_none());
    assert!(Fat::open(Cursor::new(vec![0; 100_000])).unwrap().is_none());
    // A boot sector with nothing but the signature, as of a partitioned disk.
    let mut partitioned = vec![0; 100_000];
    partitioned[510..512].copy_from_slice(&[0x55, 0xaa]);
    assert!(Fat::open(Cursor::new(partitioned)).unwrap().is_none());
    let whole = image(12, "config-2", &[("meta_data.json", b"{}")]);
    let mut cut = Fat::open(Cursor::new(&whole[..RESERVED * SECTOR])).unwrap().unwrap();
    assert!(cut.read(&PATH, 10).is_err());
    // A directory that goes round in a circle.
    let mut image = Image::new(12, "config-2");
    let chain = image.put(&[b'x'; 2 * SECTOR]);
    image.set(chain + 2, chain);
    let root_at = image.data - 32 * ENTRY;
    image.bytes[root_at..root_at + 3 * ENTRY - 32].copy_from_slice(&entry("openstack", b"OPENST~1   ", chain, None));
    let mut fat = Fat::open(Cursor::new(&image.bytes)).unwrap().unwrap();
    assert!(fat.read(&PATH, 10).is_err());
    // No wrong byte in the boot sector, the table and the directories makes it panic, or allocate more than the limit.
    let begins = whole.len() - 1_000 * SECTOR - 32 * ENTRY;
    for at in (0..90).chain(RESERVED * SECTOR..RESERVED * SECTOR + 64).chain(begins..begins + 8 * SECTOR) {
        for byte in [0, 1, 2, 0x40, 0x7f, 0xe5, 0xff] {
            let mut wrong = whole.clone();
            wrong[at] = byte;
            if let Ok(Some(mut fat)) = Fat::open(Cursor::new(&wrong)) {
                drop(fat.label());
                drop(fat.read(&PATH, 10));
            }
        }
    }
}
