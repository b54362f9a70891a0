//! Builds and logs that retention has deleted, builds that are kept, and the filters of the listing.

use crate::commands::{end, result_of, rouse};
use crate::fake::{Fake, NOON, TOKEN};
use crate::http::client;
use rouse_master::core::build::{BuildEnd, Requirement};
use rouse_shared::BuildId;
use rouse_shared::message::{Outcome, StepState};
use serde_json::{Value, json};
use std::sync::Arc;

async fn run(fake: &Fake, args: &[&str]) -> (i32, String, String) {
    result_of(end(rouse(fake).args(args).spawn().unwrap()).await)
}

/// The status and the error of a request.
async fn refused(fake: &Fake, path: &str) -> (u16, String) {
    let response = client().get(fake.url(path)).send().await.unwrap();
    let status = response.status().as_u16();
    let answer: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
    (status, answer["error"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn a_build_that_was_deleted_is_said_to_be() {
    let fake = Fake::start().await;
    fake.world.lock().unwrap().deleted.push(BuildId(7));
    for path in ["/api/builds/7", "/api/builds/7/why", "/api/builds/7/steps/1/log"] {
        assert_eq!(refused(&fake, path).await, (404, "build 7 was deleted by retention".to_owned()), "{path}");
    }
    assert_eq!(refused(&fake, "/api/builds/8").await, (404, "there is no build 8".to_owned()));
    for command in ["show", "why", "log"] {
        let (code, out, err) = run(&fake, &[command, "7"]).await;
        assert_eq!((code, out.as_str()), (4, ""), "{command}");
        assert!(err.contains("build 7 was deleted by retention"), "{command}: {err}");
    }
}

#[tokio::test]
async fn logs_that_were_deleted_leave_a_build_that_says_so() {
    let fake = Fake::start().await;
    for (id, outcome) in [(1, Outcome::Success), (2, Outcome::Lost("its host is gone".to_owned()))] {
        fake.add(id, &["compile", "test"]);
        fake.begin(id);
        fake.end_step(id, StepState::Exited(0), 5, true);
        fake.end_step(id, StepState::Exited(0), 0, false);
        fake.end_attempt(id, outcome, Some(BuildEnd::Success));
        fake.world.lock().unwrap().builds.get_mut(&BuildId(id)).unwrap().build.logs_deleted = Some(NOON);
    }
    let gone = |build: u64| (410, format!("the log of step 1 of build {build} was deleted by retention"));
    for id in [1, 2] {
        for follow in ["", "?follow=1"] {
            assert_eq!(refused(&fake, &format!("/api/builds/{id}/steps/1/log{follow}")).await, gone(id));
        }
    }
    // A step that has printed nothing never had a log.
    let silent = client().get(fake.url("/api/builds/1/steps/2/log")).send().await.unwrap();
    assert_eq!((silent.status().as_u16(), silent.text().await.unwrap()), (200, String::new()));
    let (code, out, err) = run(&fake, &["log", "1"]).await;
    assert_eq!((code, out.as_str()), (4, ""));
    assert!(err.contains("the log of step 1 of build 1 was deleted by retention"), "{err}");
    let (code, out, _) = run(&fake, &["show", "1"]).await;
    assert!(code == 0 && out.contains("deleted by retention "), "{out}");
    let build: Value = serde_json::from_str(&run(&fake, &["show", "1", "--json"]).await.1).unwrap();
    assert_eq!((&build["logs_deleted"], &build["keep"]), (&json!("2026-11-23T12:00:00.000Z"), &json!(false)));
}

#[tokio::test]
async fn a_build_is_kept_if_it_is_asked_for() {
    let fake = Fake::start().await;
    let (code, _, err) = run(&fake, &["build", "--detach", "--keep", "--", "make"]).await;
    assert_eq!(code, 0, "{err}");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("build.toml");
    std::fs::write(&file, "keep = true\n[[step]]\nrun = \"make\"\n").unwrap();
    assert_eq!(run(&fake, &["build", "--detach", "--file", file.to_str().unwrap()]).await.0, 0);
    assert_eq!(run(&fake, &["build", "--detach", "--", "make"]).await.0, 0);
    let kept: Vec<_> = fake.world.lock().unwrap().builds.values().map(|view| view.build.spec.keep).collect();
    assert_eq!(kept, [true, true, false]);
    let (_, out, _) = run(&fake, &["show", "1"]).await;
    assert!(out.contains("it is never deleted"), "{out}");
}

#[tokio::test]
async fn builds_are_listed_by_worker_name_and_property() {
    let fake = Fake::start().await;
    for id in 1..=4 {
        fake.add(id, &["compile"]);
        if id < 4 {
            fake.begin(id);
        }
        let mut world = fake.world.lock().unwrap();
        let build = &mut world.builds.get_mut(&BuildId(id)).unwrap().build;
        let spec = Arc::make_mut(&mut build.spec);
        spec.name = format!("a & b {}", id % 2);
        spec.requirement = Requirement::Where([("os".to_owned(), format!("{id}=4"))].into());
    }
    for (args, expected) in [
        (&["--worker", "w1"][..], "3 2 1"),
        (&["--worker", "w1", "--before", "3"], "2 1"),
        (&["--worker", "w2"], ""),
        (&["--name", "a & b 1"], "3 1"),
        (&["--name", "a"], ""),
        (&["--where", "os=2=4"], "2"),
        (&["--where", "os=2=4", "--where", "os=3=4"], ""),
        (&["--state", "running", "--name", "a & b 0", "--worker", "w1", "--where", "os=2=4"], "2"),
    ] {
        let (code, out, err) = run(&fake, &[&["builds", "--json"], args].concat()).await;
        assert_eq!(code, 0, "{args:?}: {err}");
        let rows: Vec<Value> = serde_json::from_str(&out).unwrap();
        let ids: Vec<_> = rows.iter().map(|row| row["id"].as_str().unwrap()).collect();
        assert_eq!(ids.join(" "), expected, "{args:?}");
    }
    for (path, field) in [
        ("/api/builds?worker=W_1", "worker"),
        ("/api/builds?name=", "name"),
        ("/api/builds?where=os", "where"),
        ("/api/builds?where==x", "where"),
        ("/api/builds?limit=many", "limit"),
        ("/api/builds?limit=1001", "limit"),
    ] {
        let response = client().get(fake.url(path)).bearer_auth(TOKEN).send().await.unwrap();
        assert_eq!(response.status().as_u16(), 400, "{path}");
        let answer: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        assert_eq!(answer["field"], field, "{path}: {answer}");
    }
    for path in ["/api/builds?state=queued&state=queued", "/api/builds?nme=x"] {
        let (status, why) = refused(&fake, path).await;
        assert!(status == 400 && (why.contains("twice") || why.contains("known here")), "{path}: {why}");
    }
}
