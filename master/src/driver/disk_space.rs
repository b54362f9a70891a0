//! The free space of the state directory. New work is refused, and logs wait at their agents, before the ledger itself
//! cannot be written: what was accepted can then still be brought to its end.

use crate::broker::limits::DISK_FREE_LIMIT;
use rustix::fs::{StatVfsMountFlags, statvfs};
use std::path::{Path, PathBuf};

/// New builds are taken only with so much room, bytes: the ledger's own journal stays below a few megabytes, and what runs
/// has its logs still to write.
const FOR_WORK: u64 = 64 << 20;
/// Logs are written only with so much room, bytes. Less than for new work, so that what runs can end, and more than that
/// below which a private broker takes no messages.
const FOR_LOGS: u64 = 32 << 20;

const _: () = assert!(FOR_WORK > FOR_LOGS && FOR_LOGS > 2 * DISK_FREE_LIMIT, "the broker's alarm comes last");

/// The disk of the state directory.
#[derive(Clone, Debug)]
pub(super) struct DiskSpace(PathBuf);

impl DiskSpace {
    pub(super) fn new(state_dir: &Path) -> Self {
        Self(state_dir.to_owned())
    }

    /// Why no new build can be taken now.
    pub(super) fn for_work(&self) -> Result<(), String> {
        self.at_least(FOR_WORK)
    }

    /// Why no log can be written now.
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
