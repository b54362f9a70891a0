//! libvirtd killed, frozen and started again while guests run; the master killed with guests running.

use crate::site::site;
use std::fs;

#[test]
fn guests_outlive_libvirtd_and_the_master() {
    if !crate::may_run() {
        return;
    }
    let _alone = crate::alone();
    let site = site();
    let script = "echo begun; while [ ! -e /tmp/go ]; do sleep 0.2; test $((n += 1)) -lt 900 || exit 1; done";
    let build = site.master.detach(&["--worker", "lasting", "--", "sh", "-c", &format!("n=0; {script}")]);
    site.until(&build, "running");
    site.master.until("it has begun", || site.log(&build).contains("begun"));

    // Killed: it is started again, and the guest is still known.
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

    // Killed with the master away: the next one finds its guest and goes on.
    site.master.kill();
    site.lab.signal(libc::SIGKILL);
    site.lab.until_up();
    site.master.begin();
    assert_eq!(site.master.state(&build), "running");
    assert_eq!(site.lab.running(), ["lasting"]);

    // Killed while libvirtd is away: its death is heard of when that is back.
    fs::write(site.lab.dir.join("hold"), "").unwrap();
    site.lab.signal(libc::SIGKILL);
    site.lab.signal_guest("lasting", libc::SIGKILL);
    fs::remove_file(site.lab.dir.join("hold")).unwrap();
    site.lab.until_up();
    site.master.until("the attempt is over", || site.master.state(&build) != "running");
    site.master.rouse(&["cancel", &build]).ended(0);
    site.until_clean();
}
