//! Cancelling: running steps get SIGTERM, then SIGKILL, and no process of them is left.

use crate::shared;
use rouse_tests::harness::{DEADLINE, processes_with, runs};

#[test]
fn a_cancelled_build_that_ignores_term_is_gone_with_its_whole_tree() {
    let master = shared();
    let _agent = master.agent("cancel");
    // A child that leaves the session and ignores TERM, as a daemon would, and a step that catches it and continues.
    let (trace, ticks) = (master.trace("cancel"), master.trace("cancel-ticks"));
    let script = format!(
        "trap 'echo term >> {1}' TERM; setsid sh -c 'trap \"\" TERM; echo $$ >> {0}; while :; do sleep 1; done' & \
         echo $$ >> {0}; while :; do echo tick >> {1}; sleep 0.2; done",
        trace.path(),
        ticks.path()
    );
    let following = master.begin_rouse(&["build", "--worker", "cancel", "--", "sh", "-c", &script]);
    master.until("both are running", || trace.lines().len() == 2);
    let pids: Vec<i32> = trace.lines().iter().map(|line| line.parse().unwrap()).collect();
    assert!(pids.iter().all(|pid| runs(*pid)));
    // Its steps may run before the command has said what it is called.
    master.until("it prints its number", || following.err().contains("build "));
    let id =
        following.err().split("build ").nth(1).unwrap().chars().take_while(char::is_ascii_digit).collect::<String>();
    master.rouse(&["cancel", &id]).ended(0);
    let said = following.wait(DEADLINE).ended(6);
    assert!(said.err.contains("cancelled"), "{}", said.err);
    let left = processes_with(&trace.path());
    assert!(left.is_empty(), "{left:?}");
    assert!(pids.iter().all(|pid| !runs(*pid)));
    // TERM came first, and KILL not with it: five seconds later, of which a busy machine takes some.
    let ticks = ticks.lines();
    let after = ticks.iter().skip_while(|line| *line != "term").filter(|line| *line == "tick").count();
    assert!(after >= 3, "KILL came too early: {ticks:?}");

    // One that has not begun is cancelled at once; one that is over cannot be.
    master.rouse(&["pause", "cancel"]).ended(0);
    let id = master.detach(&["--worker", "cancel", "--", "true"]);
    master.rouse(&["cancel", &id]).ended(0);
    assert_eq!(master.state(&id), "cancelled");
    master.rouse(&["cancel", &id]).ended(4);
    master.rouse(&["resume", "cancel"]).ended(0);
}
