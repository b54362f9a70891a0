//! Finds out which user of this machine has the other end of a TCP connection (`sock_diag(7)`). TCP does not tell, and the
//! table `/proc/net/tcp` takes the longer to read the more connections there are.

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};
use std::io;
use std::net::{IpAddr, SocketAddr};

/// `SOCK_DIAG_BY_FAMILY`
const BY_FAMILY: u16 = 20;
/// `NLM_F_REQUEST`
const REQUEST: u16 = 1;
/// `NLMSG_ERROR`
const ERROR: u16 = 2;
/// `ENOENT`, as such a message has it.
const NO_ENTRY: i32 = -2;
/// Only this state says something: of a connection that its owner has closed, the kernel no longer knows the owner.
const ESTABLISHED: u8 = 1;
/// `struct nlmsghdr`
const HEADER: usize = 16;
/// Where `struct inet_diag_msg` has the user.
const USER: usize = HEADER + 64;

/// The user at the end `theirs` of an open connection, whose other end is `ours`. None if there is no such connection on
/// this machine, or its owner has closed it.
///
/// # Errors
/// If the kernel does not answer such questions.
pub fn user(theirs: SocketAddr, ours: SocketAddr) -> io::Result<Option<u32>> {
    match find(theirs, ours)? {
        Found::User(user) => Ok(Some(user)),
        Found::Closed => Ok(None),
        // A kernel without this kind of question answers the same. Our own end is there in any case, or what listens for
        // others like it.
        Found::Nothing => match find(ours, theirs)? {
            Found::Nothing => Err(io::ErrorKind::Unsupported.into()),
            Found::User(_) | Found::Closed => Ok(None),
        },
    }
}

/// What the kernel says of one end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Found {
    /// It is open, and belongs to this user.
    User(u32),
    /// It is there, and no longer open.
    Closed,
    Nothing,
}

/// Asks for the end `one` of a connection whose other end is `other`.
fn find(one: SocketAddr, other: SocketAddr) -> io::Result<Found> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    rustix::net::send(&socket, &question(one, other), SendFlags::empty())?;
    let mut answer = [0_u8; 1_024];
    let (_, length) = rustix::net::recv(&socket, &mut answer[..], RecvFlags::empty())?;
    parse(answer.get(..length).unwrap_or(&answer))
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
fn question(one: SocketAddr, other: SocketAddr) -> Vec<u8> {
    // A socket for both families has addresses of the older one in this form.
    let ends = [one, other].map(|end| (end.ip().to_canonical(), end.port()));
    let family = if ends[0].0.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let mut request = vec![u8::try_from(family.as_raw()).unwrap_or_default(), 6, 0, 0];
    request.extend(u32::MAX.to_ne_bytes());
    request.extend(ends.iter().flat_map(|(_, port)| port.to_be_bytes()));
    for (ip, _) in ends {
        let mut bytes = [0; 16];
        match ip {
            IpAddr::V4(ip) => bytes[..4].copy_from_slice(&ip.octets()),
            IpAddr::V6(ip) => bytes = ip.octets(),
        }
        request.extend(bytes);
    }
    // On any interface, and whatever its cookie.
    request.extend(0_u32.to_ne_bytes());
    request.extend([0xff; 8]);
    let mut message = u32::try_from(HEADER + request.len()).unwrap_or_default().to_ne_bytes().to_vec();
    message.extend([BY_FAMILY, REQUEST].iter().flat_map(|field| field.to_ne_bytes()));
    message.extend([1_u32, 0].iter().flat_map(|field| field.to_ne_bytes()));
    message.extend(request);
    message
}

fn parse(answer: &[u8]) -> io::Result<Found> {
    let word = |at: usize| answer.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    match (kind, word(HEADER).map(u32::cast_signed)) {
        (Some(BY_FAMILY), _) if answer.get(HEADER + 1) == Some(&ESTABLISHED) => {
            Ok(word(USER).map_or(Found::Closed, Found::User))
        }
        (Some(BY_FAMILY), _) => Ok(Found::Closed),
        (Some(ERROR), Some(NO_ENTRY)) => Ok(Found::Nothing),
        (Some(ERROR), Some(code)) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        _ => Err(io::Error::from(io::ErrorKind::InvalidData)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn the_user_at_the_other_end_is_found_while_the_connection_is_open() {
        for address in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let Ok(listener) = TcpListener::bind(address) else {
                eprintln!("not checked: this machine has no {address}");
                continue;
            };
            let port = listener.local_addr().unwrap().port();
            // The last one takes a client of the older family.
            let host = if address == "[::1]:0" { "::1" } else { "127.0.0.1" };
            let client = TcpStream::connect((host, port)).unwrap();
            let (server, theirs) = listener.accept().unwrap();
            let ours = server.local_addr().unwrap();
            let own = rustix::process::geteuid().as_raw();
            match user(theirs, ours) {
                Ok(found) => assert_eq!(found, Some(own), "{address}"),
                Err(error) => return eprintln!("not checked: {error}"),
            }
            drop(client);
            assert_eq!(user(theirs, ours).unwrap(), None, "{address}: nobody knows whose it was");
            assert_eq!(user("192.0.2.1:1".parse().unwrap(), ours).unwrap(), None);
        }
    }

    #[test]
    fn other_answers_are_no_user() {
        for answer in [&[][..], &[0; 15], &[0xff; 200]] {
            assert!(parse(answer).is_err());
        }
        let mut short = [0; 40];
        short[4..6].copy_from_slice(&BY_FAMILY.to_ne_bytes());
        short[HEADER + 1] = ESTABLISHED;
        assert_eq!(parse(&short).unwrap(), Found::Closed);
        let mut none = [0; 36];
        none[4..6].copy_from_slice(&ERROR.to_ne_bytes());
        none[HEADER..HEADER + 4].copy_from_slice(&NO_ENTRY.to_ne_bytes());
        assert_eq!(parse(&none).unwrap(), Found::Nothing);
    }
}
