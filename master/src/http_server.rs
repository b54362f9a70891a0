//! Accepts the connections of an HTTP server, of which there are only so many, and which end if nothing comes. Shared by
//! the API and by the server that the broker asks.

use crate::sync::lock;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

/// How long a client may take to send the head of a request, also if it has sent one before.
const HEAD: Duration = Duration::from_secs(10);
/// How long a client may take none of a response. A response that is quiet is not concerned.
const WRITE: Duration = Duration::from_secs(30);
/// Pause after the kernel has refused a connection, for example because there are no file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The answer to a request without TLS, if the server has TLS.
const NOT_IN_CLEAR: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nConnection: close\r\n\
    Content-Length: 58\r\n\r\n{\"error\":\"this master is served with TLS: write https://\"}";

/// A connection that a server accepts.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {
    /// Waits for the first byte, and leaves it there. Only for connections that may be encrypted.
    fn first_byte(&self) -> impl Future<Output = io::Result<u8>> + Send;
}

impl Stream for TcpStream {
    async fn first_byte(&self) -> io::Result<u8> {
        let mut first = [0];
        self.peek(&mut first).await?;
        Ok(first[0])
    }
}

impl Stream for UnixStream {
    async fn first_byte(&self) -> io::Result<u8> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// A socket that a server accepts connections on.
pub trait Listener: Send + 'static {
    /// A connection.
    type Stream: Stream;
    /// Waits for the next connection.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Option<Ends>)>> + Send;
}

/// The addresses of a TCP connection, which its requests have as an extension.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// The client's.
    pub theirs: SocketAddr,
    /// The server's.
    pub ours: SocketAddr,
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, Option<Ends>)> {
        let (stream, theirs) = TcpListener::accept(self).await?;
        // Small answers must not wait for the acknowledgement of the ones before them.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!("cannot send without delay: {error}");
        }
        let ends = stream.local_addr().ok().map(|ours| Ends { theirs, ours });
        Ok((stream, ends))
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<(UnixStream, Option<Ends>)> {
        UnixListener::accept(self).await.map(|(stream, _)| (stream, None))
    }
}

/// The open connections, in the order in which they were accepted.
#[derive(Default)]
struct Connections {
    open: Mutex<BTreeMap<u64, Open>>,
}

struct Open {
    /// Whether a request has come.
    requested: Arc<AtomicBool>,
    /// Ends it; absent until its task has started.
    task: Option<AbortHandle>,
}

impl Connections {
    /// Makes room for another one: of those that have sent no request, the oldest ends. Returns whether there is room.
    fn make_room(&self, most: usize) -> bool {
        let mut open = lock(&self.open);
        if open.len() < most {
            return true;
        }
        let silent = open.iter().find(|(_, open)| !open.requested.load(Ordering::Relaxed)).map(|(number, _)| *number);
        let Some(ended) = silent.and_then(|number| open.remove(&number)) else { return false };
        if let Some(task) = ended.task {
            task.abort();
        }
        true
    }
}

/// Forgets its connection when it ends, however it ends.
struct Entry {
    connections: Arc<Connections>,
    number: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        lock(&self.connections.open).remove(&self.number);
    }
}

/// What a server takes from its clients.
#[derive(Clone, Copy)]
pub struct Limits {
    connections: usize,
    head: Duration,
}

impl Limits {
    /// At most so many connections at a time, and the usual patience with them.
    pub const fn of(connections: usize) -> Self {
        Self { connections, head: HEAD }
    }
}

/// TLS of a server. The certificate can be replaced while the server runs.
pub struct Encryption(Mutex<Arc<ServerConfig>>);

impl Encryption {
    /// With these settings.
    pub fn new(config: ServerConfig) -> Self {
        Self(Mutex::new(Arc::new(config)))
    }

    /// Uses other settings for the connections that are accepted from now on.
    pub fn replace(&self, config: ServerConfig) {
        *lock(&self.0) = Arc::new(config);
    }
}

/// Serves until `closing` is true or its sender is gone. Then it lets the requests
/// that run end. It never stops accepting: if there are too many connections, the oldest that has sent no request ends,
/// and if there is none, the new one.
pub async fn serve(
    listener: impl Listener,
    router: Router,
    limits: Limits,
    encryption: Option<Arc<Encryption>>,
    mut closing: watch::Receiver<bool>,
) {
    let connections = Arc::new(Connections::default());
    let mut tasks = JoinSet::new();
    for number in 0.. {
        let stream = loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => break Some(accepted),
                    Err(error) => {
                        tracing::debug!("cannot accept a connection: {error}");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = tasks.join_next() => {}
                () = closed(&mut closing) => break None,
            }
        };
        let Some((stream, ends)) = stream else { break };
        if !connections.make_room(limits.connections) {
            tracing::debug!("there are too many connections");
            continue;
        }
        let requested = Arc::new(AtomicBool::new(false));
        let open = Open { requested: requested.clone(), task: None };
        lock(&connections.open).insert(number, open);
        let entry = Entry { connections: connections.clone(), number };
        let tls = encryption.as_ref().map(|encryption| lock(&encryption.0).clone());
        let client = Client { ends, requested, head: limits.head, closing: closing.clone(), _entry: entry };
        let task = tasks.spawn(connection(stream, tls, router.clone(), client));
        if let Some(open) = lock(&connections.open).get_mut(&number) {
            open.task = Some(task);
        }
    }
    drop(listener);
    while tasks.join_next().await.is_some() {}
}

/// Waits until the server is to end, or its owner is gone.
async fn closed(closing: &mut watch::Receiver<bool>) {
    // An error says that the owner is gone.
    drop(closing.wait_for(|closed| *closed).await);
}

/// What belongs to one connection.
struct Client {
    ends: Option<Ends>,
    requested: Arc<AtomicBool>,
    head: Duration,
    closing: watch::Receiver<bool>,
    _entry: Entry,
}

async fn connection(stream: impl Stream, tls: Option<Arc<ServerConfig>>, router: Router, mut client: Client) {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE));
    let mut stream = Box::pin(stream);
    let Some(tls) = tls else { return requests(stream, router, client).await };
    let shake_hands = async {
        if stream.get_ref().first_byte().await?.is_ascii_uppercase() {
            // The method of a request without TLS. A client must not guess why it is not answered.
            stream.write_all(NOT_IN_CLEAR).await?;
            return Err(io::Error::other("a request without TLS"));
        }
        TlsAcceptor::from(tls).accept(stream).await
    };
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(client.head, shake_hands) => shaken,
        () = closed(&mut client.closing) => return,
    };
    match shaken {
        Ok(Ok(stream)) => requests(stream, router, client).await,
        Ok(Err(error)) => tracing::debug!("a connection ended: {error}"),
        Err(_elapsed) => tracing::debug!("a connection ended: no TLS within {} s", client.head.as_secs()),
    }
}

async fn requests(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, router: Router, mut client: Client) {
    let (requested, ends) = (client.requested.clone(), client.ends);
    let service = router.map_request(move |mut request: hyper::Request<hyper::body::Incoming>| {
        requested.store(true, Ordering::Relaxed);
        if let Some(ends) = ends {
            request.extensions_mut().insert(ends);
        }
        request.map(axum::body::Body::new)
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(client.head);
    let served = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    let mut served = pin!(served);
    let ended = tokio::select! {
        result = &mut served => Some(result),
        () = closed(&mut client.closing) => None,
    };
    let result = match ended {
        Some(result) => result,
        None => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = result {
        tracing::debug!("a connection ended: {error}");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use axum::routing::get;
    use tokio::io::AsyncReadExt as _;

    async fn server(limits: Limits) -> (std::net::SocketAddr, watch::Sender<bool>, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (close, closing) = watch::channel(false);
        let router = Router::new().route("/", get(|| async { "hello" }));
        (address, close, tokio::spawn(serve(listener, router, limits, None, closing)))
    }

    async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> String {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut answer = [0; 1_000];
        let length = stream.read(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer[..length]).into_owned()
    }

    /// Whether the other side has closed it.
    async fn is_closed(stream: &mut TcpStream) -> bool {
        matches!(tokio::time::timeout(Duration::from_secs(5), stream.read(&mut [0])).await, Ok(Ok(0) | Err(_)))
    }

    #[tokio::test]
    async fn the_oldest_connection_without_a_request_makes_room() {
        let (address, close, server) = server(Limits::of(3)).await;
        let mut streams = Vec::new();
        for number in 0..3 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            // The first is a client that keeps its connection.
            if number == 0 {
                assert!(ask(&mut stream).await.ends_with("hello"));
            }
            streams.push(stream);
        }
        for _ in 0..2 {
            let mut next = TcpStream::connect(address).await.unwrap();
            assert!(ask(&mut next).await.ends_with("hello"));
            assert!(is_closed(&mut streams.remove(1)).await, "the oldest silent one");
            streams.push(next);
        }
        // All have sent a request, so the next one has to wait.
        let mut next = TcpStream::connect(address).await.unwrap();
        assert!(is_closed(&mut next).await);
        assert!(ask(&mut streams[0]).await.ends_with("hello"), "it was there first");
        close.send_replace(true);
        server.await.unwrap();
    }

    #[tokio::test]
    async fn it_speaks_tls_with_the_certificate_of_the_moment() {
        use rouse_shared::Fingerprint;
        use rouse_shared::fingerprint::client_config;
        let certificate = || {
            let key = rcgen::KeyPair::generate().unwrap();
            let params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
            let certificate = params.self_signed(&key).unwrap().der().clone();
            let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
            let fingerprint = Fingerprint::of(&certificate);
            (fingerprint, config.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap())
        };
        let ((first, config), (second, next)) = (certificate(), certificate());
        let encryption = Arc::new(Encryption::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (close, closing) = watch::channel(false);
        let router = Router::new().route("/", get(|| async { "hello" }));
        let limits = Limits { connections: 2, head: Duration::from_millis(500) };
        let server = tokio::spawn(serve(listener, router, limits, Some(encryption.clone()), closing));
        let connect = async |trusted| {
            let stream = TcpStream::connect(address).await.unwrap();
            let connector = tokio_rustls::TlsConnector::from(Arc::new(client_config(vec![trusted]).unwrap()));
            connector.connect("localhost".try_into().unwrap(), stream).await
        };
        let mut client = connect(first).await.unwrap();
        assert!(ask(&mut client).await.ends_with("hello"));
        encryption.replace(next);
        assert!(connect(first).await.is_err());
        assert!(ask(&mut connect(second).await.unwrap()).await.ends_with("hello"));
        assert!(ask(&mut client).await.ends_with("hello"), "an old connection stays");
        drop(client);

        let told = ask(&mut TcpStream::connect(address).await.unwrap()).await;
        assert!(told.starts_with("HTTP/1.1 400") && told.ends_with("write https://\"}"), "{told}");
        let body = told.split_once("\r\n\r\n").unwrap().1;
        assert!(told.contains(&format!("Content-Length: {}\r\n", body.len())));
        // Those that begin no handshake make room, and end.
        let mut silent = [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
        assert!(ask(&mut connect(second).await.unwrap()).await.ends_with("hello"));
        for stream in &mut silent {
            assert!(is_closed(stream).await);
        }
        close.send_replace(true);
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_connection_that_sends_no_request_ends() {
        let (address, _close, _server) = server(Limits { connections: 10, head: Duration::from_millis(300) }).await;
        let mut silent = TcpStream::connect(address).await.unwrap();
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET / HTTP/1.1\r\nHo").await.unwrap();
        let mut idle = TcpStream::connect(address).await.unwrap();
        assert!(ask(&mut idle).await.ends_with("hello"));
        for stream in [&mut silent, &mut slow, &mut idle] {
            assert!(is_closed(stream).await);
        }
    }
    #[tokio::test]
    async fn a_unix_socket_has_the_same_limits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let (_close, closing) = watch::channel(false);
        let limits = Limits { connections: 1, head: Duration::from_millis(300) };
        tokio::spawn(serve(listener, Router::new(), limits, None, closing));
        let mut first = UnixStream::connect(&path).await.unwrap();
        let mut second = UnixStream::connect(&path).await.unwrap();
        for silent in [&mut first, &mut second] {
            let read = tokio::time::timeout(Duration::from_secs(60), silent.read(&mut [0])).await;
            assert!(matches!(read, Ok(Ok(0) | Err(_))), "it must end");
        }
    }
}
