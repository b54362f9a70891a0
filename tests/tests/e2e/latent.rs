//! Latent workers with process hosts: hosts are started, run builds, become idle and are terminated, and leave evidence
//! if they fail.

use crate::shared;
use rouse_tests::harness::{Master, runs, text};
use std::time::Duration;

fn host_pid(master: &Master, worker: &str) -> i32 {
    let hosts = master.hosts(worker);
    text(&hosts[0]["handle"]).split(':').next().unwrap().parse().unwrap()
}

#[test]
fn a_host_wakes_works_idles_and_goes() {
    let master = shared();
    assert_eq!(master.worker("idle")["state"], "asleep");
    let said = master.rouse(&["build", "--worker", "idle", "--", "echo", "awake"]).ended(0);
    assert_eq!(said.text(), "awake\n");
    let hosts = master.rouse(&["hosts", "--json"]).ended(0).json();
    let host = hosts.as_array().unwrap().iter().find(|host| host["worker"] == "idle").unwrap();
    assert_eq!((text(&host["provider"]), text(&host["state"])), ("process".to_owned(), "ready".to_owned()));
    assert!(host["id"].is_string() && host["created"].is_string() && host["cost"].is_null(), "{host}");
    let pid = host_pid(master, "idle");
    // The next build finds it awake.
    master.rouse(&["build", "--worker", "idle", "--", "true"]).ended(0);
    assert_eq!(host_pid(master, "idle"), pid);
    master.until_within(Duration::from_secs(15), "it goes when idle", || master.hosts("idle").is_empty());
    assert!(!runs(pid));
    master.until_worker("idle", "asleep");
}

#[test]
fn a_host_ends_at_once_or_never_as_its_timeout_says() {
    let master = shared();
    master.rouse(&["build", "--worker", "at-once", "--", "true"]).ended(0);
    master.until_within(Duration::from_secs(10), "it goes at once", || master.hosts("at-once").is_empty());

    let stays = master.worker("stays");
    assert_eq!(stays["kind"], "latent");
    master.until("a negative timeout keeps it awake, or a build wakes it", || {
        master.worker("stays")["state"] == "idle" || {
            master.rouse(&["build", "--worker", "stays", "--", "true"]).ended(0);
            true
        }
    });
    master.until_worker("stays", "idle");
    let pid = host_pid(master, "stays");
    // One that is idle later than it, and for a second, goes before.
    master.rouse(&["build", "--worker", "a-second", "--", "true"]).ended(0);
    master.until("the other one ends", || master.hosts("a-second").is_empty());
    assert_eq!(host_pid(master, "stays"), pid);
    master.rouse(&["drain", "stays"]).ended(0);
    master.until("it is stopped", || master.hosts("stays").is_empty());
    assert!(!runs(pid));
    let id = master.detach(&["--worker", "stays", "--", "true"]);
    assert!(master.rouse(&["why", &id]).ended(0).text().contains("paused"));
    master.rouse(&["cancel", &id]).ended(0);
}

#[test]
fn a_host_is_retired_after_max_uses() {
    let master = shared();
    let mut hosts = Vec::new();
    for _ in 0..3 {
        let id = master.detach(&["--worker", "used-up", "--", "true"]);
        master.until_state(&id, "success");
        hosts.push(text(&master.show(&id)["tries"][0]["host"]));
    }
    assert_eq!(hosts[0], hosts[1]);
    assert_ne!(hosts[1], hosts[2]);
}

#[test]
fn a_template_wakes_as_many_as_builds_need_and_keeps_min_idle() {
    let master = shared();
    let trace = master.trace("many");
    // Each waits until all three run: so three hosts are awake at once.
    let script =
        format!("echo $ROUSE_WORKER >> {0}; until [ $(wc -l < {0}) -ge 3 ]; do sleep 0.05; done", trace.path());
    let ids: Vec<_> = (0..3).map(|_| master.detach(&["--where", "pool=many", "--", "sh", "-c", &script])).collect();
    ids.iter().for_each(|id| master.until_state(id, "success"));
    let mut workers = trace.lines();
    workers.sort();
    assert_eq!(workers, ["many-1", "many-2", "many-3"]);
    let awake = || (1..=3).map(|n| master.hosts(&format!("many-{n}")).len()).sum::<usize>();
    master.until("they go", || awake() == 0);

    let ready = || (1..=3).filter(|n| master.worker(&format!("ready-{n}"))["state"] == "idle").count();
    master.until("one is kept without work", || ready() == 1);
}

#[test]
fn a_host_that_cannot_start_costs_no_build_and_leaves_evidence() {
    let master = shared();
    let id = master.detach(&["--worker", "no-agent", "--", "true"]);
    let evidence = || master.show(&id)["evidence"].as_array().map_or(0, Vec::len);
    for failures in 1..=4 {
        master.until("its host fails", || evidence() >= failures);
        let why = master.why(&id);
        assert!(why.contains("/nowhere/rouse-agent"), "{why}");
        // An operator need not wait.
        master.rouse(&["resume", "no-agent"]).ended(0);
    }
    let shown = master.show(&id);
    assert!(text(&shown["evidence"][0]["why"]).contains("/nowhere/rouse-agent"), "{shown}");
    assert_eq!(shown["attempts"].as_u64(), Some(0), "{shown}");
    assert!(["queued", "starting"].contains(&master.state(&id).as_str()), "{shown}");
    master.rouse(&["cancel", &id]).ended(0);
}

#[test]
fn a_build_waits_no_longer_than_its_queue_timeout() {
    let master = shared();
    let file = master.dir.join("impatient.toml");
    std::fs::write(&file, "worker = \"no-agent\"\nqueue_timeout = \"2s\"\n[[step]]\nrun = [\"true\"]\n").unwrap();
    let said = master.rouse(&["build", "--file", file.to_str().unwrap()]).ended(5);
    assert!(said.err.contains("its queue_timeout"), "{}", said.err);
}

#[test]
fn a_host_that_never_attaches_is_stopped_and_leaves_what_it_printed() {
    let master = shared();
    let id = master.detach(&["--worker", "mute", "--", "true"]);
    master.until("its host runs", || master.hosts("mute").first().is_some_and(|host| host["handle"].is_string()));
    let pid = host_pid(master, "mute");
    assert!(runs(pid));
    master.until("it is given up", || master.show(&id)["evidence"].as_array().is_some_and(|all| !all.is_empty()));
    master.until("it is gone", || !runs(pid) && master.hosts("mute").is_empty());
    let shown = master.rouse(&["show", &id]).ended(0).text();
    assert!(shown.contains("did not attach") && shown.contains("the network is unreachable"), "{shown}");
    master.rouse(&["cancel", &id]).ended(0);
}
