//! The API token over HTTP.

use super::App;
use super::auth::Identity;
use super::error::{ApiError, Params};
use super::journal::NoteParams;
use crate::api;
use crate::api_token::RotateError;
use crate::core::event::{Command, Reply};
use crate::core::journal::{Action, Principal};
use axum::Json;
use axum::extract::State;
use std::sync::Arc;
use tracing::warn;

/// Replace the API token.
///
/// The new token is in the file that the answer names, on the machine of the master, readable only for the user of the
/// master. The answer does not contain it: whoever has stolen the old token must not get the new one. The old token is no
/// longer valid. Refused if the configuration sets the token.
#[utoipa::path(
    post, path = "/api/token/rotate", params(NoteParams),
    responses(
        (status = 200, description = "The token has been replaced.", body = api::RotatedToken),
        (status = 409, description = "The configuration sets the token.", body = api::Error),
        (status = 507, description = "The new token cannot be written. The old one stays valid.", body = api::Error),
    ),
)]
pub(super) async fn rotate_token(
    State(app): State<Arc<App>>,
    identity: Identity,
    Params(note): Params<NoteParams>,
) -> Result<Json<api::RotatedToken>, ApiError> {
    let by = note.of(identity)?;
    let token = app.settings.token.clone();
    let rotated = tokio::task::spawn_blocking(move || token.rotate()).await;
    match rotated.map_err(|error| ApiError::Internal(error.to_string()))? {
        Ok(file) => {
            // A stolen token must become worth nothing also while the ledger cannot be written.
            if !matches!(app.command(by.clone(), Command::Record(Action::RotateToken)).await, Ok(Reply::Done)) {
                let Principal { name, .. } = by.principal;
                warn!("{name} has replaced the API token, and the journal lacks it: the ledger cannot be written");
            }
            Ok(Json(api::RotatedToken { file: file.display().to_string() }))
        }
        Err(error @ RotateError::Configured) => Err(ApiError::Conflict(error.to_string())),
        Err(error @ RotateError::NotWritten { .. }) => Err(ApiError::NoSpace(error.to_string())),
    }
}
