//! A RabbitMQ cluster whose nodes are killed, restarted and cut off, one after the other.

use rouse_tests::harness::{Files, Master, Network, OwnBroker, Process, check_online, scratch, standing};
use std::fs;

const FILES: Files<'static> = Files {
    configuration: concat!(
        include_str!("../../../contrib/rabbitmq/rabbitmq.conf"),
        include_str!("../../../contrib/rabbitmq/cluster.conf")
    ),
    advanced: include_str!("../../../contrib/rabbitmq/advanced.config"),
    plugins: include_str!("../../../contrib/rabbitmq/enabled_plugins"),
};
const SECRET: &str = "0123456789abcdefghij";
const NODES: usize = 3;
const WORKERS: [&str; NODES] = ["a", "b", "c"];

/// A master and three agents, each of which prefers another node. A build runs on each of them from the beginning to the
/// end, and prints a line after each thing that happens to the cluster.
struct Play {
    cluster: OwnBroker,
    master: Master,
    _agents: Vec<Process>,
    builds: Vec<String>,
    acts: usize,
}

impl Play {
    fn new(network: &Network, acts: usize) -> Self {
        let auth = format!("{}:8091", network.address());
        let configuration = FILES.configuration.replace("127.0.0.1:8091/auth", &format!("{auth}/auth/{SECRET}"));
        let files = Files { configuration: &configuration, ..FILES };
        let cluster = OwnBroker::cluster("cluster-broker", files, network, NODES as u8);
        let lines = format!("auth_secret = \"{SECRET}\"\nurl = \"{}\"\n", cluster.url());
        check(&cluster, &format!("[broker]\nauth_listen = \"{auth}\"\n{lines}"));
        // The lease is the default.
        let workers: String = WORKERS.iter().map(|name| standing(name, "")).collect();
        let master = Master::start_with("cluster", &lines, "", auth.parse().unwrap(), &workers);
        let agent = |(number, name): (usize, &&str)| {
            let broker = format!("amqp://{}/rouse", cluster.addresses(number));
            let agent = master.begin_agent(name, &[("ROUSE_AGENT_BROKER", &broker)]);
            master.until_worker(name, "idle");
            agent
        };
        let agents = WORKERS.iter().enumerate().map(agent).collect();
        let gate = master.dir.join("gate");
        let script = format!(
            "for i in $(seq {acts}); do until [ -e {gate}-$i ]; do sleep 0.1; done; echo $i; done; echo end >> {gate}-of-$ROUSE_WORKER",
            gate = gate.display()
        );
        let builds: Vec<String> =
            WORKERS.iter().map(|name| master.detach(&["--worker", name, "--", "sh", "-c", &script])).collect();
        for build in &builds {
            master.until_state(build, "running");
        }
        Self { cluster, master, _agents: agents, builds, acts: 0 }
    }

    /// Something has happened: all agents are there, new builds run on them, and the old ones go on.
    fn goes_on(&mut self) {
        let small = |name: &&str| self.master.detach(&["--worker", name, "--", "echo", "small"]);
        for build in WORKERS.iter().map(small).collect::<Vec<_>>() {
            self.master.until_state(&build, "success");
        }
        self.acts += 1;
        fs::write(self.master.dir.join(format!("gate-{}", self.acts)), "").unwrap();
    }

    /// The node that the master uses.
    fn masters_node(&self) -> usize {
        let log = self.master.log();
        let line = log.lines().rfind(|line| line.contains("connected to the broker")).unwrap();
        (0..NODES).find(|node| line.contains(&self.cluster.machine(*node).address.to_string())).unwrap()
    }
}

/// `rouse check --online` finds nothing wrong, until a node lacks its plugin for events, as if it were not enabled there.
fn check(cluster: &OwnBroker, text: &str) {
    let dir = scratch("cluster-check");
    let (code, said) = check_online(&dir, text, &[]);
    assert_eq!((code, said.matches("the master can use it (RabbitMQ ").count()), (Some(0), NODES), "{said}");
    // Until it starts again.
    cluster.rabbitmqctl(1, &["eval", "gen_event:delete_handler(rabbit_event, rabbit_exchange_type_event, [])."]);
    let (code, said) = check_online(&dir, text, &[]);
    let place = cluster.machine(1).address;
    assert_eq!((code, said.matches("the master can use it").count()), (Some(2), NODES - 1), "{said}");
    assert!(said.contains(&format!("{place}:5672/rouse: it publishes no events of its own connections")), "{said}");
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn nodes_die_restart_and_are_cut_off_and_no_build_notices() {
    let Some(network) = Network::new() else {
        return eprintln!("not checked: only root can give each node a network of its own");
    };
    let acts = 2 * NODES + 2;
    let mut play = Play::new(&network, acts);
    for node in 0..NODES {
        play.cluster.kill(node);
        let starts = play.cluster.launch(node);
        play.goes_on();
        play.cluster.until_up(node, starts);
    }
    // As for an upgrade.
    for node in 0..NODES {
        play.cluster.stop(node);
        let starts = play.cluster.launch(node);
        play.goes_on();
        play.cluster.until_up(node, starts);
    }

    // It is cut off from everybody, and nothing tells anybody.
    let node = play.masters_node();
    play.cluster.machine(node).unplug();
    play.goes_on();
    assert_ne!(play.masters_node(), node);
    play.cluster.machine(node).plug_in();
    play.cluster.until_back(node);

    // It is cut off from the other nodes alone, and stops all the same.
    let node = play.masters_node();
    let others = (0..NODES).filter(|other| *other != node);
    others.clone().for_each(|other| play.cluster.machine(node).lose(play.cluster.machine(other)));
    play.master.until("the node stops", || !play.cluster.accepts(node));
    play.goes_on();
    assert_ne!(play.masters_node(), node);
    others.for_each(|other| play.cluster.machine(node).find(play.cluster.machine(other)));
    play.cluster.until_back(node);

    let Play { cluster, master, builds, .. } = &play;
    let expected: String = (1..=acts).map(|act| format!("{act}\n")).collect();
    for (build, worker) in builds.iter().zip(WORKERS) {
        master.until_state(build, "success");
        let shown = master.show(build);
        assert_eq!(shown["attempts"], 1, "{shown}");
        assert_eq!(master.rouse(&["log", build]).ended(0).text(), expected);
        assert_eq!(fs::read_to_string(master.dir.join(format!("gate-of-{worker}"))).unwrap(), "end\n");
    }
    assert!(master.log().contains("since a node of the cluster is down"), "{}", master.log());
    // Nothing fills that nobody reads.
    master.until("unread queues are deleted", || cluster.unread().is_empty());
}
