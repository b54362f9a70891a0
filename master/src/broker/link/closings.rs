//! Whose connection closed: RabbitMQ tells the user when a connection opens, and only its pid when it closes.

use super::super::limits::KNOWN_CONNECTIONS;
use rouse_shared::WorkerName;
use std::collections::HashMap;

/// The workers' connections that were seen to open.
#[derive(Default)]
pub(super) struct Connections {
    by_pid: HashMap<String, WorkerName>,
    of_worker: HashMap<WorkerName, usize>,
}

impl Connections {
    /// A connection opened. Users that are no workers, and connections past the bound, are not kept.
    pub(super) fn opened(&mut self, pid: &str, user: &str) {
        let Ok(worker) = user.parse::<WorkerName>() else { return };
        if self.by_pid.len() >= KNOWN_CONNECTIONS || self.by_pid.contains_key(pid) {
            return;
        }
        self.by_pid.insert(pid.to_owned(), worker.clone());
        *self.of_worker.entry(worker).or_default() += 1;
    }

    /// A connection closed; the worker, where it was its last that is known.
    pub(super) fn closed(&mut self, pid: &str) -> Option<WorkerName> {
        let worker = self.by_pid.remove(pid)?;
        let left = self.of_worker.get_mut(&worker)?;
        *left -= 1;
        if *left > 0 {
            return None;
        }
        self.of_worker.remove(&worker);
        Some(worker)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_connection_counts() {
        let mut connections = Connections::default();
        connections.opened("<1>", "w1");
        connections.opened("<2>", "w1");
        connections.opened("<3>", "rouse_master");
        assert_eq!(connections.closed("<1>"), None);
        assert_eq!(connections.closed("<1>"), None);
        assert_eq!(connections.closed("<3>"), None);
        assert_eq!(connections.closed("<2>").map(|w| w.to_string()).as_deref(), Some("w1"));
        assert!(connections.by_pid.is_empty() && connections.of_worker.is_empty());
    }
}
