//! Builds that run in guests: on a built-in machine, with a user's description, in a domain that the user has defined,
//! and on the user's own disk.

use crate::system::{LibvirtSystem, OWN_XML, system};
use rouse_tests::harness::text;
use rouse_tests::virt::run;
use std::fs;
use std::process::Command;

/// What a guest says of itself.
const SELF: &str = "echo \"I am $(hostname), $(cat /sys/class/dmi/id/product_uuid)\"";

fn uuid_said(system: &LibvirtSystem, build: &str, name: &str) -> String {
    let log = system.log(build);
    let said = log.lines().find_map(|line| line.strip_prefix(&format!("I am {name}, ")));
    said.unwrap_or_else(|| panic!("{log}")).to_owned()
}

#[test]
fn two_workers_share_a_base_image() {
    if !crate::may_run() {
        return;
    }
    let _turn = crate::together();
    let system = system();
    let base = rouse_tests::virt::image(&rouse_tests::virt::Image::agent());
    let before = fs::read(&base).unwrap();
    let script =
        format!("{SELF}; test ! -e /root/spoiled && mkdir -p /root && date > /root/spoiled && sync; sleep 600");
    let builds = [(); 2].map(|()| system.master.detach(&["--where", "pool=plain", "--", "sh", "-c", &script]));
    for build in &builds {
        system.until_said(build, "I am");
    }
    let running = system.virt_host.running();
    assert!(["plain-1", "plain-2"].iter().all(|name| running.iter().any(|n| n == name)), "both at once: {running:?}");
    let mut known: Vec<(String, String)> = Vec::new();
    for worker in ["plain-1", "plain-2"] {
        known.extend(system.master.hosts(worker).iter().map(|host| (worker.to_owned(), text(&host["handle"]))));
    }
    // DHCP gave each its own name, and its firmware says that it is whom the master takes it for.
    let mut said: Vec<(String, String)> = Vec::new();
    for build in &builds {
        let worker = text(&system.master.show(build)["worker"]);
        said.push((worker.clone(), uuid_said(system, build, &worker)));
        system.master.rouse(&["cancel", build]).ended(0);
    }
    said.sort();
    assert_eq!(said, known);
    system.until_clean(&["plain-1", "plain-2"]);
    // One build, one machine: the next one starts from the base again, and finds nothing of those before.
    let build = system.master.detach(&["--where", "pool=plain", "--", "test", "!", "-e", "/root/spoiled"]);
    system.until(&build, "success");
    system.until_clean(&["plain-1", "plain-2"]);
    assert!(fs::read(&base).unwrap() == before, "the base image is never written to");
}

#[test]
fn a_users_description_and_a_name_from_dhcp() {
    if !crate::may_run() {
        return;
    }
    let _turn = crate::together();
    let system = system();
    let build = system.master.detach(&["--worker", "dhcp", "--", "sh", "-c", SELF]);
    system.until(&build, "success");
    uuid_said(system, &build, "dhcp");
    system.until_clean(&["dhcp"]);
}

#[test]
fn a_domain_that_the_user_has_defined() {
    if !crate::may_run() {
        return;
    }
    let _turn = crate::together();
    let system = system();
    let uuid = "5a1c6a2e-0b7e-4d0c-9a57-3b8f6f1e2d10";
    let xml = OWN_XML.replace("<name>anything</name>", &format!("<name>defined</name><uuid>{uuid}</uuid>"));
    let path = system.virt_host.dir.join("defined.xml");
    fs::write(&path, xml).unwrap();
    system.virt_host.virsh(&["define", &path.display().to_string()]);
    let before = system.virt_host.virsh(&["dumpxml", "--inactive", "defined"]);
    let build = system.master.detach(&["--worker", "defined", "--", "sh", "-c", "cat /sys/class/dmi/id/product_uuid"]);
    system.until(&build, "success");
    assert_eq!(system.log(&build).trim(), uuid);
    system.until_clean(&["defined"]);
    assert_eq!(system.virt_host.virsh(&["dumpxml", "--inactive", "defined"]), before, "its definition is as it was");
    // Run by its owner, it is not ours to start or to stop.
    let own = system.virt_host.dir.join("defined.qcow2");
    run(Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&own).arg("1M"));
    let running = before.replace("/nonexistent", &own.display().to_string());
    fs::write(&path, running).unwrap();
    system.virt_host.virsh(&["create", &path.display().to_string(), "--paused"]);
    let build = system.master.detach(&["--worker", "defined", "--", "true"]);
    system.master.until("it says why not", || system.master.why(&build).contains("already running"));
    system.master.rouse(&["cancel", &build]).ended(0);
    assert_eq!(system.virt_host.virsh(&["domstate", "defined"]).trim(), "paused");
    system.virt_host.virsh(&["destroy", "defined"]);
    system.virt_host.virsh(&["undefine", "defined"]);
    system.master.rouse(&["resume", "defined"]).ended(0);
    system.until_clean(&["defined"]);
}

/// Of a libvirt on another machine there are neither files nor consoles; the rest is as it is here.
#[test]
fn a_machine_of_a_libvirt_elsewhere() {
    if !crate::may_run() {
        return;
    }
    let _turn = crate::together();
    let system = system();
    let build = system.master.detach(&["--worker", "far", "--", "sh", "-c", SELF]);
    system.until(&build, "success");
    uuid_said(system, &build, "far");
    system.until_clean(&["far"]);
    // Killed during a build: reported remotely as it is locally.
    let build = system.master.detach(&["--worker", "far", "--retries", "0", "--", "sh", "-c", "echo begun; sleep 600"]);
    system.until_said(&build, "begun");
    system.virt_host.signal_guest("far", libc::SIGKILL);
    system.until(&build, "lost");
    let shown = system.master.rouse(&["show", &build]).ended(0).text();
    assert!(shown.contains("its QEMU ended") && !shown.contains("lease"), "by libvirt's event: {shown}");
    system.until_clean(&["far"]);
}

#[test]
fn a_disk_of_the_users_own_survives_everything() {
    if !crate::may_run() {
        return;
    }
    let _turn = crate::together();
    let system = system();
    let disk = system.virt_host.dir.join("own-disk.qcow2");
    let count = "mkdir -p /root; echo x >> /root/builds; sync; wc -l < /root/builds";
    let build = system.master.detach(&["--worker", "keeper", "--", "sh", "-c", count]);
    system.until(&build, "success");
    assert_eq!(system.log(&build).trim(), "1");
    // Asked to shut down, it does; its power would be cut after a minute.
    system.until_clean(&["keeper"]);
    assert!(!system.master.log().contains("so it is powered off"), "it does not shut down: {}", system.master.log());
    let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(&disk).unwrap());
    // Killed in mid-build, and given up; the next one finds what was there.
    let build = system.master.detach(&[
        "--worker",
        "keeper",
        "--retries",
        "0",
        "--",
        "sh",
        "-c",
        &format!("{count}; sleep 600"),
    ]);
    system.until_said(&build, "2");
    system.virt_host.signal_guest("keeper", libc::SIGKILL);
    system.until(&build, "lost");
    system.until_clean(&["keeper"]);
    let build = system.master.detach(&["--worker", "keeper", "--", "sh", "-c", count]);
    system.until(&build, "success");
    assert_eq!(system.log(&build).trim(), "3");
    system.until_clean(&["keeper"]);
    assert_eq!(std::os::unix::fs::MetadataExt::ino(&fs::metadata(&disk).unwrap()), inode, "it is the same file");
}
