//! The state directory: locked by one master. It contains the master's identity and token.

use crate::api_token::ApiToken;
use crate::config::Secret;
use crate::{files, users};
use rouse_shared::exposure::foreign_directory;
use rustix::process::geteuid;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// The user of the master in its unit: a master that runs as root trusts it as well.
const USER: &str = "rouse";

/// A state directory that this master has locked, until this is dropped.
pub struct State {
    dir: PathBuf,
    /// The generated id of the master: 32 hexadecimal digits.
    pub id: String,
    /// The API's token.
    pub token: ApiToken,
    _lock: File,
}

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another master uses it.
    #[error("another master uses the state directory {}; stop it or change master.state_dir", .0.display())]
    InUse(PathBuf),
    /// It cannot be created, or nothing can be written in it.
    #[error("state directory {} is not writable ({reason}); fix its owner or change master.state_dir", dir.display())]
    NotWritable {
        /// The directory.
        dir: PathBuf,
        /// The kernel's reason, without its number.
        reason: String,
    },
    /// Another user could replace what is in it.
    #[error("state directory {0}")]
    Foreign(String),
    /// A file in it cannot be created, read or locked.
    #[error("cannot use {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
}

/// A state directory that this master has locked, before anything in it was read.
pub struct Locked {
    dir: PathBuf,
    lock: File,
}

impl Locked {
    /// Locks a state directory, and creates it if it is missing.
    ///
    /// # Errors
    /// If another master has locked it, it cannot be written, or another user could replace what is in it.
    pub fn new(dir: &Path) -> Result<Self, StateError> {
        // Others may pass through it, so that builds with `run_as` reach their own directories. Its files are readable
        // by the master's user only.
        fs::DirBuilder::new().recursive(true).mode(0o711).create(dir).map_err(|e| not_writable(dir, &e))?;
        let meta = fs::metadata(dir).map_err(failed(dir))?;
        let own = [Some(geteuid().as_raw()), users::user(USER)].into_iter().flatten().collect::<Vec<_>>();
        if let Some(why) = foreign_directory(dir, meta.uid(), meta.mode(), &own) {
            return Err(StateError::Foreign(why));
        }
        let path = dir.join("lock");
        let lock =
            File::options().create(true).append(true).mode(0o600).open(&path).map_err(|e| not_writable(dir, &e))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { dir: dir.to_owned(), lock }),
            Err(fs::TryLockError::WouldBlock) => Err(StateError::InUse(dir.to_owned())),
            Err(fs::TryLockError::Error(source)) => Err(failed(&path)(source)),
        }
    }

    /// Reads what is in it. `token` is the configured one. Without one, the token is read from `api-token` in the
    /// directory, which is created if it is missing.
    ///
    /// # Errors
    /// If a file cannot be read or created.
    pub fn open(self, token: Option<&Secret>) -> Result<State, StateError> {
        let path = self.dir.join(IDENTITY);
        let id = files::kept_hex(&path).map_err(failed(&path))?;
        let path = self.dir.join(API_TOKEN);
        let token = ApiToken::open(&path, token).map_err(failed(&path))?;
        Ok(State { dir: self.dir, id, token, _lock: self.lock })
    }
}

/// The file with the generated id of the master.
pub(super) const IDENTITY: &str = "identity";
/// The file with the API's token.
pub(super) const API_TOKEN: &str = "api-token";

fn failed(path: &Path) -> impl FnOnce(io::Error) -> StateError + use<> {
    let path = path.to_owned();
    move |source| StateError::File { path, source }
}

impl State {
    /// Locks a state directory and reads what is in it.
    ///
    /// # Errors
    /// As [`Locked::new`] and [`Locked::open`].
    pub fn open(dir: &Path, token: Option<&Secret>) -> Result<Self, StateError> {
        Locked::new(dir)?.open(token)
    }

    /// A file or directory in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

fn not_writable(dir: &Path, error: &io::Error) -> StateError {
    let text = error.to_string();
    // The number would only confuse: "Permission denied (os error 13)".
    let reason = text.split(" (os error").next().unwrap_or_default().to_lowercase();
    StateError::NotWritable { dir: dir.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        use std::os::unix::fs::{PermissionsExt as _, chown};
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("api-token"), "known-to-others").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        let refused = || State::open(dir.path(), None).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(refused().contains("chmod o-w"), "{}", refused());
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
        if !geteuid().is_root() {
            return eprintln!("not checked: only root can give a directory away");
        }
        chown(dir.path(), Some(54_321), None).unwrap();
        assert!(refused().contains("id 54321"), "{}", refused());
        assert!(!dir.path().join("identity").exists());
    }

    #[test]
    fn one_master_a_directory_and_the_same_identity_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path(), None).unwrap();
        assert!(matches!(State::open(dir.path(), None), Err(StateError::InUse(_))));
        let (id, token) = (state.id.clone(), state.token.expose());
        assert_eq!((id.len(), token.len()), (32, 32));
        drop(state);
        let state = State::open(dir.path(), Some(&Secret::new("mine"))).unwrap();
        assert_eq!((state.id.as_str(), &*state.token.expose()), (id.as_str(), "mine"));
    }
}
