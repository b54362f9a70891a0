//! Machines that were asked to end and have not ended. They cost money, so the master reports them.

use crate::sync::lock;
use rouse_shared::Timestamp;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

/// How long a machine may take to end. Clouds need seconds, and some minutes for the largest machines.
const PATIENCE: Duration = Duration::from_secs(300);
/// A machine that was not mentioned for so long has ended.
const MEMORY: Duration = Duration::from_secs(3_600);

/// When each machine was first asked to end, and when it was last found to exist.
#[derive(Default)]
pub struct Overdue(Mutex<BTreeMap<String, (Timestamp, Timestamp)>>);

impl Overdue {
    /// Records that a machine was asked to end and still exists. Returns how long it may take if it has taken longer: the
    /// same each time, so that a reason with it in it stays the same.
    pub fn still_there(&self, now: Timestamp, machine: &str) -> Option<Duration> {
        let mut all = lock(&self.0);
        all.retain(|_, (_, last)| now.since(*last) < MEMORY);
        let (first, last) = all.entry(machine.to_owned()).or_insert((now, now));
        *last = now;
        (now.since(*first) >= PATIENCE).then_some(PATIENCE)
    }

    /// Records that a machine is gone.
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
        assert_eq!(overdue.still_there(at(301), "a"), Some(PATIENCE));
        assert_eq!(overdue.still_there(at(301), "b"), None, "each has its own time");
        overdue.gone("a");
        assert_eq!(overdue.still_there(at(302), "a"), None, "one that was gone begins anew");
        assert_eq!(overdue.still_there(at(4_000), "a"), None, "so does one that was forgotten");
    }
}
