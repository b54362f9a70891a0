//! A RabbitMQ that the operator runs, over TLS with its own authority.

use rouse_master::broker::{MASTER_USER, Node, NodeSettings, VHOST};
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
        node_name_suffix: format!("tls{}", std::process::id()),
        extra_config: format!(
            "listeners.ssl.1 = {tls}\nssl_options.cacertfile = {dir}/ca.pem\nssl_options.certfile = {dir}/server.pem\n\
             ssl_options.keyfile = {dir}/server.key\nssl_options.verify = verify_none\n",
            dir = dir.display()
        ),
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
