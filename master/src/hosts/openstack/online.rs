//! `rouse check --online`: reports whether a section's hosts could be started, and which image they would boot. Creates
//! nothing, and queries only the section's cloud.

use super::account::Account;
use super::cloud::{Cloud, Service};
use super::error::CloudError;
use super::{images, order, servers};
use crate::config::OpenstackConfig;
use crate::hosts::online::Finding;
use serde_json::Value;

/// Checks one section.
pub async fn check(section: &OpenstackConfig) -> Vec<Finding> {
    let account = Account::of(section, &|name| std::env::var(name).ok());
    let cloud = match account.and_then(Cloud::new) {
        Ok(cloud) => cloud,
        Err(why) => return vec![Finding::bad(why)],
    };
    // Without a login, further checks would fail too.
    if let Err(problem) = cloud.place().await {
        return vec![failed(&problem)];
    }
    let mut found = Vec::new();
    let image = images::resolve(&cloud, &section.image).await;
    let mut flavors = Vec::new();
    for given in &section.flavors {
        flavors.push(order::flavor(&cloud, given).await);
    }
    let flavors: Result<Vec<String>, CloudError> = flavors.into_iter().collect();
    match (&image, &flavors) {
        (Ok(image), Ok(_)) => {
            let json = cloud.get(Service::Image, &format!("/images/{image}")).await.unwrap_or_default();
            let name = json["name"].as_str().unwrap_or("without a name");
            found.push(Finding::good(format!("boots {image} ({name}) as {}", section.flavors.join(" or "))));
        }
        (_, Err(problem)) => found.push(failed(problem)),
        (Err(_), Ok(_)) => {}
    }
    if let Err(error) = &image {
        found.push(Finding::bad(error.text()));
    }
    let asked = [
        order::networks(&cloud, &section.networks).await.map(drop),
        pool(&cloud, section.floating_ip_pool.as_deref()).await,
        key(&cloud, section.key_name.as_deref()).await,
        groups(&cloud, &section.security_groups).await,
        zones(&cloud, &section.availability_zones).await,
        volumes(&cloud, section.boot_volume_gb.is_some()).await,
    ];
    found.extend(asked.iter().filter_map(|asked| asked.as_ref().err()).map(failed));
    if let Some(first) = flavors.ok().as_deref().and_then(<[String]>::first) {
        match servers::lacks_quota(&cloud, first).await {
            Ok(false) => {}
            // The quota may be used by rouse's own hosts.
            Ok(true) => found.push(Finding::good("the project has no room for another server just now")),
            Err(problem) => found.push(failed(&problem)),
        }
    }
    found
}

fn failed(problem: &CloudError) -> Finding {
    Finding::bad(problem.to_string())
}

async fn pool(cloud: &Cloud, given: Option<&str>) -> Result<(), CloudError> {
    match given {
        Some(name) => order::network(cloud, name, true).await.map(drop),
        None => Ok(()),
    }
}

async fn key(cloud: &Cloud, given: Option<&str>) -> Result<(), CloudError> {
    let Some(name) = given else { return Ok(()) };
    match cloud.get(Service::Compute, &format!("/os-keypairs/{}", order::segment(name))).await {
        Err(problem) if problem.is_missing() => Err(none("key pair", name)),
        other => other.map(drop),
    }
}

async fn groups(cloud: &Cloud, given: &[String]) -> Result<(), CloudError> {
    if given.is_empty() {
        return Ok(());
    }
    let all = cloud.list(Service::Network, "/security-groups", "security_groups").await?;
    let is = |group: &Value, name: &str| group["name"] == *name || group["id"] == *name;
    let missing = given.iter().find(|name| !all.iter().any(|group| is(group, name)));
    missing.map_or(Ok(()), |name| Err(none("security group", name)))
}

async fn zones(cloud: &Cloud, given: &[String]) -> Result<(), CloudError> {
    if given.is_empty() {
        return Ok(());
    }
    let all = cloud.list(Service::Compute, "/os-availability-zone", "availabilityZoneInfo").await?;
    // A host name after a colon is for administrators.
    let plain = |name: &str| name.split(':').next().unwrap_or(name).to_owned();
    let is_there = |name: &str| all.iter().any(|zone| zone["zoneName"] == plain(name));
    let missing = given.iter().find(|name| !is_there(name));
    missing.map_or(Ok(()), |name| Err(none("availability zone", name)))
}

async fn volumes(cloud: &Cloud, wanted: bool) -> Result<(), CloudError> {
    if !wanted {
        return Ok(());
    }
    cloud.get(Service::Volume, "/volumes?limit=1").await.map(drop)
}

fn none(what: &str, name: &str) -> CloudError {
    CloudError::Misconfigured(format!("{what} {name:?} not found"))
}
