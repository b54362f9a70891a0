//! A broker that accepts nothing for a while.

use super::*;

/// What a master promises with the welcome of these tests: 20 minutes.
fn promising() -> Welcome {
    Welcome { blocked_lease_ms: Some(1_200_000), ..welcome() }
}

/// An agent whose step runs, and whose heartbeat at 11,000 was the first that the broker did not accept. The lease is
/// counted from 1,000.
fn blocked(welcome: Welcome) -> Agent {
    let mut agent = Agent::attached(settings(), welcome);
    agent.receives(2_000, order("1.1", vec![step("a")]));
    agent.at(2_001, started("1.1", 0));
    assert_eq!(agent.until(11_000, false), ["11000 heartbeat 1"]);
    assert!(agent.at(11_010, is_blocked(1)).is_empty());
    agent
}

fn is_blocked(connection: u64) -> Event {
    Event::LinkBlocked { connection, why: "low on memory".to_owned() }
}

/// All but the deadlines, of which the last is returned as well.
fn without_deadlines(lines: Vec<String>) -> (Vec<String>, Option<u64>) {
    let (deadlines, others): (Vec<_>, Vec<_>) = lines.into_iter().partition(|line| line.contains("deadline"));
    let last = deadlines.last().and_then(|line| line.rsplit(' ').next()?.parse().ok());
    (others, last)
}

#[test]
fn builds_live_through_an_alarm_and_no_connection_is_added() {
    let mut agent = blocked(promising());
    // What is known of the alarm is what was true half a minute ago.
    assert!(agent.until(41_000, false).is_empty());
    assert_eq!(agent.until(41_010, false), ["41010 deadline 71010"]);
    let (others, deadline) = without_deadlines(agent.until(611_010, false));
    assert_eq!((others.as_slice(), deadline), ([].as_slice(), Some(641_010)));
    let end = agent.at(611_500, Event::LinkUnblocked { connection: 1 });
    assert_eq!(end, ["heartbeat 2"]);
    assert!(agent.until(612_000, false).is_empty(), "no more than that is given");
    let renewed = ToAgent::Renewed { session: s1(), seq: 2, lease_ms: None };
    assert_eq!(agent.receives(612_000, renewed), ["deadline 671500"]);
}

#[test]
fn the_masters_promise_has_an_end() {
    let mut agent = blocked(promising());
    let (others, deadline) = without_deadlines(agent.until(1_261_000, false));
    assert_eq!((others.as_slice(), deadline), (["1261000 kill 1.1".to_owned()].as_slice(), Some(1_261_000)));
    agent.at(1_261_010, ended("1.1", 0, StepState::Signalled(9)));
    // What was said on this connection no longer holds, and another one would be blocked as well.
    assert!(agent.until(5_000_000, false).is_empty());
    assert!(agent.receives(5_000_000, ToAgent::Welcome(Box::new(promising()))).is_empty());
    assert_eq!(agent.at(5_000_001, Event::LinkUnblocked { connection: 1 }), ["disconnect 1"]);
    let next = agent.until(5_000_200, false);
    assert!(next.len() == 1 && next[0].ends_with("connect 2 with hush"), "{next:?}");
}

#[test]
fn without_a_promise_the_lease_ends_as_ever() {
    for welcome in [welcome(), Welcome { lease_ms: Some(30_000), ..promising() }] {
        let over = 1_000 + welcome.lease_ms.unwrap();
        let mut agent = blocked(welcome);
        assert_eq!(agent.until(600_000, false), [format!("{over} kill 1.1")]);
    }
}

#[test]
fn an_agent_that_was_frozen_knows_nothing_of_the_broker() {
    let mut agent = blocked(promising());
    let (_, deadline) = without_deadlines(agent.until(50_000, false));
    assert_eq!(deadline, Some(79_010));
    // It goes on before its deadline, and what it heard of the broker is older than it can tell.
    assert!(agent.at(56_000, Event::Tick).is_empty());
    assert_eq!(agent.until(200_000, false), ["79010 kill 1.1"]);
}

#[test]
fn what_was_gained_is_kept_when_the_link_breaks_and_no_more() {
    let mut agent = blocked(promising());
    let (_, deadline) = without_deadlines(agent.until(50_010, false));
    assert_eq!(deadline, Some(80_010));
    agent.breaks(50_020);
    let lines = agent.until(50_200, false);
    assert!(lines.len() == 1 && lines[0].ends_with("connect 2 with hush"), "{lines:?}");
    assert_eq!(agent.until(80_010, false), ["80010 kill 1.1"]);
}

#[test]
fn a_hello_that_waits_is_said_again_after_the_alarm() {
    let mut agent = Agent::new(settings());
    agent.at(0, Event::Start);
    agent.at(1_000, Event::LinkUp { connection: 1 });
    assert!(agent.at(1_010, is_blocked(1)).is_empty());
    assert!(agent.until(600_000, false).is_empty());
    // Late and superfluous ones do no harm.
    assert!(agent.at(600_000, Event::LinkUnblocked { connection: 7 }).is_empty());
    assert!(agent.at(600_000, is_blocked(1)).is_empty());
    assert_eq!(agent.at(600_001, Event::LinkUnblocked { connection: 1 }), ["disconnect 1"]);
    assert_eq!(agent.until(600_200, false).len(), 1);
    // A short one is of no consequence.
    agent.at(601_000, Event::LinkUp { connection: 2 });
    agent.at(601_001, is_blocked(2));
    assert!(agent.at(606_000, Event::LinkUnblocked { connection: 2 }).is_empty());
    assert_eq!(agent.receives(606_100, ToAgent::Welcome(Box::new(welcome()))), ["deadline 661000"]);
}

#[test]
fn without_a_lease_nothing_ends_and_nothing_is_asked() {
    let patient = Welcome { lease_ms: None, link_patience_ms: Some(600_000), keepalive_ms: 0, ..welcome() };
    let mut agent = Agent::attached(settings(), patient);
    agent.receives(2_000, order("1.1", vec![step("a")]));
    agent.at(3_000, is_blocked(1));
    assert!(agent.until(5_000_000, false).is_empty());
    assert_eq!(agent.at(5_000_000, Event::LinkUnblocked { connection: 1 })[0], "heartbeat 1");
}
