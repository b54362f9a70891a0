//! Ports and directories that no other test has, whichever process it runs in.

use rouse_master::files::remove_tree;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Ports below those that the kernel gives to connections (ip(7), `ip_local_port_range`), one of which could have the
/// port before whoever is to listen there.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// What the directories of tests are called; the id of the process that they belong to follows.
const PREFIX: &str = "rouse-test-";

/// A port of loopback that nobody listens on, and that no other process of the tests gets before this one ends.
///
/// A port is claimed by a name in the abstract namespace of unix sockets: like ports it is the network namespace's, and
/// the kernel frees it when the process ends.
///
/// # Panics
/// If all are taken.
pub fn free_address() -> SocketAddr {
    static CLAIMED: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());
    let mut claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
    // Processes begin in different places, so that few claims fail.
    let count = u32::from(PORTS.end - PORTS.start);
    let begin = std::process::id().wrapping_mul(97).wrapping_add(u32::try_from(claimed.len()).unwrap_or_default());
    for number in 0..count {
        let port = PORTS.start + u16::try_from(begin.wrapping_add(number) % count).expect("a port");
        let name = UnixAddress::from_abstract_name(format!("rouse-test-port-{port}")).expect("a short name");
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if let Ok(claim) = UnixListener::bind_addr(&name)
            && TcpListener::bind(address).is_ok()
        {
            claimed.push(claim);
            return address;
        }
    }
    panic!("no port is free between {} and {}", PORTS.start, PORTS.end);
}

/// A directory of this process's own. Those of processes that have ended are removed.
///
/// # Panics
/// If it cannot be made.
pub fn scratch(name: &str) -> PathBuf {
    for entry in fs::read_dir(std::env::temp_dir()).expect("a directory for temporary files").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // Two tests may both try. A test that was killed may have left what another program cannot remove.
            remove_tree(&entry.path()).ok();
        }
    }
    dir_of(std::process::id(), name)
}

/// A directory that belongs to this process.
///
/// # Panics
/// If it cannot be made.
pub fn dir_of(process: u32, name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("{PREFIX}{process}-{name}"));
    fs::create_dir_all(&dir).expect("a directory of our own");
    dir
}
