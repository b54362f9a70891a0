//! Builds through the queue, and changes through the exchange and as server-sent events.

use crate::shared;
use futures_util::StreamExt as _;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer};
use rouse_shared::names::{BUILDS, EVENTS};
use rouse_tests::harness::{DEADLINE, Master, open, text};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader};
use std::time::Duration;

async fn own_queue(channel: &Channel) -> (String, Consumer) {
    let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
    let queue = channel.queue_declare("".into(), options, FieldTable::default()).await.unwrap().name().to_string();
    let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let consumer = channel.basic_consume(queue.as_str().into(), "".into(), options, FieldTable::default());
    let consumer = consumer.await.unwrap();
    (queue, consumer)
}

async fn next(consumer: &mut Consumer) -> (String, Option<String>, Value) {
    let delivery = tokio::time::timeout(DEADLINE, consumer.next()).await.expect("nothing came").unwrap().unwrap();
    let correlation = delivery.properties.correlation_id().as_ref().map(ToString::to_string);
    (delivery.routing_key.to_string(), correlation, serde_json::from_slice(&delivery.data).unwrap())
}

async fn dial(master: &Master) -> Connection {
    let password = std::fs::read_to_string(master.dir.join("state/broker/password")).unwrap();
    let login = format!("amqp://rouse_master:{}@", password.trim());
    Connection::connect(&master.broker_url.replace("amqp://", &login), ConnectionProperties::default()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_build_runs_once_and_its_events_are_published() {
    let master = tokio::task::block_in_place(shared);
    let _agent = tokio::task::block_in_place(|| master.agent("inbox"));
    let stream = open(master.http, "GET", "/api/events", Some(&master.token()), "").unwrap();
    let connection = dial(master).await;
    let channel = connection.create_channel().await.unwrap();
    let (reply_to, mut replies) = own_queue(&channel).await;
    let (heard, mut events) = own_queue(&channel).await;
    let bind = channel.queue_bind(
        heard.as_str().into(),
        EVENTS.into(),
        "#".into(),
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    bind.await.unwrap();

    let trace = master.trace("inbox");
    let build = |name: &str| {
        let script = format!("echo {name} >> {}", trace.path());
        json!({ "name": name, "worker": "inbox", "step": [{ "run": script }] })
    };
    let publish = async |body: Vec<u8>, content: &str, message: Option<&str>, correlation: &str| {
        let mut properties = BasicProperties::default()
            .with_content_type(content.into())
            .with_correlation_id(correlation.into())
            .with_reply_to(reply_to.as_str().into());
        if let Some(message) = message {
            properties = properties.with_message_id(message.into());
        }
        let sent = channel.basic_publish("".into(), BUILDS.into(), BasicPublishOptions::default(), &body, properties);
        sent.await.unwrap().await.unwrap();
    };
    let mut ids = Vec::new();
    for (name, content) in [("as-json", "application/json"), ("as-msgpack", "application/msgpack")] {
        let body = match content {
            "application/json" => serde_json::to_vec(&build(name)).unwrap(),
            _ => rmp_serde::to_vec_named(&build(name)).unwrap(),
        };
        for correlation in ["first", "second"] {
            publish(body.clone(), content, Some(name), correlation).await;
        }
        let answers = [next(&mut replies).await, next(&mut replies).await];
        assert_eq!(answers[0].2["id"], answers[1].2["id"], "one message id is one build");
        let correlations = answers.iter().map(|(_, c, _)| c.clone().unwrap()).collect::<Vec<_>>();
        assert_eq!(correlations, ["first", "second"]);
        ids.push(text(&answers[0].2["id"]));
    }
    for id in &ids {
        tokio::task::block_in_place(|| master.until_state(id, "success"));
    }
    let mut lines = trace.lines();
    lines.sort();
    assert_eq!(lines, ["as-json", "as-msgpack"]);

    for (body, part) in [
        ("{\"step\": 7}", "step"),
        ("not json", "build"),
        ("{\"worker\": \"nobody\", \"step\": [{\"run\": \"x\"}]}", "nobody"),
    ] {
        publish(body.as_bytes().to_vec(), "application/json", None, "bad").await;
        let (_, correlation, answer) = next(&mut replies).await;
        assert_eq!(correlation.as_deref(), Some("bad"));
        assert!(answer["id"].is_null() && answer["error"].is_string() && answer.to_string().contains(part), "{answer}");
    }

    // On the exchange.
    let mut states = Vec::new();
    while states.last().map(String::as_str) != Some("success") {
        let (key, _, event) = next(&mut events).await;
        if event["id"] == ids[0].as_str() {
            assert!(key.starts_with("build"), "{key}");
            states.push(text(&event["state"]));
        }
    }
    // As server-sent events.
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let published = tokio::task::block_in_place(|| {
        let lines = BufReader::new(stream).lines().map_while(Result::ok);
        let data = lines.filter_map(|line| line.strip_prefix("data:").map(|d| d.trim().to_owned()));
        let mut events = data.filter_map(|d| serde_json::from_str::<Value>(&d).ok());
        events.any(|event| event["id"] == ids[1].as_str() && event["state"] == "success")
    });
    assert!(published, "the end of build {} as an event", ids[1]);
}
