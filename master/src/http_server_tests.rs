//! Who is served if there are too many, who ends, and TLS.
#![allow(clippy::unwrap_used)]
use super::*;
use axum::Extension;
use axum::routing::get;
use tokio::io::AsyncReadExt as _;

async fn server(limits: Limits) -> (std::net::SocketAddr, watch::Sender<bool>, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (close, closing) = watch::channel(false);
    let entitled = |Extension(client): Extension<Client>| async move {
        client.entitle();
        "hello"
    };
    let stream = || async { Body::from_stream(futures_util::stream::pending::<io::Result<Bytes>>()) };
    let endless = move |Extension(client): Extension<Client>| async move {
        client.entitle();
        stream().await
    };
    let router = Router::new().route("/", get(|| async { "hello" })).route("/entitled", get(entitled));
    let router = router.route("/stream", get(stream)).route("/entitled/stream", get(endless));
    (address, close, tokio::spawn(serve(listener, router, limits, None, closing)))
}

async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> String {
    ask_for("/", stream).await
}

async fn ask_for(path: &str, stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = [0; 1_000];
    let length = stream.read(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer[..length]).into_owned()
}

/// Whether the other side has closed it.
async fn is_closed(stream: &mut TcpStream) -> bool {
    matches!(tokio::time::timeout(Duration::from_secs(5), stream.read(&mut [0])).await, Ok(Ok(0) | Err(_)))
}

#[tokio::test]
async fn the_oldest_connection_without_a_right_makes_room() {
    let (address, _close, server) = server(Limits::of(3)).await;
    let connect = async |path: &str| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        if !path.is_empty() {
            assert!(ask_for(path, &mut stream).await.starts_with("HTTP/1.1 200"), "{path}");
        }
        stream
    };
    // The first keeps its connection. Who is answered, and has not shown any right, keeps it no longer than who is silent.
    let mut first = connect("/entitled").await;
    let mut others = vec![connect("").await, connect("/").await];
    for (path, oldest) in [("/stream", 0), ("/stream", 0), ("/", 0), ("/entitled/stream", 1), ("/entitled/stream", 0)] {
        let next = connect(path).await;
        assert!(is_closed(&mut others.remove(oldest)).await, "before {path}");
        others.push(next);
    }
    assert!(ask(&mut first).await.ends_with("hello"));
    // Nobody else is left.
    let _last = connect("/entitled/stream").await;
    assert!(is_closed(&mut first).await);
    assert!(is_closed(&mut connect("").await).await, "all are being answered");
    server.abort();
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

#[tokio::test]
async fn a_long_head_is_not_kept() {
    let (address, _close, _server) = server(Limits::of(10)).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: ").await.unwrap();
    // The server may have closed it before all of it is sent.
    stream.write_all(&[b'x'; 2 * HEAD_BYTES]).await.ok();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
    assert!(read.is_ok(), "it ends before its time is over");
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&answer));
    // As long as the longest that a client sends.
    let mut stream = TcpStream::connect(address).await.unwrap();
    let long = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: {}\r\n\r\n", "x".repeat(12_000));
    stream.write_all(long.as_bytes()).await.unwrap();
    let mut answer = [0; 1_000];
    let length = stream.read(&mut answer).await.unwrap();
    assert!(answer[..length].ends_with(b"hello"));
}
