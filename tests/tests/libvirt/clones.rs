//! A clone of a guest that tries to attach under the name of another worker.

use crate::system::{GUEST, system};
use std::process::Command;

#[test]
fn a_clone_is_refused() {
    if !crate::may_run() {
        return;
    }
    let _turn = crate::together();
    let system = system();
    // Root in the guest can read its boot data; the hypervisor has nothing left of them.
    let script = "cat /sys/firmware/qemu_fw_cfg/by_name/opt/rouse/boot/raw; echo begun; sleep 600";
    let build = system.master.detach(&["--worker", "cloned", "--retries", "0", "--", "sh", "-c", script]);
    system.until_said(&build, "begun");
    // As somebody makes one by hand: the description with all that we put there, another name, a disk of its own.
    let xml = system.virt_host.virsh(&["dumpxml", "--security-info", "cloned"]);
    let (disk, console) = (system.virt_host.dir.join("clone.qcow2"), system.virt_host.dir.join("clone.console"));
    let base = rouse_tests::virt::image(&rouse_tests::virt::Image::agent());
    let mut create = Command::new("qemu-img");
    create.args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]).arg(&base).arg(&disk);
    rouse_tests::virt::run(&mut create);
    let boot = system.virt_host.dir.join("clone.boot");
    std::fs::write(&boot, system.log(&build).replace("begun\n", "")).unwrap();
    let within = |before: &str| xml.split(before).nth(1).unwrap().split('\'').next().unwrap().to_owned();
    let own_console = within("<log file='");
    let own_boot = within("<entry name='opt/rouse/boot' file='");
    assert_eq!(std::fs::read_to_string(&own_boot).unwrap(), "");
    let own_disk = system.disks.join("cloned.qcow2").display().to_string();
    // Its card is not bound to the address of the real one, which a careless owner leaves out.
    let own = ["<uuid>", "<mac ", "filterref", "<parameter name='IP'"];
    let kept = xml.lines().filter(|line| !own.iter().any(|part| line.contains(part)));
    let clone: String = kept.map(|line| format!("{line}\n")).collect();
    let clone = clone.replace("<name>cloned<", "<name>clone<").replace(&own_console, &console.display().to_string());
    let clone = clone.replace(&own_boot, &boot.display().to_string());
    let clone = clone.replace(&format!("source file='{own_disk}'"), &format!("source file='{}'", disk.display()));
    let path = system.virt_host.dir.join("clone.xml");
    std::fs::write(&path, clone).unwrap();
    system.virt_host.virsh(&["create", &path.display().to_string()]);
    system.master.rouse(&["audit"]).ended(0);
    // The broker remembers for half a minute that the token was good. After that, the clone does not even reach the master.
    let refused = [
        "was refused: it is not on the machine that was started for this worker",
        "the boot token of worker cloned was used before",
    ];
    let is_refused = || refused.iter().any(|text| system.master.log().contains(text));
    system.master.until_within(GUEST, "it is refused", is_refused);
    assert_eq!(system.master.state(&build), "running", "the real one continues");
    assert!(system.virt_host.running().iter().any(|domain| domain == "cloned"));
    // It switches itself off if the master has refused it, and otherwise if no master has accepted it for five minutes.
    system.virt_host.virsh_may_fail(&["destroy", "clone"]);
    system.master.rouse(&["cancel", &build]).ended(0);
    system.master.rouse(&["drain", "cloned"]).ended(0);
    system.until_clean(&["cloned"]);
}
