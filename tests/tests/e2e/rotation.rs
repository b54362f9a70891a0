//! The API token and the password of a worker are replaced while builds run.

use rouse_tests::harness::{DEADLINE, Master, PASSWORD, request, standing};

#[test]
fn secrets_are_replaced_without_a_lost_build() {
    let workers = |password: &str| standing("w", "").replace(PASSWORD, password);
    let master = Master::start("rotation", &workers(PASSWORD));
    let mut agent = master.agent("w");
    let gate = master.dir.join("gate");
    let wait = format!("echo begun; until [ -e {} ]; do sleep 0.05; done; echo over", gate.display());
    let following = master.begin_rouse(&["build", "--", "sh", "-c", &wait]);
    master.until("it runs", || following.out() == b"begun\n");

    let old = master.token();
    master.rouse(&["token", "rotate"]).ended(0);
    assert_ne!(master.token(), old);
    let pause = |token: &str| request(master.http, "POST", "/api/workers/w/pause", Some(token), "").unwrap().status;
    assert_eq!((pause(&old), pause(&master.token())), (401, 200), "at once, without a restart");
    master.rouse(&["resume", "w"]).ended(0);

    let password = master.rouse(&["worker", "rotate", "w"]).ended(0).text().trim().to_owned();
    master.configure(&workers(&password));
    master.signal(libc::SIGHUP);
    master.until("the new configuration is in effect", || master.log().contains("is in effect"));
    let next = master.detach(&["--", "echo", "next"]);
    std::fs::write(gate, "").unwrap();
    // Neither the build nor the command that followed it with the old token has noticed.
    assert_eq!(following.wait(DEADLINE).ended(0).text(), "begun\nover\n");

    master.until_worker("w", "offline");
    assert_eq!(master.state(&next), "queued", "whoever has the old password gets no further builds");
    agent.signal(libc::SIGTERM);
    master.until("the agent has ended", || agent.try_wait().is_some());
    let _agent = master.begin_agent("w", &[("ROUSE_AGENT_PASSWORD", &password)]);
    master.until_state(&next, "success");
}
