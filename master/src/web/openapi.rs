//! The description of the API, for `/openapi.json`: generated from the handlers, the API's types, and what all requests
//! share.

use super::{rights, routes};
use crate::access::Right;
use crate::api;
use utoipa::OpenApi as _;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Content, OpenApi, Ref, RefOr, Response};
use utoipa::{Modify, ToSchema as _};

const TOKEN: &str = "token";

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "rouse",
        description = "Builds, workers and hosts of a rouse master. Ids are strings, times RFC 3339 in UTC, durations \
            seconds. Each operation names the right that the token needs. The master's own token has every right, and \
            whoever has any may read. If the master listens on loopback, `master.read_token` may let everybody read. Every error is an object with `error`, and `field` if one \
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

const ERRORS: [(&str, &str); 6] = [
    ("400", "The request is invalid."),
    ("401", "The token is missing or wrong."),
    ("403", "The token lacks the right that this needs."),
    ("421", "The Host header is not a loopback name, and the master listens on loopback."),
    ("500", "The ledger cannot be read."),
    ("503", "The master cannot do its work, is ending, or did not answer in time."),
];

impl Modify for Shared {
    fn modify(&self, document: &mut OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        document.components.get_or_insert_default().add_security_scheme(TOKEN, scheme);
        for (path, item) in &mut document.paths.paths {
            for (method, operation) in [("GET", &mut item.get), ("POST", &mut item.post)] {
                let Some(operation) = operation else { continue };
                describe_right(method, path, operation);
                for (status, description) in ERRORS {
                    operation.responses.responses.entry(status.to_owned()).or_insert_with(|| error(description));
                }
                if method == "POST" {
                    let full = error("The disk is full, or the ledger cannot be written.");
                    operation.responses.responses.insert("507".to_owned(), full);
                }
                // Without a body, a build is repeated as it was.
                if let Some(RefOr::T(body)) = operation.request_body.as_mut().filter(|_| path.ends_with("/rerun")) {
                    body.required = None;
                }
            }
        }
    }
}

/// Says which right an operation needs. Without `security`, everybody may use it if the configuration permits it.
fn describe_right(method: &str, path: &str, operation: &mut Operation) {
    let Some(row) = rights::find(method, path).filter(|row| !row.rights.is_empty()) else { return };
    let remark = if row.remark.is_empty() { String::new() } else { format!("; {}", row.remark) };
    let needs = format!("Needs the right {}{remark}.", row.words());
    let description = operation.description.take().filter(|text| !text.is_empty());
    operation.description = Some(description.map_or(needs.clone(), |text| format!("{text}\n\n{needs}")));
    if row.rights != [Right::Read] {
        operation.security = Some(vec![SecurityRequirement::new(TOKEN, [] as [&str; 0])]);
    }
}

fn error(description: &str) -> RefOr<Response> {
    let mut response = Response::new(description);
    let schema = Ref::from_schema_name(api::Error::name());
    response.content.insert("application/json".to_owned(), RefOr::T(Content::new(Some(schema))));
    RefOr::T(response)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::document;
    use serde_json::Value;
    use std::collections::BTreeSet;

    /// Adds the names of the schemas that `part` refers to, and of those that these refer to.
    fn names(document: &Value, part: &Value, found: &mut BTreeSet<String>) {
        match part {
            Value::Object(fields) => {
                for (key, value) in fields {
                    match value.as_str().filter(|_| key == "$ref").and_then(|path| path.rsplit('/').next()) {
                        Some(name) if found.insert(name.to_owned()) => {
                            names(document, &document["components"]["schemas"][name], found);
                        }
                        Some(_) => {}
                        None => names(document, value, found),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| names(document, item, found)),
            _ => {}
        }
    }

    /// Every object in a schema, in the parts of which it is put together too.
    fn objects<'a>(schema: &'a Value, found: &mut Vec<&'a Value>) {
        if schema["properties"].is_object() {
            found.push(schema);
        }
        for parts in ["allOf", "oneOf", "anyOf"] {
            schema[parts].as_array().into_iter().flatten().for_each(|part| objects(part, found));
        }
    }

    #[test]
    fn every_field_that_is_always_sent_is_required() {
        let document = serde_json::to_value(document("1")).unwrap();
        let mut asked = BTreeSet::new();
        for operation in document["paths"].as_object().unwrap().values().flat_map(|p| p.as_object().unwrap().values()) {
            names(&document, &operation["requestBody"], &mut asked);
        }
        assert!(asked.contains("Submission"), "{asked:?}");
        for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
            if asked.contains(name) {
                continue;
            }
            let mut all = Vec::new();
            objects(schema, &mut all);
            for object in all {
                let required: BTreeSet<_> =
                    object["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
                let mut sent: BTreeSet<_> =
                    object["properties"].as_object().unwrap().keys().map(String::as_str).collect();
                // An error need not be that of one field.
                if name == "Error" {
                    sent.remove("field");
                }
                assert_eq!(required, sent, "{name}");
            }
        }
    }
}
