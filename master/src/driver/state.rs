//! The state directory: locked by one master, and the master's identity and token in it.

use crate::config::Secret;
use crate::files;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// A state directory that is ours for as long as this lives.
pub struct State {
    dir: PathBuf,
    /// The generated half of our ownership of hosts: 32 hexadecimal digits.
    pub id: String,
    /// The API's token.
    pub token: String,
    _lock: File,
}

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another master runs on it.
    #[error("another master runs on the state directory {}; give this one its own master.state_dir", .0.display())]
    InUse(PathBuf),
    /// A file cannot be made, read or locked.
    #[error("{} is not usable; fix its owner, or change master.state_dir", path.display())]
    File {
        /// The file, or the directory itself.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
}

impl State {
    /// Takes a state directory, and makes it where it is missing. `token` is the configured one; without one it is read
    /// from `api-token` there, or made.
    ///
    /// # Errors
    /// Where another master holds it, or it cannot be written.
    pub fn open(dir: &Path, token: Option<&Secret>) -> Result<Self, StateError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| StateError::File { path, source }
        };
        // Passable, so that builds with `run_as` reach their own directories; what is in it is readable to us alone.
        fs::DirBuilder::new().recursive(true).mode(0o711).create(dir).map_err(failed(dir))?;
        let path = dir.join("lock");
        let lock = File::options().create(true).append(true).mode(0o600).open(&path).map_err(failed(&path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(StateError::InUse(dir.to_owned())),
            Err(fs::TryLockError::Error(source)) => return Err(failed(&path)(source)),
        }
        let path = dir.join("identity");
        let id = kept(&path).map_err(failed(&path))?;
        let path = dir.join("api-token");
        let token = match token {
            Some(token) => token.expose().to_owned(),
            None => kept(&path).map_err(failed(&path))?,
        };
        Ok(Self { dir: dir.to_owned(), id, token, _lock: lock })
    }

    /// A file or directory in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// The text in a file of ours, drawn and written at the first time: 32 hexadecimal digits.
fn kept(path: &Path) -> io::Result<String> {
    match File::open(path) {
        Ok(mut file) => {
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            let text = text.trim().to_owned();
            if text.is_empty() {
                Err(io::Error::other("it is empty; remove it to have a new one made"))
            } else {
                Ok(text)
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut raw = [0_u8; 16];
            getrandom::fill(&mut raw).map_err(io::Error::other)?;
            let text = hex::encode(raw);
            // Half an identity would disown every host.
            files::replace(path, format!("{text}\n").as_bytes())?;
            Ok(text)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn one_master_a_directory_and_the_same_identity_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path(), None).unwrap();
        assert!(matches!(State::open(dir.path(), None), Err(StateError::InUse(_))));
        let (id, token) = (state.id.clone(), state.token.clone());
        assert_eq!((id.len(), token.len()), (32, 32));
        drop(state);
        let state = State::open(dir.path(), Some(&Secret::new("mine"))).unwrap();
        assert_eq!((state.id.as_str(), state.token.as_str()), (id.as_str(), "mine"));
    }
}
