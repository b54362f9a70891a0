//! A proxy in front of HTTP services that causes the faults that a test requests: lost answers, refusals, delays.
//!
//! One listener stands in front of each service. The proxy replaces the addresses of services in answers by its own, so
//! that clients keep using the proxy. Each request has its own connection.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// The largest head of a message, bytes.
const HEAD: usize = 64 << 10;

/// What is done to a request instead of passing it on and back.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It gets this response, and does not reach the service.
    Refuse {
        /// HTTP's number.
        status: u16,
        /// Further lines of the head, such as `Retry-After: 1`.
        head: &'static str,
        /// The body.
        body: &'static str,
    },
    /// The service does it, and the answer is this instead.
    Garble(u16),
    /// The service does it, and in what it says the first text is replaced by the second.
    Replace(&'static str, &'static str),
    /// The service carries it out, and the connection ends without a response.
    LoseReply,
    /// The connection ends before the request reaches the service.
    LoseRequest,
    /// It is passed on this much later.
    Delay(Duration),
    /// Nothing is passed on, and nothing answered, as long as the asker waits.
    Hang,
    /// The service does it, and the asker waits forever.
    HangAfter,
}

struct Rule {
    matches: Box<dyn Fn(&Request) -> bool + Send>,
    fault: Fault,
    /// Requests that it lets pass before, and that it is for then.
    skip: usize,
    times: usize,
}

/// A request, as rules see it.
#[derive(Clone, Debug)]
pub struct Request {
    /// `GET`, …
    pub method: String,
    /// Path and query.
    pub path: String,
    /// The lines of its head.
    pub head: String,
    /// The body, as text.
    pub body: String,
    /// The status of the answer that the service gave; 0 if it gave none.
    pub status: u16,
}

impl Request {
    /// Whether it is of this method, and its path has this part.
    pub fn is(&self, method: &str, part: &str) -> bool {
        self.method == method && self.path.contains(part)
    }
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    seen: Vec<Request>,
    hanging: usize,
}

/// The proxy; its listeners end with the runtime that it was started in.
pub struct Proxy {
    state: Arc<Mutex<State>>,
    fronts: BTreeMap<SocketAddr, SocketAddr>,
}

impl Proxy {
    /// In front of these services.
    ///
    /// # Panics
    /// If no port is free.
    pub async fn start(services: &[SocketAddr]) -> Self {
        Self::start_with(services, None).await
    }

    /// The same, over TLS, for localhost, with `server.pem` and `server.key` of a directory.
    ///
    /// # Panics
    /// If they are no certificate and key.
    pub async fn start_tls(services: &[SocketAddr], dir: &Path) -> Self {
        rustls::crypto::ring::default_provider().install_default().ok();
        let certificate = CertificateDer::from_pem_file(dir.join("server.pem")).expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(dir.join("server.key")).expect("a key");
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key);
        Self::start_with(services, Some(TlsAcceptor::from(Arc::new(config.expect("they belong together"))))).await
    }

    async fn start_with(services: &[SocketAddr], tls: Option<TlsAcceptor>) -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let mut fronts = BTreeMap::new();
        let mut listeners = Vec::new();
        for service in services {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            fronts.insert(*service, listener.local_addr().expect("a bound socket has an address"));
            listeners.push((listener, *service));
        }
        for (listener, service) in listeners {
            let names: Vec<(String, String)> =
                fronts.iter().map(|(from, to)| names(*from, *to, tls.is_some())).collect();
            let (state, names, tls) = (state.clone(), Arc::new(names), tls.clone());
            tokio::spawn(async move {
                while let Ok((client, _)) = listener.accept().await {
                    let (state, names, tls) = (state.clone(), names.clone(), tls.clone());
                    tokio::spawn(async move {
                        // A client that goes away is no fault of the proxy's, nor is one that it does not trust.
                        match tls {
                            None => drop(serve(client, service, &state, &names).await),
                            Some(tls) => {
                                if let Ok(client) = tls.accept(client).await {
                                    drop(serve(client, service, &state, &names).await);
                                }
                            }
                        }
                    });
                }
            });
        }
        Self { state, fronts }
    }

    /// The proxy's own address in front of a service.
    ///
    /// # Panics
    /// If it is not one of its services.
    pub fn front(&self, service: SocketAddr) -> SocketAddr {
        self.fronts[&service]
    }

    /// From now on: of the requests that match, after `skip` of them, so many (`times`) go wrong like this.
    pub fn fail(&self, skip: usize, times: usize, fault: Fault, matches: impl Fn(&Request) -> bool + Send + 'static) {
        locked(&self.state).rules.push(Rule { matches: Box::new(matches), fault, skip, times });
    }

    /// From now on nothing goes wrong.
    pub fn heal(&self) {
        locked(&self.state).rules.clear();
    }

    /// How many requests have been left hanging so far.
    pub fn hanging(&self) -> usize {
        locked(&self.state).hanging
    }

    /// Whether such a request has come since [`Self::take_seen`] was last asked.
    pub fn has_seen(&self, matches: impl Fn(&Request) -> bool) -> bool {
        locked(&self.state).seen.iter().any(matches)
    }

    /// The requests that came since this was last asked, in order.
    pub fn take_seen(&self) -> Vec<Request> {
        std::mem::take(&mut locked(&self.state).seen)
    }
}

/// What a service calls itself, and what it is called by whoever comes through the proxy.
fn names(service: SocketAddr, front: SocketAddr, tls: bool) -> (String, String) {
    match tls {
        false => (service.to_string(), front.to_string()),
        true => (format!("http://{service}"), format!("https://localhost:{}", front.port())),
    }
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    service: SocketAddr,
    state: &Mutex<State>,
    names: &[(String, String)],
) -> io::Result<()> {
    let (head, body) = read_message(&mut client, Body::Counted).await?;
    let mut words = head.split(' ');
    let mut request = Request {
        method: words.next().unwrap_or_default().to_owned(),
        path: words.next().unwrap_or_default().to_owned(),
        head: head.clone(),
        body: String::from_utf8_lossy(&body).into_owned(),
        status: 0,
    };
    let (fault, number) = {
        let mut state = locked(state);
        state.seen.push(request.clone());
        let number = state.seen.len() - 1;
        let mut fault = None;
        for rule in state.rules.iter_mut().filter(|rule| rule.times > 0) {
            if (rule.matches)(&request) {
                if rule.skip > 0 {
                    rule.skip -= 1;
                    continue;
                }
                rule.times -= 1;
                fault = Some(rule.fault.clone());
                break;
            }
        }
        (fault, number)
    };
    match fault {
        Some(Fault::LoseRequest) => return Ok(()),
        Some(Fault::Hang) => return hang(&mut client, state).await,
        Some(Fault::Refuse { status, head, body }) => return answer(&mut client, status, head, body.as_bytes()).await,
        Some(Fault::Delay(time)) => tokio::time::sleep(time).await,
        None | Some(Fault::LoseReply | Fault::Garble(_) | Fault::Replace(..) | Fault::HangAfter) => {}
    }
    let (head, body) = ask(service, &head, &body).await?;
    request.status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or_default();
    if let Some(seen) = locked(state).seen.get_mut(number) {
        seen.status = request.status;
    }
    match fault {
        Some(Fault::LoseReply) => return Ok(()),
        Some(Fault::HangAfter) => return hang(&mut client, state).await,
        Some(Fault::Garble(status)) => return answer(&mut client, status, "", b"").await,
        None | Some(Fault::Delay(_) | Fault::LoseRequest | Fault::Hang | Fault::Replace(..) | Fault::Refuse { .. }) => {
        }
    }
    if request.method == "HEAD" {
        // Its length is that of the body which `GET` would get.
        let lines = head.lines().filter(|line| !is_framing(line) || line.to_lowercase().starts_with("content-length"));
        let mut out: String = lines.map(|line| format!("{line}\r\n")).collect();
        out.push_str("Connection: close\r\n\r\n");
        client.write_all(out.as_bytes()).await?;
        return client.shutdown().await;
    }
    let mut head = head;
    // What is not text names nobody.
    let body = match String::from_utf8(body) {
        Err(bytes) => bytes.into_bytes(),
        Ok(mut body) => {
            if let Some(Fault::Replace(from, to)) = fault {
                body = body.replace(from, to);
            }
            for (service, front) in names {
                body = body.replace(service, front);
            }
            body.into_bytes()
        }
    };
    for (service, front) in names {
        head = head.replace(service, front);
    }
    let lines = head.lines().filter(|line| !is_framing(line));
    let mut out: String = lines.map(|line| format!("{line}\r\n")).collect();
    out.push_str(&format!("Connection: close\r\nContent-Length: {}\r\n\r\n", body.len()));
    client.write_all(out.as_bytes()).await?;
    client.write_all(&body).await?;
    client.shutdown().await
}

/// Waits until the asker has gone.
async fn hang(client: &mut (impl AsyncRead + Unpin), state: &Mutex<State>) -> io::Result<()> {
    locked(state).hanging += 1;
    client.read_u8().await.map(|_| ())
}

async fn answer(client: &mut (impl AsyncWrite + Unpin), status: u16, head: &str, body: &[u8]) -> io::Result<()> {
    let head = if head.is_empty() { String::new() } else { format!("{head}\r\n") };
    let length = body.len();
    let text = format!(
        "HTTP/1.1 {status} Requested\r\nContent-Type: application/json\r\nConnection: close\r\n{head}Content-Length: {length}\r\n\r\n"
    );
    client.write_all(text.as_bytes()).await?;
    client.write_all(body).await?;
    client.shutdown().await
}

/// Passes a request on. In HTTP/1.0, so that the answer is neither chunked nor followed by another.
async fn ask(service: SocketAddr, head: &str, body: &[u8]) -> io::Result<(String, Vec<u8>)> {
    let mut upstream = TcpStream::connect(service).await?;
    let mut lines = head.lines();
    let first = lines.next().unwrap_or_default().replace("HTTP/1.1", "HTTP/1.0");
    let mut out = format!("{first}\r\n");
    for line in lines.filter(|line| !is_framing(line)) {
        out.push_str(line);
        out.push_str("\r\n");
    }
    out.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    upstream.write_all(out.as_bytes()).await?;
    upstream.write_all(body).await?;
    let body = if head.starts_with("HEAD ") { Body::Never } else { Body::OfAnswer };
    read_message(&mut upstream, body).await
}

/// Whether a message has a body.
#[derive(Clone, Copy, PartialEq)]
enum Body {
    /// As long as its head says.
    Counted,
    /// The same, or until the connection ends.
    OfAnswer,
    /// None, whatever its head says: an answer to `HEAD`.
    Never,
}

/// Whether a line of a head says how long the message is or whether another follows.
fn is_framing(line: &str) -> bool {
    let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
    matches!(name.as_str(), "" | "connection" | "content-length" | "transfer-encoding" | "keep-alive")
}

/// The head, without its empty line, and the body of a message; an answer may end with the connection.
async fn read_message(stream: &mut (impl AsyncRead + Unpin), kind: Body) -> io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at;
        }
        if bytes.len() > HEAD || stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    let mut body = bytes.split_off(end + 4);
    bytes.truncate(end);
    let head = String::from_utf8(bytes).map_err(io::Error::other)?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    match length {
        _ if kind == Body::Never => {}
        Some(length) => {
            while body.len() < length {
                if stream.read_buf(&mut body).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
        None if kind == Body::OfAnswer => {
            stream.read_to_end(&mut body).await?;
        }
        None => {}
    }
    Ok((head, body))
}
