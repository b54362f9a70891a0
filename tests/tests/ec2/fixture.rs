//! One provider on one cloud.

use rouse_master::config::Config;
use rouse_master::core::event::{ListedHost, StartError, Started};
use rouse_master::core::plan::ProviderKind;
use rouse_master::core::record::Host;
use rouse_master::hosts::ec2::{Ec2, Options};
use rouse_master::hosts::{Death, Provider as _};
use rouse_tests::contract::{self, OWNER, boot_data};
use rouse_tests::ec2::{Cloud, config};
use rouse_tests::proxy::Fault;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::mpsc;

/// A provider that takes the cloud's lists at their word.
pub fn provider_in(dir: &Path, owner: &str, config: &Config, deaths: mpsc::Sender<Death>) -> Ec2 {
    Ec2::new(dir.join("ec2"), owner.to_owned(), config, deaths)
        .unwrap()
        .with_options(Options { list_delay: Duration::ZERO })
}

/// Deaths that nobody listens for.
pub fn nobody() -> mpsc::Sender<Death> {
    mpsc::channel(64).0
}

pub struct Ec2Fixture {
    pub cloud: Cloud,
    pub provider: Ec2,
    pub config: Config,
    pub dir: TempDir,
}

impl Ec2Fixture {
    /// With this in the workers' section.
    pub async fn new(more: &str) -> Self {
        let cloud = Cloud::start().await;
        let config = config(&cloud.endpoint(), more);
        Self::with(cloud, config)
    }

    pub fn with(cloud: Cloud, config: Config) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let provider = provider_in(dir.path(), OWNER, &config, nobody());
        Self { cloud, provider, config, dir }
    }

    /// The same provider after a restart of the master.
    pub fn restart(&mut self) {
        self.provider = provider_in(self.dir.path(), OWNER, &self.config, nobody());
    }

    pub fn host(&self) -> Host {
        contract::host_of(ProviderKind::Ec2, self.config.hosts.keys().next().unwrap())
    }

    pub async fn prepare(&self, host: &mut Host, number: u32) -> Result<(), StartError> {
        let order = self.provider.prepare(host, number, &BTreeSet::new(), boot_data(host)).await?;
        host.launch = Some(order);
        Ok(())
    }

    pub async fn start(&self, host: &mut Host) -> Result<Started, StartError> {
        let started = self.provider.start(host).await?;
        host.handle = Some(started.handle.clone());
        Ok(started)
    }

    /// Prepares and starts a host; comes back with what the cloud has.
    pub async fn started(&self) -> (Host, Value) {
        let mut host = self.host();
        self.prepare(&mut host, 0).await.unwrap();
        self.start(&mut host).await.unwrap();
        let made = self.made(&host);
        (host, made)
    }

    /// The instance of a host, as the cloud knows it.
    pub fn made(&self, host: &Host) -> Value {
        let handle = host.handle.as_deref().unwrap();
        self.cloud.instances().into_iter().find(|i| i["id"] == handle).unwrap()
    }

    /// Goes through a part of a host's life, in which the master is lost at this call: before it reaches AWS, or after it
    /// has done it. Whether it was; there may be fewer calls.
    pub async fn dies_at(&self, call: usize, fault: &Fault, life: impl Future<Output = ()>) -> bool {
        self.cloud.proxy.heal();
        self.cloud.proxy.fail(call, 1, fault.clone(), |_| true);
        let before = self.cloud.proxy.hanging();
        let cut = async {
            while self.cloud.proxy.hanging() == before {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let died = tokio::select! {
            () = life => false,
            () = cut => true,
        };
        self.cloud.proxy.heal();
        died
    }

    /// What it lists, if it has heard of every place.
    pub async fn list(&self) -> Result<Vec<ListedHost>, String> {
        contract::whole_list(&self.provider).await
    }

    pub async fn gone(&self, host: &Host) {
        contract::gone(&self.provider, host).await;
    }
}
