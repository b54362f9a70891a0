//! `rouse check --online`: each latent worker's section held against its cloud. Nothing is made, and nothing is asked but
//! the clouds that the configuration names.

use crate::config::{Config, HostConfig};

/// What was found of a section.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// Whether its hosts can be started, as far as this goes.
    pub good: bool,
    /// A sentence.
    pub text: String,
}

impl Finding {
    /// As it should be.
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
    let mut seen: Vec<(&str, &HostConfig)> = Vec::new();
    let mut all = Vec::new();
    for (name, host) in &config.hosts {
        let latent = config.plan.workers.get(name).and_then(|worker| worker.latent.as_ref());
        let template = latent.map_or(name.as_str(), |latent| latent.template.as_str());
        if seen.iter().any(|(of, _)| *of == template) {
            continue;
        }
        seen.push((template, host));
        let found = check_one(config, host).await;
        all.extend(found.into_iter().map(|finding| (template.to_owned(), finding)));
    }
    all
}

async fn check_one(config: &Config, host: &HostConfig) -> Vec<Finding> {
    match host {
        #[cfg(feature = "ec2")]
        HostConfig::Ec2(section) => super::ec2::check(section, &config.master.name).await,
        #[cfg(not(feature = "ec2"))]
        HostConfig::Ec2(_) => vec![absent(config)],
        #[cfg(feature = "openstack")]
        HostConfig::Openstack(section) => super::openstack::check(section).await,
        #[cfg(not(feature = "openstack"))]
        HostConfig::Openstack(_) => vec![absent(config)],
        // What there is to be seen of them without asking anybody is part of the check without --online.
        HostConfig::Process(_) | HostConfig::Libvirt(_) => Vec::new(),
    }
}

#[cfg(not(all(feature = "ec2", feature = "openstack")))]
fn absent(_config: &Config) -> Finding {
    Finding::bad("this build of rouse has no such provider")
}
