//! Measures the speed of the link. It is printed and not asserted, because machines differ.

use crate::harness::{Seen, agent, own_queue, shared, until};
use crate::link::heartbeat;
use futures_util::StreamExt;
use lapin::BasicProperties;
use rouse_master::broker::Outbound;
use rouse_shared::codec;
use rouse_shared::limits::LOG_CHUNK;
use rouse_shared::message::{LogChunk, ToAgent};
use rouse_shared::names::AGENTS;
use rouse_shared::{AttemptId, BuildId, SessionId};

#[expect(clippy::disallowed_methods, reason = "a stopwatch for a person to read")]
fn stopwatch() -> impl Fn() -> f64 {
    let began = std::time::Instant::now();
    move || began.elapsed().as_secs_f64()
}

async fn flood(name: &str, key: &str, body: &[u8], times: usize) {
    let connection = agent(name).await;
    let channel = connection.create_channel().await.unwrap();
    let properties = BasicProperties::default().with_user_id(name.into());
    for _ in 0..times / 100 {
        let batch = (0..100)
            .map(|_| channel.basic_publish(AGENTS.into(), key.into(), Default::default(), body, properties.clone()));
        for sent in futures_util::future::join_all(batch).await {
            drop(sent.unwrap());
        }
    }
}

fn count(name: &str) -> usize {
    let seen = shared().seen.lock().unwrap();
    seen.iter()
        .filter(|seen| matches!(seen, Seen::Agent(from, _) | Seen::Log(from, _) if from.as_str() == name))
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn smoke() {
    let shared = shared();
    const CONTROL: usize = 10_000;
    let stop = stopwatch();
    flood("fast-control", "fast-control.control", &codec::encode(&heartbeat(1)), CONTROL).await;
    until("all heartbeats", || count("fast-control") == CONTROL).await;
    println!("heartbeats in: {:.0}/s", CONTROL as f64 / stop());

    const CHUNKS: usize = 2_000;
    let attempt = AttemptId { build: BuildId(1), number: 1 };
    let chunk = codec::encode(&LogChunk {
        session: SessionId("s".to_owned()),
        attempt,
        step: 0,
        offset: 0,
        bytes: vec![b'x'; LOG_CHUNK],
    });
    let stop = stopwatch();
    flood("fast-log", "fast-log.log", &chunk, CHUNKS).await;
    until("all chunks", || count("fast-log") == CHUNKS).await;
    println!("logs in: {:.0} MB/s", (CHUNKS * LOG_CHUNK) as f64 / stop() / 1e6);

    const ANSWERS: u64 = 10_000;
    let connection = agent("fast-answers").await;
    let channel = connection.create_channel().await.unwrap();
    let queue = "rouse.agent.fast-answers.n.1";
    let mut answers = own_queue(&channel, queue).await.unwrap();
    let stop = stopwatch();
    for drain in 0..ANSWERS {
        let message = || ToAgent::Drain { session: SessionId("s".to_owned()), drain, suspend: false };
        while !shared.link.try_send(Outbound::Agent { queue: queue.to_owned(), message: message() }) {
            tokio::task::yield_now().await;
        }
    }
    for _ in 0..ANSWERS {
        answers.next().await.unwrap().unwrap();
    }
    println!("answers out: {:.0}/s", ANSWERS as f64 / stop());
}
