//! Tells when the machine's network changes. The agent is started before there is one
//! (contrib/systemd/rouse-agent.service), and what it tries in vain until then need not wait for its next turn.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Changes of addresses and of routes (rtnetlink(7)).
const GROUPS: libc::c_int =
    libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV4_ROUTE | libc::RTMGRP_IPV6_IFADDR | libc::RTMGRP_IPV6_ROUTE;

/// The changes since it was made.
#[derive(Debug)]
pub struct Changes(Option<AsyncFd<OwnedFd>>);

impl Changes {
    /// Listens. Where the kernel has no such service nothing is ever told.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn listen() -> Self {
        // SAFETY: an owned descriptor stays the same and open for as long as it is owned.
        let watch = |socket| unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }.ok();
        Self(socket().ok().and_then(watch))
    }

    /// Waits for a change; several may be told as one. What is dropped while it waits has taken none away.
    pub async fn next(&self) {
        let Some(socket) = &self.0 else { return std::future::pending().await };
        loop {
            let Ok(mut ready) = socket.readable().await else { return std::future::pending().await };
            match ready.try_io(|socket| drain(socket.get_ref())) {
                Ok(Ok(())) => return,
                // It will not get better.
                Ok(Err(_)) => return std::future::pending().await,
                Err(_) => {}
            }
        }
    }
}

fn socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: plain numbers.
    let socket = check(unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) })?;
    // SAFETY: the descriptor is ours alone.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: of this type all zeros are a value.
    let mut address: libc::sockaddr_nl = unsafe { mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as _;
    address.nl_groups = GROUPS as _;
    let length = mem::size_of_val(&address) as libc::socklen_t;
    // SAFETY: the address is of that length and outlives the call.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    Ok(socket)
}

/// Takes all that is there; what it says does not matter, nor that there was too much of it.
fn drain(socket: &OwnedFd) -> io::Result<()> {
    let mut told = false;
    let mut message = [0u8; 4096];
    loop {
        // SAFETY: the buffer is of that length.
        let got = unsafe { libc::recv(socket.as_raw_fd(), message.as_mut_ptr().cast(), message.len(), 0) };
        if got >= 0 {
            told = true;
            continue;
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::ENOBUFS) => told = true,
            Some(libc::EAGAIN) if told => return Ok(()),
            _ => return Err(error),
        }
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
