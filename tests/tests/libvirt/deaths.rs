//! Guests that die during a build: their builds are retried elsewhere when libvirt reports the death, before the lease
//! has expired.

use crate::system::{LibvirtSystem, system};

/// Runs a build until it has begun on one of two workers. Its id, and the worker.
fn begun(system: &LibvirtSystem, pool: &str) -> (String, String) {
    let script = "echo begun; test $ROUSE_ATTEMPT = 2 || sleep 600";
    let build = system.master.detach(&["--where", &format!("pool={pool}"), "--", "sh", "-c", script]);
    system.until_said(&build, "begun");
    let worker = system.master.show(&build)["worker"].as_str().unwrap().to_owned();
    (build, worker)
}

#[test]
fn a_dead_guests_build_goes_elsewhere_at_once() {
    if !crate::may_run() {
        return;
    }
    let _turn = crate::together();
    let system = system();
    let (build, worker) = begun(system, "mortal");
    system.virt_host.signal_guest(&worker, libc::SIGKILL);
    system.until(&build, "success");
    let shown = system.master.rouse(&["show", &build]).ended(0).text();
    assert!(shown.contains("its QEMU ended") && !shown.contains("lease"), "by libvirt's event: {shown}");
    system.until_clean(&["mortal-1", "mortal-2"]);
}

#[test]
fn a_guest_that_powers_off_is_dead() {
    if !crate::may_run() {
        return;
    }
    let _turn = crate::together();
    let system = system();
    let script = "test $ROUSE_ATTEMPT = 2 || poweroff -f";
    let build = system.master.detach(&["--where", "pool=quits", "--", "sh", "-c", script]);
    system.until(&build, "success");
    let shown = system.master.rouse(&["show", &build]).ended(0).text();
    assert!(shown.contains("powered off"), "{shown}");
    system.until_clean(&["quits-1", "quits-2"]);
}

#[test]
fn a_guest_whose_disk_finds_no_room_is_dead() {
    if !crate::may_run() {
        return;
    }
    let _turn = crate::together();
    let system = system();
    let script =
        "test $ROUSE_ATTEMPT = 2 || { mkdir -p /root; dd if=/dev/urandom of=/root/much bs=1M count=12; sync; }";
    let build = system.master.detach(&["--worker", "tight", "--", "sh", "-c", script]);
    system.until(&build, "success");
    let shown = system.master.rouse(&["show", &build]).ended(0).text();
    assert!(shown.contains("its disk could not be written"), "{shown}");
    system.until_clean(&["tight"]);
}
