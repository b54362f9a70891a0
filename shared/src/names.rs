//! Every name on the broker: exchanges, queues and routing keys.
//!
//! Agents publish to the topic exchange [`AGENTS`] under `<worker>.<kind>`; the master answers through the default
//! exchange into the queue that the agent declared for its connection. A worker's name has no dot, so a key that begins
//! with `<worker>.` belongs to that worker alone: `w1` is neither `w10` nor `w1-x`.

use crate::ids::{Nonce, WorkerName};

/// Topic exchange that agents publish to; durable.
pub const AGENTS: &str = "rouse.agents";
/// Topic exchange where the master publishes every change of a build, worker or host; durable.
pub const EVENTS: &str = "rouse.events";
/// Durable quorum queue from which the master takes builds.
pub const BUILDS: &str = "rouse.builds";
/// Queue of hellos, heartbeats and reports; bound to `*.control`; durable classic.
pub const CONTROL: &str = "rouse.control";
/// Queue of log chunks, apart so that a flood of output cannot delay a heartbeat; bound to `*.log`; durable classic.
pub const LOGS: &str = "rouse.logs";
/// Binding key of [`CONTROL`].
pub const CONTROL_BINDING: &str = "*.control";
/// Binding key of [`LOGS`].
pub const LOGS_BINDING: &str = "*.log";

/// First argument of the agent's program where it runs as the parent of steps' supervisors, which look the same: tells
/// them from the agent itself.
pub const ZYGOTE_ARGUMENT: &str = "__zygote";

/// Routing key of a worker's hellos, heartbeats and reports.
pub fn control_key(worker: &WorkerName) -> String {
    format!("{worker}.control")
}

/// Routing key of a worker's log chunks.
pub fn log_key(worker: &WorkerName) -> String {
    format!("{worker}.log")
}

/// What the names of a worker's own queues begin with.
pub fn agent_queue_prefix(worker: &WorkerName) -> String {
    format!("rouse.agent.{worker}.")
}

/// The exclusive queue of one connection of an agent: its life and how many connections it has had in that life.
pub fn agent_queue(worker: &WorkerName, nonce: &Nonce, connection: u64) -> String {
    format!("{}{}.{connection}", agent_queue_prefix(worker), nonce)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_a_prefix_of_another_opens_nothing() {
        let names = ["w1", "w10", "w1-x", "w"].map(|n| n.parse::<WorkerName>().expect("a name"));
        for a in &names {
            for b in &names {
                let queue = agent_queue(b, &Nonce("0".repeat(32)), 1);
                assert_eq!(queue.starts_with(&agent_queue_prefix(a)), a == b, "{a} and {queue}");
                assert_eq!(control_key(b).starts_with(&format!("{a}.")), a == b);
            }
        }
    }
}
