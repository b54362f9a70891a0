//! The mark on the disk that tells whom it was first used for, so that a disk that should be fresh and is not shows.

use crate::core::Level;
use crate::diagnostics::log;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Longest mark, bytes: host identities are far shorter, and whatever wrote more is not ours.
const MAX_MARK: u64 = 256;

/// The mark; a disk without one is marked for `user` now. `None` where it cannot be read or made, which is said.
pub(super) fn keep(work_dir: &Path, user: &str) -> Option<String> {
    let path = work_dir.join("disk");
    match read_or_make(&path, user) {
        Ok(mark) => Some(mark),
        Err(error) => {
            log(Level::Error, &format!("the disk's mark {} cannot be kept: {error}", path.display()));
            None
        }
    }
}

fn read_or_make(path: &Path, user: &str) -> io::Result<String> {
    match fs::metadata(path) {
        Ok(file) if file.len() > MAX_MARK => return Err(io::ErrorKind::FileTooLarge.into()),
        Ok(_) => {
            let mark = fs::read_to_string(path)?.trim().to_owned();
            // An empty one was cut by a crash between its making and its writing: it says that there was an earlier life.
            return Ok(if mark.is_empty() { "unknown".to_owned() } else { mark });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let new = path.with_extension("mark");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    writeln!(file, "{user}")?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    Ok(user.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_user_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(keep(dir.path(), "h1").as_deref(), Some("h1"));
        assert_eq!(keep(dir.path(), "h2").as_deref(), Some("h1"));
        fs::write(dir.path().join("disk"), "").expect("emptied");
        assert_eq!(keep(dir.path(), "h2").as_deref(), Some("unknown"));
        fs::write(dir.path().join("disk"), "x".repeat(300)).expect("filled");
        assert_eq!(keep(dir.path(), "h2"), None);
        assert_eq!(keep(&dir.path().join("none"), "h2"), None);
    }
}
