//! The session secret on disk, so that an agent that is restarted proves whose successor it is. For root only.

use rouse_shared::WorkerName;
use serde::{Deserialize, Serialize};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

#[derive(Serialize, Deserialize)]
struct Content {
    worker: WorkerName,
    host: String,
    secret: String,
}

/// The file of one agent.
#[derive(Clone, Debug)]
pub(super) struct SessionFile {
    path: PathBuf,
    worker: WorkerName,
    host: String,
}

impl SessionFile {
    pub(super) fn new(work_dir: &Path, worker: WorkerName, host: String) -> Self {
        Self { path: work_dir.join("session"), worker, host }
    }

    /// The secret that an earlier life of this very worker on this very machine has kept; one that came with a copied
    /// image is another machine's.
    pub(super) fn read(&self) -> Option<String> {
        let text = fs::read_to_string(&self.path).ok()?;
        let content: Content = toml::from_str(&text).ok()?;
        (content.worker == self.worker && content.host == self.host).then_some(content.secret)
    }

    /// Keeps the secret: wholly or not at all.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub(super) fn store(&self, secret: &str) -> io::Result<()> {
        // Debug's quoting is TOML's for what these three hold: names and hexadecimal digits, and a host identity
        // without control characters.
        let text = format!("worker = {:?}\nhost = {:?}\nsecret = {secret:?}\n", self.worker.as_str(), self.host);
        let new = self.path.with_extension("new");
        // Made anew, so that the mode holds from the first byte.
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &self.path)
    }

    /// Removes it; that there is none is no error.
    ///
    /// # Errors
    /// Where it cannot be removed.
    pub(super) fn forget(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn only_its_own_worker_on_its_own_machine_reads_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let of =
            |worker: &str, host: &str| SessionFile::new(dir.path(), worker.parse().expect("a name"), host.to_owned());
        let mine = of("w1", "uuid:\"1\\2\"");
        assert_eq!(mine.read(), None);
        mine.store("0123abcd").expect("stored");
        mine.store("4567").expect("stored again");
        assert_eq!(mine.read().as_deref(), Some("4567"));
        assert_eq!(of("w2", "uuid:\"1\\2\"").read(), None);
        assert_eq!(of("w1", "uuid:2").read(), None);
        let mode = fs::metadata(dir.path().join("session")).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        mine.forget().expect("forgotten");
        mine.forget().expect("twice is no error");
        assert_eq!(mine.read(), None);
    }
}
