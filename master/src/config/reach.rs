//! Who can reach an address of this machine: programs on it and its guests, or other machines.

use rouse_shared::broker_url::is_loopback;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

/// The kernel's directory of network interfaces.
const INTERFACES: &str = "/sys/class/net";

/// Who can send to an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reach {
    /// Programs on this machine.
    Loopback,
    /// Guests and containers of this machine too: a bridge has the address, and none of its ports leads elsewhere.
    OwnBridge,
    /// Other machines.
    Network,
    /// No interface has the address, or not yet.
    Unknown,
}

impl Reach {
    /// Of an address, as this machine is now.
    pub(super) fn of(ip: IpAddr) -> Self {
        if ip.to_canonical().is_loopback() {
            return Self::Loopback;
        }
        // If the interfaces cannot be listed, nothing is known of them.
        let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
        let interfaces: Vec<_> = interfaces.into_iter().map(|interface| (interface.ip(), interface.name)).collect();
        judge(ip, &interfaces, Path::new(INTERFACES))
    }

    /// Whether what is sent there may cross a network.
    pub(super) fn leads_elsewhere(self) -> bool {
        matches!(self, Self::Network | Self::Unknown)
    }
}

/// Whether a host, by its name or address, is another machine, as far as this one can tell.
pub(super) fn is_elsewhere(host: &str) -> bool {
    match host.parse::<IpAddr>() {
        Ok(ip) => Reach::of(ip).leads_elsewhere(),
        Err(_) => !is_loopback(host),
    }
}

fn judge(ip: IpAddr, interfaces: &[(IpAddr, String)], sys: &Path) -> Reach {
    if ip.is_unspecified() {
        return Reach::Network;
    }
    match interfaces.iter().find(|(address, _)| *address == ip) {
        None => Reach::Unknown,
        Some((_, name)) if is_own_bridge(&sys.join(name)) => Reach::OwnBridge,
        Some(_) => Reach::Network,
    }
}

/// Whether it is a bridge, all of whose ports lead to guests and containers of this machine.
fn is_own_bridge(interface: &Path) -> bool {
    let Ok(mut ports) = fs::read_dir(interface.join("brif")) else { return false };
    ports.all(|port| port.is_ok_and(|port| is_own_port(&port.path())))
}

/// Whether a port of a bridge is a tap device, one end of a veth pair, or a dummy. Each of these has no device of the
/// bus, is stacked on no other interface and says no type; VLANs, bonds, tunnels and wireless devices say theirs.
fn is_own_port(port: &Path) -> bool {
    // What is in brif/ are links to attributes of the port; the interface itself is behind another.
    let interface = port.parent().and_then(Path::parent).and_then(Path::parent);
    let (Some(sys), Some(name)) = (interface, port.file_name()) else { return false };
    let port = sys.join(name);
    if port.join("tun_flags").exists() {
        return true;
    }
    let Ok(entries) = fs::read_dir(&port) else { return false };
    let names = |entry: std::io::Result<fs::DirEntry>| entry.map(|e| e.file_name().to_string_lossy().into_owned());
    let Ok(entries) = entries.map(names).collect::<Result<Vec<_>, _>>() else { return false };
    let stacked = entries.iter().any(|name| name == "device" || name.starts_with("lower_"));
    let of_a_type = fs::read_to_string(port.join("uevent")).map_or(true, |text| text.contains("DEVTYPE="));
    // A tunnel that is bound to no interface says 0 here.
    let tunnel = fs::read_to_string(port.join("iflink")).map_or(true, |text| text.trim() == "0");
    !stacked && !of_a_type && !tunnel
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_a_bridge_without_a_way_out_is_the_machines_own() {
        let sys = tempfile::tempdir().unwrap();
        let interface = |name: &str, files: &[(&str, &str)]| {
            let dir = sys.path().join(name);
            fs::create_dir_all(&dir).unwrap();
            for (file, text) in [("uevent", "INTERFACE=x\n"), ("iflink", "7\n")].iter().chain(files) {
                fs::write(dir.join(file), text).unwrap();
            }
        };
        interface("eth0", &[("device", "")]);
        interface("vnet0", &[("tun_flags", "0x1002")]);
        interface("veth1", &[]);
        interface("dummy0", &[]);
        interface("eth0.7", &[("uevent", "DEVTYPE=vlan\n"), ("lower_eth0", "")]);
        interface("bond0", &[("uevent", "DEVTYPE=bond\n")]);
        interface("vxlan0", &[("uevent", "DEVTYPE=vxlan\n")]);
        interface("macvlan0", &[("lower_eth0", "")]);
        interface("gretap0", &[("iflink", "0\n")]);
        let ip: IpAddr = "192.0.2.1".parse().unwrap();
        let of = |name: &str| judge(ip, &[(ip, name.to_owned())], sys.path());
        let bridge = |ports: &[&str]| {
            let brif = sys.path().join("br0/brif");
            fs::remove_dir_all(&brif).ok();
            for port in ports {
                fs::create_dir_all(brif.join(port)).unwrap();
            }
            fs::create_dir_all(&brif).unwrap();
            of("br0")
        };
        assert_eq!(bridge(&[]), Reach::OwnBridge);
        assert_eq!(bridge(&["vnet0", "veth1", "dummy0"]), Reach::OwnBridge);
        for way_out in ["eth0", "eth0.7", "bond0", "vxlan0", "macvlan0", "gretap0", "gone"] {
            assert_eq!(bridge(&["vnet0", way_out]), Reach::Network, "{way_out}");
        }
        // Within a container, one end of a veth pair is the way out.
        for plain in ["eth0", "veth1", "vnet0", "bond0"] {
            assert_eq!(of(plain), Reach::Network, "{plain}");
        }
        assert_eq!(judge(ip, &[], sys.path()), Reach::Unknown);
        for every in ["0.0.0.0", "::"] {
            assert_eq!(judge(every.parse().unwrap(), &[], sys.path()), Reach::Network);
        }
        for loopback in ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(Reach::of(loopback.parse().unwrap()), Reach::Loopback);
        }
    }
}
