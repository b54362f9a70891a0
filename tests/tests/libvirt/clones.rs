//! A guest that nobody wants: a clone that calls under another's name.

use crate::site::{GUEST, site};
use std::process::Command;

#[test]
fn a_clone_is_refused_on_both_ends() {
    if !crate::may_run() {
        return;
    }
    let _turn = crate::together();
    let site = site();
    let script = "echo begun; sleep 600";
    let build = site.master.detach(&["--worker", "cloned", "--retries", "0", "--", "sh", "-c", script]);
    site.until_said(&build, "begun");
    // As somebody makes one by hand: the description with all that we put there, another name, a disk of its own.
    let xml = site.lab.virsh(&["dumpxml", "--security-info", "cloned"]);
    let (disk, console) = (site.lab.dir.join("clone.qcow2"), site.lab.dir.join("clone.console"));
    let base = rouse_tests::virt::image(&rouse_tests::virt::Image::agent());
    let mut create = Command::new("qemu-img");
    create.args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]).arg(&base).arg(&disk);
    rouse_tests::virt::run(&mut create);
    let own_console = xml.split("<log file='").nth(1).unwrap().split('\'').next().unwrap().to_owned();
    let own_disk = site.disks.join("cloned.qcow2").display().to_string();
    let kept = xml.lines().filter(|line| !line.contains("<uuid>") && !line.contains("<mac "));
    let clone: String = kept.map(|line| format!("{line}\n")).collect();
    let clone = clone.replace("<name>cloned<", "<name>clone<").replace(&own_console, &console.display().to_string());
    // Our stamp names the disk too; only the device's is the clone's own.
    let clone = clone.replace(&format!("source file='{own_disk}'"), &format!("source file='{}'", disk.display()));
    let path = site.lab.dir.join("clone.xml");
    std::fs::write(&path, clone).unwrap();
    site.lab.virsh(&["create", &path.display().to_string()]);
    site.master.rouse(&["audit"]).ended(0);
    let refused = "was refused: it is not on the machine that was started for this worker";
    site.master.until_within(GUEST, "the master refuses it", || site.master.log().contains(refused));
    let runs = |name: &str| site.lab.running().iter().any(|domain| domain == name);
    site.master.until_within(GUEST, "it switches itself off", || !runs("clone"));
    let said = std::fs::read_to_string(&console).unwrap();
    assert!(said.contains("it is not on the machine that was started for this worker"), "{said}");
    assert_eq!(site.master.state(&build), "running", "the real one goes on");
    assert!(runs("cloned"));
    site.master.rouse(&["cancel", &build]).ended(0);
    site.master.rouse(&["drain", "cloned"]).ended(0);
    site.until_clean(&["cloned"]);
}
