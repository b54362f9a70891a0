//! What the manifests promise together: no dependency needs a newer Rust than `rust-version` says.
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::process::Command;

/// Of `1.89` or `1.89.0`, numbers that can be compared.
fn version(text: &str) -> [u32; 3] {
    let mut parts = text.split('.').map(|part| part.parse().unwrap_or_else(|_| panic!("{text} is no version of Rust")));
    [(); 3].map(|()| parts.next().unwrap_or(0))
}

/// Those of `cargo metadata` that need a newer Rust than `ours`.
fn newer(metadata: &Value, ours: &str) -> Vec<String> {
    let packages = metadata["packages"].as_array().unwrap();
    let needs = packages.iter().filter_map(|package| Some((package, package["rust_version"].as_str()?)));
    let newer = needs.filter(|(_, needed)| version(needed) > version(ours));
    newer.map(|(package, needed)| format!("{} {} needs {needed}", package["name"], package["version"])).collect()
}

#[test]
fn no_dependency_needs_a_newer_rust() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--offline", "--format-version", "1", "--all-features"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(metadata["packages"].as_array().unwrap().len() > 100);
    let ours = env!("CARGO_PKG_RUST_VERSION");
    assert_eq!(newer(&metadata, ours), [""; 0], "rust-version is {ours}: raise it, or take an older release of these");
    assert_ne!(newer(&metadata, "1.31"), [""; 0], "no dependency says which Rust it needs");
}

#[test]
fn versions_are_compared_as_numbers() {
    assert_eq!(version("1.89"), version("1.89.0"));
    assert!(version("1.100") > version("1.89.1") && version("1.89.1") > version("1.89"));
}
