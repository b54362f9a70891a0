//! Tells when the machine's network changes. The agent is started before there is one
//! (contrib/systemd/rouse-agent.service), and what it tries in vain until then need not wait for its next turn.

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, netlink, recv, socket_with};
use std::io;
use std::os::fd::OwnedFd;
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
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // Protocol 0 of this family is NETLINK_ROUTE.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    bind(&socket, &netlink::SocketAddrNetlink::new(0, GROUPS as u32))?;
    Ok(socket)
}

/// Takes all that is there; what it says does not matter, nor that there was too much of it.
fn drain(socket: &OwnedFd) -> io::Result<()> {
    let mut told = false;
    let mut message = [0u8; 4096];
    loop {
        match recv(socket, &mut message, RecvFlags::empty()) {
            Ok(_) | Err(Errno::NOBUFS) => told = true,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if told => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}
