//! The timer that powers a latent host off when its master and its broker are gone for good; and the timer of a
//! standing worker, which a welcome has disabled.

#![expect(clippy::disallowed_methods, reason = "how long a host stays is measured with the wall clock")]

use rouse_tests::harness::{Master, latent, processes_with, runs, standing, text};
use std::time::{Duration, Instant};

/// Seconds.
const LEASE: u64 = 3;
const GRACE: u64 = 3;

#[test]
fn a_latent_host_ends_by_itself_and_a_standing_one_stays() {
    let lease = format!("keepalive_interval = 1\nlease = {LEASE}\n");
    let workers = standing("tried", &lease) + &latent("sleeps", &format!("{lease}build_wait_timeout = 600"));
    let workers = workers.replace("grace = 20", &format!("grace = {GRACE}"));
    let master = Master::start_private("deadman", &workers);
    // An image that is tried as a standing worker first: it would power off two seconds after its start.
    let trace = master.trace("off");
    let off = format!("[\"/bin/sh\", \"-c\", \"echo off >> {}\"]", trace.path());
    let image = [
        ("ROUSE_AGENT_POWER_OFF", "latent"),
        ("ROUSE_AGENT_POWER_OFF_AFTER", "2"),
        ("ROUSE_AGENT_POWER_OFF_COMMAND", off.as_str()),
    ];
    let mut tried = master.begin_agent("tried", &image);
    master.until_worker("tried", "idle");

    let step = master.trace("step");
    let script = format!("while :; do echo tick >> {}; sleep 0.1; done", step.path());
    let id = master.detach(&["--worker", "sleeps", "--", "sh", "-c", &script]);
    master.until_state(&id, "running");
    master.until("its step runs", || step.lines().len() > 3);
    let host: i32 = text(&master.hosts("sleeps")[0]["handle"]).split(':').next().unwrap().parse().unwrap();

    let lost = Instant::now();
    master.kill();
    master.until_within(Duration::from_secs(LEASE + 5), "the build is ended with its lease", || {
        processes_with(&step.path()).is_empty()
    });
    assert!(runs(host), "its grace is not over");
    master.until_within(Duration::from_secs(GRACE + 5), "the host ends", || !runs(host));
    assert!(lost.elapsed() > Duration::from_secs(LEASE + GRACE - 2), "{:?}", lost.elapsed());

    // The standing worker's agent goes on trying, also when it is started again without a master: that must not wind
    // the timer up again.
    tried.kill();
    let mut tried = master.begin_agent("tried", &image);
    // One that begins later, and that no master has ever welcomed, does power off.
    let other_trace = master.trace("other-off");
    let other_off = off.replace(&trace.path(), &other_trace.path());
    let other = master.begin_agent_in("tried", "other", &[image[0], image[1], (image[2].0, &other_off)]);
    master.until("the other one powers off", || !other_trace.lines().is_empty());
    drop(other);
    assert!(trace.lines().is_empty(), "it powered off: {}", tried.err());
    assert!(tried.try_wait().is_none());
    master.begin();
    master.until_worker("tried", "idle");
    tried.kill();
}
