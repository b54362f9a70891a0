//! The complete system: a master, an instance that boots by starting a real agent, the metadata service from which the
//! agent reads everything, and a build.

use rouse_tests::ec2::{Authority, Cloud, IMAGE, boot, with_defaults};
use rouse_tests::harness::{Master, PASSWORD, scratch, standing, text};
use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;

pub const MINUTE: Duration = Duration::from_secs(60);

pub struct FullSystem {
    pub cloud: Cloud,
    pub master: Master,
    dir: PathBuf,
    authority: Authority,
}

pub async fn full_system(name: &str, more: &str, worker: &str) -> FullSystem {
    let cloud = Cloud::start().await;
    let dir = scratch(name);
    let authority = Authority::new(&dir, "authority");
    cloud.set(&json!({ "boot": boot(&dir), "signer": authority.signer(), "spot_prices": { "m5.large": ["0.04"] } }));
    let certificates = format!("identity_certificates = {:?}\n", authority.certificate);
    let section = with_defaults(&cloud.endpoint(), &(certificates + more));
    let workers = format!("[[worker]]\nname = \"w\"\npassword = \"x\"\n{worker}[worker.ec2]\n{section}");
    let master = tokio::task::block_in_place(|| Master::start(&format!("{name}-master"), &workers));
    FullSystem { cloud, master, dir, authority }
}

impl FullSystem {
    pub fn agent_log(&self) -> String {
        let logs = std::fs::read_dir(&self.dir)
            .unwrap()
            .flatten()
            .filter(|e| e.path().extension().is_some_and(|x| x == "log"));
        logs.map(|log| String::from_utf8_lossy(&std::fs::read(log.path()).unwrap()).into_owned()).collect()
    }
}

impl Drop for FullSystem {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("its agents:\n{}", self.agent_log());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_build_buys_an_instance_runs_on_it_and_it_is_gone() {
    let more = "spot_instance = true\nmax_spot_price = 0.09\nprice_multiplier = 1.15\nuser_data = \"#!/bin/sh\\n\"\n";
    let system = full_system("ec2-whole", more, "build_wait_timeout = 15\n").await;
    tokio::task::block_in_place(|| {
        let master = &system.master;
        let said = master.rouse(&["build", "--worker", "w", "--", "sh", "-c", "echo on $ROUSE_WORKER"]).ended(0);
        assert_eq!(said.text(), "on w\n", "{}", system.agent_log());
        let hosts = master.hosts("w");
        assert_eq!((text(&hosts[0]["provider"]), text(&hosts[0]["state"])), ("ec2".to_owned(), "ready".to_owned()));
        assert_eq!(system.cloud.alive(), [text(&hosts[0]["handle"])]);
        assert!(hosts[0]["cost"].as_f64().is_some_and(|usd| usd > 0.0 && usd < 0.01), "{}", hosts[0]);
        // A master that is killed forgets nothing: the next one finds host and agent.
        master.kill();
        master.begin();
        master.rouse(&["build", "--worker", "w", "--", "true"]).ended(0);
        assert_eq!(system.cloud.instances().len(), 1, "a single instance");
        master.until_within(MINUTE, "it is terminated when idle", || system.cloud.alive().is_empty());
        master.until("the ledger knows", || master.hosts("w").is_empty());
        master.rouse(&["audit"]).ended(0);
        master.end();
    });
}

/// As the documentation advises: an image is started by hand, and its agent attaches as a standing worker.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_image_is_tried_as_a_standing_worker_and_nothing_is_powered_off() {
    let cloud = Cloud::start().await;
    let dir = scratch("ec2-tried");
    tokio::task::block_in_place(|| {
        let master = Master::start("ec2-tried-master", &standing("tried", ""));
        let mut boot = boot(&dir);
        for (name, value) in [
            ("ROUSE_AGENT_NAME", "tried"),
            ("ROUSE_AGENT_PASSWORD", PASSWORD),
            ("ROUSE_AGENT_BROKER", &master.broker_url),
            ("ROUSE_AGENT_POWER_OFF_AFTER", "5s"),
        ] {
            boot["env"][name] = json!(value);
        }
        cloud.set(&json!({ "boot": boot }));
        let size = [("InstanceType", "m5.large"), ("MinCount", "1"), ("MaxCount", "1")];
        cloud.call("RunInstances", &[&[("ImageId", IMAGE)][..], &size].concat());
        let instance = cloud.alive();
        // Longer than an agent that nobody calls waits before it switches its machine off.
        master.rouse(&["build", "--worker", "tried", "--", "sleep", "8"]).ended(0);
        master.rouse(&["build", "--worker", "tried", "--", "true"]).ended(0);
        assert_eq!(cloud.alive(), instance, "it goes on");
        // It bears no name of ours, so the audit does not miss it, and does not touch it.
        master.rouse(&["audit"]).ended(0);
        cloud.kill(&instance[0]);
        master.end();
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn papers_that_are_worth_nothing_let_nobody_in() {
    let system = full_system("ec2-papers", "", "").await;
    tokio::task::block_in_place(|| {
        let master = &system.master;
        let stranger = Authority::new(&system.dir, "stranger");
        let rsa2048 = "dynamic/instance-identity/rsa2048";
        // A document that another authority signed; another instance's, rightly signed; none at all.
        let other = {
            let document = system.dir.join("other.json");
            std::fs::write(&document, r#"{"instanceId": "i-0another", "region": "us-west-2"}"#).unwrap();
            system.authority.sign(&document)
        };
        let cases = [
            (json!({ "signer": stranger.signer() }), "not signed by a certificate that is trusted here"),
            (
                json!({ "signer": system.authority.signer(), "metadata": { "*": { rsa2048: other } } }),
                "of another instance, i-0another",
            ),
            (json!({ "metadata": { "*": { rsa2048: null } } }), "has sent no signed identity document"),
        ];
        let id = master.detach(&["--worker", "w", "--", "true"]);
        for (settings, words) in cases {
            system.cloud.set(&settings);
            master.rouse(&["resume", "w"]).ended(0);
            master.until("its hello is refused", || master.log().contains(words) && system.agent_log().contains(words));
            master.until("and powered off", || system.cloud.alive().is_empty());
            master.until_within(MINUTE, "the ledger knows", || master.hosts("w").is_empty());
            assert_ne!(master.state(&id), "success");
        }
        // Three hosts never attached, and the build still waits, with the evidence.
        assert!(master.rouse(&["show", &id]).ended(0).text().contains("Client.InstanceInitiatedShutdown"));
        system.cloud.set(&json!({ "metadata": { "*": {} } }));
        master.rouse(&["resume", "w"]).ended(0);
        master.until_state(&id, "success");
        master.rouse(&["drain", "w"]).ended(0);
        master.until_within(MINUTE, "it is stopped", || system.cloud.alive().is_empty());
        master.end();
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_spot_instance_that_is_taken_back_takes_nothing_new() {
    let more = "spot_instance = true\nmax_spot_price = 0.09\n";
    let system = full_system("ec2-spot", more, "build_wait_timeout = 60\n").await;
    tokio::task::block_in_place(|| {
        let master = &system.master;
        let done = system.dir.join("done");
        let script = format!("until [ -e {} ]; do sleep 0.1; done", done.display());
        let first = master.detach(&["--worker", "w", "--", "sh", "-c", &script]);
        master.until_within(MINUTE, "it runs", || master.state(&first) == "running");
        let instance = system.cloud.alive().remove(0);
        let notice = r#"{"action": "terminate", "time": "2026-01-01T00:02:00Z"}"#;
        system.cloud.set(&json!({ "metadata": { instance.clone(): { "meta-data/spot/instance-action": notice } } }));
        master.until_worker("w", "draining");
        let second = master.detach(&["--worker", "w", "--", "true"]);
        std::fs::write(&done, "").unwrap();
        // The first ends by itself, in time; the second gets another instance.
        master.until_state(&first, "success");
        master
            .until_within(Duration::from_secs(90), "the second runs elsewhere", || master.state(&second) == "success");
        assert!(!system.cloud.alive().contains(&instance), "{:?}", system.cloud.alive());
        assert_eq!(master.show(&second)["tries"].as_array().unwrap().len(), 1);
        master.rouse(&["drain", "w"]).ended(0);
        master.until_within(MINUTE, "it is stopped", || system.cloud.alive().is_empty());
        master.end();
    });
}
