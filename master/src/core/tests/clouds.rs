//! What clouds do to hosts: they charge for them and take them back. Also agents whose identity document is invalid.

use super::*;
use rouse_shared::message::CloudNotice;

fn notice(bench: &mut Bench, worker: &str, notice: CloudNotice) {
    let session = bench.session(worker);
    bench.agent("notice", worker, ToMaster::Notice { session, notice });
}

fn interruption() -> CloudNotice {
    CloudNotice::Interruption { action: "terminate".to_owned(), at: "2026-01-01T00:02:00Z".to_owned() }
}

/// A worker that runs build 1, with another build behind it.
fn busy() -> Bench {
    let mut bench = Bench::quietly(plan(vec![latent("l"), latent("m")]));
    bench.submit_with(on("l"), 1);
    bench.wake("l");
    bench.report("l", picture(1, 1, 1, 0, None));
    bench.hush();
    bench
}

#[test]
fn a_host_that_is_taken_back_is_drained_at_once_and_given_up_in_time() {
    let mut bench = busy();
    notice(&mut bench, "l", interruption());
    // It is said again with each heartbeat.
    notice(&mut bench, "l", interruption());
    bench.submit(on("l"));
    // The first one may still end by itself; it does not.
    for seq in 1..=9 {
        bench.pass(10);
        if bench.core.session_id(&name("l")).is_some() {
            bench.heartbeat("l", seq);
        }
    }
    bench.gone("l");
    bench.check("reclaimed");
}

#[test]
fn what_ends_in_time_is_no_loss() {
    let mut bench = busy();
    notice(&mut bench, "l", interruption());
    bench.report("l", picture(1, 1, 9, 0, Some(Outcome::Success)));
    bench.drained("l", 1);
    bench.gone("l");
    assert!(bench.core.hosts.is_empty() && bench.core.builds.is_empty());
    bench.pass(200);
    assert!(bench.core.hosts.is_empty());
}

#[test]
fn a_hint_drains_and_waits() {
    let mut bench = busy();
    notice(&mut bench, "l", CloudNotice::Rebalance { at: "2026-01-01T00:00:00Z".to_owned() });
    for seq in 1..=60 {
        bench.pass(10);
        bench.heartbeat("l", seq);
    }
    let host = &bench.core.hosts[&bench.host("l")].host;
    assert_eq!(host.state, HostState::Draining, "its build may take as long as it takes");
    // The certain one that follows is the graver.
    notice(&mut bench, "l", interruption());
    bench.pass(100);
    assert_eq!(bench.core.hosts[&bench.host("l")].host.state, HostState::Terminating);
}

#[test]
fn a_standing_workers_machine_is_for_others_to_decide() {
    let mut bench = Bench::quietly(plan(vec![standing("w")]));
    bench.hello("w", "a", 1, "password", Vec::new());
    notice(&mut bench, "w", interruption());
    bench.submit(on("w"));
    assert_eq!(bench.core.workers[&name("w")].attempts.len(), 1, "it works on");
}

#[test]
fn an_agent_with_an_invalid_identity_document_is_refused() {
    let mut bench = Bench::quietly(plan(vec![latent("l")]));
    bench.submit(on("l"));
    bench.started("l");
    bench.hush();
    let token = bench.core.hosts[&bench.host("l")].host.token.clone();
    let hello = Hello {
        protocol: rouse_shared::limits::PROTOCOL,
        version: "0.1.0".to_owned(),
        connection: 1,
        queue: "q".to_owned(),
        identity: "ec2:i-1".to_owned(),
        nonce: Nonce("a".to_owned()),
        credential: token,
        master: None,
        attempts: Vec::new(),
        facts: Facts::default(),
        leaving: false,
        proof: Default::default(),
    };
    let why = "it has sent no signed identity document".to_owned();
    bench.event("unproven hello", Event::AttestationFailed { worker: name("l"), hello: Box::new(hello), why });
    bench.check("unproven");
    assert!(bench.core.session_id(&name("l")).is_none());
}

#[test]
fn a_day_may_cost_so_much_and_no_more() {
    let mut plan = plan(vec![latent("l"), latent("m"), latent("n")]);
    plan.max_spend_per_day = Some(2.0);
    let mut bench = Bench::quietly(plan);
    bench.price = Some(1.5);
    // The first host runs for an hour and is gone: 1.50.
    bench.submit(on("l"));
    bench.wake("l");
    for seq in 1..=360 {
        bench.pass(10);
        bench.heartbeat("l", seq);
    }
    let seen = bench.core.host_views(bench.now);
    assert!(seen[0].host.cost.is_some_and(|usd| (usd - 1.5).abs() < 0.01), "{:?}", seen[0].host.cost);
    bench.report("l", picture(1, 1, 9, 0, Some(Outcome::Success)));
    bench.operate("l", Operation::Drain);
    bench.drained("l", 1);
    bench.gone("l");
    // Another may begin, and after half an hour a third may not.
    bench.submit(on("m"));
    bench.wake("m");
    for seq in 1..=180 {
        bench.pass(10);
        bench.heartbeat("m", seq);
    }
    bench.submit(on("n"));
    assert_eq!(bench.core.hosts.len(), 1);
    let why = bench.core.why(bench.now, BuildId(3)).unwrap();
    assert!(why.sentence.contains("max_spend_per_day allows 2 USD"), "{}", why.sentence);
    let tomorrow = why.next_try.unwrap();
    assert_eq!(tomorrow.0 % 86_400_000, 0);
    // A restart forgets none of it.
    bench.restart();
    bench.event("broker up", Event::BrokerUp);
    assert_eq!(bench.core.hosts.len(), 1);
    // A new day: it is started without anybody asking.
    while bench.now < tomorrow {
        bench.pass(3_600);
    }
    let started = bench.core.hosts.values().any(|live| live.host.worker == name("n"));
    assert!(started, "{:?}", bench.core.why(bench.now, BuildId(3)));
}
