//! libvirtd killed, frozen and started again while guests run; the master killed at any time, and gone for good. Tests run in
//! the order of their names: these, which nobody may run beside, come last.

use crate::site::{GUEST, Site, builtin, site, worker};
use rouse_tests::harness::text;
use std::fs;
use std::time::{Duration, Instant};

fn begun(site: &Site, worker: &str, script: &str) -> String {
    site.master.detach(&["--worker", worker, "--retries", "0", "--", "sh", "-c", &format!("echo begun; {script}")])
}

#[test]
fn guests_outlive_libvirtd_and_the_master_but_not_for_ever() {
    if !crate::may_run() {
        return;
    }
    let _turn = crate::alone();
    let site = site();
    let [build, lonely] = ["lasting", "lonely"].map(|worker| begun(site, worker, "sleep 900"));
    site.until_said(&build, "begun");
    site.until_said(&lonely, "begun");

    // Killed: it is started again, and the guests are still known.
    site.lab.signal(libc::SIGKILL);
    site.master.until("the loss is said", || site.master.log().contains("is lost: libvirtd closed it"));
    site.lab.until_up();
    site.master.until("it is back", || site.master.log().contains("answers again"));

    // Frozen: others are not delayed, and it is said so.
    site.lab.signal(libc::SIGSTOP);
    let other = site.master.detach(&["--worker", "local", "--", "echo", "not delayed"]);
    site.master.until_state(&other, "success");
    let waiting = site.master.detach(&["--worker", "plain-1", "--", "true"]);
    site.master.until("the silence is said", || site.master.log().contains("does not answer any more"));
    assert_eq!(site.master.state(&build), "running");
    site.lab.signal(libc::SIGCONT);
    site.until(&waiting, "success");
    site.until_clean(&["plain-1"]);

    // Killed with the master away, for longer than one of the guests waits for it: that one goes by itself. The next
    // master finds the other one and goes on.
    site.master.kill();
    site.lab.signal(libc::SIGKILL);
    site.lab.until_up();
    site.master.until_within(GUEST, "the lonely one switches itself off", || site.lab.running() == ["lasting"]);
    site.master.begin();
    assert_eq!(site.master.state(&build), "running");
    site.until(&lonely, "lost");
    assert_eq!(site.lab.running(), ["lasting"]);

    // Killed while libvirtd is away: its death is heard of when that is back.
    fs::write(site.lab.dir.join("hold"), "").unwrap();
    site.lab.signal(libc::SIGKILL);
    site.lab.signal_guest("lasting", libc::SIGKILL);
    fs::remove_file(site.lab.dir.join("hold")).unwrap();
    site.lab.until_up();
    site.until(&build, "lost");
    site.until_clean(&["lasting", "lonely"]);
}

#[test]
fn a_guest_that_died_while_the_master_was_away_is_given_up_when_it_is_back() {
    if !crate::may_run() {
        return;
    }
    let _turn = crate::alone();
    let site = site();
    let build = begun(site, "lasting", "sleep 900");
    site.until_said(&build, "begun");
    site.master.kill();
    site.lab.signal_guest("lasting", libc::SIGKILL);
    // Else the master might be back before libvirt has noticed, and be told.
    site.master.until("libvirt has noticed", || !site.lab.running().contains(&"lasting".to_owned()));
    site.master.begin();
    let since = Instant::now();
    site.until(&build, "lost");
    // Its lease holds for a minute from the master's start.
    assert!(since.elapsed() < Duration::from_secs(15), "only after {:?}\n{}", since.elapsed(), site.master.log());
    // By the list or by the connection, whichever comes first.
    assert!(site.master.log().contains("of lasting is gone: it ended"), "{}", site.master.log());
    site.until_clean(&["lasting"]);
}

#[test]
fn a_master_killed_in_mid_start_and_in_mid_stop_leaves_nothing() {
    if !crate::may_run() {
        return;
    }
    let _turn = crate::alone();
    let site = site();
    let build = site.master.detach(&["--worker", "plain-2", "--", "sh", "-c", "echo begun; sleep 5"]);
    let disk = site.disks.join("plain-2.qcow2");
    site.master.until("its disk is made", || disk.exists());
    site.master.kill();
    site.master.begin();
    let hosts = || site.master.hosts("plain-2").iter().map(|host| text(&host["id"])).collect::<Vec<_>>();
    let first = hosts();
    assert_eq!(first.len(), 1, "it was ordered");
    site.until_said(&build, "begun");
    assert_eq!(hosts(), first, "one order, one machine");
    // Its machine cannot be stopped meanwhile.
    site.lab.signal(libc::SIGSTOP);
    site.until(&build, "success");
    site.master
        .until("it is being terminated", || site.master.hosts("plain-2").iter().any(|h| h["state"] == "stopping"));
    site.master.kill();
    site.lab.signal(libc::SIGCONT);
    site.master.begin();
    site.until_clean(&["plain-2"]);
    assert_eq!(site.lab.running(), Vec::<String>::new());
}

#[test]
fn a_libvirt_that_is_not_there_is_said_so_and_keeps_nobody_else_from_being_audited() {
    if !crate::may_run() {
        return;
    }
    let _turn = crate::alone();
    let site = site();
    let uri = format!("qemu+unix:///system?socket={}", site.lab.dir.join("no-socket").display());
    let base = rouse_tests::virt::image(&rouse_tests::virt::Image::agent());
    let elsewhere = worker("no-libvirt", "", &builtin(site.lab, &site.disks, &base).replace(&site.lab.uri, &uri));
    site.master.configure(&(site.workers.clone() + &elsewhere));
    site.master.signal(libc::SIGHUP);
    site.master.until("it is taken", || site.master.worker("no-libvirt")["state"] == "asleep");
    let build = site.master.detach(&["--worker", "no-libvirt", "--", "true"]);
    site.master.until("it says why not", || crate::builds::why(site, &build).contains("no-socket"));
    site.master.rouse(&["cancel", &build]).ended(0);
    let audit = site.master.rouse(&["audit"]);
    assert!(audit.text().contains("no-socket"), "{}", audit.text());
    site.until_clean(&["no-libvirt"]);
    site.master.configure(&site.workers);
    site.master.signal(libc::SIGHUP);
    site.master.until("it is taken out", || site.master.worker("no-libvirt").is_null());
    // Nothing was ever made there.
    site.master.rouse(&["audit"]).ended(0);
}
