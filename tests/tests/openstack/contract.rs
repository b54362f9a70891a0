//! The contract of the providers, with servers of OpenStack.

use super::fixture::config;
use rouse_master::config::Config;
use rouse_master::core::plan::ProviderKind;
use rouse_master::core::record::Host;
use rouse_master::hosts::openstack::Servers;
use rouse_master::hosts::{Death, Provider};
use rouse_shared::WorkerName;
use rouse_tests::contract::{self, Looks, ProviderFixture};
use rouse_tests::openstack::{Cloud, User};
use serde_json::Value;
use std::collections::BTreeSet;
use tempfile::TempDir;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

/// Names that no other test has for its own.
const WORKERS: [&str; 2] = ["contract1", "contract2"];

struct OpenstackMachines {
    dir: TempDir,
    user: User,
    config: Config,
}

impl OpenstackMachines {
    /// Waits, on a thread that may.
    fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::task::block_in_place(|| Handle::current().block_on(work))
    }

    async fn servers(&self) -> Vec<Value> {
        self.user.servers("contract").await
    }
}

impl ProviderFixture for OpenstackMachines {
    fn kind(&self) -> ProviderKind {
        ProviderKind::Openstack
    }

    fn workers(&self) -> [WorkerName; 2] {
        WORKERS.map(|name| name.parse().unwrap())
    }

    fn provider(&self, owner: &str, deaths: mpsc::Sender<Death>) -> Box<dyn Provider> {
        Box::new(Servers::new(self.dir.path().to_owned(), owner, &self.config, deaths).unwrap())
    }

    fn machines(&self) -> BTreeSet<String> {
        self.wait(self.servers()).iter().map(|server| server["id"].as_str().unwrap().to_owned()).collect()
    }

    fn kill(&self, host: &Host) {
        let path = format!("/servers/{}", host.handle.as_ref().unwrap());
        self.wait(async {
            let mut looks = Looks::default();
            while self.user.ask("DELETE", "compute", &path, None).await.0 != 404 {
                assert!(looks.again().await, "{path} does not go");
            }
        });
    }

    fn keeps_console(&self) -> bool {
        true
    }

    fn tells_of_deaths(&self) -> bool {
        // Nova reports no deaths; the audit and the agent's lease show them.
        false
    }

    fn leftovers(&self) -> BTreeSet<String> {
        self.wait(async {
            let mut all = self.user.list("network", "/v2.0/ports", "ports").await;
            all.extend(self.user.list("network", "/v2.0/floatingips", "floatingips").await);
            all.extend(self.user.list("volume", "/volumes/detail", "volumes").await);
            all.retain(|item| item.to_string().contains("contract"));
            all.iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect()
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn openstack_keeps_the_contract() {
    let cloud = Cloud::shared();
    let more = "floating_ip_pool = \"public\"\nboot_volume_gb = 1";
    let dir = tempfile::tempdir().unwrap();
    let machines = OpenstackMachines {
        dir,
        user: cloud.user("rouse").await,
        config: config(WORKERS, cloud.url("identity"), more),
    };
    contract::holds(&machines).await;
}
