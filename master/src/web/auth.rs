//! Access control: who sends a request, and whether they have the right that its route needs ([`super::rights`]).
//!
//! Whoever comes through the socket of the commands has every right, because the kernel has let them write to it. Others
//! show a token, or a trusted proxy names them. If `master.read_token` is false, whoever only reads need be nobody.

use super::App;
use super::error::ApiError;
use super::rights;
use crate::access::{OWN_TOKEN, Right, Rights, Rules};
use crate::core::journal::{Caller, Principal, PrincipalKind};
use crate::http_server::{Client, Ends, LocalUser};
use crate::users;
use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, Method, header};
use axum::middleware::Next;
use axum::response::Response;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The header in which a trusted proxy names the user.
const REMOTE_USER: HeaderName = HeaderName::from_static("remote-user");
/// The header in which a proxy names its client.
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// The header in which a browser says whether the page that sends the request is from the same server.
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// Longest name of a user, characters.
const MAX_NAME: usize = 100;
/// How long a directory service may take to tell the name of a user.
const NAMING: Duration = Duration::from_secs(2);

/// Who sends a request, and what they may do. The requests that need a right have it as an extension.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    /// Who.
    pub(super) caller: Caller,
    /// What they may do.
    rights: Rights,
}

impl<S: Sync> FromRequestParts<S> for Identity {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        // A route of the table that needs a right gives it to nobody without an identity.
        parts.extensions.get::<Self>().cloned().ok_or_else(ApiError::mismatch)
    }
}

impl Identity {
    fn new(name: &str, kind: PrincipalKind, from: String, rights: Rights) -> Self {
        let principal = Principal { name: name.to_owned(), kind };
        Self { caller: Caller { principal, from, note: None }, rights }
    }

    /// Whether they have this right.
    pub(super) fn may(&self, right: Right) -> bool {
        self.rights.allow(right)
    }

    /// Why a request is refused that needs one of these rights.
    ///
    /// # Errors
    /// Always, unless they have one of them.
    pub(super) fn check(&self, rights: &[Right]) -> Result<(), ApiError> {
        if rights.iter().any(|right| self.may(*right)) {
            return Ok(());
        }
        let (name, has) = (&self.caller.principal.name, self.rights);
        let needed = rights::words(rights);
        Err(ApiError::Forbidden(match self.caller.principal.kind {
            PrincipalKind::Proxy => format!(
                "the user {name} has the rights {has}, and this needs {needed}: add it to `may` of [remote_user] in rouse.toml"
            ),
            _ => format!(
                "the token {name} has the rights {has}, and this needs {needed}: add it to `may` of the token in rouse.toml"
            ),
        }))
    }

    /// Refuses who has only the right to build, and works on the build of somebody else.
    ///
    /// # Errors
    /// If that is so.
    pub(super) fn check_owner(&self, id: &str, submitter: Option<&Principal>) -> Result<(), ApiError> {
        if self.may(Right::Operate) || submitter == Some(&self.caller.principal) {
            return Ok(());
        }
        let whose = submitter.map_or_else(|| "nobody knows who".to_owned(), |submitter| submitter.name.clone());
        self.check(&[Right::Operate]).map_err(|error| {
            ApiError::Forbidden(format!("build {id} was submitted by somebody else ({whose}); {error}"))
        })
    }
}

/// Lets a request through, or answers 401 or 403.
pub(super) async fn check(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Result<Response, ApiError> {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    let matched = request.extensions().get::<MatchedPath>();
    let row = matched.and_then(|path| rights::find(request.method().as_str(), path.as_str()));
    let needed = match (row, matched.is_some() && *request.method() != Method::OPTIONS) {
        (Some(row), _) => row.rights,
        // A route that somebody has forgotten, or another method of one.
        (None, true) => &[Right::Admin],
        // What is no route is refused later.
        (None, false) => &[Right::Read],
    };
    let open = needed.is_empty()
        || (reads && needed == [Right::Read] && !app.settings.read_needs_token.load(Ordering::Relaxed));
    let found = if app.trusted {
        let name = local_name(request.extensions().get::<LocalUser>().copied(), reads).await;
        Ok(Some(Identity::new(&name, PrincipalKind::Local, "socket".to_owned(), Rights::EVERY)))
    } else {
        identify(&app, &request)
    };
    let identity = match found {
        Ok(Some(identity)) => identity,
        Ok(None) | Err(_) if open => return Ok(next.run(request).await),
        Ok(None) => {
            return Err(ApiError::Unauthorized(
                "this needs the master's token: send 'Authorization: Bearer TOKEN', with the content of the master's api_token",
            ));
        }
        Err(error) => return Err(error),
    };
    if !needed.is_empty() {
        identity.check(needed)?;
    }
    if !reads && identity.caller.principal.kind == PrincipalKind::Proxy {
        check_origin(request.headers())?;
    }
    // Also if this request needs no token: its connection is not ended for those of others.
    if let Some(client) = request.extensions().get::<Client>() {
        client.entitle();
    }
    request.extensions_mut().insert(identity);
    Ok(next.run(request).await)
}

/// Who sends a request over TCP; nothing if it does not say.
///
/// # Errors
/// If it shows something that is worth nothing.
fn identify(app: &App, request: &Request) -> Result<Option<Identity>, ApiError> {
    let rules = app.settings.access.rules();
    let peer = request.extensions().get::<Ends>().map(|ends| ends.theirs.ip().to_canonical());
    let proxied = peer.and_then(|peer| rules.proxied(peer));
    let from = || origin(request.headers(), peer, proxied.is_some());
    if let Some(token) = bearer(request.headers()) {
        return match holder(app, &rules, token) {
            Some((name, rights)) => Ok(Some(Identity::new(name, PrincipalKind::Token, from(), rights))),
            None => Err(ApiError::Unauthorized("the token is wrong; it is in the master's api_token")),
        };
    }
    // Anybody could send the header; only who comes from a trusted proxy is believed.
    let Some(rights) = proxied else { return Ok(None) };
    let user = remote_user(request.headers())?;
    Ok(user.map(|name| Identity::new(name, PrincipalKind::Proxy, from(), rights)))
}

/// The name of the token with this text, and what its holder may do.
fn holder<'r>(app: &App, rules: &'r Rules, token: &str) -> Option<(&'r str, Rights)> {
    if same(token.as_bytes(), app.settings.token.expose().as_bytes()) {
        return Some((OWN_TOKEN, Rights::EVERY));
    }
    rules.token(token).map(|token| (token.name.as_str(), token.may))
}

/// The name of a user of this machine. Who only reads is not recorded, so their names are not looked up.
async fn local_name(user: Option<LocalUser>, reads: bool) -> String {
    let Some(LocalUser(id)) = user else { return "unknown".to_owned() };
    let number = format!("uid {id}");
    if reads {
        return number;
    }
    let found = tokio::time::timeout(NAMING, tokio::task::spawn_blocking(move || users::name(id))).await;
    found.ok().and_then(Result::ok).flatten().unwrap_or(number)
}

/// The user whom a trusted proxy names.
///
/// # Errors
/// If there are several names, one of which may be the client's own, or if it is no name.
fn remote_user(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let mut named = headers.get_all(REMOTE_USER).iter();
    let Some(name) = named.next() else { return Ok(None) };
    if named.next().is_some() {
        return Err(ApiError::Unauthorized(
            "the request has several headers Remote-User: let the proxy remove those of its clients",
        ));
    }
    let name = std::str::from_utf8(name.as_bytes()).map(str::trim).ok();
    match name.filter(|name| name.chars().count() <= MAX_NAME && !name.chars().any(char::is_control)) {
        Some("") => Ok(None),
        Some(name) => Ok(Some(name)),
        None => Err(ApiError::Unauthorized("the header Remote-User is not a name: UTF-8 of at most 100 characters")),
    }
}

/// Where a request comes from: the client of a trusted proxy, if it names it, otherwise who has connected.
fn origin(headers: &HeaderMap, peer: Option<IpAddr>, proxied: bool) -> String {
    // The proxy appends the address that it sees; what is before it comes from the client.
    let last = headers.get_all(FORWARDED_FOR).iter().next_back().filter(|_| proxied);
    let client = last.and_then(|list| list.to_str().ok()?.rsplit(',').next()?.trim().parse::<IpAddr>().ok());
    client.or(peer).map_or_else(|| "unknown".to_owned(), |address| address.to_string())
}

/// Refuses what a page of another server lets a browser send. The browser adds what the proxy knows its user by, whoever
/// has made the page; a token it would not add.
fn check_origin(headers: &HeaderMap) -> Result<(), ApiError> {
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let own = match (text(&FETCH_SITE), text(&header::ORIGIN)) {
        (Some(site), _) => matches!(site, "same-origin" | "none"),
        // A browser that does not say it, or no browser.
        (None, Some(origin)) => {
            let page = origin.split_once("://").and_then(|(_, rest)| rest.parse::<Authority>().ok());
            let forwarded = HeaderName::from_static("x-forwarded-host");
            let asked = [text(&forwarded), text(&header::HOST)].into_iter().flatten();
            asked.filter_map(|host| host.parse::<Authority>().ok()).any(|host| page.as_ref() == Some(&host))
        }
        (None, None) => true,
    };
    if own {
        return Ok(());
    }
    Err(ApiError::Forbidden(
        "this was sent by a page of another server: use the page of the master. If it was the page of the master, let the \
         proxy pass on the header Host, or set X-Forwarded-Host"
            .to_owned(),
    ))
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
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| {
            (HeaderName::try_from(*name).unwrap(), axum::http::HeaderValue::from_bytes(value.as_bytes()).unwrap())
        });
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name, value);
        }
        headers
    }

    #[test]
    fn only_the_whole_token_opens() {
        assert!(same(b"secret", b"secret"));
        for (given, token) in
            [("", ""), ("", "s"), ("s", ""), ("secre", "secret"), ("secrets", "secret"), ("Secret", "secret")]
        {
            assert!(!same(given.as_bytes(), token.as_bytes()), "{given} opens {token}");
        }
    }

    #[test]
    fn a_proxy_names_one_user() {
        let name = |pairs: &[(&str, &str)]| {
            let headers = headers(pairs);
            remote_user(&headers).map(|name| name.map(str::to_owned)).map_err(drop)
        };
        assert_eq!(name(&[]), Ok(None));
        assert_eq!(name(&[("remote-user", " ")]), Ok(None), "nobody has logged in");
        assert_eq!(name(&[("Remote-User", "ann")]), Ok(Some("ann".to_owned())));
        assert_eq!(name(&[("remote-user", "Jürgen Groß")]), Ok(Some("Jürgen Groß".to_owned())));
        assert_eq!(name(&[("remote-user", "ann"), ("remote-user", "eve")]), Err(()));
        assert_eq!(name(&[("remote-user", &"x".repeat(101))]), Err(()));
    }

    #[test]
    fn the_address_is_the_one_that_the_proxy_has_seen() {
        let peer = "192.0.2.1".parse().ok();
        let forged = headers(&[("x-forwarded-for", "10.0.0.1, 198.51.100.7")]);
        assert_eq!(origin(&forged, peer, true), "198.51.100.7");
        assert_eq!(origin(&forged, peer, false), "192.0.2.1", "anybody can send the header");
        assert_eq!(origin(&headers(&[("x-forwarded-for", "nonsense")]), peer, true), "192.0.2.1");
        assert_eq!(origin(&headers(&[]), None, false), "unknown");
    }

    #[test]
    fn pages_of_other_servers_change_nothing() {
        for (own, pairs) in [
            (true, &[][..]),
            (true, &[("sec-fetch-site", "same-origin"), ("origin", "https://ci.example.org"), ("host", "127.0.0.1")]),
            (true, &[("sec-fetch-site", "none")]),
            (false, &[("sec-fetch-site", "cross-site")]),
            (false, &[("sec-fetch-site", "same-site")]),
            (true, &[("origin", "http://ci.example.org"), ("host", "ci.example.org")]),
            (
                true,
                &[("origin", "http://ci.example.org"), ("host", "127.0.0.1"), ("x-forwarded-host", "ci.example.org")],
            ),
            (false, &[("origin", "http://evil.example.org"), ("host", "ci.example.org")]),
            (false, &[("origin", "null"), ("host", "ci.example.org")]),
        ] {
            assert_eq!(check_origin(&headers(pairs)).is_ok(), own, "{pairs:?}");
        }
    }
}
