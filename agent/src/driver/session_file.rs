//! The session secret on disk. With it, a restarted agent proves that the previous run is over. Only root can read it.

use crate::files::{self, Durability};
use rouse_shared::WorkerName;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
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

    /// The secret that an earlier agent of this worker has kept on this machine. A secret that came with a copied image
    /// belongs to another machine and is ignored.
    pub(super) fn read(&self) -> Option<String> {
        let text = fs::read_to_string(&self.path).ok()?;
        let content: Content = toml::from_str(&text).ok()?;
        (content.worker == self.worker && content.host == self.host).then_some(content.secret)
    }

    /// Keeps the secret, completely or not at all.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn store(&self, secret: &str) -> io::Result<()> {
        // Debug's quoting is TOML's for what these three hold: names and hexadecimal digits, and a host identity
        // without control characters.
        let text = format!("worker = {:?}\nhost = {:?}\nsecret = {secret:?}\n", self.worker.as_str(), self.host);
        files::replace(&self.path, &text, Durability::Disk)
    }

    /// Removes the secret, if there is one.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub(super) fn forget(&self) -> io::Result<()> {
        files::remove(&self.path)
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
