//! The sockets that the master listens on: those that systemd holds for it while it is restarted, otherwise its own.

use super::error::MasterError;
use super::state::State;
use crate::users;
use listenfd::ListenFd;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use tokio::net::{TcpListener, UnixListener};
use tracing::warn;

/// The socket of the commands, in the state directory.
pub const COMMANDS: &str = "rouse.sock";
/// Those who are in this group may use the socket of the commands.
const GROUP: &str = "rouse";
/// Connections that may wait until they are accepted.
const BACKLOG: i32 = 1_024;

/// The listening sockets that the service manager has passed to this process (`sd_listen_fds(3)`). Each is known by its
/// address.
#[derive(Debug, Default)]
pub struct Inherited {
    tcp: Vec<(SocketAddr, std::net::TcpListener)>,
    unix: Option<std::os::unix::net::UnixListener>,
}

impl Inherited {
    /// Takes them, once. It changes the environment, so no other thread may run.
    ///
    /// # Errors
    /// If one is not a stream socket that listens.
    pub fn take() -> Result<Self, MasterError> {
        let mut passed = ListenFd::from_env();
        let mut taken = Self::default();
        for number in 0..passed.len() {
            let unusable = |e: io::Error| MasterError::new("cannot use a socket of the service manager", &e);
            if let Ok(Some(listener)) = passed.take_tcp_listener(number) {
                listener.set_nonblocking(true).map_err(unusable)?;
                taken.tcp.push((listener.local_addr().map_err(unusable)?, listener));
            } else if let Some(listener) = passed.take_unix_listener(number).map_err(unusable)? {
                listener.set_nonblocking(true).map_err(unusable)?;
                taken.unix = Some(listener);
            }
        }
        Ok(taken)
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.tcp.is_empty() && self.unix.is_none()
    }

    /// The same sockets, for a server that ends before the master needs them.
    pub(super) fn try_clone(&self) -> Result<Self, MasterError> {
        let failed = |e: io::Error| MasterError::new("cannot use a socket of the service manager", &e);
        let tcp = self.tcp.iter().map(|(address, listener)| Ok((*address, listener.try_clone()?)));
        Ok(Self {
            tcp: tcp.collect::<io::Result<_>>().map_err(failed)?,
            unix: self.unix.as_ref().map(|listener| listener.try_clone()).transpose().map_err(failed)?,
        })
    }

    /// The listener for an address, if there is one.
    pub(super) fn tcp(&mut self, address: SocketAddr) -> io::Result<Option<TcpListener>> {
        let Some(at) = self.tcp.iter().position(|(held, _)| *held == address) else { return Ok(None) };
        TcpListener::from_std(self.tcp.swap_remove(at).1).map(Some)
    }

    /// Warns of those that nothing has asked for: clients would wait there for ever.
    pub(super) fn end(self) {
        for (address, _) in self.tcp {
            warn!(
                "systemd listens on {address} for the master, and neither master.listen nor broker.auth_listen is this \
                 address: let ListenStream= in rouse.socket be the same"
            );
        }
    }
}

/// The socket for the commands on this machine: the inherited one, otherwise a new one in the state directory. None if
/// there cannot be one; commands need the token then.
pub(super) fn commands(inherited: &mut Inherited, state: &State) -> Option<UnixListener> {
    let path = state.path(COMMANDS);
    let listener = match inherited.unix.take() {
        Some(listener) => UnixListener::from_std(listener),
        None => listen(&path),
    };
    listener
        .inspect_err(|error| warn!("commands on this machine need the token, because {}: {error}", path.display()))
        .ok()
}

/// A socket that only the master's user can write to, and the group `rouse` if the master can give it to it. The state
/// directory is locked, so a socket that is there already is one of a master that is dead.
fn listen(path: &Path) -> io::Result<UnixListener> {
    // Fails if the path is too long for the kernel.
    let address = SocketAddrUnix::new(path)?;
    match fs::symlink_metadata(path) {
        Ok(old) if old.file_type().is_socket() => fs::remove_file(path)?,
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is not a socket")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &address)?;
    // Nobody can connect before the socket listens, so the mode that the umask has given it does not matter.
    let shared = users::group(GROUP).is_some_and(|group| std::os::unix::fs::chown(path, None, Some(group)).is_ok());
    fs::set_permissions(path, fs::Permissions::from_mode(if shared { 0o660 } else { 0o600 }))?;
    rustix::net::listen(&socket, BACKLOG)?;
    UnixListener::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[tokio::test]
    async fn only_the_group_may_write_and_a_dead_masters_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(COMMANDS);
        drop(listen(&path).unwrap());
        assert!(path.exists(), "as after a crash");
        let listener = listen(&path).unwrap();
        let meta = fs::metadata(&path).unwrap();
        match users::group(GROUP) {
            Some(group) if meta.gid() == group => assert_eq!(meta.mode() & 0o777, 0o660),
            _ => assert_eq!(meta.mode() & 0o777, 0o600),
        }
        let (connected, accepted) = tokio::join!(tokio::net::UnixStream::connect(&path), listener.accept());
        assert!(connected.is_ok() && accepted.is_ok());
    }

    #[tokio::test]
    async fn neither_another_file_is_replaced_nor_a_path_cut() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "precious").unwrap();
        assert_eq!(listen(&file).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&file).unwrap(), b"precious");
        assert!(listen(&dir.path().join("a".repeat(108))).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
