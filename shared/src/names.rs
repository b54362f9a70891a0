//! Every name on the broker: exchanges, queues and routing keys.
//!
//! Agents publish to the topic exchange [`AGENTS`] under `<worker>.<kind>`. The master answers through the default
//! exchange into the queue that the agent declared for its connection. A worker's name contains no dot, so a key that
//! begins with `<worker>.` belongs to that worker alone: `w1` matches neither `w10` nor `w1-x`.

use crate::ids::{Nonce, WorkerName};

/// Topic exchange that agents publish to; durable.
pub const AGENTS: &str = "rouse.agents";
/// Topic exchange to which the master publishes every change of a build, worker or host; durable.
pub const EVENTS: &str = "rouse.events";
/// The submission queue, from which the master takes builds; a durable quorum queue.
pub const BUILDS: &str = "rouse.builds";
/// Queue of hellos, heartbeats and reports, bound to `*.control`; durable, classic.
pub const CONTROL: &str = "rouse.control";
/// Queue of log chunks, bound to `*.log`; durable, classic. Separate, so that a flood of output cannot delay
/// heartbeats.
pub const LOGS: &str = "rouse.logs";
/// Binding key of [`CONTROL`].
pub const CONTROL_BINDING: &str = "*.control";
/// Binding key of [`LOGS`].
pub const LOGS_BINDING: &str = "*.log";

/// First argument of the agent program when it runs as the zygote. The supervisors that the zygote forks share its
/// command line, so this distinguishes both from the agent itself.
pub const ZYGOTE_ARGUMENT: &str = "__zygote";

/// Routing key of a worker's hellos, heartbeats and reports.
pub fn control_key(worker: &WorkerName) -> String {
    format!("{worker}.control")
}

/// Routing key of a worker's log chunks.
pub fn log_key(worker: &WorkerName) -> String {
    format!("{worker}.log")
}

/// Prefix of the names of a worker's own queues.
pub fn agent_queue_prefix(worker: &WorkerName) -> String {
    format!("rouse.agent.{worker}.")
}

/// The exclusive queue of one connection of an agent; `connection` counts the connections of this run of the program.
pub fn agent_queue(worker: &WorkerName, nonce: &Nonce, connection: u64) -> String {
    format!("{}{}.{connection}", agent_queue_prefix(worker), nonce)
}

/// The worker that a queue belongs to; `None` if it is not an agent's.
pub fn worker_of_queue(queue: &str) -> Option<WorkerName> {
    queue.strip_prefix("rouse.agent.")?.split('.').next()?.parse().ok()
}

/// The worker whose agents may publish under a routing key; `None` if it is no worker's.
pub fn worker_of_key(key: &str) -> Option<WorkerName> {
    key.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_a_prefix_of_another_gives_no_access() {
        let names = ["w1", "w10", "w1-x", "w"].map(|n| n.parse::<WorkerName>().expect("a name"));
        for a in &names {
            for b in &names {
                let queue = agent_queue(b, &Nonce("0".repeat(32)), 1);
                assert_eq!(queue.starts_with(&agent_queue_prefix(a)), a == b, "{a} and {queue}");
                assert_eq!(control_key(b).starts_with(&format!("{a}.")), a == b);
                assert_eq!(worker_of_queue(&queue).as_ref() == Some(a), a == b);
                assert_eq!(worker_of_key(&log_key(b)).as_ref() == Some(a), a == b);
            }
        }
    }
}
