//! The contract of the providers, kept by libvirt.

use rouse_master::config::Config;
use rouse_master::core::plan::ProviderKind;
use rouse_master::core::record::Host;
use rouse_master::hosts::libvirt::Libvirt;
use rouse_master::hosts::{Death, Provider};
use rouse_shared::WorkerName;
use rouse_tests::contract::{self, Ground};
use rouse_tests::virt::{Image, Lab, image};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;

struct Machines {
    lab: &'static Lab,
    dir: PathBuf,
    config: Config,
}

impl Ground for Machines {
    fn kind(&self) -> ProviderKind {
        ProviderKind::Libvirt
    }

    fn workers(&self) -> [WorkerName; 2] {
        ["contract-1".parse().unwrap(), "contract-2".parse().unwrap()]
    }

    fn provider(&self, owner: &str, deaths: mpsc::Sender<Death>) -> Box<dyn Provider> {
        let dir = self.dir.join("consoles");
        Box::new(Libvirt::new(dir, owner, &self.config, deaths).unwrap())
    }

    fn machines(&self) -> BTreeSet<String> {
        self.lab.running().into_iter().collect()
    }

    fn kill(&self, host: &Host) {
        self.lab.signal_guest(host.worker.as_str(), libc::SIGKILL);
    }

    fn keeps_console(&self) -> bool {
        true
    }

    fn tells_of_deaths(&self) -> bool {
        true
    }

    fn leftovers(&self) -> BTreeSet<String> {
        let names = |dir: &Path| -> Vec<String> {
            let entries =
                std::fs::read_dir(dir).map(|entries| entries.flatten().collect()).unwrap_or_else(|_| Vec::new());
            entries.iter().map(|e| e.file_name().to_string_lossy().into_owned()).collect()
        };
        let consoles = names(&self.dir.join("consoles")).into_iter().filter(|name| name != "connections");
        names(&self.dir.join("disks")).into_iter().chain(consoles).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn libvirt_keeps_the_contract() {
    if !crate::may_run() {
        return;
    }
    let lab = Lab::get();
    lab.set_network("rouse", include_str!("../../../contrib/libvirt/network.xml"));
    let base = image(&Image::of_kind("no-agent"));
    let dir = lab.dir.join("contract");
    std::fs::create_dir_all(dir.join("disks")).unwrap();
    let text = format!(
        "[[worker]]\nname = \"contract-{{1..2}}\"\npassword = \"x\"\n[worker.libvirt]\nconnection = \"{}\"\n\
         hd_image = \"{}/disks/{{name}}.qcow2\"\nbase_image = \"{}\"\nxml = \"builtin\"\nmemory_mb = 128\ncpus = 1\n\
         network = \"rouse\"\n",
        lab.uri,
        dir.display(),
        base.display(),
    );
    let before = std::fs::read(&base).unwrap();
    let machines = Machines { lab, dir, config: Config::parse(&text, Path::new("/nonexistent/rouse.toml")).unwrap() };
    contract::holds(&machines).await;
    assert!(std::fs::read(&base).unwrap() == before, "the base image is never written to");
}
