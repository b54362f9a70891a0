//! Accepts the connections of an HTTP server, of which there are only so many, and which end if nothing comes. Shared by
//! the API and by the server that the broker asks.

use crate::sync::lock;
use axum::Router;
use axum::body::{Body, Bytes};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
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
/// Longest head of a request, bytes. The server keeps as much of each connection in memory until the head is complete, and
/// hyper would keep 400 KiB. The largest head is a browser's, with a few kilobytes.
const HEAD_BYTES: usize = 16 << 10;
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
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Peer)>> + Send;
}

/// What the kernel says of the other end of a connection. Its requests have it as extensions.
#[derive(Clone, Copy, Default, Debug)]
pub struct Peer {
    /// The addresses of a TCP connection.
    ends: Option<Ends>,
    /// The user at the other end of a Unix socket.
    user: Option<LocalUser>,
}

/// The id of the user at the other end of a Unix socket, which its requests have as an extension.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LocalUser(pub u32);

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

    async fn accept(&self) -> io::Result<(TcpStream, Peer)> {
        let (stream, theirs) = TcpListener::accept(self).await?;
        // Small answers must not wait for the acknowledgement of the ones before them.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!("cannot send without delay: {error}");
        }
        let ends = stream.local_addr().ok().map(|ours| Ends { theirs, ours });
        Ok((stream, Peer { ends, user: None }))
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<(UnixStream, Peer)> {
        let (stream, _) = UnixListener::accept(self).await?;
        let user = stream.peer_cred().ok().map(|credentials| LocalUser(credentials.uid()));
        Ok((stream, Peer { ends: None, user }))
    }
}

/// What a server knows of a connection. Its requests have it as an extension.
#[derive(Clone, Default, Debug)]
pub struct Client(Arc<State>);

#[derive(Default, Debug)]
struct State {
    /// Whether a request is being answered.
    busy: AtomicBool,
    /// Whether a request has shown that it may do what it asked for.
    entitled: AtomicBool,
}

impl Client {
    /// A request has shown that it may do what it asks for: the connection is not ended for one that has not.
    pub fn entitle(&self) {
        self.0.entitled.store(true, Ordering::Relaxed);
    }

    /// Those with the lowest rank end first if there are too many. None: it does not end.
    fn rank(&self) -> Option<u8> {
        match (self.0.entitled.load(Ordering::Relaxed), self.0.busy.load(Ordering::Relaxed)) {
            (false, false) => Some(0),
            (false, true) => Some(1),
            (true, false) => Some(2),
            (true, true) => None,
        }
    }
}

/// The time in which a request is answered, with the whole body of the response.
struct Busy(Client);

impl Busy {
    fn of(client: &Client) -> Self {
        client.0.busy.store(true, Ordering::Relaxed);
        Self(client.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.0.busy.store(false, Ordering::Relaxed);
    }
}

/// The body of a response, during which its connection is busy.
struct BusyBody {
    body: Body,
    _busy: Busy,
}

impl hyper::body::Body for BusyBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The open connections, in the order in which they were accepted.
#[derive(Default)]
struct Connections {
    open: Mutex<BTreeMap<u64, Open>>,
}

struct Open {
    client: Client,
    /// Ends it; absent until its task has started.
    task: Option<AbortHandle>,
}

impl Connections {
    /// Makes room for another one: of those with the lowest rank, the oldest ends. Returns whether there is room.
    fn make_room(&self, most: usize) -> bool {
        let mut open = lock(&self.open);
        if open.len() < most {
            return true;
        }
        let ranked = open.iter().filter_map(|(number, open)| Some((open.client.rank()?, *number)));
        let Some(ended) = ranked.min().and_then(|(_, number)| open.remove(&number)) else { return false };
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

/// Serves until `closing` is true or its sender is gone. Then it lets the requests that run end. It never stops accepting.
/// If there are too many connections, the oldest ends of those whose requests have not shown that they may do what they ask
/// for: first of those of which no request is being answered. If there is none, the oldest ends that waits for its next
/// request, and if all are being answered, the new one.
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
        let Some((stream, peer)) = stream else { break };
        if !connections.make_room(limits.connections) {
            tracing::debug!("there are too many connections");
            continue;
        }
        let client = Client::default();
        lock(&connections.open).insert(number, Open { client: client.clone(), task: None });
        let entry = Entry { connections: connections.clone(), number };
        let tls = encryption.as_ref().map(|encryption| lock(&encryption.0).clone());
        let served = Served { peer, client, head: limits.head, closing: closing.clone(), _entry: entry };
        let task = tasks.spawn(connection(stream, tls, router.clone(), served));
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
struct Served {
    peer: Peer,
    client: Client,
    head: Duration,
    closing: watch::Receiver<bool>,
    _entry: Entry,
}

async fn connection(stream: impl Stream, tls: Option<Arc<ServerConfig>>, router: Router, mut served: Served) {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE));
    let mut stream = Box::pin(stream);
    let Some(tls) = tls else { return requests(stream, router, served).await };
    let shake_hands = async {
        if stream.get_ref().first_byte().await?.is_ascii_uppercase() {
            // The method of a request without TLS. A client must not guess why it is not answered.
            stream.write_all(NOT_IN_CLEAR).await?;
            return Err(io::Error::other("a request without TLS"));
        }
        TlsAcceptor::from(tls).accept(stream).await
    };
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(served.head, shake_hands) => shaken,
        () = closed(&mut served.closing) => return,
    };
    match shaken {
        Ok(Ok(stream)) => requests(stream, router, served).await,
        Ok(Err(error)) => tracing::debug!("a connection ended: {error}"),
        Err(_elapsed) => tracing::debug!("a connection ended: no TLS within {} s", served.head.as_secs()),
    }
}

async fn requests(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, router: Router, mut served: Served) {
    let (client, peer) = (served.client.clone(), served.peer);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        let busy = Busy::of(&client);
        request.extensions_mut().insert(client.clone());
        if let Some(ends) = peer.ends {
            request.extensions_mut().insert(ends);
        }
        if let Some(user) = peer.user {
            request.extensions_mut().insert(user);
        }
        let answered = router.clone().oneshot(request.map(Body::new));
        async move { answered.await.map(|response| response.map(|body| Body::new(BusyBody { body, _busy: busy }))) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(served.head).max_buf_size(HEAD_BYTES);
    let mut answering = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        result = &mut answering => Some(result),
        () = closed(&mut served.closing) => None,
    };
    let result = match ended {
        Some(result) => result,
        None => {
            answering.as_mut().graceful_shutdown();
            answering.await
        }
    };
    if let Err(error) = result {
        tracing::debug!("a connection ended: {error}");
    }
}

#[cfg(test)]
#[path = "http_server_tests.rs"]
mod tests;
