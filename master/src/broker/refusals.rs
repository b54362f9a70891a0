//! Remembers which agent was refused and why, until the broker's event brings the agent's address. Then logs both,
//! without flooding the log.

use super::limits::REMEMBERED_LOG_LINES;
use crate::sync::lock;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tracing::warn;

/// Number of characters by which reasons are compared. A reason may quote the agent.
const LONGEST_REASON: usize = 200;

/// Refusals. Shared by the server that refuses and the link that learns the addresses. Cheap to clone.
#[derive(Clone, Default)]
pub struct Refusals(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Why each name was last refused.
    reasons: HashMap<String, String>,
    /// What was logged in this minute, and how often it was repeated.
    logged: HashMap<(String, String), u64>,
    /// Refusals for which `logged` has no room.
    others: u64,
    /// How many connections and how many hellos were refused so far.
    counts: (u64, u64),
}

/// A name, made safe for the log: its sender may have chosen any length, and line feeds.
pub(crate) fn shown(text: &str) -> String {
    beginning(text, 80)
}

fn beginning(text: &str, most: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(most).collect()
}

impl Refusals {
    /// Logs that `name` was refused, once a minute for the same name and reason, and remembers why.
    pub fn refused(&self, name: &str, reason: &str) {
        let (name, reason) = (shown(name), beginning(reason, LONGEST_REASON));
        let mut state = self.lock();
        state.counts.0 += 1;
        if state.reasons.len() >= REMEMBERED_LOG_LINES && !state.reasons.contains_key(&name) {
            state.reasons.clear();
        }
        state.reasons.insert(name.clone(), reason.clone());
        if state.first(&name, &reason) {
            warn!(user = ?name, reason, "refused");
        }
    }

    /// Logs that a hello was refused, of an agent that claims to be `name` on the machine `identity`. Once a minute for
    /// the same name and reason, because the agent tries again.
    pub fn refused_hello(&self, name: &str, identity: &str, reason: &str) {
        let (name, identity, reason) = (shown(name), shown(identity), beginning(reason, LONGEST_REASON));
        let mut state = self.lock();
        state.counts.1 += 1;
        if state.first(&name, &reason) {
            warn!("an agent that claims to be {name} ({}) was refused: {reason}", identity.escape_debug());
        }
    }

    /// Logs that the broker has refused `name` from `address`, with the reason.
    pub fn turned_away(&self, name: &str, address: &str) {
        let (name, address) = (shown(name), shown(address));
        let mut state = self.lock();
        let reason = state.reasons.get(&name).cloned().unwrap_or_else(|| "unknown to the master".to_owned());
        if state.first(&name, &format!("{reason} {address}")) {
            warn!(user = ?name, reason, address, "refused a connection");
        }
    }

    /// How many connections and how many hellos were refused since the master was started.
    pub fn counts(&self) -> (u64, u64) {
        self.lock().counts
    }

    /// Why `name` was last refused.
    pub fn reason(&self, name: &str) -> Option<String> {
        self.lock().reasons.get(&shown(name)).cloned()
    }

    /// Begins a new minute: logs how often refusals were repeated in the last one.
    pub fn minute(&self) {
        let mut state = self.lock();
        state.logged.retain(|(name, reason), repeated| {
            if *repeated > 0 {
                warn!(user = ?name, reason, times = *repeated, "refused again within a minute");
            }
            std::mem::take(repeated) > 0
        });
        let others = std::mem::take(&mut state.others);
        if others > 0 {
            warn!(times = others, "more agents were refused in the last minute; their names are not logged");
        }
    }

    /// Calls [`Refusals::minute`] every minute, forever.
    pub async fn keep_minutes(self) {
        loop {
            tokio::time::sleep(Duration::from_secs(60)).await;
            self.minute();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }
}

impl State {
    /// Whether to log this line now. Otherwise it is counted.
    fn first(&mut self, name: &str, what: &str) -> bool {
        if let Some(repeated) = self.logged.get_mut(&(name.to_owned(), what.to_owned())) {
            *repeated += 1;
            return false;
        }
        if self.logged.len() >= REMEMBERED_LOG_LINES {
            self.others += 1;
            return false;
        }
        self.logged.insert((name.to_owned(), what.to_owned()), 0);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_refusal_is_logged_once_a_minute() {
        let mut state = State::default();
        assert!(state.first("w1", "wrong password"));
        assert!(!state.first("w1", "wrong password"));
        assert!(state.first("w1", "unknown"));
        assert!(state.first("w2", "wrong password"));
        let refusals = Refusals(Arc::new(Mutex::new(state)));
        refusals.minute();
        // It was repeated, so it is not logged for another minute. The other was not, so it may be logged again.
        assert!(!refusals.lock().first("w1", "wrong password"));
        assert!(refusals.lock().first("w2", "wrong password"));
    }

    #[test]
    fn a_refused_hello_is_logged_once_a_minute_from_whatever_machine() {
        let refusals = Refusals::default();
        for n in 0..3 {
            refusals.refused_hello("w1", &format!("machine {n}"), "another agent holds the lease");
        }
        refusals.refused_hello("w1", "machine 0", "its host is being terminated");
        let counts: Vec<u64> = refusals.lock().logged.values().copied().collect();
        assert_eq!((counts.len(), counts.iter().sum::<u64>()), (2, 2));
    }

    #[test]
    fn memory_is_bounded_and_names_are_cut() {
        let refusals = Refusals::default();
        for n in 0..3 * REMEMBERED_LOG_LINES {
            refusals.refused(&format!("w{n}"), "unknown");
        }
        let state = refusals.lock();
        assert!(state.reasons.len() <= REMEMBERED_LOG_LINES && state.logged.len() <= REMEMBERED_LOG_LINES);
        assert_eq!(state.others, 2 * REMEMBERED_LOG_LINES as u64);
        drop(state);
        refusals.refused(&"é".repeat(10_000), "unknown");
        assert_eq!(refusals.reason(&"é".repeat(90)).as_deref(), Some("unknown"));
    }
}
