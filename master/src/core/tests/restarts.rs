//! What a master makes of its ledger when it starts.

use super::*;

fn waking() -> Bench {
    let mut bench = Bench::quietly(plan(vec![latent("l"), standing("s")]));
    bench.submit_with(on("l"), 1);
    bench.hush();
    bench
}

#[test]
fn an_order_is_repeated_word_for_word() {
    let mut bench = waking();
    bench.restart();
    bench.started("l");
    bench.check("restart_ordered");
}

#[test]
fn a_booting_host_is_waited_for() {
    let mut bench = waking();
    bench.started("l");
    bench.hush();
    bench.restart();
    bench.hello_with_token("l", "a", 1);
    bench.check("restart_booting");
}

#[test]
fn a_running_build_goes_on() {
    let mut bench = waking();
    bench.wake("l");
    bench.report("l", picture(1, 1, 1, 0, None));
    bench.hush();
    bench.restart();
    bench.pass(10);
    bench.heartbeat("l", 1);
    bench.report("l", picture(1, 1, 2, 0, Some(Outcome::Success)));
    bench.check("restart_running");
}

#[test]
fn a_drain_goes_on() {
    let mut bench = waking();
    bench.wake("l");
    bench.operate("l", Operation::Drain);
    bench.hush();
    bench.restart();
    bench.heartbeat("l", 1);
    bench.report("l", picture(1, 1, 1, 0, Some(Outcome::Success)));
    bench.drained("l", 1);
    bench.check("restart_draining");
}

#[test]
fn a_stop_is_repeated() {
    let mut bench = waking();
    bench.operate("l", Operation::Stop);
    bench.hush();
    bench.restart();
    bench.gone("l");
    bench.check("restart_stopping");
}

#[test]
fn an_upgrade_s_longer_lease_is_not_shortened_by_an_older_heartbeat() {
    let mut bench = waking();
    bench.hello("s", "a", 1, "password", Vec::new());
    bench.hush();
    bench.event("terminate", Event::Terminate);
    bench.restart();
    bench.heartbeat("s", 1);
    bench.pass(304);
    bench.pass(2);
    bench.check("restart_upgrade");
}

#[test]
fn an_order_for_a_worker_that_was_taken_out_is_taken_back() {
    let mut bench = Bench::quietly(plan(vec![standing("s"), standing("z")]));
    bench.hello("s", "a", 1, "password", Vec::new());
    bench.submit(anywhere());
    bench.hush();
    bench.plan = Arc::new(plan(vec![standing("z")]));
    bench.restart();
    bench.pass(20);
    bench.heartbeat("s", 1);
    bench.report("s", picture(1, 1, 1, 0, Some(Outcome::Declined("cancelled before it arrived".to_owned()))));
    bench.check("restart_without");
}
