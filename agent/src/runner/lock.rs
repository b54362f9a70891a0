//! The lock that tells whether a supervisor of an earlier life of the agent is still there.

use crate::clock;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

fn open(lock_file: &Path) -> io::Result<File> {
    // Closed on exec, as all of std's: no step can hold the lock.
    File::options().create(true).append(true).open(lock_file)
}

/// Takes the lock together with others; held by the file and by the copies of it that children inherit.
pub(super) fn share(lock_file: &Path) -> io::Result<File> {
    let file = open(lock_file)?;
    // SAFETY: no memory is involved.
    match unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_SH) } {
        0 => Ok(file),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Waits until nothing of an earlier agent's steps runs: its supervisors kill their steps by themselves when it dies,
/// and hold the lock until that is done. False where one is still there after `patience`. Blocks the thread.
///
/// # Errors
/// Where the lock file cannot be made or locked.
pub fn wait_for_leftovers(lock_file: &Path, patience: Duration) -> io::Result<bool> {
    let file = open(lock_file)?;
    let end = clock::now() + patience;
    loop {
        // SAFETY: no memory is involved.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::WouldBlock {
            return Err(error);
        }
        if clock::now() >= end {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
