//! The bytes of every released version of the protocol. Agents live in old images, so the master must always understand
//! what they send, and must still send them what they need.
//!
//! `wire/v1.txt` has one line for each message: its name and its bytes in hexadecimal. Lines are added, never changed.
//! `ROUSE_ACCEPT=1 cargo test -p rouse-tests --test wire` adds missing lines.

use rouse_shared::message::*;
use rouse_shared::{AttemptId, BuildId, MasterId, Nonce, SessionId, codec};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

const KEPT: &str = include_str!("wire/v1.txt");

fn session() -> SessionId {
    SessionId("00112233445566778899aabbccddeeff".to_owned())
}

const ATTEMPT: AttemptId = AttemptId { build: BuildId(12), number: 1 };

fn report() -> AttemptReport {
    let step = |state, log_length| StepReport { state, started_ms: 5, took_ms: 7, log_length, log_cut: 1, usage: None };
    AttemptReport {
        attempt: ATTEMPT,
        revision: 3,
        steps: vec![
            step(StepState::Exited(2), 10),
            step(StepState::Signalled(9), 0),
            step(StepState::TimedOut, 0),
            step(StepState::Silent, 0),
            step(StepState::Stopped, 0),
            step(StepState::NotStarted("no such file".to_owned()), 0),
            step(StepState::Skipped, 0),
            step(StepState::Lost("its supervisor was killed".to_owned()), 0),
            step(StepState::Running, 0),
        ],
        outcome: Some(Outcome::Failure("step \"a\" exited with 2".to_owned())),
    }
}

/// A step that has used up its memory.
fn used() -> AttemptReport {
    let usage = Usage { cpu_ms: 70, peak_memory: Some(9), out_of_memory: true, memory_limit: Some(10) };
    let mut report = report();
    report.steps[1].usage = Some(usage);
    report
}

fn to_master() -> Vec<(&'static str, ToMaster)> {
    let hello = Hello {
        protocol: 1,
        version: "0.1.0".to_owned(),
        connection: 1,
        queue: "rouse.agent.w1.0.1".to_owned(),
        identity: "uuid:1".to_owned(),
        nonce: Nonce("ff".repeat(16)),
        credential: "secret".to_owned(),
        master: Some(MasterId("ab".repeat(16))),
        attempts: vec![report()],
        facts: Facts {
            os: "Linux".into(),
            arch: "x86_64".into(),
            hostname: "w1".into(),
            cpus: 2,
            memory: 1 << 30,
            ..Facts::default()
        },
        leaving: false,
        proof: Proof::default(),
    };
    let proof = Proof {
        disk: Some("h0123456789abcdef".to_owned()),
        document: Some("{}".to_owned()),
        signature: Some("c2ln".to_owned()),
        rsa2048: Some("TUlJ".to_owned()),
    };
    let facts = Facts {
        cgroups: Some(Cgroups { memory: true, pids: true, cpu: false }),
        no_cgroups: Some("no".to_owned()),
        needs_run_as: true,
        ..hello.facts.clone()
    };
    let with_cgroups = Hello { facts, attempts: vec![used()], ..hello.clone() };
    let proven = Hello { identity: "ec2:i-0123456789abcdef0".to_owned(), proof, ..hello.clone() };
    let notice = |notice| ToMaster::Notice { session: session(), notice };
    let at = "2026-01-02T03:04:05Z".to_owned();
    let unclean = Some("process 7 is still running".to_owned());
    let unclean = Heartbeat { session: session(), seq: 4, vitals: Vitals::default(), unclean };
    let vitals = Vitals { load: 0.5, memory_used: 1, memory_total: 2, disk_free: 3, disk_total: 4 };
    vec![
        ("to-master/hello", ToMaster::Hello(Box::new(hello))),
        ("to-master/heartbeat", ToMaster::Heartbeat(Heartbeat { session: session(), seq: 4, vitals, unclean: None })),
        ("to-master/report", ToMaster::Report(Box::new(Report { session: session(), attempt: report() }))),
        ("to-master/drained", ToMaster::Drained { session: session(), drain: 2 }),
        ("to-master/leaving", ToMaster::Leaving { session: session() }),
        ("to-master/goodbye", ToMaster::Goodbye { session: session() }),
        ("to-master/hello-proof", ToMaster::Hello(Box::new(proven))),
        ("to-master/hello-cgroups", ToMaster::Hello(Box::new(with_cgroups))),
        ("to-master/heartbeat-unclean", ToMaster::Heartbeat(unclean)),
        ("to-master/notice-rebalance", notice(CloudNotice::Rebalance { at: at.clone() })),
        ("to-master/notice-interruption", notice(CloudNotice::Interruption { action: "terminate".to_owned(), at })),
    ]
}

fn to_agent() -> Vec<(&'static str, ToAgent)> {
    let welcome = Welcome {
        session: session(),
        master: MasterId("ab".repeat(16)),
        secret: Some("new".to_owned()),
        keepalive_ms: 10_000,
        lease_ms: Some(60_000),
        link_patience_ms: Some(600_000),
        blocked_lease_ms: None,
        standing: true,
        grace_ms: 600_000,
    };
    let env: BTreeMap<String, String> = [("CI".to_owned(), "true".to_owned())].into();
    let step = Step {
        name: "compile".to_owned(),
        run: vec!["make".to_owned(), "-j4".to_owned()],
        workdir: "src".to_owned(),
        env: env.clone(),
        timeout_ms: Some(1),
        silence_ms: Some(2),
        always: true,
        limits: Default::default(),
    };
    let order = RunAttempt {
        session: session(),
        attempt: ATTEMPT,
        env,
        limits: Default::default(),
        run_as: Some("build".to_owned()),
        timeout_ms: Some(3),
        steps: vec![step.clone()],
    };
    let limits = Limits { memory: Some(8 << 30), pids: Some(4_096), cpu_millis: Some(1_500) };
    let own = Limits { memory: Some(1 << 30), ..Limits::default() };
    let limited = RunAttempt { limits, steps: vec![Step { limits: own, ..step.clone() }], ..order.clone() };
    let outlasting = Welcome { blocked_lease_ms: Some(1_200_000), ..welcome.clone() };
    vec![
        ("to-agent/welcome", ToAgent::Welcome(Box::new(welcome))),
        ("to-agent/refused", ToAgent::Refused { reason: "no".to_owned(), power_off: true }),
        ("to-agent/renewed", ToAgent::Renewed { session: session(), seq: 4, lease_ms: Some(5) }),
        ("to-agent/run-attempt", ToAgent::RunAttempt(Box::new(order))),
        ("to-agent/run-attempt-limits", ToAgent::RunAttempt(Box::new(limited))),
        ("to-agent/cancel", ToAgent::Cancel { session: session(), attempt: ATTEMPT }),
        ("to-agent/settled", ToAgent::Settled { session: session(), attempts: vec![ATTEMPT] }),
        ("to-agent/resend", ToAgent::Resend { session: session(), attempt: ATTEMPT, step: 1, offset: 99 }),
        ("to-agent/drain", ToAgent::Drain { session: session(), drain: 2, suspend: false }),
        ("to-agent/undrain", ToAgent::Undrain { session: session() }),
        ("to-agent/welcome-blocked", ToAgent::Welcome(Box::new(outlasting))),
    ]
}

/// What an earlier master sends and this agent no longer knows. The agent logs such a message and ignores it.
const RETIRED: [&str; 1] = ["to-agent/exit"];

fn chunk() -> LogChunk {
    LogChunk { session: session(), attempt: ATTEMPT, step: 1, offset: 70_000, bytes: b"\x00hello\xff\n".to_vec() }
}

fn all() -> Vec<(&'static str, Vec<u8>)> {
    let mut all: Vec<_> = to_master().into_iter().map(|(name, message)| (name, codec::encode(&message))).collect();
    all.extend(to_agent().into_iter().map(|(name, message)| (name, codec::encode(&message))));
    all.push(("log-chunk", codec::encode(&chunk())));
    all
}

fn kept() -> BTreeMap<&'static str, Vec<u8>> {
    let digits = |text: &str| -> Vec<u8> {
        text.as_bytes()
            .chunks(2)
            .map(|pair| {
                let pair = std::str::from_utf8(pair).expect("hexadecimal digits");
                u8::from_str_radix(pair, 16).expect("hexadecimal digits")
            })
            .collect()
    };
    KEPT.lines().filter_map(|line| line.split_once(' ')).map(|(name, hex)| (name, digits(hex))).collect()
}

#[test]
fn every_kind_of_message_has_its_bytes_kept() {
    let kept = kept();
    let missing: Vec<_> = all().into_iter().filter(|(name, _)| !kept.contains_key(name)).collect();
    if std::env::var_os("ROUSE_ACCEPT").is_some() && !missing.is_empty() {
        let mut text = KEPT.to_owned();
        for (name, bytes) in &missing {
            let hex: String = bytes.iter().fold(String::new(), |mut text, byte| {
                write!(text, "{byte:02x}").expect("writing to a string");
                text
            });
            writeln!(text, "{name} {hex}").expect("writing to a string");
        }
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/wire/v1.txt"), text).expect("the kept bytes");
    }
    let names: Vec<_> = missing.iter().map(|(name, _)| name).collect();
    let made: BTreeSet<_> = all().into_iter().map(|(name, _)| name).chain(RETIRED).collect();
    let lost: Vec<_> = kept.keys().filter(|name| !made.contains(*name)).collect();
    assert!(lost.is_empty(), "kept, and no test decodes them: {lost:?}");
    assert!(names.is_empty(), "not kept yet: {names:?}; ROUSE_ACCEPT=1 adds them");
}

/// What an agent of that version sends means today what it meant then.
#[test]
fn bytes_of_released_agents_are_understood() {
    let kept = kept();
    for (name, message) in to_master() {
        let decoded: ToMaster = codec::decode(&kept[name]).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        assert_eq!(decoded, message, "{name}");
    }
    let decoded: LogChunk = codec::decode(&kept["log-chunk"]).expect("log-chunk");
    assert_eq!(decoded, chunk());
}

/// What we send holds every field that an agent of that version reads, with the same name and form: its bytes decode to
/// the same message.
#[test]
fn released_agents_find_what_they_read() {
    let kept = kept();
    for (name, message) in to_agent() {
        let decoded: ToAgent = codec::decode(&kept[name]).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        assert_eq!(decoded, message, "{name}");
        let old: serde_json::Value = rmp_serde::from_slice(&kept[name]).expect("a map");
        let new: serde_json::Value = rmp_serde::from_slice(&codec::encode(&message)).expect("a map");
        assert!(holds(&new, &old), "{name}: {new} lacks something of {old}");
    }
}

/// A retired message is of an unknown kind, which an agent survives: it is no other message, and it is not garbage.
#[test]
fn retired_messages_are_of_an_unknown_kind() {
    let kept = kept();
    for name in RETIRED {
        assert!(codec::decode::<ToAgent>(&kept[name]).is_err(), "{name}");
        assert!(codec::is_messagepack(&kept[name]), "{name}");
    }
}

/// Whether `new` has all that `old` has.
fn holds(new: &serde_json::Value, old: &serde_json::Value) -> bool {
    match (new, old) {
        (serde_json::Value::Object(new), serde_json::Value::Object(old)) => {
            old.iter().all(|(key, value)| new.get(key).is_some_and(|found| holds(found, value)))
        }
        (serde_json::Value::Array(new), serde_json::Value::Array(old)) => {
            new.len() == old.len() && new.iter().zip(old).all(|(new, old)| holds(new, old))
        }
        (new, old) => new == old,
    }
}

/// A field that this version does not know is passed over; a kind of message that it does not know is an error.
#[test]
fn the_future_is_met_with_patience() {
    let future = serde_json::json!({ "Drained": { "session": session(), "drain": 2, "mood": "calm" } });
    let bytes = rmp_serde::to_vec_named(&future).expect("JSON as MessagePack");
    let drained = ToMaster::Drained { session: session(), drain: 2 };
    assert_eq!(codec::decode::<ToMaster>(&bytes).expect("an unknown field"), drained);
    let unknown = rmp_serde::to_vec_named(&serde_json::json!({ "Sing": {} })).expect("JSON as MessagePack");
    assert!(codec::decode::<ToMaster>(&unknown).is_err());
}
