//! libvirtd is killed, frozen and restarted while guests run; the master is killed at any time, and is gone for good.
//! No other test may run at the same time.

use crate::system::{GUEST, LibvirtSystem, builtin, system, worker};
use rouse_tests::harness::text;
use std::fs;

fn begun(system: &LibvirtSystem, worker: &str, script: &str) -> String {
    system.master.detach(&["--worker", worker, "--retries", "0", "--", "sh", "-c", &format!("echo begun; {script}")])
}

#[test]
fn guests_outlive_libvirtd_and_the_master_but_not_for_ever() {
    if !crate::may_run() {
        return;
    }
    let _turn = crate::alone();
    let system = system();
    let [build, lonely] = ["lasting", "lonely"].map(|worker| begun(system, worker, "sleep 900"));
    system.until_said(&build, "begun");
    system.until_said(&lonely, "begun");

    // Killed: it is started again, and the guests are still known.
    system.virt_host.signal(libc::SIGKILL);
    system.master.until("the loss is reported", || system.master.log().contains("is lost: libvirtd closed it"));
    system.virt_host.until_up();
    system.master.until("it is back", || system.master.log().contains("answers again"));

    // Frozen: others are not delayed, and it is said so.
    system.virt_host.signal(libc::SIGSTOP);
    let other = system.master.detach(&["--worker", "local", "--", "echo", "not delayed"]);
    system.master.until_state(&other, "success");
    let waiting = system.master.detach(&["--worker", "plain-1", "--", "true"]);
    system.master.until("the silence is reported", || system.master.log().contains("does not answer any more"));
    assert_eq!(system.master.state(&build), "running");
    system.virt_host.signal(libc::SIGCONT);
    system.until(&waiting, "success");
    system.until_clean(&["plain-1"]);

    // Killed with the master away, for longer than one of the guests waits for it: that one goes by itself. The next
    // master finds the other one and goes on.
    system.master.kill();
    system.virt_host.signal(libc::SIGKILL);
    system.virt_host.until_up();
    system
        .master
        .until_within(GUEST, "the lonely one switches itself off", || system.virt_host.running() == ["lasting"]);
    system.master.begin();
    assert_eq!(system.master.state(&build), "running");
    system.until(&lonely, "lost");
    assert_eq!(system.virt_host.running(), ["lasting"]);

    // Killed while libvirtd is away: its death is reported when that is back.
    fs::write(system.virt_host.dir.join("hold"), "").unwrap();
    system.virt_host.signal(libc::SIGKILL);
    system.virt_host.signal_guest("lasting", libc::SIGKILL);
    fs::remove_file(system.virt_host.dir.join("hold")).unwrap();
    system.virt_host.until_up();
    system.until(&build, "lost");
    system.until_clean(&["lasting", "lonely"]);
}

#[test]
fn a_guest_that_died_while_the_master_was_away_is_given_up_when_it_is_back() {
    if !crate::may_run() {
        return;
    }
    let _turn = crate::alone();
    let system = system();
    let build = begun(system, "lasting", "sleep 900");
    system.until_said(&build, "begun");
    system.master.kill();
    system.virt_host.signal_guest("lasting", libc::SIGKILL);
    // Otherwise the master might be back before libvirt has noticed, and get the event.
    system.master.until("libvirt has noticed", || !system.virt_host.running().contains(&"lasting".to_owned()));
    system.master.begin();
    system.until(&build, "lost");
    // Its lease holds for a minute from the master's start.
    let shown = system.master.rouse(&["show", &build]).ended(0).text();
    assert!(!shown.contains("lease"), "not by its lease: {shown}");
    // By the list or by the connection, whichever comes first.
    assert!(system.master.log().contains("of lasting is gone: it ended"), "{}", system.master.log());
    system.until_clean(&["lasting"]);
}

#[test]
fn a_master_killed_in_mid_start_and_in_mid_stop_leaves_nothing() {
    if !crate::may_run() {
        return;
    }
    let _turn = crate::alone();
    let system = system();
    let build = system.master.detach(&["--worker", "plain-2", "--", "sh", "-c", "echo begun; sleep 5"]);
    let disk = system.disks.join("plain-2.qcow2");
    system.master.until("its disk is made", || disk.exists());
    system.master.kill();
    system.master.begin();
    let hosts = || system.master.hosts("plain-2").iter().map(|host| text(&host["id"])).collect::<Vec<_>>();
    let first = hosts();
    assert_eq!(first.len(), 1, "it was ordered");
    system.until_said(&build, "begun");
    assert_eq!(hosts(), first, "one order, one machine");
    // Its machine cannot be stopped meanwhile.
    system.virt_host.signal(libc::SIGSTOP);
    system.until(&build, "success");
    system
        .master
        .until("it is being terminated", || system.master.hosts("plain-2").iter().any(|h| h["state"] == "terminating"));
    system.master.kill();
    system.virt_host.signal(libc::SIGCONT);
    system.master.begin();
    system.until_clean(&["plain-2"]);
    assert_eq!(system.virt_host.running(), Vec::<String>::new());
}

#[test]
fn an_unreachable_libvirt_is_reported_and_does_not_prevent_other_audits() {
    if !crate::may_run() {
        return;
    }
    let _turn = crate::alone();
    let system = system();
    let uri = format!("qemu+unix:///system?socket={}", system.virt_host.dir.join("no-socket").display());
    let base = rouse_tests::virt::image(&rouse_tests::virt::Image::agent());
    let elsewhere =
        worker("no-libvirt", "", &builtin(system.virt_host, &system.disks, &base).replace(&system.virt_host.uri, &uri));
    system.master.configure(&(system.workers.clone() + &elsewhere));
    system.master.signal(libc::SIGHUP);
    system.master.until("it is taken", || system.master.worker("no-libvirt")["state"] == "asleep");
    let build = system.master.detach(&["--worker", "no-libvirt", "--", "true"]);
    system.master.until("it says why not", || system.master.why(&build).contains("no-socket"));
    system.master.rouse(&["cancel", &build]).ended(0);
    let audit = system.master.rouse(&["audit"]);
    assert!(audit.text().contains("no-socket"), "{}", audit.text());
    system.until_clean(&["no-libvirt"]);
    system.master.configure(&system.workers);
    system.master.signal(libc::SIGHUP);
    system.master.until("it is taken out", || system.master.worker("no-libvirt").is_null());
    // Nothing was ever made there.
    system.master.rouse(&["audit"]).ended(0);
}
