//! Every address is an IPv6 address.

use rouse_tests::harness::{Master, free_address, latent, standing};
use std::net::{Ipv6Addr, SocketAddr, TcpListener};

#[test]
fn agents_attach_over_ipv6() {
    let loopback = |port| SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    let (amqp, auth) = (loopback(free_address().port()), loopback(free_address().port()));
    if TcpListener::bind(amqp).is_err() {
        assert!(std::env::var_os("CI").is_none(), "this machine has no IPv6");
        return eprintln!("skipped: this machine has no IPv6");
    }
    // Whoever takes an address of IPv6 for localhost comes here.
    let trap = TcpListener::bind(("127.0.0.1", amqp.port())).unwrap();
    trap.set_nonblocking(true).unwrap();
    let url = format!("amqp://{amqp}/rouse");
    let workers = standing("stands", "") + &latent("sleeps", "");
    let master = Master::start_with("ipv6", &format!("listen = \"{amqp}\"\n"), &url, auth, &workers);
    let _agent = master.agent("stands");
    for worker in ["stands", "sleeps"] {
        let said = master.rouse(&["build", "--worker", worker, "--", "echo", worker]).ended(0);
        assert_eq!(said.text(), format!("{worker}\n"));
    }
    assert!(trap.accept().is_err(), "somebody dials localhost instead");
}
