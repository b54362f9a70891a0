//! Small files that are replaced as a whole: a crash leaves the old content or the new one.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// What has to survive once a file is replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Durability {
    /// The new content survives a crash of the machine. Waits for the disk.
    Disk,
    /// The new content survives the end of this process.
    Memory,
}

/// Replaces the file's content, or creates the file; its mode is 0600.
///
/// # Errors
/// If the file cannot be written; then it still has its old content.
pub(crate) fn replace(path: &Path, content: &str, durability: Durability) -> io::Result<()> {
    let new = path.with_extension("new");
    // Always created, so that it has its mode from the first byte on.
    remove(&new)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(content.as_bytes())?;
    if durability == Durability::Disk {
        file.sync_all()?;
    }
    fs::rename(&new, path)
}

/// Removes a file if it exists.
///
/// # Errors
/// If it exists and cannot be removed.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
