//! Which master a command speaks to, and how.

use super::error::CliError;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use tokio::net::UnixStream;

/// The socket of a master with the default state directory.
const SOCKET: &str = "/var/lib/rouse/rouse.sock";
/// The default address of a master, for those who may not use the socket.
const ADDRESS: &str = "http://127.0.0.1:8090";
/// What the address of a socket begins with.
const UNIX: &str = "unix:";

/// The address of a master.
pub(super) enum Server {
    /// Its socket on this machine.
    Socket(PathBuf),
    /// A URL: as it was given, without a slash at the end, and parsed.
    Url(String, reqwest::Url),
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => path.display().fmt(f),
            Self::Url(text, _) => f.write_str(text),
        }
    }
}

/// The master at this address. Without one, the master on this machine: through its socket if it is there and this user
/// may write to it, otherwise over TCP.
///
/// # Errors
/// If it is no address.
pub(super) async fn find(address: Option<&str>) -> Result<Server, CliError> {
    match address {
        Some(address) => parse(address),
        None if answers(Path::new(SOCKET)).await => Ok(Server::Socket(PathBuf::from(SOCKET))),
        None => parse(ADDRESS),
    }
}

fn parse(address: &str) -> Result<Server, CliError> {
    if let Some(path) = address.strip_prefix(UNIX) {
        // As in a URL with an empty host.
        let path = path.strip_prefix("//").unwrap_or(path);
        return match path {
            "" => Err(CliError::Usage(format!("the server {address:?} has no path: write unix:/PATH"))),
            path => Ok(Server::Socket(PathBuf::from(path))),
        };
    }
    let address = address.trim_end_matches('/');
    let url = reqwest::Url::parse(address)
        .map_err(|error| CliError::Usage(format!("the server {address:?} is not a valid URL: {error}")))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        let text = format!("the server must be an http:// or https:// URL or unix: and a path, not {address:?}");
        return Err(CliError::Usage(text));
    }
    Ok(Server::Url(address.to_owned(), url))
}

/// Whether somebody listens at the socket and this user may write to it. If the master has too much to do just now, the
/// command waits for it there.
async fn answers(socket: &Path) -> bool {
    let kind = UnixStream::connect(socket).await.err().map(|error| error.kind());
    !matches!(kind, Some(ErrorKind::NotFound | ErrorKind::PermissionDenied | ErrorKind::ConnectionRefused))
}

/// What a user can do who may not use the socket, for an error; empty if there is none.
pub(super) fn why_not_the_socket() -> &'static str {
    let refused = rustix::fs::access(SOCKET, rustix::fs::Access::WRITE_OK) == Err(rustix::io::Errno::ACCESS);
    if refused { ", or become a member of the group rouse" } else { "" }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_address_is_a_url_or_a_socket() {
        for (address, shown) in [
            ("http://127.0.0.1:8090/", "http://127.0.0.1:8090"),
            ("https://ci.example.org", "https://ci.example.org"),
            ("unix:/srv/rouse/rouse.sock", "/srv/rouse/rouse.sock"),
            ("unix:///srv/rouse/rouse.sock", "/srv/rouse/rouse.sock"),
            ("unix:rouse.sock", "rouse.sock"),
        ] {
            assert_eq!(parse(address).ok().map(|server| server.to_string()).as_deref(), Some(shown));
        }
        for address in ["", "unix:", "nonsense", "ftp://example.org", "/srv/rouse/rouse.sock"] {
            assert!(parse(address).is_err(), "{address}");
        }
    }

    #[tokio::test]
    async fn a_socket_counts_only_if_somebody_listens() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rouse.sock");
        assert!(!answers(&path).await);
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        assert!(answers(&path).await);
        drop(listener);
        assert!(!answers(&path).await, "its master is dead");
    }
}
