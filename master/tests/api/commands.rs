//! The commands: what they print on stdout and stderr, their exit codes, and which token they send.

use crate::fake::{Fake, TOKEN};
use rouse_master::api_token::ApiToken;
use rouse_master::broker::Authority;
use rouse_master::clock;
use rouse_master::core::audit::{Difference, DifferenceKind};
use rouse_master::core::build::BuildEnd;
use rouse_master::core::plan::ProviderKind;
use rouse_shared::HostId;
use rouse_shared::message::{Outcome, StepState};
use serde_json::{Value, json};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::process::{Output, Stdio};
use std::ptr::{null, null_mut};
use std::time::Duration;
use tokio::process::{Child, Command};

/// The program, with nothing in its environment that would tell it of another master.
pub fn rouse(fake: &Fake) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rouse"));
    command.env_clear().env("ROUSE_SERVER", fake.url("")).env("ROUSE_TOKEN", TOKEN);
    // Neither a proxy nor missing certificate authorities stand between a command and a master on loopback.
    command.env("http_proxy", "http://127.0.0.1:1").env("SSL_CERT_FILE", "/missing").env("SSL_CERT_DIR", "/missing");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// What a command that has been started ends with; fails if it does not end.
pub async fn end(child: Child) -> Output {
    tokio::time::timeout(Duration::from_secs(60), child.wait_with_output()).await.expect("in time").unwrap()
}

async fn run(fake: &Fake, args: &[&str]) -> (i32, String, String) {
    result_of(end(rouse(fake).args(args).spawn().unwrap()).await)
}

pub fn result_of(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().expect("an exit code"), text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn a_detached_build_prints_its_number_alone() {
    let fake = Fake::start().await;
    let (code, out, err) = run(&fake, &["build", "--detach", "--name", "x", "--where", "os=linux", "--", "make"]).await;
    assert_eq!((code, out.as_str(), err.as_str()), (0, "1\n", ""));
    let (code, out, _) = run(&fake, &["build", "--detach", "--json", "--priority", "-3", "--", "make", "-j4"]).await;
    let build: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &build["id"], &build["priority"]), (0, &json!("2"), &json!(-3)));
    assert_eq!(build["steps"][0]["run"], json!(["make", "-j4"]));
}

#[tokio::test]
async fn options_go_before_the_file() {
    let fake = Fake::start().await;
    fake.add_fleet();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("build.toml");
    std::fs::write(&file, "name = \"n\"\nworker = \"w1\"\nretries = 1\n[[step]]\nname = \"s\"\nrun = [\"true\"]\n")
        .unwrap();
    let file = file.to_str().unwrap();
    let (code, out, err) = run(&fake, &["build", "--detach", "--json", "--file", file]).await;
    assert_eq!(code, 0, "{err}");
    let build: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&build["wanted_worker"], &build["retries"], &build["name"]), (&json!("w1"), &json!(1), &json!("n")));
    let over =
        ["build", "--detach", "--json", "--file", file, "--where", "os=sun", "--retries", "0", "--timeout", "90"];
    let build: Value = serde_json::from_str(&run(&fake, &over).await.1).unwrap();
    assert_eq!((&build["wanted_worker"], &build["where"]), (&Value::Null, &json!({"os": "sun"})));
    assert_eq!((&build["retries"], &build["timeout"]), (&json!(0), &json!(90.0)));
    let part = dir.path().join("part.toml");
    std::fs::write(&part, "name = \"p\"\nenv = { A = \"1\" }\n").unwrap();
    let over = ["build", "--detach", "--json", "--file", part.to_str().unwrap(), "--env", "B=2", "--", "make"];
    let build: Value = serde_json::from_str(&run(&fake, &over).await.1).unwrap();
    assert_eq!((&build["name"], &build["steps"][0]["run"]), (&json!("p"), &json!(["make"])));
    let world = fake.world.lock().unwrap();
    let env = &world.builds.values().last().unwrap().build.spec.env;
    assert_eq!(env.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>(), ["A=1", "B=2"]);
}

#[tokio::test]
async fn every_way_to_fail_has_its_code() {
    let mut fake = Fake::start().await;
    fake.add(1, &["compile"]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("build.toml");
    std::fs::write(&file, "name = \"n\"\n\nwhat = 1\n[[step]]\nrun = [\"true\"]\n").unwrap();
    let file = file.to_str().unwrap();
    for (args, expected, word) in [
        (&["build"][..], 2, "--file"),
        (&["build", "--where", "os", "--", "make"], 2, "KEY=VALUE"),
        (&["build", "--where", "os=x", "--worker", "w", "--", "make"], 2, "cannot be used"),
        (&["build", "--file", "/nowhere/build.toml"], 2, "/nowhere/build.toml"),
        (&["build", "--file", file], 2, "line 3"),
        (&["build", "--worker", "nobody", "--detach", "--", "make"], 4, "worker"),
        (&["frobnicate"], 2, "frobnicate"),
        (&["builds", "--state", "asleep"], 2, "queued"),
        (&["show", "9"], 4, "no build 9"),
        (&["show", "x/../1"], 4, "no build"),
        (&["log", "9"], 4, "no build 9"),
        (&["log", "1", "--attempt", "2"], 4, "attempt"),
        (&["why", "9"], 4, "no build 9"),
        (&["cancel", "9"], 4, "no build 9"),
        (&["pause", "w9"], 4, "w9"),
        (&["terminate", "h9", "--yes"], 4, "no host h9"),
        (&["token", "rotate"], 4, "the token is set in the configuration: change master.api_token there"),
        (&["worker", "rotate", "w9"], 4, "w9"),
        (&["stop"], 2, "rouse terminate HOST"),
        (&["stop", "w1", "--now"], 2, "rouse drain WORKER"),
        (&["--server", "nonsense", "workers"], 2, "nonsense"),
        (&["--token", "hunter2", "workers"], 2, "ROUSE_TOKEN_FILE"),
        (&["cancel", "1", "--token=hunter2"], 2, "ROUSE_TOKEN_FILE"),
    ] {
        let (code, out, err) = run(&fake, args).await;
        assert_eq!((code, out.as_str()), (expected, ""), "{args:?}: {err}");
        assert!(err.contains(word), "{args:?}: {err}");
        assert!(!err.contains("hunter2"), "{args:?}: {err}");
    }
    fake.end().await;
    let (code, out, err) = run(&fake, &["builds"]).await;
    assert_eq!((code, out.as_str()), (3, ""));
    assert!(err.contains("cannot reach the master"), "{err}");
}

#[tokio::test]
async fn the_token_comes_from_the_environment_or_a_file() {
    let fake = Fake::start().await;
    fake.add(1, &["compile"]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
    let missing = dir.path().join("missing");
    for (token, path, expected, word) in [
        (Some("wrong"), Some(&file), 4, "token"),
        (None, Some(&missing), 2, "ROUSE_TOKEN_FILE"),
        (None, Some(&file), 0, "is being cancelled"),
    ] {
        let mut command = rouse(&fake);
        command.env_remove("ROUSE_TOKEN").args(["cancel", "1"]);
        if let Some(token) = token {
            command.env("ROUSE_TOKEN", token);
        }
        if let Some(path) = path {
            command.env("ROUSE_TOKEN_FILE", path);
        }
        let (code, out, err) = result_of(end(command.spawn().unwrap()).await);
        assert_eq!((code, out.as_str()), (expected, ""), "{err}");
        assert!(err.contains(word), "{err}");
    }
}

#[tokio::test]
async fn whoever_may_use_the_socket_needs_no_token() {
    let fake = Fake::start_with(true).await;
    fake.add(1, &["compile"]);
    let socket = format!("unix:{}", fake.socket().display());
    for (server, args, expected, word) in [
        (fake.url(""), ["cancel", "1"].as_slice(), 4, "token"),
        (fake.url(""), &["builds"], 4, "token"),
        (socket.clone(), &["cancel", "1"], 0, "is being cancelled"),
        (socket.clone(), &["builds", "--json"], 0, ""),
        (socket.clone(), &["audit", "--json"], 0, ""),
        (format!("{socket}x"), &["builds"], 3, "cannot reach the master at /"),
    ] {
        let mut command = rouse(&fake);
        command.env_remove("ROUSE_TOKEN").env("ROUSE_SERVER", &server).args(args);
        let (code, _, err) = result_of(end(command.spawn().unwrap()).await);
        assert_eq!(code, expected, "{server} {args:?}: {err}");
        assert!(err.contains(word), "{server} {args:?}: {err}");
    }
}

#[tokio::test]
async fn listings_are_tables_or_json() {
    let fake = Fake::start().await;
    for (command, none) in [("builds", "no such builds"), ("workers", "no workers"), ("hosts", "no hosts")] {
        let (code, out, err) = run(&fake, &[command]).await;
        assert_eq!((code, out.as_str()), (0, ""));
        assert!(err.contains(none), "{err}");
        assert_eq!(run(&fake, &[command, "--json"]).await, (0, "[]\n".to_owned(), String::new()));
    }
    fake.add(1, &["compile"]);
    fake.add(2, &["compile"]);
    fake.add_fleet();
    let (_, out, _) = run(&fake, &["builds"]).await;
    let lines: Vec<_> = out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(lines[0], "ID NAME STATE WORKER ATTEMPTS CREATED TOOK");
    assert!(lines[1].starts_with("2 unit tests queued - 0 "), "{out}");
    assert!(lines[2].starts_with("1 unit tests queued - 0 "), "{out}");
    let rows: Value = serde_json::from_str(&run(&fake, &["builds", "--limit", "1", "--json"]).await.1).unwrap();
    assert_eq!(
        rows,
        json!([{
            "id": "2", "name": "unit tests", "state": "queued", "worker": null, "attempts": 0, "priority": 0,
            "created": "2026-11-23T12:00:00.000Z", "started": null, "finished": null, "reason": null,
            "submitter": null,
        }])
    );
    let (_, out, err) = run(&fake, &["workers"]).await;
    assert!(out.starts_with("NAME  KIND    STATE  SINCE"), "{out}");
    assert_eq!(err, "");
    fake.add_mail();
    let (_, out, err) = run(&fake, &["workers"]).await;
    assert!(out.starts_with("NAME  KIND    STATE  SINCE"), "{out}");
    assert!(
        err.starts_with("rouse: 1 mail has been waiting for the relay for ") && err.ends_with(": connection refused\n"),
        "{err}"
    );
    assert_eq!(run(&fake, &["workers", "--json"]).await.2, "");
    let hosts: Value = serde_json::from_str(&run(&fake, &["hosts", "--json"]).await.1).unwrap();
    assert_eq!((&hosts[0]["id"], &hosts[0]["cost"]), (&json!("h0000000000000001"), &json!(0.096)));
    assert_eq!(run(&fake, &["drain", "w1"]).await.0, 0);
    assert_eq!(fake.world.lock().unwrap().operations, ["Drain w1"]);
}

#[tokio::test]
async fn more_builds_than_a_page_are_listed() {
    let fake = Fake::start().await;
    for id in 1..=1_205 {
        fake.add(id, &["compile"]);
    }
    let rows: Value = serde_json::from_str(&run(&fake, &["builds", "--limit", "1200", "--json"]).await.1).unwrap();
    let rows = rows.as_array().unwrap();
    assert_eq!((rows.len(), &rows[0]["id"], &rows[1_199]["id"]), (1_200, &json!("1205"), &json!("6")));
}

#[tokio::test]
async fn one_build_is_shown_with_its_evidence() {
    let fake = Fake::start().await;
    fake.add(1, &["compile", "test"]);
    fake.begin(1);
    fake.end_step(1, StepState::Exited(2), 5, false);
    fake.change(1, |status| {
        status.failed_hosts.push(rouse_master::core::build::FailedHost {
            host: rouse_shared::HostId("h00000000000000aa".to_owned()),
            worker: "w2".parse().unwrap(),
            at: crate::fake::NOON,
            why: "its agent never attached".to_owned(),
            console: Some("Kernel panic\n\u{1b}[31mnot syncing".to_owned()),
        });
    });
    let failure = "step 1 exited with 2".to_owned();
    fake.end_attempt(1, Outcome::Failure(failure.clone()), Some(BuildEnd::Failure(failure)));
    let (code, out, _) = run(&fake, &["show", "1"]).await;
    assert_eq!(code, 0);
    for expected in [
        "build 1  failure\n",
        "step 1 exited with 2",
        "any worker",
        "attempt 1 on w1, host h0000000000000001",
        "1.5s",
        "skipped",
        "never attached",
        "  | Kernel panic\n",
    ] {
        assert!(out.contains(expected), "{expected:?} is not in\n{out}");
    }
    assert!(!out.contains('\u{1b}'), "{out:?}");
    let build: Value = serde_json::from_str(&run(&fake, &["show", "1", "--json"]).await.1).unwrap();
    assert_eq!(build["evidence"][0]["why"], "its agent never attached");
    fake.world.lock().unwrap().why = "it waits for w1, which is asleep".to_owned();
    assert_eq!(run(&fake, &["why", "1"]).await, (0, "it waits for w1, which is asleep\n".to_owned(), String::new()));
}

#[tokio::test]
async fn completions_name_the_commands() {
    let fake = Fake::start().await;
    for shell in ["bash", "zsh", "fish"] {
        let (code, out, _) = run(&fake, &["completions", shell]).await;
        assert!(code == 0 && out.contains("workers") && out.contains("resume"), "{shell}");
    }
}

#[tokio::test]
async fn an_audit_reports_what_differs_and_what_was_fixed() {
    let fake = Fake::start().await;
    let (code, out, err) = run(&fake, &["audit"]).await;
    assert_eq!((code, out.as_str(), err.as_str()), (0, "", "rouse: nothing differs: 1 in the ledger, 2 listed\n"));
    fake.world.lock().unwrap().differences.push(Difference {
        kind: DifferenceKind::Foreign,
        provider: ProviderKind::Ec2,
        host: Some(HostId("h1".to_owned())),
        handle: Some("i-1".to_owned()),
        owner: Some("other".to_owned()),
        why: "because".to_owned(),
        done: false,
    });
    let (code, out, err) = run(&fake, &["audit", "--fix"]).await;
    let table =
        "KIND     PROVIDER  HANDLE  HOST  OWNER  DONE  WHY\nforeign  ec2       i-1     h1    other  no    because\n";
    assert_eq!((code, out.as_str()), (1, table), "{err}");
    assert_eq!(err, "rouse: the ledger and the providers differ still: 1 in the ledger, 2 listed\n");
    let (code, out, _) = run(&fake, &["audit", "--fix", "--adopt", "--json"]).await;
    let expected = json!({"clean": true, "hosts": 1, "listed": 2, "differences": [{
        "kind": "foreign", "provider": "ec2", "handle": "i-1", "host": "h1", "owner": "other", "why": "because",
        "done": true,
    }]});
    assert_eq!((code, serde_json::from_str::<Value>(&out).unwrap()), (0, expected));
    assert_eq!(run(&fake, &["audit", "--adopt"]).await.0, 2);
}

#[tokio::test]
async fn a_host_is_terminated_only_after_the_consequences_are_explained() {
    let fake = Fake::start().await;
    fake.add_fleet();
    let id = "h0000000000000001";
    let plan = "rouse: terminating host h0000000000000001 of worker w1 (ec2 i-0123, ready): build 1 runs on it and is \
                retried elsewhere (this does not count as one of its retries); the worker stays in use\n";
    let (code, out, err) = run(&fake, &["terminate", id]).await;
    assert_eq!((code, out.as_str()), (2, ""), "{err}");
    assert!(err.starts_with(plan) && err.contains("--yes"), "{err}");
    assert!(fake.world.lock().unwrap().operations.is_empty());
    let (code, out, err) = run(&fake, &["terminate", id, "--yes"]).await;
    assert_eq!((code, out.as_str()), (0, ""), "{err}");
    assert_eq!(err, format!("{plan}rouse: host {id} is being terminated\n"));
    assert_eq!(fake.world.lock().unwrap().operations, [format!("Terminate {id}")]);
}

/// A terminal: what a person types on, and what a program reads.
fn terminal() -> (File, OwnedFd) {
    let (mut person, mut program) = (-1, -1);
    // SAFETY: both numbers are ours to be written, and the null pointers ask for the usual settings.
    let made = unsafe { libc::openpty(&raw mut person, &raw mut program, null_mut(), null(), null()) };
    assert_eq!(made, 0, "a terminal can be had");
    // SAFETY: both have just been made, and nobody else has them.
    unsafe { (File::from_raw_fd(person), OwnedFd::from_raw_fd(program)) }
}

#[tokio::test]
async fn a_termination_that_is_answered_with_no_is_no_success() {
    let fake = Fake::start().await;
    fake.add_fleet();
    let id = "h0000000000000001";
    for (answer, expected, last) in [
        ("\n", 1, "nothing was done\n"),
        ("no\n", 1, "nothing was done\n"),
        ("y\n", 0, "host h0000000000000001 is being terminated\n"),
    ] {
        let (mut person, program) = terminal();
        person.write_all(answer.as_bytes()).unwrap();
        let child = rouse(&fake).args(["terminate", id]).stdin(program).spawn().unwrap();
        let (code, out, err) = result_of(end(child).await);
        assert_eq!((code, out.as_str()), (expected, ""), "{answer:?}: {err}");
        assert!(err.contains("terminate it? [y/N]") && err.ends_with(last), "{answer:?}: {err}");
        let done = if code == 0 { 1 } else { 0 };
        assert_eq!(fake.world.lock().unwrap().operations.len(), done, "{answer:?}");
    }
}

#[tokio::test]
async fn a_master_is_asked_over_tls_and_only_if_its_certificate_is_trusted() {
    let mut fake = Fake::start().await;
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::open(dir.path()).unwrap();
    authority.issue(&["localhost".to_owned()], clock::wall()).unwrap();
    fake.encrypt(&authority.issued()).await;
    let ca = authority.certificate().display().to_string();
    let ask = async |server: String, ca: Option<&str>| {
        let mut command = rouse(&fake);
        command.env("ROUSE_SERVER", server).args(["builds", "--json"]);
        match ca {
            Some(ca) => command.env("ROUSE_CA", ca),
            None => command.env_remove("SSL_CERT_FILE").env_remove("SSL_CERT_DIR"),
        };
        result_of(end(command.spawn().unwrap()).await)
    };
    let port = fake.address.port();
    let (code, out, err) = ask(format!("https://localhost:{port}"), Some(&ca)).await;
    assert_eq!((code, out.trim()), (0, "[]"), "{err}");
    let (code, _, err) = ask(format!("https://127.0.0.1:{port}"), Some(&ca)).await;
    assert!(code == 3 && err.contains("not for 127.0.0.1"), "{code} {err}");
    let (code, _, err) = ask(format!("https://localhost:{port}"), None).await;
    // Or the machine has no authorities at all.
    assert!(code != 0 && err.to_lowercase().contains("certificate"), "{code} {err}");
    let (code, _, err) = ask(format!("http://localhost:{port}"), None).await;
    assert!(code == 4 && err.contains("write https://"), "{code} {err}");
    let (code, _, err) = ask(format!("https://localhost:{port}"), Some("/missing.pem")).await;
    assert!(code == 2 && err.contains("--ca: cannot read /missing.pem"), "{code} {err}");
}

#[tokio::test]
async fn secrets_are_replaced() {
    let mut fake = Fake::start().await;
    fake.add(1, &["compile"]);
    fake.add_fleet();
    let (code, first, err) = run(&fake, &["worker", "rotate", "w1"]).await;
    let (_, second, _) = run(&fake, &["worker", "rotate", "w1"]).await;
    assert_eq!((code, first.trim().len(), first.lines().count()), (0, 32, 1), "{err}");
    assert_ne!(first, second);
    assert!(err.contains("worker w1 in rouse.toml") && !err.contains(first.trim()), "{err}");

    fake.end().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("api-token");
    std::fs::write(&file, TOKEN).unwrap();
    fake.token = ApiToken::open(&file, None).unwrap();
    fake.serve().await;
    let (code, out, err) = run(&fake, &["token", "rotate"]).await;
    assert_eq!((code, out.as_str()), (0, ""), "{err}");
    let token = std::fs::read_to_string(&file).unwrap();
    assert!(err.contains(file.to_str().unwrap()) && !err.contains(token.trim()), "{err}");
    // At once: the old one is worth nothing, the new one is.
    assert_eq!(run(&fake, &["pause", "w1"]).await.0, 4);
    let mut command = rouse(&fake);
    command.env("ROUSE_TOKEN", token.trim()).args(["pause", "w1"]);
    assert_eq!(result_of(end(command.spawn().unwrap()).await).0, 0);
}

#[tokio::test]
async fn a_build_is_repeated_with_everything_that_it_had() {
    let fake = Fake::start().await;
    fake.add_fleet();
    let first = ["build", "--detach", "--name", "x", "--env", "A=secret", "--where", "os=linux", "--", "make"];
    assert_eq!(run(&fake, &first).await.0, 0);
    let (code, out, err) = run(&fake, &["rerun", "1", "--detach"]).await;
    assert_eq!((code, out.as_str(), err.as_str()), (0, "2\n", ""));
    let (code, out, _) = run(&fake, &["rerun", "1", "--detach", "--json", "--on", "w1"]).await;
    let build: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &build["id"], &build["wanted_worker"]), (0, &json!("3"), &json!("w1")));
    {
        let world = fake.world.lock().unwrap();
        let spec = |id| world.builds[&rouse_shared::BuildId(id)].build.spec.clone();
        assert_eq!(spec(1), spec(2));
        assert_eq!((spec(1).env.clone(), spec(1).steps.clone()), (spec(3).env.clone(), spec(3).steps.clone()));
    }
    for (args, word) in [
        (["rerun", "9", "--detach"].as_slice(), "there is no build 9"),
        (&["rerun", "1", "--detach", "--on", "nobody"], "worker: there is no such worker"),
        (&["rerun", "1", "--on", "A b"], "worker"),
    ] {
        let (code, out, err) = run(&fake, args).await;
        assert_eq!((code, out.as_str()), (4, ""), "{args:?}: {err}");
        assert!(err.contains(word), "{args:?}: {err}");
    }
}

#[tokio::test]
async fn builds_are_cancelled_by_what_they_are_but_all_of_them_only_after_a_question() {
    let fake = Fake::start().await;
    for name in ["nightly arm", "nightly x86", "release"] {
        assert_eq!(run(&fake, &["build", "--detach", "--name", name, "--", "make"]).await.0, 0);
    }
    let live = || {
        let world = fake.world.lock().unwrap();
        world.builds.values().filter(|view| !view.state.is_final()).map(|view| view.build.id.0).collect::<Vec<_>>()
    };
    for all in [&["cancel", "--state", "queued"][..], &["cancel", "--name", "*"], &["cancel", "--name", "?**"]] {
        let (code, _, err) = run(&fake, all).await;
        assert_eq!(code, 2, "{err}");
        assert!(err.contains("3 builds") && err.contains("use --yes"), "{err}");
    }
    assert_eq!(live(), [1, 2, 3]);
    let (code, _, err) = run(&fake, &["cancel", "--state", "queued", "--name", "nightly*"]).await;
    assert_eq!((code, err.as_str()), (0, "rouse: build 1 is being cancelled\nrouse: build 2 is being cancelled\n"));
    assert_eq!(live(), [3]);
    let (code, _, err) = run(&fake, &["cancel", "--name", "nightly*"]).await;
    assert_eq!((code, err.as_str()), (0, "rouse: there are no such builds\n"));
    let (code, _, err) = run(&fake, &["cancel", "1", "3"]).await;
    assert_eq!(code, 4, "{err}");
    assert_eq!(live(), [0_u64; 0], "one that has ended does not keep the others: {err}");
    for wrong in [&["cancel"][..], &["cancel", "1", "--name", "x"], &["cancel", "--state", "success"]] {
        assert_eq!(run(&fake, wrong).await.0, 2, "{wrong:?}");
    }
}

#[tokio::test]
async fn waiting_ends_with_the_code_of_the_first_build_that_did_not_succeed() {
    let fake = Fake::start().await;
    for id in 1..=3 {
        fake.add(id, &["compile"]);
        fake.begin(id);
    }
    let waiting = rouse(&fake).args(["wait", "1", "2", "3", "--json"]).spawn().unwrap();
    fake.end_attempt(3, Outcome::Failure("no".to_owned()), Some(BuildEnd::Failure("no".to_owned())));
    fake.end_attempt(2, Outcome::Lost("gone".to_owned()), Some(BuildEnd::Lost("gone".to_owned())));
    fake.end_attempt(1, Outcome::Success, Some(BuildEnd::Success));
    let (code, out, err) = result_of(end(waiting).await);
    assert_eq!(code, 5, "{err}");
    let builds: Value = serde_json::from_str(&out).unwrap();
    let states: Vec<_> = builds.as_array().unwrap().iter().map(|build| build["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["success", "lost", "failure"]);
    assert!(err.contains("build 2: lost: gone\n"), "{err}");
    assert_eq!(run(&fake, &["wait", "1"]).await.0, 0);
    assert_eq!(run(&fake, &["wait", "1", "9"]).await.0, 4);
    assert_eq!(run(&fake, &["wait"]).await.0, 2);
}

#[tokio::test]
async fn builds_are_selected_by_time_name_and_outcome() {
    let fake = Fake::start().await;
    for id in 1..=3 {
        fake.add(id, &["compile"]);
    }
    fake.begin(2);
    fake.end_attempt(2, Outcome::Success, Some(BuildEnd::Success));
    let ids = async |args: &[&str]| {
        let args = [&["builds", "--json"], args].concat();
        let (code, out, err) = run(&fake, &args).await;
        assert_eq!(code, 0, "{args:?}: {err}");
        let builds: Value = serde_json::from_str(&out).unwrap();
        builds.as_array().unwrap().iter().map(|b| b["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>().concat()
    };
    // All were accepted at noon.
    assert_eq!(ids(&["--since", "2026-11-23T12:00:00Z"]).await, "321");
    assert_eq!(ids(&["--since", "2026-11-23"]).await, "321");
    assert_eq!(ids(&["--since", "100w"]).await, "321");
    assert_eq!(ids(&["--since", "2026-11-23T12:00:00.001Z"]).await, "");
    assert_eq!(ids(&["--until", "2026-11-23T12:00:00Z"]).await, "");
    assert_eq!(ids(&["--until", "2026-11-24"]).await, "321");
    assert_eq!(ids(&["--outcome", "success"]).await, "2");
    assert_eq!(ids(&["--name", "unit*"]).await, "321");
    assert_eq!(ids(&["--name", "unit"]).await, "");
    for wrong in [
        &["builds", "--since", "yesterday"][..],
        &["builds", "--since", "2026"],
        &["builds", "--outcome", "queued"],
        &["builds", "--outcome", "lost", "--state", "lost"],
    ] {
        assert_eq!(run(&fake, wrong).await.0, 2, "{wrong:?}");
    }
}
