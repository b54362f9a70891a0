//! The contract of the providers, with EC2.

use crate::fixture::provider_in;
use rouse_master::config::Config;
use rouse_master::core::plan::ProviderKind;
use rouse_master::core::record::Host;
use rouse_master::hosts::{Death, Provider};
use rouse_shared::WorkerName;
use rouse_tests::contract::{self, ProviderFixture};
use rouse_tests::ec2::{Cloud, config};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::PathBuf;
use tokio::sync::mpsc;

struct Ec2Machines {
    cloud: Cloud,
    dir: PathBuf,
    config: Config,
}

impl ProviderFixture for Ec2Machines {
    fn kind(&self) -> ProviderKind {
        ProviderKind::Ec2
    }

    fn workers(&self) -> [WorkerName; 2] {
        ["w-1".parse().unwrap(), "w-2".parse().unwrap()]
    }

    fn provider(&self, owner: &str, deaths: mpsc::Sender<Death>) -> Box<dyn Provider> {
        Box::new(provider_in(&self.dir, owner, &self.config, deaths))
    }

    fn machines(&self) -> BTreeSet<String> {
        self.cloud.alive().into_iter().collect()
    }

    fn kill(&self, host: &Host) {
        self.cloud.kill(host.handle.as_deref().unwrap());
    }

    fn keeps_console(&self) -> bool {
        true
    }

    fn tells_of_deaths(&self) -> bool {
        true
    }

    fn leftovers(&self) -> BTreeSet<String> {
        let volumes = self.cloud.call("DescribeVolumes", &[]);
        volumes.split("<volumeId>").skip(1).map(|rest| rest.split('<').next().unwrap().to_owned()).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ec2_keeps_the_contract() {
    let cloud = Cloud::start().await;
    cloud.set(&json!({ "console": "Welcome to rouse\n" }));
    let dir = tempfile::tempdir().unwrap();
    let config = config(&cloud.endpoint(), "");
    contract::holds(&Ec2Machines { cloud, dir: dir.path().to_owned(), config }).await;
}
