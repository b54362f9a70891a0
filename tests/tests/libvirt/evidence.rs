//! Guests that never attach: `rouse show` prints their output, and `rouse why` prints why they failed.

use crate::system::{GUEST, system};

#[test]
fn what_a_guest_that_never_attached_printed_is_kept() {
    if !crate::may_run() {
        return;
    }
    let _turn = crate::together();
    let system = system();
    let cases = [
        ("panics", "Kernel panic", "ended before its agent attached"),
        // An agent on a disk that is not fresh is refused, and says so.
        ("used", "its disk is not fresh: it was first used for hbefore", "ended before its agent attached"),
        ("blank", "No bootable device", "did not attach"),
        ("mute", "there is no agent here", "did not attach"),
        ("deaf", "guest: no-network", "did not attach"),
    ];
    // At once, since most of the time is spent in waiting for them.
    let builds = cases.map(|(worker, ..)| system.master.detach(&["--worker", worker, "--", "true"]));
    for ((worker, printed, reason), build) in cases.iter().zip(&builds) {
        let has = || system.master.show(build).to_string().contains(printed);
        system.master.until_within(GUEST, &format!("{worker} shows {printed:?}"), has);
        let shown = system.master.rouse(&["show", build]).ended(0).text();
        assert!(shown.contains(printed) && shown.contains(reason), "{shown}");
        assert!(system.master.why(build).contains(reason), "{}", system.master.why(build));
        if system.master.state(build) != "lost" {
            system.master.rouse(&["cancel", build]).ended(0);
        }
    }
    system.until_clean(&cases.map(|(worker, ..)| worker));
}
