//! Hosts: woken, idle, drained, terminated; failures; limits.

use super::super::event::{ListedHost, Listing, Owner, StartError};
use super::*;

fn with(change: impl Fn(&mut LatentPlan), workers: &[&str]) -> Plan {
    let one = |worker: &&str| {
        let mut plan = latent(worker);
        plan.latent.iter_mut().for_each(&change);
        plan
    };
    plan(workers.iter().map(one).collect())
}

/// Runs build `build` to its success on a worker.
fn finish(bench: &mut Bench, worker: &str, build: u64) {
    bench.report(worker, picture(build, 1, 9, 0, Some(Outcome::Success)));
}

fn failed(bench: &mut Bench, worker: &str, error: StartError) {
    let host = bench.host(worker);
    let number = bench.core.hosts[&host].host.launch.as_ref().unwrap().number;
    bench.event(&format!("start ended: {error:?}"), Event::StartEnded { host, number, result: Err(error) });
}

#[test]
fn from_submission_to_gone() {
    let mut bench = Bench::new(plan(vec![latent("l")]));
    bench.submit(on("l"));
    bench.started("l");
    bench.hello_with_token("l", "a", 1);
    bench.report("l", picture(1, 1, 1, 0, None));
    finish(&mut bench, "l", 1);
    for seq in 1..=6 {
        bench.pass(10);
        bench.heartbeat("l", seq);
    }
    bench.drained("l", 1);
    bench.pass(5);
    bench.gone("l");
    bench.check("life_of_a_host");
}

#[test]
fn a_build_that_comes_during_a_drain_waits_for_the_next_host() {
    let mut bench = Bench::quietly(with(|l| l.build_wait_timeout = Some(secs(0)), &["l"]));
    bench.submit(on("l"));
    bench.wake("l");
    bench.hush();
    finish(&mut bench, "l", 1);
    bench.pass(0);
    bench.submit(on("l"));
    bench.drained("l", 1);
    bench.gone("l");
    bench.check("build_during_drain");
}

#[test]
fn max_uses_retires_a_host() {
    let mut bench = Bench::quietly(with(|l| l.max_uses = 1, &["l"]));
    bench.submit(on("l"));
    bench.submit(on("l"));
    bench.wake("l");
    finish(&mut bench, "l", 1);
    bench.check("max_uses");
}

#[test]
fn a_negative_timeout_keeps_a_host() {
    let mut bench = Bench::quietly(with(|l| l.build_wait_timeout = None, &["l"]));
    bench.submit(on("l"));
    bench.wake("l");
    finish(&mut bench, "l", 1);
    bench.hush();
    for seq in 1..=400 {
        bench.pass(10);
        bench.heartbeat("l", seq);
    }
    assert!(!bench.text.contains("drain"), "{}", bench.text);
}

#[test]
fn min_idle_keeps_one_awake() {
    let mut bench = Bench::new(with(|l| l.min_idle = 1, &["l1", "l2"]));
    bench.wake("l1");
    bench.submit(anywhere());
    bench.wake("l2");
    finish(&mut bench, "l1", 1);
    for seq in 1..=7 {
        bench.pass(10);
        bench.heartbeat("l1", seq);
        bench.heartbeat("l2", seq);
    }
    bench.check("min_idle");
}

#[test]
fn a_spare_host_goes_soon_when_another_has_become_idle() {
    let mut bench = Bench::new(with(|l| l.min_idle = 1, &["l1", "l2"]));
    bench.wake("l1");
    bench.submit(anywhere());
    bench.wake("l2");
    let mut beats = 1..;
    let mut beat = |bench: &mut Bench, times: usize| {
        for seq in beats.by_ref().take(times) {
            bench.pass(10);
            bench.heartbeat("l1", seq);
            bench.heartbeat("l2", seq);
        }
    };
    // The other one is at work when it has been idle for long enough, and comes back a little later.
    beat(&mut bench, 6);
    bench.pass(5);
    finish(&mut bench, "l1", 1);
    assert!(!bench.text.contains("draining"), "{}", bench.text);
    beat(&mut bench, 1);
    assert!(bench.text.contains("l2: draining"), "{}", bench.text);
    beat(&mut bench, 7);
    assert!(!bench.text.contains("l1: draining"), "{}", bench.text);
}

#[test]
fn nobody_is_let_in_before_the_host_was_started() {
    let mut bench = Bench::quietly(plan(vec![latent("l")]));
    bench.slow = true;
    bench.submit(on("l"));
    bench.hush().hello("l", "a", 1, "password", Vec::new());
    assert!(bench.text.contains("refused and to power off: the host of this worker has not been"), "{}", bench.text);
    let host = bench.host("l");
    bench.prepared(host, 0);
    bench.hush().hello("l", "b", 1, "password", Vec::new());
    assert!(bench.text.contains("welcome"), "{}", bench.text);
}

#[test]
fn lists_that_lack_a_host_count_only_while_its_agent_is_silent() {
    let mut bench = Bench::quietly(plan(vec![latent("l")]));
    bench.submit(on("l"));
    bench.wake("l");
    let listed = |bench: &mut Bench| {
        bench.event("listed: nothing", Event::Listed { provider: ProviderKind::Ec2, result: Ok(Listing::default()) });
        bench.text.contains("no longer lists it")
    };
    for seq in 1..=20 {
        bench.pass(10);
        bench.heartbeat("l", seq);
        assert!(!listed(&mut bench), "its agent has just sent a message");
    }
    bench.pass(20);
    assert!(!listed(&mut bench), "a list may come late");
    assert!(listed(&mut bench), "its agent is silent");
}

#[test]
fn max_hosts_makes_room_when_one_is_gone() {
    let mut limited = plan(vec![latent("l1"), latent("l2")]);
    limited.max_hosts = Some(1);
    let mut bench = Bench::quietly(limited);
    bench.event("listed: nothing", Event::Listed { provider: ProviderKind::Ec2, result: Ok(Listing::default()) });
    bench.submit(on("l1"));
    bench.submit(on("l2"));
    bench.wake("l1");
    bench.hush();
    bench.report("l1", picture(1, 1, 1, 0, Some(Outcome::Success)));
    for seq in 1..=6 {
        bench.pass(10);
        bench.heartbeat("l1", seq);
    }
    bench.drained("l1", 1);
    bench.gone("l1");
    bench.check("max_hosts");
}

#[test]
fn max_hosts_counts_the_ledger_and_waits_for_no_list() {
    let mut limited = plan(vec![latent("l")]);
    limited.max_hosts = Some(1);
    let mut bench = Bench::quietly(limited);
    let orphan = ListedHost {
        host: HostId("h0".to_owned()),
        handle: "i-0".to_owned(),
        identity: None,
        owner: Owner::Ours,
        suspended: false,
    };
    let listed = |bench: &mut Bench, what: &str, result: Result<Vec<ListedHost>, String>| {
        let result = result.map(Listing::from);
        bench.event(&format!("listed: {what}"), Event::Listed { provider: ProviderKind::Ec2, result });
        let why = bench.core.why(bench.now, BuildId(1)).map_or(String::new(), |why| why.sentence);
        bench.text.push_str(&format!("        why: {why}\n"));
    };
    bench.submit(on("l"));
    listed(&mut bench, "error", Err("no answer".to_owned()));
    bench.pass(10);
    listed(&mut bench, "an orphan", Ok(vec![orphan]));
    listed(&mut bench, "nothing", Ok(Vec::new()));
    bench.check("max_hosts_unknown");
}

#[test]
fn failed_starts_back_off_by_kind() {
    let mut bench = Bench::quietly(plan(vec![latent("l")]));
    bench.submit(on("l"));
    failed(&mut bench, "l", StartError::Unknown("no answer".to_owned()));
    let why = bench.core.why(bench.now, BuildId(1)).map_or(String::new(), |why| why.sentence);
    assert!(why.contains("it is not known whether it was started, and the start is retried: no answer"), "{why}");
    bench.pass(4);
    // The first call may still make the machine: that this one has not proves nothing yet.
    failed(&mut bench, "l", StartError::Capacity("full".to_owned()));
    bench.pass(100);
    failed(&mut bench, "l", StartError::Capacity("full".to_owned()));
    bench.pass(130);
    failed(&mut bench, "l", StartError::Transient("busy".to_owned()));
    bench.pass(40);
    bench.check("failed_starts");
}

#[test]
fn failed_hosts_lose_no_build_and_the_worker_goes_on_probing() {
    let mut bench = Bench::quietly(plan(vec![latent("l")]));
    bench.submit(on("l"));
    failed(&mut bench, "l", StartError::Rejected("no such image".to_owned()));
    bench.pass(20);
    failed(&mut bench, "l", StartError::Place("no".to_owned()));
    bench.pass(40);
    failed(&mut bench, "l", StartError::Rejected("no such image".to_owned()));
    bench.operate("l", Operation::Resume);
    bench.check("three_failures");
}

#[test]
fn a_host_that_never_attaches_leaves_evidence() {
    let mut bench = Bench::quietly(plan(vec![latent("l")]));
    bench.submit(on("l"));
    bench.started("l");
    bench.pass(300);
    let host = bench.host("l");
    bench.event("console", Event::Console { host, text: Some("panic".to_owned()) });
    bench.gone("l");
    bench.check("never_attached");
}

/// What a host printed is worth having only until the host is terminated, and a machine has no name before its start is
/// answered.
#[test]
fn a_host_that_is_given_up_during_its_start_leaves_evidence() {
    let mut bench = Bench::quietly(plan(vec![latent("l")]));
    bench.submit(on("l"));
    bench.pass(300);
    bench.hush();
    bench.started("l");
    // Told twice.
    bench.started("l");
    bench.pass(5);
    let host = bench.host("l");
    bench.event("console", Event::Console { host, text: Some("panic".to_owned()) });
    bench.gone("l");
    bench.check("given_up_during_start");
}

/// What the place does not answer is no failure of the host, its worker or its image.
#[test]
fn a_host_whose_start_was_not_answered_has_all_its_time_to_attach() {
    let mut bench = Bench::quietly(plan(vec![latent("l")]));
    bench.submit(on("l"));
    for _ in 0..10 {
        failed(&mut bench, "l", StartError::Unknown("no answer".to_owned()));
        bench.pass(60);
    }
    assert_eq!(bench.core.workers[&name("l")].record.faults, 0, "{}", bench.text);
    bench.started("l");
    bench.pass(290);
    assert!(!bench.text.contains("did not attach"), "{}", bench.text);
    bench.pass(15);
    assert!(bench.text.contains("did not attach within"), "{}", bench.text);
}

#[test]
fn a_console_that_does_not_come_is_waited_for_only_so_long() {
    let mut bench = Bench::quietly(plan(vec![latent("l")]));
    bench.submit(on("l"));
    bench.pass(300);
    bench.started("l");
    bench.pass(19);
    assert!(!bench.text.contains("TERMINATE"), "{}", bench.text);
    bench.pass(1);
    assert!(bench.text.contains("TERMINATE"), "{}", bench.text);
}

#[test]
fn a_start_of_unknown_result_is_expected_while_its_host_is_terminated() {
    let mut bench = Bench::quietly(plan(vec![latent("l")]));
    bench.submit(on("l"));
    bench.terminate("l");
    failed(&mut bench, "l", StartError::Unknown("no answer".to_owned()));
    assert!(bench.text.contains("TERMINATE"), "{}", bench.text);
    // No list has it yet: that proves nothing.
    let host = bench.host("l");
    bench.gone("l");
    assert_eq!(bench.host("l"), host, "{}", bench.text);
    bench.pass(91);
    bench.gone("l");
    assert_ne!(bench.host("l"), host, "the build waits for another: {}", bench.text);
}

#[test]
fn operators_wind_hosts_down_and_up() {
    let mut bench = Bench::quietly(plan(vec![latent("l")]));
    bench.submit(on("l"));
    bench.submit(on("l"));
    bench.wake("l");
    bench.hush();
    bench.operate("l", Operation::Pause);
    finish(&mut bench, "l", 1);
    bench.operate("l", Operation::Resume);
    bench.operate("l", Operation::Drain);
    finish(&mut bench, "l", 2);
    bench.drained("l", 1);
    bench.gone("l");
    bench.operate("nobody", Operation::Drain);
    bench.check("operate_latent");
}

#[test]
fn a_terminated_host_costs_a_build_no_retry_and_its_worker_stays_in_use() {
    let mut bench = Bench::quietly(plan(vec![latent("l")]));
    bench.submit_with(on("l"), 0);
    bench.wake("l");
    bench.hush();
    bench.terminate("l");
    bench.gone("l");
    // The build waits again, and the same worker gets a host for it.
    bench.pass(60);
    bench.wake("l");
    // One that is lost by itself is counted.
    let host = bench.host("l");
    bench.event("host gone", Event::HostGone { host, why: "terminated".to_owned(), reclaimed: false });
    bench.check("terminate_host");
}

#[test]
fn a_host_that_has_not_attached_is_terminated_too_and_a_stranger_is_refused() {
    let mut bench = Bench::quietly(plan(vec![latent("l")]));
    bench.submit(on("l"));
    bench.terminate("l");
    bench.terminate("l");
    bench.event(
        "terminate nobody",
        Event::Command {
            request: RequestId(3),
            by: Caller::signal("test"),
            command: Command::TerminateHost(HostId("nobody".to_owned())),
        },
    );
    bench.check("terminate_host_early");
}

#[test]
fn an_orphan_is_terminated_and_a_failed_list_proves_nothing() {
    let mut bench = Bench::quietly(plan(vec![latent("l")]));
    let orphan = ListedHost {
        host: HostId("h0".to_owned()),
        handle: "i-0".to_owned(),
        identity: None,
        owner: Owner::Ours,
        suspended: false,
    };
    let provider = ProviderKind::Ec2;
    bench.event("listed: i-0", Event::Listed { provider, result: Ok(vec![orphan.clone()].into()) });
    bench.event("listed: error", Event::Listed { provider, result: Err("down".to_owned()) });
    bench.pass(91);
    bench.event("listed: i-0", Event::Listed { provider, result: Ok(vec![orphan].into()) });
    bench.check("orphan");
}

#[test]
fn a_reload_adds_removes_and_changes_workers() {
    let mut bench = Bench::quietly(plan(vec![latent("l1"), latent("l2"), standing("s")]));
    bench.submit(on("l1"));
    bench.submit(on("l2"));
    bench.wake("l1");
    bench.started("l2");
    bench.hello("s", "a", 1, "password", Vec::new());
    bench.hush();
    bench.configure("reload: l2 and s removed, n added", plan(vec![latent("l1"), standing("n")]));
    let mut changed = with(|l| l.fingerprint = 2, &["l1"]);
    changed.workers.insert(name("n"), Arc::new(standing("n")));
    bench.configure("reload: l1 with another image", changed);
    finish(&mut bench, "l1", 1);
    bench.gone("l2");
    bench.check("reload");
}

#[test]
fn without_capacity_the_next_alternative_is_ordered() {
    let mut bench = Bench::quietly(plan(vec![latent("l")]));
    bench.alternatives = 2;
    bench.submit(on("l"));
    failed(&mut bench, "l", StartError::Capacity("no m5.large in b".to_owned()));
    // The answer is repeated. The second one says nothing about the launch spec that is under way now.
    let host = bench.host("l");
    let result = Err(StartError::Capacity("no m5.large in b".to_owned()));
    bench.event("start ended, of order 0 again", Event::StartEnded { host, number: 0, result });
    failed(&mut bench, "l", StartError::Capacity("no m6.large in b".to_owned()));
    bench.check("alternatives");
}
