//! Who may ask the master whether an agent may connect: the broker, and nobody else. Otherwise every user of the machine
//! could try passwords here, beside the broker.

use crate::config::Secret;
use crate::{peer, users};
use rustix::process::geteuid;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// The user that packages of RabbitMQ create for it.
const RABBITMQ: &str = "rabbitmq";

/// Who may ask.
#[derive(Clone, Debug)]
pub struct Askers {
    secret: Option<Secret>,
    /// The users of this machine that may ask. None: whoever has the secret.
    users: Option<Vec<u32>>,
}

impl Askers {
    /// The private broker: with a new secret, and only from a process of the master's user or root.
    ///
    /// # Errors
    /// If there are no random numbers.
    pub fn private_broker() -> std::io::Result<Self> {
        let mut secret = [0_u8; 16];
        getrandom::fill(&mut secret).map_err(std::io::Error::other)?;
        let users = Some(vec![geteuid().as_raw(), 0]);
        Ok(Self { secret: Some(Secret::new(hex::encode(secret))), users })
    }

    /// A broker of the operator's own. With a secret, whoever has it. Without one, every other machine that can reach
    /// the address, and on this one the users that RabbitMQ may run as.
    pub fn own_broker(secret: Option<Secret>) -> Self {
        let users =
            secret.is_none().then(|| [geteuid().as_raw(), 0].into_iter().chain(users::user(RABBITMQ)).collect());
        Self { secret, users }
    }

    /// The path of one kind of question: user, vhost, resource or topic.
    pub fn path(&self, kind: &str) -> String {
        match &self.secret {
            Some(secret) => format!("/auth/{}/{kind}", secret.expose()),
            None => format!("/auth/{kind}"),
        }
    }

    /// The user at the other end of a connection, if it is one of this machine who may not ask.
    pub(super) fn stranger(&self, theirs: SocketAddr, ours: SocketAddr) -> Option<String> {
        let allowed = self.users.as_ref()?;
        match peer::user(theirs, ours) {
            Ok(Some(user)) if allowed.contains(&user) => None,
            Ok(Some(user)) => Some(format!("the user with the id {user}")),
            // The broker keeps the connection open until it has the answer.
            Ok(None) if is_own(theirs) => Some("a process that has closed its connection".to_owned()),
            Ok(None) => None,
            Err(error) => {
                tracing::debug!("the kernel does not say whose connection it is: {error}");
                None
            }
        }
    }
}

/// Whether an address is one of this machine's: then the kernel sends from it what is sent to it. Nothing is sent.
fn is_own(address: SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    let any = match ip {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let from = || {
        let socket = UdpSocket::bind((any, 0))?;
        // With its scope, if it has one.
        socket.connect(if ip == address.ip() { address } else { SocketAddr::new(ip, address.port()) })?;
        socket.local_addr()
    };
    ip.is_loopback() || from().is_ok_and(|from| from.ip() == ip)
}
