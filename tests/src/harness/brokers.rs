//! RabbitMQ nodes that the tests of a run share, whichever program they are in: a node's start takes longer than most of
//! what tests do with it.
//!
//! A test has a node for itself, as an operator's own broker that was set up from the files in contrib, with a virtual
//! host that has just been made. There are as many nodes as tests that need one at the same time. Each is started by a
//! test that finds none free, and belongs to a keeper.

use super::keeper::{Keeper, ask_keeper, dir_of_run, place_to_start, start};
use super::process::DEADLINE;
use super::rabbitmq::{ACCOUNT, OwnBroker};
use super::{BEGIN, free_address};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;

const CONFIGURATION: &str = include_str!("../../../contrib/rabbitmq/rabbitmq.conf");
const PLUGINS: &str = include_str!("../../../contrib/rabbitmq/enabled_plugins");

/// A node that nobody else uses until this is dropped.
pub(super) struct Broker {
    /// Where it listens.
    pub(super) address: SocketAddr,
    /// Where it asks the master.
    pub(super) auth: SocketAddr,
    /// Its virtual host, which nobody has used before.
    pub(super) vhost: String,
    _turn: File,
}

impl Broker {
    /// Takes a node that is free, or starts one.
    ///
    /// # Panics
    /// If it does not come up.
    pub(super) fn take() -> Self {
        let (dir, turn) = (0..)
            .find_map(|number| {
                let dir = dir_of_run(&format!("broker-{number}"));
                let file = File::create(dir.join("turn")).expect("a lock of the run");
                file.try_lock().is_ok().then_some((dir, file))
            })
            .expect("there is always one more");
        if !dir.join("ready").exists() {
            let place = place_to_start();
            let program = std::env::current_exe().expect("this program has a path");
            start(&program, &dir, true);
            drop(place);
        }
        let ready = fs::read(dir.join("ready")).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
        let said = || fs::read_to_string(dir.join("log")).unwrap_or_default();
        let ready = ready.unwrap_or_else(|| panic!("no broker; its keeper said: {}", said()));
        let address = |key: &str| ready[key].as_str().and_then(|text| text.parse().ok()).expect("an address");
        let (address, auth): (SocketAddr, _) = (address("address"), address("auth"));
        let reset = Path::new(ready["reset"].as_str().expect("a path"));
        let vhost = begin(reset, address).unwrap_or_else(|why| {
            eprintln!("the broker at {address} is started again: {why}");
            ask_keeper(&dir, BEGIN);
            begin(reset, address).unwrap_or_else(|why| panic!("no broker: {why}; its keeper said: {}", said()))
        });
        Self { address, auth, vhost, _turn: turn }
    }

    /// `broker.url` for the master.
    pub(super) fn url(&self) -> String {
        let (user, password) = ACCOUNT;
        format!("amqp://{user}:{password}@{}/{}", self.address, self.vhost)
    }
}

/// Has a node forget what it was used for. The name of its new virtual host.
fn begin(reset: &Path, address: SocketAddr) -> Result<String, String> {
    let mut name = String::new();
    let asked = UnixStream::connect(reset).and_then(|mut socket| {
        socket.set_read_timeout(Some(DEADLINE))?;
        socket.read_to_string(&mut name)
    });
    asked.and_then(|_| TcpStream::connect(address)).map_err(|error| error.to_string())?;
    match name.strip_suffix('\n') {
        Some(name) => Ok(name.to_owned()),
        None => Err(format!("it says {name:?} instead of a virtual host")),
    }
}

/// Keeps a node until the run ends.
pub(super) fn keep(keeper: &Keeper) {
    let auth = free_address();
    let configuration = CONFIGURATION.replace("127.0.0.1:8091", &auth.to_string());
    let mut broker = OwnBroker::start_with_reset("pool", &configuration, PLUGINS);
    let about = json!({ "address": broker.address, "auth": auth, "reset": broker.reset() });
    keeper.serve(&about, |request| {
        assert_eq!(request, BEGIN);
        broker.kill(0);
        broker.begin(0);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_operators_copy_names_the_address_that_is_replaced() {
        let paths = CONFIGURATION.lines().filter(|line| line.starts_with("auth_http.") && line.contains("_path = "));
        let named: Vec<bool> = paths.map(|line| line.contains("= http://127.0.0.1:8091/auth/")).collect();
        assert_eq!(named, [true; 4]);
    }
}
