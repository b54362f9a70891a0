//! Somebody with the password of a worker that has an agent, an agent that was let in and does harm, and builds that leave
//! harm behind.

use crate::hostile::{builds, connect};
use rouse_shared::message::{AttemptReport, LogChunk, Outcome, Report, ToMaster};
use rouse_shared::names::{control_key, log_key};
use rouse_shared::{AttemptId, BuildId, SessionId, codec};
use rouse_tests::harness::{DEADLINE, Master, latent, peak_memory, processes_with, standing};
use rouse_tests::rogue::Rogue;
use std::fs;
use std::time::Duration;
use tokio::task::block_in_place;

/// A build that prints a line when its gate is opened.
fn gated(master: &Master, worker: &str) -> (String, std::path::PathBuf) {
    let gate = master.dir.join(format!("gate-{worker}"));
    let script = format!("until [ -e {} ]; do sleep 0.05; done; echo mine", gate.display());
    let id = master.detach(&["--worker", worker, "--", "sh", "-c", &script]);
    master.until_state(&id, "running");
    (id, gate)
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_else_with_the_password_forges_no_log_and_cuts_no_agent_off() {
    let patient = "keepalive_interval = 2\nlease = 60\n";
    let master = block_in_place(|| Master::start_private("stranger", &standing("good", patient)));
    let _agent = block_in_place(|| master.agent("good"));
    let (running, gate) = block_in_place(|| gated(&master, "good"));
    let attempt = AttemptId { build: BuildId(running.parse().unwrap()), number: 1 };

    let stranger = connect(&master, "good").await.unwrap();
    for session in [String::new(), "00".repeat(16)] {
        let session = SessionId(session);
        let chunk = LogChunk { session: session.clone(), attempt, step: 0, offset: 0, bytes: b"forged\n".to_vec() };
        stranger.publish(&log_key(&stranger.worker), &codec::encode(&chunk)).await.unwrap();
        let outcome = Some(Outcome::Failure("forged".to_owned()));
        let report = AttemptReport { attempt, revision: 9, steps: Vec::new(), outcome };
        stranger.say(&ToMaster::Report(Box::new(Report { session: session.clone(), attempt: report }))).await.unwrap();
        stranger.say(&ToMaster::Goodbye { session }).await.unwrap();
    }
    stranger.say(&ToMaster::Hello(Box::new(stranger.hello(1)))).await.unwrap();
    block_in_place(|| {
        master.until("it is refused", || master.log().contains("another agent"));
        assert_eq!(master.state(&running), "running");
    });
    // Until its connection is closed.
    let flood = async { while stranger.publish(&control_key(&stranger.worker), b"rubbish").await.is_ok() {} };
    tokio::time::timeout(DEADLINE, flood).await.expect("its connection is closed");
    block_in_place(|| {
        master.until("it is blocked", || {
            master.log().lines().any(|line| line.contains("not from its own agent: blocked for 5 minutes"))
        });
    });
    // The broker forgets its earlier answers after 30 s. The agent has its secret, and is let in.
    let refused = tokio::time::timeout(DEADLINE + Duration::from_secs(35), async {
        while connect(&master, "good").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    });
    assert!(refused.await.is_ok(), "it can still connect");
    block_in_place(|| {
        master.until_worker("good", "busy");
        fs::write(&gate, "").unwrap();
        master.until_state(&running, "success");
        assert_eq!(master.rouse(&["log", &running]).ended(0).text(), "mine\n");
        assert_eq!(master.show(&running)["attempts"], 1);
        builds(&master, 1);
    });
}

/// An agent that has been let in and has taken a build.
async fn attach(master: &Master, worker: &str) -> Rogue {
    let submit = || block_in_place(|| drop(master.detach(&["--worker", worker, "--", "true"])));
    Rogue::attach(connect(master, worker).await.unwrap(), submit).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_let_in_and_sends_all_that_it_may_disturbs_nobody() {
    let patient = "keepalive_interval = 2\nlease = 60\n";
    let limits = "[limits]\nmax_log_size = \"1MB\"\n";
    let sections = standing("good", patient) + &standing("rogue", patient) + limits;
    let master = block_in_place(|| Master::start_private("rogue", &sections));
    let _agent = block_in_place(|| master.agent("good"));
    let (running, gate) = block_in_place(|| gated(&master, "good"));
    let mut rogue = attach(&master, "rogue").await;
    let attempt = rogue.attempt;

    let (stop, stopped) = tokio::sync::watch::channel(false);
    let flood = tokio::spawn(async move {
        let mut sent: u64 = 0;
        while !*stopped.borrow() && rogue.act(sent).await.is_ok() {
            sent += 1;
        }
        sent
    });
    block_in_place(|| builds(&master, 30));
    stop.send_replace(true);
    let sent = flood.await.unwrap();
    assert!(sent > 200, "only {sent} messages were sent");

    block_in_place(|| {
        let blocked = "too many hellos: blocked for 5 minutes";
        master.until("it is blocked", || master.log().lines().any(|line| line.contains(blocked)));
        assert!(!master.log().contains("lease of worker good"), "a lease has ended");
        fs::write(&gate, "").unwrap();
        master.until_state(&running, "success");
        assert_eq!(master.show(&running)["attempts"], 1);
        let peak = peak_memory(master.pid());
        assert!(peak < 200_000_000, "the master took {peak} bytes");
        let logs = master.dir.join(format!("state/logs/0/{}/1", attempt.build));
        let kept: u64 = fs::read_dir(logs).unwrap().map(|log| log.unwrap().metadata().unwrap().len()).sum();
        assert!(kept <= 1_000_000, "{kept} bytes of its logs were kept");
        let size = master.log().len();
        assert!(size < 1_000_000, "the master's own log has {size} bytes");
    });
}

/// More levels than a stack has room for, or a process descriptors.
const NEST: &str = "import os\nfor _ in range(20000): os.mkdir('d'); os.chdir('d')\nprint('made')";

#[test]
fn a_tree_that_is_too_deep_to_walk_ends_with_its_build() {
    let master =
        Master::start("deep", &latent("deep", "keepalive_interval = 2\nlease = 60\nbuild_wait_timeout = 600\n"));
    let nested = || {
        let said = master.rouse(&["build", "--worker", "deep", "--", "python3", "-c", NEST]).ended(0);
        assert_eq!(said.text(), "made\n");
    };
    let next = || {
        let said = master.rouse(&["build", "--worker", "deep", "--", "echo", "nothing is wrong"]).ended(0);
        assert_eq!(said.text(), "nothing is wrong\n");
    };
    let agent = || {
        let hosts = master.hosts("deep");
        let (pid, _) = hosts[0]["handle"].as_str().unwrap().split_once(':').unwrap();
        pid.parse::<i32>().unwrap()
    };
    // Its agent removes it, and goes on meanwhile.
    nested();
    let first = agent();
    next();
    assert_eq!(agent(), first, "its agent has ended");
    // The agent is killed before it has removed it, and the master removes what is left.
    nested();
    let pid = master.pid();
    let killed = rustix::process::Pid::from_raw(agent()).unwrap();
    rustix::process::kill_process(killed, rustix::process::Signal::KILL).unwrap();
    next();
    assert_eq!(master.pid(), pid);
    assert!(processes_with(&master.dir.display().to_string()).iter().any(|(of, _)| *of == pid), "the master has ended");
    let gone = master.dir.join("state/hosts/.gone");
    master.until_within(Duration::from_secs(180), "everything is removed", || {
        fs::read_dir(&gone).unwrap().next().is_none()
    });
}
