//! Measures the same broker without rouse: what any program could get from it.

use crate::time::Watch;
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer, Result};

async fn channel(url: &str) -> Result<(Connection, Channel)> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    Ok((connection, channel))
}

async fn queue(channel: &Channel, name: &str) -> Result<()> {
    let options = QueueDeclareOptions { auto_delete: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(name.into(), options, FieldTable::default()).await.map(drop)
}

async fn consume(channel: &Channel, queue: &str, no_ack: bool) -> Result<Consumer> {
    let options = BasicConsumeOptions { no_ack, ..BasicConsumeOptions::default() };
    channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await
}

async fn publish(
    channel: &Channel,
    queue: &str,
    body: &[u8],
) -> Result<impl Future<Output = Result<Confirmation>> + use<>> {
    channel
        .basic_publish("".into(), queue.into(), BasicPublishOptions::default(), body, BasicProperties::default())
        .await
}

/// Milliseconds of each round: published, consumed by somebody else, answered, the answer consumed.
pub async fn round_trips(url: &str, rounds: usize) -> Result<Vec<f64>> {
    let (_asking, there) = channel(url).await?;
    let (_answering, back) = channel(url).await?;
    queue(&there, "bench.there").await?;
    queue(&there, "bench.back").await?;
    let mut asked = consume(&back, "bench.there", true).await?;
    let mut answered = consume(&there, "bench.back", true).await?;
    tokio::spawn(async move {
        while let Some(Ok(delivery)) = asked.next().await {
            if publish(&back, "bench.back", &delivery.data).await.is_err() {
                return;
            }
        }
    });
    let mut times = Vec::with_capacity(rounds);
    for round in 0..rounds + 50 {
        let watch = Watch::start();
        drop(publish(&there, "bench.there", &[b'x'; 200]).await?);
        answered.next().await.transpose()?;
        // The first are for warming up.
        if round >= 50 {
            times.push(watch.seconds() * 1e3);
        }
    }
    Ok(times)
}

/// Messages of this size a second, through one queue to one consumer, neither confirmed nor acknowledged.
pub async fn messages(url: &str, size: usize, count: usize) -> Result<f64> {
    let (_in, from) = channel(url).await?;
    let (_out, to) = channel(url).await?;
    queue(&from, "bench.messages").await?;
    let mut consumer = consume(&from, "bench.messages", true).await?;
    let watch = Watch::start();
    let sending = tokio::spawn(async move {
        let body = vec![b'x'; size];
        let mut writing = FuturesOrdered::new();
        for _ in 0..count {
            writing.push_back(publish(&to, "bench.messages", &body));
            if writing.len() >= 64 {
                writing.next().await.transpose()?;
            }
        }
        while writing.next().await.transpose()?.is_some() {}
        Ok(())
    });
    for _ in 0..count {
        consumer.next().await.transpose()?;
    }
    let seconds = watch.seconds();
    match sending.await {
        Ok(sent) => sent.map(|()| count as f64 / seconds),
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Megabytes a second of messages of this size, with confirms, acknowledgements and the windows that logs have.
/// `parameters` go to the sender's URL.
pub async fn bytes(url: &str, parameters: &str, size: usize, window: usize, count: usize) -> Result<f64> {
    let (_in, from) = channel(url).await?;
    let (_out, to) = channel(&format!("{url}{parameters}")).await?;
    queue(&from, "bench.bytes").await?;
    from.basic_qos(64, BasicQosOptions::default()).await?;
    to.confirm_select(ConfirmSelectOptions::default()).await?;
    let mut consumer = consume(&from, "bench.bytes", false).await?;
    let watch = Watch::start();
    let sending = tokio::spawn(async move {
        let body = vec![b'x'; size];
        let mut writing = FuturesOrdered::new();
        for _ in 0..count {
            writing.push_back(async { publish(&to, "bench.bytes", &body).await?.await });
            if writing.len() >= window {
                writing.next().await.transpose()?;
            }
        }
        while writing.next().await.transpose()?.is_some() {}
        Ok(())
    });
    for number in 1..=count {
        let Some(delivery) = consumer.next().await.transpose()? else { continue };
        if number % 16 == 0 || number == count {
            from.basic_ack(delivery.delivery_tag, BasicAckOptions { multiple: true }).await?;
        }
    }
    let seconds = watch.seconds();
    match sending.await {
        Ok(sent) => sent.map(|()| (count * size) as f64 / seconds / 1e6),
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Milliseconds to connect, declare a queue and consume from it.
pub async fn attach(url: &str) -> Result<f64> {
    let watch = Watch::start();
    let (connection, consuming) = channel(&format!("{url}?frame_max=8192")).await?;
    queue(&consuming, "bench.attach").await?;
    // Kept until the connection is closed: what is dropped closes by itself, at the same time.
    let _consumer = consume(&consuming, "bench.attach", true).await?;
    let _control = connection.create_channel().await?;
    let time = watch.seconds() * 1e3;
    connection.close(200, "done".into()).await?;
    Ok(time)
}

/// Puts so many of a build into the submission queue; returns once the broker has them all.
pub async fn submit(url: &str, build: &str, count: usize) -> Result<()> {
    submit_all(url, std::iter::repeat_n(build.to_owned(), count)).await
}

/// Puts builds into the submission queue; returns once the broker has them all.
pub async fn submit_all(url: &str, builds: impl Iterator<Item = String>) -> Result<()> {
    let (connection, channel) = channel(url).await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let mut writing = FuturesOrdered::new();
    let publish = async |build: String| publish(&channel, rouse_shared::names::BUILDS, build.as_bytes()).await?.await;
    for build in builds {
        writing.push_back(publish(build));
        if writing.len() >= 256 {
            writing.next().await.transpose()?;
        }
    }
    while writing.next().await.transpose()?.is_some() {}
    drop(writing);
    connection.close(200, "done".into()).await
}
