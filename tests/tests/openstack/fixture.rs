//! A provider with the cloud, with or without the proxy in between, and the hosts that it is to start.

use rouse_master::config::Config;
use rouse_master::core::event::{ListedHost, StartError, Started, Termination};
use rouse_master::core::plan::ProviderKind;
use rouse_master::core::record::Host;
use rouse_master::hosts::openstack::{Options, Servers};
use rouse_master::hosts::{Death, Provider};
use rouse_shared::WorkerName;
use rouse_tests::contract::{Looks, boot_data, host_of, whole_list};
use rouse_tests::openstack::{Cloud, PROJECT, User, section};
use rouse_tests::proxy::Proxy;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::mpsc;

/// How long anything may take.
pub const LIMIT: Duration = Duration::from_secs(60);
/// How long a call may still be under way in this cloud when nobody waits for it any more.
const SETTLED: Duration = Duration::from_secs(5);
/// Between two looks.
pub const LOOK: Duration = Duration::from_millis(100);

/// A provider, and what is around it.
pub struct OpenstackFixture {
    pub provider: Servers,
    pub deaths: mpsc::Receiver<Death>,
    pub proxy: Proxy,
    pub user: User,
    /// The master's name: of this fixture alone, since all share one project.
    pub master: String,
    /// What the next master is configured with.
    pub config: Config,
    /// How long a call may still be under way when nobody waits for it any more.
    settled: Duration,
    dir: TempDir,
}

impl OpenstackFixture {
    /// With these further lines in the worker's section, behind a proxy.
    pub async fn new(more: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let cloud = Cloud::shared();
        let proxy = Proxy::start(&cloud.addresses()).await;
        let identity = cloud.address("identity");
        let url = cloud.url("identity").replace(&identity.to_string(), &proxy.front(identity).to_string());
        let project = more.lines().find_map(|line| line.strip_prefix("os_tenant_name = ")).unwrap_or(PROJECT);
        let user = cloud.user(project.trim_matches('"')).await;
        let master = format!("m{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let config = config(["w1", "w2"], &url, more);
        let dir = tempfile::tempdir().unwrap();
        let (provider, deaths) = provider(dir.path(), &master, &config, SETTLED);
        Self { provider, deaths, proxy, user, master, config, settled: SETTLED, dir }
    }

    /// In a cloud where nothing is under way any more when a master is lost.
    pub async fn unhurried(more: &str) -> Self {
        Self { settled: Duration::from_secs(1), ..Self::new(more).await }
    }

    /// The provider as the next master of the same name and id has it.
    pub fn next(&mut self) {
        (self.provider, self.deaths) = provider(self.dir.path(), &self.master, &self.config, self.settled);
    }

    /// A host, as the core orders it.
    pub fn host(&self) -> Host {
        host_of(ProviderKind::Openstack, &worker())
    }

    pub async fn prepare(&self, host: &mut Host) -> Result<(), StartError> {
        let boot = boot_data(host);
        host.launch = Some(self.provider.prepare(host, 0, &BTreeSet::new(), boot).await?);
        Ok(())
    }

    /// Orders and starts it, as the core does: an outcome that is not known is followed by the same call.
    pub async fn start(&self, host: &mut Host) -> Result<(), StartError> {
        if host.launch.is_none() {
            self.prepare(host).await?;
        }
        for _ in 0..5 {
            match self.provider.start(host).await {
                Ok(Started { handle, identity }) => {
                    (host.handle, host.identity) = (Some(handle), identity);
                    return Ok(());
                }
                Err(StartError::Unknown(_)) => {}
                Err(error) => return Err(error),
            }
        }
        panic!("host {} does not start", host.id);
    }

    /// A host that was started.
    pub async fn started(&self) -> Host {
        let mut host = self.host();
        self.start(&mut host).await.unwrap_or_else(|error| panic!("{error:?}"));
        host
    }

    /// What it lists, if it has heard of every place.
    pub async fn list(&self) -> Result<Vec<ListedHost>, String> {
        whole_list(&self.provider).await
    }

    /// Stops it until it is gone, whatever goes wrong on the way.
    pub async fn terminate(&self, host: &Host) {
        let mut looks = Looks::default();
        loop {
            let ended = self.provider.terminate(host).await;
            if ended == Ok(Termination::Gone) {
                return;
            }
            assert!(looks.again().await, "host {} does not go: {ended:?}", host.id);
        }
    }

    /// The servers of a host, as Nova has them.
    pub async fn servers(&self, host: &Host) -> Vec<Value> {
        self.user.servers(&format!("{}-{}", host.worker, host.id)).await
    }

    /// Waits until a host's server has a status.
    pub async fn until_status(&self, host: &Host, status: &str) -> Value {
        let mut looks = Looks::default();
        loop {
            let servers = self.servers(host).await;
            if let [server] = servers.as_slice()
                && server["status"] == status
            {
                return server.clone();
            }
            assert!(looks.again().await, "not {status} in time: {servers:?}");
        }
    }
}

fn provider(dir: &Path, master: &str, config: &Config, settled: Duration) -> (Servers, mpsc::Receiver<Death>) {
    let (deaths_in, deaths) = mpsc::channel(64);
    (
        Servers::with_options(
            dir.to_owned(),
            &format!("{master}/id1"),
            config,
            deaths_in,
            Options { propagation_delay: settled },
        )
        .unwrap(),
        deaths,
    )
}

pub fn worker() -> WorkerName {
    "w1".parse().unwrap()
}

/// A configuration with two workers of such a section.
pub fn config(workers: [&str; 2], auth_url: &str, more: &str) -> Config {
    let mut text = String::from("[master]\nname = \"m\"\n");
    for name in workers {
        text.push_str(&format!("[[worker]]\nname = \"{name}\"\npassword = \"p\"\n{}", section(auth_url, more)));
    }
    parsed(&text)
}

/// A configuration that is right.
pub fn parsed(text: &str) -> Config {
    Config::parse(text, Path::new("rouse.toml")).unwrap_or_else(|faults| panic!("{faults}"))
}
