//! The table of routes. Each handler has its own part of `/openapi.json`, so the documentation lists exactly what is
//! served.

use super::error::{ApiError, NoParams, Params};
use super::{
    App, MAX_BODY, audit, auth, builds, events, fleet, journal, log, masters, metrics, openapi, page, places,
    rebinding, reload, tokens,
};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{Method, Uri};
use axum::{Json, Router, middleware};
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Every route with its documentation.
pub(super) fn documented() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::with_openapi(openapi::base())
        .routes(routes!(builds::list_builds, builds::submit_build))
        .routes(routes!(builds::show_build))
        .routes(routes!(builds::explain_build))
        .routes(routes!(log::read_log))
        .routes(routes!(builds::cancel_build))
        .routes(routes!(builds::rerun_build))
        .routes(routes!(fleet::list_workers))
        .routes(routes!(fleet::operate_worker))
        .routes(routes!(fleet::list_hosts))
        .routes(routes!(fleet::terminate_host))
        .routes(routes!(fleet::forget_host))
        .routes(routes!(places::list_places))
        .routes(routes!(places::forget_place))
        .routes(routes!(masters::list_masters))
        .routes(routes!(fleet::list_mails))
        .routes(routes!(fleet::show_log_uploads))
        .routes(routes!(tokens::rotate_token))
        .routes(routes!(reload::reload))
        .routes(routes!(journal::list_journal))
        .routes(routes!(audit::audit, audit::fix_audit))
        .routes(routes!(events::stream_events))
        .routes(routes!(metrics::metrics))
        .routes(routes!(fleet::health))
        .routes(routes!(document))
        .routes(routes!(page::page))
}

/// The complete server.
pub(super) fn router(app: Arc<App>) -> Router {
    let (router, _) = documented().split_for_parts();
    router
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), masters::send_on))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), auth::check))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), rebinding::check))
        .with_state(app)
}

/// Describe this API, as OpenAPI.
#[utoipa::path(
    get, path = "/openapi.json",
    responses((status = 200, description = "This document.", body = serde_json::Map<String, serde_json::Value>)),
)]
async fn document(State(app): State<Arc<App>>, _: Params<NoParams>) -> Json<utoipa::openapi::OpenApi> {
    Json(openapi::document(app.settings.version))
}

async fn unknown_path(uri: Uri) -> ApiError {
    ApiError::NotFound(format!("there is nothing at {}; /openapi.json lists all paths", uri.path()))
}

async fn unknown_method(method: Method, uri: Uri) -> ApiError {
    ApiError::MethodNotAllowed(format!("{} does not accept {method}; see /openapi.json", uri.path()))
}
