//! What a connected worker may do. These functions are pure, and deny everything that no rule allows.

use rouse_shared::WorkerName;
use rouse_shared::names::{AGENTS, agent_queue_prefix, control_key, log_key};

/// What was denied, for the master's log.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DeniedError(String);

fn worker(user: &str) -> Result<WorkerName, DeniedError> {
    user.parse().map_err(|_| DeniedError("not the name of a worker".to_owned()))
}

/// Workers may only use the master's virtual host.
///
/// # Errors
/// What is denied.
pub fn vhost(user: &str, asked: &str, ours: &str) -> Result<(), DeniedError> {
    worker(user)?;
    if asked == ours { Ok(()) } else { Err(DeniedError(format!("may not enter the virtual host {asked:?}"))) }
}

/// A worker may declare and read its own queues, and write to the agents' exchange.
///
/// # Errors
/// What is denied.
pub fn resource(user: &str, kind: &str, name: &str, permission: &str) -> Result<(), DeniedError> {
    let worker = worker(user)?;
    let allowed = match (kind, permission) {
        ("queue", "configure" | "read") => name.starts_with(&agent_queue_prefix(&worker)),
        ("exchange", "write") => name == AGENTS,
        _other => false,
    };
    if allowed { Ok(()) } else { Err(DeniedError(format!("may not {permission:?} the {kind:?} {name:?}"))) }
}

/// A worker may publish to the agents' exchange with its own two routing keys.
///
/// # Errors
/// What is denied.
pub fn topic(user: &str, exchange: &str, permission: &str, key: &str) -> Result<(), DeniedError> {
    let worker = worker(user)?;
    let own = key == control_key(&worker) || key == log_key(&worker);
    if exchange == AGENTS && permission == "write" && own {
        Ok(())
    } else {
        Err(DeniedError(format!("may not {permission:?} {exchange:?} under the key {key:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_virtual_host() {
        for (user, asked, allowed) in [
            ("w1", "rouse", true),
            ("w1", "/", false),
            ("w1", "", false),
            ("w1", "rouse2", false),
            ("rouse_master", "rouse", false),
            ("", "rouse", false),
            ("w\u{0}1", "rouse", false),
        ] {
            assert_eq!(vhost(user, asked, "rouse").is_ok(), allowed, "{user} {asked}");
        }
    }

    #[test]
    fn own_queues_and_the_agents_exchange() {
        let rows = [
            ("w1", "queue", "rouse.agent.w1.abc.1", "configure", true),
            ("w1", "queue", "rouse.agent.w1.abc.1", "read", true),
            ("w1", "queue", "rouse.agent.w1.abc.1", "write", false),
            ("w1", "queue", "rouse.agent.w1", "read", false),
            ("w1", "queue", "rouse.agent.w10.abc.1", "read", false),
            ("w1", "queue", "rouse.agent.w1-x.abc.1", "read", false),
            ("w1", "queue", "rouse.agent.w.abc.1", "configure", false),
            ("w10", "queue", "rouse.agent.w1.abc.1", "read", false),
            ("w1", "queue", "rouse.control", "read", false),
            ("w1", "queue", "rouse.logs", "read", false),
            ("w1", "queue", "rouse.builds", "read", false),
            ("w1", "queue", "amq.gen-abc", "configure", false),
            ("w1", "queue", "", "configure", false),
            ("w1", "exchange", "rouse.agents", "write", true),
            ("w1", "exchange", "rouse.agents", "configure", false),
            ("w1", "exchange", "rouse.agents", "read", false),
            ("w1", "exchange", "rouse.events", "write", false),
            ("w1", "exchange", "rouse.events", "read", false),
            ("w1", "exchange", "amq.default", "write", false),
            ("w1", "exchange", "", "write", false),
            ("w1", "exchange", "amq.rabbitmq.event", "read", false),
            ("w1", "topic", "rouse.agents", "write", false),
            ("w1", "nonsense", "rouse.agents", "write", false),
            ("w1.", "queue", "rouse.agent.w1..abc", "read", false),
            ("*", "exchange", "rouse.agents", "write", false),
            ("", "queue", "rouse.agent..abc", "read", false),
        ];
        for (user, kind, name, permission, allowed) in rows {
            assert_eq!(resource(user, kind, name, permission).is_ok(), allowed, "{user} {permission} {kind} {name}");
        }
    }

    #[test]
    fn own_keys_only() {
        let rows = [
            ("w1", "rouse.agents", "write", "w1.control", true),
            ("w1", "rouse.agents", "write", "w1.log", true),
            ("w1", "rouse.agents", "write", "w10.control", false),
            ("w1", "rouse.agents", "write", "w1-x.log", false),
            ("w1-x", "rouse.agents", "write", "w1.control", false),
            ("w1", "rouse.agents", "write", "w1.control.x", false),
            ("w1", "rouse.agents", "write", "w1.", false),
            ("w1", "rouse.agents", "write", "*.control", false),
            ("w1", "rouse.agents", "write", "#", false),
            ("w1", "rouse.agents", "read", "w1.control", false),
            ("w1", "rouse.events", "write", "w1.control", false),
            ("W1", "rouse.agents", "write", "W1.control", false),
        ];
        for (user, exchange, permission, key, allowed) in rows {
            assert_eq!(topic(user, exchange, permission, key).is_ok(), allowed, "{user} {permission} {exchange} {key}");
        }
    }
}
