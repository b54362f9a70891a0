//! The same JSON for those who listen on the broker: changes on `rouse.events`, answers to builds from the inbox.

use super::json;
use crate::core::event::{Change, Reply};
use serde_json::json;

/// The routing key and the body of a change on the exchange `rouse.events`: `build.12.running`, `worker.w1.idle`,
/// `host.h0123456789abcdef.booting`.
pub fn change_message(change: &Change) -> (String, Vec<u8>) {
    let key = match change {
        Change::Build { id, state, .. } => format!("build.{id}.{}", state.as_str()),
        Change::Worker { name, state, .. } => format!("worker.{name}.{}", state.as_str()),
        Change::Host { id, state, .. } => format!("host.{id}.{}", state.as_str()),
    };
    let (kind, mut body) = json::change(change);
    if let Some(object) = body.as_object_mut() {
        object.insert("kind".to_owned(), kind.into());
    }
    // A tree of texts cannot fail to be written down.
    (key, serde_json::to_vec(&body).unwrap_or_default())
}

/// The body of the answer to a build from the inbox: its id, or the error and the field at fault.
pub fn answer_body(answer: &Reply) -> Vec<u8> {
    let body = match answer {
        Reply::Accepted(id) => json!({ "id": id.to_string() }),
        Reply::Done | Reply::Audit(_) => json!({}),
        Reply::NotFound(reason) | Reply::Unavailable(reason) => json!({ "error": reason }),
        Reply::Refused { field, reason } => json!({ "error": reason, "field": field }),
    };
    body.to_string().into_bytes()
}
