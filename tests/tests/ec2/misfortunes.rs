//! What happens to clouds every day, with a whole master: it costs time, never a build, and holds up nobody else.

use crate::full_system::{MINUTE, full_system};
use rouse_tests::ec2::{Cloud, KEY, REGION, boot, refusal, with_defaults};
use rouse_tests::harness::{Master, free_address, latent, scratch, text};
use rouse_tests::proxy::Fault;
use serde_json::{Value, json};

/// A latent worker of a cloud.
fn of_ec2(name: &str, more: &str, section: &str) -> String {
    format!("[[worker]]\nname = \"{name}\"\npassword = \"x\"\n{more}[worker.ec2]\n{section}\n")
}

fn places(master: &Master) -> Vec<Value> {
    master.get("/api/places").json().as_array().unwrap().clone()
}

/// The place of a provider whose name has this part.
fn place(master: &Master, part: &str) -> Value {
    places(master).into_iter().find(|place| text(&place["name"]).contains(part)).unwrap()
}

/// Nothing is held against the worker or its builds.
fn blames_nobody(master: &Master, builds: &[String]) {
    for build in builds {
        let shown = master.show(build);
        assert!(shown["evidence"].as_array().is_none_or(Vec::is_empty), "{shown}");
    }
    assert_ne!(master.worker("w")["state"], "backoff");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_key_that_is_refused_for_a_while_costs_no_build_and_holds_up_no_other_place() {
    let cloud = Cloud::start().await;
    let dir = scratch("ec2-refused-key");
    cloud.set(&json!({ "boot": boot(&dir), "key": "AKIAOTHER" }));
    // Nobody is at this address, for ever: its cloud cannot even be listed.
    let nobody = with_defaults(&format!("http://{}", free_address()), "");
    let workers = [
        "[limits]\nmax_hosts = 4\n[audit]\ninterval = 5\n".to_owned(),
        of_ec2("w", "max_builds = 3\n", &with_defaults(&cloud.endpoint(), "")),
        of_ec2("away", "", &nobody),
        latent("local", "build_wait_timeout = 1\n"),
    ];
    tokio::task::block_in_place(|| {
        let master = Master::start("ec2-refused-key-master", &workers.concat());
        let builds: Vec<String> = (0..3).map(|_| master.detach(&["--worker", "w", "--", "true"])).collect();
        let lost = master.detach(&["--worker", "away", "--", "true"]);
        master.rouse(&["build", "--worker", "local", "--", "true"]).ended(0);
        let pausing = |part: &str| place(&master, part)["state"] == "pausing";
        master.until("both pause", || pausing(&cloud.endpoint()) && pausing("us-west-2"));
        for (build, words) in
            [(&builds[0], "AWS does not know the credentials"), (&lost, "no hosts have been started in")]
        {
            master.until("it says what is in the way", || master.why(build).contains(words));
        }
        // A master that starts asks both in vain, and starts what it can.
        master.terminate();
        master.begin();
        master.rouse(&["build", "--worker", "local", "--", "true"]).ended(0);
        assert!(builds.iter().all(|build| ["queued", "starting"].contains(&master.state(build).as_str())));
        cloud.set(&json!({ "key": KEY }));
        // Nobody resumes anything.
        for build in &builds {
            master.until_within(MINUTE * 2, "it runs", || master.state(build) == "success");
        }
        blames_nobody(&master, &builds);
        assert!(!pausing(&cloud.endpoint()));
        master.rouse(&["cancel", &lost]).ended(0);
        master.rouse(&["drain", "w"]).ended(0);
        master.until_within(MINUTE, "it is terminated", || cloud.alive().is_empty());
        master.end();
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_cloud_that_is_gone_for_ever_is_given_up_by_hand_and_frees_the_place_of_its_host() {
    let cloud = Cloud::start().await;
    let dir = scratch("ec2-gone-cloud");
    cloud.set(&json!({ "boot": boot(&dir) }));
    let limits = "[limits]\nmax_hosts = 1\n[audit]\ninterval = 5\n";
    let local = latent("local", "build_wait_timeout = 1\n");
    // Its agents may go on where the cloud is gone: their lease ends soon.
    let more = "build_wait_timeout = 600\nkeepalive_interval = 1\nlease = 5\ngrace = 1\n";
    let there = of_ec2("w", more, &with_defaults(&cloud.endpoint(), ""));
    tokio::task::block_in_place(|| {
        let master = Master::start("ec2-gone-cloud-master", &[limits, &local, &there].concat());
        let build = master.detach(&["--worker", "w", "--", "true"]);
        master.until_within(MINUTE, "it runs", || master.state(&build) == "success");
        let host = text(&master.hosts("w")[0]["id"]);
        let gone = text(&place(&master, &cloud.endpoint())["id"]);
        let refused = master.rouse(&["forget", &gone, "--yes"]).ended(4).err;
        assert!(refused.contains("is attached"), "{refused}");
        // The cloud ends with its instances, and the account leaves the configuration.
        drop(cloud);
        master.terminate();
        master.configure(&[limits, &local].concat());
        master.begin();
        let waits = master.detach(&["--worker", "local", "--", "true"]);
        let why = || master.why(&waits);
        master.until("it waits for the place", || why().contains("limits.max_hosts allows is in use"));
        master.until("it cannot be listed", || place(&master, "us-west-2")["state"] == "pausing");
        master.until_within(MINUTE, "its agent is gone", || {
            let said = master.rouse(&["forget", &gone, "--yes"]);
            let attached = said.err.contains("is attached");
            if !attached {
                said.ended(0);
            }
            !attached
        });
        master.until_within(MINUTE, "the place is free", || master.state(&waits) == "success");
        assert!(master.get("/api/hosts").json().as_array().unwrap().iter().all(|one| one["id"] != host.as_str()));
        assert!(places(&master).iter().all(|place| place["id"] != gone.as_str()), "{:?}", places(&master));
        master.rouse(&["audit"]).ended(0);
        // Over a restart, too.
        master.terminate();
        master.begin();
        master.rouse(&["build", "--worker", "local", "--", "true"]).ended(0);
        assert!(places(&master).iter().all(|place| place["id"] != gone.as_str()), "{:?}", places(&master));
        master.end();
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn without_room_in_other_words_a_build_runs_on_the_next_type_or_on_demand() {
    let more = "instance_type = [\"m5.large\", \"c5.large\"]\nspot_instance = true\non_demand_fallback = true\n\
                user_data = \"#!/bin/sh\\n\"\n";
    let system = full_system("ec2-no-room", more, "build_wait_timeout = 1\n").await;
    tokio::task::block_in_place(|| {
        let master = &system.master;
        system.cloud.fail("RunInstances", 0, 2, refusal(400, "UnfulfillableCapacity"));
        let build = master.detach(&["--worker", "w", "--", "true"]);
        master.until_within(MINUTE, "it runs", || master.state(&build) == "success");
        let made = system.cloud.instances();
        let kinds: Vec<_> = made.iter().map(|one| (text(&one["type"]), one["spot"] == true)).collect();
        assert_eq!(kinds, [("m5.large".to_owned(), false)]);
        blames_nobody(master, &[build]);
        assert_eq!(place(master, REGION)["state"], "healthy");
        master.until_within(MINUTE, "it is terminated", || system.cloud.alive().is_empty());
        master.end();
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_instance_that_is_taken_back_before_its_agent_attaches_costs_no_build() {
    let more = "instance_type = [\"m5.large\", \"c5.large\"]\nspot_instance = true\non_demand_fallback = true\n";
    let system = full_system("ec2-taken-back", more, "build_wait_timeout = 1\n").await;
    tokio::task::block_in_place(|| {
        let master = &system.master;
        let boot = boot(&scratch("ec2-taken-back-agents"));
        system.cloud.set(&json!({ "boot": null }));
        let build = master.detach(&["--worker", "w", "--", "true"]);
        for number in 1..=3 {
            master.until_within(MINUTE, "there is one more", || system.cloud.instances().len() == number);
            let as_told = Fault::Replace("Client.UserInitiatedShutdown", "Server.SpotInstanceTermination");
            system.cloud.fail("DescribeInstances", 0, 9_999, as_told);
            master.until("the ledger has its name", || {
                master.hosts("w").first().is_some_and(|host| host["handle"].is_string())
            });
            if number == 3 {
                system.cloud.set(&json!({ "boot": boot }));
            }
            system.cloud.alive().iter().for_each(|instance| system.cloud.kill(instance));
        }
        master.until_within(MINUTE, "it runs", || master.state(&build) == "success");
        system.cloud.proxy.heal();
        let made = system.cloud.instances();
        let kinds: Vec<_> = made.iter().map(|one| (text(&one["type"]), one["spot"] == true)).collect();
        let expected = [("m5.large", true), ("c5.large", true), ("m5.large", false), ("c5.large", false)];
        assert_eq!(kinds, expected.map(|(kind, spot)| (kind.to_owned(), spot)));
        blames_nobody(master, &[build]);
        master.until_within(MINUTE, "it is terminated", || system.cloud.alive().is_empty());
        master.end();
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_protected_instance_is_asked_to_end_until_it_may_and_shown_with_the_reason() {
    let system = full_system("ec2-protected", "", "build_wait_timeout = 600\n").await;
    tokio::task::block_in_place(|| {
        let master = &system.master;
        let first = master.detach(&["--worker", "w", "--", "true"]);
        master.until_within(MINUTE, "it runs", || master.state(&first) == "success");
        let instance = system.cloud.alive().remove(0);
        let protect = |on: &str| {
            let call = [("InstanceId", &*instance), ("DisableApiTermination.Value", on)];
            system.cloud.call("ModifyInstanceAttribute", &call);
        };
        protect("true");
        let host = text(&master.hosts("w")[0]["id"]);
        master.rouse(&["terminate", &host, "--yes"]).ended(0);
        let second = master.detach(&["--worker", "w", "--", "true"]);
        let why = || master.hosts("w").first().map_or(String::new(), |host| text(&host["why"]));
        master.until("the reason is shown", || why().contains("DisableApiTermination"));
        let said = master.why(&second);
        assert!(said.contains(&instance) && said.contains("--no-disable-api-termination"), "{said}");
        let warned = format!("host {host} could not be terminated: cannot terminate the instance {instance}");
        assert!(master.log().contains(&warned), "{}", master.log());
        assert_eq!(system.cloud.alive(), std::slice::from_ref(&instance));
        protect("false");
        master.until_within(MINUTE * 2, "it is terminated", || !system.cloud.alive().contains(&instance));
        master.until_within(MINUTE * 2, "the next build runs", || master.state(&second) == "success");
        assert_eq!(master.log().matches(&warned).count(), 1, "once for each reason: {}", master.log());
        master.rouse(&["drain", "w"]).ended(0);
        master.until_within(MINUTE, "all are gone", || system.cloud.alive().is_empty());
        master.end();
    });
}
