//! Ends the processes that a step has started. A process that forks faster than its children are listed would never be
//! caught by killing alone, so everything is stopped first, until a list contains nothing new.
//!
//! This is all there is if steps have no cgroups. If they have, it ends what has left its cgroup, which only root can.

use super::sys::{self, Pid, Process};
use crate::clock;
use rouse_shared::Timestamp;
use rustix::process::Signal;
use std::collections::BTreeSet;

/// How often the processes are listed in one round. Something that multiplies is found in a few lists, or not at all.
const LISTS: u32 = 16;

/// Stops the descendants of this process, and then kills them; not those for which `except` is true, and what they have
/// started. Gives up at `give_up`. Returns how many were found. They must be reaped, and the call repeated, until none
/// is found.
pub fn stop_and_kill(give_up: Timestamp, except: impl Fn(&Process) -> bool) -> usize {
    let mut stopped: BTreeSet<Pid> = BTreeSet::new();
    let mut found = Vec::new();
    for _list in 0..LISTS {
        found = sys::descendants(&except);
        let mut new = false;
        for process in &found {
            if stopped.insert(process.pid) {
                new = true;
                // It may have ended meanwhile. What refuses to end is found again.
                let _ = sys::signal(process, Signal::STOP);
            }
        }
        if !new || clock::now() >= give_up {
            break;
        }
    }
    for process in &found {
        let _ = sys::signal(process, Signal::KILL);
    }
    found.len()
}
