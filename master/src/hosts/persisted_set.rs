//! What a provider must remember across a restart, as lines of a file: the places where it has created hosts. A list is
//! complete only if it also covers places that are no longer in the configuration.

use crate::files;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::PathBuf;

/// The lines of a file. The file is created with the first line.
pub struct PersistedSet {
    path: PathBuf,
    all: BTreeSet<String>,
}

impl PersistedSet {
    /// Reads the file, if it exists.
    ///
    /// # Errors
    /// If it exists and cannot be read. Without it a host might be forgotten.
    pub fn read(path: PathBuf) -> io::Result<Self> {
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        Ok(Self { path, all: text.lines().map(str::to_owned).collect() })
    }

    /// All lines.
    pub fn all(&self) -> BTreeSet<String> {
        self.all.clone()
    }

    /// Adds a line, which is on the disk when this returns.
    ///
    /// # Errors
    /// If the line cannot be written.
    pub fn add(&mut self, line: &str) -> io::Result<()> {
        if self.all.contains(line) {
            return Ok(());
        }
        let all: BTreeSet<String> = self.all.iter().cloned().chain([line.to_owned()]).collect();
        self.write(&all)?;
        self.all = all;
        Ok(())
    }

    /// Removes a line. If that fails, it is tried again the next time.
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
