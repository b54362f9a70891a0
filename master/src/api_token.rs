//! The token of the HTTP API, which can be replaced while the master runs.

use crate::files;
use crate::sync::lock;
use rouse_shared::Secret;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

/// The token, for everybody who checks or changes it.
#[derive(Clone)]
pub struct ApiToken {
    inner: Arc<Inner>,
}

struct Inner {
    /// The file in the state directory. It is used if the configuration has no token.
    file: PathBuf,
    current: Mutex<Current>,
    /// Held by whoever writes the file, which may take long.
    writing: Mutex<()>,
    /// Who keeps a new token besides the file.
    keeper: OnceLock<Keeper>,
}

type Keeper = Box<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

struct Current {
    token: Arc<str>,
    configured: bool,
}

/// Why a token was not replaced.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// The configuration has the token.
    #[error(
        "the token is set in the configuration: change master.api_token there (`openssl rand -hex 16` makes a new one) and \
         reload the master"
    )]
    Configured,
    /// The file cannot be written. The token is still the old one.
    #[error("the new token cannot be written to {}: {error}", file.display())]
    NotWritten {
        /// The file.
        file: PathBuf,
        /// Why.
        error: io::Error,
    },
}

impl ApiToken {
    /// The configured token. Without one, that in `file`, which is created if it is missing.
    ///
    /// # Errors
    /// If the file cannot be created or read.
    pub fn open(file: &Path, configured: Option<&Secret>) -> io::Result<Self> {
        Ok(Self::with(file, read(file, configured)?))
    }

    /// A token that the configuration sets.
    pub fn fixed(token: &str) -> Self {
        Self::with(Path::new(""), Current { token: token.into(), configured: true })
    }

    fn with(file: &Path, current: Current) -> Self {
        let (file, current, writing) = (file.to_owned(), Mutex::new(current), Mutex::default());
        Self { inner: Arc::new(Inner { file, current, writing, keeper: OnceLock::new() }) }
    }

    /// From now on, each new token is given to this keeper before it is written into the file. There is one keeper.
    pub fn keep_with(&self, keeper: impl Fn(&str) -> Result<(), String> + Send + Sync + 'static) {
        self.inner.keeper.get_or_init(|| Box::new(keeper));
    }

    /// The token itself. Not for logs or messages.
    pub fn expose(&self) -> Arc<str> {
        lock(&self.inner.current).token.clone()
    }

    /// Uses the token of a new configuration, or that in the file if there is none.
    ///
    /// # Errors
    /// If the file cannot be created or read; then nothing changes.
    pub fn configure(&self, configured: Option<&Secret>) -> io::Result<()> {
        let _writing = lock(&self.inner.writing);
        let new = read(&self.inner.file, configured)?;
        *lock(&self.inner.current) = new;
        Ok(())
    }

    /// Writes a new token into the file. From then on only the new one is valid. Blocks as long as the disk takes.
    ///
    /// # Errors
    /// If the configuration sets the token, or the file cannot be written.
    pub fn rotate(&self) -> Result<PathBuf, RotateError> {
        let file = &self.inner.file;
        let _writing = lock(&self.inner.writing);
        if lock(&self.inner.current).configured {
            return Err(RotateError::Configured);
        }
        let written = files::random_hex().and_then(|token| {
            if let Some(keeper) = self.inner.keeper.get() {
                keeper(&token).map_err(io::Error::other)?;
            }
            files::replace(file, format!("{token}\n").as_bytes()).map(|()| token)
        });
        match written {
            Ok(token) => {
                lock(&self.inner.current).token = token.into();
                Ok(file.clone())
            }
            Err(error) => {
                // The file may have the new one already, of which only the disk does not know. Commands read the file.
                let found = fs::read_to_string(file).unwrap_or_default();
                if !found.trim().is_empty() {
                    lock(&self.inner.current).token = found.trim().into();
                }
                Err(RotateError::NotWritten { file: file.clone(), error })
            }
        }
    }
}

fn read(file: &Path, configured: Option<&Secret>) -> io::Result<Current> {
    Ok(match configured {
        Some(token) => Current { token: token.expose().into(), configured: true },
        None => {
            let token = files::kept_hex(file)?;
            // A file that was made by hand, or restored from a backup, may have another mode.
            if fs::metadata(file)?.permissions().mode() & 0o007 != 0 {
                fs::set_permissions(file, fs::Permissions::from_mode(0o600))?;
            }
            Current { token: token.into(), configured: false }
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_new_token_ends_the_old_one_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("api-token");
        let token = ApiToken::open(&file, None).unwrap();
        let old = token.expose();
        assert_eq!(token.rotate().unwrap(), file);
        let new = token.expose();
        assert_ne!(old, new);
        assert_eq!(new.len(), 32);
        assert_eq!(fs::read_to_string(&file).unwrap().trim(), &*new);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(ApiToken::open(&file, None).unwrap().expose(), new, "after a restart");
        // The configuration has a token, and then has none again.
        token.configure(Some(&Secret::new("mine"))).unwrap();
        assert_eq!(&*token.expose(), "mine");
        assert!(matches!(token.rotate(), Err(RotateError::Configured)));
        token.configure(None).unwrap();
        assert_eq!(token.expose(), new);
        // If it fails, the file says which one is valid: commands read it.
        let blocked = file.with_extension("new");
        fs::create_dir(&blocked).unwrap();
        fs::write(&file, "renamed-and-not-synced\n").unwrap();
        assert!(matches!(token.rotate(), Err(RotateError::NotWritten { .. })));
        assert_eq!(&*token.expose(), "renamed-and-not-synced");
        fs::remove_dir(blocked).unwrap();
        let new = {
            token.rotate().unwrap();
            token.expose()
        };
        // What cannot be written changes nothing.
        fs::remove_dir_all(dir.path()).unwrap();
        assert!(matches!(token.rotate(), Err(RotateError::NotWritten { .. })));
        assert_eq!(token.expose(), new);
    }

    #[test]
    fn a_file_that_others_can_read_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("api-token");
        fs::write(&file, "by-hand\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(&*ApiToken::open(&file, None).unwrap().expose(), "by-hand");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
