//! The mark on the disk that names its first user. It shows the master that a disk that should be fresh has been used
//! before.

use crate::core::Level;
use crate::diagnostics::log;
use crate::files::{self, Durability};
use std::fs;
use std::io;
use std::path::Path;

/// Longest mark, bytes. Host identities are far shorter, so a longer one is not ours.
const MAX_MARK: u64 = 256;

/// The mark; a disk without one is marked for `user` now. `None` if it cannot be read or written, which is logged.
pub(super) fn keep(work_dir: &Path, user: &str) -> Option<String> {
    let path = work_dir.join("disk");
    match read_or_make(&path, user) {
        Ok(mark) => Some(mark),
        Err(error) => {
            log(Level::Error, &format!("the disk's mark {} cannot be read or written: {error}", path.display()));
            None
        }
    }
}

fn read_or_make(path: &Path, user: &str) -> io::Result<String> {
    match fs::metadata(path) {
        Ok(file) if file.len() > MAX_MARK => return Err(io::ErrorKind::FileTooLarge.into()),
        Ok(_) => {
            let mark = fs::read_to_string(path)?.trim().to_owned();
            // An empty mark still shows that the disk has been used.
            return Ok(if mark.is_empty() { "unknown".to_owned() } else { mark });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    files::replace(path, &format!("{user}\n"), Durability::Disk)?;
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
