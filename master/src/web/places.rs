//! Places over HTTP: lists them, and gives one up.

use super::auth::Identity;
use super::builds::done;
use super::error::{ApiError, NoParams, Params, Segments};
use super::journal::NoteParams;
use super::{App, Query, views};
use crate::api;
use crate::core::event::Command;
use axum::Json;
use axum::extract::State;
use std::sync::Arc;

/// List every place: where hosts may all fail for the same reason.
#[utoipa::path(
    get, path = "/api/places", responses((status = 200, description = "The places.", body = Vec<api::Place>)),
)]
pub(super) async fn list_places(
    State(app): State<Arc<App>>,
    _: Params<NoParams>,
) -> Result<Json<Vec<api::Place>>, ApiError> {
    let places = app.query(|reply| Query::Places { reply }).await?;
    Ok(Json(places.into_iter().map(views::place).collect()))
}

/// Give up a place that is gone for good, and all hosts there.
///
/// The machines may still run and cost money. Refused while the agent of one of them is attached.
#[utoipa::path(
    post, path = "/api/places/{id}/forget",
    params(("id" = String, Path, description = "The place's id."), NoteParams),
    responses(
        (status = 200, description = "The place is given up.", body = api::ForgottenPlace),
        (status = 400, description = "The agent of a host there is attached.", body = api::Error),
        (status = 404, description = "There is no such place.", body = api::Error),
    ),
)]
pub(super) async fn forget_place(
    State(app): State<Arc<App>>,
    Segments(id): Segments<String>,
    identity: Identity,
    Params(note): Params<NoteParams>,
) -> Result<Json<api::ForgottenPlace>, ApiError> {
    done(app.command(note.of(identity)?, Command::ForgetPlace(id.clone())).await?)?;
    Ok(Json(api::ForgottenPlace { id }))
}
