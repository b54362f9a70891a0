//! OpenStack's config drive: a small disk with the label `config-2`, formatted as ISO 9660 or FAT, with the metadata as
//! files.

use super::fat::Fat;
use super::iso9660::Iso;
use super::{BootText, CloudError, Machine, openstack};
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Label of the drive.
const LABEL: &str = "config-2";
/// Largest number of disks that are examined.
const MAX_DISKS: usize = 256;
/// Names of block devices that are no config drives: memory, parts of other devices, and floppy drives, which take
/// seconds to fail.
const NOT_DRIVES: [&str; 6] = ["ram", "zram", "loop", "dm-", "md", "fd"];
/// Longest time to examine the machine's disks; a broken one may never answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The machine as its config drive describes it.
pub(super) async fn look(root: &Path) -> Result<Machine, CloudError> {
    let root = root.to_owned();
    // On another thread, so that a disk that hangs does not delay the dead-man timer.
    let search = tokio::task::spawn_blocking(move || {
        let disks = disks(&root);
        disks.iter().find_map(|disk| from_disk(disk).transpose()).unwrap_or(Err(CloudError::NoDrive))
    });
    match tokio::time::timeout(PATIENCE, search).await {
        Ok(Ok(found)) => found,
        Ok(Err(_)) | Err(_) => Err(CloudError::Odd("the disks do not answer")),
    }
}

/// The block devices that may be a config drive, in order of their names.
fn disks(root: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(root.join("sys/class/block")) else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<_> = names.filter(|name| !NOT_DRIVES.iter().any(|not| name.starts_with(not))).collect();
    names.sort();
    names.truncate(MAX_DISKS);
    names.iter().map(|name| root.join("dev").join(name.replace('!', "/"))).collect()
}

/// The machine that this disk describes; `None` if it is not a config drive or cannot be read, like an empty CD drive.
fn from_disk(path: &Path) -> Result<Option<Machine>, CloudError> {
    let open = || OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok();
    let is_ours = |label: &str| label.eq_ignore_ascii_case(LABEL);
    if let Some(Ok(Some(mut fat))) = open().map(Fat::open) {
        // Tools write the label to two places, or only to one. Most FAT file systems are no config drives, and are not read.
        let labelled = is_ours(&fat.name) || fat.label().is_ok_and(|label| label.is_some_and(|label| is_ours(&label)));
        return if labelled {
            machine(path, |name, limit| fat.read(&in_latest(name), limit)).map(Some)
        } else {
            Ok(None)
        };
    }
    match open().map(Iso::open) {
        Some(Ok(Some(mut iso))) if is_ours(&iso.name) => {
            machine(path, |name, limit| iso.read(&in_latest(name), limit)).map(Some)
        }
        _ => Ok(None),
    }
}

fn in_latest(name: &str) -> [&str; 3] {
    ["openstack", "latest", name]
}

/// The machine that the files of a config drive describe.
fn machine(path: &Path, mut read: impl FnMut(&str, u32) -> io::Result<Option<Vec<u8>>>) -> Result<Machine, CloudError> {
    let unreadable = |error: io::Error| CloudError::Disk(path.to_owned(), error);
    let meta_data = read("meta_data.json", openstack::MAX_META_DATA as u32).map_err(unreadable)?;
    let meta_data = meta_data.ok_or(CloudError::Odd("the config drive has no openstack/latest/meta_data.json"))?;
    let user_data = read("user_data", openstack::MAX_USER_DATA as u32).map_err(unreadable)?;
    let source = format!("user_data on the config drive {}", path.display());
    openstack::machine(&meta_data, BootText::in_user_data(&source, &user_data.unwrap_or_default()))
}
