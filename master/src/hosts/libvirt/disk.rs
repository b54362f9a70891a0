//! The disk of a host: created from a base image for each boot, and removed afterwards. Nothing writes to the base
//! image.
//!
//! Beside each disk is an empty file, its **mark**, whose name contains the owner. The mark is created before the disk
//! and removed after it. A file without a mark is never changed, whatever its name.

use crate::core::event::StartError;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Separates the disk's name from the owner in a mark's name.
const MARK: &str = ".rouse@";
/// Free space below which a file system counts as full, bytes. The header of an empty overlay is 200 KiB.
const FULL: u64 = 1 << 20;

/// What a qcow2 image begins with.
const MAGIC: &[u8; 4] = b"QFI\xfb";

/// How a disk is created from its base image.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// A qcow2 file with only the differences.
    Overlay,
    /// A raw file. It shares its blocks with the base if the file system supports that; otherwise it is a full copy.
    Copy,
}

/// A disk to create for a boot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NewDisk {
    /// The path of the new disk.
    pub path: PathBuf,
    /// The base image.
    pub base: PathBuf,
    /// The format of the base: `qcow2` or `raw`.
    pub base_format: String,
    /// [`Base::change`] when the launch spec was made.
    pub change: String,
    /// How it is created.
    pub form: Format,
}

/// The owner of a disk.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Owner {
    /// The master's name.
    pub master: String,
    /// The master's id.
    pub id: String,
    /// The host that it was created for.
    pub host: String,
}

/// A base image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Base {
    /// `qcow2` or `raw`.
    pub format: &'static str,
    /// Changes if the file changes: its inode, size and change time.
    pub change: String,
}

/// Examines a base image, to which no guest writes.
///
/// # Errors
/// If it is missing, is not a disk image, or has a different format than its name.
pub fn look_at(path: &Path) -> Result<Base, StartError> {
    let shown = path.display();
    let (mut file, about) = open(path)?;
    let mut head = [0; MAGIC.len()];
    let read = file.read(&mut head);
    let read = read.map_err(|e| StartError::Rejected(format!("the image {shown} cannot be read: {e}")))?;
    let format = if head == *MAGIC {
        "qcow2"
    } else if path.extension().is_some_and(|e| e == "qcow2" || e == "qcow") || read == 0 {
        return Err(StartError::Rejected(format!(
            "the image {shown} is not a qcow2 image: it does not begin like one"
        )));
    } else {
        "raw"
    };
    Ok(Base { format, change: change_of(&about) })
}

/// The format of a user's own disk, by its name. Its content must not decide: the guest writes it, and could turn a raw
/// disk into a qcow2 image that is backed by any file of this machine.
pub fn format_of_own(path: &Path) -> &'static str {
    let is_qcow2 = path.extension().is_some_and(|e| e == "qcow2" || e == "qcow");
    if is_qcow2 { "qcow2" } else { "raw" }
}

/// Checks whether a user's own disk exists.
///
/// # Errors
/// If it does not, or is not a file.
pub fn find_own(path: &Path) -> Result<(), StartError> {
    open(path).map(drop)
}

/// Why a user's own disk is probably not in the format that its name says, for a person who knows whether a guest has
/// run on it; none if it is.
pub fn doubt_about_own(path: &Path) -> Option<String> {
    let mut head = [0; MAGIC.len()];
    let is_qcow2 = File::open(path).and_then(|mut file| file.read_exact(&mut head)).is_ok() && head == *MAGIC;
    let shown = path.display();
    match format_of_own(path) {
        "raw" if is_qcow2 => Some(format!(
            "{shown} begins like a qcow2 image, but is used as a raw disk, because its name does not end in .qcow2. If \
             you made it as qcow2 and no guest has run on it, rename it. If a guest has run on it, the guest may have \
             written this to read files of this machine: keep the name"
        )),
        "qcow2" if !is_qcow2 => Some(format!("the image {shown} is not a qcow2 image: it does not begin like one")),
        _ => None,
    }
}

/// Opens an image.
fn open(path: &Path) -> Result<(File, fs::Metadata), StartError> {
    let shown = path.display();
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => StartError::Rejected(format!("there is no image {shown}")),
        _ => StartError::Rejected(format!("the image {shown} cannot be read: {error}")),
    };
    let file = File::open(path).map_err(failed)?;
    let about = file.metadata().map_err(failed)?;
    if !about.is_file() {
        return Err(StartError::Rejected(format!("the image {shown} is not a file")));
    }
    Ok((file, about))
}

/// Checks whether an image is complete. One that was truncated in a copy still looks like an image, but does not boot.
///
/// # Errors
/// If it is not.
pub fn check(path: &Path, format: &str) -> Result<(), StartError> {
    if format != "qcow2" {
        return Ok(());
    }
    // This reads only the tables. Exit code 3 means unused clusters, which do no harm.
    let output = qemu_img(&["check", "-q", "-U", "-f", format], &[path])?;
    match output.status.code() {
        Some(0 | 3) => Ok(()),
        Some(_) | None => {
            let shown = path.display();
            let said = first_line(&output.stderr);
            Err(StartError::Rejected(format!(
                "the image {shown} is damaged (was it copied whole?): qemu-img check: {said}"
            )))
        }
    }
}

/// Runs qemu-img until it exits.
fn qemu_img(options: &[&str], paths: &[&Path]) -> Result<std::process::Output, StartError> {
    let mut command = Command::new("qemu-img");
    command.args(options).args(paths).stdin(Stdio::null()).env("LC_ALL", "C");
    command.output().map_err(|error| {
        StartError::Rejected(format!("qemu-img cannot be run ({error}): install it where the master runs (qemu-utils)"))
    })
}

/// The first line of a program's output.
fn first_line(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    said.lines().next().unwrap_or_default().trim_start_matches("qemu-img: ").to_owned()
}

fn change_of(about: &fs::Metadata) -> String {
    format!("{}:{}:{}.{:09}", about.ino(), about.size(), about.mtime(), about.mtime_nsec())
}

/// Why a base that was at `before` must not be used with the overlays on it any more; none if it may. It may if it has
/// not changed, or if another file has taken its name, because the old file then still exists.
pub fn changed_in_place(base: &Path, before: &str) -> Option<String> {
    let now = change_of(&fs::metadata(base).ok()?);
    let inode = |change: &str| change.split(':').next().map(str::to_owned);
    (now != before && inode(&now) == inode(before)).then(|| {
        format!(
            "the base image {} was changed in place while a disk that was made over it is in use: write a new image \
             beside it and rename it into place",
            base.display()
        )
    })
}

/// The mark of a disk.
fn mark_of(path: &Path, owner: &Owner) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!("{MARK}{}@{}@{}", owner.master, owner.id, owner.host));
    PathBuf::from(name)
}

/// All marks in a directory: the disk and its owner. Empty if the directory does not exist.
///
/// # Errors
/// If it cannot be read.
pub fn marks_in(dir: &Path) -> io::Result<Vec<(PathBuf, Owner)>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let Some((disk, owner)) = name.to_str().and_then(|name| name.rsplit_once(MARK)) else { continue };
        let mut parts = owner.splitn(3, '@').map(str::to_owned);
        if let (Some(master), Some(id), Some(host)) = (parts.next(), parts.next(), parts.next()) {
            found.push((dir.join(disk), Owner { master, id, host }));
        }
    }
    found.sort();
    Ok(found)
}

fn dir_of(path: &Path) -> &Path {
    path.parent().unwrap_or_else(|| Path::new("/"))
}

/// The owners of the disk at the path of a new one.
///
/// # Errors
/// If the directory does not exist, or the path has something that rouse has not created.
pub fn owners_of(path: &Path) -> Result<Vec<Owner>, StartError> {
    let (dir, shown) = (dir_of(path), path.display());
    if !dir.is_dir() {
        return Err(StartError::Rejected(format!("there is no directory {} for hd_image", dir.display())));
    }
    let marks = marks_in(dir).map_err(|e| StartError::Rejected(format!("{} cannot be read: {e}", dir.display())))?;
    let owners: Vec<Owner> = marks.into_iter().filter(|(disk, _)| *disk == path).map(|(_, owner)| owner).collect();
    if owners.is_empty() && path.symlink_metadata().is_ok() {
        return Err(StartError::Rejected(format!(
            "{shown} is there already and was not made by rouse: remove it, or leave out base_image to use it as it is"
        )));
    }
    Ok(owners)
}

/// Creates the disk. `live` returns whether the host with this id still runs; `marked` is called when the mark exists
/// and the disk does not.
///
/// # Errors
/// If it cannot be created, or the path has something that this master may not replace. Then nothing is left.
pub fn make(fresh: &NewDisk, owner: &Owner, live: &dyn Fn(&str) -> bool, marked: &dyn Fn()) -> Result<(), StartError> {
    let shown = fresh.path.display();
    let rejected = |text: String| Err(StartError::Rejected(text));
    let marks = owners_of(&fresh.path)?;
    for other in &marks {
        if (&other.master, &other.id) != (&owner.master, &owner.id) {
            let of = format!("host {} of another master ({}/{})", other.host, other.master, other.id);
            return rejected(format!("{shown} belongs to {of}"));
        }
        if other.host != owner.host && live(&other.host) {
            return rejected(format!(
                "{shown} is in use by host {}: give each worker an hd_image of its own",
                other.host
            ));
        }
    }
    for other in &marks {
        remove(&fresh.path, other).map_err(|e| StartError::Transient(format!("cannot remove an old {shown}: {e}")))?;
    }
    let made = create(fresh, owner, marked);
    if made.is_err()
        && let Err(error) = remove(&fresh.path, owner)
    {
        tracing::warn!("cannot remove {shown}: {error}");
    }
    made
}

fn create(fresh: &NewDisk, owner: &Owner, marked: &dyn Fn()) -> Result<(), StartError> {
    let shown = fresh.path.display();
    let dir = dir_of(&fresh.path);
    let base_shown = fresh.base.display();
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            StartError::Capacity(format!("no space for {shown}: {error}"))
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::InvalidFilename => {
            StartError::Rejected(format!("{shown} cannot be made: {error}"))
        }
        _ => StartError::Transient(format!("{shown} could not be made: {error}")),
    };
    File::options().write(true).create_new(true).open(mark_of(&fresh.path, owner)).map_err(failed)?;
    // The mark must exist whenever the disk does, even after a power failure.
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)?;
    marked();
    let now = look_at(&fresh.base)?;
    if now.change != fresh.change {
        return Err(StartError::Rejected(format!(
            "the base image {base_shown} was changed after the host was ordered"
        )));
    }
    if room(dir).is_some_and(|room| room < FULL) {
        return Err(StartError::Capacity(format!(
            "no space for {shown}: the file system of {} is full",
            dir.display()
        )));
    }
    let output = match fresh.form {
        Format::Overlay => {
            let base = fresh.base.to_string_lossy();
            qemu_img(&["create", "-q", "-f", "qcow2", "-F", &fresh.base_format, "-b", &base], &[&fresh.path])?
        }
        Format::Copy if cloned(&fresh.base, &fresh.path) => return Ok(()),
        Format::Copy => qemu_img(&["convert", "-q", "-f", "raw", "-O", "raw"], &[&fresh.base, &fresh.path])?,
    };
    if output.status.success() {
        return Ok(());
    }
    let said = first_line(&output.stderr);
    if said.contains("No space left on device") || room(dir).is_some_and(|room| room < FULL) {
        return Err(StartError::Capacity(format!("no space for {shown}: {said}")));
    }
    Err(StartError::Rejected(format!("{shown} cannot be made from {base_shown}: {said}")))
}

/// Whether a copy with shared blocks could be created.
fn cloned(base: &Path, path: &Path) -> bool {
    use std::os::fd::AsRawFd as _;
    let (Ok(from), Ok(to)) = (File::open(base), File::create(path)) else { return false };
    // SAFETY: both descriptors are open for the whole call, which reads nothing of ours.
    unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONE as _, from.as_raw_fd()) == 0 }
}

/// Bytes that can still be written to a file system.
fn room(dir: &Path) -> Option<u64> {
    use std::os::unix::ffi::OsStrExt as _;
    let path = std::ffi::CString::new(dir.as_os_str().as_bytes()).ok()?;
    let mut about = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path ends with a zero byte, and the structure is written before it is read.
    let about = unsafe {
        if libc::statvfs(path.as_ptr(), about.as_mut_ptr()) != 0 {
            return None;
        }
        about.assume_init()
    };
    Some(about.f_bavail.saturating_mul(about.f_frsize))
}

/// Removes a disk of this owner, and then its mark. Does nothing without the mark.
///
/// # Errors
/// If one of them cannot be removed.
pub fn remove(path: &Path, owner: &Owner) -> io::Result<()> {
    let mark = mark_of(path, owner);
    if mark.symlink_metadata().is_err() {
        return Ok(());
    }
    unlink(path)?;
    unlink(&mark)
}

/// Removes a file, if it exists.
pub fn unlink(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Creates a file that only this user can read.
pub fn create_private(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    File::options().write(true).create_new(true).mode(0o600).open(path).map(drop)
}
