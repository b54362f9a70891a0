//! What a provider must not forget over a restart, as lines of a file: where it has made hosts. A list is whole only when
//! it covers those places too that have gone from the configuration since.

use crate::files;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::PathBuf;

/// Lines of a file that is there once the first of them is.
pub struct PersistedSet {
    path: PathBuf,
    all: BTreeSet<String>,
}

impl PersistedSet {
    /// Those of the file, where there is one.
    ///
    /// # Errors
    /// Where it is there and cannot be read: without it a host might be forgotten.
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
    ///
    /// # Errors
    /// Where it cannot be written down.
    pub fn add(&mut self, line: &str) -> io::Result<()> {
        if self.all.contains(line) {
            return Ok(());
        }
        let all: BTreeSet<String> = self.all.iter().cloned().chain([line.to_owned()]).collect();
        self.write(&all)?;
        self.all = all;
        Ok(())
    }

    /// Strikes one out. Where that fails it is tried again the next time.
    pub fn remove(&mut self, line: &str) {
        let mut all = self.all.clone();
        if all.remove(line) && self.write(&all).is_ok() {
            self.all = all;
        }
    }

    fn write(&self, all: &BTreeSet<String>) -> io::Result<()> {
        if let Some(dir) = self.path.parent() {
            fs::create_dir_all(dir)?;
        }
        let text: String = all.iter().map(|line| format!("{line}\n")).collect();
        files::replace(&self.path, text.as_bytes())
    }
}
