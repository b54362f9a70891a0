//! What the provider keeps for itself: which connections it has used, and what dead hosts had printed.

use rouse_shared::HostId;
use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::PathBuf;

/// Dead hosts whose last words are kept until they are asked for; more than may die at once.
const EVIDENCE: usize = 64;

/// The connections that hosts were ordered on, in a file: a list is whole only when it covers those too that a reload
/// has taken out of the configuration.
pub struct Connections {
    path: PathBuf,
    all: BTreeSet<String>,
}

impl Connections {
    /// Those of the file, where there is one.
    pub fn read(path: PathBuf) -> io::Result<Self> {
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        Ok(Self { path, all: text.lines().map(str::to_owned).collect() })
    }

    /// All of them.
    pub fn all(&self) -> BTreeSet<String> {
        self.all.clone()
    }

    /// Notes one; it is on the disk when this returns.
    pub fn add(&mut self, uri: &str) -> io::Result<()> {
        if self.all.contains(uri) {
            return Ok(());
        }
        let all: BTreeSet<String> = self.all.iter().cloned().chain([uri.to_owned()]).collect();
        self.write(&all)?;
        self.all = all;
        Ok(())
    }

    /// Strikes one out. Where that fails it is tried again the next time.
    pub fn remove(&mut self, uri: &str) {
        let mut all = self.all.clone();
        if all.remove(uri) && self.write(&all).is_ok() {
            self.all = all;
        }
    }

    fn write(&self, all: &BTreeSet<String>) -> io::Result<()> {
        let partial = self.path.with_extension("new");
        let mut file = File::create(&partial)?;
        for uri in all {
            writeln!(file, "{uri}")?;
        }
        file.sync_all()?;
        fs::rename(&partial, &self.path)
    }
}

/// What dead hosts had printed.
#[derive(Default)]
pub struct Evidence(VecDeque<(HostId, String)>);

impl Evidence {
    /// Keeps it; the oldest goes where there is too much.
    pub fn keep(&mut self, host: HostId, text: String) {
        self.0.truncate(EVIDENCE - 1);
        self.0.push_front((host, text));
    }

    /// A host's.
    pub fn of(&self, host: &HostId) -> Option<String> {
        self.0.iter().find(|(of, _)| of == host).map(|(_, text)| text.clone())
    }
}
