//! Reports changes of the machine's network. The agent is started before the network
//! (contrib/systemd/rouse-agent.service), and retries at once when it comes up instead of waiting for a timer.

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, netlink, recv, socket_with};
use std::io;
use std::os::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Changes of addresses and of routes (rtnetlink(7)).
const GROUPS: libc::c_int =
    libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV4_ROUTE | libc::RTMGRP_IPV6_IFADDR | libc::RTMGRP_IPV6_ROUTE;

/// The changes since this value was created.
#[derive(Debug)]
pub struct Changes(Option<AsyncFd<OwnedFd>>);

impl Changes {
    /// Starts to listen. If the kernel has no such service, no change is ever reported.
    ///
    /// # Panics
    /// If called outside of a runtime.
    pub fn listen() -> Self {
        // SAFETY: an owned descriptor stays the same and open for as long as it is owned.
        let watch = |socket| unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }.ok();
        Self(socket().ok().and_then(watch))
    }

    /// Waits for a change; several may be reported as one. Cancel-safe.
    pub async fn next(&self) {
        let Some(socket) = &self.0 else { return std::future::pending().await };
        loop {
            let Ok(mut ready) = socket.readable().await else { return std::future::pending().await };
            match ready.try_io(|socket| drain(socket.get_ref())) {
                Ok(Ok(())) => return,
                // The socket is broken for good.
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

/// Reads everything that is there. The content does not matter, nor whether messages were dropped for lack of room.
fn drain(socket: &OwnedFd) -> io::Result<()> {
    let mut changed = false;
    let mut message = [0u8; 4096];
    loop {
        match recv(socket, &mut message, RecvFlags::empty()) {
            Ok(_) | Err(Errno::NOBUFS) => changed = true,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if changed => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}
