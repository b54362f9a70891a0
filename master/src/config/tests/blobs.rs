//! What may be the address of a blob store.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::config::Config;

#[test]
fn addresses_of_stores() {
    let s3 = |bucket: &str, prefix: &str| Ok(StoreUrl::S3 { bucket: bucket.into(), prefix: prefix.into() });
    let dir = |path: &str| Ok(StoreUrl::Directory(path.into()));
    for (text, expected) in [
        ("s3://bucket", s3("bucket", "")),
        ("s3://my-bucket/", s3("my-bucket", "")),
        ("s3://bucket/a/b/", s3("bucket", "a/b")),
        ("file:///srv/blobs", dir("/srv/blobs")),
        ("file:///srv/my%20blobs", dir("/srv/my blobs")),
    ] {
        assert_eq!(StoreUrl::parse(text), expected, "{text}");
    }
    for (text, expected) in [
        ("/srv/blobs", "not the address of a store"),
        ("gs://bucket", "no such kind"),
        ("s3://", "names no bucket"),
        ("s3:///prefix", "names no bucket"),
        ("s3://ab", "3 to 63"),
        ("s3://bucket/a//b", "empty segments"),
        ("s3://bucket/../b", "empty segments"),
        ("s3://bucket?region=x", "keys of [blobs]"),
        ("s3://AKIA:hunter2@bucket/a", "must not contain credentials"),
        ("file://srv/blobs", "must be absolute"),
        ("file:///", "below /"),
        ("s3://bucket/a b", "spaces"),
    ] {
        let why = StoreUrl::parse(text).unwrap_err();
        assert!(why.contains(expected), "{text}: {why}");
        assert!(!why.contains("hunter2"), "{why}");
    }
}

#[test]
fn a_store_needs_its_address_and_its_own_directory() {
    let read = |text: &str| Config::parse(text, Path::new("/etc/rouse.toml"));
    let config = read("[blobs]\nstore = \"s3://bucket/a/\"\nidentifier = \"AKIA\"\nsecret_identifier = \"x\"").unwrap();
    let blobs = config.blobs.unwrap();
    assert_eq!((blobs.url.as_str(), blobs.region), ("s3://bucket/a", None));
    assert_eq!(blobs.credentials.unwrap().0, "AKIA");
    assert_eq!(read("").unwrap().blobs, None);

    let config = read("[blobs]\nregion = \"eu-west-1\"\nprofile = \"ci\"").unwrap();
    assert_eq!((config.blobs, config.warnings.len()), (None, 2), "both keys have no effect");
    let config = read("[blobs]\nstore = \"file:///srv/x\"\nregion = \"eu-west-1\"").unwrap();
    assert_eq!(config.warnings.len(), 1);
    assert!(read("[blobs]\nstore = \"file:///var/lib/rouse/logs/x\"").is_err(), "the master's own directory");
    assert!(read("[blobs]\nstore = \"s3://bucket\"\nendpoint_url = \"https://u:p@s3.example.org\"").is_err());
    assert!(read("[blobs]\nstore = \"s3://bucket\"\nidentifier = \"AKIA\"").is_err(), "a key id without its key");
}
