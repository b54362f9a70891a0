//! Invalid requests are refused with the reason, and have no effect on others.

use crate::shared;
use rouse_tests::harness::{DEADLINE, Process, holds_within, program};
use std::process::Command;

#[test]
fn bad_builds_are_refused_with_field_and_reason() {
    let master = shared();
    for (body, field) in [
        (r#"{"worker": "talk", "step": [{"run": "true"}], "colour": "red"}"#, "colour"),
        (r#"{"worker": "talk", "step": []}"#, "step"),
        (r#"{"worker": "nobody", "step": [{"run": "true"}]}"#, "worker"),
        (r#"{"worker": "talk", "step": [{"run": []}]}"#, "run"),
        (r#"{"worker": "talk", "timeout": "soon", "step": [{"run": "true"}]}"#, "timeout"),
        (r#"{"worker": "talk""#, "parsing"),
        ("[]", "build"),
    ] {
        let answer = master.post("/api/builds", body);
        assert_eq!(answer.status, 400, "{body}: {answer:?}");
        assert!(String::from_utf8_lossy(&answer.body).contains(field), "{body}: {answer:?}");
    }
    let body = r#"{"worker": "talk", "step": [{"run": "true"}]}"#;
    for token in [None, Some("wrong")] {
        let answer = rouse_tests::harness::request(master.http, "POST", "/api/builds", token, body).unwrap();
        assert_eq!(answer.status, 401);
    }
}

#[test]
fn a_second_master_on_the_same_state_is_refused_and_the_first_is_unharmed() {
    let master = shared();
    let mut command = Command::new(program("rouse"));
    command.args(["master", "-c"]).arg(master.config());
    let said = Process::start(command, &master.dir, "second").wait(DEADLINE).ended(2);
    assert!(said.err.contains("another master") && said.err.contains("state_dir"), "{}", said.err);
    assert_eq!(master.get("/healthz").status, 200);
}

#[test]
fn a_wrong_password_is_refused_and_both_sides_log_it() {
    let master = shared();
    let agent = master.begin_agent("wrong", &[("ROUSE_AGENT_PASSWORD", "guessed")]);
    master.until("the master logs it", || {
        master.log().lines().any(|line| line.contains("wrong password for worker wrong"))
    });
    assert!(holds_within(DEADLINE, || agent.err().to_lowercase().contains("refused")), "{}", agent.err());
    assert!(!agent.err().contains("no worker") && !agent.err().contains("guessed"), "{}", agent.err());
    assert_eq!(master.worker("wrong")["state"], "offline");
    // An unknown name gets the same answer.
    let unknown = master.begin_agent("unheard-of", &[]);
    master.until("the master logs it", || master.log().contains("there is no worker unheard-of"));
    assert!(holds_within(DEADLINE, || unknown.err().to_lowercase().contains("refused")), "{}", unknown.err());
}

#[test]
fn of_two_agents_with_one_name_the_second_is_refused_and_both_sides_log_it() {
    let master = shared();
    let _first = master.agent("twins");
    let second = master.begin_agent_in("twins", "twins-second", &[]);
    assert!(holds_within(DEADLINE, || second.err().contains("another agent")), "{}", second.err());
    master.until("the master logs it", || {
        let log = master.log();
        log.lines().any(|line| line.contains("claims to be twins") && line.contains("refused"))
    });
    let refused = &master.worker("twins")["refused"];
    assert!(refused["reason"].as_str().is_some_and(|why| why.contains("another agent")), "{refused}");
    let said = master.rouse(&["build", "--worker", "twins", "--", "pwd"]).ended(0);
    assert!(said.text().contains("work-twins/"), "the first has it: {}", said.text());
}
