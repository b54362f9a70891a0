//! A standing worker: what builds print and how they end, what steps see, what the lists show.

use crate::shared;
use rouse_tests::harness::{DEADLINE, text};
use std::fs;

#[test]
fn output_comes_to_the_byte_and_the_exit_code_is_the_builds() {
    let master = shared();
    let _agent = master.agent("talk");
    let said = master.rouse(&["build", "--worker", "talk", "--", "printf", "a\\000b\\r\\n\\377 no newline"]).ended(0);
    assert_eq!(said.out, b"a\0b\r\n\xff no newline");
    assert!(said.err.contains("success"), "{}", said.err);

    let said = master.rouse(&["build", "--worker", "talk", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    let said = said.ended(1);
    assert_eq!(said.text(), "out\nerr\n");
    assert!(said.err.contains("exit code 7"), "{}", said.err);

    let said = master.rouse(&["build", "--worker", "talk", "--", "/no/such/program"]).ended(1);
    assert!(said.err.contains("/no/such/program"), "{}", said.err);
    let said = master.rouse(&["build", "--worker", "nobody", "--", "true"]).ended(4);
    assert!(said.err.contains("nobody"), "{}", said.err);
    master.rouse(&["show", "9999999"]).ended(4);
    master.rouse(&["build", "--worker", "talk"]).ended(2);
    master.rouse(&["build", "--worker", "talk", "--file", "/no/such/file"]).ended(2);
    let nobody = format!("http://{}", rouse_tests::harness::free_address());
    master.rouse(&["workers", "--server", &nobody]).ended(3);
}

#[test]
fn steps_see_their_own_variables_and_nothing_of_the_agents() {
    let master = shared();
    let _agent = master.agent("facts");
    let file = master.dir.join("facts.toml");
    let build = "name = \"facts\"\nwhere = { os = \"plan9\" }\nenv = { BOTH = \"build\", OF_BUILD = \"1\" }\n\
                 [[step]]\nname = \"environment\"\nrun = \"env\"\nenv = { BOTH = \"step\" }\n\
                 [[step]]\nname = \"second\"\nrun = [\"sh\", \"-c\", \"echo $BOTH; pwd; ls -A\"]\n";
    fs::write(&file, build).unwrap();
    let id = master.detach(&["--file", file.to_str().unwrap(), "--env", "MORE=of it"]);
    master.until_state(&id, "success");
    let environment = master.rouse(&["log", &id, "--step", "1"]).ended(0).text();
    let lines: Vec<&str> = environment.lines().collect();
    for expected in [
        "ROUSE_WORKER=facts",
        "ROUSE_ATTEMPT=1",
        "ROUSE_PROP_OS=plan9",
        "ROUSE_PROP_DISK_KIND=fast",
        "BOTH=step",
        "OF_BUILD=1",
        "MORE=of it",
        format!("ROUSE_BUILD={id}").as_str(),
    ] {
        assert!(lines.contains(&expected), "no {expected} in {environment}");
    }
    let usual = ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TMPDIR", "PWD", "SHLVL", "_", "OLDPWD"];
    let own = ["BOTH", "OF_BUILD", "MORE", "ROUSE_WORKER", "ROUSE_ATTEMPT", "ROUSE_BUILD"];
    for name in lines.iter().filter_map(|line| line.split_once('=')).map(|(name, _)| name) {
        let known = usual.contains(&name) || own.contains(&name) || name.starts_with("ROUSE_PROP_");
        assert!(known, "{name} is not for steps: {environment}");
    }
    let second = master.rouse(&["log", &id, "--step", "2"]).ended(0).text();
    let mut second = second.lines();
    assert_eq!(second.next(), Some("build"));
    assert!(second.next().unwrap().starts_with(master.dir.join("work-facts").to_str().unwrap()));
    assert_eq!(second.next(), None, "the work directory is fresh");
    assert_eq!(master.rouse(&["log", &id]).ended(0).text().lines().count(), lines.len() + 2);
}

#[test]
fn listings_have_the_fields_that_scripts_rely_on() {
    let master = shared();
    let _agent = master.agent("lists");
    let id = master.detach(&["--worker", "lists", "--name", "my name", "--", "true"]);
    assert!(id.parse::<u64>().is_ok(), "the id alone: {id:?}");
    master.until_state(&id, "success");
    let builds = master.rouse(&["builds", "--json", "--limit", "1000"]).ended(0).json();
    let build = builds.as_array().unwrap().iter().find(|build| build["id"] == id.as_str()).unwrap();
    assert_eq!((text(&build["name"]), text(&build["state"])), ("my name".to_owned(), "success".to_owned()));
    assert_eq!((text(&build["worker"]), build["attempts"].as_u64()), ("lists".to_owned(), Some(1)));
    for time in ["created", "started", "finished"] {
        assert!(text(&build[time]).ends_with('Z') && text(&build[time]).contains('T'), "{build}");
    }
    let ids: Vec<u64> = builds.as_array().unwrap().iter().map(|b| text(&b["id"]).parse().unwrap()).collect();
    assert!(ids.is_sorted_by(|a, b| a > b), "newest first: {ids:?}");
    let failed = master.rouse(&["builds", "--json", "--state", "failure"]).ended(0).json();
    assert!(failed.as_array().unwrap().iter().all(|build| build["state"] == "failure"));

    let workers = master.rouse(&["workers", "--json"]).ended(0).json();
    let worker = workers.as_array().unwrap().iter().find(|worker| worker["name"] == "lists").unwrap();
    assert_eq!((text(&worker["kind"]), text(&worker["state"])), ("standing".to_owned(), "idle".to_owned()));
    assert_eq!((worker["running"].as_u64(), worker["max_builds"].is_null()), (Some(0), true));
    assert!(worker["host"].is_null() && worker["agent_version"].is_string(), "{worker}");
    assert!(master.rouse(&["hosts", "--json"]).ended(0).json().is_array());

    // What people read, and one object for scripts.
    let shown = master.rouse(&["show", &id]).ended(0).text();
    assert!(shown.contains("my name") && shown.contains("success"), "{shown}");
    assert!(master.rouse(&["why", &id]).ended(0).text().contains("succeeded"));
    let followed = master.rouse(&["build", "--worker", "lists", "--json", "--", "sh", "-c", "exit 3"]).ended(1).json();
    assert_eq!(followed["tries"][0]["steps"][0]["exit_code"], 3, "{followed}");
}

#[test]
fn no_more_builds_at_once_than_max_builds_and_the_highest_priority_first() {
    let master = shared();
    let _agents = (master.agent("pair"), master.agent("single"));
    let trace = master.trace("pair");
    let script = format!("echo begin >> {0}; sleep 0.4; echo end >> {0}", trace.path());
    let ids: Vec<_> = (0..5).map(|_| master.detach(&["--worker", "pair", "--", "sh", "-c", &script])).collect();
    ids.iter().for_each(|id| master.until_state(id, "success"));
    let (mut now, mut most) = (0_i32, 0);
    for line in trace.lines() {
        now += if line == "begin" { 1 } else { -1 };
        most = most.max(now);
    }
    assert_eq!((most, trace.lines().len()), (2, 10), "{:?}", trace.lines());

    let trace = master.trace("single");
    let gate = master.dir.join("single-gate");
    let wait = format!("until [ -e {} ]; do sleep 0.05; done", gate.display());
    let first = master.detach(&["--worker", "single", "--", "sh", "-c", &wait]);
    master.until_state(&first, "running");
    let mut ids = Vec::new();
    for (name, priority) in [("low", "-5"), ("old", "0"), ("young", "0"), ("high", "7")] {
        let script = format!("echo {name} >> {}", trace.path());
        ids.push(master.detach(&["--worker", "single", "--priority", priority, "--", "sh", "-c", &script]));
    }
    let why = master.rouse(&["why", &ids[0]]).ended(0).text();
    assert!(why.contains("single") && why.contains("busy"), "{why}");
    fs::write(gate, "").unwrap();
    ids.iter().for_each(|id| master.until_state(id, "success"));
    assert_eq!(trace.lines(), ["high", "old", "young", "low"]);
}

#[test]
fn steps_stop_at_failure_but_those_that_always_run_and_at_their_limits() {
    let master = shared();
    let _agent = master.agent("steps");
    let post = |steps: &str| {
        let answer = master.post("/api/builds", &format!("{{\"worker\": \"steps\", {steps}}}"));
        assert_eq!(answer.status, 201, "{answer:?}");
        let id = text(&answer.json()["id"]);
        master.until_within(DEADLINE, "it fails", || master.state(&id) == "failure");
        let shown = master.show(&id);
        let steps = shown["tries"][0]["steps"].as_array().unwrap().clone();
        (steps.iter().map(|s| text(&s["state"])).collect::<Vec<_>>(), steps)
    };
    let (states, _) =
        post(r#""step": [{"run": "false"}, {"run": "echo never"}, {"run": "echo cleaning up", "always": true}]"#);
    assert_eq!(states, ["failure", "skipped", "success"]);
    let (states, steps) = post(r#""step": [{"run": "sleep 100", "timeout": 1}, {"run": "true", "always": true}]"#);
    assert_eq!(states, ["timed_out", "success"]);
    assert!(steps[0]["duration"].as_f64().unwrap() < 5.0, "{steps:?}");
    let (states, _) = post(r#""step": [{"run": "echo one; sleep 100", "silence": "1s"}]"#);
    assert_eq!(states, ["silent"]);
    let (states, _) = post(r#""timeout": 1, "step": [{"run": "echo one"}, {"run": "sleep 100"}]"#);
    assert_eq!(states[0], "success");
    assert!(states[1] == "timed_out" || states[1] == "stopped", "{states:?}");

    // Below the build's own directory, also if that takes a link of the build's making.
    let (states, steps) =
        post(r#""step": [{"run": "ln -s / out"}, {"run": "touch made-outside", "workdir": "out/tmp"}]"#);
    assert_eq!(states, ["success", "not_started"], "{steps:?}");
    let answer = master.post("/api/builds", r#"{"worker": "steps", "step": [{"run": "true", "workdir": "../up"}]}"#);
    assert_eq!(answer.status, 400);
    assert!(text(&answer.json()).contains("workdir"), "{answer:?}");
}

#[test]
fn a_paused_worker_takes_nothing_and_a_drained_one_ends_its_builds_first() {
    let master = shared();
    let (_held, mut drained) = (master.agent("held"), master.agent("stopped"));
    for order in ["pause", "drain"] {
        master.rouse(&[order, "held"]).ended(0);
        master.until_worker("held", "paused");
        let id = master.detach(&["--worker", "held", "--", "true"]);
        let why = master.why(&id);
        assert!(why.contains("paused"), "{why}");
        assert_eq!(master.state(&id), "queued");
        master.rouse(&["resume", "held"]).ended(0);
        master.until_state(&id, "success");
    }
    master.rouse(&["pause", "nobody"]).ended(4);

    let gate = master.dir.join("stopped-gate");
    let wait = format!("until [ -e {} ]; do sleep 0.05; done", gate.display());
    let id = master.detach(&["--worker", "stopped", "--", "sh", "-c", &wait]);
    master.until_state(&id, "running");
    master.rouse(&["drain", "stopped"]).ended(0);
    master.until_worker("stopped", "draining");
    assert!(drained.try_wait().is_none(), "its build continues");
    fs::write(gate, "").unwrap();
    master.until_state(&id, "success");
    master.until_worker("stopped", "paused");
    assert!(drained.try_wait().is_none(), "its machine is not the master's to end");
}
