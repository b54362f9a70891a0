//! The masters that share a ledger. One that stands by sends on what it must not do itself.

use super::App;
use super::error::{ApiError, NoParams, Params};
use crate::api;
use async_trait::async_trait;
use axum::Json;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use std::sync::Arc;

/// Access to the masters that share the ledger.
#[async_trait]
pub trait Masters: Send + Sync + 'static {
    /// All of them, this one too, the active one first; none if the ledger is not shared. Or why they are not known.
    async fn list(&self) -> Result<Vec<api::Master>, String>;
    /// If this master stands by: the address of the active one, if that is known.
    fn standby(&self) -> Option<Option<String>>;
}

/// A master that shares its ledger with nobody.
#[derive(Debug)]
pub struct Alone;

#[async_trait]
impl Masters for Alone {
    async fn list(&self) -> Result<Vec<api::Master>, String> {
        Ok(Vec::new())
    }

    fn standby(&self) -> Option<Option<String>> {
        None
    }
}

/// List the masters that share the ledger, the active one first.
///
/// Empty if the ledger is in SQLite, or the broker is the master's own: then there is no other.
#[utoipa::path(
    get, path = "/api/masters",
    responses(
        (status = 200, description = "The masters.", body = Vec<api::Master>),
        (status = 503, description = "The database does not answer.", body = api::Error),
    ),
)]
pub(super) async fn list_masters(
    State(app): State<Arc<App>>,
    _: Params<NoParams>,
) -> Result<Json<Vec<api::Master>>, ApiError> {
    app.masters.list().await.map(Json).map_err(ApiError::Unavailable)
}

/// Lets a request through, or sends it on to the active master: what changes something, what needs the clouds, and what
/// only the active master has, which is news and the logs of running builds.
pub(super) async fn send_on(State(app): State<Arc<App>>, request: Request, next: Next) -> Result<Response, ApiError> {
    let Some(active) = app.masters.standby() else { return Ok(next.run(request).await) };
    let path = request.uri().path();
    let reads = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    if reads && !matches!(path, "/api/audit" | "/api/events") && !path.ends_with("/log") {
        return Ok(next.run(request).await);
    }
    let Some(active) = active else {
        return Err(ApiError::Unavailable(
            "this master stands by, and the active one is not known yet; try again".to_owned(),
        ));
    };
    let target = request.uri().path_and_query().map_or(path, |path| path.as_str());
    Ok((StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, format!("{active}{target}"))]).into_response())
}
