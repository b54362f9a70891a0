//! Messages through the link, in both directions.

use crate::harness::{Seen, agent, own_queue, publish, shared, until, worker};
use futures_util::StreamExt;
use lapin::options::QueueDeclareOptions;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueBindOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Connection, ConnectionProperties};
use rouse_master::broker::Outbound;
use rouse_shared::codec;
use rouse_shared::limits::{LOG_CHUNK, MAX_MESSAGE};
use rouse_shared::message::{Heartbeat, Hello, LogChunk, ToAgent, ToMaster, Vitals};
use rouse_shared::names::{AGENTS, BUILDS, EVENTS, agent_queue};
use rouse_shared::{AttemptId, BuildId, Nonce, SessionId};
use std::sync::atomic::Ordering;

pub fn heartbeat(seq: u64) -> ToMaster {
    ToMaster::Heartbeat(Heartbeat { session: SessionId("s".to_owned()), seq, vitals: Vitals::default(), unclean: None })
}

fn hello(queue: &str) -> ToMaster {
    ToMaster::Hello(Box::new(Hello {
        protocol: 1,
        version: "0".to_owned(),
        connection: 1,
        queue: queue.to_owned(),
        identity: "i".to_owned(),
        nonce: Nonce("0f".repeat(16)),
        credential: "c".to_owned(),
        master: None,
        attempts: vec![],
        facts: Default::default(),
        leaving: false,
        proof: Default::default(),
    }))
}

fn chunk(size: usize) -> LogChunk {
    LogChunk {
        session: SessionId("s".to_owned()),
        attempt: AttemptId { build: BuildId(1), number: 1 },
        step: 0,
        offset: 7,
        bytes: vec![b'x'; size],
    }
}

#[tokio::test]
#[ignore = "run by on_one_node"]
async fn an_agent_says_hello_and_is_answered_in_its_own_queue() {
    let shared = shared();
    let name = worker("talker");
    let connection = agent("talker").await;
    let channel = connection.create_channel().await.unwrap();
    let queue = agent_queue(&name, &Nonce("n".to_owned()), 1);
    let mut answers = own_queue(&channel, &queue).await.unwrap();
    let hello = hello(&queue);
    publish(&connection, Some("talker"), AGENTS, "talker.control", &codec::encode(&hello)).await.unwrap();
    publish(&connection, Some("talker"), AGENTS, "talker.log", &codec::encode(&chunk(LOG_CHUNK))).await.unwrap();
    until("the hello comes in", || shared.saw(|seen| *seen == Seen::Agent(name.clone(), hello.clone()))).await;
    until("the log comes in", || shared.saw(|seen| *seen == Seen::Log(name.clone(), chunk(LOG_CHUNK)))).await;

    let answer = |drain| ToAgent::Drain { session: SessionId("s".to_owned()), drain, suspend: false };
    for drain in 0..500 {
        assert!(shared.link.try_send(Outbound::Agent { queue: queue.clone(), message: answer(drain) }));
    }
    for drain in 0..500 {
        let delivery = answers.next().await.unwrap().unwrap();
        assert_eq!(codec::decode::<ToAgent>(&delivery.data).unwrap(), answer(drain), "in their order");
    }

    // Its end is noticed, and what is sent after that comes back.
    drop((answers, channel));
    connection.close(200, "bye".into()).await.unwrap();
    until("the end is noticed", || shared.saw(|seen| *seen == Seen::Closed(name.clone()))).await;
    let gone = Seen::Unroutable(queue.clone());
    until("a message to nobody comes back", || {
        shared.link.try_send(Outbound::Agent { queue: queue.clone(), message: answer(0) });
        shared.saw(|seen| *seen == gone)
    })
    .await;
}

#[tokio::test]
#[ignore = "run by on_one_node"]
async fn what_is_no_message_is_counted_and_disturbs_nobody() {
    #[derive(serde::Serialize)]
    enum Newer {
        Teapot { handle: u8 },
    }
    let shared = shared();
    let dropped = shared.link.dropped();
    let connection = agent("noisy").await;
    let send = async |user: Option<&str>, key: &str, body: &[u8]| {
        publish(&connection, user, AGENTS, key, body).await.unwrap();
    };
    let count = || {
        [&dropped.no_user_id, &dropped.misaddressed, &dropped.oversized, &dropped.malformed, &dropped.unknown]
            .map(|count| count.load(Ordering::Relaxed))
    };
    let before = count();
    send(None, "noisy.control", &codec::encode(&heartbeat(1))).await;
    send(None, "noisy.log", &codec::encode(&chunk(1))).await;
    send(Some("noisy"), "noisy.control", &codec::encode(&hello("rouse.agent.other.n.1"))).await;
    send(Some("noisy"), "noisy.control", &vec![0; MAX_MESSAGE + 1]).await;
    send(Some("noisy"), "noisy.log", &codec::encode(&chunk(LOG_CHUNK + 1))).await;
    send(Some("noisy"), "noisy.control", &[0xc1; 100]).await;
    send(Some("noisy"), "noisy.control", &codec::encode(&Newer::Teapot { handle: 1 })).await;
    send(Some("noisy"), "noisy.control", &codec::encode(&heartbeat(2))).await;
    let name = worker("noisy");
    until("the good one comes in", || shared.saw(|seen| *seen == Seen::Agent(name.clone(), heartbeat(2)))).await;
    // Other tests may add to the counters, none takes away.
    let least = [2, 1, 2, 1, 1];
    until("all are counted", || (0..5).all(|n| count()[n] >= before[n] + least[n])).await;
    assert!(!shared.saw(|seen| *seen == Seen::Agent(name.clone(), heartbeat(1))));
}

#[tokio::test]
#[ignore = "run by on_one_node"]
async fn builds_are_taken_and_answered_and_events_go_out() {
    let shared = shared();
    let connection = Connection::connect(shared.node.url(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let exclusive = QueueDeclareOptions { exclusive: true, ..Default::default() };
    let queue = channel.queue_declare("".into(), exclusive, FieldTable::default()).await.unwrap().name().clone();
    let (options, none) = (QueueBindOptions::default(), FieldTable::default());
    channel.queue_bind(queue.clone(), EVENTS.into(), "build.#".into(), options, none.clone()).await.unwrap();
    let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let mut consumer = channel.basic_consume(queue.clone(), "".into(), options, none).await.unwrap();
    let properties = BasicProperties::default()
        .with_delivery_mode(2)
        .with_message_id("m-1".into())
        .with_reply_to(queue.clone())
        .with_correlation_id("c-1".into());
    let options = BasicPublishOptions::default();
    channel.basic_publish("".into(), BUILDS.into(), options, b"{}", properties).await.unwrap().await.unwrap();
    let expected = Seen::Submit {
        body: b"{}".to_vec(),
        message_id: Some("m-1".to_owned()),
        reply_to: Some(queue.to_string()),
        correlation_id: Some("c-1".to_owned()),
    };
    until("the build comes in", || shared.saw(|seen| *seen == expected)).await;

    let (to, id) = (queue.to_string(), Some("c-1".to_owned()));
    assert!(shared.link.try_send(Outbound::Reply { to, correlation_id: id, body: b"{\"id\":1}".to_vec() }));
    assert!(shared.link.try_send(Outbound::Event { key: "build.1".to_owned(), body: b"{}".to_vec() }));
    let reply = consumer.next().await.unwrap().unwrap();
    assert_eq!(reply.data, b"{\"id\":1}");
    assert_eq!(reply.properties.correlation_id().as_ref().map(|id| id.as_str()), Some("c-1"));
    let event = consumer.next().await.unwrap().unwrap();
    assert_eq!((event.routing_key.as_str(), event.exchange.as_str()), ("build.1", EVENTS));

    // Neither a name that AMQP cannot carry nor a body too large breaks the link.
    let key = "k".repeat(256);
    assert!(!shared.link.try_send(Outbound::Event { key, body: vec![] }));
    assert!(!shared.link.try_send(Outbound::Event { key: "k".to_owned(), body: vec![0; MAX_MESSAGE + 1] }));
}

/// RabbitMQ asks nobody under which key a queue may send on what dies in it.
#[tokio::test]
#[ignore = "run by on_one_node"]
async fn dead_letters_are_counted_for_the_owner_of_their_queue() {
    let shared = shared();
    let connection = agent("undertaker").await;
    let channel = connection.create_channel().await.unwrap();
    let queue = agent_queue(&worker("undertaker"), &Nonce("n".to_owned()), 1);
    let mut arguments = FieldTable::default();
    for (key, value) in [("x-dead-letter-exchange", AGENTS), ("x-dead-letter-routing-key", "mourner.control")] {
        arguments.insert(key.into(), AMQPValue::LongString(value.into()));
    }
    arguments.insert("x-message-ttl".into(), AMQPValue::LongInt(0));
    let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
    channel.queue_declare(queue.as_str().into(), options, arguments).await.unwrap();
    let answer = |seq| ToAgent::Renewed { session: SessionId("s".to_owned()), seq, lease_ms: None };
    let dropped = shared.link.dropped();
    let before = dropped.total();
    for seq in 0..300 {
        assert!(shared.link.try_send(Outbound::Agent { queue: queue.clone(), message: answer(seq) }));
    }
    until("they are dropped", || dropped.total() >= before + 300).await;
    until("their sender is blocked", || shared.refusals.reason("undertaker").is_some()).await;
    assert_eq!(shared.refusals.reason("mourner"), None, "nobody else is");
}
