//! Machines that have a network of their own, as far as the kernel is concerned: a namespace each, with a cable to a
//! bridge in the network of the test. Only root can make them.

use super::process::{DEADLINE, Process, holds_within};
use crate::virt::{own_world, run};
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

/// The bridge, and its address.
const BRIDGE: (&str, Ipv4Addr) = ("rouse-bridge", Ipv4Addr::new(10, 151, 0, 254));

/// A bridge that machines are connected to, in a network of the test's own: what the test starts later is in there too.
pub struct Network;

/// A machine. What runs on it ends when this is dropped, but no earlier than its processes are.
pub struct Machine {
    /// Its address.
    pub address: Ipv4Addr,
    card: String,
    /// What keeps the namespace.
    holder: Process,
}

impl Network {
    /// Moves the calling thread into a network of its own. Absent if it may not, because it is not root.
    ///
    /// # Panics
    /// If the bridge cannot be made.
    pub fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() || !own_world() {
            return None;
        }
        let (bridge, address) = BRIDGE;
        ip(&["link", "add", bridge, "type", "bridge"]);
        ip(&["address", "add", &format!("{address}/24"), "dev", bridge]);
        ip(&["link", "set", bridge, "up"]);
        Some(Self)
    }

    /// The address of the test in this network.
    pub fn address(&self) -> Ipv4Addr {
        BRIDGE.1
    }

    /// The machine with this number, from 1.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn machine(&self, number: u8, dir: &Path) -> Machine {
        let address = Ipv4Addr::new(10, 151, 0, number);
        let mut holder = Command::new("unshare");
        holder.args(["--net", "sleep", "infinity"]);
        let holder = Process::start(holder, dir, &format!("machine{number}"));
        let (pid, card) = (holder.pid().to_string(), format!("rouse-card{number}"));
        let network_of = |who: &str| fs::read_link(format!("/proc/{who}/ns/net")).ok();
        let apart = || network_of(&pid) != network_of("thread-self");
        assert!(holds_within(DEADLINE, apart), "no network of its own: {}", holder.err());
        ip(&["link", "add", &card, "type", "veth", "peer", "name", "eth0", "netns", &pid]);
        ip(&["link", "set", &card, "master", BRIDGE.0, "up"]);
        let machine = Machine { address, card, holder };
        machine.ip(&["address", "add", &format!("{address}/24"), "dev", "eth0"]);
        for card in ["lo", "eth0"] {
            machine.ip(&["link", "set", card, "up"]);
        }
        machine
    }
}

impl Machine {
    /// A program on this machine.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.holder.pid())).arg(program);
        command
    }

    /// Pulls its cable: nobody reaches it, and nothing is refused.
    pub fn unplug(&self) {
        ip(&["link", "set", &self.card, "down"]);
    }

    /// Puts its cable back.
    pub fn plug_in(&self) {
        ip(&["link", "set", &self.card, "up"]);
    }

    /// From now on, nothing that it sends reaches the other machine.
    pub fn lose(&self, other: &Self) {
        self.ip(&["route", "add", "blackhole", &format!("{}/32", other.address)]);
    }

    /// Takes [`Self::lose`] back.
    pub fn find(&self, other: &Self) {
        self.ip(&["route", "delete", "blackhole", &format!("{}/32", other.address)]);
    }

    fn ip(&self, arguments: &[&str]) {
        run(self.command("ip").args(arguments));
    }
}

fn ip(arguments: &[&str]) {
    run(Command::new("ip").args(arguments));
}
