//! Drains, SIGTERM, the master's exit, the dead-man timer.

use super::*;

fn latent() -> Settings {
    Settings { latent: true, ..settings() }
}

fn as_latent() -> Welcome {
    Welcome { standing: false, secret: Some("secret".to_owned()), ..welcome() }
}

#[test]
fn a_drain_is_answered_when_nothing_runs_and_all_is_settled() {
    let mut agent = Agent::attached(settings(), welcome());
    agent.receives(2_000, order("1.1", vec![step("a")]));
    agent.at(2_001, started("1.1", 0));
    assert!(agent.receives(3_000, ToAgent::Drain { session: s1(), drain: 7, suspend: false }).is_empty());
    assert_eq!(
        agent.receives(3_001, order("2.1", vec![step("a")])),
        ["report 2.1 r1:  => Declined(\"the host is being drained\")"]
    );
    assert_eq!(agent.at(3_002, ended("1.1", 0, StepState::Exited(0))), ["report 1.1 r2: Exited(0) => Success"]);
    let settled = |attempt| ToAgent::Settled { session: s1(), attempts: vec![id(attempt)] };
    assert_eq!(agent.receives(3_003, settled("2.1")), ["remove 2.1"]);
    assert_eq!(agent.receives(3_004, settled("1.1")), ["remove 1.1", "drained 7"]);
    assert_eq!(agent.until(11_000, true), ["11000 heartbeat 1", "11000 deadline 71000", "11000 drained 7"]);
    assert_eq!(agent.receives(11_001, ToAgent::Drain { session: s1(), drain: 8, suspend: false }), ["drained 8"]);
    assert!(agent.receives(11_002, ToAgent::Undrain { session: s1() }).is_empty());
    assert_eq!(agent.receives(11_003, order("3.1", vec![step("a")])), ["run 3.1/0 a"]);
}

#[test]
fn a_drain_waits_for_what_is_being_killed() {
    let mut agent = Agent::attached(settings(), welcome());
    agent.receives(2_000, order("1.1", vec![step("a")]));
    agent.receives(2_001, ToAgent::Drain { session: s1(), drain: 1, suspend: false });
    let settled = ToAgent::Settled { session: s1(), attempts: vec![id("1.1")] };
    assert_eq!(agent.receives(2_002, settled), ["kill 1.1"]);
    assert_eq!(agent.at(2_003, ended("1.1", 0, StepState::Signalled(9))), ["remove 1.1", "drained 1"]);
}

#[test]
fn sigterm_lets_builds_end_and_says_so() {
    let mut agent = Agent::attached(settings(), welcome());
    agent.receives(2_000, order("1.1", vec![step("a")]));
    assert_eq!(agent.at(3_000, Event::Terminate), ["leaving"]);
    assert_eq!(
        agent.receives(3_001, order("2.1", vec![step("a")])),
        ["report 2.1 r1:  => Declined(\"the agent is about to exit\")"]
    );
    agent.at(3_002, ended("1.1", 0, StepState::Exited(0)));
    let settled = ToAgent::Settled { session: s1(), attempts: vec![id("1.1"), id("2.1")] };
    assert_eq!(agent.receives(3_003, settled), ["remove 1.1", "remove 2.1", "goodbye", "disconnect 1", "exit"]);
    assert!(agent.core.ended() && agent.core.next_wakeup().is_none());
    assert!(agent.at(9_000, Event::Terminate).is_empty());
}

#[test]
fn sigterm_twice_ends_builds_at_once() {
    let mut agent = Agent::attached(settings(), welcome());
    agent.receives(2_000, order("1.1", vec![step("a")]));
    agent.at(3_000, Event::Terminate);
    assert_eq!(agent.at(3_001, Event::Terminate), ["kill 1.1"]);
    assert_eq!(
        agent.at(3_002, ended("1.1", 0, StepState::Signalled(9))),
        ["remove 1.1", "goodbye", "disconnect 1", "exit"]
    );
}

#[test]
fn what_cannot_be_killed_does_not_hold_the_agent() {
    for third in [true, false] {
        let mut agent = Agent::attached(settings(), welcome());
        agent.receives(2_000, order("1.1", vec![step("a")]));
        agent.at(3_000, Event::Terminate);
        agent.at(3_001, Event::Terminate);
        // No goodbye: something may run.
        if third {
            assert_eq!(agent.at(3_002, Event::Terminate), ["disconnect 1", "exit"]);
        } else {
            let all = agent.until(20_000, true);
            assert_eq!(all[all.len() - 2..], ["13001 disconnect 1", "13001 exit"]);
        }
    }
}

#[test]
fn an_idle_agent_ends_at_once_attached_or_not() {
    let mut agent = Agent::attached(settings(), welcome());
    assert_eq!(agent.at(3_000, Event::Terminate), ["goodbye", "disconnect 1", "exit"]);
    let mut agent = Agent::new(settings());
    agent.at(0, Event::Start);
    assert_eq!(agent.at(1, Event::Terminate), ["disconnect 1", "exit"]);
    assert_eq!(Agent::new(settings()).at(0, Event::Terminate), ["exit"]);
}

#[test]
fn leaving_is_sent_again_after_a_new_link() {
    let mut agent = Agent::attached(settings(), welcome());
    agent.receives(2_000, order("1.1", vec![step("a")]));
    agent.at(2_500, Event::Terminate);
    agent.breaks(3_000);
    agent.until(3_100, true);
    agent.at(3_200, Event::LinkUp { connection: 2 });
    let said = agent.receives(3_300, ToAgent::Welcome(Box::new(welcome())));
    assert_eq!(said, ["leaving", "deadline 63200"]);
}

#[test]
fn a_latent_host_that_nobody_calls_powers_off() {
    let mut agent = Agent::new(Settings { started: Timestamp(500), ..latent() });
    agent.at(1_000, Event::Start);
    let all = agent.until(2_000_000, false);
    assert_eq!(all.last().unwrap(), "1200500 power off");
    let mut agent = Agent::new(settings());
    agent.at(0, Event::Start);
    assert!(!agent.until(2_000_000, false).concat().contains("power off"), "it is not latent");
}

#[test]
fn a_standing_welcome_disarms_it() {
    let mut agent = Agent::attached(latent(), welcome());
    agent.breaks(2_000);
    assert!(!agent.until(5_000_000, false).concat().contains("power off"));
}

#[test]
fn a_latent_host_powers_off_when_its_lease_is_over_for_its_grace() {
    let mut agent = Agent::attached(latent(), as_latent());
    agent.receives(2_000, order("1.1", vec![step("a")]));
    agent.breaks(5_000);
    let all = agent.until(900_000, false);
    assert!(all.contains(&"61000 kill 1.1".to_owned()), "{all:?}");
    // It waits for the killed step, but not forever.
    assert_eq!(all.last().unwrap(), "671000 power off");
    // Attached again within the grace time.
    let mut agent = Agent::attached(latent(), as_latent());
    agent.breaks(5_000);
    agent.until(300_000, false);
    let connection = agent.core.connection;
    agent.at(300_000, Event::LinkUp { connection });
    agent.receives(300_000, ToAgent::Welcome(Box::new(Welcome { session: SessionId("s2".into()), ..as_latent() })));
    assert!(agent.core.attached() && agent.core.dead_man.is_none());
}

#[test]
fn the_time_that_a_host_slept_does_not_count_for_its_timer() {
    let hour = Duration::from_secs(3_600);
    // Accepted by no master so far: the next start decides.
    let mut agent = Agent::new(latent());
    agent.at(0, Event::Start);
    assert_eq!(agent.at(3_601_000, Event::Resumed(hour)), ["disconnect 1", "restart"]);
    // It was attached: its lease has ended, and its grace time starts when it is resumed.
    let mut agent = Agent::attached(latent(), as_latent());
    agent.breaks(5_000);
    let woken = agent.at(3_605_000, Event::Resumed(hour));
    assert!(!woken.concat().contains("power off"), "{woken:?}");
    let all = agent.until(9_000_000, false);
    assert_eq!(all.last().unwrap(), "4205000 power off");
    // Its lease had ended before it was suspended.
    let mut agent = Agent::attached(latent(), as_latent());
    agent.breaks(5_000);
    agent.until(161_000, false);
    agent.at(3_761_000, Event::Resumed(hour));
    let all = agent.until(9_000_000, false);
    assert_eq!(all.last().unwrap(), "4261000 power off");
    // A standing worker has no such timer.
    let mut agent = Agent::new(settings());
    agent.at(0, Event::Start);
    assert!(!agent.at(3_601_000, Event::Resumed(hour)).concat().contains("restart"));
}

#[test]
fn a_refused_host_powers_off_where_it_may() {
    let refused = |power_off| ToAgent::Refused { reason: "another has the name".to_owned(), power_off };
    for (own, power_off, expected) in [
        (latent(), true, vec!["disconnect 1", "power off"]),
        (latent(), false, vec!["disconnect 1"]),
        (settings(), true, vec!["disconnect 1"]),
        (Settings { secret: Some("kept".to_owned()), ..latent() }, true, vec!["disconnect 1", "power off"]),
    ] {
        let mut agent = Agent::new(own);
        agent.at(0, Event::Start);
        agent.at(1_000, Event::LinkUp { connection: 1 });
        assert_eq!(agent.receives(2_000, refused(power_off)), expected);
        if expected.len() == 1 {
            let pause = agent.core.next_wakeup().unwrap().0 - 2_000;
            assert!((2_500..=5_000).contains(&pause), "{pause}");
        }
    }
}

#[test]
fn a_spent_token_does_not_power_off_a_host_that_has_a_secret() {
    let mut agent = Agent::new(Settings { secret: Some("kept".to_owned()), ..latent() });
    agent.at(0, Event::Start);
    agent.at(10, Event::LinkDown { connection: 1, refused: true, why: String::new() });
    agent.until(1_000, false);
    assert_eq!(agent.at(1_000, Event::LinkUp { connection: 2 }), ["hello 2 with hush of - []"]);
    let refused = ToAgent::Refused { reason: "the token is spent".to_owned(), power_off: true };
    assert_eq!(agent.receives(1_001, refused), ["disconnect 2"]);
    assert!(agent.until(10_000, false).concat().ends_with("connect 3 with kept"));
}

#[test]
fn the_clouds_notice_is_sent_until_the_session_ends() {
    let rebalance = || Event::Notice(CloudNotice::Rebalance { at: "t1".to_owned() });
    let end = |at: &str| Event::Notice(CloudNotice::Interruption { action: "terminate".to_owned(), at: at.to_owned() });
    let mut agent = Agent::new(settings());
    agent.at(0, Event::Start);
    assert!(agent.at(500, rebalance()).is_empty(), "there is no session");
    agent.at(1_000, Event::LinkUp { connection: 1 });
    let said = agent.receives(1_000, ToAgent::Welcome(Box::new(welcome())));
    assert_eq!(said, ["rebalance t1", "deadline 61000"]);
    assert_eq!(agent.at(2_000, end("t2")), ["terminate at t2"]);
    for known in [end("t2"), rebalance()] {
        assert!(agent.at(2_001, known).is_empty());
    }
    assert_eq!(agent.at(2_002, end("t3")), ["terminate at t3"]);
    assert_eq!(agent.until(11_000, true), ["11000 heartbeat 1", "11000 deadline 71000", "11000 terminate at t3"]);
}

#[test]
fn an_agent_whose_machine_has_slept_begins_anew() {
    let drain = |suspend| ToAgent::Drain { session: s1(), drain: 1, suspend };
    // Days later by its clock.
    let wakes = |agent: &mut Agent| agent.at(500_000_000, Event::Tick);
    let mut agent = Agent::attached(latent(), as_latent());
    assert_eq!(agent.receives(2_000, drain(true)), ["drained 1"]);
    assert_eq!(wakes(&mut agent), ["disconnect 1", "restart"]);
    // A minute later, and the lease is a long one: the master has ended the session all the same.
    let mut agent = Agent::attached(latent(), as_latent());
    agent.receives(1_500, ToAgent::Renewed { session: s1(), seq: 0, lease_ms: Some(600_000) });
    agent.receives(2_000, drain(true));
    let woken = agent.at(62_000, Event::Resumed(Duration::from_secs(59)));
    assert_eq!(woken.last().unwrap(), "restart", "{woken:?}");
    // If it was not to be suspended, or that was cancelled, its lease and its grace time have ended.
    let mut agent = Agent::attached(latent(), as_latent());
    agent.receives(2_000, drain(false));
    assert_eq!(wakes(&mut agent), ["disconnect 1", "power off"]);
    let mut agent = Agent::attached(latent(), as_latent());
    agent.receives(2_000, drain(true));
    agent.receives(2_001, ToAgent::Undrain { session: s1() });
    assert_eq!(wakes(&mut agent), ["disconnect 1", "power off"]);
    // If the suspension is slow, the lease ends before it, and the agent has restarted already.
    let refused = |power_off| ToAgent::Refused { reason: "its host is being put to sleep".to_owned(), power_off };
    let waits = |power_off| {
        let mut agent = Agent::new(latent());
        agent.at(0, Event::Start);
        agent.at(1_000, Event::LinkUp { connection: 1 });
        agent.receives(1_001, refused(power_off));
        agent
    };
    let all = wakes(&mut waits(false));
    assert_eq!(all.last().map(String::as_str), Some("restart"), "{all:?}");
    // The same if no clock shows the suspension: it restarts instead of asking again with its old boot data.
    let all = waits(false).until(6_100, false);
    assert!(all.last().is_some_and(|last| last.ends_with(" restart")), "{all:?}");
    // Suspended before it could send a hello: the broker refuses it until it restarts. A standing one keeps asking.
    for (settings, restarts) in [(latent(), true), (super::settings(), false)] {
        let mut agent = Agent::new(settings);
        agent.at(0, Event::Start);
        let mut now = 0;
        for denial in 1..=6 {
            let connection = agent.core.connection;
            agent.at(now, Event::LinkDown { connection, refused: true, why: String::new() });
            now = agent.core.next_wakeup().map_or(u64::MAX, |at| at.0);
            let next = agent.at(now, Event::Tick).concat();
            assert_eq!(next.contains("restart"), restarts && denial == 6, "denial {denial}: {next}");
        }
        assert!(now <= 32_000, "after {now} ms");
    }
    // An agent that was accepted has spent its token, and keeps its identity.
    let mut agent = Agent::attached(latent(), as_latent());
    agent.breaks(5_000);
    agent.until(161_000, false);
    let connection = agent.core.connection;
    agent.at(161_000, Event::LinkUp { connection });
    agent.receives(161_001, refused(false));
    let all = agent.until(166_100, false);
    assert!(all.last().is_some_and(|last| last.contains("connect")), "{all:?}");
    assert!(waits(true).core.ended(), "a machine that is not wanted is switched off at once");
    // No master suspends the machine of a standing worker.
    let mut agent = Agent::attached(settings(), welcome());
    agent.receives(2_000, drain(true));
    let all = wakes(&mut agent);
    assert!(!all.contains(&"restart".to_owned()), "{all:?}");
}
