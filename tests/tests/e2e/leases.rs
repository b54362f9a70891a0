//! A build whose agent dies or freezes: it runs again, once, and never in two places.

use crate::shared;
use rouse_tests::harness::{Master, Process, Trace, processes_with, text};

/// A step that traces its beginning and its end, and each tenth of a second between; the first attempt lasts for long.
fn script(trace: &Trace) -> String {
    format!(
        "echo begin $ROUSE_ATTEMPT >> {0}; echo attempt $ROUSE_ATTEMPT; \
         if [ $ROUSE_ATTEMPT = 1 ]; then for i in $(seq 600); do echo tick >> {0}; sleep 0.1; done; fi; \
         echo end $ROUSE_ATTEMPT >> {0}",
        trace.path()
    )
}

/// Begins a build on the first of two workers. Its id, and the worker that has it.
fn begin(master: &Master, pool: &str, trace: &Trace) -> (String, String) {
    let id = master.detach(&["--where", &format!("pool={pool}"), "--", "sh", "-c", &script(trace)]);
    master.until("it runs", || trace.lines().len() > 3);
    let worker = text(&master.show(&id)["tries"][0]["worker"]);
    (id, worker)
}

/// The first attempt left no end, and nothing of it came after the second's beginning.
fn ran_one_after_the_other(trace: &Trace) {
    let lines = trace.lines();
    let second = lines.iter().position(|line| line == "begin 2").unwrap();
    assert_eq!(lines[0], "begin 1");
    assert!(lines[1..second].iter().all(|line| line == "tick"), "{lines:?}");
    assert_eq!(lines[second..], ["begin 2", "end 2"]);
}

#[test]
fn a_build_whose_agent_is_killed_runs_again_elsewhere() {
    let master = shared();
    let trace = master.trace("killed");
    let mut agents: Vec<Process> = ["killed-1", "killed-2"].map(|name| master.agent(name)).into();
    let (id, worker) = begin(master, "killed", &trace);
    let mut agent = agents.remove(usize::from(worker == "killed-2"));
    agent.kill();
    // The steps go with the agent, and not only with its lease.
    master.until("nothing of it runs", || processes_with(&trace.path()).is_empty());
    let beats = trace.lines().len();
    assert_eq!(trace.lines().last().unwrap(), "tick");
    master.until_state(&id, "success");
    ran_one_after_the_other(&trace);
    assert_eq!(trace.lines().len(), beats + 2);
    let shown = master.show(&id);
    assert_eq!((shown["tries"][0]["state"].clone(), shown["attempts"].as_u64()), ("lost".into(), Some(2)), "{shown}");
    assert_ne!(shown["tries"][1]["worker"], worker.as_str());
    assert_eq!(master.rouse(&["log", &id]).ended(0).text(), "attempt 2\n");
    assert_eq!(master.rouse(&["log", &id, "--attempt", "1"]).ended(0).text(), "attempt 1\n");
}

#[test]
fn a_frozen_agents_step_ends_at_its_lease_and_the_build_runs_elsewhere() {
    let master = shared();
    let trace = master.trace("frozen");
    let mut agents: Vec<Process> = ["frozen-1", "frozen-2"].map(|name| master.agent(name)).into();
    let (id, worker) = begin(master, "frozen", &trace);
    let agent = agents.remove(usize::from(worker == "frozen-2"));
    agent.signal(libc::SIGSTOP);
    master.until_state(&id, "success");
    ran_one_after_the_other(&trace);
    assert!(processes_with(&trace.path()).is_empty());
    assert_ne!(master.show(&id)["tries"][1]["worker"], worker.as_str());
    // It thaws, learns that it was given up, and works again.
    agent.signal(libc::SIGCONT);
    master.until_worker(&worker, "idle");
    master.rouse(&["build", "--worker", &worker, "--", "true"]).ended(0);
    ran_one_after_the_other(&trace);
}

#[test]
fn a_killed_agent_that_is_started_again_frees_its_build_at_once() {
    let master = shared();
    let trace = master.trace("reborn");
    let mut agent = master.agent("reborn");
    let id = master.detach(&["--worker", "reborn", "--", "sh", "-c", &script(&trace)]);
    master.until("it runs", || trace.lines().len() > 3);
    agent.kill();
    let _agent = master.begin_agent("reborn", &[]);
    // Its lease is far longer than this.
    master
        .until_within(std::time::Duration::from_secs(20), "it runs again", || trace.lines().contains(&"end 2".into()));
    master.until_state(&id, "success");
    ran_one_after_the_other(&trace);
}

#[test]
fn a_build_without_retries_is_lost_with_its_agent() {
    let master = shared();
    let trace = master.trace("losing");
    let mut agent = master.agent("losing");
    let script = script(&trace);
    let following = master.begin_rouse(&["build", "--worker", "losing", "--retries", "0", "--", "sh", "-c", &script]);
    master.until("it runs", || trace.lines().len() > 3);
    agent.kill();
    let said = following.wait(rouse_tests::harness::DEADLINE).ended(5);
    assert!(said.err.contains("lost"), "{}", said.err);
    assert_eq!(said.text(), "attempt 1\n");
}

#[test]
fn a_build_whose_latent_host_is_killed_runs_again_on_a_new_host_at_once() {
    let master = shared();
    let trace = master.trace("dying");
    let id = master.detach(&["--worker", "dying", "--", "sh", "-c", &script(&trace)]);
    master.until("it runs", || trace.lines().len() > 3);
    let host = master.hosts("dying").remove(0);
    let pid = text(&host["handle"]).split(':').next().unwrap().parse().unwrap();
    // SAFETY: only numbers are passed.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
    // The host's end is proof; its lease is far longer than this.
    master
        .until_within(std::time::Duration::from_secs(20), "it runs again", || trace.lines().contains(&"end 2".into()));
    master.until_state(&id, "success");
    ran_one_after_the_other(&trace);
    let shown = master.show(&id);
    assert_eq!(shown["tries"][0]["host"], host["id"]);
    assert_ne!(shown["tries"][1]["host"], host["id"]);
}
