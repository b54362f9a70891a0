//! How a built-in guest is kept apart from the other guests of its network, as far as the network allows it.

use super::link::{Link, LinkError, code_of};
use super::xml;
use virt::connect::Connect;
use virt::error::ErrorNumber;
use xmltree::Element;

/// libvirt's own filter against frames with another guest's addresses.
const FILTER: &str = "clean-traffic";

/// What is set on a guest's network card.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Apart {
    /// Whether the port of its bridge is isolated: it exchanges no frames with other isolated ports.
    pub isolated: bool,
    /// The only address that it may send from. libvirt's filter sees to it.
    pub address: Option<String>,
}

impl Apart {
    /// Finds out what the network `name` allows for a guest with the hardware address `mac`. Nothing if there is no such
    /// network: then the start of the guest says so.
    ///
    /// # Errors
    /// If libvirt does not describe the network.
    pub async fn of(link: &Link, name: &str, mac: &str) -> Result<Self, LinkError> {
        let (name, mac) = (name.to_owned(), mac.to_owned());
        link.call(move |connect: &Connect| {
            let network = match connect.lookup_network_by_name(&name) {
                Err(error) if code_of(&error) == ErrorNumber::NoNetwork => return Ok(Self::default()),
                other => other?,
            };
            // Neither every installation nor a user's own libvirt (qemu:///session) has the filter.
            let has_filter = connect.lookup_nwfilter_by_name(FILTER).is_ok();
            let network = xml::parse(&network.xml_desc(0)?).ok();
            Ok(network.map(|network| Self::on(&network, &mac, has_filter)).unwrap_or_default())
        })
        .await
    }

    /// What a described network allows.
    fn on(network: &Element, mac: &str, has_filter: bool) -> Self {
        let isolated = is_bridge(network);
        // The filter lets through IPv4 and ARP only, and must know the address before the guest chooses one.
        let ips = || xml::elements(network).filter(|e| e.name == "ip");
        let has_ipv6 = ips().any(|ip| xml::attribute(ip, None, "family") == Some("ipv6"));
        let hosts = ips().filter_map(|ip| ip.get_child("dhcp")).flat_map(xml::elements).filter(|e| e.name == "host");
        let is_this = |host: &&Element| xml::attribute(host, None, "mac").is_some_and(|m| m.eq_ignore_ascii_case(mac));
        let address = hosts.into_iter().find(is_this).and_then(|host| xml::attribute(host, None, "ip"));
        let address = address.filter(|_| isolated && has_filter && !has_ipv6).map(str::to_owned);
        Self { isolated, address }
    }

    /// The elements of the network card.
    pub fn elements(&self) -> Vec<Element> {
        let mut found = Vec::new();
        if self.isolated {
            found.push(xml::element("port", &[("isolated", "yes")]));
        }
        if let Some(address) = &self.address {
            let mut filter = xml::element("filterref", &[("filter", FILTER)]);
            xml::push(&mut filter, xml::element("parameter", &[("name", "IP"), ("value", address)]));
            found.push(filter);
        }
        found
    }
}

/// Whether its guests are on a Linux bridge: libvirt refuses isolated ports on others.
fn is_bridge(network: &Element) -> bool {
    let is_ovs = xml::attribute(network, Some("virtualport"), "type").is_some();
    match xml::attribute(network, Some("forward"), "mode") {
        // libvirt's own bridge. Without a mode it is NAT, without `forward` there is no way out.
        Some("nat" | "route" | "open") => true,
        None => true,
        // A bridge of the machine's, unless it is an interface whose guests have macvtap devices.
        Some("bridge") => network.get_child("bridge").is_some() && !is_ovs,
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_a_network_allows_is_used() {
        let mac = "52:00:00:00:00:0a";
        let dhcp = "<dhcp><range start='10.150.32.0' end='10.150.63.254'/><host mac='52:00:00:00:00:0b' ip='10.150.0.8'/>\
                    <host mac='52:00:00:00:00:0A' name='w' ip='10.150.0.7'/></dhcp>";
        let ip = format!("<ip address='10.150.0.1' netmask='255.255.192.0'>{dhcp}</ip>");
        let own =
            |forward: &str, more: &str| format!("<network><name>n</name>{forward}<bridge name='b'/>{more}</network>");
        let (both, port, none) = ((true, Some("10.150.0.7")), (true, None), (false, None));
        for (text, has_filter, expected) in [
            (own("<forward mode='nat'/>", &ip), true, both),
            (own("", &ip), true, both),
            (own("<forward/>", &ip), true, both),
            (own("<forward mode='nat'/>", &ip), false, port),
            // An address that the guest chooses, or IPv6, which the filter would drop.
            (own("<forward mode='route'/>", "<ip address='10.150.0.1' netmask='255.255.192.0'/>"), true, port),
            (
                own("<forward mode='open'/>", &format!("{ip}<ip family='ipv6' address='fd00::1' prefix='64'/>")),
                true,
                port,
            ),
            (own("<forward mode='bridge'/>", ""), true, port),
            (own("<forward mode='bridge'/>", "<virtualport type='openvswitch'/>"), true, none),
            ("<network><forward mode='bridge'><interface dev='eth0'/></forward></network>".to_owned(), true, none),
            ("<network><forward mode='private'><interface dev='eth0'/></forward></network>".to_owned(), true, none),
            ("<network><forward mode='hostdev'/></network>".to_owned(), true, none),
        ] {
            let apart = Apart::on(&xml::parse(&text).unwrap(), mac, has_filter);
            assert_eq!((apart.isolated, apart.address.as_deref()), expected, "{text}");
        }
    }
}
