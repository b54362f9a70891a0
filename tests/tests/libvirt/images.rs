//! The image that `vmbuilder` builds: the same twice, and fit.

use rouse_tests::harness::program;
use rouse_tests::virt::{cache, outside, repository, run};
use sha2::{Digest as _, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Everything that goes into the image and is ours.
const PARTS: [&str; 5] = [
    "contrib/libvirt/vmbuilder",
    "contrib/systemd/rouse-agent.service",
    "images/agent.toml",
    "images/disk",
    "images/install",
];

fn build(out: &Path) {
    let mut command = Command::new(repository().join("contrib/libvirt/vmbuilder"));
    command.args(["--size", "2G", "--agent"]).arg(program("rouse-agent")).arg(out);
    run(outside(&mut command));
}

/// The image, built twice where it is not kept from before.
fn image() -> PathBuf {
    let mut hash = Sha256::new();
    for part in PARTS {
        hash.update(Sha256::digest(fs::read(repository().join(part)).unwrap()));
    }
    hash.update(fs::read(program("rouse-agent")).unwrap());
    let hash: [u8; 32] = hash.finalize().into();
    let name: String = hash[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    let dir = cache().join("images");
    let kept = dir.join(format!("{name}.qcow2"));
    if !kept.is_file() {
        // Only the newest is kept: each has some hundred megabytes.
        fs::remove_dir_all(&dir).ok();
        fs::create_dir_all(&dir).unwrap();
        let (first, second) = (dir.join("first.qcow2"), dir.join("second.qcow2"));
        build(&first);
        build(&second);
        let manifest = |of: &str| fs::read_to_string(dir.join(format!("{of}.qcow2.manifest"))).unwrap();
        let (one, other) = (manifest("first"), manifest("second"));
        let differs = one.lines().zip(other.lines()).find(|(a, b)| a != b);
        assert!(one == other, "the same sources give the same files; the first that differs: {differs:?}");
        assert!(one.contains("./usr/local/bin/rouse-agent") && one.lines().count() > 1_000);
        fs::remove_file(second).unwrap();
        fs::rename(first, &kept).unwrap();
    }
    kept
}

#[test]
fn the_built_image_is_fit() {
    if !crate::may_run() {
        return;
    }
    let _alone = crate::alone();
    let image = image();
    let said = run(Command::new(repository().join("images/check")).arg(&image));
    assert!(said.contains("switches itself off") && said.contains("is fit"), "{said}");
}

#[test]
fn an_image_without_an_agent_is_not_fit() {
    if !crate::may_run() {
        return;
    }
    let _alone = crate::alone();
    let image = rouse_tests::virt::image(&rouse_tests::virt::Image::of_kind("true"));
    let output = Command::new(repository().join("images/check")).arg(&image).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("not fit: the agent did not say who it is") && said.contains("guest: done"), "{said}");
}
