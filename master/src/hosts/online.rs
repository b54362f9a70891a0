//! `rouse check --online`: compares each latent worker's section with its cloud. Creates nothing, and queries only the
//! clouds in the configuration.

use crate::config::{Config, HostConfig};
use rouse_shared::WorkerName;

/// A finding about a section.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// Whether hosts can be started, according to this finding.
    pub good: bool,
    /// A sentence.
    pub text: String,
}

impl Finding {
    /// A finding that does not prevent hosts from being started.
    pub fn good(text: impl Into<String>) -> Self {
        Self { good: true, text: text.into() }
    }

    /// A finding that prevents hosts from being started.
    pub fn bad(text: impl Into<String>) -> Self {
        Self { good: false, text: text.into() }
    }
}

/// All findings: the template's name and the finding. Workers of one template share theirs.
pub async fn check(config: &Config) -> Vec<(String, Finding)> {
    let mut templates: Vec<(&str, Vec<(&WorkerName, &HostConfig)>)> = Vec::new();
    for (name, host) in &config.hosts {
        let latent = config.plan.workers.get(name).and_then(|worker| worker.latent.as_ref());
        let template = latent.map_or(name.as_str(), |latent| latent.template.as_str());
        match templates.iter_mut().find(|(of, _)| *of == template) {
            Some((_, workers)) => workers.push((name, host)),
            None => templates.push((template, vec![(name, host)])),
        }
    }
    let mut all = Vec::new();
    for (template, workers) in templates {
        let found = check_one(config, &workers).await;
        all.extend(found.into_iter().map(|finding| (template.to_owned(), finding)));
    }
    all
}

/// Checks the section of these workers, at least one. Their sections differ only in the worker's name.
async fn check_one(config: &Config, workers: &[(&WorkerName, &HostConfig)]) -> Vec<Finding> {
    let Some((_, host)) = workers.first() else { return Vec::new() };
    match host {
        #[cfg(feature = "ec2")]
        HostConfig::Ec2(section) => super::ec2::check(section, &config.master.name).await,
        #[cfg(not(feature = "ec2"))]
        HostConfig::Ec2(_) => vec![absent(config)],
        #[cfg(feature = "openstack")]
        HostConfig::Openstack(section) => super::openstack::check(section).await,
        #[cfg(not(feature = "openstack"))]
        HostConfig::Openstack(_) => vec![absent(config)],
        #[cfg(feature = "libvirt")]
        HostConfig::Libvirt(_) => super::libvirt::check(workers).await,
        #[cfg(not(feature = "libvirt"))]
        HostConfig::Libvirt(_) => vec![absent(config)],
        // `rouse check` without --online already checks everything about them.
        HostConfig::Process(_) => Vec::new(),
    }
}

#[cfg(not(all(feature = "ec2", feature = "libvirt", feature = "openstack")))]
fn absent(_config: &Config) -> Finding {
    Finding::bad("this build of rouse has no such provider")
}
