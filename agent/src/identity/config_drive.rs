//! OpenStack's config drive: a small disk with the label `config-2` and the metadata as files.

use super::iso9660::Iso;
use super::{BootText, CloudError, Machine, openstack};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
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
/// Positions of the label in the boot sector of a FAT file system: FAT12 and FAT16, FAT32.
const FAT_NAMES: [std::ops::Range<usize>; 2] = [43..54, 71..82];

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
    let open = || OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let Ok(mut device) = open() else { return Ok(None) };
    if is_fat(&mut device).unwrap_or(false) {
        return Err(CloudError::Odd("the config drive has a FAT file system, and only ISO 9660 is supported"));
    }
    let Ok(Some(mut iso)) = Iso::open(device) else { return Ok(None) };
    if !iso.name.eq_ignore_ascii_case(LABEL) {
        return Ok(None);
    }
    let unreadable = |error: io::Error| CloudError::Disk(path.to_owned(), error);
    let meta_data =
        iso.read(&["openstack", "latest", "meta_data.json"], openstack::MAX_META_DATA as u32).map_err(unreadable)?;
    let meta_data = meta_data.ok_or(CloudError::Odd("the config drive has no openstack/latest/meta_data.json"))?;
    let user_data =
        iso.read(&["openstack", "latest", "user_data"], openstack::MAX_USER_DATA as u32).map_err(unreadable)?;
    let source = format!("user_data on the config drive {}", path.display());
    openstack::machine(&meta_data, BootText::in_user_data(&source, &user_data.unwrap_or_default())).map(Some)
}

/// Whether it is a FAT file system with the label of a config drive.
fn is_fat(device: &mut File) -> io::Result<bool> {
    let mut sector = [0; 512];
    device.read_exact(&mut sector)?;
    device.seek(SeekFrom::Start(0))?;
    let named = FAT_NAMES
        .iter()
        .any(|place| String::from_utf8_lossy(&sector[place.clone()]).trim_end().eq_ignore_ascii_case(LABEL));
    Ok(named && sector[510..] == [0x55, 0xaa])
}
