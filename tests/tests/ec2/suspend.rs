//! Suspended hosts: stopped or hibernated when they are idle, resumed with other user data, terminated when they are
//! old.

use crate::fixture::Ec2Fixture;
use crate::full_system::{MINUTE, full_system};
use rouse_master::core::event::{StartError, Suspension};
use rouse_master::core::record::Host;
use rouse_master::hosts::Provider as _;
use rouse_shared::boot::{BootData, find_block};
use rouse_tests::contract::boot_data;
use rouse_tests::ec2::refusal;
use rouse_tests::harness::text;
use rouse_tests::proxy::Fault;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::time::Duration;

const STOP: &str = "on_idle = \"stop\"\n";
const HIBERNATE: &str = "on_idle = \"hibernate\"\n";
const PAUSE: Duration = Duration::from_millis(50);

impl Ec2Fixture {
    /// Until the provider says that it sleeps.
    async fn suspended(&self, host: &Host) {
        for _ in 0..600 {
            match self.provider.suspend(host).await.unwrap() {
                Suspension::Suspended => return,
                Suspension::Requested => tokio::time::sleep(PAUSE).await,
                Suspension::Unable(why) => panic!("{why}"),
            }
        }
        panic!("it is not suspended");
    }

    /// As the core does it: with another token, and repeated until it arrives.
    async fn resumed(&self, host: &mut Host, token: &str) {
        host.token = token.to_owned();
        for _ in 0..600 {
            match self.provider.resume(host, boot_data(host)).await {
                Ok(()) => return,
                Err(StartError::Transient(_) | StartError::Unknown(_)) => tokio::time::sleep(PAUSE).await,
                Err(error) => panic!("{error:?}"),
            }
        }
        panic!("it is not resumed");
    }

    fn token(&self, host: &Host) -> String {
        let user_data = text(&self.made(host)["user_data"]);
        let boot: BootData = toml::from_str(&find_block(&user_data).unwrap()).unwrap();
        boot.token
    }

    async fn until(&self, host: &Host, state: &str) -> Value {
        for _ in 0..600 {
            let made = self.made(host);
            if made["state"] == state {
                return made;
            }
            tokio::time::sleep(PAUSE).await;
        }
        panic!("it is never {state}: {}", self.made(host));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_sleeps_and_wakes_as_often_as_it_is_asked() {
    let fixture = Ec2Fixture::new(STOP).await;
    let (mut host, _) = fixture.started().await;
    fixture.until(&host, "running").await;
    for round in 1..=2 {
        fixture.suspended(&host).await;
        assert_eq!(fixture.provider.suspend(&host).await, Ok(Suspension::Suspended), "it may be asked again");
        assert_eq!(fixture.made(&host)["state"], "stopped");
        let listed = fixture.list().await.unwrap();
        assert!(listed.len() == 1 && listed[0].suspended && listed[0].host == host.id, "{listed:?}");
        let token = format!("token of round {round}");
        fixture.resumed(&mut host, &token).await;
        fixture.resumed(&mut host, &token).await;
        assert_eq!(fixture.token(&host), token);
        let made = fixture.until(&host, "running").await;
        assert_eq!(made["boots"], round + 1, "one boot each");
        assert!(!fixture.list().await.unwrap()[0].suspended);
    }
    // While it is being terminated it cannot be resumed yet.
    fixture.cloud.set(&json!({ "delay": { "stopping": 2.0 } }));
    assert_eq!(fixture.provider.suspend(&host).await, Ok(Suspension::Requested));
    let early = fixture.provider.resume(&host, boot_data(&host)).await;
    assert!(matches!(&early, Err(StartError::Transient(why)) if why.contains("still being stopped")), "{early:?}");
    fixture.suspended(&host).await;
    // No capacity, and what is gone.
    fixture.cloud.fail("StartInstances", 0, 99, refusal(500, "InsufficientInstanceCapacity"));
    let full = fixture.provider.resume(&host, boot_data(&host)).await;
    assert!(matches!(&full, Err(StartError::Capacity(why)) if why.contains("no capacity")), "{full:?}");
    fixture.cloud.proxy.heal();
    fixture.cloud.kill(host.handle.as_deref().unwrap());
    assert!(matches!(fixture.provider.resume(&host, boot_data(&host)).await, Err(StartError::Rejected(_))));
    assert!(matches!(fixture.provider.suspend(&host).await, Ok(Suspension::Unable(_))));
    fixture.gone(&host).await;
    // One that sleeps is ended like any other, by a master that was started meanwhile.
    let mut fixture = fixture;
    let (host, _) = fixture.started().await;
    fixture.until(&host, "running").await;
    fixture.suspended(&host).await;
    fixture.restart();
    fixture.gone(&host).await;
    assert!(fixture.cloud.alive().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_hibernated_where_it_can_be_and_stopped_where_not() {
    let fixture = Ec2Fixture::new(HIBERNATE).await;
    let (mut host, _) = fixture.started().await;
    fixture.until(&host, "running").await;
    fixture.suspended(&host).await;
    assert_eq!(fixture.made(&host)["hibernated"], true);
    fixture.resumed(&mut host, "another").await;
    let made = fixture.until(&host, "running").await;
    assert_eq!((&made["hibernated"], &made["boots"]), (&json!(false), &json!(1)), "it continues without a boot");
    assert_eq!(fixture.token(&host), "another");
    fixture.cloud.set(&json!({ "hibernation_refused": true }));
    fixture.suspended(&host).await;
    assert_eq!(fixture.made(&host)["hibernated"], false);
    fixture.gone(&host).await;
}

/// Each call of suspending and resuming in turn: the master is lost before the call reaches AWS, and after.
#[tokio::test(flavor = "multi_thread")]
async fn a_master_lost_between_any_two_calls_of_it_leaves_one_that_runs() {
    let mut fixture = Ec2Fixture::new(STOP).await;
    let (mut host, _) = fixture.started().await;
    for lost in [Fault::Hang, Fault::HangAfter] {
        let mut calls = 0;
        for at in 0.. {
            fixture.until(&host, "running").await;
            let token = format!("token {at}");
            let life = async {
                fixture.suspended(&host).await;
                fixture.resumed(&mut host, &token).await;
            };
            if !fixture.dies_at(at, &lost, life).await {
                break;
            }
            calls = at + 1;
            fixture.restart();
            // What was committed before the call: that it falls asleep, or that it is woken with this token.
            if host.token != token {
                fixture.suspended(&host).await;
            }
            fixture.resumed(&mut host, &token).await;
            fixture.until(&host, "running").await;
            assert_eq!(fixture.token(&host), token, "{lost:?} at call {at}");
        }
        assert!(calls >= 6, "only {calls} calls were lost at");
    }
    assert_eq!(fixture.cloud.instances().len(), 1);
    fixture.gone(&host).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_stopped_host_is_woken_instead_of_another_being_bought() {
    let more = format!("{STOP}price_per_hour = 36.0\n");
    let system = full_system("ec2-stop", &more, "build_wait_timeout = 1\n").await;
    tokio::task::block_in_place(|| {
        let master = &system.master;
        let stopped = || master.hosts("w").first().is_some_and(|host| host["state"] == "suspended");
        master.rouse(&["build", "--worker", "w", "--", "true"]).ended(0);
        master.until_within(MINUTE, "it is stopped when idle", stopped);
        assert_eq!(system.cloud.instances()[0]["state"], "stopped");
        assert!(master.rouse(&["hosts"]).ended(0).text().contains("suspended"));
        assert_eq!(master.worker("w")["state"], "asleep");
        let cost = || master.hosts("w")[0]["cost"].as_f64().unwrap();
        let before = cost();
        // A master that is killed knows it again, and nothing was paid meanwhile.
        master.kill();
        master.begin();
        assert!(stopped() && (cost() - before).abs() < 1e-9, "{}", master.hosts("w")[0]);
        master.rouse(&["audit"]).ended(0);
        for build in 2..=3 {
            let said = master.rouse(&["build", "--worker", "w", "--", "echo", "again"]).ended(0);
            assert_eq!(said.text(), "again\n", "{}", system.agent_log());
            assert_eq!(system.cloud.instances().len(), 1, "woken, not bought");
            assert_eq!(system.cloud.instances()[0]["boots"], build);
            master.until_within(MINUTE, "it is stopped again", stopped);
        }
        assert!(cost() > before);
        // Somebody starts it: the audit says so, and stops it again if it is asked to.
        let instance = text(&system.cloud.instances()[0]["id"]);
        let runs = || system.cloud.instances()[0]["state"] != "stopped";
        system.cloud.call("StartInstances", &[("InstanceId.1", &instance)]);
        let audit = master.rouse(&["audit"]).ended(1).text();
        assert!(audit.contains("running") && audit.contains(&instance), "{audit}");
        assert!(runs(), "an audit without --fix touches nothing");
        master.rouse(&["audit", "--fix"]).ended(0);
        master.until_within(MINUTE, "it is stopped once more", || !runs() && stopped());
        // Taken out of the configuration it is ended.
        master.configure("[[worker]]\nname = \"other\"\npassword = \"x\"\n");
        master.signal(libc::SIGHUP);
        master.until_within(MINUTE, "it is terminated", || system.cloud.alive().is_empty());
        master.until("the ledger knows", || master.hosts("w").is_empty());
        master.end();
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_stopped_host_ends_when_it_is_old() {
    let system = full_system("ec2-old", &format!("{STOP}max_age = \"45s\"\n"), "build_wait_timeout = 0\n").await;
    tokio::task::block_in_place(|| {
        let master = &system.master;
        master.rouse(&["build", "--worker", "w", "--", "true"]).ended(0);
        master.until_within(MINUTE, "it is stopped", || {
            master.hosts("w").first().is_some_and(|host| host["state"] == "suspended")
        });
        master.until_within(MINUTE, "it is terminated", || system.cloud.alive().is_empty());
        master.until("the ledger knows", || master.hosts("w").is_empty());
        master.end();
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_hibernated_agent_begins_anew_when_it_is_woken() {
    let worker = "build_wait_timeout = 0\nkeepalive_interval = 1\nlease = 4\n";
    let system = full_system("ec2-hibernate", HIBERNATE, worker).await;
    tokio::task::block_in_place(|| {
        let master = &system.master;
        master.rouse(&["build", "--worker", "w", "--", "true"]).ended(0);
        master.until_within(MINUTE, "it is hibernated", || {
            master.hosts("w").first().is_some_and(|host| host["state"] == "suspended")
        });
        assert_eq!(system.cloud.instances()[0]["hibernated"], true);
        let first = master.detach(&["--worker", "w", "--", "true"]);
        master.until_within(MINUTE, "it runs there", || master.state(&first) == "success");
        let log = system.agent_log();
        assert!(log.contains("restarting: the machine may have been suspended"), "{log}");
        let instances = system.cloud.instances();
        assert_eq!((instances.len(), &instances[0]["boots"]), (1, &json!(1)));
        master.rouse(&["drain", "w"]).ended(0);
        master.until_within(MINUTE, "it is terminated", || system.cloud.alive().is_empty());
        master.end();
    });
}

/// kill -9 of a real master while a call hangs: of a start, a stop, falling asleep and waking.
async fn forgets_nothing(name: &str, fault: Fault, and_while_it_falls_asleep: bool) {
    let system = full_system(name, STOP, "build_wait_timeout = 1\n").await;
    tokio::task::block_in_place(|| {
        let (master, cloud) = (&system.master, &system.cloud);
        let killed_at = |call: &'static str, does: &dyn Fn()| {
            let before = cloud.proxy.hanging();
            cloud.fail(call, 0, 1, fault.clone());
            does();
            master.until_within(3 * MINUTE, call, || cloud.proxy.hanging() > before);
            master.kill();
            cloud.proxy.heal();
            master.begin();
        };
        let stopped = || master.hosts("w").first().is_some_and(|host| host["state"] == "suspended");
        let builds = RefCell::new(Vec::new());
        let build = || builds.borrow_mut().push(master.detach(&["--worker", "w", "--", "true"]));
        killed_at("RunInstances", &build);
        master.until_within(3 * MINUTE, "it is stopped after its build", stopped);
        assert_eq!(cloud.alive().len(), 1, "one try made one");
        killed_at("StartInstances", &build);
        // In doubt whether a late call may wake it once more, it is ended instead of stopped.
        master.until_within(3 * MINUTE, "its build is done and it is gone", || cloud.alive().is_empty());
        master.until_within(3 * MINUTE, "the ledger knows", || master.hosts("w").is_empty());
        build();
        master.until_within(3 * MINUTE, "it is awake", || cloud.alive().len() == 1);
        if and_while_it_falls_asleep {
            killed_at("StopInstances", &|| {});
            // A call of the dead master may come late, and only after that it is said to sleep.
            master.until_within(3 * MINUTE, "it is stopped all the same", stopped);
        }
        killed_at("TerminateInstances", &|| drop(master.rouse(&["drain", "w"]).ended(0)));
        master.until_within(3 * MINUTE, "it is gone", || cloud.alive().is_empty());
        master.until_within(3 * MINUTE, "the ledger knows", || master.hosts("w").is_empty());
        master.rouse(&["resume", "w"]).ended(0);
        for build in builds.borrow().iter() {
            master.until_within(3 * MINUTE, "it has run after all", || master.state(build) == "success");
        }
        master.rouse(&["audit"]).ended(0);
        master.end();
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_master_killed_before_its_calls_arrive_forgets_nothing() {
    forgets_nothing("ec2-killed", Fault::Hang, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_master_killed_after_its_calls_arrived_forgets_nothing() {
    forgets_nothing("ec2-killed-later", Fault::HangAfter, false).await;
}
