//! The HTTP API: access, refusals, responses, logs and events.

use crate::fake::{Fake, NOON, TOKEN};
use reqwest::{Method, Response, StatusCode};
use rouse_master::api::{self, AttemptState, WorkerKind};
use rouse_master::core::audit::DifferenceKind;
use rouse_master::core::build::{BuildEnd, BuildState};
use rouse_master::core::event::{Change, Operation, WorkerState};
use rouse_master::core::journal::Action;
use rouse_master::core::plan::ProviderKind;
use rouse_master::core::record::HostState;
use rouse_master::core::view::PlaceState;
use rouse_shared::BuildId;
use rouse_shared::message::{Outcome, StepState};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::time::Duration;

pub fn client() -> reqwest::Client {
    rustls::crypto::ring::default_provider().install_default().ok();
    reqwest::Client::new()
}

async fn send(fake: &Fake, method: Method, path: &str, token: Option<&str>, body: &str) -> (StatusCode, Value) {
    let mut request = client().request(method, fake.url(path)).body(body.to_owned());
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    let response = request.send().await.unwrap();
    (response.status(), response.json().await.unwrap())
}

async fn get(fake: &Fake, path: &str) -> (StatusCode, Value) {
    send(fake, Method::GET, path, None, "").await
}

async fn log(fake: &Fake, path: &str, range: Option<&str>) -> Response {
    let mut request = client().get(fake.url(path));
    if let Some(range) = range {
        request = request.header("range", range);
    }
    request.send().await.unwrap()
}

/// The next bytes of a stream; fails if none come in time.
async fn piece(response: &mut Response) -> Option<Vec<u8>> {
    let piece = tokio::time::timeout(Duration::from_secs(20), response.chunk()).await.expect("in time");
    piece.unwrap().map(|bytes| bytes.to_vec())
}

/// The bytes of a stream until there are `length`.
async fn pieces(response: &mut Response, length: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < length {
        all.extend(piece(response).await.expect("more bytes"));
    }
    all
}

const BUILD: &str = r#"{"step": [{"name": "compile", "run": ["make"]}]}"#;

#[tokio::test]
async fn changes_need_the_token() {
    let fake = Fake::start().await;
    for (token, expected) in [
        (None, StatusCode::UNAUTHORIZED),
        (Some("wrong"), StatusCode::UNAUTHORIZED),
        (Some(TOKEN), StatusCode::CREATED),
    ] {
        let (status, answer) = send(&fake, Method::POST, "/api/builds", token, BUILD).await;
        assert_eq!(status, expected, "{answer}");
        if expected == StatusCode::CREATED {
            assert_eq!(answer, json!({"id": "1"}));
        } else {
            assert!(answer["error"].as_str().unwrap().contains("token"), "{answer}");
        }
    }
    assert_eq!(get(&fake, "/api/builds").await.0, StatusCode::OK);
    let strict = Fake::start_with(true).await;
    assert_eq!(get(&strict, "/api/builds").await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(send(&strict, Method::GET, "/api/builds", Some(TOKEN), "").await.0, StatusCode::OK);
}

#[tokio::test]
async fn errors_are_sent_as_json() {
    let fake = Fake::start().await;
    fake.add(1, &["compile"]);
    for (method, path, body, status, field) in [
        (Method::POST, "/api/builds", "{", 400, Some("build")),
        (Method::POST, "/api/builds", r#"{"worker":"nobody","step":[{"run":["true"]}]}"#, 400, Some("worker")),
        (Method::GET, "/api/builds?stat=queued", "", 400, None),
        (Method::GET, "/api/builds?state=asleep", "", 400, Some("state")),
        (Method::GET, "/api/builds?limit=0", "", 400, Some("limit")),
        (Method::GET, "/api/builds?before=x", "", 400, Some("before")),
        (Method::GET, "/api/builds/1?x=1", "", 400, None),
        (Method::GET, "/api/builds/2", "", 404, None),
        (Method::GET, "/api/builds/x", "", 404, None),
        (Method::GET, "/api/builds/2/why", "", 404, None),
        (Method::GET, "/api/builds/1/steps/0/log", "", 404, None),
        (Method::GET, "/api/builds/1/steps/2/log", "", 404, None),
        (Method::GET, "/api/builds/1/steps/1/log?attempt=1", "", 404, None),
        (Method::GET, "/api/builds/1/steps/1/log?follow=yes", "", 400, Some("follow")),
        (Method::POST, "/api/builds/2/cancel", "", 404, None),
        (Method::POST, "/api/workers/w1/pause", "", 404, None),
        (Method::POST, "/api/workers/w1/reboot", "", 404, None),
        (Method::POST, "/api/hosts/h9/terminate", "", 404, None),
        (Method::POST, "/api/hosts/%ff/terminate", "", 404, None),
        (Method::POST, "/api/audit", "", 400, None),
        (Method::POST, "/api/audit", r#"{"fixed": true}"#, 400, None),
        (Method::POST, "/api/audit", r#"{"adopt": true}"#, 400, Some("adopt")),
        (Method::GET, "/api/nothing", "", 404, None),
        (Method::DELETE, "/api/builds/1", "", 405, None),
    ] {
        let (answered, answer) = send(&fake, method.clone(), path, Some(TOKEN), body).await;
        assert_eq!(answered.as_u16(), status, "{method} {path}: {answer}");
        assert!(answer["error"].is_string(), "{method} {path}: {answer}");
        assert_eq!(answer["field"].as_str(), field, "{method} {path}: {answer}");
    }
    let large = "x".repeat((4 << 20) + 1);
    let (status, answer) = send(&fake, Method::POST, "/api/builds", Some(TOKEN), &large).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{answer}");
}

#[tokio::test]
async fn a_build_is_shown_in_full() {
    let fake = Fake::start().await;
    fake.add(12, &["compile", "test", "publish"]);
    fake.begin(12);
    fake.end_step(12, StepState::Exited(0), 5, true);
    fake.end_step(12, StepState::Signalled(9), 7, false);
    fake.end_attempt(12, Outcome::Failure("test died".to_owned()), Some(BuildEnd::Failure("test died".to_owned())));
    let (_, builds) = get(&fake, "/api/builds?state=failure").await;
    let row = json!([{
        "id": "12", "name": "unit tests", "state": "failure", "worker": "w1", "attempts": 1, "priority": 0,
        "created": "2026-11-23T12:00:00.000Z", "started": "2026-11-23T12:00:00.000Z",
        "finished": "2026-11-23T12:00:03.200Z", "reason": "test died", "submitter": null,
    }]);
    assert_eq!(builds, row);
    let (_, build) = get(&fake, "/api/builds/12").await;
    assert_eq!((&build["attempts"], &build["timeout"]), (&json!(1), &json!(90.5)));
    let steps = &build["tries"][0]["steps"];
    assert_eq!((&steps[0]["state"], &steps[0]["exit_code"]), (&json!("success"), &json!(0)));
    assert_eq!((&steps[1]["state"], &steps[1]["signal"]), (&json!("failure"), &json!(9)));
    assert_eq!((&steps[2]["state"], &steps[2]["log_length"]), (&json!("skipped"), &Value::Null));
    assert_eq!(steps[1]["duration"], json!(1.5));
    assert_eq!(get(&fake, "/api/builds?state=queued").await.1, json!([]));
    assert_eq!(get(&fake, "/api/builds?before=12").await.1, json!([]));
    let (status, _) = send(&fake, Method::POST, "/api/builds/12/cancel", Some(TOKEN), "").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn waiting_mails_are_reported() {
    let fake = Fake::start().await;
    assert_eq!(get(&fake, "/api/mails").await, (StatusCode::OK, json!([])));
    fake.add_mail();
    let expected = json!([{
        "id": "a1@example.org", "waiting": ["bob@example.org"], "tells": ["worker w1 is missing"], "tries": 3,
        "created": "2026-11-23T12:00:00.000Z", "next_try": "2026-11-23T12:00:00.000Z",
        "error": "localhost:25: connection\nrefused",
    }]);
    assert_eq!(get(&fake, "/api/mails").await.1, expected);
}

#[tokio::test]
async fn workers_and_hosts_are_shown_without_secrets() {
    let fake = Fake::start().await;
    fake.add_fleet();
    let (_, workers) = get(&fake, "/api/workers").await;
    let worker = &workers[0];
    assert_eq!((&worker["name"], &worker["kind"], &worker["state"]), (&json!("w1"), &json!("latent"), &json!("busy")));
    assert_eq!((&worker["running"], &worker["max_builds"]), (&json!(1), &Value::Null));
    let (_, hosts) = get(&fake, "/api/hosts").await;
    assert_eq!((&hosts[0]["handle"], &hosts[0]["cost"]), (&json!("i-0123"), &json!(0.096)));
    assert!(!hosts.to_string().contains("boot-token"));
    for operation in ["pause", "resume", "drain"] {
        let path = format!("/api/workers/w1/{operation}");
        assert_eq!(send(&fake, Method::POST, &path, Some(TOKEN), "").await.0, StatusCode::OK);
    }
    assert_eq!(fake.world.lock().unwrap().operations, ["Pause w1", "Resume w1", "Drain w1"]);
}

#[tokio::test]
async fn health_and_figures() {
    let fake = Fake::start().await;
    assert_eq!(get(&fake, "/healthz").await.1["status"], "ok");
    fake.world.lock().unwrap().broker_down = true;
    let (status, answer) = get(&fake, "/healthz").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer["error"].as_str().unwrap().contains("broker"));
    let text = client().get(fake.url("/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(
        text.contains("rouse_builds{state=\"queued\"} 0\n") && text.contains("rouse_mails_sent_total 5\n"),
        "{text}"
    );
}

#[tokio::test]
async fn logs_honour_ranges() {
    let fake = Fake::start().await;
    fake.add(1, &["compile"]);
    let path = "/api/builds/1/steps/1/log";
    assert_eq!(log(&fake, path, None).await.bytes().await.unwrap().len(), 0);
    fake.begin(1);
    let all: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    fake.print(1, 1, 0, &all);
    let whole = log(&fake, path, None).await;
    assert_eq!(whole.headers()["content-length"], "800000");
    assert_eq!(whole.bytes().await.unwrap(), all);
    for (range, expected) in
        [("bytes=10-19", 10..20), ("bytes=799990-", 799_990..800_000), ("bytes=-100000", 700_000..800_000)]
    {
        let part = log(&fake, path, Some(range)).await;
        assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
        let content = format!("bytes {}-{}/800000", expected.start, expected.end - 1);
        assert_eq!(part.headers()["content-range"], content.as_str());
        assert_eq!(part.bytes().await.unwrap(), all[expected], "{range}");
    }
    let past = log(&fake, path, Some("bytes=800000-")).await;
    assert_eq!(past.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(past.headers()["content-range"], "bytes */800000");
    let head = client().head(fake.url(path)).send().await.unwrap();
    assert_eq!((head.status(), &head.headers()["content-length"]), (StatusCode::OK, &"800000".parse().unwrap()));
}

#[tokio::test]
async fn a_followed_log_grows_until_its_step_has_ended() {
    let fake = Fake::start().await;
    fake.add(1, &["compile", "test", "publish"]);
    let mut first = log(&fake, "/api/builds/1/steps/1/log?follow=1", None).await;
    let mut last = log(&fake, "/api/builds/1/steps/3/log?follow=1", None).await;
    fake.begin(1);
    fake.print(1, 1, 0, b"one ");
    assert_eq!(pieces(&mut first, 4).await, b"one ");
    fake.print(1, 1, 0, b"two ");
    assert_eq!(pieces(&mut first, 4).await, b"two ");
    // The step has ended, and the last of its log is still on its way.
    fake.end_step(1, StepState::Exited(1), 13, false);
    fake.print(1, 1, 0, b"three");
    assert_eq!(pieces(&mut first, 5).await, b"three");
    assert_eq!(piece(&mut first).await, None);
    let mut resumed = log(&fake, "/api/builds/1/steps/1/log?follow=1&attempt=1", Some("bytes=8-")).await;
    assert_eq!(resumed.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(pieces(&mut resumed, 5).await, b"three");
    assert_eq!(piece(&mut resumed).await, None);
    // What will never run has an end as well.
    fake.end_attempt(1, Outcome::Failure(String::new()), Some(BuildEnd::Failure(String::new())));
    assert_eq!(piece(&mut last).await, None);
}

#[tokio::test]
async fn a_deleted_log_is_not_sent_as_an_empty_one() {
    let fake = Fake::start().await;
    fake.add(1, &["compile", "test"]);
    fake.begin(1);
    // Nothing was ever written of either: what the first printed has gone, the second printed nothing.
    fake.end_step(1, StepState::Exited(0), 5, true);
    fake.end_step(1, StepState::Exited(0), 0, false);
    let status = async |step: u32| log(&fake, &format!("/api/builds/1/steps/{step}/log"), None).await.status();
    assert_eq!(status(1).await, StatusCode::OK, "it may still be on its way");
    fake.end_attempt(1, Outcome::Success, Some(BuildEnd::Success));
    let gone = log(&fake, "/api/builds/1/steps/1/log?follow=1", None).await;
    assert_eq!(gone.status(), StatusCode::NOT_FOUND);
    let why = gone.text().await.unwrap();
    assert!(why.contains("had 5 bytes, but it no longer exists"), "{why}");
    assert_eq!((status(1).await, status(2).await), (StatusCode::NOT_FOUND, StatusCode::OK));
}

#[tokio::test]
async fn a_log_of_a_build_that_never_begins_ends_with_it() {
    let fake = Fake::start().await;
    fake.add(1, &["compile"]);
    let mut followed = log(&fake, "/api/builds/1/steps/1/log?follow=1", None).await;
    assert_eq!(send(&fake, Method::POST, "/api/builds/1/cancel", Some(TOKEN), "").await.0, StatusCode::OK);
    assert_eq!(piece(&mut followed).await, None);
}

#[tokio::test]
async fn an_ending_master_cuts_a_followed_log_so_that_it_does_not_look_whole() {
    let mut fake = Fake::start().await;
    fake.add(1, &["compile"]);
    fake.begin(1);
    fake.print(1, 1, 0, b"begun");
    let mut followed = log(&fake, "/api/builds/1/steps/1/log?follow=1", None).await;
    assert_eq!(pieces(&mut followed, 5).await, b"begun");
    fake.end().await;
    let rest = tokio::time::timeout(Duration::from_secs(20), followed.chunk()).await.expect("in time");
    assert!(rest.is_err(), "{rest:?}");
}

#[tokio::test]
async fn changes_are_streamed_and_a_slow_reader_is_informed() {
    let fake = Fake::start().await;
    let mut events = client().get(fake.url("/api/events")).send().await.unwrap();
    let host =
        Change::Build { id: BuildId(7), state: BuildState::Running, worker: Some("w1".parse().unwrap()), at: NOON };
    fake.changes.send(host.clone()).unwrap();
    let data = r#"{"kind":"build","id":"7","state":"running","worker":"w1","at":"2026-11-23T12:00:00.000Z"}"#;
    let expected = format!("event: build\ndata: {data}\n\n");
    assert_eq!(String::from_utf8(pieces(&mut events, expected.len()).await).unwrap(), expected);
    // More at once than the channel holds, in one go: this runtime has one thread, so the stream sees none before the
    // last.
    for _ in 0..100 {
        fake.changes.send(host.clone()).unwrap();
    }
    let event = String::from_utf8(pieces(&mut events, 1).await).unwrap();
    assert!(event.starts_with("event: lagged\ndata: {\"missed\":"), "{event}");
    assert_eq!(piece(&mut events).await, None);
}

#[tokio::test]
async fn an_unreadable_ledger_is_no_missing_build() {
    let fake = Fake::start().await;
    fake.add(1, &["compile"]);
    fake.world.lock().unwrap().ledger_broken = true;
    for path in ["/api/builds", "/api/builds/1", "/api/builds/1/why", "/api/builds/1/steps/1/log", "/api/builds/2"] {
        let (status, answer) = get(&fake, path).await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR, "{path}: {answer}");
        assert!(answer["error"].as_str().unwrap().contains("ledger"), "{path}: {answer}");
    }
}

/// `docs/openapi.json` is what people read and generate clients from; `ROUSE_BLESS=1` writes it again.
#[tokio::test]
async fn the_copy_in_the_documentation_is_the_document() {
    let fake = Fake::start().await;
    let (status, mut document) = get(&fake, "/openapi.json").await;
    assert_eq!((status, &document["info"]["version"]), (StatusCode::OK, &json!("0.0.1")));
    document["info"]["version"] = json!(env!("CARGO_PKG_VERSION"));
    let document = format!("{document:#}\n");
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
    if std::env::var_os("ROUSE_BLESS").is_some() {
        std::fs::write(path, &document).unwrap();
    }
    let copy = std::fs::read_to_string(path).unwrap_or_default();
    assert!(copy == document, "docs/openapi.json is out of date: run this test with ROUSE_BLESS=1");
}

/// Whatever takes a body takes an object: not the array of its fields, as a derived reader would.
#[tokio::test]
async fn every_body_is_an_object() {
    let fake = Fake::start().await;
    let (_, document) = get(&fake, "/openapi.json").await;
    let mut tried = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            if operation["requestBody"].is_null() {
                continue;
            }
            tried += 1;
            let method: Method = method.to_uppercase().parse().unwrap();
            for body in ["[]", "[true]", "[true, true]", r#"["n"]"#, "null", "true", "1", r#""x""#] {
                let (status, answer) = send(&fake, method.clone(), path, Some(TOKEN), body).await;
                assert_eq!(status, StatusCode::BAD_REQUEST, "{method} {path} {body}: {answer}");
                let error = answer["error"].as_str().unwrap();
                assert!(error.contains(", expected a"), "{method} {path} {body}: {error}");
            }
        }
    }
    assert_eq!(tried, 3, "submissions, repetitions and audits have bodies");
    let step = r#"{"step": [["compile", ["make"]]]}"#;
    let (status, answer) = send(&fake, Method::POST, "/api/builds", Some(TOKEN), step).await;
    assert_eq!((status, &answer["field"]), (StatusCode::BAD_REQUEST, &json!("step[0]")), "{answer}");
    assert!(answer["error"].as_str().unwrap().contains("sequence, expected a step"), "{answer}");
}

/// What `T` is called in the API, and what `written` says of it.
fn same<T: DeserializeOwned>(name: &Value, written: impl FnOnce(T) -> &'static str) {
    let value = serde_json::from_value(name.clone()).unwrap();
    assert_eq!(written(value), name.as_str().unwrap());
}

/// The document has each variant of each enumeration, as it is sent. Listings, paths and routing keys write the same.
#[tokio::test]
async fn every_state_has_one_name() {
    let fake = Fake::start().await;
    let (_, document) = get(&fake, "/openapi.json").await;
    let mut compared = 0;
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        for variant in schema["enum"].as_array().into_iter().flatten() {
            compared += 1;
            match name.as_str() {
                "Action" => same(variant, Action::as_str),
                "AttemptState" => same(variant, AttemptState::as_str),
                "BuildState" => same(variant, BuildState::as_str),
                "DifferenceKind" => same(variant, DifferenceKind::as_str),
                "HostState" => same(variant, HostState::as_str),
                "Operation" => same(variant, Operation::as_str),
                "ProviderKind" => same(variant, ProviderKind::as_str),
                "PlaceState" => same(variant, PlaceState::as_str),
                "WorkerKind" => same(variant, WorkerKind::as_str),
                "WorkerState" => same(variant, WorkerState::as_str),
                "StepState" => {
                    let state: api::StepState = serde_json::from_value(variant.clone()).unwrap();
                    assert_eq!(state.words().replace(' ', "_"), variant.as_str().unwrap());
                }
                // Sent, and written nowhere else.
                "HealthStatus" | "PrincipalKind" | "Role" => {}
                other => panic!("compare what is sent of {other} with what is written"),
            }
        }
    }
    assert!(compared > 50, "{compared}");
    let states = |name: &str| document["components"]["schemas"][name]["enum"].clone();
    assert_eq!(states("BuildState"), json!(BuildState::ALL.map(BuildState::as_str)));
    assert_eq!(states("ProviderKind"), json!(ProviderKind::ALL.map(ProviderKind::as_str)));
}
