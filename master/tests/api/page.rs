//! The status page, and which requests the server on loopback answers.

use crate::fake::{Fake, NOON, TOKEN};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

fn client() -> reqwest::Client {
    rustls::crypto::ring::default_provider().install_default().ok();
    reqwest::Client::new()
}

/// What stands in the element, which the page has once.
fn content<'a>(page: &'a str, element: &str) -> &'a str {
    let (_, rest) = page.split_once(&format!("<{element}>")).unwrap();
    let (content, rest) = rest.split_once(&format!("</{element}>")).unwrap();
    assert!(!rest.contains(&format!("<{element}")), "more than one {element}");
    content
}

#[tokio::test]
async fn the_page_may_run_its_own_script_and_nothing_else() {
    let fake = Fake::start().await;
    let response = client().get(fake.url("/")).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let headers = response.headers().clone();
    let page = response.text().await.unwrap();
    assert_eq!(headers["content-type"], "text/html; charset=utf-8");
    assert_eq!(headers["x-content-type-options"], "nosniff");
    assert_eq!(headers["cache-control"], "no-store");
    let policy = headers["content-security-policy"].to_str().unwrap();
    let has = |directive: &str| policy.split("; ").any(|part| part == directive);
    for (directive, element) in [("script-src", "script"), ("style-src", "style")] {
        let content = content(&page, element);
        assert!(content.len() > 1_000, "{element} is cut off");
        let hash = BASE64_STANDARD.encode(Sha256::digest(content));
        assert!(has(&format!("{directive} 'sha256-{hash}'")), "{policy}");
    }
    for directive in ["default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"] {
        assert!(has(directive), "{policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    // What the policy would forbid, so that it is not missed in the browser.
    let script = content(&page, "script");
    for forbidden in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", ".style."] {
        assert!(!script.contains(forbidden), "{forbidden}");
    }
    for forbidden in [" onclick=", " style=", " src=", "<script ", "<style "] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
    let head = client().head(fake.url("/")).send().await.unwrap();
    assert_eq!(
        (head.status(), &head.headers()["content-security-policy"]),
        (StatusCode::OK, &headers["content-security-policy"])
    );
}

#[tokio::test]
async fn the_page_needs_no_token_and_contains_no_data() {
    let strict = Fake::start_with(true).await;
    let page = client().get(strict.url("/")).send().await.unwrap();
    assert_eq!(page.status(), StatusCode::OK);
    let text = page.text().await.unwrap();
    assert!(!text.contains(TOKEN) && !text.contains("0.0.1"), "{text}");
    let open = ["/?x=1", "/openapi.json", "/healthz"];
    for path in ["/index.html", "//", "/api/workers", "/api/events", "/metrics"].into_iter().chain(open) {
        let status = client().get(strict.url(path)).send().await.unwrap().status();
        let expected = if open.contains(&path) { StatusCode::OK } else { StatusCode::UNAUTHORIZED };
        assert_eq!(status, expected, "{path}");
    }
    let posted = client().request(Method::POST, strict.url("/")).send().await.unwrap();
    assert_eq!(posted.status(), StatusCode::UNAUTHORIZED);
    // An audit calls every cloud, each of which allows only so many calls.
    let fake = Fake::start().await;
    for (path, expected) in [("/api/workers", StatusCode::OK), ("/api/audit", StatusCode::UNAUTHORIZED)] {
        assert_eq!(client().get(fake.url(path)).send().await.unwrap().status(), expected, "{path}");
    }
}

#[tokio::test]
async fn workers_show_their_last_message_and_refused_agents() {
    let fake = Fake::start().await;
    fake.add_fleet();
    let workers: Value = client().get(fake.url("/api/workers")).send().await.unwrap().json().await.unwrap();
    assert_eq!(NOON.0, 1_795_435_200_000);
    assert_eq!(workers[0]["last_heard"], "2026-11-23T12:00:00.000Z");
    let refused = json!({"at": "2026-11-23T12:00:00.000Z", "identity": "uuid:2", "reason": "another"});
    assert_eq!(workers[0]["refused"], refused);
}

/// The status and the body of the answer to a request that is sent as it stands.
async fn raw(fake: &Fake, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(fake.address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

#[tokio::test]
async fn a_name_that_points_to_loopback_reads_nothing() {
    let fake = Fake::start().await;
    let own = fake.address.to_string();
    for host in [own.as_str(), "localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:8090"] {
        for path in ["/", "/api/builds"] {
            let (status, body) =
                raw(&fake, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
            assert_eq!(status, 200, "{host} {path}: {body}");
        }
    }
    assert_eq!(raw(&fake, "GET /api/builds HTTP/1.0\r\n\r\n").await.0, 200);
    let token = format!("Authorization: Bearer {TOKEN}\r\n");
    for (request, headers) in [
        ("GET /api/builds", "Host: rebound.example.com\r\n"),
        ("GET /", "Host: rebound.example.com:8090\r\n"),
        ("GET /metrics", "Host: 192.0.2.1\r\n"),
        ("GET /nothing", "Host: localhost.example.com\r\n"),
        ("GET http://rebound.example.com/api/builds", "Host: localhost\r\n"),
        ("GET /api/builds", "Host: localhost\r\nHost: rebound.example.com\r\n"),
        ("POST /api/builds/1/cancel", &format!("Host: rebound.example.com\r\nContent-Length: 0\r\n{token}")),
    ] {
        let (status, body) = raw(&fake, &format!("{request} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n")).await;
        assert_eq!(status, 421, "{request} {headers}: {body}");
        let error: Value = serde_json::from_str(&body).unwrap();
        assert!(error["error"].as_str().unwrap().contains("listens on loopback"), "{body}");
    }
}
