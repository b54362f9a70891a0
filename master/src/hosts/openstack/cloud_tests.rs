//! How the client interprets answers.
#![allow(clippy::unwrap_used)]

use super::*;

#[test]
fn the_catalogue_may_name_a_version_or_not() {
    for (service, endpoint, base) in [
        (Service::Compute, "http://x/v2.1/", "http://x/v2.1"),
        (Service::Image, "http://x/image", "http://x/image/v2"),
        (Service::Image, "http://x:9292/v2/", "http://x:9292/v2"),
        (Service::Network, "http://x:9696", "http://x:9696/v2.0"),
        (Service::Network, "http://x:9696/v2.0/", "http://x:9696/v2.0"),
    ] {
        assert_eq!(service.base(endpoint), base);
    }
}

#[test]
fn the_time_to_wait_is_a_number_or_a_date() {
    let headers = |pairs: &[(&'static str, &str)]| {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.insert(*name, value.parse().unwrap());
        }
        headers
    };
    assert_eq!(retry_after(&headers(&[("retry-after", "7")])), Some(Duration::from_secs(7)));
    let date = "Tue, 15 Nov 1994 08:12:31 GMT";
    let later = "Tue, 15 Nov 1994 08:12:41 GMT";
    assert_eq!(retry_after(&headers(&[("retry-after", later), ("date", date)])), Some(Duration::from_secs(10)));
    for none in [vec![], vec![("retry-after", "soon")], vec![("retry-after", later)]] {
        assert_eq!(retry_after(&headers(&none)), None);
    }
}

#[test]
fn the_next_page_is_found_in_every_services_form() {
    let page = serde_json::json!({
        "servers": [], "servers_links": [{ "rel": "self", "href": "a" }, { "rel": "next", "href": "http://x/servers?marker=1" }],
    });
    assert_eq!(next_page(&page, "servers").as_deref(), Some("http://x/servers?marker=1"));
    let page = serde_json::json!({ "images": [], "next": "/v2/images?marker=2" });
    assert_eq!(next_page(&page, "images").as_deref(), Some("/v2/images?marker=2"));
    assert_eq!(next_page(&serde_json::json!({ "images": [], "first": "/v2/images" }), "images"), None);
}

/// A cloud that is broken, or somebody who answers in its place.
#[tokio::test]
async fn an_answer_without_end_is_not_read_to_its_end() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let sent = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        assert_ne!(stream.read(&mut [0; 1_000]).await.unwrap(), 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        let mut sent = 0;
        while stream.write_all(&[b' '; 1 << 16]).await.is_ok() {
            sent += 1 << 16;
        }
        sent
    });
    // There may be no certificates on this machine.
    drop(rustls::crypto::ring::default_provider().install_default());
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
    let response = client.get(format!("http://{address}/")).send().await.unwrap();
    let why = content(response).await.unwrap_err();
    assert!(why.contains("more than 33554432 bytes"), "{why}");
    assert!(sent.await.unwrap() < 2 * LARGEST, "it reads on");
}
