//! Access control. Requests that change something need the token, and so does an audit, which calls every cloud. If
//! `master.read_token` is true, all other requests need it too, except those that contain no data: the status page, the
//! description of the API, and whether the master is healthy. Who comes through the socket of the commands needs no
//! token, because the kernel has let them write to it.

use super::App;
use super::error::ApiError;
use super::page;
use crate::http_server::Client;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::Response;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Paths of the API with rules of their own.
const AUDIT: &str = "/api/audit";
const OPENAPI: &str = "/openapi.json";
const HEALTH: &str = "/healthz";

/// Lets a request through, or answers 401.
pub(super) async fn check(State(app): State<Arc<App>>, request: Request, next: Next) -> Result<Response, ApiError> {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    let path = request.uri().path();
    let open = !app.settings.read_needs_token.load(Ordering::Relaxed) && path != AUDIT;
    let given = bearer(request.headers()).map(|token| same(token.as_bytes(), app.settings.token.expose().as_bytes()));
    if app.trusted || given == Some(true) {
        // Also if this request needs no token: its connection is not ended for those of others.
        if let Some(client) = request.extensions().get::<Client>() {
            client.entitle();
        }
        return Ok(next.run(request).await);
    }
    if reads && (open || matches!(path, page::PATH | OPENAPI | HEALTH)) {
        return Ok(next.run(request).await);
    }
    match given {
        Some(_) => Err(ApiError::Unauthorized("the token is wrong; it is in the master's api_token")),
        None => Err(ApiError::Unauthorized(
            "this needs the master's token: send 'Authorization: Bearer TOKEN', with the content of the master's api_token",
        )),
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// Whether both are equal and not empty, in a time that does not depend on where they differ.
fn same(given: &[u8], token: &[u8]) -> bool {
    if token.is_empty() || given.len() != token.len() {
        return false;
    }
    let differing = given.iter().zip(token).fold(0, |seen, (a, b)| seen | (a ^ b));
    std::hint::black_box(differing) == 0
}

#[cfg(test)]
mod tests {
    use super::same;

    #[test]
    fn only_the_whole_token_opens() {
        assert!(same(b"secret", b"secret"));
        for (given, token) in
            [("", ""), ("", "s"), ("s", ""), ("secre", "secret"), ("secrets", "secret"), ("Secret", "secret")]
        {
            assert!(!same(given.as_bytes(), token.as_bytes()), "{given} opens {token}");
        }
    }
}
