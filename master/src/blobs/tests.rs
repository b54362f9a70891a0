//! What a directory does as a store, and how a store's answers are explained.
#![allow(clippy::unwrap_used)]

use super::*;
use object_store::Error;

fn config(url: &str) -> BlobsConfig {
    BlobsConfig {
        url: url.to_owned(),
        store: StoreUrl::parse(url).unwrap(),
        region: None,
        endpoint_url: None,
        credentials: None,
        profile: None,
    }
}

fn attempt(build: u64) -> AttemptId {
    AttemptId { build: BuildId(build), number: 1 }
}

#[tokio::test]
async fn a_directory_keeps_logs_by_master_and_forgets_them_whole() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let url = format!("file://{}", dir.path().display());
    let file = dir.path().join("a log");
    std::fs::write(&file, b"hello world").unwrap();
    let [one, two] = ["one", "two"].map(|master| Blobs::new(master, Some(config(&url))));
    for blobs in [&one, &two] {
        for build in [1, 2] {
            blobs.upload(&url, (attempt(build), 0), &file, 11).await.unwrap();
        }
    }
    let own = std::fs::metadata(dir.path().join("one")).unwrap().permissions().mode() & 0o777;
    assert_eq!(own, 0o700, "others must not read what builds print");
    // Again: a master that was killed does not know.
    one.upload(&url, (attempt(1), 0), &file, 11).await.unwrap();
    assert_eq!(one.length(&url, attempt(1), 0).await, Ok(11));
    assert_eq!(one.read(&url, attempt(1), 0, 6..9).await.unwrap(), "wor");
    assert_eq!(one.length(&url, attempt(1), 7).await, Ok(0), "a step that printed nothing");
    for _ in 0..2 {
        one.delete(&url, BuildId(1)).await.unwrap();
    }
    assert_eq!(one.length(&url, attempt(1), 0).await, Ok(0));
    assert_eq!((one.length(&url, attempt(2), 0).await, two.length(&url, attempt(1), 0).await), (Ok(11), Ok(11)));
}

#[tokio::test]
async fn a_log_that_changes_while_it_is_uploaded_is_not_taken_for_whole() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("file://{}", dir.path().display());
    let file = dir.path().join("a log");
    std::fs::write(&file, b"hello world").unwrap();
    let blobs = Blobs::new("one", Some(config(&url)));
    let shorter = blobs.upload(&url, (attempt(1), 0), &file, 5).await;
    assert!(matches!(shorter, Err(UploadError::File(_))), "{shorter:?}");
    let longer = blobs.upload(&url, (attempt(1), 0), &file, 50).await;
    assert!(matches!(longer, Err(UploadError::File(_))), "{longer:?}");
}

#[tokio::test]
async fn a_directory_that_is_missing_is_not_created() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("file://{}/mnt", dir.path().display());
    let blobs = Blobs::new("one", Some(config(&url)));
    let why = blobs.length(&url, attempt(1), 0).await.unwrap_err().to_string();
    assert!(why.contains("does not exist; create it, or mount its file system"), "{why}");
    assert_eq!(probe(&config(&url)).await, Err(StoreError(why)));
    assert!(!dir.path().join("mnt").exists());
    std::fs::create_dir(dir.path().join("mnt")).unwrap();
    assert_eq!(blobs.length(&url, attempt(1), 0).await, Ok(0), "it is tried again");
    assert_eq!(probe(&config(&url)).await, Ok(()));
    assert_eq!(std::fs::read_dir(dir.path().join("mnt")).unwrap().count(), 1, "the probe leaves nothing");
}

#[test]
fn a_store_has_one_name_in_the_ledger() {
    for (region, endpoint_url, text) in [
        (None, None, "s3://bucket/a"),
        (Some("eu-west-1"), None, "s3://bucket/a?region=eu-west-1"),
        (
            Some("x"),
            Some("http://127.0.0.1:9000/?a&b"),
            "s3://bucket/a?region=x&endpoint_url=http%3A%2F%2F127.0.0.1%3A9000%2F%3Fa%26b",
        ),
    ] {
        let (region, endpoint_url) = (region.map(str::to_owned), endpoint_url.map(str::to_owned));
        let location = Location::of(&BlobsConfig { region, endpoint_url, ..config("s3://bucket/a") });
        assert_eq!(location.to_text(), text);
        assert_eq!(Location::parse(text), Ok(location));
        assert_eq!(address(text), "s3://bucket/a");
    }
}

#[test]
fn a_store_that_has_moved_is_used_where_it_is_now_and_others_where_they_were() {
    let now = BlobsConfig {
        endpoint_url: Some("http://new".to_owned()),
        profile: Some("ci".to_owned()),
        ..config("s3://bucket/a")
    };
    let moved = settings("s3://bucket/a?endpoint_url=http%3A%2F%2Fold", Some(&now)).unwrap();
    assert_eq!(moved, now);
    let former = settings("s3://former?endpoint_url=http%3A%2F%2Fold&region=x", Some(&now)).unwrap();
    assert_eq!((former.url.as_str(), former.endpoint_url.as_deref()), ("s3://former", Some("http://old")));
    assert_eq!((former.region.as_deref(), former.profile.as_deref()), (Some("x"), Some("ci")));
    assert_eq!(settings("s3://former", None).unwrap(), config("s3://former"));
}

#[test]
fn answers_of_a_store_are_explained() {
    let answered = |status: &str, body: &str| {
        let text =
            format!("Error performing PUT http://s3/x in 1ms - Server returned non-2xx status code: {status}: {body}");
        Error::Generic { store: "S3", source: text.into() }
    };
    let coded = |status: &str, code: &str| {
        answered(status, &format!("<?xml?><Error><Code>{code}</Code><Message>Words.</Message></Error>"))
    };
    let redirect =
        "<Error><Code>AuthorizationHeaderMalformed</Code><Message>m</Message><Region>eu-west-1</Region></Error>";
    for (error, expected) in [
        (coded("404 Not Found", "NoSuchBucket"), "there is no such bucket; create it"),
        (coded("403 Forbidden", "AccessDenied"), "the bucket belongs to another account (AccessDenied)"),
        (answered("403 Forbidden", ""), "(403 Forbidden)"),
        (coded("403 Forbidden", "InvalidAccessKeyId"), "does not know the access key"),
        (coded("403 Forbidden", "SignatureDoesNotMatch"), "the secret key is wrong"),
        (coded("403 Forbidden", "RequestTimeTooSkewed"), "this machine's clock is wrong"),
        (coded("403 Forbidden", "QuotaExceeded"), "the store is full (QuotaExceeded)"),
        (coded("507 Insufficient Storage", "XMinioStorageFull"), "the store is full (XMinioStorageFull)"),
        (answered("507 Insufficient Storage", ""), "the store is full (507"),
        (answered("400 Bad Request", redirect), "in another region (eu-west-1); set blobs.region"),
        (answered("301 Moved Permanently", ""), "in another region; set blobs.region"),
        (coded("503 Slow Down", "SlowDown"), "overloaded or has a fault (SlowDown)"),
        (answered("502 Bad Gateway", "<!DOCTYPE html><html>no</html>"), "not S3: it sent an HTML page with status 502"),
        (coded("418 I'm a teapot", "Teapot"), "the store refuses it (Teapot: Words.)"),
        (Error::Generic { store: "S3", source: "connection refused".into() }, "cannot be used: connection refused"),
    ] {
        let StoreError(why) = Fault::from(error).explain("s3://bucket/a?region=x");
        assert!(why.starts_with("s3://bucket/a cannot be used: ") && why.contains(expected), "{why}");
    }
    let StoreError(long) =
        Fault::from(Error::Generic { store: "S3", source: "x".repeat(5_000).into() }).explain("s3://b");
    assert!(long.len() < 400, "{}", long.len());
}
