//! What is counted for whom, and when connections are closed.
#![allow(clippy::unwrap_used)]
use super::*;

fn limiter() -> RateLimiter {
    let limiter = RateLimiter::new(Refusals::default());
    limiter.answered(&session("real"), "rouse.agent.w1.0f.3");
    limiter
}

fn session(id: &str) -> SessionId {
    SessionId(id.to_owned())
}

fn many(limiter: &RateLimiter, from: Timestamp, count: u64, every_ms: u64, sent: (Sender, Kind, usize)) {
    let worker = "w1".parse().unwrap();
    for n in 0..count {
        let now = Timestamp(from.0 + n * every_ms);
        let mut records = lock(&limiter.records);
        let record = record_of(&mut records, &worker, now);
        limiter.count(record, &worker, now, sent.0, (sent.1, sent.2));
    }
}

#[test]
fn a_busy_agent_goes_on_and_a_flood_is_blocked_for_a_while() {
    let now = clock::now();
    for sender in [Sender::Agent, Sender::Stranger] {
        let limiter = limiter();
        many(&limiter, now, 100_000, 1, (sender, Kind::Message, 100));
        assert!(!limiter.is_blocked("w1") && !limiter.strangers_blocked("w1"));
        many(&limiter, now + Duration::from_secs(100), 30_000, 0, (sender, Kind::Message, 100));
        assert_eq!(limiter.is_blocked("w1"), sender == Sender::Agent);
        assert!(limiter.strangers_blocked("w1") && !limiter.strangers_blocked("w10"));
        assert_eq!(limiter.blocked(), 1);
        assert!(limiter.refusals.reason("w1").unwrap().contains("blocked for 5 minutes"));
    }
}

#[test]
fn each_kind_has_its_own_allowance() {
    let now = clock::now();
    let rows = [
        (Kind::Hello, 0, 50, 60),
        (Kind::Dropped, 0, 200, 210),
        (Kind::Chunk, 64 << 10, 99_000, 101_000),
        (Kind::Message, 200 << 10, 1_200, 1_400),
    ];
    for (kind, bytes, fine, much) in rows {
        let limiter = limiter();
        many(&limiter, now, fine, 0, (Sender::Agent, kind, bytes));
        assert!(!limiter.is_blocked("w1"), "{fine} of {bytes} bytes");
        many(&limiter, now, much - fine, 0, (Sender::Agent, kind, bytes));
        assert!(limiter.is_blocked("w1"), "{much} of {bytes} bytes");
    }
}

/// Somebody with the worker's password, or with a token that was used.
#[test]
fn a_stranger_is_blocked_and_the_agent_of_the_session_is_not() {
    let limiter = limiter();
    let worker: WorkerName = "w1".parse().unwrap();
    let leaving = |id: &str| ToMaster::Leaving { session: session(id) };
    while limiter.sent(&worker, &leaving("made up"), 100) {}
    assert!(limiter.strangers_blocked("w1") && !limiter.is_blocked("w1"));
    assert!(limiter.sent(&worker, &leaving("real"), 100));
    assert!(limiter.sent_chunk(&worker, &session("real"), 100));
    assert!(!limiter.sent_chunk(&worker, &session("made up"), 100));
    // The agent may come back on a new connection, as may another run of it, with its secret.
    let hello = |nonce: &str| limiter.said_hello(&worker, &Nonce(nonce.to_owned()), 100);
    assert!(hello("0f") && hello("aa"));
    assert!((0..100).any(|_| !hello("aa")) && hello("0f"), "only so many of a stranger's");
    // A new session, of another run.
    limiter.answered(&session("next"), "rouse.agent.w1.aa.1");
    assert!(limiter.sent(&worker, &leaving("next"), 100) && !limiter.sent(&worker, &leaving("real"), 100));
}

/// After an expired lease an agent sends the rest of the logs of its last session.
#[test]
fn chunks_of_an_earlier_session_are_the_agent_s_own() {
    let limiter = limiter();
    let worker: WorkerName = "w1".parse().unwrap();
    limiter.answered(&session("next"), "rouse.agent.w1.0f.4");
    let leaving = |id: &str| ToMaster::Leaving { session: session(id) };
    while limiter.sent(&worker, &leaving("made up"), 100) {}
    assert!(limiter.sent_chunk(&worker, &session("real"), 100) && limiter.sent_chunk(&worker, &session("next"), 100));
    assert!(!limiter.sent(&worker, &leaving("real"), 100), "other messages belong to the present session");
    for number in 0..EARLIER_SESSIONS {
        limiter.answered(&session(&number.to_string()), "rouse.agent.w1.0f.5");
    }
    assert!(!limiter.sent_chunk(&worker, &session("real"), 100));
    // Another run may be another's.
    limiter.answered(&session("other"), "rouse.agent.w1.aa.1");
    assert!(!limiter.sent_chunk(&worker, &session("3"), 100));
}

#[test]
fn dropped_messages_close_the_connections_once_at_a_time() {
    let limiter = RateLimiter::new(Refusals::default());
    let (closer, mut closed) = mpsc::channel(4);
    limiter.close_with(closer);
    for _ in 0..=200 {
        limiter.dropped("w1", 100);
        limiter.dropped("NOBODY", 100);
    }
    assert!(limiter.strangers_blocked("w1"));
    let request = closed.try_recv().unwrap();
    assert_eq!(request.worker, "w1");
    for _ in 0..=200 {
        limiter.dropped("w1", 100);
    }
    assert!(closed.try_recv().is_err(), "one at a time");
    drop(request);
    for _ in 0..=200 {
        limiter.dropped("w1", 100);
    }
    assert!(closed.try_recv().is_ok(), "again after one that failed");
}

#[test]
fn a_blocked_agent_that_comes_back_and_goes_on_sending_is_closed_again() {
    let limiter = limiter();
    let (closer, mut closed) = mpsc::channel(4);
    limiter.close_with(closer);
    assert!(!limiter.drops("w1", 100));
    let now = clock::now();
    many(&limiter, now, 20_001, 0, (Sender::Agent, Kind::Message, 100));
    // As if it had been closed for so long that nothing of before can arrive.
    let before = Timestamp(now.0.saturating_sub(BACKLOG.as_millis() as u64));
    closed.try_recv().unwrap().closed.send(before).unwrap();
    assert!(limiter.drops("w1", 100) && closed.try_recv().is_err(), "one message is not too many");
    assert!((0..100_000).all(|_| limiter.drops("w1", 100)));
    assert!(closed.try_recv().is_ok() && limiter.is_blocked("w1"));
}

/// Who was let in a moment ago can connect again, and what was sent may arrive late: neither is the agent's.
#[test]
fn malformed_messages_are_the_agents_once_nobody_else_can_send_any() {
    let limiter = limiter();
    let (closer, mut closed) = mpsc::channel(4);
    limiter.close_with(closer);
    let worker: WorkerName = "w1".parse().unwrap();
    let start = clock::now();
    let at = |seconds: u64| start + Duration::from_secs(seconds);
    let send = |seconds: u64| {
        for _ in 0..=200 {
            limiter.dropped_at(&worker, 100, at(seconds));
        }
    };
    send(0);
    assert!(limiter.strangers_blocked("w1"));
    closed.try_recv().unwrap().closed.send(at(25)).unwrap();
    send(26);
    send(44);
    assert!(closed.try_recv().is_err(), "it may have waited");
    send(46);
    closed.try_recv().unwrap().closed.send(at(50)).unwrap();
    send(69);
    assert!(!limiter.is_blocked("w1") && closed.try_recv().is_err());
    send(71);
    assert!(limiter.is_blocked("w1"));
    closed.try_recv().unwrap().closed.send(at(72)).unwrap();
    // It came back before the broker had forgotten it.
    send(93);
    assert!(closed.try_recv().is_ok());
}

/// Each takes the memory of the broker, and so of everybody.
#[test]
fn many_queues_or_connections_are_blocked() {
    let worker: WorkerName = "w1".parse().unwrap();
    for resource in 0..3 {
        let limiter = limiter();
        let (closer, mut closed) = mpsc::channel(4);
        limiter.close_with(closer);
        let granted = match resource {
            0 => (0..1_000).filter(|_| limiter.declares(&worker)).count(),
            1 => (0..1_000).filter(|_| (limiter.connected(&worker, 1), limiter.strangers_blocked("w1")).1).count(),
            _ => {
                limiter.connected(&worker, MOST_CONNECTIONS);
                assert!(!limiter.strangers_blocked("w1"));
                limiter.connected(&worker, MOST_CONNECTIONS + 1);
                300
            }
        };
        assert!((300..=700).contains(&granted), "{granted}");
        assert!(limiter.strangers_blocked("w1") && !limiter.is_blocked("w1"));
        assert_eq!(closed.try_recv().unwrap().worker, "w1");
    }
    assert!(limiter().declares(&worker));
}
