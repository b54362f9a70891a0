//! Agents that may not or cannot run builds as they should: as root, without limits, beside processes that cannot be ended.

use super::*;
use rouse_shared::message::{Cgroups, Limits, NEEDS_RUN_AS};

fn why(bench: &Bench, build: u64) -> String {
    bench.core.why(bench.now, BuildId(build)).unwrap().sentence
}

fn attempts(bench: &Bench, build: u64) -> usize {
    bench.core.builds[&BuildId(build)].status.attempts.len()
}

/// An agent that is root, of an image that names no user.
fn root() -> Facts {
    Facts { needs_run_as: true, ..Facts::default() }
}

fn as_user(mut plan: WorkerPlan) -> WorkerPlan {
    plan.run_as = Some("build".to_owned());
    plan
}

#[test]
fn an_agent_that_is_root_attaches_once_a_user_is_named() {
    let mut bench = Bench::quietly(plan(vec![standing("s")]));
    bench.facts = root();
    bench.submit(on("s"));
    bench.hello("s", "a", 1, "password", Vec::new());
    assert!(bench.core.session_id(&name("s")).is_none());
    assert!(why(&bench, 1).contains(NEEDS_RUN_AS), "{}", why(&bench, 1));
    assert_eq!(attempts(&bench, 1), 0);
    // "root" is a user like any other, if it is written.
    bench.configure("with run_as", plan(vec![as_user(standing("s"))]));
    bench.hello("s", "a", 2, "password", Vec::new());
    assert_eq!(attempts(&bench, 1), 1);
    // Without it again, what runs goes on, and nothing more begins.
    bench.submit(on("s"));
    bench.configure("without run_as", plan(vec![standing("s")]));
    bench.hello("s", "a", 3, "password", vec![picture(1, 1, 1, 0, None)]);
    bench.report("s", picture(1, 1, 2, 0, Some(Outcome::Success)));
    bench.pass(5);
    assert!(why(&bench, 2).contains(NEEDS_RUN_AS), "{}", why(&bench, 2));
    assert_eq!(attempts(&bench, 2), 0);
    bench.configure("with run_as", plan(vec![as_user(standing("s"))]));
    assert_eq!(attempts(&bench, 2), 1);
}

#[test]
fn a_host_whose_agent_is_root_is_not_started_again_and_again() {
    let mut bench = Bench::quietly(plan(vec![latent("l")]));
    bench.facts = root();
    bench.submit(on("l"));
    bench.wake("l");
    assert!(why(&bench, 1).contains(NEEDS_RUN_AS), "{}", why(&bench, 1));
    let host = bench.host("l");
    // Its agent powers it off.
    bench.event("host gone", Event::HostGone { host, why: "it is stopped".to_owned(), reclaimed: false });
    bench.gone("l");
    bench.pass(1);
    assert_eq!((attempts(&bench, 1), bench.core.hosts.len()), (0, 0));
    assert!(why(&bench, 1).contains("the next start is in"), "{}", why(&bench, 1));
}

/// Sends a heartbeat of a machine on which processes of a step run that cannot be ended.
fn unclean(bench: &mut Bench, worker: &str) {
    let session = bench.session(worker);
    let unclean = Some("process 7 is still running".to_owned());
    let message = ToMaster::Heartbeat(Heartbeat { session, seq: 1, vitals: Vitals::default(), unclean });
    bench.agent("unclean heartbeat", worker, message);
}

#[test]
fn a_standing_worker_that_is_not_clean_waits_for_its_next_agent() {
    let mut bench = Bench::quietly(plan(vec![standing("s")]));
    bench.submit_with(on("s"), 1);
    bench.hello("s", "a", 1, "password", Vec::new());
    bench.report("s", picture(1, 1, 1, 0, None));
    bench.report("s", picture(1, 1, 2, 0, Some(Outcome::Lost("process 7 is still running".to_owned()))));
    unclean(&mut bench, "s");
    bench.heartbeat("s", 2);
    bench.pass(5);
    assert_eq!(attempts(&bench, 1), 1);
    assert!(why(&bench, 1).contains("process 7 is still running"), "{}", why(&bench, 1));
    assert!(bench.core.worker_views(bench.now)[0].unfit.is_some());
    let secret = bench.secret.clone();
    bench.hello("s", "b", 1, &secret, Vec::new());
    assert_eq!(attempts(&bench, 1), 2);
}

#[test]
fn a_host_that_is_not_clean_is_retired() {
    let mut bench = Bench::quietly(plan(vec![latent("l")]));
    bench.submit(on("l"));
    bench.wake("l");
    bench.report("l", picture(1, 1, 1, 0, None));
    unclean(&mut bench, "l");
    let host = bench.host("l");
    assert_eq!(bench.core.hosts[&host].host.state, HostState::Draining);
    // Once is enough, also for a host that would be suspended.
    unclean(&mut bench, "l");
    bench.report("l", picture(1, 1, 2, 0, Some(Outcome::Lost("process 7 is still running".to_owned()))));
    bench.drained("l", 1);
    assert_eq!(bench.core.hosts[&host].host.state, HostState::Terminating);
}

#[test]
fn limits_that_an_agent_does_not_enforce_are_reported() {
    let mut limited = standing("s");
    limited.limits = Limits { memory: Some(1 << 30), ..Limits::default() };
    let mut bench = Bench::quietly(plan(vec![limited]));
    bench.submit(on("s"));
    bench.hello("s", "a", 1, "password", Vec::new());
    let missing = "limits of memory are not enforced";
    assert!(why(&bench, 1).contains(missing), "{}", why(&bench, 1));
    let of = |bench: &Bench, build| bench.core.builds[&BuildId(build)].status.attempts[0].unenforced.clone();
    assert!(of(&bench, 1).is_some_and(|text| text.starts_with(missing)));
    bench.report("s", picture(1, 1, 1, 0, Some(Outcome::Success)));
    bench.facts.cgroups = Some(Cgroups { memory: true, pids: true, cpu: true });
    bench.hello("s", "a", 2, "password", Vec::new());
    bench.submit(on("s"));
    assert_eq!(of(&bench, 2), None);
}
