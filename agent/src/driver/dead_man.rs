//! Since when the timer that powers a latent host off runs, kept across restarts of the agent: one that crashes again and
//! again must not wind it up each time, and one that is upgraded must not forget that its machine is a standing worker's.
//! It counts the time that the machine is awake: one that was hibernated has as long as any other to find its master.

use crate::core::Level;
use crate::diagnostics::log;
use rouse_shared::Timestamp;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Changes with each boot of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const ARMED: &str = "armed";
const STANDING: &str = "standing";

/// The file that remembers it. What is in it counts until the machine is booted again, so it need not reach the disk.
#[derive(Debug)]
pub(super) struct DeadMan {
    path: PathBuf,
    boot: String,
    /// Since when the timer runs, by [`crate::clock::running`]; absent: the machine is a standing worker's.
    began: Option<Timestamp>,
    /// What the last welcome made of it.
    attached: Option<bool>,
}

impl DeadMan {
    /// The timer of this boot: it began at an earlier start of the agent, or begins now. `now` is of the clock
    /// [`crate::clock::running`].
    pub(super) fn arm(work_dir: &Path, now: Timestamp) -> Self {
        let boot = fs::read_to_string(BOOT_ID).map(|id| id.trim().to_owned()).unwrap_or_default();
        let mut this = Self { path: work_dir.join("dead-man"), boot, began: Some(now), attached: None };
        match this.read() {
            Some(began) => this.began = began.map(|at| at.min(now)),
            None => this.keep(format!("{} {ARMED} {}\n", this.boot, now.0)),
        }
        this
    }

    /// Since when it runs, by the clock that it was armed with; `None` where a welcome as a standing worker has disarmed it.
    pub(super) fn began(&self) -> Option<Timestamp> {
        self.began
    }

    /// A master has let this host in; whether as a standing worker. After that it runs anew, or not at all.
    pub(super) fn attached(&mut self, standing: bool) {
        if self.attached == Some(standing) {
            return;
        }
        self.attached = Some(standing);
        if standing {
            self.keep(format!("{} {STANDING}\n", self.boot));
        } else if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            self.complain(&error);
        }
    }

    /// What an earlier start in this boot has kept.
    fn read(&self) -> Option<Option<Timestamp>> {
        let text = fs::read_to_string(&self.path).ok()?;
        let mut words = text.split_whitespace();
        if words.next() != Some(self.boot.as_str()) || self.boot.is_empty() {
            return None;
        }
        match (words.next(), words.next()) {
            (Some(ARMED), Some(at)) => at.parse().ok().map(|at| Some(Timestamp(at))),
            (Some(STANDING), None) => Some(None),
            (Some(_) | None, _) => None,
        }
    }

    fn keep(&self, text: String) {
        // By a rename, so that a crash leaves the old or the new.
        let new = self.path.with_extension("new");
        if let Err(error) = fs::write(&new, text).and_then(|()| fs::rename(&new, &self.path)) {
            self.complain(&error);
        }
    }

    fn complain(&self, error: &io::Error) {
        let path = self.path.display();
        log(Level::Warn, &format!("{path} cannot be kept, so a restart winds up the power-off timer: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_does_not_wind_it_up() {
        let dir = tempfile::tempdir().expect("a directory");
        let began = |now| DeadMan::arm(dir.path(), Timestamp(now)).began();
        assert_eq!(began(1_000), Some(Timestamp(1_000)));
        assert_eq!(began(5_000), Some(Timestamp(1_000)));
        // A welcome as a latent host: the next start begins anew.
        DeadMan::arm(dir.path(), Timestamp(6_000)).attached(false);
        assert_eq!(began(7_000), Some(Timestamp(7_000)));
        // As a standing worker: it stays disarmed, until a welcome says otherwise.
        let mut timer = DeadMan::arm(dir.path(), Timestamp(8_000));
        timer.attached(true);
        timer.attached(true);
        assert_eq!(began(9_000), None);
        timer.attached(false);
        assert_eq!(began(10_000), Some(Timestamp(10_000)));
    }

    #[test]
    fn what_another_boot_or_nobody_wrote_does_not_count() {
        let dir = tempfile::tempdir().expect("a directory");
        for text in ["", "x", "other-boot armed 1", "other-boot standing", "\u{0}"] {
            fs::write(dir.path().join("dead-man"), text).expect("written");
            assert_eq!(DeadMan::arm(dir.path(), Timestamp(5)).began(), Some(Timestamp(5)), "{text:?}");
        }
        let id = fs::read_to_string(BOOT_ID).expect("this boot's");
        for (text, began) in [("armed 3", 3), ("armed x", 5), ("armed", 5), ("armed 99", 5), ("sitting", 5)] {
            fs::write(dir.path().join("dead-man"), format!("{} {text}", id.trim())).expect("written");
            assert_eq!(DeadMan::arm(dir.path(), Timestamp(5)).began(), Some(Timestamp(began)), "{text:?}");
        }
        // Without a place to keep it, it runs all the same.
        assert_eq!(DeadMan::arm(&dir.path().join("none"), Timestamp(5)).began(), Some(Timestamp(5)));
    }
}
