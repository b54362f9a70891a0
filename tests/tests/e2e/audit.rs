//! The audit: orphans are found and terminated, foreign machines only if a user requests it.

use rouse_tests::harness::{Master, Process, latent, runs, text};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;

/// A process that bears this stamp and does nothing.
fn tagged_process(master: &Master, owner: &str, host: &str) -> Process {
    let mut command = Command::new("sleep");
    command.arg("1000").env("ROUSE_OWNER", owner).env("ROUSE_HOST", host);
    Process::start(command, &master.dir, host)
}

/// Runs the check for Nagios: its exit code and its line.
fn check(master: &Master) -> (i32, String) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib/nagios/check_rouse_audit");
    let mut command = Command::new(script);
    command.arg("-r").arg(rouse_tests::harness::program("rouse")).arg("-s").arg(format!("http://{}", master.http));
    command.arg("-t").arg(master.dir.join("state/api-token"));
    let output = command.output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

fn find<'a>(report: &'a Value, host: &str) -> &'a Value {
    let all = report["differences"].as_array().unwrap();
    all.iter().find(|difference| difference["host"] == host).unwrap_or(&Value::Null)
}

#[test]
fn orphans_are_found_and_only_ours_are_terminated() {
    let master = Master::start("audit", &latent("sleeper", "build_wait_timeout = -1"));
    let id = fs::read_to_string(master.dir.join("state/identity")).unwrap();
    master.rouse(&["build", "--worker", "sleeper", "--", "true"]).ended(0);
    assert!(master.rouse(&["audit"]).ended(0).err.contains("nothing differs: 1 in the ledger, 1 listed"));
    let (code, line) = check(&master);
    assert_eq!(code, 0, "{line}");
    assert!(line.starts_with("OK - 1 hosts in the ledger, 1 listed | orphans=0;"), "{line}");

    let foreign = tagged_process(&master, "audit/0123456789abcdef", "hdead02");
    let (code, line) = check(&master);
    assert_eq!(code, 1, "{line}");
    let orphan = tagged_process(&master, &format!("audit/{}", id.trim()), "hdead01");
    // Of no concern: another master's, and one whose host id would lead out of the directory of hosts.
    let other = tagged_process(&master, &format!("audit2/{}", id.trim()), "hdead03");
    let crooked = {
        let mut command = Command::new("sleep");
        command.arg("1000").env("ROUSE_OWNER", format!("audit/{}", id.trim())).env("ROUSE_HOST", "../../state");
        Process::start(command, &master.dir, "crooked")
    };
    let (code, line) = check(&master);
    assert_eq!(code, 2, "{line}");
    assert!(line.contains("CRITICAL - 1 orphans, 1 foreign") && line.contains("orphans=1;"), "{line}");

    let report = master.rouse(&["audit", "--json"]).ended(1).json();
    assert_eq!((&report["clean"], report["differences"].as_array().unwrap().len()), (&Value::Bool(false), 2));
    let found = find(&report, "hdead01");
    assert_eq!((text(&found["kind"]), &found["done"]), ("orphan".to_owned(), &Value::Bool(false)));
    assert!(text(&found["handle"]).starts_with(&format!("{}:", orphan.pid())), "{found}");
    let found = find(&report, "hdead02");
    assert_eq!((text(&found["kind"]), text(&found["owner"])), ("foreign".to_owned(), "0123456789abcdef".to_owned()));
    assert!(runs(orphan.pid()) && runs(foreign.pid()), "an audit without --fix touches nothing");

    let said = master.rouse(&["audit", "--fix"]).ended(1).text();
    assert!(said.contains("hdead01") && said.contains("hdead02"), "{said}");
    assert!(!runs(orphan.pid()) && runs(foreign.pid()));
    master.rouse(&["audit", "--adopt"]).ended(2);
    assert_eq!(master.post("/api/audit", r#"{"adopt": true}"#).status, 400);
    master.rouse(&["audit", "--fix", "--adopt"]).ended(0);
    assert!(!runs(foreign.pid()));
    assert!(runs(other.pid()) && runs(crooked.pid()));
    assert!(master.rouse(&["audit"]).ended(0).err.contains("1 in the ledger, 1 listed"), "the host itself stays");

    master.kill();
    let (code, line) = check(&master);
    assert_eq!(code, 3, "{line}");
    assert!(line.starts_with("UNKNOWN"), "{line}");
}
