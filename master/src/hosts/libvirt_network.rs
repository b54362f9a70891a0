//! The libvirt network that gives each worker its name: `rouse libvirt-network`.

use crate::config::{Config, LibvirtConfig, hosts::DomainXml};
use rouse_shared::WorkerName;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// The network as an operator may copy it, without any worker.
const TEMPLATE: &str = include_str!("../../../contrib/libvirt/network.xml");
/// The workers are inserted here.
const PLACE: &str = "      <!-- workers -->\n";

/// Number of addresses for workers: from 10.150.0.2 to 10.150.31.255.
const PLACES: u16 = 32 * 256 - 2;

/// The hardware address of a worker's virtual machines. It follows from the name, and is locally administered.
pub fn mac_of(worker: &WorkerName) -> String {
    let hash: [u8; 32] = Sha256::digest(format!("rouse mac {worker}").as_bytes()).into();
    let [a, b, c, d, e, ..] = hash;
    format!("52:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}")
}

/// An address for a worker. It follows from the name, unless another worker already has it.
fn ip_of(worker: &WorkerName, taken: &mut BTreeSet<u16>) -> Option<Ipv4Addr> {
    let hash: [u8; 32] = Sha256::digest(format!("rouse ip {worker}").as_bytes()).into();
    let first = u16::from_be_bytes([hash[0], hash[1]]) % PLACES;
    let place = (0..PLACES).map(|step| (first + step) % PLACES).find(|place| !taken.contains(place))?;
    taken.insert(place);
    // 10.150.0.1 is the bridge.
    let [high, low] = (place + 2).to_be_bytes();
    Some(Ipv4Addr::new(10, 150, high, low))
}

/// The network `name` with a DHCP name for each worker of the configuration whose machine is on it. Without a name: the
/// network that all of them are on.
///
/// # Errors
/// If there is no such worker or network: a sentence.
pub fn network(config: &Config, name: Option<&str>) -> Result<String, String> {
    let workers: Vec<(&WorkerName, &LibvirtConfig)> = config.sections().collect();
    let networks: BTreeSet<&str> = workers.iter().map(|(_, libvirt)| libvirt.network.as_str()).collect();
    let all = || networks.iter().copied().collect::<Vec<_>>().join(", ");
    let name = match (name, networks.len()) {
        (_, 0) => return Err("the configuration has no libvirt worker".to_owned()),
        (Some(name), _) if networks.contains(name) => name,
        (Some(name), _) => return Err(format!("no libvirt worker is on a network {name}; they are on {}", all())),
        (None, 1) => networks.first().copied().unwrap_or_default(),
        (None, _) => return Err(format!("the libvirt workers are on {}: use --network", all())),
    };
    let here = workers.iter().filter(|(_, libvirt)| libvirt.network == name);
    let mut hosts = String::new();
    let mut taken = BTreeSet::new();
    for (worker, libvirt) in here {
        let ip =
            ip_of(worker, &mut taken).ok_or_else(|| format!("there are too many workers for one network: {PLACES}"))?;
        let line = match &libvirt.xml {
            DomainXml::Builtin | DomainXml::Text(_) => {
                format!("<host mac='{}' name='{worker}' ip='{ip}'/>", mac_of(worker))
            }
            DomainXml::Defined => {
                format!("<!-- <host mac='(virsh domiflist {worker})' name='{worker}' ip='{ip}'/> -->")
            }
        };
        hosts.push_str(&format!("      {line}\n"));
    }
    let named = TEMPLATE.replace("<name>rouse</name>", &format!("<name>{}</name>", escaped(name)));
    Ok(named.replace(PLACE, &hosts))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::path::Path;

    fn config(workers: &str) -> Config {
        Config::parse(workers, Path::new("/nonexistent/rouse.toml")).unwrap()
    }

    fn worker(name: &str, more: &str) -> String {
        format!(
            "[[worker]]\nname = \"{name}\"\npassword = \"x\"\n[worker.libvirt]\nconnection = \"qemu:///system\"\n{more}\n"
        )
    }

    #[test]
    fn each_worker_has_its_name_and_keeps_its_address() {
        let builtin = "xml = \"builtin\"\nhd_image = \"/srv/{name}.qcow2\"\nnetwork = \"rouse\"";
        let text = network(&config(&worker("w-{1..2}", builtin)), None).unwrap();
        assert!(text.contains("      <host mac='52:8c:55:a5:a8:7b' name='w-1' ip='10.150."), "{text}");
        assert!(text.contains("<name>rouse</name>") && !text.contains(PLACE));
        let both = config(&(worker("w-1", builtin) + &worker("own", "network = \"lan\"")));
        let lan = network(&both, Some("lan")).unwrap();
        assert!(lan.contains("<name>lan</name>") && lan.contains("virsh domiflist own"), "{lan}");
        assert!(network(&both, None).unwrap_err().contains("lan, rouse"));
        assert!(network(&both, Some("x")).unwrap_err().contains("lan, rouse"));
        assert!(network(&config(""), None).is_err());
    }

    #[test]
    fn no_two_have_one_address() {
        let mut taken = BTreeSet::new();
        let name = |n: u16| format!("w-{n}").parse::<WorkerName>().unwrap();
        let all: BTreeSet<Ipv4Addr> = (0..PLACES).filter_map(|n| ip_of(&name(n), &mut taken)).collect();
        assert_eq!(all.len(), usize::from(PLACES));
        assert!(
            *all.first().unwrap() == Ipv4Addr::new(10, 150, 0, 2)
                && *all.last().unwrap() < Ipv4Addr::new(10, 150, 32, 0)
        );
        assert_eq!(ip_of(&name(0), &mut taken), None);
        assert_eq!(ip_of(&name(0), &mut BTreeSet::new()), ip_of(&name(0), &mut BTreeSet::new()));
    }

    #[test]
    fn the_template_has_a_place_for_them() {
        assert_eq!(TEMPLATE.matches(PLACE).count(), 1);
        assert_eq!(TEMPLATE.matches("<name>rouse</name>").count(), 1);
    }
}
