//! Which workers are reported as missing, when, and which time never counts.

use super::super::event::StartError;
use super::*;

pub(super) fn watched(worker: WorkerPlan) -> WorkerPlan {
    WorkerPlan { notify_on_missing: vec!["ops@example.org".to_owned()], ..worker }
}

/// A core with one standing worker, attached.
fn attached() -> Bench {
    let mut bench = Bench::quietly(plan(vec![watched(standing("s"))]));
    bench.hello("s", "a", 1, "password", Vec::new());
    bench.hush();
    bench
}

#[test]
fn a_missing_worker_is_reported_once_and_once_when_it_is_back() {
    let mut bench = attached();
    bench.pass(35 + 300 + 60);
    bench.sent();
    bench.pass(4_000);
    bench.hello("s", "b", 1, "password", Vec::new());
    bench.pass(60);
    bench.sent();
    // A second absence is reported again.
    bench.pass(35 + 300 + 60);
    bench.check("missing_standing");
}

#[test]
fn one_that_never_attached_is_counted_from_the_start_and_not_twice_by_the_next_master() {
    let mut bench = Bench::quietly(plan(vec![watched(standing("s"))]));
    bench.pass(299);
    bench.restart();
    bench.pass(360);
    bench.sent();
    bench.restart();
    bench.pass(4_000);
    bench.hello("s", "a", 1, "password", Vec::new());
    bench.check("missing_never_attached");
}

#[test]
fn the_brokers_absence_does_not_count() {
    let mut bench = attached();
    bench.event("broker down", Event::BrokerDown);
    bench.pass(4_000);
    bench.event("broker up", Event::BrokerUp);
    bench.pass(299);
    bench.hello("s", "b", 1, "password", Vec::new());
    bench.pass(30);
    bench.check("missing_broker_away");
}

#[test]
fn the_masters_absence_does_not_count() {
    let mut bench = attached();
    bench.pass(300);
    bench.hush();
    bench.now = bench.now + secs(4_000);
    bench.restart();
    bench.pass(299);
    bench.hello("s", "b", 1, "password", Vec::new());
    bench.pass(30);
    bench.check("missing_master_away");
}

#[test]
fn a_reload_changes_how_long_is_too_long() {
    let mut bench = attached();
    bench.pass(35 + 100);
    bench.hush();
    bench.configure("patient", plan(vec![WorkerPlan { missing_timeout: secs(600), ..watched(standing("s")) }]));
    bench.pass(300);
    bench.configure("impatient", plan(vec![WorkerPlan { missing_timeout: secs(450), ..watched(standing("s")) }]));
    bench.pass(60);
    bench.check("missing_reload");
}

#[test]
fn a_link_that_comes_and_goes_keeps_no_host_for_ever() {
    let mut bench = Bench::quietly(plan(vec![watched(latent("l"))]));
    bench.submit_with(on("l"), 1);
    bench.started("l");
    bench.hush();
    for _ in 0..6 {
        bench.pass(200);
        bench.event("broker down", Event::BrokerDown);
        bench.event("broker up", Event::BrokerUp);
    }
    bench.pass(100);
    bench.check("missing_flapping");
}

#[test]
fn a_detached_agent_without_a_lease_is_back_with_its_next_message() {
    let worker = WorkerPlan { lease: None, ..watched(standing("s")) };
    let mut bench = Bench::quietly(plan(vec![worker]));
    bench.hello("s", "a", 1, "password", Vec::new());
    bench.hush();
    bench.event("detached", Event::Detached { worker: name("s"), queue: Some("s/a/1".to_owned()) });
    bench.pass(300 + 10);
    bench.heartbeat("s", 1);
    bench.pass(60);
    bench.check("missing_without_lease");
}

#[test]
fn a_worker_without_recipients_goes_missing_without_a_mail() {
    let mut bench = Bench::quietly(plan(vec![standing("s")]));
    bench.pass(400);
    bench.check("missing_without_recipients");
}

#[test]
fn a_latent_worker_is_reported_missing_once_for_all_of_its_hosts() {
    let mut bench = Bench::quietly(plan(vec![watched(latent("l"))]));
    bench.submit_with(on("l"), 1);
    bench.started("l");
    bench.hush();
    bench.pass(300);
    let host = bench.host("l");
    bench.event("console", Event::Console { host, text: None });
    bench.gone("l");
    bench.pass(60);
    bench.sent();
    // The next one does not either.
    bench.started("l");
    bench.pass(300);
    bench.gone("l");
    bench.pass(120);
    bench.wake("l");
    bench.pass(60);
    bench.check("missing_latent");
}

#[test]
fn a_worker_whose_hosts_do_not_start_is_reported_once() {
    let mut bench = Bench::quietly(plan(vec![watched(latent("l"))]));
    bench.submit_with(on("l"), 1);
    bench.hush();
    for _ in 0..3 {
        let host = bench.host("l");
        let result = Err(StartError::Rejected("no such image".to_owned()));
        bench.event("start ended: rejected", Event::StartEnded { host, number: 0, result });
        bench.pass(100);
    }
    bench.check("missing_failed_starts");
}

#[test]
fn a_host_that_powered_itself_off_for_our_outage_is_blamed_by_nobody() {
    for (outage, golden) in [(true, "missing_excused_broker"), (false, "missing_excused_master")] {
        let mut bench = Bench::quietly(plan(vec![watched(latent("l"))]));
        bench.submit_with(on("l"), 1);
        bench.started("l");
        bench.hush();
        if outage {
            bench.event("broker down", Event::BrokerDown);
            bench.pass(310);
            bench.event("broker up", Event::BrokerUp);
        } else {
            bench.now = bench.now + secs(310);
            bench.restart();
        }
        bench.pass(20);
        let host = bench.host("l");
        bench.event(
            "gone",
            Event::HostGone { host: host.clone(), why: "it was powered off".to_owned(), reclaimed: false },
        );
        bench.event("console", Event::Console { host, text: None });
        bench.gone("l");
        bench.check(golden);
    }
}

#[test]
fn a_host_that_dies_early_is_blamed_whatever_the_broker_does() {
    let mut bench = Bench::quietly(plan(vec![watched(latent("l"))]));
    bench.submit_with(on("l"), 1);
    bench.started("l");
    bench.hush();
    bench.event("broker down", Event::BrokerDown);
    bench.event("broker up", Event::BrokerUp);
    bench.pass(20);
    let host = bench.host("l");
    bench.event("gone", Event::HostGone { host: host.clone(), why: "kernel panic".to_owned(), reclaimed: false });
    bench.event("console", Event::Console { host, text: None });
    bench.check("missing_not_excused");
}
