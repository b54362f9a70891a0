//! The API of a live master against its own document: schemathesis makes requests of all kinds from `/openapi.json`, and
//! checks every answer. The master's workers have no agents, so that no submitted build runs.
#![allow(clippy::unwrap_used)]

use rouse_tests::harness::{Master, standing};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[test]
fn every_answer_fits_the_document() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = Command::new(tests.join("venv")).arg("api").stderr(Stdio::inherit()).output().unwrap();
    assert!(python.status.success(), "tests/venv api failed");
    let python = PathBuf::from(String::from_utf8(python.stdout).unwrap().trim());
    let workers = [standing("standing", ""), standing("latent", "[worker.process]\nagent = \"/bin/true\"")].concat();
    let master = Master::start("openapi", &format!("[limits]\nmax_hosts = 1\n{workers}"));
    let checked = Command::new(python.with_file_name("schemathesis"))
        .arg("--config-file")
        .arg(tests.join("api/schemathesis.toml"))
        .args(["run", "--no-color", "--checks", "all", "--header"])
        .arg(format!("Authorization: Bearer {}", master.token()))
        .arg(format!("http://{}/openapi.json", master.http))
        .current_dir(&master.dir)
        .env("NO_PROXY", "127.0.0.1")
        .env("no_proxy", "127.0.0.1")
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
