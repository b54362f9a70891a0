//! Logs that are in a blob store: sent from there like those on the disk, or with a sentence about the store.

use crate::commands::{end, result_of, rouse};
use crate::fake::Fake;
use crate::http::client;
use reqwest::StatusCode;
use rouse_master::core::build::BuildEnd;
use rouse_master::web::Uploads;
use rouse_shared::message::{Outcome, StepState};
use rouse_shared::{AttemptId, BuildId};
use serde_json::{Value, json};

/// A build whose log of 3 MB is in a store; its second step has printed nothing.
async fn stored() -> (Fake, Vec<u8>) {
    let fake = Fake::start().await;
    let log: Vec<u8> = (0..750_000_u32).flat_map(u32::to_le_bytes).collect();
    fake.add(1, &["compile", "test"]);
    fake.begin(1);
    fake.end_step(1, StepState::Exited(0), log.len() as u64, true);
    fake.end_step(1, StepState::Exited(0), 0, false);
    fake.end_attempt(1, Outcome::Success, Some(BuildEnd::Success));
    fake.world.lock().unwrap().builds.get_mut(&BuildId(1)).unwrap().build.logs_store =
        Some("s3://bucket/a?region=x".into());
    let attempt = AttemptId { build: BuildId(1), number: 1 };
    *fake.logs.stored.lock().unwrap() = Some([((attempt, 0), log.clone())].into());
    (fake, log)
}

#[tokio::test]
async fn a_log_in_a_store_is_sent_like_one_on_the_disk() {
    let (fake, log) = stored().await;
    let get = async |query: &str, range: Option<&str>| {
        let request = client().get(fake.url(&format!("/api/builds/1/steps/1/log{query}")));
        range.into_iter().fold(request, |request, range| request.header("range", range)).send().await.unwrap()
    };
    for query in ["", "?follow=1"] {
        let whole = get(query, None).await;
        assert_eq!(whole.status(), StatusCode::OK);
        assert_eq!(whole.headers()["content-type"], "text/plain; charset=utf-8");
        if query.is_empty() {
            assert_eq!(whole.headers()["content-length"], "3000000");
        }
        assert!(whole.bytes().await.unwrap() == log, "{query}");
    }
    for (range, expected) in
        [("bytes=10-19", 10..20), ("bytes=2999990-", 2_999_990..3_000_000), ("bytes=-2000000", 1_000_000..3_000_000)]
    {
        let part = get("", Some(range)).await;
        assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
        let content = format!("bytes {}-{}/3000000", expected.start, expected.end - 1);
        assert_eq!(part.headers()["content-range"], content.as_str());
        assert!(part.bytes().await.unwrap() == log[expected], "{range}");
    }
    let past = get("", Some("bytes=3000000-")).await;
    assert_eq!(past.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(past.headers()["content-range"], "bytes */3000000");
    let silent = client().get(fake.url("/api/builds/1/steps/2/log")).send().await.unwrap();
    assert_eq!((silent.status(), silent.text().await.unwrap()), (StatusCode::OK, String::new()));
    let (code, out, _) = result_of(end(rouse(&fake).args(["show", "1"]).spawn().unwrap()).await);
    assert!(code == 0 && out.contains("in s3://bucket/a\n"), "{out}");
}

#[tokio::test]
async fn a_store_that_is_away_is_said_to_be() {
    let (fake, _) = stored().await;
    *fake.logs.stored.lock().unwrap() = None;
    for query in ["", "?follow=1"] {
        let response = client().get(fake.url(&format!("/api/builds/1/steps/1/log{query}"))).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        let answer: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        let why = answer["error"].as_str().unwrap();
        assert!(why.contains("step 1 of build 1") && why.contains("s3://bucket/a"), "{why}");
    }
    let (code, out, err) = result_of(end(rouse(&fake).args(["log", "1"]).spawn().unwrap()).await);
    assert_ne!(code, 0);
    assert_eq!(out, "");
    assert!(err.contains("s3://bucket/a") && err.contains("connection refused"), "{err}");
}

#[tokio::test]
async fn uploads_that_wait_are_shown() {
    let fake = Fake::start().await;
    let get = async || {
        let response = client().get(fake.url("/api/log-uploads")).send().await.unwrap();
        serde_json::from_str::<Value>(&response.text().await.unwrap()).unwrap()
    };
    assert_eq!(get().await, json!({ "store": null, "waiting": 0, "waiting_bytes": 0, "trouble": null }));
    let (store, trouble) = (Some("s3://bucket/a".to_owned()), Some("for 7 s, it is away".to_owned()));
    fake.world.lock().unwrap().uploads = Uploads { store, waiting: 3, waiting_bytes: 15, trouble };
    let expected = json!({
        "store": "s3://bucket/a", "waiting": 3, "waiting_bytes": 15, "trouble": "for 7 s, it is away"
    });
    assert_eq!(get().await, expected);
}

#[tokio::test]
async fn a_log_that_disappears_is_not_sent_as_an_empty_one() {
    let (fake, _) = stored().await;
    *fake.logs.stored.lock().unwrap() = Some([].into());
    let gone = client().get(fake.url("/api/builds/1/steps/1/log")).send().await.unwrap();
    assert_eq!(gone.status(), StatusCode::NOT_FOUND);
    assert!(gone.text().await.unwrap().contains("had 3000000 bytes, but it no longer exists"));
}
