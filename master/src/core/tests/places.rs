//! Places that refuse all orders, alternatives without capacity, and builds that wait for either.

use super::super::event::Reply;
use super::super::event::{Listing, StartError, UnlistedPlace};
use super::super::view::PlaceState;
use super::*;

/// Somebody is told of everything.
fn mailed(workers: Vec<WorkerPlan>) -> Plan {
    let mut plan = plan(workers);
    plan.mail.extra_recipients.insert("ops@example.org".to_owned());
    plan
}

fn host_state(bench: &Bench, worker: &str) -> HostState {
    bench.core.hosts[&bench.host(worker)].host.state
}

/// A worker whose hosts are made in this place, of a template of its own.
fn there(worker: &str, place: &str) -> WorkerPlan {
    let mut plan = latent(worker);
    if let Some(latent) = &mut plan.latent {
        (latent.place, latent.template, latent.image) = (place.into(), worker.to_owned(), worker.into());
    }
    plan
}

fn fails(bench: &mut Bench, worker: &str, error: StartError) {
    let host = bench.host(worker);
    let number = bench.core.hosts[&host].host.launch.as_ref().unwrap().number;
    bench.event(&format!("start ended: {error:?}"), Event::StartEnded { host, number, result: Err(error) });
}

fn why(bench: &Bench, build: u64) -> String {
    bench.core.why(bench.now, BuildId(build)).map_or(String::new(), |why| why.sentence)
}

fn state_of(bench: &Bench, place: &str) -> PlaceState {
    bench.core.place_views().into_iter().find(|view| view.name == place).unwrap().state
}

fn refusal() -> StartError {
    StartError::Place("AuthFailure: AWS does not know the credentials".to_owned())
}

#[test]
fn a_place_that_refuses_for_an_hour_costs_time_and_no_build_and_no_other_place() {
    let mut bench = Bench::quietly(mailed(vec![there("a", "east"), there("b", "west")]));
    bench.submit(on("a"));
    let mut pauses = Vec::new();
    let end = bench.now + secs(3_600);
    while bench.now < end {
        fails(&mut bench, "a", refusal());
        assert_eq!(state_of(&bench, "east"), PlaceState::Pausing);
        assert!(why(&bench, 1).contains("no hosts have been started in east (ec2)"), "{}", why(&bench, 1));
        let from = bench.now;
        while bench.core.workers[&name("a")].host.is_none() {
            bench.pass(1);
        }
        pauses.push(bench.now.since(from).as_secs());
    }
    assert!(pauses.iter().all(|pause| *pause <= 301), "{pauses:?}");
    assert!(pauses[0] <= 7 && pauses.iter().rev().take(3).all(|pause| *pause > 200), "they double: {pauses:?}");
    assert_eq!(state_of(&bench, "west"), PlaceState::Unknown);
    bench.submit(on("b"));
    assert_eq!(host_state(&bench, "b"), HostState::Ordered, "it waits for nobody");
    bench.started("a");
    assert_eq!(state_of(&bench, "east"), PlaceState::Healthy);
    assert_eq!(bench.core.workers[&name("a")].record.failures, 0, "no worker is to blame");
    assert!(bench.core.builds[&BuildId(1)].status.failed_hosts.is_empty());
    bench.pass(60);
    let told = |what: &str| bench.text.matches(&format!("for ops@example.org: {what}")).count();
    assert_eq!((told("east pauses"), told("east serves again")), (1, 1), "{}", bench.text);
}

#[test]
fn a_short_pause_is_worth_no_mail() {
    let mut bench = Bench::quietly(mailed(vec![there("a", "east")]));
    bench.submit(on("a"));
    fails(&mut bench, "a", refusal());
    bench.pass(30);
    bench.started("a");
    bench.pass(150);
    assert!(!bench.text.contains("news"), "{}", bench.text);
}

#[test]
fn a_place_that_cannot_be_listed_pauses_until_it_is_listed() {
    let mut bench = Bench::quietly(plan(vec![there("a", "east"), there("b", "west")]));
    let listed = |bench: &mut Bench, unlisted: Vec<UnlistedPlace>| {
        let result = Ok(Listing { machines: Vec::new(), unlisted });
        bench.event("listed", Event::Listed { provider: ProviderKind::Ec2, result });
    };
    let east = || UnlistedPlace { place: Some("east".to_owned()), why: "connection refused".to_owned() };
    listed(&mut bench, vec![east()]);
    assert_eq!((state_of(&bench, "east"), state_of(&bench, "west")), (PlaceState::Pausing, PlaceState::Healthy));
    bench.submit(on("a"));
    bench.submit(on("b"));
    assert_eq!(host_state(&bench, "b"), HostState::Ordered);
    assert!(bench.core.workers[&name("a")].host.is_none());
    bench.hush();
    bench.pass(7);
    assert!(bench.text.contains("list ec2"), "it is probed: {}", bench.text);
    listed(&mut bench, vec![east()]);
    listed(&mut bench, Vec::new());
    assert_eq!(state_of(&bench, "east"), PlaceState::Healthy);
    assert!(bench.core.workers[&name("a")].host.is_some());
}

#[test]
fn while_a_place_pauses_one_host_at_a_time_is_its_probe() {
    let mut bench = Bench::quietly(plan(["a", "b", "c"].map(|worker| there(worker, "east")).into()));
    for worker in ["a", "b", "c"] {
        bench.submit(on(worker));
    }
    fails(&mut bench, "a", refusal());
    fails(&mut bench, "b", refusal());
    fails(&mut bench, "c", refusal());
    bench.pass(6);
    let starting = |bench: &Bench| bench.core.hosts.len();
    assert_eq!(starting(&bench), 1);
    let probe = ["a", "b", "c"].into_iter().find(|w| bench.core.workers[&name(w)].host.is_some()).unwrap();
    bench.started(probe);
    assert_eq!(starting(&bench), 3, "the others follow at once");
}

#[test]
fn a_pause_survives_the_master() {
    let mut bench = Bench::quietly(plan(vec![there("a", "east")]));
    bench.submit(on("a"));
    fails(&mut bench, "a", refusal());
    bench.restart();
    assert_eq!(state_of(&bench, "east"), PlaceState::Pausing);
    assert!(bench.core.workers[&name("a")].host.is_none());
    bench.pass(6);
    assert!(bench.core.workers[&name("a")].host.is_some());
}

#[test]
fn an_alternative_without_room_rests_longer_each_time() {
    let mut bench = Bench::quietly(plan(vec![there("a", "east")]));
    bench.submit(on("a"));
    let mut rests = Vec::new();
    for _ in 0..4 {
        fails(&mut bench, "a", StartError::Capacity("no room".to_owned()));
        let from = bench.now;
        while bench.core.workers[&name("a")].host.is_none() {
            bench.pass(1);
        }
        rests.push(bench.now.since(from).as_secs());
    }
    assert_eq!(rests, [120, 900, 1_800, 1_800]);
    assert_eq!(state_of(&bench, "east"), PlaceState::Healthy, "it answers");
    assert_eq!(bench.core.workers[&name("a")].record.failures, 0);
}

#[test]
fn a_machine_that_the_cloud_takes_back_leads_to_the_next_alternative() {
    let mut bench = Bench::quietly(plan(vec![there("a", "east")]));
    bench.submit(on("a"));
    bench.started("a");
    let host = bench.host("a");
    bench.hush();
    let why = "Server.SpotInstanceTermination".to_owned();
    bench.event("gone", Event::HostGone { host: host.clone(), why, reclaimed: true });
    bench.event("console", Event::Console { host, text: None });
    bench.gone("a");
    assert!(bench.text.contains("without type 0"), "{}", bench.text);
    assert_eq!(bench.core.workers[&name("a")].record.failures, 0);
    assert!(bench.core.builds[&BuildId(1)].status.failed_hosts.is_empty());
}

#[test]
fn a_quota_that_is_in_the_way_everywhere_pauses_the_place() {
    let mut bench = Bench::quietly(plan(vec![there("a", "east")]));
    bench.alternatives = 2;
    bench.submit(on("a"));
    fails(&mut bench, "a", StartError::Quota("limit of cores".to_owned()));
    assert_eq!(state_of(&bench, "east"), PlaceState::Unknown, "there is another alternative");
    fails(&mut bench, "a", StartError::Quota("limit of cores".to_owned()));
    assert_eq!(state_of(&bench, "east"), PlaceState::Pausing);
}

#[test]
fn a_template_without_room_does_not_end_the_longer_pause_of_a_worker_for_ever() {
    let of_one_template = |worker: &str| {
        let mut plan = there(worker, "east");
        plan.latent.as_mut().unwrap().template = "t".to_owned();
        plan
    };
    let mut bench = Bench::quietly(plan(vec![of_one_template("a"), of_one_template("b")]));
    bench.submit(on("a"));
    let pause = |bench: &Bench| bench.core.workers[&name("a")].record.backoff_until.map(|at| at.since(bench.now));
    while pause(&bench).is_none_or(|pause| pause < secs(200)) {
        if bench.core.workers[&name("a")].host.is_some() {
            fails(&mut bench, "a", StartError::Transient("try again".to_owned()));
        }
        bench.pass(1);
    }
    bench.submit(on("b"));
    fails(&mut bench, "b", StartError::Capacity("full".to_owned()));
    let pause = pause(&bench).unwrap();
    assert!(pause > secs(150), "it stays: {pause:?}");
    bench.pass(pause.as_secs() + 1);
    assert!(bench.core.workers[&name("a")].host.is_some(), "its build is not forgotten: {}", bench.text);
}

#[test]
fn what_every_worker_of_a_place_is_refused_is_the_places() {
    let mut bench = Bench::quietly(plan(vec![there("a", "east"), there("b", "east"), there("c", "west")]));
    let rejected = || StartError::Rejected("no such network".to_owned());
    bench.submit(on("a"));
    fails(&mut bench, "a", rejected());
    assert_eq!(state_of(&bench, "east"), PlaceState::Healthy, "it answers");
    bench.submit(on("b"));
    fails(&mut bench, "b", rejected());
    assert_eq!(state_of(&bench, "east"), PlaceState::Pausing);
    assert!(why(&bench, 1).contains("each of its 2 workers is refused a host"), "{}", why(&bench, 1));
}

#[test]
fn a_build_waits_until_its_queue_timeout_and_no_longer() {
    let mut bench = Bench::quietly(Plan { queue_timeout: Some(secs(7_200)), ..plan(vec![there("a", "east")]) });
    bench.submit(on("a"));
    let begun = bench.now;
    while bench.core.builds.contains_key(&BuildId(1)) {
        if bench.core.workers[&name("a")].host.is_some() {
            fails(&mut bench, "a", StartError::Rejected("no such image".to_owned()));
        }
        bench.pass(10);
        assert!(bench.now.since(begun).as_secs() < 8_000, "for ever");
    }
    assert!(bench.now.since(begun).as_secs() >= 7_200);
    let status = bench.disk.values().find_map(|record| match record {
        Record::Build(BuildId(1), status) => Some(status.clone()),
        _ => None,
    });
    let status = status.unwrap();
    let Some(super::super::build::BuildEnd::Lost(why)) = &status.end else { panic!("{:?}", status.end) };
    assert!(why.contains("its queue_timeout") && why.contains("no such image"), "{why}");
    assert_eq!(status.failed_hosts.len(), 5, "the newest few");
}

#[test]
fn running_does_not_count_for_the_queue_timeout() {
    let mut bench = Bench::quietly(Plan { queue_timeout: Some(secs(100)), ..plan(vec![there("a", "east")]) });
    bench.submit(on("a"));
    bench.wake("a");
    bench.report("a", picture(1, 1, 1, 0, None));
    for seq in 1..=50 {
        bench.pass(10);
        bench.heartbeat("a", seq);
    }
    assert!(bench.core.builds[&BuildId(1)].status.end.is_none());
}

#[test]
fn templates_are_woken_by_preference_and_then_by_the_rule_among_equals() {
    let of = |worker: &str, template: &str, prefer: i32, price: f64| {
        let mut plan = there(worker, "east");
        if let Some(latent) = &mut plan.latent {
            (latent.template, latent.prefer, latent.price) = (template.to_owned(), prefer, Some(price));
        }
        plan
    };
    let workers = || {
        vec![
            of("a1", "a", 0, 3.0),
            of("a2", "a", 0, 3.0),
            of("b1", "b", 0, 1.0),
            of("b2", "b", 0, 1.0),
            of("z1", "z", 5, 9.0),
        ]
    };
    let woken = |among: AmongEquals| {
        let mut bench = Bench::quietly(Plan { among_equals: among, ..plan(workers()) });
        let mut order = Vec::new();
        for _ in 0..4 {
            bench.submit(anywhere());
            let new = bench.core.hosts.values().map(|l| l.host.worker.to_string()).find(|w| !order.contains(w));
            order.extend(new);
        }
        (order, why(&bench, 1))
    };
    let (order, why) = woken(AmongEquals::Pack);
    assert_eq!(order, ["z1", "a1", "a2", "b1"]);
    assert!(why.contains("chosen by prefer = 5"), "{why}");
    assert_eq!(woken(AmongEquals::Spread).0, ["z1", "a1", "b1", "a2"]);
    assert_eq!(woken(AmongEquals::Cheapest).0, ["z1", "b1", "b2", "a1"]);
}

fn forget(bench: &mut Bench, worker: &str) -> String {
    let host = bench.host(worker);
    bench.hush();
    bench.event(
        "forget",
        Event::Command { request: RequestId(9), by: Caller::signal("test"), command: Command::ForgetHost(host) },
    );
    std::mem::take(&mut bench.text)
}

#[test]
fn a_host_that_is_given_up_frees_its_worker_and_is_an_orphan_if_it_is_seen_again() {
    let mut bench = Bench::quietly(plan(vec![there("a", "east")]));
    bench.submit(on("a"));
    bench.started("a");
    let host = bench.host("a");
    let text = forget(&mut bench, "a");
    assert!(text.contains(&format!("{:?}", Reply::Done)) && text.contains("terminated"), "{text}");
    assert!(!bench.core.hosts.contains_key(&host));
    assert!(bench.core.workers[&name("a")].host.is_some(), "its build has another host");
}

#[test]
fn a_host_whose_agent_is_attached_is_not_given_up_and_its_attempts_wait_for_lease_and_grace() {
    let mut bench = Bench::quietly(plan(vec![there("a", "east")]));
    bench.submit(on("a"));
    bench.wake("a");
    bench.report("a", picture(1, 1, 1, 0, None));
    let text = forget(&mut bench, "a");
    assert!(text.contains("is attached"), "{text}");
    bench.restart();
    let host = bench.host("a");
    let plan = bench.plan.workers[&name("a")].clone();
    let text = forget(&mut bench, "a");
    assert!(text.contains("nobody knows yet"), "its next heartbeat may be on its way: {text}");
    bench.pass(2 * plan.keepalive.as_secs());
    let text = forget(&mut bench, "a");
    assert!(text.contains("is given up"), "{text}");
    let most = plan.lease.unwrap() + plan.grace;
    bench.pass(most.as_secs() - 1);
    let runs = |bench: &Bench| bench.core.builds[&BuildId(1)].status.attempts[0].ended.is_none();
    assert!(runs(&bench) && bench.core.hosts.contains_key(&host), "its agent may still run it");
    bench.restart();
    bench.pass(60);
    assert!(!runs(&bench) && !bench.core.hosts.contains_key(&host), "{}", bench.text);
    assert!(bench.core.builds[&BuildId(1)].status.end.is_none(), "it is tried again");
    assert!(bench.core.builds[&BuildId(1)].status.attempts[0].excused);
}

#[test]
fn a_place_is_given_up_with_its_hosts() {
    let mut bench = Bench::quietly(plan(vec![there("a", "east"), there("b", "west")]));
    bench.submit(on("a"));
    bench.submit(on("b"));
    let west = bench.host("b");
    let place = bench.core.place_views().into_iter().find(|view| view.name == "east").unwrap();
    let gone = bench.host("a");
    bench.hush();
    bench.event(
        "forget",
        Event::Command { request: RequestId(9), by: Caller::signal("test"), command: Command::ForgetPlace(place.id) },
    );
    assert!(bench.text.contains("forget east"), "{}", bench.text);
    // The call that was under way could still start it.
    assert!(bench.core.hosts.contains_key(&gone));
    bench.pass(90);
    assert!(!bench.core.hosts.contains_key(&gone) && bench.core.hosts.contains_key(&west));
}

#[test]
fn a_host_on_which_nothing_runs_is_given_up_at_once_even_if_its_agent_has_a_session() {
    let mut bench = Bench::quietly(plan(vec![there("a", "east")]));
    bench.submit(on("a"));
    bench.wake("a");
    bench.report("a", picture(1, 1, 1, 0, Some(Outcome::Success)));
    bench.restart();
    bench.event("broker down", Event::BrokerDown);
    let host = bench.host("a");
    bench.pass(25);
    let text = forget(&mut bench, "a");
    assert!(text.contains("nobody knows yet"), "nobody could be heard: {text}");
    bench.event("broker up", Event::BrokerUp);
    bench.pass(25);
    let text = forget(&mut bench, "a");
    assert!(!bench.core.hosts.contains_key(&host), "{text}");
}
