//! Connects to the first broker that answers, and declares queues and exchanges there.

use super::super::limits::{BUILDS_PREFETCH, CONNECT_TIMEOUT, EVENTS_PREFETCH, EVENTS_QUEUE_LENGTH, TCP_TIMEOUT};
use super::LinkSettings;
use super::outbound::NOBODY;
use super::queues;
use super::session::Session;
use super::uri::{Endpoints, shown};
use crate::tls;
use async_rs::TokioRuntime;
use async_rs::traits::Reactor;
use futures_util::future::maybe_done;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
    QueueBindOptions, QueueDeclareOptions,
};
use lapin::tcp::{AsyncTcpStream, OwnedTLSConfig, RustlsConnector};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer, ErrorKind, ExchangeKind};
use rouse_shared::certificate;
use rouse_shared::error::Chain;
use rouse_shared::fingerprint::client_config;
use rouse_shared::names::{AGENTS, BUILDS, EVENTS};
use std::error::Error;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::time::timeout;
use tracing::warn;

/// A channel with its consumer.
pub(super) struct Reader {
    pub(super) queue: String,
    pub(super) channel: Channel,
    pub(super) consumer: Consumer,
}

/// Polls each future once, in order, and then waits for all. So what they send is sent in that order and together.
pub(super) async fn in_order<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut all: Vec<_> = futures.map(|future| Box::pin(maybe_done(future))).collect();
    std::future::poll_fn(|context| {
        for future in &mut all {
            // The first poll has queued the frames, whether the future is ready or not.
            let _began = future.as_mut().poll(context);
        }
        Poll::Ready(())
    })
    .await;
    let mut outputs = Vec::with_capacity(all.len());
    for future in &mut all {
        future.as_mut().await;
        outputs.extend(Pin::as_mut(future).take_output());
    }
    outputs
}

/// Which certificates of a broker the master accepts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Trust {
    /// Those that an authority of this machine or one in this PEM file has signed.
    Authorities(Option<PathBuf>),
    /// Those in this PEM file, and what they have signed. For the master's own broker, which has the first of them.
    Certificates(PathBuf),
}

impl Default for Trust {
    fn default() -> Self {
        Self::Authorities(None)
    }
}

/// A [`Trust`] whose files have been read.
#[derive(Clone)]
pub(in crate::broker) enum Tls {
    Authorities(OwnedTLSConfig),
    Certificates(RustlsConnector),
}

impl Trust {
    pub(in crate::broker) async fn read(&self) -> Result<Tls, String> {
        Ok(match self {
            Self::Authorities(None) => Tls::Authorities(OwnedTLSConfig::default()),
            Self::Authorities(Some(path)) => {
                let chain = tokio::fs::read_to_string(path)
                    .await
                    .map_err(|error| format!("cannot read broker.ca {}: {error}", path.display()))?;
                Tls::Authorities(OwnedTLSConfig { identity: None, cert_chain: Some(chain) })
            }
            Self::Certificates(path) => {
                let expected = tls::fingerprints(path).map_err(|error| Chain(&error).to_string())?;
                let config = client_config(expected).map_err(|error| error.to_string())?;
                Tls::Certificates(RustlsConnector::from(Arc::new(config)))
            }
        })
    }
}

/// Tries each broker once, beginning with the one of this number. The number becomes that of the broker after the one that
/// answers: when the connection is lost, it may be cut off. The error names all of them, without passwords.
pub(super) async fn connect(settings: &LinkSettings, first: &mut usize) -> Result<Session, String> {
    let tls = settings.trust.read().await?;
    let mut failures = Vec::new();
    let uris = settings.endpoints.uris();
    for (number, uri) in uris.iter().enumerate().cycle().skip(*first).take(uris.len()) {
        let why = match timeout(CONNECT_TIMEOUT, open(uri, &tls)).await {
            Ok(Ok(session)) => {
                *first = (number + 1) % uris.len();
                return Ok(session);
            }
            Ok(Err(error)) => certificate::with_explanation(error.to_string(), &error, &uri.authority.host),
            Err(_elapsed) => format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()),
        };
        failures.push(format!("{}: {why}", shown(uri)));
    }
    Err(failures.join("; "))
}

async fn open(uri: &AMQPUri, tls: &Tls) -> lapin::Result<Session> {
    let publishing = dial(uri, tls, "rouse master: out").await?;
    let reading = dial(uri, tls, "rouse master: in").await?;
    let logging = dial(uri, tls, "rouse master: logs").await?;
    let out = publishing.create_channel().await?;
    let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
    for exchange in [AGENTS, EVENTS] {
        out.exchange_declare(exchange.into(), ExchangeKind::Topic, durable, FieldTable::default()).await?;
    }
    let control = queues::read(&reading, &queues::CONTROL).await?;
    let logs = queues::read(&logging, &queues::LOGS).await?;
    let events = match events(&reading).await {
        Ok(events) => Some(events),
        Err(error) => {
            warn!(%error, "no events from the broker (enable rabbitmq_event_exchange for this virtual host \
                as event_exchange.vhost): refused agents are logged without their address, and closed connections are \
                noticed by their lease only");
            None
        }
    };
    let endpoint = shown(uri);
    let own = own_user(uri, &publishing).await;
    let (reading, others) = (Arc::new(reading), [publishing, logging]);
    Ok(Session { endpoint, out, own, control, logs, events, reading, others })
}

/// The master's user, as the broker knows it. RabbitMQ's backends of other makers may give it another name than the one
/// that it logs in with, and a message in the name of another user ends its channel. Therefore this is tried on a channel
/// of its own.
async fn own_user(uri: &AMQPUri, connection: &Connection) -> Option<ShortString> {
    let user = ShortString::try_new(uri.authority.userinfo.username.clone()).ok()?;
    let tried = async {
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let properties = BasicProperties::default().with_user_id(user.clone());
        let options = BasicPublishOptions::default();
        channel.basic_publish("".into(), NOBODY.into(), options, &[], properties).await?.await?;
        channel.close(200, "tried".into()).await
    };
    match tried.await {
        Ok(()) => Some(user),
        Err(error) => {
            let error: lapin::Error = error;
            warn!(%error, "the broker does not let the master send in the name of its user");
            None
        }
    }
}

pub(in crate::broker) async fn dial(uri: &AMQPUri, tls: &Tls, name: &str) -> lapin::Result<Connection> {
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let runtime = lapin::runtime::default_runtime()?;
    let (tls, dialled) = (tls.clone(), runtime.clone());
    let open = async move |uri: AMQPUri, _| Ok(stream(&uri, &tls, &dialled).await?);
    Connection::connector(uri.clone(), runtime, open, properties).await
}

/// A connection on which nothing has been sent.
pub(in crate::broker) type Stream = AsyncTcpStream<<TokioRuntime as Reactor>::TcpStream>;

/// Opens TCP, and TLS if the URL says so. A machine that is cut off does not refuse, so TCP has a time limit of its own.
pub(in crate::broker) async fn stream(uri: &AMQPUri, tls: &Tls, runtime: &TokioRuntime) -> io::Result<Stream> {
    let host = uri.authority.host.as_str();
    let within = uri.query.connection_timeout.map_or(TCP_TIMEOUT, Duration::from_millis);
    let place = runtime.to_socket_addrs((host.to_owned(), uri.authority.port));
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", within.as_secs_f32()));
    let stream = timeout(within, AsyncTcpStream::connect(runtime, place)).await.map_err(late)??;
    Ok(match (&uri.scheme, tls) {
        (AMQPScheme::AMQP, _) => stream,
        (AMQPScheme::AMQPS, Tls::Authorities(config)) => stream.into_tls(host, config.as_ref()).await?,
        (AMQPScheme::AMQPS, Tls::Certificates(connector)) => stream.into_rustls(connector, host).await?,
    })
}

/// Declares the submission queue only, for the first start of a private broker.
pub(in crate::broker) async fn declare_builds(url: &str, trust: &Trust) -> Result<(), Box<dyn Error + Send + Sync>> {
    let endpoints = Endpoints::parse(url)?;
    let [uri, ..] = endpoints.uris() else { return Ok(()) };
    let tls = trust.read().await?;
    let connection = dial(uri, &tls, "rouse master: first boot").await?;
    let channel = connection.create_channel().await?;
    builds_queue(&channel).await?;
    Ok(connection.close(200, "declared".into()).await?)
}

async fn builds_queue(channel: &Channel) -> lapin::Result<()> {
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(BUILDS.into(), durable, table(&[("x-queue-type", text("quorum"))])).await.map(drop)
}

/// Declares and reads the submission queue. Separate from the rest, because a quorum queue without its quorum does not
/// answer.
pub(super) async fn read_builds(connection: &Connection) -> lapin::Result<Reader> {
    builds_queue(&connection.create_channel().await?).await?;
    reader(connection, BUILDS, BUILDS_PREFETCH, false).await
}

pub(super) async fn reader(
    connection: &Connection,
    queue: &str,
    prefetch: u16,
    exclusive: bool,
) -> lapin::Result<Reader> {
    let channel = connection.create_channel().await?;
    channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions { exclusive, ..Default::default() };
    let consumer = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?;
    Ok(Reader { queue: queue.to_owned(), channel, consumer })
}

/// The broker's events: connections that open and close, logins that fail.
async fn events(connection: &Connection) -> lapin::Result<Reader> {
    let channel = connection.create_channel().await?;
    let exclusive = QueueDeclareOptions { exclusive: true, ..Default::default() };
    // See `classic`.
    let arguments = [("x-queue-type", text("classic")), ("x-max-length", AMQPValue::LongLongInt(EVENTS_QUEUE_LENGTH))];
    let queue = channel.queue_declare("".into(), exclusive, table(&arguments)).await?.name().clone();
    for key in ["connection.created", "connection.closed", "user.authentication.failure"] {
        let (options, none) = (QueueBindOptions::default(), FieldTable::default());
        channel.queue_bind(queue.clone(), "amq.rabbitmq.event".into(), key.into(), options, none).await?;
    }
    channel.basic_qos(EVENTS_PREFETCH, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions { no_ack: false, ..Default::default() };
    let consumer = channel.basic_consume(queue.clone(), "".into(), options, FieldTable::default()).await?;
    Ok(Reader { queue: queue.to_string(), channel, consumer })
}

/// The arguments of a queue for one connection. The type is named, because the default of the virtual host may be one that
/// cannot be exclusive.
pub(in crate::broker) fn classic() -> FieldTable {
    table(&[("x-queue-type", text("classic"))])
}

/// The AMQP reply code of a failure.
pub(in crate::broker) fn code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}

pub(super) fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

pub(super) fn table(arguments: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (key, value) in arguments {
        table.insert((*key).into(), value.clone());
    }
    table
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tokio::io::AsyncReadExt as _;

    #[tokio::test]
    async fn an_ipv6_broker_is_dialled() {
        // A machine without IPv6 has no such address.
        let Ok(listener) = tokio::net::TcpListener::bind("[::1]:0").await else { return };
        let address = listener.local_addr().unwrap();
        let endpoints = Endpoints::parse(&format!("amqp://u:p@{address}/v")).unwrap();
        let [uri] = endpoints.uris() else { panic!("{endpoints:?}") };
        assert_eq!((uri.authority.host.as_str(), uri.authority.port), ("::1", address.port()));
        let accepted = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut header = [0; 8];
            stream.read_exact(&mut header).await.unwrap();
            header
        };
        let tls = Tls::Authorities(OwnedTLSConfig::default());
        let header = tokio::select! {
            header = accepted => header,
            made = dial(uri, &tls, "test") => panic!("{:?}", made.err()),
        };
        assert_eq!(&header, b"AMQP\0\0\x09\x01");
    }
}
