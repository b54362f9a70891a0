//! Watches the free space of the state directory. If it is low, the master first accepts no builds, and then no logs,
//! so that the ledger can still be written. Therefore the builds that the master has accepted can end.

use crate::broker::limits::DISK_FREE_LIMIT;
use rustix::fs::{StatVfsMountFlags, statvfs};
use std::path::{Path, PathBuf};

/// Free space below which no builds are accepted, bytes. The ledger's journal stays below a few megabytes, and running
/// builds still have logs to write.
const FOR_WORK: u64 = 64 << 20;
/// Free space below which no logs are written, bytes. Less than for builds, so that running builds can end, and more
/// than that below which a private broker accepts no messages.
const FOR_LOGS: u64 = 32 << 20;

const _: () = assert!(FOR_WORK > FOR_LOGS && FOR_LOGS > 2 * DISK_FREE_LIMIT, "the broker's alarm comes last");

/// The file system of the state directory.
#[derive(Clone, Debug)]
pub(super) struct DiskSpace(PathBuf);

impl DiskSpace {
    pub(super) fn new(state_dir: &Path) -> Self {
        Self(state_dir.to_owned())
    }

    /// Fails with the reason if no build can be accepted now.
    pub(super) fn for_work(&self) -> Result<(), String> {
        self.at_least(FOR_WORK)
    }

    /// Fails with the reason if no log can be written now.
    pub(super) fn for_logs(&self) -> Result<(), String> {
        self.at_least(FOR_LOGS)
    }

    fn at_least(&self, wanted: u64) -> Result<(), String> {
        let dir = self.0.display();
        let disk = statvfs(&self.0).map_err(|error| format!("cannot read the free space of {dir}: {error}"))?;
        if disk.f_flag.contains(StatVfsMountFlags::RDONLY) {
            return Err(format!("the file system of {dir} is read-only"));
        }
        let left = disk.f_bavail.saturating_mul(disk.f_frsize);
        if left < wanted {
            return Err(format!("{dir} has {} MiB left, and {} are needed", left >> 20, wanted >> 20));
        }
        Ok(())
    }
}
