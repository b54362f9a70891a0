//! A metadata service on loopback like those of EC2 (version 2 only) and OpenStack, for the agent's own tests.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

/// Content and behaviour of the service.
#[derive(Default)]
pub struct State {
    /// Bodies by path.
    pub pages: BTreeMap<String, Vec<u8>>,
    /// Statuses to answer with instead of the content, by path.
    pub statuses: BTreeMap<String, u16>,
    /// Whether a token is required, as on EC2.
    pub tokens_wanted: bool,
    /// The valid tokens.
    pub tokens: Vec<String>,
    /// Number of tokens so far.
    pub made: usize,
    /// Requests so far: method and path.
    pub asked: Vec<String>,
}

/// A service that runs until it is dropped.
pub struct Metadata {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Metadata {
    /// A service that requires tokens and has an instance id.
    pub fn ec2(instance: &str) -> Self {
        let this = Self::at("127.0.0.1:0".parse().expect("an address"));
        this.state().tokens_wanted = true;
        this.put("/latest/meta-data/instance-id", instance);
        this
    }

    /// A service with OpenStack's meta_data.json.
    pub fn openstack(uuid: &str) -> Self {
        let this = Self::at("127.0.0.1:0".parse().expect("an address"));
        let meta_data =
            format!("{{\"uuid\": \"{uuid}\", \"name\": \"w7\", \"meta\": {{\"a\": \"b\"}}, \"keys\": [1]}}");
        this.put("/openstack/latest/meta_data.json", &meta_data);
        this
    }

    pub fn at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).expect("a port");
        let address = listener.local_addr().expect("its address");
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // The last owner is gone when only this thread's is left.
                if Arc::strong_count(&shared) == 1 {
                    return;
                }
                let Ok(stream) = stream else { return };
                // One that breaks off is its own affair.
                drop(answer(stream, &shared));
            }
        });
        Self { address, state }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("not poisoned")
    }

    pub fn put(&self, path: &str, body: &str) {
        self.state().pages.insert(path.to_owned(), body.as_bytes().to_vec());
    }
}

impl Drop for Metadata {
    fn drop(&mut self) {
        self.state = Arc::default();
        // Connects once more, so that the thread notices that it is the last owner.
        drop(TcpStream::connect(self.address));
    }
}

fn answer(mut stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let mut fields = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else { break };
        fields.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let mut words = request.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (status, body) = {
        let mut state = state.lock().expect("not poisoned");
        state.asked.push(format!("{method} {path}"));
        page(&mut state, method, path, &fields)
    };
    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all(head.as_bytes())?;
    stream.write_all(&body)
}

fn page(state: &mut State, method: &str, path: &str, fields: &BTreeMap<String, String>) -> (u16, Vec<u8>) {
    if let Some(status) = state.statuses.get(path) {
        return (*status, Vec::new());
    }
    if state.tokens_wanted && path == "/latest/api/token" {
        let ttl = fields.get("x-aws-ec2-metadata-token-ttl-seconds").and_then(|ttl| ttl.parse::<u32>().ok());
        if method != "PUT" || !ttl.is_some_and(|ttl| (1..=21_600).contains(&ttl)) {
            return (400, Vec::new());
        }
        state.made += 1;
        let token = format!("token-{}", state.made);
        state.tokens.push(token.clone());
        return (200, token.into_bytes());
    }
    let token = fields.get("x-aws-ec2-metadata-token");
    if state.tokens_wanted && !token.is_some_and(|token| state.tokens.contains(token)) {
        return (401, Vec::new());
    }
    match (method, state.pages.get(path)) {
        ("GET", Some(body)) => (200, body.clone()),
        ("GET", None) => (404, b"<html>nothing here</html>".to_vec()),
        _ => (405, Vec::new()),
    }
}
