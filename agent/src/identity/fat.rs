//! Reads files of a FAT file system directly from its device, without a mount and without the kernel's module. Supports
//! only what config drives need: FAT12, FAT16 and FAT32 with long names.

use std::io::{self, Read, Seek, SeekFrom};

/// Bytes of a directory's entry.
const ENTRY: usize = 32;
/// Largest directory, bytes; those of a config drive have some tens of entries.
const MAX_DIRECTORY: u32 = 1 << 16;
/// Flags of an entry: the volume's name, a directory, and all of those that mark a piece of a long name.
const VOLUME: u8 = 0x08;
const DIRECTORY: u8 = 0x10;
const LONG_NAME: u8 = 0x0f;
/// Largest number of pieces of a long name.
const MAX_PIECES: u8 = 20;
/// Number of clusters from which on a file system is FAT16, and FAT32. There is no other sign of it.
const FAT16: u32 = 4_085;
const FAT32: u32 = 65_525;

/// Where a directory or file begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Start {
    /// The root directory of FAT12 and FAT16: position and length in bytes.
    Root(u64, u32),
    /// A cluster; 0 if the file is empty.
    Cluster(u32),
}

/// A directory or a file with its length in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Node {
    start: Start,
    length: Option<u32>,
}

/// A file system.
pub(super) struct Fat<D> {
    device: D,
    /// Position of the table of clusters, and bits of its entries.
    table: (u64, u32),
    /// Position of cluster 2, which is the first one.
    data: u64,
    /// Bytes of a cluster.
    cluster: u32,
    /// Number of clusters.
    clusters: u32,
    root: Node,
    /// The volume's name in the boot sector, without trailing blanks.
    pub(super) name: String,
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

impl<D: Read + Seek> Fat<D> {
    /// The file system on a device; `None` if the device has another one, or none.
    ///
    /// # Errors
    /// If the device cannot be read.
    pub(super) fn open(mut device: D) -> io::Result<Option<Self>> {
        let mut boot = [0; 512];
        device.seek(SeekFrom::Start(0))?;
        match device.read_exact(&mut boot) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let short = |at: usize| u32::from(u16::from_le_bytes([boot[at], boot[at + 1]]));
        let long = |at: usize| u32::from_le_bytes([boot[at], boot[at + 1], boot[at + 2], boot[at + 3]]);
        let or = |short: u32, long: u32| if short == 0 { long } else { short };
        let (sector, per_cluster, reserved, tables) = (short(11), u32::from(boot[13]), short(14), u32::from(boot[16]));
        let (root_entries, sectors, table) = (short(17), or(short(19), long(32)), or(short(22), long(36)));
        let plausible = boot[510..] == [0x55, 0xaa]
            && matches!(sector, 512 | 1_024 | 2_048 | 4_096)
            && per_cluster.is_power_of_two()
            && reserved > 0
            && (1..=2).contains(&tables)
            && (boot[21] == 0xf0 || boot[21] >= 0xf8)
            && table > 0;
        if !plausible {
            return Ok(None);
        }
        let (sector, per_cluster) = (u64::from(sector), u64::from(per_cluster));
        let root_length = root_entries * ENTRY as u32;
        let root_at = (u64::from(reserved) + u64::from(tables) * u64::from(table)) * sector;
        let data = root_at + u64::from(root_length).div_ceil(sector) * sector;
        let clusters = (u64::from(sectors) * sector).saturating_sub(data) / (per_cluster * sector);
        let Ok(clusters) = u32::try_from(clusters) else { return Ok(None) };
        let bits = match clusters {
            0..FAT16 => 12,
            FAT16..FAT32 => 16,
            FAT32.. => 32,
        };
        let start = if bits == 32 { Start::Cluster(long(44)) } else { Start::Root(root_at, root_length) };
        let name = &boot[if bits == 32 { 71..82 } else { 43..54 }];
        Ok(Some(Self {
            device,
            table: (u64::from(reserved) * sector, bits),
            data,
            // At most 128 sectors of 4 KiB.
            cluster: (per_cluster * sector) as u32,
            clusters,
            root: Node { start, length: None },
            name: String::from_utf8_lossy(name).trim_end().to_owned(),
        }))
    }

    /// The volume's name in the root directory, which counts more than the one in the boot sector; `None` if there is none.
    ///
    /// # Errors
    /// If the device cannot be read, or the file system is malformed.
    pub(super) fn label(&mut self) -> io::Result<Option<String>> {
        let bytes = self.bytes(self.root, MAX_DIRECTORY)?;
        let entry = entries(&bytes).find(|entry| entry[11] != LONG_NAME && entry[11] & VOLUME != 0);
        Ok(entry.map(|entry| String::from_utf8_lossy(&entry[..11]).trim_end().to_owned()))
    }

    /// The bytes of the file at a path; `None` if there is none.
    ///
    /// # Errors
    /// If the device cannot be read, the file system is malformed, or the file has more than `limit` bytes.
    pub(super) fn read(&mut self, path: &[&str], limit: u32) -> io::Result<Option<Vec<u8>>> {
        let mut at = self.root;
        for name in path {
            if at.length.is_some() {
                return Ok(None);
            }
            let bytes = self.bytes(at, MAX_DIRECTORY)?;
            match find(&bytes, name, self.table.1 == 32) {
                Some(next) => at = next,
                None => return Ok(None),
            }
        }
        if at.length.is_none() {
            return Ok(None);
        }
        self.bytes(at, limit).map(Some)
    }

    /// The whole of a file or directory. A directory ends with its last cluster.
    fn bytes(&mut self, node: Node, limit: u32) -> io::Result<Vec<u8>> {
        let too_long = || invalid("a file or directory of the file system is too long");
        if node.length.is_some_and(|length| length > limit) {
            return Err(too_long());
        }
        let mut bytes = Vec::new();
        let mut at = match node.start {
            Start::Root(at, length) => {
                self.append(at, length.min(limit), &mut bytes)?;
                return Ok(bytes);
            }
            Start::Cluster(cluster) => cluster,
        };
        loop {
            let left = node.length.map(|length| length as usize - bytes.len());
            if left == Some(0) {
                return Ok(bytes);
            }
            let last = self.clusters.saturating_add(1);
            if !(2..=last).contains(&at) {
                // What marks the end is above all clusters.
                return if left.is_none() && at > last && !bytes.is_empty() {
                    Ok(bytes)
                } else {
                    Err(invalid("a file of the file system has no such cluster"))
                };
            }
            let now = left.map_or(self.cluster, |left| self.cluster.min(left as u32));
            if bytes.len() + now as usize > limit as usize {
                return Err(too_long());
            }
            self.append(self.data + u64::from(at - 2) * u64::from(self.cluster), now, &mut bytes)?;
            at = self.next(at)?;
        }
    }

    fn append(&mut self, at: u64, length: u32, bytes: &mut Vec<u8>) -> io::Result<()> {
        let before = bytes.len();
        bytes.resize(before + length as usize, 0);
        self.device.seek(SeekFrom::Start(at))?;
        self.device.read_exact(&mut bytes[before..])
    }

    /// The cluster after this one.
    fn next(&mut self, cluster: u32) -> io::Result<u32> {
        let (table, bits) = self.table;
        let mut bytes = [0; 4];
        let size = if bits == 32 { 4 } else { 2 };
        self.device.seek(SeekFrom::Start(table + u64::from(cluster) * u64::from(bits) / 8))?;
        self.device.read_exact(&mut bytes[..size])?;
        let entry = u32::from_le_bytes(bytes);
        Ok(match bits {
            // Two entries share the byte in the middle.
            12 if cluster % 2 == 1 => entry >> 4,
            12 => entry & 0xfff,
            16 => entry,
            _ => entry & 0x0fff_ffff,
        })
    }
}

/// The entries of a directory that are in use, pieces of long names among them.
fn entries(directory: &[u8]) -> impl Iterator<Item = &[u8]> {
    let used = directory.chunks_exact(ENTRY).take_while(|entry| entry[0] != 0);
    used.filter(|entry| entry[0] != 0xe5)
}

/// The entry of this name, ignoring case.
fn find(directory: &[u8], name: &str, wide: bool) -> Option<Node> {
    // A long name stands in pieces before its entry, the last one first.
    let mut long: Vec<u16> = Vec::new();
    let mut sum = None;
    for entry in entries(directory) {
        if entry[11] == LONG_NAME {
            if entry[0] & 0x40 != 0 {
                long.clear();
                sum = Some(entry[13]);
            }
            if !(1..=MAX_PIECES).contains(&(entry[0] & 0x3f)) || sum != Some(entry[13]) {
                sum = None;
                continue;
            }
            let units = [&entry[1..11], &entry[14..26], &entry[28..32]];
            let units = units.into_iter().flat_map(|part| part.chunks_exact(2));
            let piece: Vec<u16> = units.map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
            long.splice(0..0, piece);
            continue;
        }
        // The sum ties the pieces to the short name; without it they are left over from another file.
        let is_long = sum.take() == Some(checksum(&entry[..11]));
        let long_name: String = char::decode_utf16(long.drain(..).take_while(|unit| !matches!(unit, 0 | 0xffff)))
            .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
            .collect();
        let is_this = (is_long && long_name.eq_ignore_ascii_case(name)) || short_name(entry).eq_ignore_ascii_case(name);
        if entry[11] & VOLUME == 0 && is_this {
            let short = |at: usize| u32::from(u16::from_le_bytes([entry[at], entry[at + 1]]));
            let high = if wide { short(20) << 16 } else { 0 };
            let length = u32::from_le_bytes([entry[28], entry[29], entry[30], entry[31]]);
            let length = (entry[11] & DIRECTORY == 0).then_some(length);
            return Some(Node { start: Start::Cluster(high | short(26)), length });
        }
    }
    None
}

fn checksum(short: &[u8]) -> u8 {
    short.iter().fold(0_u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte))
}

fn short_name(entry: &[u8]) -> String {
    let part = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    let (name, extension) = (part(&entry[..8]), part(&entry[8..11]));
    if extension.is_empty() { name } else { format!("{name}.{extension}") }
}

#[cfg(test)]
pub(super) mod tests;
