//! A broker that accepts nothing for a while: what continues, what waits, and who is notified.

use super::missing::watched;
use super::*;

/// A core whose standing worker runs a build, with a lease that an alarm may outlast.
fn running() -> Bench {
    running_with(Some(secs(60)))
}

fn running_with(lease: Option<Duration>) -> Bench {
    let mut bench = Bench::quietly(plan(vec![watched(WorkerPlan { lease, ..standing("s") })]));
    bench.submit_with(on("s"), 1);
    bench.hello("s", "a", 1, "password", Vec::new());
    bench.report("s", picture(1, 1, 1, 0, None));
    bench.hush();
    bench
}

fn blocked() -> Event {
    Event::BrokerBlocked { why: "low on memory".to_owned() }
}

fn why(bench: &Bench) -> String {
    bench.core.why(bench.now, BuildId(1)).unwrap().sentence
}

impl Bench {
    fn has_session(&self) -> bool {
        self.core.session_of(&name("s")).is_some()
    }

    /// How often this was written.
    fn count(&self, what: &str) -> usize {
        self.text.matches(what).count()
    }
}

#[test]
fn a_lease_that_an_alarm_outlasts_ends_one_lease_after_it() {
    let mut bench = running();
    bench.pass(10);
    bench.event("blocked", blocked());
    bench.pass(1_000);
    assert!(bench.has_session(), "{}", bench.text);
    assert!(why(&bench).contains("the broker accepts no messages (low on memory)"), "{}", why(&bench));
    bench.event("free", Event::BrokerUnblocked);
    bench.pass(64);
    assert!(bench.has_session(), "{}", bench.text);
    bench.pass(2);
    assert!(!bench.has_session(), "{}", bench.text);
}

#[test]
fn an_agent_that_is_heard_of_again_has_lost_nothing() {
    let mut bench = running();
    bench.event("blocked", blocked());
    bench.pass(900);
    bench.event("free", Event::BrokerUnblocked);
    bench.heartbeat("s", 1);
    bench.pass(60);
    bench.heartbeat("s", 2);
    assert!(bench.has_session() && bench.count("lost") == 0, "{}", bench.text);
}

#[test]
fn a_log_whose_rest_cannot_come_at_present_is_not_given_up() {
    let detached = || Event::Detached { worker: name("s"), queue: Some("s/a/1".to_owned()) };
    for (away, back) in
        [(blocked(), Some(Event::BrokerUnblocked)), (Event::BrokerDown, Some(Event::BrokerUp)), (detached(), None)]
    {
        let mut bench = running_with(None);
        bench.report("s", picture(1, 1, 2, 40, Some(Outcome::Success)));
        let gap = || Event::LogGap { attempt: AttemptId { build: BuildId(1), number: 1 }, step: 0, offset: 17 };
        bench.event("log gap", gap());
        bench.event("away", away);
        bench.pass(600);
        assert_eq!(bench.count("does not send the rest"), 0, "{}", bench.text);
        match back {
            Some(back) => bench.event("back", back),
            None => bench.hello("s", "a", 2, "password", vec![picture(1, 1, 2, 40, Some(Outcome::Success))]),
        }
        bench.pass(120);
        assert_eq!(bench.count("does not send the rest"), 0, "the patience begins anew: {}", bench.text);
        bench.pass(30);
        assert_eq!(bench.count("does not send the rest"), 1, "{}", bench.text);
    }
}

#[test]
fn a_master_that_is_stopped_in_an_alarm_extends_leases_from_then_on() {
    let mut bench = running();
    bench.heartbeat("s", 1);
    bench.event("blocked", blocked());
    bench.pass(100);
    bench.event("shutdown", Event::Shutdown);
    assert!(
        bench.text.contains("renewed 1 Some(400000)"),
        "300 s from now, counted from the heartbeat: {}",
        bench.text
    );
}

#[test]
fn no_promise_is_for_ever() {
    let mut bench = running();
    bench.event("blocked", blocked());
    bench.pass(60 + 1_200 + 4);
    assert!(bench.has_session(), "{}", bench.text);
    bench.pass(2);
    assert!(!bench.has_session(), "{}", bench.text);
}

#[test]
fn the_next_master_keeps_the_promise() {
    let mut bench = running();
    bench.event("blocked", blocked());
    bench.pass(30);
    bench.restart();
    bench.event("blocked", blocked());
    bench.pass(1_000);
    assert!(bench.has_session(), "{}", bench.text);
    // It may have been an alarm that this one has heard nothing of.
    bench.restart();
    bench.pass(64);
    assert!(bench.has_session(), "{}", bench.text);
    bench.pass(2);
    assert!(!bench.has_session(), "{}", bench.text);
}

#[test]
fn while_the_link_is_down_there_may_be_an_alarm() {
    let mut bench = running();
    bench.event("down", Event::BrokerDown);
    bench.pass(600);
    assert!(bench.has_session(), "{}", bench.text);
    bench.event("up", Event::BrokerUp);
    bench.pass(66);
    assert!(!bench.has_session(), "{}", bench.text);
}

#[test]
fn nothing_is_promised_with_a_short_lease_or_a_cluster() {
    let long = || WorkerPlan { lease: Some(secs(60)), ..standing("s") };
    let cluster = Plan { outlives_alarms: false, ..plan(vec![long()]) };
    for (plan, lease) in [(plan(vec![standing("s")]), 30), (cluster, 60)] {
        let mut bench = Bench::quietly(plan);
        bench.hello("s", "a", 1, "password", Vec::new());
        bench.event("blocked", blocked());
        bench.pass(lease + 4);
        assert!(bench.has_session(), "{}", bench.text);
        bench.pass(2);
        assert!(!bench.has_session(), "{}", bench.text);
    }
}

#[test]
fn a_promise_stays_when_the_lease_becomes_shorter() {
    let mut bench = running();
    let short = WorkerPlan { lease: Some(secs(40)), ..standing("s") };
    bench.configure("short", plan(vec![short]));
    bench.hello("s", "a", 2, "password", vec![picture(1, 1, 1, 0, None)]);
    bench.event("blocked", blocked());
    bench.pass(100);
    bench.event("free", Event::BrokerUnblocked);
    bench.pass(64);
    assert!(bench.has_session(), "{}", bench.text);
    bench.pass(2);
    assert!(!bench.has_session(), "{}", bench.text);
}

#[test]
fn an_alarm_is_told_once_and_once_when_it_is_over() {
    let mut bench = running();
    bench.event("blocked", blocked());
    bench.event("blocked", blocked());
    assert_eq!(bench.count("news"), 1, "{}", bench.text);
    // It comes and goes.
    for _ in 0..5 {
        bench.event("free", Event::BrokerUnblocked);
        bench.pass(50);
        bench.event("blocked", blocked());
    }
    bench.restart();
    bench.event("blocked", blocked());
    bench.pass(300);
    assert_eq!(
        (bench.count("broker blocked"), bench.count("broker not blocked")),
        (2, 0),
        "news and mail: {}",
        bench.text
    );
    bench.event("free", Event::BrokerUnblocked);
    bench.event("free", Event::BrokerUnblocked);
    bench.pass(59);
    assert_eq!(bench.count("broker not blocked"), 0, "{}", bench.text);
    bench.pass(200);
    assert_eq!(bench.count("broker not blocked"), 2, "news and mail: {}", bench.text);
    assert!(bench.text.contains("ops@example.org"), "{}", bench.text);
}

#[test]
fn nobody_is_blamed_for_an_alarm_and_no_host_is_ordered() {
    let mut bench = Bench::quietly(plan(vec![watched(latent("l")), watched(standing("s"))]));
    bench.submit_with(on("l"), 1);
    bench.started("l");
    bench.event("blocked", blocked());
    bench.submit_with(on("l"), 1);
    bench.pass(4_000);
    assert_eq!(bench.count("missing"), 0, "{}", bench.text);
    bench.event("free", Event::BrokerUnblocked);
    bench.pass(200);
    assert_eq!(bench.count("missing"), 0, "{}", bench.text);

    let mut bench = Bench::quietly(plan(vec![watched(latent("l"))]));
    bench.event("blocked", blocked());
    bench.submit_with(on("l"), 1);
    bench.pass(100);
    assert_eq!(bench.count("prepare"), 0, "{}", bench.text);
    assert!(why(&bench).contains("the broker accepts no messages (low on memory)"), "{}", why(&bench));
    bench.event("free", Event::BrokerUnblocked);
    assert!(bench.count("prepare") > 0, "{}", bench.text);
}
