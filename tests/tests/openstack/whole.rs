//! The whole path: a master, servers that boot by starting a real agent, what the agent learns from the metadata service or
//! a config drive, and builds. Masters are killed outright.

use super::stand::Stand;
use rouse_master::hosts::Provider as _;
use rouse_tests::harness::{Master, free_address, text};
use rouse_tests::openstack::{Cloud, PROJECT, User, section};
use rouse_tests::proxy::{Fault, Proxy};
use rouse_tests::virt::{Image, image};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;
use tokio::runtime::Handle;

/// For what takes a few calls of a cloud that others ask as well.
const LONG: Duration = Duration::from_secs(120);

/// A master with one latent worker, `NAME-w`, in the cloud behind a proxy.
struct Whole {
    master: Master,
    proxy: Proxy,
    user: User,
    worker: String,
}

impl Whole {
    /// With these lines of the worker and of its section, and of `[broker]` beside `listen`.
    async fn new(name: &str, worker: &str, more: &str, agent_host: Option<&str>) -> Self {
        let cloud = Cloud::shared();
        let proxy = Proxy::start(&cloud.addresses()).await;
        let identity = cloud.address("identity");
        let url = cloud.url("identity").replace(&identity.to_string(), &proxy.front(identity).to_string());
        let amqp = free_address();
        let dialled = agent_host.map(|host| format!("agent_url = \"amqp://{host}:{}/rouse\"\n", amqp.port()));
        let broker = format!("listen = [\"{amqp}\"]\n{}", dialled.unwrap_or_default());
        let who = format!("{name}-w");
        let sections = format!("[[worker]]\nname = \"{who}\"\npassword = \"x\"\n{worker}{}", section(&url, more));
        let master = tokio::task::block_in_place(|| {
            Master::start_with(name, &broker, &format!("amqp://{amqp}/rouse"), free_address(), &sections)
        });
        Self { master, proxy, user: cloud.user(PROJECT).await, worker: who }
    }

    /// Its servers, as Nova has them.
    fn servers(&self) -> Vec<Value> {
        tokio::task::block_in_place(|| Handle::current().block_on(self.user.servers(&format!("{}-", self.worker))))
    }

    fn begin_build(&self, words: &[&str]) -> String {
        let arguments: Vec<&str> = ["--worker", &self.worker, "--"].iter().chain(words).copied().collect();
        tokio::task::block_in_place(|| self.master.detach(&arguments))
    }

    fn until(&self, what: &str, holds: impl FnMut() -> bool) {
        tokio::task::block_in_place(|| self.master.until_within(LONG, what, holds));
    }

    fn until_success(&self, build: &str) {
        self.until("the build succeeds", || {
            let state = self.master.state(build);
            assert!(["queued", "starting", "running", "success"].contains(&state.as_str()), "{state}");
            state == "success"
        });
    }

    /// Waits until cloud and ledger have nothing left.
    fn until_nothing_is_left(&self) {
        self.until("the server is deleted", || self.servers().is_empty());
        self.until("the ledger knows", || self.master.hosts(&self.worker).is_empty());
        tokio::task::block_in_place(|| self.master.rouse(&["audit"]).ended(0));
    }

    /// Kills the master, and starts the next one.
    fn lose_master(&self) {
        self.master.kill();
        tokio::task::block_in_place(|| self.master.begin());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_build_wakes_a_server_which_learns_who_it_is() {
    let worker = "build_wait_timeout = 15\n";
    let whole = Whole::new("os-whole", worker, "meta = { fake_guest = \"agent\" }", None).await;
    let build = whole.begin_build(&["sh", "-c", "echo on $ROUSE_WORKER"]);
    whole.until_success(&build);
    let said = tokio::task::block_in_place(|| whole.master.rouse(&["log", &build]).ended(0));
    assert_eq!(said.text(), "on os-whole-w\n");
    // A master that is killed forgets nothing: the next one finds host and agent.
    let servers = whole.servers();
    let host = whole.master.hosts(&whole.worker).remove(0);
    assert_eq!(
        (servers.len(), &servers[0]["id"], text(&host["provider"])),
        (1, &host["handle"], "openstack".to_owned())
    );
    whole.lose_master();
    let build = whole.begin_build(&["true"]);
    whole.until_success(&build);
    assert_eq!(whole.master.show(&build)["tries"][0]["host"], host["id"], "the same host");
    whole.until_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_master_killed_while_it_makes_or_ends_a_server() {
    let worker = "build_wait_timeout = 0\n";
    let whole = Whole::new("os-killed", worker, "meta = { fake_guest = \"agent\" }", None).await;
    for fault in [Fault::HangAfter, Fault::Hang] {
        let lost = whole.proxy.hanging();
        for method in ["POST", "DELETE"] {
            whole.proxy.fail(0, 1, fault.clone(), move |r| r.is(method, "/servers"));
        }
        let build = whole.begin_build(&["true"]);
        for times in 1..=2 {
            whole.until("the call is under way", || whole.proxy.hanging() == lost + times);
            whole.lose_master();
        }
        assert_eq!(whole.master.state(&build), "success", "{fault:?}");
        assert_eq!(whole.master.show(&build)["tries"].as_array().unwrap().len(), 1, "{fault:?}");
        whole.until_nothing_is_left();
    }
    let made = whole.proxy.take_seen().iter().filter(|r| r.is("POST", "/servers") && r.status == 202).count();
    assert_eq!(made, 2, "one server for each build");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_machine_without_a_metadata_service_learns_it_from_its_config_drive() {
    let disk = tokio::task::block_in_place(|| image(&Image::agent()));
    let more = format!("config_drive = true\nmeta = {{ fake_guest = \"machine:{}\" }}", disk.display());
    let whole = Whole::new("os-drive", "build_wait_timeout = 1\n", &more, Some("10.0.2.2")).await;
    let build = whole.begin_build(&["sh", "-c", "uname -n; echo on $ROUSE_WORKER"]);
    whole.until_success(&build);
    let said = tokio::task::block_in_place(|| whole.master.rouse(&["log", &build]).ended(0));
    assert!(said.text().ends_with("on os-drive-w\n"), "{}", said.text());
    whole.until_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_that_comes_to_nothing_leaves_evidence() {
    let silent = Whole::new("os-silent", "missing_timeout = 4\n", "meta = { fake_guest = \"silent\" }", None).await;
    // Nobody has to wait for what Nova says by itself.
    let burnt = Whole::new("os-burnt", "", "meta = { fake_spawn_error = \"the disk is on fire\" }", None).await;
    // Both at once.
    let builds = [&silent, &burnt].map(|whole| whole.begin_build(&["true"]));
    let expected = [(&silent, "boots"), (&burnt, "the disk is on fire")];
    for ((whole, words), build) in expected.into_iter().zip(builds) {
        let evidence = || whole.master.show(&build)["evidence"].as_array().cloned().unwrap_or_default();
        whole.until("there is evidence", || !evidence().is_empty());
        assert!(json!(evidence()).to_string().contains(words), "{words}: {:?}", evidence());
        tokio::task::block_in_place(|| whole.master.rouse(&["cancel", &build]).ended(0));
        whole.until_nothing_is_left();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn why_a_program_chose_no_image_is_told_to_whoever_waits() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("find-image");
    let program = |text: &str| {
        let next = dir.path().join("next");
        std::fs::write(&next, text).unwrap();
        std::fs::set_permissions(&next, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(next, &path).unwrap();
    };
    program("#!/bin/sh\necho the registry has burnt down >&2; exit 3\n");
    let more = format!("image = {{ command = [{path:?}] }}\nmeta = {{ fake_guest = \"agent\" }}");
    let whole = Whole::new("os-image", "build_wait_timeout = 1\n", &more, None).await;
    let build = whole.begin_build(&["true"]);
    let why = || tokio::task::block_in_place(|| whole.master.rouse(&["why", &build]).ended(0)).text();
    whole.until("it is told", || why().contains("the registry has burnt down"));
    assert!(whole.servers().is_empty());
    // It is asked again at each start.
    program("#!/bin/sh\nexec sed 's/.*\"id\":\"\\([^\"]*\\)\".*/\\1/'\n");
    whole.until_success(&build);
    whole.until_nothing_is_left();
}

#[tokio::test]
async fn the_metadata_service_has_theirs_and_ours() {
    let stand = Stand::new("meta = { team = \"ci\", fake_guest = \"metadata\" }").await;
    let host = stand.started().await;
    stand.until_status(&host, "ACTIVE").await;
    let mut told = None;
    for _ in 0..LONG.as_millis() / 100 {
        told = stand
            .provider
            .console(&host)
            .await
            .and_then(|said| said.lines().find(|l| l.starts_with('{')).map(str::to_owned));
        if told.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let told: Value = serde_json::from_str(&told.unwrap()).unwrap();
    assert_eq!(Some(told["uuid"].as_str().unwrap()), host.handle.as_deref());
    for (key, value) in
        [("team", "ci"), ("rouse-name", "w1"), ("rouse-host", host.id.as_str()), ("rouse-master", &stand.master)]
    {
        assert_eq!(told["meta"][key], value, "{told}");
    }
    stand.terminate(&host).await;
}
