//! The shared node, its auth server and its link; agents that use lapin directly.

#[path = "../../../tests/src/harness/place.rs"]
mod place;

use lapin::options::{BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer};
use rouse_master::broker::{
    Admission, Askers, AuthServer, Endpoints, Inbound, LOG_FILTER, Link, LinkHandle, LinkSettings, LogDelivery, Node,
    NodeSettings, Refusals, VHOST,
};
use rouse_shared::WorkerName;
use rouse_shared::message::{LogChunk, ToMaster};
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

pub use place::{free_address, scratch};

pub const DEADLINE: Duration = Duration::from_secs(150);

/// What came in, without receipts (they are acknowledged at once).
#[derive(Clone, Debug, PartialEq)]
pub enum Seen {
    Up,
    Down,
    Blocked(String),
    Unblocked,
    Agent(WorkerName, ToMaster),
    Log(WorkerName, LogChunk),
    Submit { body: Vec<u8>, message_id: Option<String>, reply_to: Option<String>, correlation_id: Option<String> },
    Unroutable(String),
    Closed(WorkerName),
}

pub struct Shared {
    pub node: Node,
    pub address: SocketAddr,
    pub link: LinkHandle,
    pub refusals: Refusals,
    pub seen: Arc<Mutex<Vec<Seen>>>,
    _auth: AuthServer,
}

/// Runs what outlives a test.
fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap())
}

/// What was logged, since the first call of [`log_text`] or [`shared`].
static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

pub fn capture_log() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        tracing_subscriber::fmt()
            .with_env_filter(format!("info,{LOG_FILTER}"))
            .with_ansi(false)
            .with_writer(|| LogWriter)
            .init();
    });
}

pub fn log_text() -> String {
    String::from_utf8_lossy(&LOG.lock().unwrap()).into_owned()
}

/// The node that most tests share. It dies with the test process, whose directory the next run clears.
pub fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(|| {
        // The caller may be inside a runtime of its own.
        std::thread::spawn(|| runtime().block_on(start_shared())).join().unwrap()
    })
}

async fn start_shared() -> Shared {
    capture_log();
    let dir = scratch("shared");
    let address = free_address();
    let (auth, refusals) = auth_server().await;
    let node = Node::start(settings(&dir, address, &auth)).await.unwrap();
    let (inbound, mut arrivals) = mpsc::channel(1_000);
    let (logs, mut chunks) = mpsc::channel::<LogDelivery>(64);
    let link = Link::start(
        LinkSettings {
            endpoints: Endpoints::parse(node.url()).unwrap(),
            trust: node.trust().clone(),
            conduct: rouse_master::broker::RateLimiter::new(refusals.clone()),
            refusals: refusals.clone(),
            node: Some(node.state()),
        },
        inbound,
        logs,
    );
    let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
    let (control, log) = (seen.clone(), seen.clone());
    tokio::spawn(async move {
        while let Some(inbound) = arrivals.recv().await {
            control.lock().unwrap().push(acknowledged(inbound));
        }
    });
    tokio::spawn(async move {
        while let Some(LogDelivery { worker, chunk, receipt }) = chunks.recv().await {
            log.lock().unwrap().push(Seen::Log(worker, chunk));
            receipt.ack();
        }
    });
    let shared = Shared { node, address, link, refusals, seen, _auth: auth };
    until("the link is up", || shared.link.is_up()).await;
    shared
}

pub fn acknowledged(inbound: Inbound) -> Seen {
    match inbound {
        Inbound::Up => Seen::Up,
        Inbound::Down { why: _ } => Seen::Down,
        Inbound::Blocked { why } => Seen::Blocked(why),
        Inbound::Unblocked => Seen::Unblocked,
        Inbound::Agent { worker, message, receipt } => {
            receipt.ack();
            Seen::Agent(worker, message)
        }
        Inbound::Submit { body, content_type: _, message_id, user: _, reply_to, correlation_id, receipt } => {
            receipt.ack();
            Seen::Submit { body, message_id, reply_to, correlation_id }
        }
        Inbound::Unroutable { queue } => Seen::Unroutable(queue),
        Inbound::Closed { worker } => Seen::Closed(worker),
    }
}

/// An auth server that lets in whoever says `pw-NAME`, but for names that begin with `unknown`.
pub async fn auth_server() -> (AuthServer, Refusals) {
    auth_server_at("127.0.0.1:0".parse().unwrap()).await
}

/// The same at another address.
pub async fn auth_server_at(listen: SocketAddr) -> (AuthServer, Refusals) {
    let refusals = Refusals::default();
    let (admissions, mut asked) = mpsc::channel::<Admission>(64);
    tokio::spawn(async move {
        while let Some(Admission { worker, password, reply }) = asked.recv().await {
            let answer = if worker.as_str().starts_with("unknown") {
                Err("no such worker".to_owned())
            } else if password == format!("pw-{worker}") {
                Ok(rouse_master::core::Admitted::Anybody)
            } else {
                Err("wrong password".to_owned())
            };
            // The server may have given up waiting.
            reply.send(answer).ok();
        }
    });
    let server = AuthServer::start(
        AuthServer::listen(listen).await.unwrap(),
        askers(),
        VHOST,
        admissions,
        refusals.clone(),
        rouse_master::broker::RateLimiter::new(refusals.clone()),
    )
    .unwrap();
    (server, refusals)
}

/// Whom the auth servers of these tests answer: their nodes.
pub fn askers() -> Askers {
    static ASKERS: OnceLock<Askers> = OnceLock::new();
    ASKERS.get_or_init(|| Askers::private_broker().unwrap()).clone()
}

pub fn settings(dir: &Path, address: SocketAddr, auth: &AuthServer) -> NodeSettings {
    NodeSettings {
        dir: dir.join("broker"),
        listen: vec![address],
        auth_listen: auth.address(),
        askers: askers(),
        node_name_suffix: "test".to_owned(),
        tls: None,
    }
}

/// Polls until `what` holds.
///
/// # Panics
/// If it does not within [`DEADLINE`].
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let polling = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(DEADLINE, polling).await.is_err() {
        panic!("not in time: {what}\n{}", log_text());
    }
}

impl Shared {
    pub fn saw(&self, what: impl Fn(&Seen) -> bool) -> bool {
        self.seen.lock().unwrap().iter().any(what)
    }
}

/// The pids of live processes whose environment mentions `dir`, besides this one.
pub fn processes_of(dir: &Path) -> Vec<(u32, String)> {
    let needle = dir.join("broker").to_string_lossy().into_owned().into_bytes();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        if environment.windows(needle.len()).any(|window| window == needle) {
            let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            found.push((pid, name.trim().to_owned()));
        }
    }
    found
}

pub fn worker(name: &str) -> WorkerName {
    name.parse().unwrap()
}

/// Connects as an agent does.
pub async fn dial(address: SocketAddr, user: &str, password: &str) -> lapin::Result<Connection> {
    let mut uri = lapin::uri::AMQPUri::default();
    uri.authority.host = address.ip().to_string();
    uri.authority.port = address.port();
    uri.authority.userinfo.username = user.to_owned();
    uri.authority.userinfo.password = password.to_owned();
    uri.vhost = VHOST.to_owned();
    Connection::connect_uri(uri, ConnectionProperties::default()).await
}

pub async fn agent(name: &str) -> Connection {
    dial(shared().address, name, &format!("pw-{name}")).await.unwrap()
}

/// Declares an exclusive queue and consumes it.
pub async fn own_queue(channel: &Channel, queue: &str) -> lapin::Result<Consumer> {
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
    channel.queue_declare(queue.into(), options, FieldTable::default()).await?;
    let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
    channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await
}

/// Publishes on a channel of its own and waits for the broker's confirmation or refusal.
pub async fn publish(
    connection: &Connection,
    user: Option<&str>,
    exchange: &str,
    key: &str,
    body: &[u8],
) -> lapin::Result<lapin::Confirmation> {
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let properties = match user {
        Some(user) => BasicProperties::default().with_user_id(user.into()),
        None => BasicProperties::default(),
    };
    channel.basic_publish(exchange.into(), key.into(), BasicPublishOptions::default(), body, properties).await?.await
}

/// Whether the broker said that this is not allowed.
pub fn is_refused<T>(result: lapin::Result<T>) -> bool {
    matches!(code(result), Some(403))
}

/// The AMQP error code of a failure.
pub fn code<T>(result: lapin::Result<T>) -> Option<u16> {
    match result.err()?.kind() {
        lapin::ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}
