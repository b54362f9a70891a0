//! `rouse check --online`: reports whether the hosts of a section could be started. Checks libvirt, the networks, the
//! base image, and whether disks can be created. Creates nothing, and queries only the section's own libvirt.

use super::link::{Link, LinkError, code_of};
use super::{disk, look, machines, xml};
use crate::config::hosts::{DomainXml, Section as _};
use crate::config::{HostConfig, LibvirtConfig};
use crate::core::event::StartError;
use crate::hosts::online::Finding;
use rouse_shared::WorkerName;
use std::collections::BTreeSet;
use std::path::Path;
use tokio::sync::mpsc;
use virt::connect::Connect;
use virt::error::ErrorNumber;
use xmltree::Element;

/// The oldest version of libvirt that knows `<sysinfo type='fwcfg'>`, as libvirt counts.
const OLDEST: u32 = 6_005_000;

/// Checks one section, for each of its workers.
pub async fn check(workers: &[(&WorkerName, &HostConfig)]) -> Vec<Finding> {
    let section = |(name, host): &(&WorkerName, &HostConfig)| Some(((*name).clone(), LibvirtConfig::of(host)?.clone()));
    let workers: Vec<(WorkerName, LibvirtConfig)> = workers.iter().filter_map(section).collect();
    let Some((_, section)) = workers.first() else { return Vec::new() };
    let mut found = images(&workers).await;
    // Nobody receives events here.
    let (lives, _) = mpsc::channel(1);
    let link = match Link::open(&section.connection, lives) {
        Ok(link) => link,
        Err(error) => return with(found, format!("libvirt at {} cannot be used: {error}", section.connection)),
    };
    match link.call(|connect: &Connect| connect.lib_version().map_err(LinkError::from)).await {
        Ok(version) if version < OLDEST => {
            let why =
                format!("{}, but rouse needs 6.5.0, which can pass boot data in a file", answers(section, version));
            return with(found, why);
        }
        Ok(version) => found.insert(0, Finding::good(answers(section, version))),
        // Without an answer, further checks would fail too.
        Err(failed) => return with(found, failed.to_string()),
    }
    let mut networks = BTreeSet::new();
    for (worker, section) in &workers {
        match &section.xml {
            DomainXml::Builtin => drop(networks.insert(section.network.clone())),
            DomainXml::Text(text) => match xml::parse(text) {
                Ok(domain) => networks.extend(networks_of(&domain)),
                Err(why) => return with(found, format!("its XML is not well formed: {why}")),
            },
            DomainXml::Defined => match look::definition(&link, worker.as_str()).await {
                Ok(text) => networks.extend(xml::parse(&text).iter().flat_map(networks_of)),
                Err(error) => found.push(Finding::bad(error.text())),
            },
        }
    }
    let uri = section.connection.clone();
    let looked = link.call(move |connect| Ok::<_, LinkError>(look_at_networks(connect, &uri, &networks))).await;
    found.extend(looked.unwrap_or_else(|failed| vec![Finding::bad(failed.to_string())]));
    found
}

fn answers(section: &LibvirtConfig, version: u32) -> String {
    // As libvirt counts: 9000000 is 9.0.0.
    let (major, minor, micro) = (version / 1_000_000, version / 1_000 % 1_000, version % 1_000);
    format!("libvirt {major}.{minor}.{micro} answers at {}", section.connection)
}

/// The networks of libvirt's that a described domain is on.
fn networks_of(domain: &Element) -> Vec<String> {
    let cards = domain.get_child("devices").into_iter().flat_map(xml::elements).filter(|e| e.name == "interface");
    cards.filter_map(|card| xml::attribute(card, Some("source"), "network")).map(str::to_owned).collect()
}

fn look_at_networks(connect: &Connect, uri: &str, names: &BTreeSet<String>) -> Vec<Finding> {
    let look = |name: &String| {
        let network = match connect.lookup_network_by_name(name) {
            Ok(network) => network,
            Err(error) if code_of(&error) == ErrorNumber::NoNetwork => {
                let text = format!("there is no network {name} at {uri} (rouse libvirt-network prints one)");
                return Some(Finding::bad(text));
            }
            Err(error) => return Some(cannot_be_looked_at(name, &error)),
        };
        match network.is_active() {
            Ok(true) => {}
            Ok(false) => {
                return Some(Finding::bad(format!(
                    "the network {name} at {uri} is not active: virsh net-start {name}"
                )));
            }
            Err(error) => return Some(cannot_be_looked_at(name, &error)),
        }
        match network.xml_desc(0) {
            Ok(text) if has_spanning_tree(&text) => Some(Finding::good(format!(
                "the network {name} at {uri} keeps each guest without a network for its first four seconds, by the \
                 spanning tree protocol; where its bridge is in no loop: virsh net-edit {name}, <bridge stp='off' \
                 delay='0'>, and start it anew when no guest runs"
            ))),
            // Hosts can be started without it being read.
            Ok(_) | Err(_) => None,
        }
    };
    names.iter().filter_map(look).collect()
}

fn cannot_be_looked_at(name: &str, error: &virt::error::Error) -> Finding {
    Finding::bad(format!("the network {name} cannot be looked at: {}", error.message()))
}

/// Whether the bridge that libvirt has made for it speaks the spanning tree protocol: the kernel then listens and
/// learns for two seconds each, its least (`BR_MIN_FORWARD_DELAY`), before anything passes through a new port.
fn has_spanning_tree(network: &str) -> bool {
    let network = xml::parse(network).ok();
    network.is_some_and(|network| xml::attribute(&network, Some("bridge"), "stp") == Some("on"))
}

/// Looks at the images and at the places of the disks; what is on another machine cannot be seen from here.
async fn images(workers: &[(WorkerName, LibvirtConfig)]) -> Vec<Finding> {
    let sections: Vec<LibvirtConfig> = workers.iter().map(|(_, section)| section.clone()).collect();
    let look = move || {
        let mut found = Vec::new();
        let mut seen = BTreeSet::new();
        for section in &sections {
            if let Some(path) = machines::local_image(section).filter(|path| seen.insert(path.clone())) {
                found.push(match whole(&path, section) {
                    Ok(format) => Finding::good(format!("boots {} ({format})", path.display())),
                    Err(error) => Finding::bad(error.text()),
                });
            }
            let disk = section.hd_image.as_ref().filter(|_| section.base_image.is_some());
            found.extend(disk.and_then(|disk| disk::owners_of(disk).err()).map(|error| Finding::bad(error.text())));
        }
        found
    };
    tokio::task::spawn_blocking(look).await.unwrap_or_default()
}

/// The format of an image. A disk of the user's own is written to, and is the user's to look after.
fn whole(path: &Path, section: &LibvirtConfig) -> Result<&'static str, StartError> {
    if section.base_image.is_some() {
        let format = disk::look_at(path)?.format;
        disk::check(path, format)?;
        return Ok(format);
    }
    disk::find_own(path)?;
    // A description of the user's may say the format.
    match disk::doubt_about_own(path).filter(|_| section.xml == DomainXml::Builtin) {
        Some(doubt) => Err(StartError::Rejected(doubt)),
        None => Ok(disk::format_of_own(path)),
    }
}

fn with(mut found: Vec<Finding>, why: String) -> Vec<Finding> {
    found.push(Finding::bad(why));
    found
}
