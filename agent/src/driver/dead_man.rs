//! The dead-man timer, which powers a latent host off. Its start is kept across restarts of the agent, for two reasons:
//! an agent that crashes again and again must not restart the timer each time, and an agent that is upgraded must not
//! forget that its machine belongs to a standing worker. Only time during which the machine runs counts, so a machine
//! that was hibernated has as much time as any other to find its master.

use crate::core::Level;
use crate::diagnostics::log;
use crate::files::{self, Durability};
use rouse_shared::Timestamp;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Changes with each boot of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const ARMED: &str = "armed";
const STANDING: &str = "standing";

/// The file that keeps it. Its content is valid until the next boot, so it need not reach the disk.
#[derive(Debug)]
pub(super) struct DeadMan {
    path: PathBuf,
    boot: String,
    /// The start of the timer by [`crate::clock::running`]; absent if the machine belongs to a standing worker.
    began: Option<Timestamp>,
    /// Whether the last welcome was for a standing worker.
    standing: Option<bool>,
}

impl DeadMan {
    /// The timer of this boot, which started with an earlier run of the agent or starts now. `now` is from
    /// [`crate::clock::running`].
    pub(super) fn arm(work_dir: &Path, now: Timestamp) -> Self {
        let boot = fs::read_to_string(BOOT_ID).map(|id| id.trim().to_owned()).unwrap_or_default();
        let mut this = Self { path: work_dir.join("dead-man"), boot, began: Some(now), standing: None };
        match this.read() {
            Some(began) => this.began = began.map(|at| at.min(now)),
            None => this.keep(format!("{} {ARMED} {}\n", this.boot, now.0)),
        }
        this
    }

    /// When it started, by the clock that it was armed with; `None` if a welcome as a standing worker has disarmed it.
    pub(super) fn began(&self) -> Option<Timestamp> {
        self.began
    }

    /// A master has accepted this host. The next run of the agent finds the timer disarmed for a standing worker, and
    /// otherwise starts it again.
    pub(super) fn attached(&mut self, standing: bool) {
        if self.standing == Some(standing) {
            return;
        }
        self.standing = Some(standing);
        if standing {
            self.keep(format!("{} {STANDING}\n", self.boot));
        } else if let Err(error) = files::remove(&self.path) {
            self.warn(&error);
        }
    }

    /// What an earlier run of the agent since this boot has kept.
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
        // Waiting for the disk could delay the timer itself.
        if let Err(error) = files::replace(&self.path, &text, Durability::Memory) {
            self.warn(&error);
        }
    }

    fn warn(&self, error: &io::Error) {
        let path = self.path.display();
        let text = format!(
            "{path} cannot be written, so the power-off timer starts again each time the agent starts: {error}"
        );
        log(Level::Warn, &text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_of_the_agent_does_not_restart_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let began = |now| DeadMan::arm(dir.path(), Timestamp(now)).began();
        assert_eq!(began(1_000), Some(Timestamp(1_000)));
        assert_eq!(began(5_000), Some(Timestamp(1_000)));
        // After a welcome as a latent host, the next start restarts the timer.
        DeadMan::arm(dir.path(), Timestamp(6_000)).attached(false);
        assert_eq!(began(7_000), Some(Timestamp(7_000)));
        // After one as a standing worker it stays disarmed, until another welcome.
        let mut timer = DeadMan::arm(dir.path(), Timestamp(8_000));
        timer.attached(true);
        timer.attached(true);
        assert_eq!(began(9_000), None);
        timer.attached(false);
        assert_eq!(began(10_000), Some(Timestamp(10_000)));
    }

    #[test]
    fn content_of_another_boot_or_none_is_ignored() {
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
        // It runs even if it cannot be kept.
        assert_eq!(DeadMan::arm(&dir.path().join("none"), Timestamp(5)).began(), Some(Timestamp(5)));
    }
}
