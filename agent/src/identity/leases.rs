//! The host names in the lease files of DHCP clients. The clients are often not allowed to set the host name
//! themselves.

use super::firmware::read_at_most;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Largest file of leases, bytes: dhclient appends to its own until it is restarted.
const MAX_LEASES: u64 = 1 << 20;
/// Largest number of files in one directory.
const MAX_FILES: usize = 64;
/// Directories of files with one lease each, as `KEY=VALUE` lines, and how the names of such files begin: of
/// systemd-networkd, our own, for scripts of udhcpc, and two of NetworkManager's own client.
const BY_LINES: [(&str, &str); 4] = [
    ("run/systemd/netif/leases", ""),
    ("run/rouse/leases", ""),
    ("run/NetworkManager/devices", ""),
    ("var/lib/NetworkManager", "internal-"),
];
/// What the address and the name are called there, by systemd and by NetworkManager's state of a device.
const ADDRESS: [&str; 2] = ["ADDRESS", "ip_address"];
const NAME: [&str; 2] = ["HOSTNAME", "host_name"];
/// Directories of dhclient's files, on Debian and Red Hat.
const OF_DHCLIENT: [&str; 3] = ["var/lib/dhcp", "var/lib/dhclient", "var/lib/NetworkManager"];

/// A lease.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Lease {
    address: Option<IpAddr>,
    name: Option<String>,
}

/// The names in leases of addresses that this machine has: a lease from a copied image or from an earlier network is
/// for another address.
pub(super) fn names(root: &Path, addresses: &[IpAddr]) -> Vec<String> {
    let by_lines = BY_LINES.iter().flat_map(|(dir, prefix)| files(&root.join(dir), |name| name.starts_with(prefix)));
    let by_lines = by_lines.map(|text| lease_in_lines(&text));
    let of_dhclient = OF_DHCLIENT.iter().flat_map(|dir| {
        let texts = files(&root.join(dir), |name| name.starts_with("dhclient") && name.contains(".lease"));
        texts.into_iter().flat_map(|text| {
            // The newest is the last.
            let mut leases = leases_in_blocks(&text);
            leases.reverse();
            leases
        })
    });
    let current = by_lines.chain(of_dhclient).filter(|lease| lease.address.is_some_and(|a| addresses.contains(&a)));
    current.filter_map(|lease| lease.name).collect()
}

/// The contents of a directory's files, in order of their names.
fn files(dir: &Path, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| entry.ok().map(|e| e.path())).collect();
    paths.retain(|path| path.is_file() && path.file_name().and_then(|n| n.to_str()).is_some_and(&wanted));
    paths.sort();
    paths.truncate(MAX_FILES);
    let texts = paths.iter().filter_map(|path| read_at_most(path, MAX_LEASES).ok());
    texts.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).collect()
}

fn lease_in_lines(text: &str) -> Lease {
    let value = |keys: [&str; 2]| {
        let mut pairs = text.lines().filter_map(|line| line.split_once('='));
        let (_, value) = pairs.find(|(key, _)| keys.contains(key))?;
        Some(value.trim().trim_matches(['"', '\'']).to_owned())
    };
    Lease { address: value(ADDRESS).and_then(|a| a.parse().ok()), name: value(NAME) }
}

/// The leases in dhclient's format: `lease { fixed-address 192.0.2.7; option host-name "minion1"; … }`.
fn leases_in_blocks(text: &str) -> Vec<Lease> {
    let mut leases = Vec::new();
    let mut open: Option<Lease> = None;
    for line in text.lines().map(str::trim) {
        if line.starts_with("lease") && line.ends_with('{') {
            open = Some(Lease::default());
        } else if line == "}" {
            leases.extend(open.take());
        } else if let Some(lease) = &mut open {
            let Some(statement) = line.strip_suffix(';') else { continue };
            if let Some(address) = statement.strip_prefix("fixed-address ") {
                lease.address = address.trim().parse().ok();
            } else if let Some(name) = statement.strip_prefix("option host-name ") {
                lease.name = Some(name.trim().trim_matches('"').to_owned());
            }
        }
    }
    leases
}

/// The addresses that this machine has now.
pub(super) fn addresses() -> Vec<IpAddr> {
    let mut found = Vec::new();
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: `list` is a valid place for the head of the list.
    if unsafe { libc::getifaddrs(&raw mut list) } != 0 {
        return found;
    }
    let mut entry = list;
    // SAFETY: the list is valid until it is freed, and each entry is null or valid.
    while let Some(interface) = unsafe { entry.as_ref() } {
        entry = interface.ifa_next;
        if interface.ifa_addr.is_null() {
            continue;
        }
        // SAFETY: not null, and every socket address begins with its family, which determines the type.
        unsafe {
            match i32::from((*interface.ifa_addr).sa_family) {
                libc::AF_INET => {
                    let address = interface.ifa_addr.cast::<libc::sockaddr_in>().read_unaligned();
                    found.push(IpAddr::from(address.sin_addr.s_addr.to_ne_bytes()));
                }
                libc::AF_INET6 => {
                    let address = interface.ifa_addr.cast::<libc::sockaddr_in6>().read_unaligned();
                    found.push(IpAddr::from(address.sin6_addr.s6_addr));
                }
                _ => {}
            }
        }
    }
    // SAFETY: the list is from getifaddrs, and nothing refers to it any more.
    unsafe { libc::freeifaddrs(list) };
    found
}

#[cfg(test)]
mod tests {
    use super::super::firmware::tests::machine;
    use super::*;

    const DHCLIENT: &str = "default-duid \"\\000\\001\";\nlease {\n  interface \"eth0\";\n  fixed-address 192.0.2.7;\n  \
        option subnet-mask 255.255.255.0;\n  option host-name \"old\";\n  renew 2 2026/01/06 10:00:00;\n}\n\
        lease {\n  interface \"eth0\";\n  fixed-address 192.0.2.7;\n  option host-name \"minion1\";\n}\n\
        lease {\n  interface \"eth0\";\n  fixed-address 192.0.2.99;\n  option host-name \"elsewhere\";\n}\n";

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let files: Vec<_> = files.iter().map(|(path, text)| (*path, text.as_bytes())).collect();
        names(machine(&files).path(), &["192.0.2.7".parse().expect("an address")])
    }

    #[test]
    fn the_newest_lease_of_an_address_that_is_ours_counts() {
        let networkd = "# This is private data. Do not parse.\nADDRESS=192.0.2.7\nHOSTNAME=minion1\n";
        assert_eq!(found(&[("run/systemd/netif/leases/2", networkd)]), ["minion1"]);
        assert_eq!(found(&[("run/rouse/leases/eth0", "ADDRESS='192.0.2.7'\nHOSTNAME=\"minion1\"\n")]), ["minion1"]);
        assert_eq!(found(&[("var/lib/dhcp/dhclient.eth0.leases", DHCLIENT)])[0], "minion1");
        assert_eq!(found(&[("var/lib/NetworkManager/dhclient-0-eth0.lease", DHCLIENT)])[0], "minion1");
        assert_eq!(found(&[("var/lib/NetworkManager/internal-4c1e-eth0.lease", networkd)]), ["minion1"]);
        let device = "[device]\nmanaged=true\n\n[dhcp4]\nhost_name=minion1\nip_address=192.0.2.7\n";
        assert_eq!(found(&[("run/NetworkManager/devices/2", device)]), ["minion1"]);
        let elsewhere = networkd.replace("0.2.7", "0.2.8");
        let nameless = "ADDRESS=192.0.2.7\n";
        for (path, text) in [
            ("run/systemd/netif/leases/2", elsewhere.as_str()),
            ("run/systemd/netif/leases/2", nameless),
            ("var/lib/NetworkManager/internal-4c1e-eth0.lease", elsewhere.as_str()),
            ("var/lib/NetworkManager/timestamps", networkd),
            ("run/systemd/netif/leases/2", "HOSTNAME=minion1\n"),
            ("var/lib/dhcp/dhcpd.leases", DHCLIENT),
            ("var/lib/dhcp/dhclient.leases", &DHCLIENT[..200]),
            ("var/lib/dhcp/dhclient.leases", "}\n}\nlease {\nlease {\noption host-name ;\n"),
        ] {
            assert!(!found(&[(path, text)]).contains(&"minion1".to_owned()), "{path}: {text}");
        }
        assert!(found(&[]).is_empty());
    }

    #[test]
    fn this_machine_has_a_loopback() {
        assert!(addresses().contains(&"127.0.0.1".parse().expect("an address")));
    }
}
