//! A private RabbitMQ broker as a child of the master, with its own epmd.
//!
//! One thread starts both and lives as long as the [`Node`], because the kernel's signal at a parent's death
//! (`PR_SET_PDEATHSIG`) depends on the thread that started the child. If the broker dies, it is started again, with
//! backoff.

mod config;
mod process;
mod supervise;

use super::auth::Askers;
use super::limits::{FIRST_FLUSH, NODE_READY, PORT_PATIENCE};
use super::link::{Trust, declare_builds};
use super::rate_limiter::CloseRequest;
use super::{MASTER_USER, VHOST};
use crate::tls::TlsFiles;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// Settings of a private broker.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    /// Its directory: data, logs, HOME, password. Created if it does not exist.
    pub dir: PathBuf,
    /// The addresses at which it does not encrypt. In both lists together there is at least one.
    pub listen: Vec<SocketAddr>,
    /// The addresses at which it speaks TLS, if there are any.
    pub tls: Option<NodeTls>,
    /// Where the master's [`super::AuthServer`] listens.
    pub auth_listen: SocketAddr,
    /// Who it lets ask there.
    pub askers: Askers,
    /// Makes its Erlang name unique on this machine. From the master's id.
    pub node_name_suffix: String,
}

/// TLS of a private broker. If the files change, RabbitMQ reads them within seconds, and no connection ends.
#[derive(Clone, Debug)]
pub struct NodeTls {
    /// The addresses.
    pub listen: Vec<SocketAddr>,
    /// Certificate and key. Those that have signed the certificate follow it in its file, and are sent with it.
    pub files: TlsFiles,
}

/// Why a private broker cannot run.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// RabbitMQ was not found.
    #[error(
        "{program} was not found; install RabbitMQ (Debian: apt-get install --no-install-recommends rabbitmq-server) or set \
         broker.url"
    )]
    NotInstalled {
        /// The missing program.
        program: &'static str,
    },
    /// No address to listen on was given.
    #[error("broker.listen has no address")]
    NoAddress,
    /// Another program has the address.
    #[error("{0} is already in use, perhaps by the system's RabbitMQ; stop it or change broker.listen")]
    AddressInUse(SocketAddr),
    /// No interface has the address, or not yet.
    #[error("this machine does not have the address {0}; bring up its interface or change broker.listen")]
    AddressNotAvailable(SocketAddr),
    /// The address cannot be listened on for another reason.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The kernel's error.
        source: io::Error,
    },
    /// The node's directory cannot be used.
    #[error("cannot use {}", path.display())]
    Directory {
        /// The file or directory.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The path of the node's directory is too long for a unix socket in it.
    #[error("the path {} is too long for a socket; choose a shorter master.state_dir", .0.display())]
    PathTooLong(PathBuf),
    /// The directory has data of a broker, but not the password of the account in them.
    #[error(
        "{} is missing, and it protects the broker's data; restore it, or remove the directory mnesia next to it, \
         which deletes the messages in the broker's queues",
        .0.display()
    )]
    PasswordLost(PathBuf),
    /// The processes cannot be started.
    #[error("cannot run {}", program.display())]
    Spawn {
        /// Its path.
        program: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// It ended before it was ready.
    #[error("the broker ended ({how}) and printed: {output}")]
    Ended {
        /// How it ended.
        how: String,
        /// The end of its output.
        output: String,
    },
    /// It does not start on its data, because RabbitMQ of an earlier version had not enabled what it requires.
    #[error(
        "the broker does not start on the data of an earlier version, whose feature flags were not enabled: {output}"
    )]
    OldData {
        /// The end of what it printed.
        output: String,
    },
    /// It was not ready in time.
    #[error("the broker was not ready within {} s and printed: {output}", NODE_READY.as_secs())]
    NotReady {
        /// The end of its output.
        output: String,
    },
    /// The submission queue could not be declared at the first start; the reason.
    #[error("the queue of builds cannot be declared on the broker's first boot")]
    FirstBoot(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The supervising thread has ended, which it only does if it is asked to.
    #[error("the broker was stopped")]
    Stopped,
}

/// Number of users that wait for their connections to be closed. Each waits for a few seconds.
const WAITING_TO_CLOSE: usize = 64;

/// The state of a private broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// It is starting.
    Starting,
    /// It accepts connections.
    Ready {
        /// The process id of the broker itself.
        pid: u32,
    },
    /// It died or did not start, and will be started again; the reason.
    Down(String),
    /// It was stopped.
    Stopped,
}

/// A running private broker, which is started again if it dies. Dropping this ends it; if the process ends first, the
/// kernel ends it.
pub struct Node {
    url: String,
    trust: Trust,
    state: watch::Receiver<NodeState>,
    stop: Option<oneshot::Sender<()>>,
    closer: mpsc::Sender<CloseRequest>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// Without the password in the URL.
impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("state", &*self.state.borrow()).finish_non_exhaustive()
    }
}

impl Node {
    /// Checks what can be checked, starts the broker and waits until it is ready.
    ///
    /// # Errors
    /// If RabbitMQ is not installed, an address is taken, the directory cannot be used, or the broker does not start.
    pub async fn start(settings: NodeSettings) -> Result<Self, NodeError> {
        let encrypted = settings.tls.as_ref().map_or(&[][..], |tls| &tls.listen);
        for address in settings.listen.iter().chain(encrypted) {
            wait_for_address(*address).await?;
        }
        let (scheme, master_address, trust) = match (master_address(&settings.listen), &settings.tls) {
            (Some(address), _) => ("amqp", address, Trust::default()),
            (None, Some(tls)) => {
                let address = master_address(&tls.listen).ok_or(NodeError::NoAddress)?;
                ("amqps", address, Trust::Certificates(tls.files.cert.clone()))
            }
            (None, None) => return Err(NodeError::NoAddress),
        };
        let programs = process::Programs::find()?;
        let mut prepared = config::prepare(&settings, master_address.ip().is_loopback())?;
        let mut unsettled = prepared.unsettled.take();
        let url = format!("{scheme}://{MASTER_USER}:{}@{master_address}/{VHOST}", prepared.password);
        let (stop, stopped) = oneshot::channel();
        let (closer, to_close) = mpsc::channel(WAITING_TO_CLOSE);
        let (report, state) = watch::channel(NodeState::Starting);
        let (first, came_up) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("private-broker".to_owned())
            .spawn(move || supervise::run(&prepared, &programs, supervise::Asked { stopped, to_close }, &report, first))
            .map_err(|source| NodeError::Spawn { program: PathBuf::from("a thread"), source })?;
        let node = Self { url, trust, state, stop: Some(stop), closer, thread: Some(thread) };
        let begun_anew = came_up.await.unwrap_or(Err(NodeError::Stopped))?;
        unsettled = unsettled.or(begun_anew);
        if let Some(unsettled) = unsettled {
            declare_builds(&node.url, &node.trust).await.map_err(NodeError::FirstBoot)?;
            tokio::time::sleep(FIRST_FLUSH).await;
            unsettled.settle()?;
        }
        Ok(node)
    }

    /// The master's URL, with user and password. Not for logs.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Whom the master trusts at this URL.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Its state, now and later.
    pub fn state(&self) -> watch::Receiver<NodeState> {
        self.state.clone()
    }

    /// Takes requests to close the connections of workers.
    pub fn closer(&self) -> mpsc::Sender<CloseRequest> {
        self.closer.clone()
    }

    /// Ends the broker and its epmd, and waits until they are gone: SIGTERM, and SIGKILL after
    /// [`super::limits::NODE_STOP`].
    pub async fn stop(mut self) {
        drop(self.stop.take());
        let Some(thread) = self.thread.take() else { return };
        if let Ok(Err(_panic)) = tokio::task::spawn_blocking(move || thread.join()).await {
            tracing::error!("the private broker's supervisor panicked; the kernel has ended what it had started");
        }
    }
}

/// The address that the master connects to: a loopback address if there is one.
fn master_address(listen: &[SocketAddr]) -> Option<SocketAddr> {
    let dialled = |address: &SocketAddr| {
        let ip = match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            ip => ip,
        };
        SocketAddr::new(ip, address.port())
    };
    let all: Vec<SocketAddr> = listen.iter().map(dialled).collect();
    all.iter().find(|address| address.ip().is_loopback()).or(all.first()).copied()
}

/// Waits a little until a previous broker has released the address.
async fn wait_for_address(address: SocketAddr) -> Result<(), NodeError> {
    let pause = Duration::from_millis(100);
    let mut left = PORT_PATIENCE;
    loop {
        match TcpListener::bind(address) {
            Ok(_free) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && !left.is_zero() => {
                left = left.saturating_sub(pause);
                tokio::time::sleep(pause).await;
            }
            Err(source) => {
                return Err(match source.kind() {
                    io::ErrorKind::AddrInUse => NodeError::AddressInUse(address),
                    io::ErrorKind::AddrNotAvailable => NodeError::AddressNotAvailable(address),
                    _ => NodeError::Listen { address, source },
                });
            }
        }
    }
}

fn unusable(path: &Path) -> impl FnOnce(io::Error) -> NodeError + '_ {
    |source| NodeError::Directory { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_master_dials_loopback_where_it_can() {
        for (listen, expected) in [
            (vec![], None),
            (vec!["127.0.0.1:5672"], Some("127.0.0.1:5672")),
            (vec!["0.0.0.0:5673"], Some("127.0.0.1:5673")),
            (vec!["[::]:5673"], Some("[::1]:5673")),
            (vec!["192.0.2.1:5672", "127.0.0.1:5674"], Some("127.0.0.1:5674")),
            (vec!["192.0.2.1:5672"], Some("192.0.2.1:5672")),
        ] {
            let listen: Vec<SocketAddr> = listen.iter().map(|a| a.parse().unwrap()).collect();
            assert_eq!(master_address(&listen), expected.map(|a| a.parse().unwrap()));
        }
    }
}
