//! What a provider must remember across a restart, as lines of a file: the places where it has created hosts. A list is
//! complete only if it also covers places that are no longer in the configuration.

use crate::files;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
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
            // A directory that exists is the provider's, and may have to be open to others.
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        let text: String = all.iter().map(|line| format!("{line}\n")).collect();
        files::replace(&self.path, text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn only_the_master_can_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts/openstack/places");
        PersistedSet::read(path.clone()).unwrap().add("here").unwrap();
        let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert_eq!(PersistedSet::read(path).unwrap().all(), BTreeSet::from(["here".to_owned()]));
    }
}
