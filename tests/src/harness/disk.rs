//! A small separate file system for a master's state, which tests can fill.

use super::scratch;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system where a master of the same name will keep its state. It needs root.
pub struct Disk(PathBuf);

impl Disk {
    /// Mounts one of so many megabytes, before the master starts.
    ///
    /// # Panics
    /// If it cannot be mounted.
    pub fn mount(name: &str, megabytes: u32) -> Self {
        let state = scratch(name).join("state");
        fs::create_dir_all(&state).expect("a directory of our own");
        let size = format!("size={megabytes}m,mode=0700");
        run("mount", &["-t", "tmpfs", "-o", &size, "rouse-test", &state.display().to_string()]);
        Self(state)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Lets nothing be written any more.
    ///
    /// # Panics
    /// If a file is open for writing.
    pub fn make_read_only(&self) {
        run("mount", &["-o", "remount,ro", &self.0.display().to_string()]);
    }

    /// Leaves so many megabytes of room, or nothing at all.
    ///
    /// # Panics
    /// If its free space is unknown.
    pub fn leave(&self, megabytes: u64) {
        let left = rustix::fs::statvfs(&self.0).expect("a mounted file system");
        let left = (left.f_bavail * left.f_frsize) >> 20;
        let block = vec![0; 1 << 20];
        let mut filler = fs::File::options().create(true).append(true).open(self.filler()).expect("a file of our own");
        for _ in megabytes..left {
            // Somebody else may have taken the last of it.
            if filler.write_all(&block).is_err() {
                return;
            }
        }
        if megabytes == 0 {
            while filler.write_all(&block[..1]).is_ok() {}
        }
    }

    /// Takes away what filled it.
    ///
    /// # Panics
    /// If it was not filled.
    pub fn make_room(&self) {
        fs::remove_file(self.filler()).expect("the file that fills it");
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: what a failed test leaves running may still have files there.
        run("umount", &["--lazy", &self.0.display().to_string()]);
        if let Some(dir) = self.0.parent() {
            // A master that has ended has removed it already.
            fs::remove_dir_all(dir).ok();
        }
    }
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().expect("a program of every Linux");
    assert!(status.success(), "{program} {arguments:?}: {status}; mounting a file system needs root");
}
