//! Machines that cannot be created: `rouse why` prints a clear message for each, and nothing is left over.

use crate::system::system;
use std::fs;

#[test]
fn a_failed_start_has_a_clear_error_and_leaves_nothing() {
    if !crate::may_run() {
        return;
    }
    let _turn = crate::together();
    let system = system();
    let filler = system.virt_host.dir.join("small/filler");
    // As full as it gets.
    fs::write(&filler, vec![0; 5 << 20]).unwrap_err();
    let cases = [
        ("no-base", "there is no image /nonexistent/base.qcow2"),
        ("no-image", "text.qcow2 is not a qcow2 image"),
        ("cut-image", "cut.qcow2 is damaged"),
        ("broken-xml", "its XML is not well formed"),
        ("bad-xml", "nonsense"),
        ("no-network", "nowhere"),
        ("no-domain", "there is no domain no-domain"),
        ("full", "no space for"),
    ];
    let builds: Vec<String> =
        cases.iter().map(|(worker, _)| system.master.detach(&["--worker", worker, "--", "true"])).collect();
    for ((worker, text), build) in cases.iter().zip(&builds) {
        system.master.until(&format!("{worker} says {text:?}, not {:?}", system.master.why(build)), || {
            system.master.why(build).contains(text)
        });
    }
    for build in &builds {
        let state = system.master.state(build);
        assert!(["queued", "starting", "lost"].contains(&state.as_str()), "{state}");
        if state != "lost" {
            system.master.rouse(&["cancel", build]).ended(0);
        }
    }
    fs::remove_file(filler).unwrap();
    system.until_clean(&cases.map(|(worker, _)| worker));
}
