//! The small part of HTTP that the measurements need, with as little overhead as possible.

use serde_json::Value;
use std::io::{Error, Result};
use std::net::SocketAddr;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// One connection to the master.
pub struct Client {
    stream: BufReader<TcpStream>,
    token: String,
}

/// The head of an answer.
struct Head {
    status: u16,
    length: Option<usize>,
}

impl Client {
    /// Connects.
    pub async fn connect(address: SocketAddr, token: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream), token: token.to_owned() })
    }

    async fn ask(&mut self, method: &str, path: &str, body: &str) -> Result<Head> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            self.token,
            body.len(),
        );
        self.stream.get_mut().write_all(request.as_bytes()).await?;
        let mut head = Head { status: 0, length: None };
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line).await? == 0 {
                return Err(Error::other("the master closed the connection"));
            }
            let line = line.trim_end().to_ascii_lowercase();
            if let Some(status) = line.strip_prefix("http/1.1 ") {
                head.status = status.split(' ').next().and_then(|code| code.parse().ok()).unwrap_or(0);
            } else if let Some(length) = line.strip_prefix("content-length:") {
                head.length = length.trim().parse().ok();
            } else if line.is_empty() {
                return Ok(head);
            }
        }
    }

    async fn whole(&mut self, method: &str, path: &str, body: &str) -> Result<String> {
        let head = self.ask(method, path, body).await?;
        let mut text = vec![0; head.length.unwrap_or(0)];
        self.stream.read_exact(&mut text).await?;
        let text = String::from_utf8_lossy(&text).into_owned();
        if head.status / 100 != 2 {
            return Err(Error::other(format!("{method} {path}: {} {text}", head.status)));
        }
        Ok(text)
    }

    /// The body of the answer to a GET.
    pub async fn get(&mut self, path: &str) -> Result<String> {
        self.whole("GET", path, "").await
    }

    /// A POST without a body.
    pub async fn post(&mut self, path: &str) -> Result<String> {
        self.whole("POST", path, "").await
    }

    /// Submits a build and gives its number.
    pub async fn submit(&mut self, build: &Value) -> Result<String> {
        let answer: Value = serde_json::from_str(&self.whole("POST", "/api/builds", &build.to_string()).await?)?;
        Ok(answer["id"].as_str().unwrap_or_default().to_owned())
    }

    /// Begins an answer without an end that is known, whose pieces [`Self::piece`] gives.
    pub async fn follow(&mut self, path: &str) -> Result<()> {
        let head = self.ask("GET", path, "").await?;
        if head.status == 200 { Ok(()) } else { Err(Error::other(format!("GET {path}: {}", head.status))) }
    }

    /// The next piece of a chunked answer; empty at its end.
    pub async fn piece(&mut self) -> Result<Vec<u8>> {
        let mut line = String::new();
        if self.stream.read_line(&mut line).await? == 0 {
            return Ok(Vec::new());
        }
        let length = usize::from_str_radix(line.trim(), 16).map_err(Error::other)?;
        let mut piece = vec![0; length + 2];
        self.stream.read_exact(&mut piece).await?;
        piece.truncate(length);
        Ok(piece)
    }
}

/// A gauge of `/metrics`, such as `rouse_builds{state="success"}`.
pub fn gauge(metrics: &str, name: &str) -> u64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.trim().parse::<f64>().ok()).map_or(0, |value| value as u64)
}
