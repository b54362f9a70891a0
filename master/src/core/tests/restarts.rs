//! What the master does with its ledger when it starts.

use super::super::event::StartError;
use super::super::view::PlaceState;
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
fn a_host_that_ended_while_no_master_was_there_is_gone_at_once() {
    let mut bench = waking();
    bench.wake("l");
    bench.report("l", picture(1, 1, 1, 0, None));
    bench.hush();
    bench.restart();
    let host = bench.host("l");
    let death = Event::HostGone { host, why: "it ended while nobody listened".to_owned(), reclaimed: false };
    bench.event("gone", death.clone());
    // Twice is harmless, and the host that is ordered for the next try is another one.
    bench.event("gone", death);
    bench.check("restart_gone");
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
    bench.operate("l", Operation::Drain);
    bench.hush();
    bench.restart();
    // A start of the dead master may still be on its way: gone is believed when it can make nothing any more.
    bench.gone("l");
    bench.pass(100);
    bench.gone("l");
    bench.check("restart_stopping");
}

#[test]
fn an_upgrade_s_longer_lease_is_not_shortened_by_an_older_heartbeat() {
    let mut bench = waking();
    bench.hello("s", "a", 1, "password", Vec::new());
    bench.hush();
    bench.event("terminate", Event::Shutdown);
    bench.restart();
    bench.heartbeat("s", 1);
    bench.pass(304);
    bench.pass(2);
    bench.check("restart_upgrade");
}

#[test]
fn an_upgrade_s_longer_lease_outlives_a_step_of_the_clock() {
    for step in [3_600_000, -600_000] {
        let mut bench = waking();
        bench.hello("s", "a", 1, "password", Vec::new());
        bench.submit(on("s"));
        bench.report("s", picture(2, 1, 1, 0, None));
        bench.event("terminate", Event::Shutdown);
        bench.now = Timestamp(bench.now.0.saturating_add_signed(step));
        bench.restart();
        bench.hush();
        bench.pass(304);
        assert!(!bench.text.contains("the lease of worker s has expired"), "after {step} ms: {}", bench.text);
        bench.pass(2);
        assert!(bench.text.contains("the lease of worker s has expired"), "after {step} ms: {}", bench.text);
        // Promised once; it is not valid for a later restart.
        bench.restart();
        bench.hello("s", "b", 1, "password", Vec::new());
        bench.restart();
        bench.hush();
        bench.pass(36);
        assert!(bench.text.contains("the lease of worker s has expired"), "after {step} ms: {}", bench.text);
    }
}

#[test]
fn an_upgrade_without_a_broker_makes_no_lease_longer() {
    for before in [false, true] {
        let mut bench = waking();
        bench.hello("s", "a", 1, "password", Vec::new());
        bench.submit(on("s"));
        if before {
            bench.event("terminate", Event::Shutdown);
            bench.restart();
        }
        bench.event("broker down", Event::BrokerDown);
        bench.event("terminate", Event::Shutdown);
        bench.restart();
        bench.hush();
        let promised = if before { 300 } else { 30 };
        bench.pass(promised + 4);
        assert!(!bench.text.contains("the lease of worker s has expired"), "{before}: {}", bench.text);
        bench.pass(2);
        assert!(bench.text.contains("the lease of worker s has expired"), "{before}: {}", bench.text);
    }
}

#[test]
fn nothing_is_waited_for_that_a_clock_set_back_has_put_off() {
    let mut bench = Bench::quietly(plan(vec![latent("l"), standing("s")]));
    bench.pass(7_200);
    bench.submit(on("l"));
    let host = bench.host("l");
    let result = Err(StartError::Capacity("full".to_owned()));
    bench.event("start ended: capacity", Event::StartEnded { host, number: 0, result });
    bench.hello("s", "a", 1, "password", Vec::new());
    bench.submit(on("s"));
    bench.now = Timestamp(START);
    bench.hush();
    bench.restart();
    for seq in 1..=3 {
        bench.pass(10);
        bench.heartbeat("s", seq);
    }
    bench.pass(30);
    bench.check("restart_set_back");
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

/// Its worker left the configuration while no master ran: nothing but the host in the ledger leads to its provider.
#[test]
fn a_provider_that_only_hosts_in_the_ledger_lead_to_is_audited_and_its_place_goes_on_pausing() {
    let mut bench = waking();
    bench.wake("l");
    let provider = ProviderKind::Ec2;
    bench.event("not listed", Event::Listed { provider, result: Err("down".to_owned()) });
    assert_eq!(bench.core.place_views()[0].state, PlaceState::Pausing);
    bench.plan = Arc::new(plan(vec![standing("s")]));
    bench.hush();
    bench.restart();
    assert!(bench.text.contains("list ec2"), "{}", bench.text);
    let view = bench.core.place_views().remove(0);
    assert_eq!((view.name.as_str(), view.state), ("region", PlaceState::Pausing));
}
