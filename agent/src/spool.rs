//! Spool files, which hold the output of steps until the master has it.
//!
//! Each attempt has a directory named after it; step N's output is the file `N.log` in it.

use rouse_shared::AttemptId;
use rouse_shared::limits::LOG_CHUNK;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The directory of an attempt's spool files, below `spool_dir`.
pub fn attempt_dir(spool_dir: &Path, attempt: AttemptId) -> PathBuf {
    spool_dir.join(attempt.to_string())
}

/// The spool file of one step.
pub fn step_file(spool_dir: &Path, attempt: AttemptId, step: u32) -> PathBuf {
    attempt_dir(spool_dir, attempt).join(format!("{step}.log"))
}

/// Removes an attempt's spool files, if there are any.
///
/// # Errors
/// If one of them cannot be removed.
pub fn remove_attempt(spool_dir: &Path, attempt: AttemptId) -> io::Result<()> {
    match fs::remove_dir_all(attempt_dir(spool_dir, attempt)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Reads a spool file while its step may still write it.
#[derive(Debug)]
pub struct SpoolReader {
    file: File,
}

impl SpoolReader {
    /// Opens a spool file.
    ///
    /// # Errors
    /// If it cannot be opened. It exists once the step has started.
    pub fn open(path: &Path) -> io::Result<Self> {
        File::open(path).map(|file| Self { file })
    }

    /// Reads at most `max` bytes from `offset` on, and at most [`LOG_CHUNK`]; none at the end of the file.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn read_at(&self, offset: u64, max: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; max.min(LOG_CHUNK)];
        let mut filled = 0;
        while filled < bytes.len() {
            match self.file.read_at(&mut bytes[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rouse_shared::BuildId;

    #[test]
    fn chunks_put_together_are_the_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let attempt = AttemptId { build: BuildId(12), number: 1 };
        let path = step_file(dir.path(), attempt, 0);
        fs::create_dir_all(attempt_dir(dir.path(), attempt)).expect("made");
        let whole: Vec<u8> = (0..LOG_CHUNK * 2 + 17).map(|i| (i % 251) as u8).collect();
        fs::write(&path, &whole).expect("written");

        let reader = SpoolReader::open(&path).expect("opened");
        let mut read = Vec::new();
        loop {
            let chunk = reader.read_at(read.len() as u64, usize::MAX).expect("read");
            if chunk.is_empty() {
                break;
            }
            read.extend(chunk);
        }
        assert_eq!(read, whole);
        assert_eq!(reader.read_at(3, 2).expect("read"), &whole[3..5]);

        remove_attempt(dir.path(), attempt).expect("removed");
        remove_attempt(dir.path(), attempt).expect("twice is no error");
        assert!(!path.exists());
    }
}
