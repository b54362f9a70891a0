//! Reads files of an ISO 9660 file system directly from its device, without a mount and without the kernel's module.
//! Supports only what config drives need: names from Joliet if it exists, otherwise plain names, and files in one
//! piece.

use std::io::{self, Read, Seek, SeekFrom};

const SECTOR: u64 = 2_048;
/// Sector of the first descriptor.
const DESCRIPTORS: u64 = 16;
/// Largest number of descriptors; usually there are three or four.
const MAX_DESCRIPTORS: u64 = 32;
/// Largest directory, bytes; those of a config drive have some tens of entries.
const MAX_DIRECTORY: u32 = 1 << 20;
const PRIMARY: u8 = 1;
const SUPPLEMENTARY: u8 = 2;
const TERMINATOR: u8 = 255;
/// Positions in a descriptor of the volume's name, the escape sequences and the record of the root directory.
const VOLUME_NAME: std::ops::Range<usize> = 40..72;
const ESCAPES: std::ops::Range<usize> = 88..120;
const ROOT: std::ops::Range<usize> = 156..190;
/// Escape sequences of the three levels of Joliet, whose names are in UCS-2.
const JOLIET: [&[u8]; 3] = [b"%/@", b"%/C", b"%/E"];
/// The flag of a record of a directory.
const DIRECTORY: u8 = 2;

/// A directory or file: its first sector and its length in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Extent {
    sector: u32,
    length: u32,
    directory: bool,
}

/// A file system.
pub(super) struct Iso<D> {
    device: D,
    root: Extent,
    joliet: bool,
    /// The volume's name, without trailing blanks.
    pub(super) name: String,
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

impl<D: Read + Seek> Iso<D> {
    /// The file system on a device; `None` if the device has another one, or none.
    ///
    /// # Errors
    /// If the device cannot be read.
    pub(super) fn open(mut device: D) -> io::Result<Option<Self>> {
        let mut found: Option<(Extent, String)> = None;
        let mut joliet = None;
        for number in DESCRIPTORS..DESCRIPTORS + MAX_DESCRIPTORS {
            let mut sector = [0; SECTOR as usize];
            device.seek(SeekFrom::Start(number * SECTOR))?;
            match device.read_exact(&mut sector) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                other => other?,
            }
            if &sector[1..6] != b"CD001" {
                break;
            }
            let root = Record::parse(&sector[ROOT]).map(|record| record.extent);
            match sector[0] {
                PRIMARY => {
                    let name = String::from_utf8_lossy(&sector[VOLUME_NAME]).trim_end().to_owned();
                    found = root.map(|root| (root, name));
                }
                SUPPLEMENTARY if JOLIET.iter().any(|level| sector[ESCAPES].starts_with(level)) => joliet = root,
                TERMINATOR => break,
                _ => {}
            }
        }
        let Some((plain, name)) = found else { return Ok(None) };
        Ok(Some(Self { device, root: joliet.unwrap_or(plain), joliet: joliet.is_some(), name }))
    }

    /// The bytes of the file at a path; `None` if there is none.
    ///
    /// # Errors
    /// If the device cannot be read, the file system is malformed, or the file has more than `limit` bytes.
    pub(super) fn read(&mut self, path: &[&str], limit: u32) -> io::Result<Option<Vec<u8>>> {
        let mut at = self.root;
        for name in path {
            if !at.directory {
                return Ok(None);
            }
            match self.find(at, name)? {
                Some(next) => at = next,
                None => return Ok(None),
            }
        }
        if at.directory {
            return Ok(None);
        }
        self.bytes(at, limit).map(Some)
    }

    fn find(&mut self, directory: Extent, name: &str) -> io::Result<Option<Extent>> {
        let bytes = self.bytes(directory, MAX_DIRECTORY)?;
        // Records do not cross the ends of sectors; the rest of a sector is zero.
        for sector in bytes.chunks(SECTOR as usize) {
            let mut rest = sector;
            while let Some(length) = rest.first().map(|l| usize::from(*l)).filter(|l| *l > 0) {
                let record = rest.get(..length).and_then(Record::parse);
                let record = record.ok_or_else(|| invalid("a directory of the file system is malformed"))?;
                if record.is(name, self.joliet) {
                    return Ok(Some(record.extent));
                }
                rest = &rest[length..];
            }
        }
        Ok(None)
    }

    fn bytes(&mut self, extent: Extent, limit: u32) -> io::Result<Vec<u8>> {
        if extent.length > limit {
            return Err(invalid("a file or directory of the file system is too long"));
        }
        let mut bytes = vec![0; extent.length as usize];
        self.device.seek(SeekFrom::Start(u64::from(extent.sector) * SECTOR))?;
        self.device.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

/// An entry of a directory.
struct Record<'a> {
    extent: Extent,
    name: &'a [u8],
}

impl<'a> Record<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let number = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let name_length = usize::from(*bytes.get(32)?);
        let extent = Extent { sector: number(2)?, length: number(10)?, directory: bytes.get(25)? & DIRECTORY != 0 };
        Some(Self { extent, name: bytes.get(33..33 + name_length)? })
    }

    /// Whether the entry has this name, ignoring case: plain names are often in capitals.
    fn is(&self, name: &str, joliet: bool) -> bool {
        let own = if joliet {
            let units = self.name.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
            char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
        } else {
            String::from_utf8_lossy(self.name).into_owned()
        };
        let own = own.split(';').next().unwrap_or_default();
        own.strip_suffix('.').unwrap_or(own).eq_ignore_ascii_case(name)
    }
}

#[cfg(test)]
pub(super) mod tests;
