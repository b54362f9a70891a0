//! Reads the configuration of the master again.

use super::auth::Identity;
use super::error::{ApiError, Params};
use super::journal::NoteParams;
use super::{App, PATIENCE};
use crate::api;
use crate::core::journal::Caller;
use axum::Json;
use axum::extract::State;
use std::sync::Arc;
use tokio::sync::oneshot;

/// A request to read the configuration again.
#[derive(Debug)]
pub struct Reload {
    /// Who requests it.
    pub by: Caller,
    /// Gets the result once the new configuration is in effect, or every error of the file.
    pub reply: oneshot::Sender<Result<Reloaded, String>>,
}

/// A configuration that was read again.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Reloaded {
    /// Keys that have changed and need a restart.
    pub needs_restart: Vec<String>,
    /// What is probably not intended.
    pub warnings: Vec<String>,
}

/// Read the configuration again, as SIGHUP does.
///
/// If the file has an error, nothing changes, and the answer is 409 with every error. If the master stands by, the active
/// one reads its own file.
#[utoipa::path(
    post, path = "/api/reload", params(NoteParams),
    responses(
        (status = 200, description = "The configuration is in effect.", body = api::Reloaded),
        (status = 409, description = "The file has errors, or there is none. The old configuration stays in effect.", body = api::Error),
    ),
)]
pub(super) async fn reload(
    State(app): State<Arc<App>>,
    identity: Identity,
    Params(note): Params<NoteParams>,
) -> Result<Json<api::Reloaded>, ApiError> {
    let by = note.of(identity)?;
    let (reply, answer) = oneshot::channel();
    let no_file = || ApiError::Conflict("this master was started without a configuration file".to_owned());
    let asked = async {
        app.settings.reloads.send(Reload { by, reply }).await.map_err(|_| no_file())?;
        answer.await.map_err(|_| ApiError::Ending)
    };
    match tokio::time::timeout(PATIENCE, asked).await.map_err(|_| ApiError::Busy)?? {
        Ok(Reloaded { needs_restart, warnings }) => Ok(Json(api::Reloaded { needs_restart, warnings })),
        Err(errors) => Err(ApiError::Conflict(errors)),
    }
}
