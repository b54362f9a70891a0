//! The file from which QEMU takes a guest's boot data when it starts. They contain a token, so they must not be in the
//! domain's description, which libvirt shows to every user of its machine, nor on QEMU's command line.
//!
//! The file has the boot data only while libvirt starts the domain: QEMU reads it once. After that it is empty, and it
//! stays until the domain is gone. libvirt gives the file to QEMU's user, and takes it back when the domain ends. If the
//! file were missing then, libvirt would not take back the files that follow it in the description.

use super::disk::{create_private, unlink};
use super::link::code_of;
use super::xml;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use thiserror::Error;
use virt::connect::Connect;
use virt::error::ErrorNumber;
use virt::storage_vol::StorageVol;
use virt::stream::Stream;
use virt::sys;

/// Where the file is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BootFile {
    /// Its path on the machine of libvirt.
    pub path: PathBuf,
    /// If that is another machine: the storage pool whose volume it is.
    pub pool: Option<String>,
}

/// Why the file cannot be written or removed.
#[derive(Debug, Error)]
pub enum BootFileError {
    /// On this machine.
    #[error("cannot write or remove the boot data in {path}: {error}", path = .0.display(), error = .1)]
    Here(PathBuf, io::Error),
    /// On the machine of libvirt.
    #[error("cannot write or remove the boot data in the storage pool {0}: {message}", message = .1.message())]
    There(String, virt::error::Error),
    /// The machine of libvirt has no place for it.
    #[error(
        "there is no place for the boot data, which contain a token: libvirt at {0} has no active storage pool of type \
         dir; make one there, such as virsh pool-create-as rouse dir --target /var/lib/libvirt/images"
    )]
    NoPool(String),
    /// libvirt does not list its storage pools.
    #[error("cannot find a place for the boot data: libvirt at {0} does not list its storage pools: {message}", message = .1.message())]
    NoList(String, virt::error::Error),
}

/// A storage pool, and the directory that it is.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Pool {
    name: String,
    dir: PathBuf,
}

impl BootFile {
    /// The file of a host on another machine: a volume of a storage pool, at best of the one that has the host's disk.
    ///
    /// # Errors
    /// If there is no suitable pool.
    pub fn elsewhere(connect: &Connect, uri: &str, host: &str, disk: Option<&Path>) -> Result<Self, BootFileError> {
        let no_list = |error| BootFileError::NoList(uri.to_owned(), error);
        let flags = sys::VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE | sys::VIR_CONNECT_LIST_STORAGE_POOLS_DIR;
        let mut pools = Vec::new();
        for pool in connect.list_all_storage_pools(flags).map_err(no_list)? {
            let text = pool.xml_desc(0).map_err(no_list)?;
            pools.extend(pool_of(&text));
        }
        let Pool { name, dir } = best(pools, disk).ok_or_else(|| BootFileError::NoPool(uri.to_owned()))?;
        Ok(Self { path: dir.join(format!("rouse-{host}.boot")), pool: Some(name) })
    }

    /// Creates the file with these boot data, in place of an earlier one. Only its owner can read it.
    ///
    /// # Errors
    /// If that is not possible. Then there is no file with boot data.
    pub fn write(&self, connect: &Connect, toml: &str) -> Result<(), BootFileError> {
        let written = match &self.pool {
            None => self.write_here(toml).map_err(|error| BootFileError::Here(self.path.clone(), error)),
            Some(pool) => {
                self.write_there(connect, pool, toml).map_err(|error| BootFileError::There(pool.clone(), error))
            }
        };
        if written.is_err() {
            drop(self.remove(connect));
        }
        written
    }

    /// Takes the boot data out of the file.
    ///
    /// # Errors
    /// If that is not possible.
    pub fn empty(&self, connect: &Connect) -> Result<(), BootFileError> {
        self.write(connect, "")
    }

    fn write_here(&self, toml: &str) -> io::Result<()> {
        unlink(&self.path)?;
        create_private(&self.path)?;
        File::options().write(true).open(&self.path)?.write_all(toml.as_bytes())
    }

    fn write_there(&self, connect: &Connect, pool: &str, toml: &str) -> Result<(), virt::error::Error> {
        self.remove_there(connect, pool)?;
        let pool = connect.lookup_storage_pool_by_name(pool)?;
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        // libvirt knows it as a raw disk, whose size is that of the text.
        let text = format!(
            "<volume><name>{name}</name><capacity unit='bytes'>{}</capacity><target><format type='raw'/>\
             <permissions><mode>0600</mode></permissions></target></volume>",
            toml.len()
        );
        let volume = StorageVol::create_xml(&pool, &text, 0)?;
        if toml.is_empty() {
            return Ok(());
        }
        let stream = Stream::new(connect, 0)?;
        volume.upload(&stream, 0, toml.len() as u64, 0)?;
        let mut rest = toml.as_bytes();
        while !rest.is_empty() {
            let sent = stream.send(rest)?;
            rest = rest.get(usize::try_from(sent).unwrap_or_default()..).unwrap_or_default();
        }
        stream.finish()
    }

    /// Removes the file, if it exists.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn remove(&self, connect: &Connect) -> Result<(), BootFileError> {
        match &self.pool {
            None => unlink(&self.path).map_err(|error| BootFileError::Here(self.path.clone(), error)),
            Some(pool) => self.remove_there(connect, pool).map_err(|error| BootFileError::There(pool.clone(), error)),
        }
    }

    fn remove_there(&self, connect: &Connect, pool: &str) -> Result<(), virt::error::Error> {
        let pool = match connect.lookup_storage_pool_by_name(pool) {
            Err(error) if code_of(&error) == ErrorNumber::NoStoragePool => return Ok(()),
            other => other?,
        };
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let volume = match pool.lookup_storage_vol_by_name(&name) {
            Err(error) if code_of(&error) == ErrorNumber::NoStorageVolume => return Ok(()),
            other => other?,
        };
        volume.delete(0)
    }

    /// A directory of this machine on the way to the file that other users cannot pass through. If QEMU runs as another
    /// user than the master, it cannot read the file then.
    pub fn closed_directory(&self) -> Option<&Path> {
        let is_closed = |dir: &&Path| dir.metadata().is_ok_and(|about| about.permissions().mode() & 0o001 == 0);
        self.path.ancestors().skip(1).filter(|_| self.pool.is_none()).find(is_closed)
    }
}

fn pool_of(text: &str) -> Option<Pool> {
    let pool = xml::parse(text).ok()?;
    let dir = xml::text_of(pool.get_child("target")?, "path")?;
    Some(Pool { name: xml::text_of(&pool, "name")?, dir: dir.into() })
}

/// The pool of the disk, or else the one that libvirt's own tools use, or else the first.
fn best(mut pools: Vec<Pool>, disk: Option<&Path>) -> Option<Pool> {
    pools.sort_by(|a, b| a.name.cmp(&b.name));
    let of_the_disk = |pool: &&Pool| disk.and_then(Path::parent) == Some(pool.dir.as_path());
    let found = pools.iter().find(of_the_disk).or_else(|| pools.iter().find(|pool| pool.name == "default"));
    found.or(pools.first()).cloned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_pool_of_the_disk_comes_first() {
        let pool = |name: &str, dir: &str| {
            pool_of(&format!("<pool type='dir'><name>{name}</name><target><path>{dir}</path></target></pool>")).unwrap()
        };
        let pools = [pool("z", "/srv/z"), pool("default", "/var/lib/libvirt/images"), pool("b", "/srv/b")];
        let chosen = |pools: &[Pool], disk| best(pools.to_vec(), disk).map(|pool| pool.name);
        assert_eq!(chosen(&pools, Some(Path::new("/srv/z/w.img"))).as_deref(), Some("z"));
        assert_eq!(chosen(&pools, Some(Path::new("/elsewhere/w.img"))).as_deref(), Some("default"));
        assert_eq!(chosen(&pools[2..], None).as_deref(), Some("b"));
        assert_eq!(chosen(&[], None), None);
    }

    #[test]
    fn a_directory_that_others_cannot_pass_through_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        let file = BootFile { path: inner.join("h1.boot"), pool: None };
        let mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        mode(dir.path(), 0o711);
        mode(&inner, 0o711);
        assert_eq!(file.closed_directory(), None);
        mode(dir.path(), 0o700);
        assert_eq!(file.closed_directory(), Some(dir.path()));
    }
}
