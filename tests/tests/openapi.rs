//! The API of a running master compared with its own document: schemathesis makes requests of all kinds from
//! `/openapi.json`, and checks every answer. The programs of the master's workers are not agents, so no submitted build
//! runs anywhere.
#![allow(clippy::unwrap_used)]

use rouse_tests::harness::{Keeper, Master, standing, text};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[test]
#[ignore = "keeps a broker for tests, which start it"]
fn keeper() {
    Keeper::here();
}

#[test]
fn every_answer_fits_the_document() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = Command::new(tests.join("venv")).arg("api").stderr(Stdio::inherit()).output().unwrap();
    assert!(python.status.success(), "tests/venv api failed");
    let python = PathBuf::from(String::from_utf8(python.stdout).unwrap().trim());
    let dir = tempfile::tempdir().unwrap();
    let silent = dir.path().join("silent");
    fs::write(&silent, "#!/bin/sh\nexec sleep 3600\n").unwrap();
    fs::set_permissions(&silent, Permissions::from_mode(0o755)).unwrap();
    let process = |agent: &str| format!("[worker.process]\nagent = \"{agent}\"");
    let workers = [
        standing("standing", ""),
        standing("latent", &process("/bin/true")),
        standing("awake", &format!("min_idle = 1\n{}", process(silent.to_str().unwrap()))),
        standing("lost", &format!("min_idle = 1\n{}", process(silent.to_str().unwrap()))),
    ];
    let master = Master::start("openapi", &format!("[limits]\nmax_hosts = 3\n{}", workers.concat()));
    master.until("there are hosts to end", || ["awake", "lost"].iter().all(|worker| !master.hosts(worker).is_empty()));
    let place = text(&master.get("/api/places").json()[0]["id"]);
    let checked = Command::new(python.with_file_name("schemathesis"))
        .arg("--config-file")
        .arg(tests.join("api/schemathesis.toml"))
        .args(["run", "--no-color", "--checks", "all", "--header"])
        .arg(format!("Authorization: Bearer {}", master.token()))
        .arg(format!("http://{}/openapi.json", master.http))
        .current_dir(&master.dir)
        .env("NO_PROXY", "127.0.0.1")
        .env("no_proxy", "127.0.0.1")
        .env("ROUSE_TEST_HOST", text(&master.hosts("awake")[0]["id"]))
        .env("ROUSE_TEST_LOST_HOST", text(&master.hosts("lost")[0]["id"]))
        .env("ROUSE_TEST_PLACE", place)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&checked.stdout);
    println!("{said}");
    assert!(
        checked.status.success(),
        "{}\nthe master's log:\n{}",
        String::from_utf8_lossy(&checked.stderr),
        master.log(),
    );
}
