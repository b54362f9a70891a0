//! Descriptions and disks, without libvirt.
#![allow(clippy::unwrap_used)]

use super::disk::{self, Format, NewDisk};
use super::domain::{self, Disk, Machine, NAMESPACE, OwnerTag, Wanted};
use super::network::Apart;
use super::{uuid_of, xml};
use crate::core::event::StartError;
use rouse_shared::HostId;
use std::path::{Path, PathBuf};
use std::process::Command;
use xmltree::Element;

fn tag() -> OwnerTag {
    OwnerTag {
        master: "ci".to_owned(),
        id: "0123".to_owned(),
        host: "h1".to_owned(),
        uuid: uuid_of("ci/0123", &HostId("h1".to_owned())),
        has_disk: true,
    }
}

fn patched(description: &str, disk: Disk<'_>) -> Result<(Element, Format), String> {
    let tag = tag();
    let boot_file = Path::new("/var/lib/rouse/h1.boot");
    let wanted = Wanted {
        name: "w",
        uuid: Some(&tag.uuid),
        mac: "52:00:00:00:00:01",
        tag: &tag,
        boot_file,
        console: Some(Path::new("/var/lib/rouse/h1.console")),
        disk,
    };
    let mut described = xml::parse(description)?;
    let form = domain::patch(&mut described, &wanted)?;
    // As libvirt reads it.
    Ok((xml::parse(&xml::to_text(&described))?, form))
}

fn at<'a>(root: &'a Element, path: &str) -> &'a Element {
    path.split('/').fold(root, |e, name| e.get_child(name).unwrap_or_else(|| panic!("no {name} of {path}")))
}

fn fresh() -> Disk<'static> {
    Disk::Fresh(Path::new("/srv/w.qcow2"), false)
}

#[test]
fn the_owner_tag_survives_being_written_and_read() {
    let (domain, form) = patched("<domain/>", fresh()).unwrap();
    let found = at(&domain, "metadata/host");
    assert_eq!(found.namespace.as_deref(), Some(NAMESPACE));
    assert_eq!(OwnerTag::read(&xml::to_text(found)), Some(tag()));
    assert_eq!(form, Format::Overlay);
    assert_eq!(OwnerTag::read("<host master='ci'/>"), None);
    let with_host = |host: &str| format!("<host master='ci' id='0123' uuid='u' host='{host}'/>");
    assert!(OwnerTag::read(&with_host("h1")).is_some_and(|tag| !tag.has_disk));
    // Files are named after it.
    for bad in ["", "../h1", "h1/x", "h1.console"] {
        assert_eq!(OwnerTag::read(&with_host(bad)), None, "{bad}");
    }
    assert_eq!(OwnerTag::read("no"), None);
}

#[test]
fn a_builtin_machine_gets_all_that_it_lacks() {
    let apart = Apart { isolated: true, address: Some("10.150.0.7".to_owned()) };
    let machine = domain::builtin(&Machine { kvm: false, memory_mb: 512, cpus: 3, network: "a'<&", apart: &apart });
    let (domain, _) = patched(&xml::to_text(&machine), fresh()).unwrap();
    assert_eq!(xml::text_of(&domain, "name").as_deref(), Some("w"));
    assert_eq!(xml::text_of(&domain, "uuid"), Some(tag().uuid));
    assert_eq!(xml::text_of(&domain, "vcpu").as_deref(), Some("3"));
    assert_eq!(super::look::memory_of(&domain), 512);
    let devices = at(&domain, "devices");
    assert_eq!(xml::attribute(at(devices, "disk"), Some("source"), "file"), Some("/srv/w.qcow2"));
    assert_eq!(xml::attribute(at(devices, "disk"), Some("driver"), "cache"), Some("unsafe"));
    assert_eq!(xml::attribute(at(devices, "interface"), Some("mac"), "address"), Some("52:00:00:00:00:01"));
    assert_eq!(xml::attribute(at(devices, "interface"), Some("source"), "network"), Some("a'<&"));
    assert_eq!(xml::attribute(at(devices, "interface"), Some("port"), "isolated"), Some("yes"));
    assert_eq!(xml::attribute(at(devices, "interface/filterref"), None, "filter"), Some("clean-traffic"));
    assert_eq!(xml::attribute(at(devices, "interface/filterref"), Some("parameter"), "value"), Some("10.150.0.7"));
    assert_eq!(xml::attribute(at(devices, "serial"), Some("log"), "file"), Some("/var/lib/rouse/h1.console"));
    let sysinfo = at(&domain, "sysinfo");
    assert_eq!(xml::attribute(sysinfo, None, "type"), Some("fwcfg"));
    assert_eq!(xml::attribute(sysinfo, Some("entry"), "name"), Some("opt/rouse/boot"));
    assert_eq!(xml::attribute(sysinfo, Some("entry"), "file"), Some("/var/lib/rouse/h1.boot"));
}

#[test]
fn what_the_user_wrote_stays() {
    let own = "<domain type='kvm' id='7' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\
        <name>other</name><uuid>00000000-0000-0000-0000-000000000001</uuid><memory unit='GiB'>2</memory>\
        <metadata><my:note xmlns:my='urn:mine'>keep</my:note></metadata>\
        <os><type>hvm</type><smbios mode='host'/></os>\
        <sysinfo type='smbios'><system><entry name='uuid'>x</entry><entry name='serial'>s</entry></system>\
        <oemStrings><entry>mine</entry></oemStrings></sysinfo>\
        <sysinfo type='fwcfg'><entry name='opt/mine'>m</entry><entry name='opt/rouse/boot'>old</entry></sysinfo>\
        <devices><disk device='cdrom'><source file='/srv/cd.iso'/></disk>\
        <disk device='disk'><driver name='qemu' type='qcow2' cache='none'/><source file='/srv/w.qcow2'/>\
        <target dev='sda' bus='sata'/></disk><disk><source file='/srv/data.raw'/></disk>\
        <interface type='bridge'><mac address='52:54:00:00:00:07'/></interface></devices>\
        <qemu:commandline><qemu:arg value='-S'/></qemu:commandline></domain>";
    let (domain, _) = patched(own, fresh()).unwrap();
    assert_eq!(xml::text_of(&domain, "name").as_deref(), Some("w"));
    assert_eq!(domain.attributes.get("id"), None);
    assert_eq!(super::look::memory_of(&domain), 2048);
    let text = xml::to_text(&domain);
    for kept in [
        "urn:mine",
        "52:54:00:00:00:07",
        "<entry>mine</entry>",
        "opt/mine",
        "mode=\"host\"",
        "cache=\"none\"",
        "/srv/cd.iso",
        "/srv/data.raw",
    ] {
        assert!(text.contains(kept), "{kept} of {text}");
    }
    assert!(text.contains("qemu:commandline") && text.contains("-S"), "{text}");
    assert!(
        text.contains("h1.boot") && !text.contains(">old<") && text.matches("type=\"fwcfg\"").count() == 1,
        "{text}"
    );
    assert!(!text.contains("52:00:00:00:00:01") && !text.contains("name=\"uuid\"") && text.contains("name=\"serial\""));
}

#[test]
fn the_disk_is_found_or_the_user_is_asked() {
    let with = |disks: &str| format!("<domain><devices>{disks}</devices></domain>");
    let one = with("<disk device='disk'><driver type='raw'/><source file='/srv/old.img'/><target dev='vda'/></disk>");
    let (domain, form) = patched(&one, fresh()).unwrap();
    let disk = at(&domain, "devices/disk");
    assert_eq!(xml::attribute(disk, Some("source"), "file"), Some("/srv/w.qcow2"));
    assert_eq!((xml::attribute(disk, Some("driver"), "type"), form), (Some("qcow2"), Format::Overlay));
    // A machine that wants its disk raw gets a copy of a raw base.
    let (domain, form) = patched(&one, Disk::Fresh(Path::new("/srv/w.img"), true)).unwrap();
    let disk = at(&domain, "devices/disk");
    assert_eq!((xml::attribute(disk, Some("driver"), "type"), form), (Some("raw"), Format::Copy));
    let two = with("<disk><source file='/a'/></disk><disk><source file='/b'/></disk>");
    assert!(patched(&two, fresh()).unwrap_err().contains("2 disks"));
    let (domain, _) = patched(&two, Disk::AsDescribed).unwrap();
    assert_eq!(xml::elements(at(&domain, "devices")).filter(|e| e.name == "disk").count(), 2);
    assert!(patched("<network/>", fresh()).unwrap_err().contains("network"));
}

#[test]
fn a_guest_does_not_choose_the_format_of_its_own_disk() {
    let place = Place::new();
    // Root in the guest has made it a qcow2 image that is backed by a file of the machine.
    let raw = place.at("own.img");
    std::fs::copy(place.at("base.qcow2"), &raw).unwrap();
    let config = |disk: &Path| {
        let text = format!(
            "[[worker]]\nname = \"w\"\npassword = \"x\"\n[worker.libvirt]\nconnection = \"qemu:///system\"\n\
             hd_image = \"{}\"\nxml = \"builtin\"\n",
            disk.display()
        );
        let config = crate::config::Config::parse(&text, Path::new("/nonexistent/rouse.toml")).unwrap();
        super::sections(&config).into_values().next().unwrap()
    };
    let format = |disk: &Path, description: &str| {
        let config = config(disk);
        let (domain, _) = patched(description, super::disk_of(&config, &None)).unwrap();
        xml::attribute(at(&domain, "devices/disk"), Some("driver"), "type").map(str::to_owned)
    };
    assert_eq!(format(&raw, "<domain/>").as_deref(), Some("raw"));
    assert_eq!(format(&place.at("own.raw"), "<domain/>").as_deref(), Some("raw"));
    assert_eq!(format(&place.at("own"), "<domain/>").as_deref(), Some("raw"));
    assert_eq!(format(&place.at("base.qcow2"), "<domain/>").as_deref(), Some("qcow2"));
    let said = "<domain><devices><disk device='disk'><driver name='qemu' type='qcow2'/><target dev='vda'/></disk></devices></domain>";
    assert_eq!(format(&raw, said).as_deref(), Some("qcow2"), "the user has said it");
    assert_eq!(format(&place.at("base.qcow2"), &said.replace("qcow2", "raw")).as_deref(), Some("qcow2"));
    // `rouse check` tells the user, who knows whether a guest has run on it.
    assert!(disk::doubt_about_own(&raw).unwrap().contains("is used as a raw disk"));
    assert_eq!(disk::doubt_about_own(&place.at("base.qcow2")), None);
    std::fs::write(place.at("zeros.qcow2"), [0; 512]).unwrap();
    assert!(disk::doubt_about_own(&place.at("zeros.qcow2")).unwrap().contains("is not a qcow2 image"));
    std::fs::write(&raw, [0; 512]).unwrap();
    assert_eq!(disk::doubt_about_own(&raw), None);
}

/// A directory with a base image.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let mut made = Command::new("qemu-img");
        made.args(["create", "-q", "-f", "qcow2"]).arg(place.at("base.qcow2")).arg("1M");
        assert!(made.status().unwrap().success());
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn fresh(&self) -> NewDisk {
        let base = self.at("base.qcow2");
        NewDisk {
            path: self.at("w.qcow2"),
            base_format: "qcow2".to_owned(),
            change: disk::look_at(&base).unwrap().change,
            base,
            form: Format::Overlay,
        }
    }

    fn files(&self) -> usize {
        std::fs::read_dir(self.0.path()).unwrap().count()
    }
}

fn owner(id: &str, host: &str) -> disk::Owner {
    disk::Owner { master: "ci.x_y-1".to_owned(), id: id.to_owned(), host: host.to_owned() }
}

fn rejected(result: Result<(), StartError>) -> String {
    match result {
        Err(StartError::Rejected(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_disk_is_made_marked_and_thrown_away() {
    let place = Place::new();
    let fresh = place.fresh();
    let (first, second) = (owner("a", "h1"), owner("a", "h2"));
    disk::make(&fresh, &first, &|_| false, &|| ()).unwrap();
    assert_eq!(disk::marks_in(place.0.path()).unwrap(), [(fresh.path.clone(), first.clone())]);
    // What another host has left is replaced, what one in use has is not.
    assert!(rejected(disk::make(&fresh, &second, &|host| host == "h1", &|| ())).contains("in use by host h1"));
    disk::make(&fresh, &second, &|_| false, &|| ()).unwrap();
    assert_eq!(disk::marks_in(place.0.path()).unwrap(), [(fresh.path.clone(), second.clone())]);
    disk::remove(&fresh.path, &first).unwrap();
    assert!(fresh.path.exists(), "it is not the first host's any more");
    assert!(rejected(disk::make(&fresh, &owner("b", "h3"), &|_| false, &|| ())).contains("another master"));
    disk::remove(&fresh.path, &second).unwrap();
    assert_eq!(place.files(), 1, "only the base is left");
    assert_eq!(disk::marks_in(&place.at("none")).unwrap(), []);
}

#[test]
fn what_rouse_has_not_made_is_never_replaced() {
    let place = Place::new();
    let fresh = place.fresh();
    std::fs::write(&fresh.path, "precious").unwrap();
    assert!(rejected(disk::make(&fresh, &owner("a", "h1"), &|_| false, &|| ())).contains("was not made by rouse"));
    disk::remove(&fresh.path, &owner("a", "h1")).unwrap();
    assert_eq!(std::fs::read(&fresh.path).unwrap(), b"precious");
    assert_eq!(place.files(), 2);
}

#[test]
fn a_base_is_looked_at_closely() {
    let place = Place::new();
    let why = |path: &Path| match disk::look_at(path) {
        Err(StartError::Rejected(why)) => why,
        other => panic!("{other:?}"),
    };
    assert!(why(&place.at("none.qcow2")).contains("there is no image"));
    std::fs::write(place.at("text.qcow2"), "no image at all").unwrap();
    assert!(why(&place.at("text.qcow2")).contains("not a qcow2 image"));
    assert!(why(place.0.path()).contains("is not a file"));
    std::fs::write(place.at("raw.img"), [0; 512]).unwrap();
    assert_eq!(disk::look_at(&place.at("raw.img")).unwrap().format, "raw");
    // Cut short it still begins like one.
    std::fs::write(place.at("cut.qcow2"), b"QFI\xfb\0\0\0\x03").unwrap();
    let cut = disk::look_at(&place.at("cut.qcow2")).unwrap();
    assert!(rejected(disk::check(&place.at("cut.qcow2"), "qcow2")).contains("is damaged"));
    disk::check(&place.at("base.qcow2"), "qcow2").unwrap();
    let fresh = NewDisk { base: place.at("cut.qcow2"), change: cut.change, ..place.fresh() };
    assert!(rejected(disk::make(&fresh, &owner("a", "h1"), &|_| false, &|| ())).contains("cannot be made from"));
    assert!(!fresh.path.exists() && disk::marks_in(place.0.path()).unwrap().is_empty(), "nothing is left of it");
}

#[test]
fn a_base_that_changed_is_refused() {
    let place = Place::new();
    let fresh = place.fresh();
    assert_eq!(disk::changed_in_place(&fresh.base, &fresh.change), None);
    // Another file in its place: what was laid over the old one keeps it.
    std::fs::copy(&fresh.base, place.at("new")).unwrap();
    std::fs::rename(place.at("new"), &fresh.base).unwrap();
    assert_eq!(disk::changed_in_place(&fresh.base, &fresh.change), None);
    assert!(rejected(disk::make(&fresh, &owner("a", "h1"), &|_| false, &|| ())).contains("after the host was ordered"));
    let fresh = place.fresh();
    let text = std::fs::read(&fresh.base).unwrap();
    std::fs::write(&fresh.base, [&text[..], b"more"].concat()).unwrap();
    assert!(disk::changed_in_place(&fresh.base, &fresh.change).unwrap().contains("changed in place"));
}

#[test]
fn a_raw_base_is_copied_where_the_machine_wants_it_raw() {
    let place = Place::new();
    std::fs::write(place.at("base.img"), [7; 4096]).unwrap();
    let base = place.at("base.img");
    let change = disk::look_at(&base).unwrap().change;
    let path = place.at("w.img");
    let fresh = NewDisk { path: path.clone(), base, base_format: "raw".to_owned(), change, form: Format::Copy };
    disk::make(&fresh, &owner("a", "h1"), &|_| false, &|| ()).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), [7; 4096]);
}

#[test]
fn a_host_has_one_uuid_for_ever() {
    let (one, other) = (HostId("h1".to_owned()), HostId("h2".to_owned()));
    let uuid = uuid_of("ci/0123", &one);
    assert_eq!(uuid, uuid_of("ci/0123", &one));
    // Hosts that an earlier version has made are found by it.
    let host = HostId("linux-01-7".to_owned());
    assert_eq!(uuid_of("master/0123abcd", &host), "516c6e22-5d9a-8164-9a66-5b9fccaa8c40");
    assert_eq!((uuid.len(), &uuid[14..15]), (36, "8"));
    assert!(uuid != uuid_of("ci/0123", &other) && uuid != uuid_of("ci/4567", &one));
}
