//! Which agents may connect, and what they may use.

use crate::harness::{agent, code, dial, is_refused, log_text, own_queue, publish, shared, until, worker};
use lapin::options::{BasicGetOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use rouse_shared::limits::MAX_MESSAGE;
use rouse_shared::names::{AGENTS, BUILDS, CONTROL, EVENTS, LOGS};

#[tokio::test]
#[ignore = "run by on_one_node"]
async fn wrong_passwords_and_unknown_names_are_refused_alike_and_logged_with_their_address() {
    let shared = shared();
    dial(shared.address, "auth-in", "pw-auth-in").await.unwrap();
    let long = "w".repeat(200);
    let odd = ["", " ", "w\u{7f}\n", "é", "a&b=c%", "rouse_master", "guest", long.as_str()];
    for (name, password) in
        [("auth-wrong", "pw-other"), ("unknown-1", "pw-unknown-1")].into_iter().chain(odd.map(|name| (name, "guess")))
    {
        assert!(is_refused(dial(shared.address, name, password).await), "{name:?} was let in");
    }
    assert_eq!(shared.refusals.reason("auth-wrong").as_deref(), Some("wrong password"));
    assert_eq!(shared.refusals.reason("unknown-1").as_deref(), Some("no such worker"));
    for (name, reason) in [("auth-wrong", "wrong password"), ("unknown-1", "no such worker")] {
        until("the address of a refused agent is logged", || {
            log_text().lines().any(|line| line.contains(name) && line.contains(reason) && line.contains("127.0.0.1"))
        })
        .await;
    }
    assert!(!log_text().contains("pw-other"), "a password was logged");
}

#[tokio::test]
#[ignore = "run by on_one_node"]
async fn wrong_passwords_delay_nobody_who_is_right() {
    let address = shared().address;
    let guesses: Vec<_> = (0..30)
        .map(|guess| {
            tokio::spawn(async move { dial(address, "auth-guessed", &format!("guess {guess}")).await.is_err() })
        })
        .collect();
    // While these wait for their answers.
    for name in ["auth-guessed", "auth-beside"] {
        dial(address, name, &format!("pw-{name}")).await.unwrap();
    }
    for guess in guesses {
        assert!(guess.await.unwrap(), "a guess was let in");
    }
}

#[tokio::test]
#[ignore = "run by on_one_node"]
async fn an_agent_reaches_nothing_but_its_own() {
    let connection = agent("w1").await;
    let own = connection.create_channel().await.unwrap();
    own_queue(&own, "rouse.agent.w1.nonce.1").await.unwrap();
    let other = agent("w10").await;
    let others = other.create_channel().await.unwrap();
    let open = QueueDeclareOptions { durable: true, auto_delete: true, ..Default::default() };
    others.queue_declare("rouse.agent.w10.open.1".into(), open, FieldTable::default()).await.unwrap();

    for queue in ["rouse.agent.w10.open.1", "rouse.agent.w1-x.n.1", CONTROL, LOGS, BUILDS, "rouse.agent.w1"] {
        let channel = connection.create_channel().await.unwrap();
        assert!(is_refused(channel.basic_get(queue.into(), BasicGetOptions::default()).await), "read {queue}");
        let channel = connection.create_channel().await.unwrap();
        assert!(is_refused(own_queue(&channel, queue).await), "declared {queue}");
    }
    for (exchange, key) in [
        (AGENTS, "w10.control"),
        (AGENTS, "w1-x.log"),
        (AGENTS, "w1.control.more"),
        (AGENTS, "#"),
        (EVENTS, "w1.control"),
        ("", CONTROL),
        ("", "rouse.agent.w10.open.1"),
        ("amq.topic", "w1.control"),
    ] {
        let published = publish(&connection, Some("w1"), exchange, key, b"x").await;
        assert!(is_refused(published), "published to {exchange:?} under {key}");
    }
    for exchange in [AGENTS, EVENTS, "amq.rabbitmq.event"] {
        let channel = connection.create_channel().await.unwrap();
        let (options, none) = (QueueBindOptions::default(), FieldTable::default());
        let bound = channel.queue_bind("rouse.agent.w1.nonce.1".into(), exchange.into(), "#".into(), options, none);
        assert!(is_refused(bound.await), "listened to {exchange}");
    }
    let channel = connection.create_channel().await.unwrap();
    let (options, none) = (ExchangeDeclareOptions::default(), FieldTable::default());
    let declared = channel.exchange_declare("mine".into(), lapin::ExchangeKind::Fanout, options, none).await;
    assert!(is_refused(declared));
    // The connection has survived all of it.
    publish(&connection, Some("w1"), AGENTS, "w1.control", b"x").await.unwrap();
}

#[tokio::test]
#[ignore = "run by on_one_node"]
async fn a_lie_about_the_sender_is_refused_by_the_broker() {
    let connection = agent("liar").await;
    let published = publish(&connection, Some("honest"), AGENTS, "liar.control", b"x").await;
    assert_eq!(code(published), Some(406));
    assert!(!shared().saw(|seen| matches!(seen, crate::harness::Seen::Agent(from, _) if *from == worker("honest"))));
}

#[tokio::test]
#[ignore = "run by on_one_node"]
async fn a_message_beyond_all_measure_stops_at_the_broker() {
    let connection = agent("big").await;
    let published = publish(&connection, Some("big"), AGENTS, "big.log", &vec![0; MAX_MESSAGE + (1 << 20)]).await;
    assert_eq!(code(published), Some(406));
}
