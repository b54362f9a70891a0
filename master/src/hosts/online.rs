//! `rouse check --online`: each latent worker's section held against its cloud. Nothing is made, and nothing is asked but
//! the clouds that the configuration names.

use crate::config::{Config, HostConfig};
use rouse_shared::WorkerName;

/// What was found of a section.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// Whether its hosts can be started, as far as this goes.
    pub good: bool,
    /// A sentence.
    pub text: String,
}

impl Finding {
    /// Something that keeps no host from being started.
    pub fn good(text: impl Into<String>) -> Self {
        Self { good: true, text: text.into() }
    }

    /// Something that keeps hosts from being started.
    pub fn bad(text: impl Into<String>) -> Self {
        Self { good: false, text: text.into() }
    }
}

/// What there is to say of every section: the template's name and the finding. Workers of one template share theirs.
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

/// Looks at the section of these workers, of whom there is at least one. Their sections differ only in what has the
/// worker's name in it.
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
        // What there is to be seen of them without asking anybody is part of the check without --online.
        HostConfig::Process(_) => Vec::new(),
    }
}

#[cfg(not(all(feature = "ec2", feature = "libvirt", feature = "openstack")))]
fn absent(_config: &Config) -> Finding {
    Finding::bad("this build of rouse has no such provider")
}
