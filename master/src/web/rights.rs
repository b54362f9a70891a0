//! Which right each route needs: the only table of it. Access control and `/openapi.json` use it, and tests compare it
//! with the routes and with docs/security.md.

use crate::access::Right;
use axum::http::Method;

/// A route and the rights of which it needs one. None: everybody may use it.
pub(super) struct Row {
    method: &'static str,
    path: &'static str,
    /// One of these is enough.
    pub(super) rights: &'static [Right],
    /// What it needs in addition, for people; empty: nothing.
    pub(super) remark: &'static str,
}

const fn row(method: &'static str, path: &'static str, rights: &'static [Right], remark: &'static str) -> Row {
    Row { method, path, rights, remark }
}

const NOBODYS: &[Right] = &[];
const READ: &[Right] = &[Right::Read];
const BUILD: &[Right] = &[Right::Build];
const OPERATE: &[Right] = &[Right::Operate];
const ADMIN: &[Right] = &[Right::Admin];
const BUILD_OR_OPERATE: &[Right] = &[Right::Build, Right::Operate];

/// Every route.
pub(super) static TABLE: [Row; 27] = [
    row("GET", "/", NOBODYS, ""),
    row("GET", "/healthz", NOBODYS, ""),
    row("GET", "/openapi.json", NOBODYS, ""),
    row("GET", "/api/builds", READ, ""),
    row("GET", "/api/builds/{id}", READ, ""),
    row("GET", "/api/builds/{id}/why", READ, ""),
    row("GET", "/api/builds/{id}/steps/{step}/log", READ, ""),
    row("GET", "/api/workers", READ, ""),
    row("GET", "/api/hosts", READ, ""),
    row("GET", "/api/places", READ, ""),
    row("GET", "/api/masters", READ, ""),
    row("GET", "/api/mails", READ, ""),
    row("GET", "/api/log-uploads", READ, ""),
    row("GET", "/api/events", READ, ""),
    row("GET", "/metrics", READ, ""),
    row("POST", "/api/builds", BUILD, ""),
    row("POST", "/api/builds/{id}/rerun", BUILD, "builds of others need `operate` as well"),
    row("POST", "/api/builds/{id}/cancel", BUILD_OR_OPERATE, "builds of others need `operate`"),
    // An audit calls every cloud.
    row("GET", "/api/audit", OPERATE, ""),
    row("POST", "/api/audit", OPERATE, "`adopt` needs `admin`"),
    row("GET", "/api/journal", OPERATE, ""),
    row("POST", "/api/workers/{name}/{operation}", OPERATE, ""),
    row("POST", "/api/hosts/{id}/terminate", OPERATE, ""),
    row("POST", "/api/hosts/{id}/forget", OPERATE, ""),
    row("POST", "/api/places/{id}/forget", OPERATE, ""),
    row("POST", "/api/token/rotate", ADMIN, ""),
    row("POST", "/api/reload", ADMIN, ""),
];

/// The row of a route; none if there is no such route.
pub(super) fn find(method: &str, path: &str) -> Option<&'static Row> {
    // HEAD is answered as GET.
    let method = if method == Method::HEAD.as_str() { Method::GET.as_str() } else { method };
    TABLE.iter().find(|row| row.method == method && row.path == path)
}

impl Row {
    /// The needed rights, for people.
    pub(super) fn words(&self) -> String {
        words(self.rights)
    }
}

/// Rights of which one is needed, for people.
pub(super) fn words(rights: &[Right]) -> String {
    rights.iter().map(|right| format!("`{}`", right.as_str())).collect::<Vec<_>>().join(" or ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::web::routes;
    use std::collections::BTreeSet;

    #[test]
    fn every_route_has_its_right_and_nothing_else_has_one() {
        let document = serde_json::to_value(routes::documented().into_openapi()).unwrap();
        let paths = document["paths"].as_object().unwrap();
        let served: BTreeSet<_> = paths
            .iter()
            .flat_map(|(path, item)| item.as_object().unwrap().keys().map(move |method| (method.to_uppercase(), path)))
            .map(|(method, path)| format!("{method} {path}"))
            .collect();
        let listed: Vec<_> = TABLE.iter().map(|row| format!("{} {}", row.method, row.path)).collect();
        assert_eq!(listed.iter().cloned().collect::<BTreeSet<_>>(), served);
        assert_eq!(listed.len(), served.len(), "a route is listed twice");
        for row in TABLE.iter().filter(|row| row.method != "GET") {
            assert!(row.rights.iter().all(|right| *right > Right::Read), "{} changes something", row.path);
            assert!(!row.rights.is_empty(), "{} changes something", row.path);
        }
    }

    #[test]
    fn the_documentation_lists_every_route() {
        let text = include_str!("../../../docs/security.md");
        for row in &TABLE {
            let needs = match row.rights {
                [] => "none".to_owned(),
                _ => row.words(),
            };
            let needs = if row.remark.is_empty() { needs } else { format!("{needs}; {}", row.remark) };
            let line = format!("| `{} {}` | {needs} |", row.method, row.path);
            assert!(text.contains(&line), "docs/security.md lacks the line {line}");
        }
    }
}
