//! The file lock that shows whether a supervisor of an earlier agent is still alive.

use crate::clock;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

fn open(lock_file: &Path) -> io::Result<File> {
    // Closed on exec, as every file of std, so no step can hold the lock.
    File::options().create(true).append(true).open(lock_file)
}

/// Takes the lock, which others may share. It is held by the file, and by the copies of it that children inherit.
pub(super) fn share(lock_file: &Path) -> io::Result<File> {
    let file = open(lock_file)?;
    flock(&file, FlockOperation::LockShared)?;
    Ok(file)
}

/// Waits until no step of an earlier agent runs: its supervisors kill their steps when it dies, and hold the lock until
/// that is done. False if one is still alive after `patience`. Blocks the thread.
///
/// # Errors
/// If the lock file cannot be created or locked.
pub fn wait_for_leftovers(lock_file: &Path, patience: Duration) -> io::Result<bool> {
    let file = open(lock_file)?;
    let end = clock::now() + patience;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) => {}
            Err(error) => return Err(error.into()),
        }
        if clock::now() >= end {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
