//! The table of routes: what is served is what is here, and a test compares it with `/openapi.json`.

use super::answer::{Failure, NoParams, Params};
use super::{App, MAX_BODY, audit, auth, builds, events, fleet, log, metrics, openapi, page, rebinding};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{Method, StatusCode, Uri};
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router, middleware};
use std::sync::Arc;

/// One method of one path.
pub(super) struct Route {
    #[cfg_attr(not(test), expect(dead_code, reason = "told to the test that compares this table with the document"))]
    pub(super) method: Method,
    pub(super) path: &'static str,
    handler: MethodRouter<Arc<App>>,
}

/// Every route.
pub(super) fn all() -> Vec<Route> {
    let route = |method, path, handler| Route { method, path, handler };
    vec![
        route(Method::GET, "/api/builds", get(builds::list)),
        route(Method::POST, "/api/builds", post(builds::submit)),
        route(Method::GET, "/api/builds/{id}", get(builds::show)),
        route(Method::GET, "/api/builds/{id}/why", get(builds::why)),
        route(Method::GET, "/api/builds/{id}/steps/{step}/log", get(log::read)),
        route(Method::POST, "/api/builds/{id}/cancel", post(builds::cancel)),
        route(Method::GET, "/api/workers", get(fleet::workers)),
        route(Method::POST, "/api/workers/{name}/{operation}", post(fleet::operate)),
        route(Method::GET, "/api/hosts", get(fleet::hosts)),
        route(Method::GET, "/api/mails", get(fleet::mails)),
        route(Method::GET, "/api/audit", get(audit::look)),
        route(Method::POST, "/api/audit", post(audit::put_right)),
        route(Method::GET, "/api/events", get(events::stream)),
        route(Method::GET, "/metrics", get(metrics::text)),
        route(Method::GET, "/healthz", get(fleet::health)),
        route(Method::GET, "/openapi.json", get(document)),
        route(Method::GET, page::PATH, get(page::page)),
    ]
}

/// All of the server.
pub(super) fn router(app: Arc<App>) -> Router {
    all()
        .into_iter()
        .fold(Router::new(), |router, route| router.route(route.path, route.handler))
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), auth::check))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), rebinding::check))
        .with_state(app)
}

async fn document(State(app): State<Arc<App>>, _: Params<NoParams>) -> Json<serde_json::Value> {
    Json(openapi::document(app.settings.version))
}

async fn unknown_path(uri: Uri) -> Failure {
    Failure::not_found(format!("there is nothing at {}; /openapi.json lists what there is", uri.path()))
}

async fn unknown_method(method: Method, uri: Uri) -> Failure {
    Failure::new(StatusCode::METHOD_NOT_ALLOWED, format!("{} does not take {method}; see /openapi.json", uri.path()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    #[test]
    fn the_document_and_the_routes_are_the_same() {
        let document = super::openapi::document("0.0.0");
        let paths = document["paths"].as_object().expect("paths");
        let described: BTreeSet<_> = paths
            .iter()
            .flat_map(|(path, item)| {
                let methods = item.as_object().expect("a path item").keys().filter(|key| *key != "parameters");
                methods.map(|method| (method.to_uppercase(), path.clone()))
            })
            .collect();
        let served: BTreeSet<_> = super::all().iter().map(|r| (r.method.to_string(), r.path.to_owned())).collect();
        assert_eq!(described, served);
    }
}
