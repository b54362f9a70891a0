//! The life of one node: TLS, death and restart, redelivery, end.

use crate::harness::{
    DEADLINE, auth_server, capture_log, dial, free_address, log_text, processes_of, publish, scratch, settings, until,
};
use crate::link::heartbeat;
use rouse_master::broker::{
    Authority, Endpoints, Inbound, Link, LinkSettings, Node, NodeError, NodeState, NodeTls, Outbound, Trust,
};
use rouse_master::tls::fingerprints;
use rouse_shared::fingerprint::client_config;
use rouse_shared::names::AGENTS;
use rouse_shared::{Fingerprint, codec};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// The certificate that a TLS server shows.
async fn shown_at(address: SocketAddr, expected: Fingerprint) -> Fingerprint {
    let config = client_config(vec![expected]).unwrap();
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
    Fingerprint::of(&stream.get_ref().1.peer_certificates().unwrap()[0])
}

fn kill(pid: u32) {
    // SAFETY: a process that this test's node has started.
    assert_eq!(unsafe { libc::kill(pid as libc::pid_t, libc::SIGKILL) }, 0);
}

async fn next(inbound: &mut mpsc::Receiver<Inbound>) -> Inbound {
    tokio::time::timeout(DEADLINE, inbound.recv())
        .await
        .unwrap_or_else(|_| panic!("nothing came\n{}", log_text()))
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_serves_tls_comes_back_after_death_and_leaves_nothing_behind() {
    capture_log();
    let dir = scratch("life");
    let authority = Authority::open(&dir.join("tls")).unwrap();
    let names = ["localhost".to_owned()];
    authority.issue(&names, rouse_master::clock::wall()).unwrap();
    let (auth, refusals) = auth_server().await;
    let (address, tls) = (free_address(), free_address());
    let mut wanted = settings(&dir, address, &auth);
    wanted.tls = Some(NodeTls { listen: vec![tls], files: authority.issued() });
    let node = Node::start(wanted.clone()).await.unwrap();
    let started = processes_of(&dir);
    assert!(started.iter().any(|(_, name)| name == "epmd") && started.len() >= 3, "{started:?}");
    assert!(matches!(Node::start(wanted.clone()).await, Err(NodeError::AddressInUse(_))));

    // TLS: not without the authority; with it, and past a broker that does not answer, yes.
    let password = password_of(node.url());
    let nobody = free_address().port();
    let url = format!("amqps://rouse_master:{password}@localhost:{nobody},localhost:{}/rouse", tls.port());
    let mut link_settings = LinkSettings {
        endpoints: Endpoints::parse(&url).unwrap(),
        trust: Trust::default(),
        conduct: rouse_master::broker::RateLimiter::new(refusals.clone()),
        refusals,
        node: Some(node.state()),
    };
    let (inbound, mut arrivals) = mpsc::channel(100);
    let (logs, _logs) = mpsc::channel(8);
    let untrusting = Link::start(link_settings.clone(), inbound.clone(), logs.clone());
    until("the certificate is refused", || {
        log_text().lines().any(|line| line.contains("cannot connect") && line.contains(&tls.port().to_string()))
    })
    .await;
    assert!(!untrusting.is_up() && arrivals.try_recv().is_err());
    drop(untrusting);
    link_settings.trust = Trust::Authorities(Some(authority.certificate()));
    let link = Link::start(link_settings, inbound, logs);
    assert!(matches!(next(&mut arrivals).await, Inbound::Up));
    assert!(!log_text().contains(password), "the password was logged");

    // The certificate is renewed. New connections get the new one, and the old connections stay.
    let trusted = fingerprints(&authority.certificate()).unwrap()[0];
    let first = shown_at(tls, trusted).await;
    assert_eq!(first, fingerprints(&authority.issued().cert).unwrap()[0]);
    authority.issue(&names, rouse_master::clock::wall()).unwrap();
    let renewed = async {
        while shown_at(tls, trusted).await == first {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(DEADLINE, renewed).await.expect("the broker shows the new certificate");
    assert!(link.is_up() && arrivals.try_recv().is_err());

    // A delivery that nobody acknowledged comes again after the broker's death.
    let connection = dial(address, "w1", "pw-w1").await.unwrap();
    for seq in [1, 2] {
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(Default::default()).await.unwrap();
        let properties = lapin::BasicProperties::default().with_user_id("w1".into()).with_delivery_mode(2);
        let body = codec::encode(&heartbeat(seq));
        let options = Default::default();
        let sent = channel.basic_publish(AGENTS.into(), "w1.control".into(), options, &body, properties);
        sent.await.unwrap().await.unwrap();
    }
    let mut held = Vec::new();
    for seq in [1, 2] {
        match next(&mut arrivals).await {
            Inbound::Agent { message, receipt, .. } => {
                assert_eq!(message, heartbeat(seq));
                held.push(receipt);
            }
            other => panic!("{other:?}"),
        }
    }
    held.remove(0).ack();
    let mut state = node.state();
    let NodeState::Ready { pid } = *state.borrow_and_update() else { panic!("not ready") };
    kill(pid);
    let down = next_matching(&mut arrivals, |inbound| matches!(inbound, Inbound::Down { .. })).await;
    assert!(matches!(down, Inbound::Down { .. }));
    assert!(!link.try_send(Outbound::Event { key: "k".to_owned(), body: vec![] }) && link.unsent() > 0);
    next_matching(&mut arrivals, |inbound| matches!(inbound, Inbound::Up)).await;
    assert!(matches!(*state.borrow_and_update(), NodeState::Ready { pid: again } if again != pid));
    let second = |inbound: &Inbound| matches!(inbound, Inbound::Agent { message, .. } if *message == heartbeat(2));
    let again = next_matching(&mut arrivals, second).await;
    // A receipt of the connection before does nothing, one of this connection does.
    held.remove(0).ack();
    if let Inbound::Agent { receipt, .. } = again {
        receipt.ack();
    }
    let connection = dial(address, "w1", "pw-w1").await.unwrap();
    publish(&connection, Some("w1"), AGENTS, "w1.control", &codec::encode(&heartbeat(3))).await.unwrap();
    let third = next(&mut arrivals).await;
    assert!(matches!(third, Inbound::Agent { message, .. } if message == heartbeat(3)));

    // An epmd that dies is replaced, and the broker does not notice.
    let epmd = |not: u32| processes_of(&dir).into_iter().find(|(pid, name)| name == "epmd" && *pid != not);
    let (first, _) = epmd(0).unwrap();
    kill(first);
    until("another epmd", || epmd(first).is_some()).await;
    assert!(matches!(*state.borrow_and_update(), NodeState::Ready { .. }));

    node.stop().await;
    assert_eq!(*state.borrow_and_update(), NodeState::Stopped);
    until("nothing is left", || processes_of(&dir).is_empty()).await;
    drop(link);

    // It starts again with the same data and password.
    let node = Node::start(wanted).await.unwrap();
    assert_eq!(password_of(node.url()), password_of(&url));
    node.stop().await;
    until("nothing is left", || processes_of(&dir).is_empty()).await;
}

fn password_of(url: &str) -> &str {
    url.split([':', '@']).nth(2).unwrap()
}

/// Waits for the first of what is wanted; other things may come before it.
async fn next_matching(inbound: &mut mpsc::Receiver<Inbound>, wanted: impl Fn(&Inbound) -> bool) -> Inbound {
    loop {
        let inbound = next(inbound).await;
        if wanted(&inbound) {
            return inbound;
        }
    }
}
