//! Brokers that speak TLS: one that the operator runs, with its own authority, and a private one.

use rouse_master::broker::{Askers, MASTER_USER, Node, NodeSettings, NodeTls, VHOST};
use rouse_master::tls::{TlsFiles, fingerprints};
use rouse_shared::Fingerprint;
use rouse_tests::harness::{
    DEADLINE, Master, free_address, holds_within, latent, make_certificates, scratch, standing,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_build_runs_through_an_external_broker_over_tls() {
    let dir = scratch("tls-node");
    make_certificates(&dir);
    let (tls, auth) = (free_address(), free_address());
    let settings = NodeSettings {
        dir: dir.join("broker"),
        listen: vec![free_address()],
        auth_listen: auth,
        askers: Askers::own_broker(None),
        node_name_suffix: format!("tls{}", std::process::id()),
        tls: Some(NodeTls {
            listen: vec![tls],
            files: TlsFiles { cert: dir.join("server.pem"), key: dir.join("server.key") },
        }),
    };
    let node = Node::start(settings).await.unwrap();
    let password = std::fs::read_to_string(dir.join("broker/password")).unwrap();
    let place = format!("localhost:{}/{VHOST}", tls.port());
    let ca = dir.join("ca.pem").display().to_string();
    tokio::task::block_in_place(|| {
        let broker = format!("url = \"amqps://{MASTER_USER}:{}@{place}\"\nca = \"{ca}\"\n", password.trim());
        let workers = standing("stands", "") + &latent("sleeps", "");
        let master = Master::start_with("tls", &broker, &format!("amqps://{place}"), auth, &workers);
        // Whoever does not know the authority does not talk to it.
        let wary = master.begin_agent_in("stands", "wary", &[]);
        assert!(holds_within(DEADLINE, || wary.err().to_lowercase().contains("certificate")), "{}", wary.err());
        assert_eq!(master.worker("stands")["state"], "offline");
        drop(wary);

        let _agent = master.begin_agent("stands", &[("ROUSE_AGENT_CA", &ca)]);
        for worker in ["stands", "sleeps"] {
            let said = master.rouse(&["build", "--worker", worker, "--", "echo", worker]).ended(0);
            assert_eq!(said.text(), format!("{worker}\n"));
        }
    });
    node.stop().await;
    std::fs::remove_dir_all(dir).unwrap();
}

/// Agents on other machines: their broker is encrypted by default, and its certificate is that of the master's authority.
#[test]
fn a_private_broker_that_others_can_reach_speaks_tls() {
    let port = free_address().port();
    let broker = format!("listen = [\"0.0.0.0:{port}\"]\nagent_url = \"amqps://localhost:{port}/{VHOST}\"\n");
    let dialled = format!("amqps://127.0.0.1:{port}/{VHOST}");
    let workers = standing("stands", "") + &latent("sleeps", "build_wait_timeout = 0");
    let master = Master::start_with("private-tls", &broker, &dialled, free_address(), &workers);
    let authority = master.config().with_file_name("state/tls/authority.pem");
    let fingerprint = fingerprints(&authority).unwrap()[0].to_string();
    let check = |expected| {
        let config = master.config();
        master.rouse(&["check", "-c", config.to_str().unwrap()]).ended(expected).text().to_owned()
    };
    assert!(check(0).contains(&format!("fingerprint = \"{fingerprint}\"")), "{}", check(0));

    let other = Fingerprint::of(b"the certificate of another authority").to_string();
    let deceived = master.begin_agent_in("stands", "deceived", &[("ROUSE_AGENT_FINGERPRINT", &other)]);
    let refuses = || deceived.err().contains("is not the one that is trusted") && deceived.err().contains(&fingerprint);
    assert!(holds_within(DEADLINE, refuses), "{}", deceived.err());
    assert_eq!(master.worker("stands")["state"], "offline");
    drop(deceived);
    let _agent = master.begin_agent("stands", &[("ROUSE_AGENT_FINGERPRINT", &fingerprint)]);
    for worker in ["stands", "sleeps"] {
        let said = master.rouse(&["build", "--worker", worker, "--", "echo", worker]).ended(0);
        assert_eq!(said.text(), format!("{worker}\n"));
    }

    // What a version before has left: a broker that agents dial without TLS.
    let before = master.config().with_file_name("state/broker/rabbitmq.conf");
    std::fs::write(before, format!("listeners.tcp.1 = 0.0.0.0:{port}\n")).unwrap();
    let refused = check(2);
    assert!(refused.contains("tls = \"on\"") && refused.contains("tls = \"off\""), "{refused}");
    master.end();
}
