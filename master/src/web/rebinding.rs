//! If the server listens on loopback, it answers only requests for loopback names. Requests that only read need no
//! token there. Without this check, a web page could read everything through its own name that points to 127.0.0.1 (DNS
//! rebinding).

use super::App;
use super::error::ApiError;
use axum::extract::{Request, State};
use axum::http::header;
use axum::http::uri::Authority;
use axum::middleware::Next;
use axum::response::Response;
use std::net::IpAddr;
use std::sync::Arc;

/// Lets a request through, or answers 421. A request without a host, which HTTP/1.0 allows, comes from no browser.
pub(super) async fn check(State(app): State<Arc<App>>, request: Request, next: Next) -> Result<Response, ApiError> {
    if app.on_loopback {
        let named = request.headers().get_all(header::HOST).iter().map(|value| value.as_bytes());
        let asked = request.uri().authority().map(|authority| authority.as_str().as_bytes());
        if let Some(other) = named.chain(asked).find(|name| !is_loopback(name)) {
            return Err(ApiError::Misdirected(format!(
                "this master listens on loopback and answers requests for localhost or a loopback address, not for \
                 {:?}; if a proxy is in between, let it set the Host header accordingly",
                String::from_utf8_lossy(other)
            )));
        }
    }
    Ok(next.run(request).await)
}

/// Whether `authority`, a host with or without a port, can only mean this machine.
fn is_loopback(authority: &[u8]) -> bool {
    let Ok(authority) = Authority::try_from(authority) else { return false };
    let host = authority.host();
    host.eq_ignore_ascii_case("localhost")
        || host.trim_start_matches('[').trim_end_matches(']').parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::is_loopback;

    #[test]
    fn only_loopback_itself_is() {
        for name in ["localhost", "LocalHost:8090", "127.0.0.1", "127.0.0.1:1", "127.8.9.1:8090", "[::1]", "[::1]:8090"]
        {
            assert!(is_loopback(name.as_bytes()), "{name}");
        }
        for name in [
            "",
            "rebound.example.com",
            "rebound.example.com:8090",
            "localhost.example.com",
            "127.0.0.1.example.com",
            "127.0.0.1@example.com",
            "192.0.2.1:8090",
            "0.0.0.0",
            "[::]",
            "localhost localhost",
            "\u{e9}",
        ] {
            assert!(!is_loopback(name.as_bytes()), "{name}");
        }
    }
}
