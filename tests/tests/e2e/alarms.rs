//! The broker has too little memory or disk space, and accepts nothing for longer than a lease.

use rouse_tests::harness::{Master, Process, Protection, Relay, latent, rabbitmqctl, standing};
use std::net::SocketAddr;
use std::time::Duration;

/// How long the alarm lasts: longer than the lease, which is the default.
const ALARM: usize = 80;
/// For so much time to pass on a busy machine, and for news to be gathered.
const LONG: Duration = Duration::from_secs(240);

/// Connections that are open at this port, which the kernel lists with both ends.
fn connections(address: SocketAddr) -> usize {
    let ends = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let local = format!(":{:04X}", address.port());
    let is_open = |line: &&str| {
        let mut words = line.split_whitespace().skip(1);
        words.next().is_some_and(|word| word.ends_with(&local)) && words.nth(1) == Some("01")
    };
    ends.lines().filter(is_open).count()
}

/// What lifts an alarm, and what raises it.
const DISK: [[&str; 2]; 2] = [["set_disk_free_limit", "8MB"], ["set_disk_free_limit", "100000GB"]];
const MEMORY: [[&str; 3]; 2] =
    [["set_vm_memory_high_watermark", "absolute", "100GB"], ["set_vm_memory_high_watermark", "absolute", "1MB"]];

#[test]
fn builds_live_through_an_alarm_that_everybody_is_told_of() {
    let mut relay = Relay::new("alarm", Protection::None, None);
    relay.begin();
    let mail = format!(
        "[mail]\nfrom = \"rouse@example.org\"\nrelay = \"smtp://localhost:{}?tls=none\"\n\
         extra_recipients = [\"ops@example.org\"]\n",
        relay.port
    );
    let names = ["a", "b", "c"];
    let workers =
        names.map(|name| standing(name, "missing_timeout = 8")).concat() + &latent("sleeps", "missing_timeout = 8");
    let master = Master::start_private("alarm", &(mail + &workers));
    let broker = master.dir.join("state/broker");
    let address = master.broker_url.split('/').nth(2).unwrap().parse().unwrap();
    let agents: Vec<Process> = names.iter().map(|name| master.agent(name)).collect();
    let gate = master.dir.join("gate");
    let builds = names.map(|name| {
        let trace = master.trace(name);
        let script = format!(
            "while ! test -e {gate}; do echo tick >> {trace}; sleep 1; done; seq 1000",
            gate = gate.display(),
            trace = trace.path()
        );
        let id = master.detach(&["--worker", name, "--", "sh", "-c", &script]);
        master.until_state(&id, "running");
        (id, trace)
    });
    let before = connections(address);

    rabbitmqctl(&broker, &DISK[1]);
    master.until("the master notices", || master.get("/healthz").status == 503);
    let health = String::from_utf8_lossy(&master.get("/healthz").body).into_owned();
    assert!(health.contains("the broker accepts no messages (low on disk)"), "{health}");
    let metrics = String::from_utf8_lossy(&master.get("/metrics").body).into_owned();
    assert!(metrics.lines().any(|line| line == "rouse_broker_blocked 1"), "{metrics}");
    // What is submitted now waits.
    let waiting = master.detach(&["--worker", "sleeps", "--", "true"]);
    for id in [&waiting, &builds[0].0] {
        let why = master.why(id);
        assert!(why.contains("the broker accepts no messages (low on disk)"), "{why}");
    }
    let begun: Vec<usize> = builds.iter().map(|(_, trace)| trace.lines().len()).collect();
    for ((id, trace), begun) in builds.iter().zip(begun) {
        master.until_within(LONG, "a lease would be over", || trace.lines().len() >= begun + ALARM);
        assert_eq!(master.state(id), "running");
    }
    // The alarm of the memory begins before that of the disk is over.
    rabbitmqctl(&broker, &MEMORY[1]);
    rabbitmqctl(&broker, &DISK[0]);
    for agent in &agents {
        assert!(agent.err().contains("the broker accepts no messages at present"), "{}", agent.err());
    }
    assert!(connections(address) <= before, "{} connections, and before {before}", connections(address));
    assert!(master.hosts("sleeps").is_empty(), "a host could not attach");
    master.until_within(LONG, "mail tells of it", || !relay.mails().is_empty());

    rabbitmqctl(&broker, &MEMORY[0]);
    master.until("the alarm is over", || master.get("/healthz").status == 200);
    std::fs::write(&gate, "").unwrap();
    for (id, _) in &builds {
        master.until_state(id, "success");
        assert_eq!(master.show(id)["attempts"], 1);
        assert_eq!(master.rouse(&["log", id]).ended(0).text().lines().count(), 1_000);
    }
    master.until_state(&waiting, "success");
    for agent in &agents {
        assert!(!agent.err().contains("refused"), "{}", agent.err());
    }
    master.until_within(LONG, "mail tells of its end", || relay.mails().len() > 1);
    let mails: Vec<String> = relay.mails().into_iter().map(|mail| mail.text).collect();
    let told = |what: &str| mails.iter().filter(|text| text.lines().any(|line| line.trim() == what)).count();
    assert_eq!((told("accepts no messages"), told("accepts messages again")), (1, 1), "{mails:?}");
    assert!(mails.iter().all(|text| !text.contains("missing:")), "{mails:?}");
    drop(agents);
}
