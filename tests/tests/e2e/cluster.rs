//! A RabbitMQ cluster whose nodes die one after the other.

use rouse_tests::harness::{Master, OwnBroker, free_address, standing};
use std::fs;

const CONFIGURATION: &str = include_str!("../../../contrib/rabbitmq/rabbitmq.conf");
const PLUGINS: &str = include_str!("../../../contrib/rabbitmq/enabled_plugins");

/// A build that prints a line when the file with this name appears.
fn gated(master: &Master, worker: &str, gate: &str) -> String {
    let gate = master.dir.join(gate);
    let script = format!("until [ -e {} ]; do sleep 0.05; done; seq 3", gate.display());
    let id = master.detach(&["--worker", worker, "--", "sh", "-c", &script]);
    master.until_state(&id, "running");
    id
}

#[test]
fn any_node_of_a_cluster_may_die_under_a_running_build() {
    let auth = free_address();
    let configuration = CONFIGURATION.replace("127.0.0.1:8091", &auth.to_string());
    let mut cluster = OwnBroker::cluster("cluster-broker", &configuration, PLUGINS, 3);
    let lines = format!("url = \"{}\"\n", cluster.url());
    let url = format!("amqp://{}/rouse", cluster.addresses());
    let workers = standing("a", "keepalive_interval = 2\nlease = 120");
    let master = Master::start_with("cluster", &lines, &url, auth, &workers);
    let _agent = master.agent("a");
    for number in 0..3 {
        let gate = format!("gate-{number}");
        let build = gated(&master, "a", &gate);
        cluster.kill(number);
        fs::write(master.dir.join(&gate), "").unwrap();
        master.until_state(&build, "success");
        let shown = master.show(&build);
        assert_eq!(shown["attempts"], 1, "{shown}");
        assert_eq!(master.rouse(&["log", &build]).ended(0).text(), "1\n2\n3\n");
        cluster.begin(number);
    }
    assert!(master.log().contains("since a node of the cluster is down"), "{}", master.log());
    // Nothing fills that nobody reads.
    master.until("unread queues are deleted", || cluster.unread().is_empty());
}
