//! Machines that were asked to end and do not: somebody pays for them, and has to be told.

use crate::sync::lock;
use rouse_shared::Timestamp;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

/// How long a machine may take to end. Clouds need seconds, and minutes for the largest.
const PATIENCE: Duration = Duration::from_secs(300);
/// One that nobody has asked about for so long has ended, whoever saw it.
const MEMORY: Duration = Duration::from_secs(3_600);

/// When each machine was first asked to end, and when last.
#[derive(Default)]
pub struct Overdue(Mutex<BTreeMap<String, (Timestamp, Timestamp)>>);

impl Overdue {
    /// That a machine was asked to end and is still there; how long it takes by now, where that is too long.
    pub fn still_there(&self, now: Timestamp, machine: &str) -> Option<Duration> {
        let mut all = lock(&self.0);
        all.retain(|_, (_, last)| now.since(*last) < MEMORY);
        let (first, last) = all.entry(machine.to_owned()).or_insert((now, now));
        *last = now;
        Some(now.since(*first)).filter(|taken| *taken >= PATIENCE)
    }

    /// It is gone.
    pub fn gone(&self, machine: &str) {
        lock(&self.0).remove(machine);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_does_not_end_is_told_of_after_some_minutes() {
        let overdue = Overdue::default();
        let at = |seconds| Timestamp(0) + Duration::from_secs(seconds);
        assert_eq!(overdue.still_there(at(0), "a"), None);
        assert_eq!(overdue.still_there(at(299), "a"), None);
        assert_eq!(overdue.still_there(at(300), "a"), Some(PATIENCE));
        assert_eq!(overdue.still_there(at(300), "b"), None, "each has its own time");
        overdue.gone("a");
        assert_eq!(overdue.still_there(at(301), "a"), None, "one that was gone begins anew");
        assert_eq!(overdue.still_there(at(4_000), "a"), None, "so does one that was forgotten");
    }
}
