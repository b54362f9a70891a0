//! The link, hello, sessions, leases, credentials.

use super::*;

fn running() -> Agent {
    let mut agent = Agent::attached(settings(), welcome());
    agent.receives(2_000, order("1.1", vec![step("a")]));
    agent.at(2_001, started("1.1", 0));
    agent
}

#[test]
fn hello_comes_first_and_welcome_begins_the_lease_when_it_was_sent() {
    let mut agent = Agent::new(settings());
    assert_eq!(agent.at(0, Event::Start), ["connect 1 with hush"]);
    assert_eq!(agent.at(1_000, Event::LinkUp { connection: 1 }), ["hello 1 with hush of - []"]);
    assert!(agent.receives(1_100, order("1.1", vec![step("a")])).is_empty(), "before a welcome");
    let first = Welcome { secret: Some("secret".to_owned()), ..welcome() };
    assert_eq!(agent.receives(4_000, ToAgent::Welcome(Box::new(first.clone()))), ["store secret", "deadline 61000"]);
    assert!(agent.receives(4_001, ToAgent::Welcome(Box::new(first))).is_empty(), "twice");
}

#[test]
fn the_lease_counts_from_the_sending_of_what_was_answered() {
    let mut agent = Agent::attached(settings(), welcome());
    assert_eq!(agent.until(21_000, false), ["11000 heartbeat 1", "21000 heartbeat 2"]);
    let renewed = |seq, lease_ms| ToAgent::Renewed { session: s1(), seq, lease_ms };
    assert_eq!(agent.receives(25_000, renewed(2, None)), ["deadline 81000"]);
    assert!(agent.receives(25_001, renewed(1, None)).is_empty(), "older");
    assert!(agent.receives(25_001, renewed(7, None)).is_empty(), "never sent");
    agent.until(31_000, false);
    // A master that is about to be restarted gives a longer lease.
    assert_eq!(agent.receives(31_500, renewed(3, Some(600_000))), ["deadline 631000"]);
}

#[test]
fn a_master_that_ends_before_the_first_heartbeat_extends_the_lease_by_the_hello() {
    let mut agent = running();
    let renewed = |seq, lease_ms| ToAgent::Renewed { session: s1(), seq, lease_ms };
    assert_eq!(agent.receives(3_000, renewed(0, Some(600_000))), ["deadline 601000"]);
    // Asks only whether the queue is still there, and may have been overtaken.
    assert!(agent.receives(3_001, renewed(0, None)).is_empty());
    agent.breaks(5_000);
    agent.until(5_100, false);
    agent.at(6_000, Event::LinkUp { connection: 2 });
    agent.receives(6_500, ToAgent::Welcome(Box::new(welcome())));
    assert_eq!(agent.receives(7_000, renewed(0, Some(600_000))), ["deadline 606000"]);
}

#[test]
fn a_late_answer_does_not_shorten_the_lease_that_was_promised_before() {
    let mut agent = running();
    let renewed = |seq, lease_ms| ToAgent::Renewed { session: s1(), seq, lease_ms };
    agent.receives(3_000, renewed(0, Some(600_000)));
    agent.until(11_000, false);
    // The broker had kept the heartbeat, and after that the hello, for longer than a lease of 60 s.
    agent.receives(100_000, renewed(1, None));
    agent.breaks(101_000);
    agent.until(101_100, false);
    agent.at(102_000, Event::LinkUp { connection: 2 });
    let welcomed = agent.receives(200_000, ToAgent::Welcome(Box::new(welcome())));
    assert!(welcomed.iter().all(|line| !line.contains("deadline")), "it stays at 601,000 ms: {welcomed:?}");
    assert!(agent.until(600_000, false).iter().all(|line| !line.contains("kill")));
    assert!(agent.until(601_000, false).iter().any(|line| line.contains("kill")));

    // In time, the lease is the usual one again.
    let mut agent = running();
    agent.receives(3_000, renewed(0, Some(600_000)));
    assert_eq!(agent.until(11_000, true), ["11000 heartbeat 1", "11000 deadline 71000"]);
}

#[test]
fn a_blip_ends_nothing() {
    let mut agent = running();
    assert!(agent.breaks(5_000).is_empty());
    let connect = agent.until(5_100, true);
    assert!(connect[0].ends_with("connect 2 with hush"), "{connect:?}");
    assert_eq!(agent.at(6_000, Event::LinkUp { connection: 2 }), ["hello 2 with hush of m1 [1.1 r1: Running]"]);
    // Messages on the old connection are too late.
    let late = Event::FromMaster {
        connection: 1,
        message: Box::new(ToAgent::Refused { reason: "late".into(), power_off: true }),
    };
    assert!(agent.at(6_001, late).is_empty());
    assert!(agent.at(6_002, Event::LinkDown { connection: 1, refused: false, why: String::new() }).is_empty());
    assert_eq!(agent.receives(6_500, ToAgent::Welcome(Box::new(welcome()))), ["log 1.1/0 from 0", "deadline 66000"]);
    // The numbers of heartbeats continue in the same session; the hello counts as one.
    assert_eq!(agent.until(16_000, false), ["16000 heartbeat 1"]);
}

#[test]
fn the_end_of_the_lease_kills_what_runs() {
    let mut agent = running();
    agent.breaks(5_000);
    agent.until(5_100, false);
    // Connecting hangs; the deadline is 61,000.
    assert_eq!(agent.until(61_000, false), ["61000 kill 1.1"]);
    assert!(agent.core.session.is_none());
    assert_eq!(agent.at(61_010, ended("1.1", 0, StepState::Signalled(9))), ["remove 1.1"]);
    assert_eq!(agent.at(61_500, Event::LinkUp { connection: 2 }), ["hello 2 with hush of m1 []"]);
    // If the master continues the session, the numbers of its heartbeats continue, but not its builds.
    agent.receives(61_600, ToAgent::Welcome(Box::new(welcome())));
    assert!(agent.core.attached() && agent.core.attempts().next().is_none());
}

/// An agent whose lease ended at 61,000; 1.1 ended before that and is not settled, and 2 of 3 bytes of its log were
/// sent.
fn lapsed() -> Agent {
    let mut agent = running();
    agent.at(2_003, ended("1.1", 0, StepState::Exited(0)));
    agent.at(2_004, Event::LogSent { attempt: id("1.1"), step: 0, offset: 2 });
    agent.breaks(5_000);
    agent.until(5_100, false);
    assert_eq!(agent.until(61_000, false), Vec::<String>::new());
    assert!(agent.core.session.is_none());
    agent
}

#[test]
fn what_has_ended_outlives_the_lease_until_it_is_settled() {
    let s2 = || SessionId("s2".to_owned());
    let mut agent = lapsed();
    assert_eq!(
        agent.at(61_500, Event::LinkUp { connection: 2 }),
        ["hello 2 with hush of m1 [1.1 r2: Exited(0) => Success]"]
    );
    let next = Welcome { session: s2(), ..welcome() };
    assert_eq!(agent.receives(61_600, ToAgent::Welcome(Box::new(next))), ["log 1.1/0 from 2", "deadline 121500"]);
    let resend = ToAgent::Resend { session: s2(), attempt: id("1.1"), step: 0, offset: 0 };
    assert_eq!(agent.receives(61_700, resend), ["log 1.1/0 from 0"]);
    assert_eq!(agent.receives(61_800, ToAgent::Settled { session: s2(), attempts: vec![id("1.1")] }), ["remove 1.1"]);
}

#[test]
fn nothing_is_kept_for_another_master_or_by_an_agent_that_was_asked_to_end() {
    let mut agent = lapsed();
    agent.at(61_500, Event::LinkUp { connection: 2 });
    let other = Welcome { master: MasterId("m2".to_owned()), ..welcome() };
    assert_eq!(agent.receives(61_600, ToAgent::Welcome(Box::new(other))), ["remove 1.1", "deadline 121500"]);

    let mut agent = lapsed();
    assert_eq!(agent.at(61_500, Event::Terminate), ["remove 1.1", "disconnect 2", "exit"]);

    let mut agent = running();
    agent.at(2_003, ended("1.1", 0, StepState::Exited(0)));
    agent.breaks(5_000);
    agent.until(5_100, false);
    agent.at(5_200, Event::Terminate);
    assert_eq!(agent.until(61_000, false), ["61000 remove 1.1", "61000 disconnect 2", "61000 exit"]);
}

#[test]
fn an_answer_after_the_end_comes_too_late() {
    let mut agent = Agent::attached(settings(), Welcome { keepalive_ms: 50_000, ..welcome() });
    agent.receives(2_000, order("1.1", vec![step("a")]));
    agent.until(51_000, false);
    // Late by an instant: the supervisors have killed by then.
    let late = agent.receives(61_000, ToAgent::Renewed { session: s1(), seq: 1, lease_ms: None });
    assert_eq!(late[..2], ["kill 1.1", "disconnect 1"]);
}

#[test]
fn another_session_or_master_ends_the_builds_before_anything_else() {
    let other_session = Welcome { session: SessionId("s2".to_owned()), ..welcome() };
    let other_master = Welcome { master: MasterId("m2".to_owned()), ..welcome() };
    for other in [other_session, other_master] {
        let mut agent = running();
        agent.breaks(5_000);
        agent.until(5_100, true);
        agent.at(6_000, Event::LinkUp { connection: 2 });
        assert_eq!(agent.receives(6_500, ToAgent::Welcome(Box::new(other))), ["kill 1.1", "deadline 66000"]);
        assert_eq!(agent.at(6_600, ended("1.1", 0, StepState::Signalled(9))), ["remove 1.1"]);
    }
}

#[test]
fn a_half_open_link_is_dropped() {
    let mut agent = running();
    let all = agent.until(31_300, false);
    // Three heartbeats without an answer since the welcome at 1,000.
    assert_eq!(all[..3], ["11000 heartbeat 1", "21000 heartbeat 2", "31000 disconnect 1"]);
    assert!(all[3].ends_with("connect 2 with hush"), "{all:?}");
    let mut agent = Agent::attached(settings(), Welcome { keepalive_ms: 1_000, ..welcome() });
    let all = agent.until(16_000, false);
    assert_eq!(all.last().unwrap(), "16000 disconnect 1", "not before 15 s");
}

#[test]
fn an_unanswered_hello_is_repeated_after_longer_and_longer_waits() {
    let mut agent = Agent::new(settings());
    agent.at(0, Event::Start);
    let mut now = 1_000;
    // The last wait follows a welcome.
    for (round, (wait, pause)) in
        [(15, 2), (30, 4), (60, 8), (120, 16), (120, 30), (120, 30), (15, 2)].into_iter().enumerate()
    {
        let connection = agent.core.connection;
        agent.at(now, Event::LinkUp { connection });
        if round == 6 {
            agent.receives(now, ToAgent::Welcome(Box::new(welcome())));
            agent.breaks(now);
            now = agent.core.next_wakeup().unwrap().0;
            agent.at(now, Event::Tick);
            agent.at(now, Event::LinkUp { connection: agent.core.connection });
        }
        let connection = agent.core.connection;
        assert_eq!(agent.core.next_wakeup().unwrap().0, now + wait * 1_000, "round {round}");
        now += wait * 1_000;
        assert_eq!(agent.at(now, Event::Tick), [format!("disconnect {connection}")]);
        let next = agent.core.next_wakeup().unwrap().0;
        assert!((pause * 500..=pause * 1_000).contains(&(next - now)), "round {round}: {}", next - now);
        now = next;
        let said = agent.at(now, Event::Tick);
        assert!(said[0].starts_with(&format!("connect {}", connection + 1)), "{said:?}");
    }
}

#[test]
fn pauses_grow_and_end_with_a_welcome() {
    pauses_grow(false, 100, 1_500);
    pauses_grow(true, 500, 30_000);
}

fn pauses_grow(refused: bool, first: u64, most: u64) {
    let mut agent = Agent::new(settings());
    agent.at(0, Event::Start);
    let (mut now, mut pauses) = (0, Vec::new());
    for _ in 0..14 {
        agent.at(now, Event::LinkDown { connection: agent.core.connection, refused, why: String::new() });
        let next = agent.core.next_wakeup().unwrap().0;
        pauses.push(next - now);
        now = next;
        assert_eq!(agent.at(now, Event::Tick), [format!("connect {} with hush", agent.core.connection)]);
    }
    for (i, pause) in pauses.iter().enumerate() {
        let whole = first.saturating_mul(1 << i).min(most);
        assert!((whole / 2..=whole).contains(pause), "pause {i}: {pause} of {whole}");
    }
    agent.at(now, Event::LinkUp { connection: agent.core.connection });
    agent.receives(now, ToAgent::Welcome(Box::new(welcome())));
    agent.breaks(now);
    assert!(agent.core.next_wakeup().unwrap().0 - now <= 100);
}

#[test]
fn another_network_is_tried_at_once_unless_somebody_has_refused() {
    for refused in [false, true] {
        let mut agent = Agent::new(settings());
        agent.at(0, Event::Start);
        assert!(agent.at(0, Event::NetworkChanged).is_empty(), "it is connecting");
        let mut now = 0;
        for _ in 0..8 {
            agent.at(now, Event::LinkDown { connection: agent.core.connection, refused, why: String::new() });
            now = agent.core.next_wakeup().unwrap().0;
            agent.at(now, Event::Tick);
        }
        agent.at(now, Event::LinkDown { connection: agent.core.connection, refused, why: String::new() });
        let next = agent.core.next_wakeup().unwrap().0;
        assert!(agent.at(now + 1, Event::NetworkChanged).is_empty());
        if refused {
            assert_eq!(agent.core.next_wakeup().unwrap().0, next);
            continue;
        }
        assert_eq!(agent.core.next_wakeup().unwrap().0, now + 26);
        assert!(agent.at(now + 20, Event::NetworkChanged).is_empty());
        assert_eq!(agent.at(now + 26, Event::Tick), [format!("connect {} with hush", agent.core.connection)]);
        // What else the network needs may come a little later than its addresses.
        agent.at(now + 30, Event::LinkDown { connection: agent.core.connection, refused, why: String::new() });
        assert!(agent.core.next_wakeup().unwrap().0 <= now + 130);
    }
}

#[test]
fn without_a_lease_the_patience_with_the_link_counts() {
    let patient = Welcome { lease_ms: None, link_patience_ms: Some(600_000), keepalive_ms: 0, ..welcome() };
    let mut agent = Agent::attached(settings(), patient.clone());
    agent.receives(2_000, order("1.1", vec![step("a")]));
    // Missing answers end nothing; from time to time the agent asks whether the session still exists.
    let asked = agent.until(200_000, false);
    assert_eq!(asked.len(), 4, "{asked:?}");
    assert_eq!(asked[2], "181000 hello 1 with hush of m1 [1.1 r1: ]");
    assert!(agent.receives(200_000, ToAgent::Welcome(Box::new(patient.clone()))).is_empty(), "it goes on");
    assert_eq!(agent.breaks(200_000), ["deadline 800000"]);
    agent.until(200_100, false);
    agent.at(300_000, Event::LinkUp { connection: 2 });
    assert_eq!(agent.receives(300_100, ToAgent::Welcome(Box::new(patient))), ["no deadline"]);
    agent.breaks(400_000);
    let all = agent.until(1_000_000, false);
    assert!(all.contains(&"1000000 kill 1.1".to_owned()), "{all:?}");
}

#[test]
fn without_a_lease_a_session_that_the_master_has_ended_is_given_up() {
    let secret = Some("secret".to_owned());
    let patient = Welcome { lease_ms: None, link_patience_ms: Some(600_000), secret, ..welcome() };
    let mut agent = Agent::attached(settings(), patient.clone());
    let asked = agent.until(31_000, false);
    assert!(asked.contains(&"31000 hello 1 with secret of m1 []".to_owned()), "{asked:?}");
    let refused = ToAgent::Refused { reason: "its password is not right".to_owned(), power_off: false };
    assert_eq!(agent.receives(31_500, refused), ["disconnect 1", "deadline 631500"]);
    let again = agent.until(40_000, false);
    assert!(again[0].ends_with("connect 2 with hush"), "{again:?}");
    agent.at(41_000, Event::LinkUp { connection: 2 });
    let new = Welcome { session: SessionId("s2".to_owned()), ..patient };
    assert_eq!(agent.receives(41_500, ToAgent::Welcome(Box::new(new))), ["no deadline"]);
    assert!(agent.core.attached());
}

#[test]
fn the_secret_is_used_first_and_the_password_when_it_is_of_no_use() {
    let with_secret = Settings { secret: Some("kept".to_owned()), ..settings() };
    let mut agent = Agent::new(with_secret);
    assert_eq!(agent.at(0, Event::Start), ["connect 1 with kept"]);
    let refuse = |agent: &mut Agent, ms| {
        let connection = agent.core.connection;
        let mut all = agent.at(ms, Event::LinkDown { connection, refused: true, why: String::new() });
        all.extend(agent.until(ms + 1_000, false));
        all.concat()
    };
    // A refusal by the broker proves nothing: the two credentials alternate, the first time at once, and the secret is
    // kept.
    assert!(refuse(&mut agent, 0).ends_with("with hush"));
    assert!(refuse(&mut agent, 1_000).ends_with("with kept"));
    assert!(refuse(&mut agent, 2_000).ends_with("with hush"));
    agent.at(4_000, Event::LinkUp { connection: agent.core.connection });
    // Accepted with the password and without a new secret: the old one is no longer valid.
    let said = agent.receives(4_000, ToAgent::Welcome(Box::new(welcome())));
    assert_eq!(said, ["forget secret", "deadline 64000"]);
}

#[test]
fn within_a_session_its_credential_stays() {
    let mut agent = Agent::attached(settings(), Welcome { secret: Some("secret".to_owned()), ..welcome() });
    agent.breaks(5_000);
    for _ in 0..3 {
        let all = agent.until(agent.core.next_wakeup().unwrap().0, false);
        assert!(all[0].ends_with("with secret"), "{all:?}");
        let connection = agent.core.connection;
        agent.at(6_000, Event::LinkDown { connection, refused: true, why: String::new() });
    }
}

#[test]
fn a_secret_that_the_master_refuses_twice_is_forgotten() {
    let mut agent = Agent::new(Settings { secret: Some("kept".to_owned()), ..settings() });
    agent.at(0, Event::Start);
    let mut all = Vec::new();
    for _ in 0..4 {
        let now = agent.core.next_wakeup().unwrap().0;
        agent.at(now, Event::LinkUp { connection: agent.core.connection });
        let refused = ToAgent::Refused { reason: "no".to_owned(), power_off: false };
        all.extend(agent.receives(now, refused));
        all.extend(agent.at(agent.core.next_wakeup().unwrap().0, Event::Tick));
    }
    assert_eq!(
        all,
        [
            "disconnect 1",
            "connect 2 with hush",
            "disconnect 2",
            "connect 3 with kept",
            "forget secret",
            "disconnect 3",
            "connect 4 with hush",
            "disconnect 4",
            "connect 5 with hush",
        ]
    );
}

#[test]
fn a_broker_that_is_away_all_night_does_not_fill_the_log() {
    let mut agent = Agent::new(settings());
    agent.at(0, Event::Start);
    let (mut lines, mut now) = (Vec::new(), 0);
    while now < 8 * 3_600_000 {
        let down = Event::LinkDown { connection: agent.core.connection, refused: false, why: "no route".to_owned() };
        for effect in agent.core.handle(Timestamp(now), down) {
            lines.extend(matches!(effect, Effect::Log(..)).then(|| format!("{effect:?}")));
        }
        now = agent.core.next_wakeup().unwrap().0;
        agent.at(now, Event::Tick);
    }
    // The first ten are logged, and then the 16th, the 32nd and so on, which in the end is a line in some hours.
    assert!((18..=24).contains(&lines.len()), "{lines:?}");
    assert!(lines[0].contains("no link to the broker: no route; retrying"), "{lines:?}");
    assert!(lines[10].contains("(try 16)"), "{lines:?}");
}
