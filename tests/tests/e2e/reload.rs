//! SIGHUP: workers are added, removed and changed while a build runs on another one; a file with an error changes
//! nothing.

use rouse_tests::harness::{Master, standing};

#[test]
fn a_reload_touches_only_what_has_changed() {
    let workers = |changed: &str, third: &str| {
        let lease = "keepalive_interval = 2\nlease = 40\n";
        format!("{}{}{third}", standing("works", lease), standing("changes", &format!("{lease}{changed}")))
    };
    let leaves = standing("leaves", "");
    let comes = standing("comes", "properties = { new = \"yes\" }");
    let master = Master::start("reload", &workers("max_builds = 1", &leaves));
    let mut agents = [master.agent("works"), master.agent("changes"), master.agent("leaves")];
    let gate = master.dir.join("gate");
    let wait = format!("echo begun; until [ -e {} ]; do sleep 0.05; done; echo over", gate.display());
    let following = master.begin_rouse(&["build", "--worker", "works", "--", "sh", "-c", &wait]);
    master.until("it runs", || following.out() == b"begun\n");
    let waiting = master.detach(&["--where", "new=yes", "--", "echo", "found"]);

    master.configure(&workers("max_builds = 3", &comes));
    master.signal(libc::SIGHUP);
    master.until("the new worker is known", || master.worker("comes")["state"] == "offline");
    assert_eq!(master.worker("changes")["max_builds"], 3);
    master.rouse(&["build", "--worker", "leaves", "--", "true"]).ended(4);
    let _comes = master.agent("comes");
    master.until_state(&waiting, "success");
    master.rouse(&["build", "--worker", "changes", "--", "true"]).ended(0);

    // An error is logged with its position, and everything stays.
    master.configure(&workers("max_bulds = 5", ""));
    master.signal(libc::SIGHUP);
    master.until("the error is logged", || master.log().contains("max_bulds"));
    assert!(master.log().contains("the old configuration stays in effect"), "{}", master.log());
    assert_eq!(master.worker("changes")["max_builds"], 3);
    master.rouse(&["build", "--worker", "comes", "--", "true"]).ended(0);
    master.rouse(&["check", "-c", master.config().to_str().unwrap()]).ended(2);

    std::fs::write(gate, "").unwrap();
    let said = following.wait(rouse_tests::harness::DEADLINE).ended(0);
    assert_eq!(said.text(), "begun\nover\n");
    assert!(agents[0].try_wait().is_none() && agents[1].try_wait().is_none(), "their agents were not disturbed");
}
