//! Messages to other programs on the broker: changes on `rouse.events`, and replies to submissions.

use super::views;
use crate::api;
use crate::core::event::{Change, Reply};
use serde::Serialize;

/// The routing key and the body of a change on the exchange `rouse.events`: `build.12.running`, `worker.w1.idle`,
/// `host.h0123456789abcdef.booting`.
pub fn change_message(change: &Change) -> (String, Vec<u8>) {
    let key = match change {
        Change::Build { id, state, .. } => format!("build.{id}.{}", state.as_str()),
        Change::Worker { name, state, .. } => format!("worker.{name}.{}", state.as_str()),
        Change::Host { id, state, .. } => format!("host.{id}.{}", state.as_str()),
    };
    (key, json(&views::change(change)))
}

/// The body of the reply to a submission through the broker: the build's id, or the error with its field.
pub fn answer_body(reply: &Reply) -> Vec<u8> {
    match reply {
        Reply::Accepted(id) => json(&api::AcceptedBuild { id: api::Id(*id) }),
        Reply::Done | Reply::Audit(_) => json(&serde_json::Map::new()),
        Reply::NotFound(reason) | Reply::Unavailable(reason) => {
            json(&api::Error { error: reason.clone(), field: None })
        }
        Reply::Refused { field, reason } => json(&api::Error { error: reason.clone(), field: field.clone() }),
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    // Strings and numbers can always be serialised.
    serde_json::to_vec(value).unwrap_or_default()
}
