//! One connection to the broker, with one channel: an exclusive queue to receive from, and messages to the master.
//!
//! A connection is never repaired. The link reports its end, and the core requests a new connection.

use crate::tls::{self, Trust};
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ErrorKind};
use rouse_shared::broker_url::{BrokerUrl, UrlError, bracketed};
use rouse_shared::error::Chain;
use rouse_shared::message::ToAgent;
use rouse_shared::{WorkerName, certificate, codec, names};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

/// Largest frame, bytes: the smallest limit that RabbitMQ 4 accepts, because lapin keeps 64 frames for each connection.
const FRAME_MAX: u32 = 8_192;
/// Interval of AMQP heartbeats, seconds. The broker deletes the queue of a dead agent after about three of them.
const HEARTBEAT: u16 = 10;
/// Longest time for TCP: name lookup and connection.
const TCP_TIMEOUT: Duration = Duration::from_secs(20);
/// The same if there are other hosts: long enough for two lost packets. A machine that is cut off does not refuse, and
/// the lease of the session goes on meanwhile.
const TCP_TIMEOUT_OF_SEVERAL: Duration = Duration::from_secs(5);
/// Longest time to connect to one host: TCP, TLS, AMQP, the queue. A broker that thousands of agents ask at once answers
/// each of them, but late. Whoever gives up and asks again has wasted the broker's work, so the agent waits twice as long
/// after each time it was in vain. The broker allows 120 s for a login (`handshake_timeout`).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);
/// The same if there are other hosts.
const CONNECT_TIMEOUT_OF_SEVERAL: Duration = Duration::from_secs(20);
/// How often the time is doubled at most.
const DOUBLINGS: usize = 2;
/// Longest time for an orderly close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Largest number of messages that wait to be written. A link that accepts no more is broken, and its messages are sent
/// again on the next one.
const OUTBOX: usize = 1_024;
/// Largest number of messages that are being written at the same time.
const IN_FLIGHT: usize = 64;
/// AMQP's reply code for refused credentials.
const ACCESS_REFUSED: u16 = 403;

/// Where to connect.
#[derive(Clone, Debug)]
pub struct Target {
    /// In order of preference, at least one.
    uris: Vec<AMQPUri>,
    /// Which of their certificates are accepted.
    trust: Trust,
    /// Which of them is tried first: the one after that of the last connection, which may be cut off.
    first: Arc<AtomicUsize>,
    /// How often in a row no host has answered in time.
    late: Arc<AtomicUsize>,
}

impl Target {
    /// The brokers in `amqps://host[:port],host[:port]/vhost`.
    ///
    /// # Errors
    /// Why this is not such an address, or that it contains a user; for people.
    pub fn parse(broker: &str, trust: Trust) -> Result<Self, String> {
        let wrong = |why: &str| {
            // Not quoted if it may hold a password.
            let broker = if broker.contains('@') { "(an address with a user in it)" } else { broker };
            format!(
                "{broker:?}: {why}; write amqp://host[:port][,host…]/vhost, or amqps:// for an encrypted connection"
            )
        };
        let url = BrokerUrl::parse(broker).map_err(|error| wrong(&error.to_string()))?;
        if url.login.is_some() {
            return Err(
                "the broker's address has a user in it; an agent logs in with its own name and password".to_owned()
            );
        }
        if !url.tls && matches!(trust, Trust::Only(_)) {
            return Err(wrong("it is not encrypted, and a fingerprint is configured for the broker's certificate"));
        }
        // lapin parses only the query: it would turn an IPv6 address into localhost.
        let query = format!("amqp://broker/?{}", url.query);
        let mut uri: AMQPUri = query.parse().map_err(|_| wrong(&UrlError::Query.to_string()))?;
        uri.scheme = if url.tls { AMQPScheme::AMQPS } else { AMQPScheme::AMQP };
        uri.vhost = url.vhost;
        uri.query.frame_max = Some(FRAME_MAX);
        uri.query.heartbeat = Some(HEARTBEAT);
        let with_host = |(host, port)| {
            let mut uri = uri.clone();
            uri.authority.host = host;
            uri.authority.port = port;
            uri
        };
        let uris = url.hosts.into_iter().map(with_host).collect();
        Ok(Self { uris, trust, first: Arc::default(), late: Arc::default() })
    }

    /// The hosts with their ports, in order.
    pub fn hosts(&self) -> impl Iterator<Item = (&str, u16)> {
        self.uris.iter().map(|uri| (uri.authority.host.as_str(), uri.authority.port))
    }
}

/// What a link reports.
#[derive(Debug)]
pub enum LinkEvent {
    /// The queue is declared and consumed. At most once.
    Up {
        /// The connection, for channels in addition to the link's own.
        connection: Arc<Connection>,
    },
    /// The broker accepts no messages on this connection for now, for this reason. What is sent waits.
    Blocked(String),
    /// It accepts messages again.
    Unblocked,
    /// A message from the master.
    Message(Box<ToAgent>),
    /// A message that cannot be decoded, for this reason, and is ignored.
    Malformed(String),
    /// The link could not be established, or has ended. The last event.
    Down {
        /// Whether the broker refused name and password.
        refused: bool,
        /// The reason, for people.
        why: String,
    },
}

/// The owner's handle of a link. When it is dropped, the connection is closed once everything has been sent.
#[derive(Debug)]
pub struct Link {
    outbox: mpsc::Sender<Vec<u8>>,
}

/// The credentials and the queue of a link.
#[derive(Clone)]
pub struct Login {
    /// The worker, whose name is the login name and the sender of every message.
    pub worker: WorkerName,
    /// The worker's password, a boot token or a session secret.
    pub credential: String,
    /// Number of the connection, which is reported with each event.
    pub connection: u64,
    /// Name of the queue to declare.
    pub queue: String,
}

/// Why a link is down.
struct LinkError {
    refused: bool,
    why: String,
}

impl LinkError {
    fn new(why: impl fmt::Display) -> Self {
        Self { refused: false, why: why.to_string() }
    }
}

impl From<lapin::Error> for LinkError {
    fn from(error: lapin::Error) -> Self {
        let refused = matches!(error.kind(), ErrorKind::ProtocolError(e) if e.get_id() == ACCESS_REFUSED);
        Self { refused, why: error.to_string() }
    }
}

impl Link {
    /// Starts to connect. Events go to `events` with the connection's number, and the last is [`LinkEvent::Down`].
    /// `done` is dropped when the connection is closed.
    pub fn open(target: Target, login: Login, events: mpsc::Sender<(u64, LinkEvent)>, done: mpsc::Sender<()>) -> Self {
        let (outbox, inbox) = mpsc::channel(OUTBOX);
        tokio::spawn(async move {
            let _done = done;
            let number = login.connection;
            let end = run(&target, login, inbox, &events).await;
            // If nobody receives it, the agent is about to exit.
            drop(events.send((number, LinkEvent::Down { refused: end.refused, why: end.why })).await);
        });
        Self { outbox }
    }

    /// Queues a message for the master. False if the link accepts no more.
    pub fn send(&self, message: Vec<u8>) -> bool {
        self.outbox.try_send(message).is_ok()
    }
}

async fn run(
    target: &Target,
    login: Login,
    mut inbox: mpsc::Receiver<Vec<u8>>,
    events: &mpsc::Sender<(u64, LinkEvent)>,
) -> LinkError {
    let number = login.connection;
    let connecting = connect_any(target, &login);
    let (connection, channel, mut consumer) = tokio::select! {
        made = connecting => match made {
            Ok(made) => made,
            Err(broken) => return broken,
        },
        // The owner has given up meanwhile. It sends no messages before the link is up.
        _ = inbox.recv() => return LinkError::new("given up while connecting"),
    };
    // RabbitMQ blocks no connection on which nothing was published, so this misses nothing.
    let mut alarms = connection.events_listener();
    let connection = Arc::new(connection);
    if events.send((number, LinkEvent::Up { connection: connection.clone() })).await.is_err() {
        return LinkError::new("its owner is gone");
    }
    let key = names::control_key(&login.worker);
    let properties = BasicProperties::default().with_user_id(login.worker.as_str().into());
    let mut writing = FuturesOrdered::new();
    let end = loop {
        tokio::select! {
            message = inbox.recv(), if writing.len() < IN_FLIGHT => match message {
                Some(message) => writing.push_back(publish(&channel, &key, properties.clone(), message)),
                None => break None,
            },
            Some(written) = writing.next(), if !writing.is_empty() => {
                if let Err(error) = written {
                    break Some(LinkError::from(error));
                }
            }
            Some(event) = alarms.next() => {
                let event = match event {
                    lapin::Event::ConnectionBlocked(why) => LinkEvent::Blocked(why),
                    lapin::Event::ConnectionUnblocked => LinkEvent::Unblocked,
                    // The end of the connection ends the consumer as well.
                    _ => continue,
                };
                if events.send((number, event)).await.is_err() {
                    break None;
                }
            }
            delivery = consumer.next() => {
                let event = match delivery {
                    Some(Ok(delivery)) => match codec::decode::<ToAgent>(&delivery.data) {
                        Ok(message) => LinkEvent::Message(Box::new(message)),
                        Err(error) => LinkEvent::Malformed(Chain(&error).to_string()),
                    },
                    Some(Err(error)) => break Some(LinkError::from(error)),
                    None => break Some(LinkError::new("the broker has deleted the queue")),
                };
                if events.send((number, event)).await.is_err() {
                    break None;
                }
            }
        }
    };
    if let Some(broken) = end {
        // The rest of a broken connection ends by itself, and is not waited for.
        drop(tokio::time::timeout(CLOSE_TIMEOUT, connection.close(200, "OK".into())).await);
        return broken;
    }
    let in_good_order = async {
        while let Some(written) = writing.next().await {
            written?;
        }
        connection.close(200, "OK".into()).await
    };
    match tokio::time::timeout(CLOSE_TIMEOUT, in_good_order).await {
        Ok(Ok(())) => LinkError::new("closed"),
        Ok(Err(error)) => error.into(),
        Err(_) => LinkError::new("closed while the broker accepted nothing"),
    }
}

async fn publish(channel: &Channel, key: &str, properties: BasicProperties, message: Vec<u8>) -> lapin::Result<()> {
    let options = BasicPublishOptions { mandatory: false, immediate: false };
    channel.basic_publish(names::AGENTS.into(), key.into(), options, &message, properties).await?.await?;
    Ok(())
}

/// Connects to the first host that accepts, beginning after the one of the last connection. After a refusal no other host
/// is tried, because it asks the same master. The next connection begins with another host nevertheless: this one may be
/// unable to ask.
async fn connect_any(target: &Target, login: &Login) -> Result<(Connection, Channel, lapin::Consumer), LinkError> {
    let mut whys = Vec::new();
    let (count, first) = (target.uris.len(), target.first.load(Ordering::Relaxed));
    let (within, patience) = match count {
        1 => (TCP_TIMEOUT, CONNECT_TIMEOUT),
        _ => (TCP_TIMEOUT_OF_SEVERAL, CONNECT_TIMEOUT_OF_SEVERAL),
    };
    let patience = patience * (1 << target.late.load(Ordering::Relaxed).min(DOUBLINGS));
    let mut late = false;
    for (number, uri) in target.uris.iter().enumerate().cycle().skip(first).take(count) {
        let place = format!("{}:{}", bracketed(&uri.authority.host), uri.authority.port);
        match tokio::time::timeout(patience, connect(uri, target.trust.clone(), login, within)).await {
            Ok(Ok(made)) => {
                target.late.store(0, Ordering::Relaxed);
                target.first.store((number + 1) % count, Ordering::Relaxed);
                return Ok(made);
            }
            Ok(Err(broken)) if broken.refused => {
                target.first.store((number + 1) % count, Ordering::Relaxed);
                return Err(LinkError { refused: true, why: format!("{place}: {}", broken.why) });
            }
            Ok(Err(broken)) => whys.push(format!("{place}: {}", broken.why)),
            Err(_) => {
                late = true;
                whys.push(format!("{place}: no answer for {} s", patience.as_secs()));
            }
        }
    }
    if late {
        target.late.fetch_add(1, Ordering::Relaxed);
    }
    Err(LinkError::new(whys.join("; ")))
}

async fn connect(
    uri: &AMQPUri,
    trust: Trust,
    login: &Login,
    within: Duration,
) -> Result<(Connection, Channel, lapin::Consumer), LinkError> {
    let mut uri = uri.clone();
    uri.authority.userinfo.username = login.worker.to_string();
    uri.authority.userinfo.password = login.credential.clone();
    let name = format!("rouse-agent {} {}", login.worker, login.connection);
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let host = uri.authority.host.clone();
    let connection = tls::connect(uri, properties, trust, within).await.map_err(|error| {
        let explained = certificate::explain(&error, &host);
        let mut broken = LinkError::from(error);
        broken.why.extend(explained.map(|text| format!(": {text}")));
        // Only the master knows the reason.
        let why = "the broker refused name and password: they are wrong (see the master's log), or the master is down";
        if broken.refused { LinkError { why: why.to_owned(), ..broken } } else { broken }
    })?;
    // Each channel costs the broker 0.7 ms and four processes.
    let channel = connection.create_channel().await?;
    // Without an answer: if it were refused, the answer to the next request would say so.
    let declare = QueueDeclareOptions { exclusive: true, nowait: true, ..QueueDeclareOptions::default() };
    // The default of the virtual host may be a type that cannot be exclusive.
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("classic".into()));
    channel.queue_declare(login.queue.as_str().into(), declare, arguments).await?;
    let consume = BasicConsumeOptions { no_ack: true, exclusive: true, ..BasicConsumeOptions::default() };
    let consumer =
        channel.basic_consume(login.queue.as_str().into(), "".into(), consume, FieldTable::default()).await?;
    Ok((connection, channel, consumer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    fn hosts(broker: &str) -> Vec<(String, u16)> {
        let target = Target::parse(broker, Trust::Authorities(None)).expect("an address");
        target.hosts().map(|(h, p)| (h.to_owned(), p)).collect()
    }

    #[test]
    fn hosts_are_tried_in_their_order() {
        let two = "amqps://mq1.example.org,mq2.example.org:5999/rouse";
        assert_eq!(hosts(two), [("mq1.example.org".to_owned(), 5671), ("mq2.example.org".to_owned(), 5999)]);
        assert_eq!(hosts("amqp://127.0.0.1"), [("127.0.0.1".to_owned(), 5672)]);
        assert_eq!(hosts("amqps://[fd00::1],[::1]:5999/v"), [("fd00::1".to_owned(), 5671), ("::1".to_owned(), 5999)]);
        let target = Target::parse(two, Trust::Authorities(None)).expect("an address");
        assert!(target.uris.iter().all(|uri| uri.vhost == "rouse"));
    }

    #[test]
    fn what_is_no_broker_is_refused_without_showing_passwords() {
        for bad in [
            "",
            "mq.example.org",
            "http://mq.example.org",
            "amqp://",
            "amqp://a,,b/v",
            "amqp://a:port/v",
            "amqp://a/v?channel_max=x",
        ] {
            assert!(Target::parse(bad, Trust::Authorities(None)).is_err(), "{bad:?} was taken");
        }
        let error = Target::parse("amqp://me:hush@mq.example.org/", Trust::Authorities(None)).expect_err("refused");
        assert!(!error.contains("hush"), "{error}");
        let error = Target::parse("http://me:hush@mq.example.org/", Trust::Authorities(None)).expect_err("refused");
        assert!(!error.contains("hush"), "{error}");
    }

    #[test]
    fn a_fingerprint_is_no_use_without_encryption() {
        let trust = Trust::Only(rouse_shared::Fingerprint::of(b"certificate"));
        Target::parse("amqps://mq.example.org/v", trust.clone()).expect("encrypted");
        let error = Target::parse("amqp://mq.example.org/v", trust).expect_err("in clear");
        assert!(error.contains("amqps://"), "{error}");
    }

    /// A broker that refuses the first login, and how that is written in AMQP.
    async fn refuse_one(listener: TcpListener) {
        let method = |bytes: &[&[u8]]| {
            let bytes = bytes.concat();
            let length = u32::try_from(bytes.len()).expect("a few bytes").to_be_bytes();
            [&[1, 0, 0], &length[..], &bytes, &[0xCE]].concat()
        };
        let start = method(&[&[0, 10, 0, 10, 0, 9, 0, 0, 0, 0, 0, 0, 0, 5], b"PLAIN", &[0, 0, 0, 5], b"en_US"]);
        let close = method(&[&[0, 10, 0, 50], &ACCESS_REFUSED.to_be_bytes(), &[2], b"no", &[0; 4]]);
        let (mut stream, _) = listener.accept().await.expect("a connection");
        for answer in [start, close] {
            let _header_or_login = stream.read(&mut [0; 4_096]).await.expect("a client that speaks");
            stream.write_all(&answer).await.expect("a client that listens");
        }
        // Until the client has closed the connection.
        while stream.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {}
    }

    #[tokio::test]
    async fn after_a_refusal_the_next_connection_begins_with_the_next_host() {
        let mut places = Vec::new();
        for _ in 0..2 {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            places.push(format!("127.0.0.1:{}", listener.local_addr().expect("an address").port()));
            tokio::spawn(refuse_one(listener));
        }
        let url = format!("amqp://{}/rouse", places.join(","));
        let target = Target::parse(&url, Trust::Authorities(None)).expect("an address");
        let worker: WorkerName = "w1".parse().expect("a name");
        for (number, place) in places.iter().enumerate() {
            let login =
                Login { worker: worker.clone(), credential: "x".to_owned(), connection: 1, queue: "q".to_owned() };
            let refused = connect_any(&target, &login).await.expect_err("it refuses");
            assert!(refused.refused && refused.why.starts_with(place), "{number}: {}", refused.why);
        }
    }

    #[tokio::test]
    async fn an_ipv6_broker_is_dialled() {
        // A machine without IPv6 has no such address.
        let Ok(listener) = TcpListener::bind("[::1]:0").await else { return };
        let port = listener.local_addr().expect("an address").port();
        let target =
            Target::parse(&format!("amqp://[::1]:{port}/rouse"), Trust::Authorities(None)).expect("an address");
        assert_eq!(target.hosts().collect::<Vec<_>>(), [("::1", port)]);
        let worker = "w1".parse().expect("a name");
        let login = Login { worker, credential: "secret".to_owned(), connection: 1, queue: "q".to_owned() };
        let (events, _heard) = mpsc::channel(1);
        let (done, _ended) = mpsc::channel(1);
        let _link = Link::open(target, login, events, done);
        let accepted = async {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut header = [0; 8];
            stream.read_exact(&mut header).await.expect("a header");
            header
        };
        let header = tokio::time::timeout(CONNECT_TIMEOUT, accepted).await.expect("the agent dials");
        assert_eq!(&header, b"AMQP\0\0\x09\x01");
    }
}
