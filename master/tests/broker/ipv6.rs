//! A node that is reached over IPv6, and asks the master over IPv6.

use crate::harness::{DEADLINE, auth_server_at, code, dial, free_address, own_queue, scratch, settings};
use rouse_master::broker::Node;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::process::Command;
use std::thread;

/// The address on this machine that no other one has, with a port that nobody else has there either.
fn on_loopback(ip: Ipv6Addr) -> SocketAddr {
    SocketAddrV6::new(ip, free_address().port(), 0, 0).into()
}

/// Starts a node at `listen`, whose master answers at `asked`, and comes in at the first address as an agent does.
async fn an_agent_comes_in(name: &str, listen: Vec<SocketAddr>, asked: SocketAddr) {
    let dir = scratch(name);
    let (auth, _refusals) = auth_server_at(asked).await;
    let mut wanted = settings(&dir, listen[0], &auth);
    wanted.listen.clone_from(&listen);
    // At its first boot the master itself makes a queue there.
    let node = Node::start(wanted).await.unwrap();
    for address in listen {
        let agent = tokio::time::timeout(DEADLINE, dial(address, "w1", "pw-w1")).await.unwrap().unwrap();
        let queue = format!("rouse.agent.w1.of{}.1", address.port());
        own_queue(&agent.create_channel().await.unwrap(), &queue).await.unwrap();
        agent.close(200, "done".into()).await.unwrap();
        assert_eq!(code(dial(address, "w2", "wrong").await), Some(403));
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_listens_on_ipv6_beside_ipv4() {
    // A machine without IPv6 has no such address.
    let loopback = on_loopback(Ipv6Addr::LOCALHOST);
    if std::net::TcpListener::bind(loopback).is_err() {
        assert!(std::env::var_os("CI").is_none(), "this machine has no IPv6");
        return eprintln!("skipped: this machine has no IPv6");
    }
    let asked = SocketAddrV6::new(Ipv6Addr::LOCALHOST, 0, 0, 0).into();
    an_agent_comes_in("ipv6", vec![loopback, free_address()], asked).await;
}

#[test]
fn a_node_listens_on_ipv6_alone() {
    // A thread of its own, and what it starts, has a network of its own.
    let apart = thread::spawn(|| {
        // SAFETY: no pointers.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return false;
        }
        for words in ["link set lo up", "address add fd00::1/64 dev lo nodad"] {
            assert!(Command::new("ip").args(words.split(' ')).status().unwrap().success(), "{words}");
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let ip = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
        let asked = SocketAddrV6::new(ip, 0, 0, 0).into();
        runtime.block_on(an_agent_comes_in("ipv6-alone", vec![SocketAddrV6::new(ip, 5_673, 0, 0).into()], asked));
        true
    });
    if !apart.join().unwrap() {
        assert!(std::env::var_os("CI").is_none(), "only root can have a network of its own");
        eprintln!("skipped: only root can have a network of its own");
    }
}
