//! Machines that cannot be made: each with a clear message on `rouse why`, and nothing left over.

use crate::builds::why;
use crate::site::{builtin, site, worker};
use std::fs;

#[test]
fn what_cannot_be_made_is_said_clearly_and_leaves_nothing() {
    if !crate::may_run() {
        return;
    }
    let _alone = crate::alone();
    let site = site();
    let filler = site.lab.dir.join("small/filler");
    // As full as it gets.
    fs::write(&filler, vec![0; 5 << 20]).unwrap_err();
    // A libvirt that is not there; while it is in the configuration no list is whole.
    let uri = format!("qemu+unix:///system?socket={}", site.lab.dir.join("no-socket").display());
    let base = rouse_tests::virt::image(&rouse_tests::virt::Image::agent());
    let elsewhere = worker("no-libvirt", "", &builtin(site.lab, &site.disks, &base).replace(&site.lab.uri, &uri));
    site.master.configure(&(site.workers.clone() + &elsewhere));
    site.master.signal(libc::SIGHUP);
    site.master.until("it is taken", || site.master.worker("no-libvirt")["state"] == "asleep");
    let cases = [
        ("no-base", "there is no image /nonexistent/base.qcow2"),
        ("no-image", "text.qcow2 is not a qcow2 image"),
        ("cut-image", "cut.qcow2 is damaged"),
        ("broken-xml", "its XML is not well formed"),
        ("bad-xml", "nonsense"),
        ("no-network", "nowhere"),
        ("no-domain", "there is no domain no-domain"),
        ("full", "no room for"),
        ("no-libvirt", "no-socket"),
    ];
    let builds: Vec<String> =
        cases.iter().map(|(worker, _)| site.master.detach(&["--worker", worker, "--", "true"])).collect();
    for ((worker, text), build) in cases.iter().zip(&builds) {
        site.master
            .until(&format!("{worker} says {text:?}, not {:?}", why(site, build)), || why(site, build).contains(text));
    }
    for build in &builds {
        let state = site.master.state(build);
        assert!(["queued", "starting", "lost"].contains(&state.as_str()), "{state}");
        if state != "lost" {
            site.master.rouse(&["cancel", build]).ended(0);
        }
    }
    fs::remove_file(filler).unwrap();
    site.until_clean();
    site.master.configure(&site.workers);
    site.master.signal(libc::SIGHUP);
    site.master.until("it is taken out", || site.master.worker("no-libvirt").is_null());
}
