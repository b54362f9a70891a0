//! Finds settings in the description of a libvirt domain that no two machines may share: hardware addresses, ports,
//! files. The output of `virsh dumpxml` contains such settings. For one worker they are right; a description that
//! several workers use must not contain them.
//!
//! This module reads only the parts of the description that it needs. If a description is not well formed, libvirt
//! itself refuses it with its own message.

use std::collections::BTreeMap;

/// Something that only one machine can have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::config) struct Fixed {
    /// What it is, with its article.
    pub(in crate::config) what: &'static str,
    /// Its value.
    pub(in crate::config) value: String,
    /// The line of the description, from 1.
    pub(in crate::config) line: usize,
}

/// An element.
#[derive(Default, Debug)]
struct Node {
    name: String,
    attributes: BTreeMap<String, String>,
    text: String,
    line: usize,
    children: Vec<Node>,
}

impl Node {
    fn get(&self, attribute: &str) -> Option<&str> {
        self.attributes.get(attribute).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn is(&self, attribute: &str, value: &str) -> bool {
        self.get(attribute) == Some(value)
    }

    fn all<'n>(&'n self, name: &'n str) -> impl Iterator<Item = &'n Node> {
        self.children.iter().filter(move |child| child.name == name)
    }

    fn child(&self, name: &str) -> Option<&Node> {
        self.children.iter().find(|child| child.name == name)
    }

    /// The attributes of this and all below, as one text.
    fn described(&self) -> String {
        let mut parts: Vec<String> = self.attributes.iter().map(|(key, value)| format!("{key}={value}")).collect();
        parts.extend(self.children.iter().map(Node::described).filter(|text| !text.is_empty()));
        parts.join(" ")
    }
}

/// What the description fixes. `disk` is the path that replaces the one disk that there is, if there is such a path.
pub(in crate::config) fn fixed(xml: &str, disk: Option<&str>) -> Vec<Fixed> {
    let mut found = Vec::new();
    let Some(domain) = parse(xml) else { return found };
    let mut put = |what: &'static str, value: Option<&str>, node: &Node| {
        if let Some(value) = value.map(str::trim).filter(|value| !value.is_empty()) {
            found.push(Fixed { what, value: value.to_owned(), line: node.line });
        }
    };
    for nvram in domain.child("os").into_iter().flat_map(|os| os.all("nvram")) {
        put("the nvram file", Some(&nvram.text), nvram);
        let source = nvram.child("source");
        put("the nvram file", source.and_then(|source| source.get("file")), source.unwrap_or(nvram));
    }
    for argument in domain.child("qemu:commandline").into_iter().flat_map(|line| line.all("qemu:arg")) {
        let fixes = |value: &&str| ["hostfwd=", "mac=", ",server", "file:"].iter().any(|part| value.contains(part));
        put("the QEMU argument", argument.get("value").filter(fixes), argument);
    }
    let Some(devices) = domain.child("devices") else { return found };
    let disks = devices.children.iter().filter(|node| node.name == "disk" && is_disk(node)).count();
    for device in &devices.children {
        match device.name.as_str() {
            "interface" => card(device, &mut put),
            "graphics" => graphics(device, &mut put),
            "serial" | "parallel" | "console" | "channel" | "redirdev" | "smartcard" => character(device, &mut put),
            "disk" if is_disk(device) => {
                let source = device.child("source");
                let path = source.and_then(|source| source.get("file"));
                // As the master puts its own in: the one of that name, or the only one.
                let is_ours = disk.is_some() && (path == disk || disks == 1);
                if let Some(source) = source.filter(|_| !is_ours) {
                    let path = path.or_else(|| source.get("dev")).or_else(|| source.get("name"));
                    put("the disk", path.or_else(|| source.get("volume")), source);
                }
            }
            "hostdev" => {
                let source = device.child("source");
                let described = source.map(Node::described);
                put("the host's device", described.as_deref(), source.unwrap_or(device));
            }
            "vsock" => {
                for cid in device.all("cid").filter(|cid| !cid.is("auto", "yes")) {
                    put("the vsock CID", cid.get("address"), cid);
                }
            }
            "tpm" => {
                for backend in device.all("backend") {
                    for place in backend.children.iter().filter(|c| matches!(c.name.as_str(), "device" | "source")) {
                        put("the TPM", place.get("path"), place);
                    }
                }
            }
            "memory" if device.child("readonly").is_none() => {
                for path in device.all("source").flat_map(|source| source.all("path")) {
                    put("the memory's file", Some(&path.text), path);
                }
            }
            _ => {}
        }
    }
    found
}

/// Whether a disk is written to by one machine alone.
fn is_disk(node: &Node) -> bool {
    let kind = node.get("device").unwrap_or("disk");
    let shared = ["readonly", "shareable", "transient"].iter().any(|mark| node.child(mark).is_some());
    matches!(kind, "disk" | "lun" | "floppy") && !shared
}

fn card(card: &Node, put: &mut impl FnMut(&'static str, Option<&str>, &Node)) {
    for mac in card.all("mac") {
        put("the hardware address", mac.get("address").map(str::to_ascii_lowercase).as_deref(), mac);
    }
    for target in card.all("target") {
        // Names that libvirt gives are in what it dumps, and are given again.
        let own = |name: &&str| !["vnet", "vif", "macvtap", "macvlan"].iter().any(|prefix| name.starts_with(prefix));
        put("the interface", target.get("dev").filter(own), target);
    }
    for parameters in card.all("virtualport").flat_map(|port| port.all("parameters")) {
        put("the interface id", parameters.get("interfaceid"), parameters);
    }
    for range in card.all("portForward").flat_map(|forward| forward.all("range")) {
        put("the forwarded port", range.get("start"), range);
    }
    for source in card.all("source") {
        if card.is("type", "hostdev") {
            put("the host's device", Some(&source.described()), source);
        }
        if source.is("mode", "server") {
            put("the socket", source.get("path"), source);
        }
    }
}

fn graphics(graphics: &Node, put: &mut impl FnMut(&'static str, Option<&str>, &Node)) {
    let number = |text: &&str| text.parse::<i64>().is_ok_and(|port| port > 0);
    // With autoport libvirt writes down the port that it has chosen, and chooses again.
    if !graphics.is("autoport", "yes") {
        put("the graphics port", graphics.get("port").filter(number), graphics);
        put("the graphics port", graphics.get("tlsPort").filter(number), graphics);
    }
    put("the websocket port", graphics.get("websocket").filter(number), graphics);
    put("the graphics socket", graphics.get("socket"), graphics);
    for listen in graphics.all("listen") {
        // Sockets of libvirt's own are below the domain's directory, and are named again.
        let own = |path: &&str| !path.contains("/domain-");
        put("the graphics socket", listen.get("socket").filter(own), listen);
    }
}

fn character(device: &Node, put: &mut impl FnMut(&'static str, Option<&str>, &Node)) {
    for log in device.all("log") {
        put("the log file", log.get("file"), log);
    }
    for source in device.all("source") {
        let path = source.get("path");
        match device.get("type").unwrap_or_default() {
            "file" => put("the output file", path, source),
            "dev" => put("the host's device", path, source),
            "pipe" => put("the pipe", path, source),
            // Sockets of libvirt's own, as above.
            "unix" if !source.is("mode", "connect") => {
                put("the socket", path.filter(|path| !path.contains("/domain-")), source);
            }
            "tcp" | "udp" if source.is("mode", "bind") => put("the port", source.get("service"), source),
            _ => {}
        }
    }
}

/// The root element; none if this is not XML.
fn parse(xml: &str) -> Option<Node> {
    let mut open: Vec<Node> = vec![Node::default()];
    let (mut rest, mut line) = (xml, 1);
    let skip = |rest: &mut &str, line: &mut usize, bytes: usize| {
        let (before, after) = rest.split_at_checked(bytes)?;
        *line += before.matches('\n').count();
        *rest = after;
        Some(before.to_owned())
    };
    while let Some(at) = rest.find('<') {
        let text = skip(&mut rest, &mut line, at)?;
        open.last_mut()?.text.push_str(&text);
        let marks = [("<!--", "-->"), ("<![CDATA[", "]]>"), ("<?", "?>"), ("<!", ">")];
        if let Some((_, end)) = marks.iter().find(|(mark, _)| rest.starts_with(mark)) {
            let length = rest.find(end)? + end.len();
            skip(&mut rest, &mut line, length)?;
            continue;
        }
        let begins = line;
        let length = tag_end(rest)?;
        let tag = skip(&mut rest, &mut line, length)?;
        let tag = tag.strip_prefix('<')?.strip_suffix('>')?;
        if tag.starts_with('/') {
            let node = open.pop()?;
            open.last_mut()?.children.push(node);
            continue;
        }
        let (tag, closed) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
        let node = element(tag, begins)?;
        if closed { open.last_mut()?.children.push(node) } else { open.push(node) }
    }
    let [document] = <[Node; 1]>::try_from(open).ok()?;
    document.children.into_iter().next()
}

/// The length of a tag: a `>` within an attribute does not end it.
fn tag_end(tag: &str) -> Option<usize> {
    let mut quote = None;
    for (at, c) in tag.char_indices() {
        match (c, quote) {
            ('\'' | '"', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            ('>', None) => return Some(at + 1),
            _ => {}
        }
    }
    None
}

fn element(tag: &str, line: usize) -> Option<Node> {
    let end = tag.find(char::is_whitespace).unwrap_or(tag.len());
    let (name, mut rest) = tag.split_at(end);
    let mut node = Node { name: name.to_owned(), line, ..Node::default() };
    while let Some((key, after)) = rest.split_once('=') {
        let after = after.trim_start();
        let quote = after.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
        let (value, after) = after[1..].split_once(quote)?;
        node.attributes.insert(key.trim().to_owned(), value.to_owned());
        rest = after;
    }
    Some(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(xml: &str, disk: Option<&str>) -> Vec<(&'static str, String, usize)> {
        fixed(xml, disk).into_iter().map(|f| (f.what, f.value, f.line)).collect()
    }

    fn devices(inner: &str) -> String {
        format!(
            "<?xml version='1.0'?>\n<!-- a\ncomment with <mac address='x'/> -->\n<domain>\n<devices>\n{inner}\n</devices></domain>"
        )
    }

    #[test]
    fn what_a_dump_fixes_is_found_with_its_line() {
        let xml = "<domain type='kvm' id='3'>\n  <name>t</name>\n  <uuid>u</uuid>\n  <os>\n    <nvram template='/t'>/var/t.fd</nvram>\n  \
                   </os>\n  <devices>\n    <interface type='network'>\n      <mac address='52:54:00:AA:bb:cc'/>\n      \
                   <target dev='vnet3'/>\n    </interface>\n    <graphics type='vnc' port='5901'\n              autoport='no'/>\n    \
                   <serial type='file'>\n      <source path='/var/log/t.log'/>\n      <log file='/var/log/u.log' append='on'/>\n    \
                   </serial>\n  </devices>\n</domain>\n";
        let expected = [
            ("the nvram file", "/var/t.fd", 5),
            ("the hardware address", "52:54:00:aa:bb:cc", 9),
            ("the graphics port", "5901", 12),
            ("the log file", "/var/log/u.log", 16),
            ("the output file", "/var/log/t.log", 15),
        ];
        assert_eq!(found(xml, None), expected.map(|(what, value, line)| (what, value.to_owned(), line)));
    }

    #[test]
    fn each_kind_is_known_and_what_libvirt_chooses_anew_is_not_meant() {
        for (inner, expected) in [
            (
                "<interface type='user'><portForward proto='tcp'><range start='2222' to='22'/></portForward></interface>",
                Some("the forwarded port"),
            ),
            ("<interface type='bridge'><target dev='tap-ci'/></interface>", Some("the interface")),
            (
                "<interface type='hostdev'><source><address type='pci' bus='1'/></source></interface>",
                Some("the host's device"),
            ),
            ("<graphics type='spice' autoport='no' port='-1' tlsPort='5902'/>", Some("the graphics port")),
            ("<graphics type='vnc' port='5900' autoport='yes'><listen type='address'/></graphics>", None),
            (
                "<graphics type='vnc'><listen type='socket' socket='/run/vnc.sock'/></graphics>",
                Some("the graphics socket"),
            ),
            ("<graphics type='vnc' port='-1' autoport='yes' websocket='5700'/>", Some("the websocket port")),
            ("<serial type='pty'><source path='/dev/pts/3'/></serial>", None),
            ("<serial type='tcp'><source mode='bind' host='127.0.0.1' service='4555'/></serial>", Some("the port")),
            ("<serial type='tcp'><source mode='connect' host='127.0.0.1' service='4555'/></serial>", None),
            ("<channel type='unix'><source mode='bind' path='/run/agent.sock'/></channel>", Some("the socket")),
            (
                "<channel type='unix'><source mode='bind' path='/var/lib/libvirt/qemu/channel/target/domain-3-t/org.qemu.guest_agent.0'/></channel>",
                None,
            ),
            ("<disk type='file' device='cdrom'><source file='/a.iso'/><readonly/></disk>", None),
            ("<disk type='file'><source file='/a.qcow2'/></disk>", Some("the disk")),
            ("<disk type='block' device='lun'><source dev='/dev/sdb'/></disk>", Some("the disk")),
            ("<disk type='file'><source file='/a.qcow2'/><shareable/></disk>", None),
            (
                "<hostdev mode='subsystem' type='mdev'><source><address uuid='u'/></source></hostdev>",
                Some("the host's device"),
            ),
            ("<vsock model='virtio'><cid auto='no' address='3'/></vsock>", Some("the vsock CID")),
            ("<vsock model='virtio'><cid auto='yes' address='3'/></vsock>", None),
            (
                "<tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>",
                Some("the TPM"),
            ),
            ("<memory model='nvdimm'><source><path>/nv</path></source></memory>", Some("the memory's file")),
        ] {
            assert_eq!(found(&devices(inner), None).first().map(|f| f.0), expected, "{inner}");
        }
        let arguments = "<domain xmlns:qemu='q'><qemu:commandline><qemu:arg value='-netdev'/>\
                         <qemu:arg value='user,id=n,hostfwd=tcp::2222-:22'/></qemu:commandline></domain>";
        assert_eq!(found(arguments, None).first().map(|f| f.0), Some("the QEMU argument"));
    }

    #[test]
    fn the_disk_that_the_master_puts_in_is_not_meant() {
        let one = devices("<disk type='file'><source file='/old.qcow2'/></disk>");
        assert_eq!(found(&one, Some("/new.qcow2")), []);
        let two = devices("<disk><source file='/new.qcow2'/></disk>\n<disk><source file='/data.qcow2'/></disk>");
        assert_eq!(found(&two, Some("/new.qcow2")), [("the disk", "/data.qcow2".to_owned(), 7)]);
    }

    #[test]
    fn what_is_no_xml_has_nothing() {
        for bad in [
            "",
            "hello",
            "<domain",
            "<domain>",
            "</domain>",
            "<a b=c/>",
            "<a b='",
            "<!--",
            "<domain><devices></domain>",
        ] {
            assert_eq!(found(bad, None), [], "{bad}");
        }
    }
}
