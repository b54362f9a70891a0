//! A small HTTP client for metadata services: one request per connection, no TLS, no proxy (the environment is
//! ignored), no redirects, and limits on time and size. It does not trust the server.

use httparse::{EMPTY_HEADER, Status};
use std::ffi::CString;
use std::fmt;
use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::time::Duration;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest time for a whole exchange. A metadata service is on the same machine or close to it and answers within
/// milliseconds, or a little later if it is busy booting a hundred machines.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest head of a response, bytes.
const MAX_HEAD: usize = 16 << 10;
/// Largest number of header fields in a response.
const MAX_FIELDS: usize = 64;
/// Largest number of interim responses (status 1xx) before the final one.
const MAX_INTERIM: usize = 8;
/// Bytes read from the socket at a time.
const READ: usize = 4 << 10;

/// Why there is no usable response.
#[derive(Debug, Error)]
pub enum HttpError {
    /// The address is not `http://host[:port]`; what is wrong with it.
    #[error("the address {0}; write http://host[:port]")]
    Address(&'static str),
    /// No connection.
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// The connection broke.
    #[error("the connection failed")]
    Broken(#[source] io::Error),
    /// The exchange took longer than a few seconds.
    #[error("no response within {} s", PATIENCE.as_secs())]
    Slow,
    /// The response ended too early.
    #[error("the response is incomplete")]
    Cut,
    /// The response is not HTTP; what is wrong with it.
    #[error("the response is not HTTP: {0}")]
    Malformed(&'static str),
    /// The response is longer than this limit, bytes.
    #[error("the response is longer than {0} bytes")]
    TooLong(usize),
    /// The response is a redirect, with this status.
    #[error("the response is a redirect (status {0})")]
    Redirected(u16),
}

/// A response.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Response {
    /// 200 to 299, or 400 to 599.
    pub status: u16,
    /// At most as many bytes as were asked for.
    pub body: Vec<u8>,
}

/// One server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Server {
    /// As the host field has it.
    authority: String,
    /// Without the brackets of an IPv6 address.
    host: String,
    port: u16,
    /// The interface, by name or number, on which a link-local address is.
    zone: Option<String>,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.zone, self.authority.split_once(']')) {
            // As RFC 6874 writes it in a URL.
            (Some(zone), Some((address, port))) => write!(f, "http://{address}%25{zone}]{port}"),
            _ => write!(f, "http://{}", self.authority),
        }
    }
}

impl Server {
    /// The server at `http://host[:port]`. A link-local address has a zone: `http://[fe80::a9fe:a9fe%25eth0]`.
    ///
    /// # Errors
    /// If this is not such an address.
    pub fn parse(address: &str) -> Result<Self, HttpError> {
        let wrong = |why| Err(HttpError::Address(why));
        let Some(rest) = address.strip_prefix("http://") else { return wrong("does not begin with http://") };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let (authority, zone) = without_zone(authority);
        let authority = authority.as_str();
        // Anything else that a URL may contain would be dropped or escaped silently.
        if !authority.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_:[]".contains(&b)) {
            return wrong("has something else in it");
        }
        let url = rouse_shared::broker_url::parse(&format!("http://{authority}"));
        let Ok(url) = url else { return wrong("has no host, a wrong port, or an IPv6 address without brackets") };
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
            return wrong("has no host");
        };
        let authority = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let host = host.trim_matches(['[', ']']).to_owned();
        let link_local = host.parse().is_ok_and(|address: Ipv6Addr| address.is_unicast_link_local());
        match (link_local, &zone) {
            (true, None) => return wrong("is link-local, and needs its interface, as in http://[fe80::1%25eth0]"),
            (false, Some(_)) => return wrong("has an interface, and is not a link-local IPv6 address"),
            (true, Some(zone)) if zone.is_empty() || !zone.bytes().all(|b| b.is_ascii_graphic() && b != b'/') => {
                return wrong("has an invalid interface");
            }
            _ => {}
        }
        Ok(Self { authority, host, port, zone })
    }

    async fn connect(&self) -> io::Result<TcpStream> {
        let Some(zone) = &self.zone else { return TcpStream::connect((self.host.as_str(), self.port)).await };
        let address = self.host.parse().map_err(io::Error::other)?;
        // Looked up each time: the interface may come later than the agent.
        TcpStream::connect(SocketAddrV6::new(address, self.port, 0, interface(zone)?)).await
    }

    /// Sends GET with these header fields; the response may have at most `limit` bytes.
    ///
    /// # Errors
    /// If there is no response, or none that can be used. A response with an error status is not an error.
    pub async fn get(&self, path: &str, fields: &[(&str, &str)], limit: usize) -> Result<Response, HttpError> {
        self.ask("GET", path, fields, limit).await
    }

    /// Sends PUT without a body, with these header fields; the response may have at most `limit` bytes.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn put(&self, path: &str, fields: &[(&str, &str)], limit: usize) -> Result<Response, HttpError> {
        self.ask("PUT", path, fields, limit).await
    }

    async fn ask(
        &self,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
        limit: usize,
    ) -> Result<Response, HttpError> {
        let exchange = async {
            let mut stream = self.connect().await.map_err(HttpError::Connect)?;
            let authority = &self.authority;
            let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n");
            head.push_str(concat!("User-Agent: rouse-agent/", env!("CARGO_PKG_VERSION"), "\r\n"));
            if method == "PUT" {
                head.push_str("Content-Length: 0\r\n");
            }
            for (name, value) in fields {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
            head.push_str("\r\n");
            stream.write_all(head.as_bytes()).await.map_err(HttpError::Broken)?;
            Reader { stream, bytes: Vec::new(), at: 0 }.answer(limit).await
        };
        tokio::time::timeout(PATIENCE, exchange).await.unwrap_or(Err(HttpError::Slow))
    }
}

/// An authority without the zone of its address, and the zone. The percent sign may be escaped, as in a URL, or not.
fn without_zone(authority: &str) -> (String, Option<String>) {
    let Some((address, rest)) = authority.split_once('%') else { return (authority.to_owned(), None) };
    let Some((zone, port)) = rest.split_once(']') else { return (authority.to_owned(), None) };
    let zone = zone.strip_prefix("25").filter(|zone| !zone.is_empty()).unwrap_or(zone);
    (format!("{address}]{port}"), Some(zone.to_owned()))
}

/// The number of an interface.
fn interface(zone: &str) -> io::Result<u32> {
    if let Ok(number) = zone.parse() {
        return Ok(number);
    }
    let name = CString::new(zone).map_err(io::Error::other)?;
    // SAFETY: the name ends with a NUL.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::new(io::ErrorKind::AddrNotAvailable, format!("there is no interface {zone}"))),
        number => Ok(number),
    }
}

/// How long a body is.
enum Length {
    /// This many bytes.
    Known(usize),
    /// Chunks, each preceded by its length.
    Chunked,
    /// Until the end of the connection.
    Open,
}

/// Reads one response.
struct Reader {
    stream: TcpStream,
    bytes: Vec<u8>,
    /// Everything before this position is used up.
    at: usize,
}

impl Reader {
    async fn answer(mut self, limit: usize) -> Result<Response, HttpError> {
        for _ in 0..MAX_INTERIM {
            let (status, length) = self.head().await?;
            match status {
                // Interim: the final response follows.
                100..=199 => {}
                300..=399 => return Err(HttpError::Redirected(status)),
                204 => return Ok(Response { status, body: Vec::new() }),
                _ => return Ok(Response { status, body: self.body(length, limit).await? }),
            }
        }
        Err(HttpError::Malformed("too many interim responses"))
    }

    /// Reads more bytes. False at the end of the connection.
    async fn more(&mut self) -> Result<bool, HttpError> {
        self.bytes.drain(..self.at);
        self.at = 0;
        let before = self.bytes.len();
        self.bytes.resize(before + READ, 0);
        let read = self.stream.read(&mut self.bytes[before..]).await.map_err(HttpError::Broken);
        self.bytes.truncate(before + read.as_ref().map_or(0, |n| *n));
        Ok(read? > 0)
    }

    async fn head(&mut self) -> Result<(u16, Length), HttpError> {
        loop {
            let mut fields = [EMPTY_HEADER; MAX_FIELDS];
            let mut head = httparse::Response::new(&mut fields);
            match head.parse(&self.bytes[self.at..]) {
                Ok(Status::Complete(length)) => {
                    let status = head.code.filter(|code| (100..600).contains(code));
                    let found = (status.ok_or(HttpError::Malformed("no valid status"))?, length_of(head.headers)?);
                    self.at += length;
                    return Ok(found);
                }
                Ok(Status::Partial) if self.bytes.len() - self.at > MAX_HEAD => {
                    return Err(HttpError::Malformed("its head is too long"));
                }
                Ok(Status::Partial) => {
                    if !self.more().await? {
                        return Err(HttpError::Cut);
                    }
                }
                Err(_) => return Err(HttpError::Malformed("invalid head")),
            }
        }
    }

    async fn body(&mut self, length: Length, limit: usize) -> Result<Vec<u8>, HttpError> {
        let mut body = Vec::new();
        match length {
            Length::Known(length) if length > limit => return Err(HttpError::TooLong(limit)),
            Length::Known(length) => self.take(length, &mut body).await?,
            Length::Open => loop {
                body.extend_from_slice(&self.bytes[self.at..]);
                self.at = self.bytes.len();
                if body.len() > limit {
                    return Err(HttpError::TooLong(limit));
                }
                if !self.more().await? {
                    break;
                }
            },
            Length::Chunked => {
                loop {
                    let chunk = self.chunk_size().await?;
                    if chunk == 0 {
                        // The header fields that may follow are of no interest.
                        break;
                    }
                    if chunk > limit - body.len() {
                        return Err(HttpError::TooLong(limit));
                    }
                    self.take(chunk, &mut body).await?;
                    let mut end = Vec::new();
                    self.take(2, &mut end).await?;
                    if end != b"\r\n" {
                        return Err(HttpError::Malformed("a chunk does not end where its length says"));
                    }
                }
            }
        }
        Ok(body)
    }

    async fn take(&mut self, mut wanted: usize, to: &mut Vec<u8>) -> Result<(), HttpError> {
        while wanted > 0 {
            let there = &self.bytes[self.at..];
            let now = there.len().min(wanted);
            to.extend_from_slice(&there[..now]);
            self.at += now;
            wanted -= now;
            if wanted > 0 && !self.more().await? {
                return Err(HttpError::Cut);
            }
        }
        Ok(())
    }

    async fn chunk_size(&mut self) -> Result<usize, HttpError> {
        loop {
            match httparse::parse_chunk_size(&self.bytes[self.at..]) {
                Ok(Status::Complete((length, size))) => {
                    self.at += length;
                    return usize::try_from(size).map_err(|_| HttpError::Malformed("a chunk that is too long"));
                }
                Ok(Status::Partial) if self.bytes.len() - self.at > READ => {
                    return Err(HttpError::Malformed("a chunk's length is too long"));
                }
                Ok(Status::Partial) => {
                    if !self.more().await? {
                        return Err(HttpError::Cut);
                    }
                }
                Err(_) => return Err(HttpError::Malformed("a chunk without a length")),
            }
        }
    }
}

/// The length of the body by the header fields; an error if they contradict each other.
fn length_of(fields: &[httparse::Header<'_>]) -> Result<Length, HttpError> {
    let mut known = None;
    let mut chunked = false;
    for field in fields {
        let value = std::str::from_utf8(field.value).map_or("", str::trim);
        if field.name.eq_ignore_ascii_case("content-length") {
            let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
            let length = digits.then(|| value.parse::<usize>().unwrap_or(usize::MAX));
            let length = length.ok_or(HttpError::Malformed("content-length is not a number"))?;
            if known.is_some_and(|before| before != length) {
                return Err(HttpError::Malformed("two different values of content-length"));
            }
            known = Some(length);
        }
        if field.name.eq_ignore_ascii_case("transfer-encoding") {
            if !value.eq_ignore_ascii_case("chunked") || chunked {
                return Err(HttpError::Malformed("transfer-encoding is not chunked"));
            }
            chunked = true;
        }
    }
    match (known, chunked) {
        (Some(_), true) => Err(HttpError::Malformed("both content-length and transfer-encoding")),
        (None, true) => Ok(Length::Chunked),
        (Some(length), false) => Ok(Length::Known(length)),
        (None, false) => Ok(Length::Open),
    }
}

#[cfg(test)]
mod tests;
