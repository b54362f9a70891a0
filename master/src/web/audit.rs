//! The audit over HTTP: GET only looks, POST may put right.

use super::answer::{Failure, NoParams, Params};
use super::{App, Call, json};
use crate::core::audit::{AUDIT_LIMIT, AuditMode};
use crate::core::event::Reply;
use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// What the master's loop may take on top of the audit itself.
const LATE: Duration = Duration::from_secs(5);

/// What is to be done about differences.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
struct AuditRequest {
    fix: bool,
    adopt: bool,
}

pub(super) async fn look(State(app): State<Arc<App>>, _: Params<NoParams>) -> Result<Json<Value>, Failure> {
    run(&app, AuditMode::Look).await
}

pub(super) async fn put_right(
    State(app): State<Arc<App>>,
    _: Params<NoParams>,
    body: Bytes,
) -> Result<Json<Value>, Failure> {
    let order: AuditRequest =
        serde_json::from_slice(&body).map_err(|error| Failure::invalid(None, format!("the body is wrong: {error}")))?;
    let mode = match order {
        AuditRequest { fix: false, adopt: false } => AuditMode::Look,
        AuditRequest { fix: true, adopt: false } => AuditMode::Fix,
        AuditRequest { fix: true, adopt: true } => AuditMode::Adopt,
        AuditRequest { fix: false, adopt: true } => {
            return Err(Failure::invalid(Some("adopt".to_owned()), "adopt goes with fix: it stops machines"));
        }
    };
    run(&app, mode).await
}

async fn run(app: &App, mode: AuditMode) -> Result<Json<Value>, Failure> {
    match app.ask_within(AUDIT_LIMIT + LATE, |reply| Call::Audit { mode, reply }).await? {
        Reply::Audit(report) => Ok(Json(json::audit(&report))),
        Reply::Unavailable(reason) => Err(Failure::no_room(reason)),
        Reply::Refused { reason, .. } | Reply::NotFound(reason) => Err(Failure::new(StatusCode::CONFLICT, reason)),
        Reply::Done | Reply::Accepted(_) => {
            Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "the master gave no account of the audit"))
        }
    }
}
