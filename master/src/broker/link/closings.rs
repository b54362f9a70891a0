//! Finds out whose connection has closed. RabbitMQ's event names the user when a connection opens, but only the pid of
//! the connection when it closes.

use super::super::limits::KNOWN_CONNECTIONS;
use rouse_shared::WorkerName;
use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};

/// The known connections of workers.
#[derive(Default)]
pub(super) struct Connections {
    by_pid: HashMap<String, WorkerName>,
    of_worker: HashMap<WorkerName, usize>,
}

impl Connections {
    /// A connection has opened. Returns the worker, and the number of its connections. Users that are not workers, and
    /// connections beyond the limit, are not kept.
    pub(super) fn opened(&mut self, pid: &str, user: &str) -> Option<(WorkerName, usize)> {
        let worker = user.parse::<WorkerName>().ok()?;
        if self.by_pid.len() >= KNOWN_CONNECTIONS || self.by_pid.contains_key(pid) {
            return None;
        }
        self.by_pid.insert(pid.to_owned(), worker.clone());
        let connections = self.of_worker.entry(worker.clone()).or_default();
        *connections += 1;
        Some((worker, *connections))
    }

    /// A connection has closed. Returns the worker if it was its last known connection.
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

/// An address in the usual form. RabbitMQ writes it as an Erlang tuple of numbers. Any other text stays as it is.
pub(super) fn address(text: &str) -> String {
    let tuple = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
    let numbers: Option<Vec<u16>> = tuple.and_then(|list| list.split(',').map(|n| n.trim().parse().ok()).collect());
    let Some(numbers) = numbers else { return text.to_owned() };
    if let Ok(parts) = <[u16; 8]>::try_from(numbers.as_slice()) {
        let ip = Ipv6Addr::from(parts);
        return ip.to_ipv4_mapped().map_or_else(|| ip.to_string(), |ip| ip.to_string());
    }
    let bytes: Option<Vec<u8>> = numbers.iter().map(|n| u8::try_from(*n).ok()).collect();
    match bytes.and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()) {
        Some(parts) => Ipv4Addr::from(parts).to_string(),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_connection_counts() {
        let mut connections = Connections::default();
        let w1 = "w1".parse::<WorkerName>().unwrap();
        assert_eq!(connections.opened("<1>", "w1"), Some((w1.clone(), 1)));
        assert_eq!(connections.opened("<2>", "w1"), Some((w1, 2)));
        assert_eq!(connections.opened("<3>", "rouse_master"), None);
        assert_eq!(connections.closed("<1>"), None);
        assert_eq!(connections.closed("<1>"), None);
        assert_eq!(connections.closed("<3>"), None);
        assert_eq!(connections.closed("<2>").map(|w| w.to_string()).as_deref(), Some("w1"));
        assert!(connections.by_pid.is_empty() && connections.of_worker.is_empty());
    }

    #[test]
    fn addresses_are_made_readable() {
        for (text, expected) in [
            ("{127,0,0,1}", "127.0.0.1"),
            ("{0,0,0,0,0,65535,49152,513}", "192.0.2.1"),
            ("{8193,3512,0,0,0,0,0,1}", "2001:db8::1"),
            ("192.0.2.1", "192.0.2.1"),
            ("{1,2,3}", "{1,2,3}"),
            ("{256,0,0,1}", "{256,0,0,1}"),
            ("", ""),
        ] {
            assert_eq!(address(text), expected);
        }
    }
}
