//! Logs in S3: moto's server, through the proxy that causes faults.

use reqwest::Client;
use rouse_master::blobs::{Blobs, UploadError, probe};
use rouse_master::config::{BlobsConfig, Config};
use rouse_shared::{AttemptId, BuildId};
use rouse_tests::ec2::{Cloud, KEY, REGION};
use rouse_tests::harness::{Master, check_online, standing};
use rouse_tests::proxy::{Fault, Request};
use serde_json::json;
use std::path::{Path, PathBuf};

const ATTEMPT: AttemptId = AttemptId { build: BuildId(12), number: 2 };

fn section(cloud: &Cloud, store: &str) -> String {
    let endpoint = cloud.endpoint();
    format!(
        "[blobs]\nstore = \"{store}\"\nregion = \"{REGION}\"\nendpoint_url = \"{endpoint}\"\nidentifier = \"{KEY}\"\n\
         secret_identifier = \"secret\"\n"
    )
}

fn config(cloud: &Cloud, store: &str) -> BlobsConfig {
    Config::parse(&section(cloud, store), Path::new("rouse.toml")).unwrap().blobs.unwrap()
}

/// A cloud with the bucket `logs`.
async fn bucket() -> Cloud {
    let cloud = Cloud::start().await;
    let body = format!(
        "<CreateBucketConfiguration><LocationConstraint>{REGION}</LocationConstraint></CreateBucketConfiguration>"
    );
    // Without a signature, moto takes the region from the host's name.
    let host = format!("s3.{REGION}.amazonaws.com");
    rustls::crypto::ring::default_provider().install_default().ok();
    let client = Client::new();
    let made = client.put(format!("{}/logs", cloud.direct())).header("host", host).body(body).send().await.unwrap();
    assert!(made.status().is_success(), "{}", made.text().await.unwrap());
    cloud
}

fn file(dir: &Path, content: &[u8]) -> PathBuf {
    let path = dir.join("0.log");
    std::fs::write(&path, content).unwrap();
    path
}

/// A request for an object.
fn of_object(request: &Request) -> bool {
    request.path.starts_with("/logs/a/")
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_uploaded_read_by_ranges_and_deleted() {
    let cloud = bucket().await;
    let dir = tempfile::tempdir().unwrap();
    let config = config(&cloud, "s3://logs/a/b");
    probe(&config).await.unwrap();
    let store = "s3://logs/a/b";
    let [one, two] = ["one", "two"].map(|master| Blobs::new(master, Some(config.clone())));
    // More than two parts, so an upload in several requests.
    let large: Vec<u8> = (0..2_800_000_u32).flat_map(u32::to_le_bytes).collect();
    let path = file(dir.path(), &large);
    // Replies that are lost are asked for again, and a repeated request changes nothing.
    cloud.proxy.fail(0, 2, Fault::LoseReply, |r| r.method == "PUT" && of_object(r));
    one.upload(store, (ATTEMPT, 0), &path, large.len() as u64).await.unwrap();
    assert_eq!(one.length(store, ATTEMPT, 0).await, Ok(large.len() as u64));
    cloud.proxy.fail(0, 1, Fault::LoseReply, |r| r.method == "GET" && of_object(r));
    let middle = 6_000_000..7_000_000_usize;
    let range = middle.start as u64..middle.end as u64;
    assert!(one.read(store, ATTEMPT, 0, range).await.unwrap() == large[middle]);
    let path = file(dir.path(), b"hello\n");
    for _ in 0..2 {
        one.upload(store, (ATTEMPT, 1), &path, 6).await.unwrap();
    }
    two.upload(store, (ATTEMPT, 1), &path, 6).await.unwrap();
    let seen = cloud.proxy.take_seen();
    let put = seen.iter().find(|r| r.is("PUT", "/logs/a/b/one/logs/0/12/2/1.log")).expect("its key");
    assert!(put.head.to_lowercase().contains("x-amz-checksum-sha256: "), "{}", put.head);
    for _ in 0..2 {
        one.delete(store, ATTEMPT.build).await.unwrap();
    }
    assert_eq!((one.length(store, ATTEMPT, 0).await, one.length(store, ATTEMPT, 1).await), (Ok(0), Ok(0)));
    assert_eq!(two.length(store, ATTEMPT, 1).await, Ok(6), "of another master");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_store_is_said() {
    let cloud = bucket().await;
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), b"hello\n");
    let refuse = |status: u16, head: &'static str, body: &'static str| Fault::Refuse { status, head, body };
    let blobs = Blobs::new("one", Some(config(&cloud, "s3://logs/a")));
    for (fault, expected) in [
        (
            refuse(403, "", "<Error><Code>AccessDenied</Code><Message>m</Message></Error>"),
            "another account (AccessDenied)",
        ),
        (refuse(403, "", "<Error><Code>RequestTimeTooSkewed</Code></Error>"), "this machine's clock is wrong"),
        (refuse(403, "", "<Error><Code>QuotaExceeded</Code></Error>"), "the store is full (QuotaExceeded)"),
        (refuse(507, "", ""), "the store is full"),
        (refuse(301, "", "<Error><Code>PermanentRedirect</Code><Endpoint>e</Endpoint></Error>"), "in another region"),
        (
            refuse(400, "", "<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region></Error>"),
            "in another region (eu-west-1); set blobs.region",
        ),
        (refuse(404, "Content-Type: text/html", "<!DOCTYPE html><html><p>It works!</html>"), "it sent an HTML page"),
        (Fault::LoseRequest, "s3://logs/a cannot be used: "),
    ] {
        cloud.proxy.fail(0, usize::MAX, fault.clone(), of_object);
        let Err(UploadError::Store(why)) = blobs.upload("s3://logs/a", (ATTEMPT, 0), &path, 6).await else {
            panic!("{fault:?} was not noticed");
        };
        assert!(why.to_string().contains(expected), "{fault:?}: {why}");
        cloud.proxy.heal();
    }
    // A page where a list is due, and where nothing is due.
    cloud.proxy.fail(0, usize::MAX, refuse(200, "", "<html>welcome</html>"), |_| true);
    let why = blobs.delete("s3://logs/a", ATTEMPT.build).await.unwrap_err().to_string();
    assert!(why.starts_with("s3://logs/a cannot be used: what answers is not a store"), "{why}");
    cloud.proxy.heal();
    blobs.upload("s3://logs/a", (ATTEMPT, 0), &path, 6).await.unwrap();

    let check = |text: &str| check_online(dir.path(), text, &[]);
    let (code, said) = check(&section(&cloud, "s3://logs/a"));
    assert!(code == Some(0) && said.contains("a small object was written to s3://logs/a, read and deleted"), "{said}");
    let (code, said) = check(&section(&cloud, "s3://nothing-here"));
    assert!(code == Some(2) && said.contains("s3://nothing-here cannot be used: there is no such bucket"), "{said}");
    let nowhere = section(&cloud, "s3://logs/a").replace(&cloud.endpoint(), "http://127.0.0.1:9");
    let (code, said) = check(&nowhere);
    assert!(code == Some(2) && said.contains("s3://logs/a cannot be used: "), "{said}");
    cloud.set(&json!({ "key": "AKIAANOTHER" }));
    let (code, said) = check(&section(&cloud, "s3://logs/a"));
    assert!(
        code == Some(2) && said.contains("s3://logs/a cannot be used: the store refuses it (AuthFailure"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn builds_end_while_the_store_is_away_and_their_logs_follow() {
    let cloud = bucket().await;
    let worker = standing("w", "keepalive_interval = 1\nlease = 60\n");
    tokio::task::block_in_place(|| {
        let blobs = section(&cloud, "s3://logs/a");
        let master = Master::start("s3-logs", &format!("{blobs}{worker}"));
        let _agent = master.agent("w");
        let build = || {
            let id = master.detach(&["--worker", "w", "--", "echo", "hello"]);
            master.until_state(&id, "success");
            id
        };
        let files = |id: &str| master.dir.join(format!("state/logs/0/{id}/1/0.log")).exists();
        let stored = |id: &str| master.show(id)["logs_store"] == "s3://logs/a";
        let first = build();
        master.until("its log is in the store", || stored(&first) && !files(&first));
        assert_eq!(master.rouse(&["log", &first]).ended(0).text(), "hello\n");

        cloud.proxy.fail(0, usize::MAX, Fault::Refuse { status: 403, head: "", body: "" }, of_object);
        let second = build();
        master.until("it is said", || master.show(&second)["upload_trouble"].is_string());
        let why = master.rouse(&["why", &second]).ended(0).text();
        assert!(why.contains("its logs are still on the master's disk") && why.contains("403 Forbidden"), "{why}");
        assert_eq!(master.rouse(&["log", &second]).ended(0).text(), "hello\n", "from the disk");
        let log = master.get(&format!("/api/builds/{first}/steps/1/log"));
        assert_eq!(log.status, 503, "{}", String::from_utf8_lossy(&log.body));
        assert!(master.rouse(&["log", &first]).ended(3).err.contains("s3://logs/a cannot be used"));
        let metrics = String::from_utf8_lossy(&master.get("/metrics").body).into_owned();
        assert!(metrics.contains("rouse_blob_store_down 1\n"), "{metrics}");
        assert!(metrics.contains("rouse_log_uploads_waiting_bytes 6\n"), "{metrics}");
        assert_eq!(master.get("/healthz").status, 200);

        master.kill();
        cloud.proxy.heal();
        master.begin();
        master.until("the next master uploads it", || stored(&second) && !files(&second));
        assert_eq!(master.rouse(&["log", &second]).ended(0).text(), "hello\n");

        master.configure(&format!("[retention]\nlogs = 1\n{blobs}{worker}"));
        master.signal(libc::SIGHUP);
        master.until("both logs are deleted", || {
            [&first, &second].iter().all(|id| master.get(&format!("/api/builds/{id}/steps/1/log")).status == 410)
        });
        master.until("in the store too", || {
            let deleted = |id: &str| cloud.proxy.has_seen(|r| r.is("DELETE", &format!("/logs/0/{id}/1/0.log")));
            deleted(&first) && deleted(&second)
        });
        master.end();
    });
}
