//! The API token that a command sends, and to whom.

use super::error::CliError;
use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// The default path of the token, in the default state directory.
const DEFAULT_FILE: &str = "/var/lib/rouse/api-token";
/// A listening socket in `/proc/net/tcp`.
const LISTENS: &str = "0A";

/// A token, and where it comes from.
pub(super) struct Token {
    pub(super) text: String,
    pub(super) source: String,
}

/// The token for the active master, which the master on this machine has named. Its own is the same one.
///
/// # Errors
/// As [`find`].
pub(super) fn of_fellow(server: &reqwest::Url) -> Result<Option<Token>, CliError> {
    if let Some(token) = find(server)? {
        return Ok(Some(token));
    }
    match fs::read_to_string(DEFAULT_FILE) {
        Ok(token) => checked(&token, &format!("what {DEFAULT_FILE} holds")).map(Some),
        Err(_) => Ok(None),
    }
}

/// The token from `ROUSE_TOKEN`, otherwise from the file `ROUSE_TOKEN_FILE`. Otherwise that in the default file, if the
/// server is on this machine and belongs to the file's owner or to root: whoever else listens there while the master is
/// away must not get it.
///
/// # Errors
/// If a token that is named cannot be read or is not one, or if somebody else listens at the server's address.
pub(super) fn find(server: &reqwest::Url) -> Result<Option<Token>, CliError> {
    if let Ok(token) = std::env::var("ROUSE_TOKEN")
        && !token.trim().is_empty()
    {
        return checked(&token, "ROUSE_TOKEN").map(Some);
    }
    if let Some(path) = std::env::var_os("ROUSE_TOKEN_FILE").filter(|path| !path.is_empty()) {
        let path = Path::new(&path);
        let token = fs::read_to_string(path)
            .map_err(|error| CliError::Usage(format!("cannot read ROUSE_TOKEN_FILE {}: {error}", path.display())))?;
        return checked(&token, &format!("what ROUSE_TOKEN_FILE {} holds", path.display())).map(Some);
    }
    if !is_loopback(server) {
        return Ok(None);
    }
    // If a request needs a token, the master's error says so.
    let (Ok(token), Ok(meta)) = (fs::read_to_string(DEFAULT_FILE), fs::metadata(DEFAULT_FILE)) else {
        return Ok(None);
    };
    let port = server.port_or_known_default().unwrap_or_default();
    let listeners = ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().filter_map(|table| fs::read_to_string(table).ok());
    let users: Vec<u32> = listeners.flat_map(|table| listening_users(&table, port)).collect();
    if users.is_empty() {
        // Whoever takes the port in the next moment must not get the token.
        return Ok(None);
    }
    if let Some(stranger) = users.iter().find(|user| **user != meta.uid() && **user != 0) {
        return Err(CliError::Refused(format!(
            "the user with the id {stranger} listens at {server}, not the owner of {DEFAULT_FILE} (id {}): find out who \
             that is, because the master is not running there. If it is right, set ROUSE_TOKEN_FILE",
            meta.uid()
        )));
    }
    checked(&token, &format!("what {DEFAULT_FILE} holds")).map(Some)
}

/// Why the default file was of no use, for an error; empty if it is readable.
pub(super) fn why_not_the_default() -> String {
    fs::read_to_string(DEFAULT_FILE).err().map(|error| format!(" ({DEFAULT_FILE}: {error})")).unwrap_or_default()
}

/// Whether a server is on this machine.
pub(super) fn is_loopback(url: &reqwest::Url) -> bool {
    url.host_str().is_some_and(|host| {
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    })
}

/// The users whose sockets listen at this port on loopback or on every address (proc_net(5)).
fn listening_users(table: &str, port: u16) -> Vec<u32> {
    let of = |line: &str| -> Option<u32> {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (address, at) = fields.get(1)?.split_once(':')?;
        let matches = *fields.get(3)? == LISTENS
            && u16::from_str_radix(at, 16).is_ok_and(|at| at == port)
            && address_of(address).is_some_and(|address| address.is_loopback() || address.is_unspecified());
        if matches { fields.get(7)?.parse().ok() } else { None }
    };
    table.lines().skip(1).filter_map(of).collect()
}

/// An address in that table: 32-bit words in hexadecimal digits, each in the machine's own byte order.
fn address_of(digits: &str) -> Option<IpAddr> {
    let words = digits.as_bytes().chunks(8).map(|word| u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok());
    let bytes: Vec<u8> = words.collect::<Option<Vec<u32>>>()?.into_iter().flat_map(u32::to_ne_bytes).collect();
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => {
            let address = Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?);
            Some(address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4))
        }
        _ => None,
    }
}

fn checked(token: &str, source: &str) -> Result<Token, CliError> {
    let token = token.trim();
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(CliError::Usage(format!("{source} is not a token: expected one word of ASCII characters")));
    }
    Ok(Token { text: token.to_owned(), source: source.to_owned() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_owner_of_a_listening_socket_is_found() {
        for address in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0"] {
            let Ok(listener) = std::net::TcpListener::bind(address) else {
                eprintln!("not checked: this machine has no {address}");
                continue;
            };
            let port = listener.local_addr().unwrap().port();
            let table = if address.starts_with('[') { "/proc/net/tcp6" } else { "/proc/net/tcp" };
            let own = fs::metadata("/proc/self").unwrap().uid();
            assert_eq!(listening_users(&fs::read_to_string(table).unwrap(), port), [own], "{address}");
            drop(listener);
            assert_eq!(listening_users(&fs::read_to_string(table).unwrap(), port), [] as [u32; 0]);
        }
        let url = |text: &str| reqwest::Url::parse(text).unwrap();
        for local in ["http://localhost:8090", "http://127.0.0.9", "http://[::1]:80/"] {
            assert!(is_loopback(&url(local)), "{local}");
        }
        for other in ["http://192.0.2.1", "http://localhost.example.org", "https://[2001:db8::1]"] {
            assert!(!is_loopback(&url(other)), "{other}");
        }
    }
}
