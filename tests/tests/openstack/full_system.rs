//! The complete system: a master, servers that boot by starting a real agent, what the agent learns from the metadata
//! service or a config drive, and builds. Masters are killed.

use super::fixture::OpenstackFixture;
use rouse_master::hosts::Provider as _;
use rouse_tests::harness::{Master, text};
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
struct FullSystem {
    master: Master,
    proxy: Proxy,
    user: User,
    worker: String,
}

impl FullSystem {
    /// With these lines of the worker and of its section; `agent_host` is where servers reach the broker.
    async fn new(name: &str, worker: &str, more: &str, agent_host: Option<&str>) -> Self {
        let cloud = Cloud::shared();
        let proxy = Proxy::start(&cloud.addresses()).await;
        let identity = cloud.address("identity");
        let url = cloud.url("identity").replace(&identity.to_string(), &proxy.front(identity).to_string());
        let who = format!("{name}-w");
        let sections = format!("[[worker]]\nname = \"{who}\"\npassword = \"x\"\n{worker}{}", section(&url, more));
        let master = tokio::task::block_in_place(|| Master::start_for(name, agent_host, &sections));
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
    let system = FullSystem::new("os-whole", worker, "meta = { fake_guest = \"agent\" }", None).await;
    let build = system.begin_build(&["sh", "-c", "echo on $ROUSE_WORKER"]);
    system.until_success(&build);
    let said = tokio::task::block_in_place(|| system.master.rouse(&["log", &build]).ended(0));
    assert_eq!(said.text(), "on os-whole-w\n");
    // A master that is killed forgets nothing: the next one finds host and agent.
    let servers = system.servers();
    let host = system.master.hosts(&system.worker).remove(0);
    assert_eq!(
        (servers.len(), &servers[0]["id"], text(&host["provider"])),
        (1, &host["handle"], "openstack".to_owned())
    );
    system.lose_master();
    let build = system.begin_build(&["true"]);
    system.until_success(&build);
    assert_eq!(system.master.show(&build)["tries"][0]["host"], host["id"], "the same host");
    system.until_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_master_killed_while_it_makes_or_ends_a_server() {
    let worker = "build_wait_timeout = 0\n";
    let system = FullSystem::new("os-killed", worker, "meta = { fake_guest = \"agent\" }", None).await;
    for fault in [Fault::HangAfter, Fault::Hang] {
        let lost = system.proxy.hanging();
        for method in ["POST", "DELETE"] {
            system.proxy.fail(0, 1, fault.clone(), move |r| r.is(method, "/servers"));
        }
        let build = system.begin_build(&["true"]);
        for times in 1..=2 {
            system.until("the call is under way", || system.proxy.hanging() == lost + times);
            system.lose_master();
        }
        assert_eq!(system.master.state(&build), "success", "{fault:?}");
        assert_eq!(system.master.show(&build)["tries"].as_array().unwrap().len(), 1, "{fault:?}");
        system.until_nothing_is_left();
    }
    let made = system.proxy.take_seen().iter().filter(|r| r.is("POST", "/servers") && r.status == 202).count();
    assert_eq!(made, 2, "one server for each build");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_machine_without_a_metadata_service_learns_it_from_its_config_drive() {
    let disk = tokio::task::block_in_place(|| image(&Image::agent()));
    let more = format!("config_drive = true\nmeta = {{ fake_guest = \"machine:{}\" }}", disk.display());
    let system = FullSystem::new("os-drive", "build_wait_timeout = 1\n", &more, Some("10.0.2.2")).await;
    let build = system.begin_build(&["sh", "-c", "uname -n; echo on $ROUSE_WORKER"]);
    system.until_success(&build);
    let said = tokio::task::block_in_place(|| system.master.rouse(&["log", &build]).ended(0));
    assert!(said.text().ends_with("on os-drive-w\n"), "{}", said.text());
    system.until_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_that_comes_to_nothing_leaves_evidence() {
    let silent =
        FullSystem::new("os-silent", "missing_timeout = 20\n", "meta = { fake_guest = \"silent\" }", None).await;
    // Nobody has to wait for what Nova says by itself.
    let burnt = FullSystem::new("os-burnt", "", "meta = { fake_spawn_error = \"the disk is on fire\" }", None).await;
    // Both at once.
    let builds = [&silent, &burnt].map(|system| system.begin_build(&["true"]));
    let expected = [(&silent, "boots"), (&burnt, "the disk is on fire")];
    for ((system, words), build) in expected.into_iter().zip(builds) {
        let evidence = || system.master.show(&build)["evidence"].as_array().cloned().unwrap_or_default();
        system.until("there is evidence", || !evidence().is_empty());
        assert!(json!(evidence()).to_string().contains(words), "{words}: {:?}", evidence());
        tokio::task::block_in_place(|| system.master.rouse(&["cancel", &build]).ended(0));
        system.until_nothing_is_left();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_build_shows_why_a_program_chose_no_image() {
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
    let system = FullSystem::new("os-image", "build_wait_timeout = 1\n", &more, None).await;
    let build = system.begin_build(&["true"]);
    let why = || tokio::task::block_in_place(|| system.master.why(&build));
    system.until("the reason is shown", || why().contains("the registry has burnt down"));
    assert!(system.servers().is_empty());
    // It is asked again at each start.
    program("#!/bin/sh\nexec sed 's/.*\"id\":\"\\([^\"]*\\)\".*/\\1/'\n");
    system.until_success(&build);
    system.until_nothing_is_left();
}

#[tokio::test]
async fn the_metadata_service_has_theirs_and_ours() {
    let fixture = OpenstackFixture::new("meta = { team = \"ci\", fake_guest = \"metadata\" }").await;
    let host = fixture.started().await;
    fixture.until_status(&host, "ACTIVE").await;
    let mut json = None;
    for _ in 0..LONG.as_millis() / 100 {
        json = fixture
            .provider
            .console(&host)
            .await
            .and_then(|said| said.lines().find(|l| l.starts_with('{')).map(str::to_owned));
        if json.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let json: Value = serde_json::from_str(&json.unwrap()).unwrap();
    assert_eq!(Some(json["uuid"].as_str().unwrap()), host.handle.as_deref());
    for (key, value) in
        [("team", "ci"), ("rouse-name", "w1"), ("rouse-host", host.id.as_str()), ("rouse-master", &fixture.master)]
    {
        assert_eq!(json["meta"][key], value, "{json}");
    }
    fixture.terminate(&host).await;
}
