//! A malicious agent with valid credentials: it disturbs no other worker, and is blocked with a reason.

use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use rouse_shared::message::{AttemptReport, LogChunk, Outcome, Report, StepReport, StepState, ToMaster};
use rouse_shared::names::{agent_queue, control_key, log_key};
use rouse_shared::{AttemptId, BuildId, Nonce, SessionId, codec};
use rouse_tests::harness::{DEADLINE, Master, latent, standing};
use rouse_tests::rogue::Hostile;
use std::time::Duration;

/// Connects in a worker's name.
pub async fn connect(master: &Master, worker: &str) -> lapin::Result<Hostile> {
    Hostile::connect(&master.broker_url, worker, "not-a-secret").await
}

/// A report of somebody else's attempt, and a piece of its log.
fn lies(build: u64) -> (ToMaster, LogChunk) {
    let attempt = AttemptId { build: BuildId(build), number: 1 };
    let step = StepReport {
        state: StepState::Exited(0),
        started_ms: 0,
        took_ms: 1,
        log_length: 1 << 60,
        log_cut: 0,
        usage: None,
    };
    let attempt_report =
        AttemptReport { attempt, revision: u32::MAX, steps: vec![step], outcome: Some(Outcome::Success) };
    let report = Report { session: SessionId("00".repeat(16)), attempt: attempt_report };
    let session = SessionId("00".repeat(16));
    let chunk = LogChunk { session, attempt, step: 0, offset: 0, bytes: b"lies".to_vec() };
    (ToMaster::Report(Box::new(report)), chunk)
}

pub fn builds(master: &Master, count: u32) {
    for _ in 0..count {
        let said = master.rouse(&["build", "--worker", "good", "--", "echo", "all is well"]).ended(0);
        assert_eq!(said.text(), "all is well\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_agent_disturbs_nobody_and_is_blocked() {
    let patient = "keepalive_interval = 2\nlease = 40\n";
    let sections = standing("good", patient) + &standing("hostile", patient) + &latent("sleeper", patient);
    let master = tokio::task::block_in_place(|| Master::start_private("hostile", &sections));
    let _agent = tokio::task::block_in_place(|| master.agent("good"));
    let script = "until [ -e gate ]; do sleep 0.05; done; echo mine";
    let gate = master.dir.join("hostile-gate");
    let script = script.replace("gate", &gate.display().to_string());
    let running = tokio::task::block_in_place(|| {
        let id = master.detach(&["--worker", "good", "--", "sh", "-c", &script]);
        master.until_state(&id, "running");
        id
    });
    let number: u64 = running.parse().unwrap();

    // Whatever is not its own is refused by the broker, or passed over.
    let hostile = connect(&master, "hostile").await.unwrap();
    hostile.publish(&control_key(&"good".parse().unwrap()), b"x").await.ok();
    let hostile = connect(&master, "hostile").await.unwrap();
    let other = agent_queue(&"good".parse().unwrap(), &Nonce("ba".repeat(16)), 1);
    let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
    assert!(hostile.channel.queue_declare(other.as_str().into(), options, FieldTable::default()).await.is_err());
    let hostile = connect(&master, "hostile").await.unwrap();
    let consumed = hostile.channel.basic_consume(
        rouse_shared::names::BUILDS.into(),
        "".into(),
        BasicConsumeOptions::default(),
        FieldTable::default(),
    );
    assert!(consumed.await.is_err());
    // Larger than the broker takes: it ends the channel or the connection, and the master never sees any of it.
    let hostile = connect(&master, "hostile").await.unwrap();
    let large = vec![0xc1; 64 << 20];
    hostile.publish(&control_key(&hostile.worker), &large).await.ok();
    drop(large);

    let hostile = connect(&master, "hostile").await.unwrap();
    let (report, chunk) = lies(number);
    for _ in 0..100 {
        hostile.say(&report).await.unwrap();
        hostile.publish(&log_key(&hostile.worker), &codec::encode(&chunk)).await.unwrap();
    }
    // Ten thousand hellos, and a hundred thousand pieces of rubbish.
    for connection in 0..10_000 {
        if hostile.say(&ToMaster::Hello(Box::new(hostile.hello(connection)))).await.is_err() {
            break;
        }
    }
    tokio::task::block_in_place(|| builds(&master, 3));
    for _ in 0..100_000 {
        if hostile.publish(&control_key(&hostile.worker), b"rubbish").await.is_err() {
            break;
        }
    }
    tokio::task::block_in_place(|| {
        builds(&master, 3);
        master.until("it is blocked, with the reason", || {
            master.log().lines().any(|line| line.contains("hostile") && line.contains("too many hellos: blocked"))
        });
    });
    // What it says is thrown away, and when the broker has forgotten its earlier answers it may not come back.
    hostile.publish(&control_key(&hostile.worker), b"more rubbish").await.ok();
    tokio::task::block_in_place(|| {
        master.until("its messages are dropped", || {
            let metrics = String::from_utf8_lossy(&master.get("/metrics").body).into_owned();
            metrics.lines().any(|l| l.starts_with("rouse_messages_blocked_total ") && !l.ends_with(" 0"))
        });
    });
    let refused = tokio::time::timeout(DEADLINE + Duration::from_secs(35), async {
        while connect(&master, "hostile").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    });
    assert!(refused.await.is_ok(), "it can still connect");

    tokio::task::block_in_place(|| {
        std::fs::write(&gate, "").unwrap();
        master.until_state(&running, "success");
        assert_eq!(master.rouse(&["log", &running]).ended(0).text(), "mine\n");
        assert_eq!(master.show(&running)["attempts"], 1);
        // A worker whose host starts meanwhile comes in as ever.
        master.rouse(&["build", "--worker", "sleeper", "--", "true"]).ended(0);
        let peak = rouse_tests::harness::peak_memory(master.pid());
        assert!(peak < 100_000_000, "the master took {peak} bytes");
    });
    drop(hostile.connection);
}
