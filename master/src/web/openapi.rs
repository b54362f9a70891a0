//! The description of the API, for `/openapi.json`: made from the handlers, the API's types, and what all requests share.

use super::routes;
use crate::api;
use utoipa::OpenApi as _;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Content, OpenApi, Ref, RefOr, Response};
use utoipa::{Modify, ToSchema as _};

const TOKEN: &str = "token";

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "rouse",
        description = "Builds, workers and hosts of a rouse master. Ids are strings, times RFC 3339 in UTC, durations \
            seconds. Requests that change something need the master's token; if the master listens on other addresses \
            than loopback, requests that read need it too. Every error is an object with `error`, and `field` if one \
            field is at fault. When listening on loopback, requests whose Host header is not a loopback name are \
            answered with 421.",
        contact(),
    ),
    components(schemas(api::Error, api::Change, api::Lagged, api::SubmittedStep))
)]
struct Document;

/// What the handlers add their own to.
pub(super) fn base() -> OpenApi {
    Document::openapi()
}

/// The whole document.
pub(super) fn document(version: &str) -> OpenApi {
    let mut document = routes::documented().into_openapi();
    version.clone_into(&mut document.info.version);
    Shared.modify(&mut document);
    document
}

/// What every request shares: the token, and the errors of the server as a whole.
struct Shared;

const ERRORS: [(&str, &str); 5] = [
    ("400", "The request is invalid."),
    ("401", "The token is missing or wrong."),
    ("421", "The Host header is not a loopback name, and the master listens on loopback."),
    ("500", "The ledger cannot be read."),
    ("503", "The master cannot do its work, is ending, or did not answer in time."),
];

impl Modify for Shared {
    fn modify(&self, document: &mut OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        document.components.get_or_insert_default().add_security_scheme(TOKEN, scheme);
        for item in document.paths.paths.values_mut() {
            for operation in [&mut item.get, &mut item.post].into_iter().flatten() {
                for (status, description) in ERRORS {
                    operation.responses.responses.entry(status.to_owned()).or_insert_with(|| error(description));
                }
            }
            if let Some(operation) = &mut item.post {
                operation
                    .responses
                    .responses
                    .insert("507".to_owned(), error("The disk is full, or the ledger cannot be written."));
                operation.security = Some(vec![SecurityRequirement::new(TOKEN, [] as [&str; 0])]);
            }
        }
    }
}

fn error(description: &str) -> RefOr<Response> {
    let mut response = Response::new(description);
    let schema = Ref::from_schema_name(api::Error::name());
    response.content.insert("application/json".to_owned(), RefOr::T(Content::new(Some(schema))));
    RefOr::T(response)
}
