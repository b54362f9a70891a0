//! Guests that die in mid-build: their builds go elsewhere within a second of the proof.

use crate::site::{Site, site};
use std::time::{Duration, Instant};

/// Runs a build until it has begun on one of two workers. Its id, and the worker.
fn begun(site: &Site, pool: &str) -> (String, String) {
    let script = "echo begun; test $ROUSE_ATTEMPT = 2 || sleep 600";
    let build = site.master.detach(&["--where", &format!("pool={pool}"), "--", "sh", "-c", script]);
    site.until_said(&build, "begun");
    let worker = site.master.show(&build)["worker"].as_str().unwrap().to_owned();
    (build, worker)
}

/// Waits until the first attempt is over, which a death must bring about at once.
fn over_within_a_second(site: &Site, build: &str, since: Instant) {
    let state_changed = || site.master.state(build) != "running";
    site.master.until("the attempt is over", state_changed);
    let took = since.elapsed();
    assert!(took < Duration::from_secs(1) + Duration::from_millis(500), "it took {took:?}");
}

#[test]
fn a_dead_guests_build_goes_elsewhere_at_once() {
    if !crate::may_run() {
        return;
    }
    let _turn = crate::together();
    let site = site();
    let (build, worker) = begun(site, "mortal");
    site.lab.signal_guest(&worker, libc::SIGKILL);
    over_within_a_second(site, &build, Instant::now());
    site.until(&build, "success");
    let shown = site.master.rouse(&["show", &build]).ended(0).text();
    assert!(shown.contains("its QEMU ended"), "{shown}");
    site.until_clean(&["mortal-1", "mortal-2"]);
}

#[test]
fn a_guest_that_powers_off_is_dead() {
    if !crate::may_run() {
        return;
    }
    let _turn = crate::together();
    let site = site();
    let script = "test $ROUSE_ATTEMPT = 2 || poweroff -f";
    let build = site.master.detach(&["--where", "pool=quits", "--", "sh", "-c", script]);
    site.until(&build, "success");
    let shown = site.master.rouse(&["show", &build]).ended(0).text();
    assert!(shown.contains("powered off"), "{shown}");
    site.until_clean(&["quits-1", "quits-2"]);
}

#[test]
fn a_guest_whose_disk_finds_no_room_is_dead() {
    if !crate::may_run() {
        return;
    }
    let _turn = crate::together();
    let site = site();
    let script =
        "test $ROUSE_ATTEMPT = 2 || { mkdir -p /root; dd if=/dev/urandom of=/root/much bs=1M count=12; sync; }";
    let build = site.master.detach(&["--worker", "tight", "--", "sh", "-c", script]);
    site.until(&build, "success");
    let shown = site.master.rouse(&["show", &build]).ended(0).text();
    assert!(shown.contains("its disk could not be written"), "{shown}");
    site.until_clean(&["tight"]);
}
