//! The status page: one document that contains no data and uses the API like any other client. It is assembled from
//! three files, so that each file can be checked by its own tools.

use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{Html, IntoResponse};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest as _, Sha256};
use std::sync::LazyLock;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The whole page: the style and the script stand where `page.html` names their files.
static PAGE: LazyLock<String> = LazyLock::new(|| {
    include_str!("page.html").replacen("/* page.css */", STYLE, 1).replacen("/* page.js */", SCRIPT, 1)
});

/// The page runs the script and the style that it was built with and nothing else, asks nobody but the master, and is
/// in nobody's frame. No text can become markup or code by way of the DOM.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let policy = format!(
        "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        hash(SCRIPT),
        hash(STYLE),
    );
    // Of base64 and the text above: it is always a header's value. Without it the page may do nothing.
    HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
});

/// How the policy names this content of an element.
fn hash(content: &str) -> String {
    format!("'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(content)))
}

/// Show the status page, which uses the rest of this API. Needs no token.
#[utoipa::path(
    get, path = "/", responses((status = 200, description = "The page.", body = String, content_type = "text/html")),
)]
pub(super) async fn page() -> impl IntoResponse {
    let fixed: [(HeaderName, HeaderValue); 4] = [
        (header::CONTENT_SECURITY_POLICY, POLICY.clone()),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        // It is small, and belongs to the API of the master that it comes from.
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (fixed, Html(PAGE.as_str()))
}
