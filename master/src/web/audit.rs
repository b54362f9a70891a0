//! The audit over HTTP: GET only compares, POST can also fix differences.

use super::auth::Identity;
use super::error::{ApiError, Body, NoParams, Params};
use super::journal::NoteParams;
use super::{App, views};
use crate::access::Right;
use crate::api;
use crate::core::audit::{AUDIT_LIMIT, AuditMode};
use crate::core::event::{Command, Reply};
use crate::core::journal::Caller;
use axum::Json;
use axum::extract::State;
use std::sync::Arc;
use std::time::Duration;

/// Time that the master's loop may need in addition to the audit itself.
const LATE: Duration = Duration::from_secs(5);

/// Compare the ledger with what each provider lists.
///
/// Takes about a second if there are differences.
#[utoipa::path(
    get, path = "/api/audit",
    responses(
        (status = 200, description = "The differences.", body = api::Audit),
        (status = 409, description = "Too many audits are already running.", body = api::Error),
        (status = 507, description = "The ledger cannot be written.", body = api::Error),
    ),
)]
pub(super) async fn audit(
    State(app): State<Arc<App>>,
    identity: Identity,
    _: Params<NoParams>,
) -> Result<Json<api::Audit>, ApiError> {
    run(&app, identity.caller, AuditMode::Look).await
}

/// Compare the ledger with what each provider lists, and fix the differences.
///
/// Takes up to 45 seconds. Reports the differences that still exist then. `adopt` needs the right `admin`, because the
/// machines may be those of another master.
#[utoipa::path(
    post, path = "/api/audit", params(NoteParams), request_body = api::AuditRequest,
    responses(
        (status = 200, description = "The differences, and whether each is fixed.", body = api::Audit),
        (status = 409, description = "Too many audits are already running.", body = api::Error),
        (status = 413, description = "The body is too large.", body = api::Error),
    ),
)]
pub(super) async fn fix_audit(
    State(app): State<Arc<App>>,
    identity: Identity,
    Params(note): Params<NoteParams>,
    Body(body): Body,
) -> Result<Json<api::Audit>, ApiError> {
    let request: api::AuditRequest = serde_json::from_slice(&body)
        .map_err(|error| ApiError::Invalid { field: None, reason: format!("the body is invalid: {error}") })?;
    let mode = match request {
        api::AuditRequest { fix: false, adopt: false } => AuditMode::Look,
        api::AuditRequest { fix: true, adopt: false } => AuditMode::Fix,
        api::AuditRequest { fix: true, adopt: true } => AuditMode::Adopt,
        api::AuditRequest { fix: false, adopt: true } => {
            return Err(ApiError::field("adopt", "needs fix, since it terminates machines"));
        }
    };
    if mode == AuditMode::Adopt {
        identity.check(&[Right::Admin])?;
    }
    run(&app, note.of(identity)?, mode).await
}

async fn run(app: &App, by: Caller, mode: AuditMode) -> Result<Json<api::Audit>, ApiError> {
    match app.command_within(AUDIT_LIMIT + LATE, by, Command::Audit(mode)).await? {
        Reply::Audit(report) => Ok(Json(views::audit(*report))),
        Reply::Unavailable(reason) => Err(ApiError::NoSpace(reason)),
        Reply::Refused { reason, .. } | Reply::NotFound(reason) => Err(ApiError::Conflict(reason)),
        Reply::Done | Reply::Accepted(_) => Err(ApiError::mismatch()),
    }
}
