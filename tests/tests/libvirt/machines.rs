//! A provider on the tests' libvirtd, without a master: where its disks are, and what is left of its hosts.

use rouse_master::config::Config;
use rouse_master::core::plan::ProviderKind;
use rouse_master::core::record::Host;
use rouse_master::hosts::libvirt::{Libvirt, Observer, Options};
use rouse_master::hosts::{Death, Provider};
use rouse_shared::WorkerName;
use rouse_tests::contract::ProviderFixture;
use rouse_tests::virt::{Image, VirtHost, image};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;

pub struct Machines {
    name: String,
    pub virt_host: &'static VirtHost,
    pub dir: PathBuf,
    pub base: PathBuf,
    /// The section of its workers.
    pub section: String,
    config: Config,
}

/// A configuration with this section of two workers, NAME-1 and NAME-2.
pub fn config(name: &str, section: &str) -> Config {
    let text = format!("[[worker]]\nname = \"{name}-{{1..2}}\"\npassword = \"x\"\n[worker.libvirt]\n{section}\n");
    Config::parse(&text, Path::new("/nonexistent/rouse.toml")).unwrap()
}

impl Machines {
    /// With built-in machines over a base image that runs without an agent.
    pub fn new(name: &str) -> Self {
        Self::over(name, |_| image(&Image::of_kind("no-agent")))
    }

    /// The same, over a copy of that image.
    pub fn with_own_base(name: &str) -> Self {
        Self::over(name, |dir| {
            let base = dir.join("base.qcow2");
            std::fs::copy(image(&Image::of_kind("no-agent")), &base).unwrap();
            base
        })
    }

    fn over(name: &str, base: impl Fn(&Path) -> PathBuf) -> Self {
        let virt_host = VirtHost::get();
        virt_host.need_network("bare");
        let dir = virt_host.dir.join(name);
        std::fs::create_dir_all(dir.join("disks")).unwrap();
        let base = base(&dir);
        let section = format!(
            "connection = \"{}\"\nhd_image = \"{}/disks/{{name}}.qcow2\"\nbase_image = \"{}\"\nxml = \"builtin\"\n\
             memory_mb = 128\ncpus = 1\nnetwork = \"bare\"",
            virt_host.uri,
            dir.display(),
            base.display(),
        );
        Self { name: name.to_owned(), virt_host, config: config(name, &section), section, dir, base }
    }

    /// The provider, with an observer of each step.
    pub fn observed(&self, owner: &str, deaths: mpsc::Sender<Death>, observer: Option<Observer>) -> Libvirt {
        Libvirt::with_options(self.dir.join("consoles"), owner, &self.config, deaths, Options { observer }).unwrap()
    }
}

impl ProviderFixture for Machines {
    fn kind(&self) -> ProviderKind {
        ProviderKind::Libvirt
    }

    fn workers(&self) -> [WorkerName; 2] {
        let mut names = self.config.hosts.keys().cloned();
        [names.next().unwrap(), names.next().unwrap()]
    }

    fn provider(&self, owner: &str, deaths: mpsc::Sender<Death>) -> Box<dyn Provider> {
        Box::new(self.observed(owner, deaths, None))
    }

    fn machines(&self) -> BTreeSet<String> {
        // Other tests have theirs.
        self.virt_host.running().into_iter().filter(|domain| domain.starts_with(&self.name)).collect()
    }

    fn kill(&self, host: &Host) {
        self.virt_host.signal_guest(host.worker.as_str(), libc::SIGKILL);
    }

    fn keeps_console(&self) -> bool {
        true
    }

    fn tells_of_deaths(&self) -> bool {
        true
    }

    fn leftovers(&self) -> BTreeSet<String> {
        let consoles = names(&self.dir.join("consoles")).into_iter().filter(|name| name != "connections");
        names(&self.dir.join("disks")).into_iter().chain(consoles).collect()
    }
}

/// The names of a directory's files.
pub fn names(dir: &Path) -> BTreeSet<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return BTreeSet::new() };
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}
