//! Suspended hosts: suspended when idle, resumed instead of ordering another, terminated at their maximum age.

use super::super::audit::AuditMode;
use super::super::event::{ListedHost, Listing, Owner, StartError, Suspension, Termination};
use super::super::plan::Suspend;
use super::*;

/// Workers whose hosts sleep when they are idle at all, and are kept for an hour.
fn suspending(workers: &[&str]) -> Plan {
    let one = |worker: &&str| {
        let mut plan = latent(worker);
        plan.latent.iter_mut().for_each(|l| {
            l.build_wait_timeout = Some(secs(0));
            l.suspend = Some(Suspend { max_age: secs(3_600) });
        });
        plan
    };
    plan(workers.iter().map(one).collect())
}

impl Bench {
    fn suspended(&mut self, worker: &str, result: Result<Suspension, String>) {
        let host = self.host(worker);
        self.event(&format!("suspend ended: {result:?}"), Event::SuspendEnded { host, result });
    }

    fn resumed(&mut self, worker: &str, result: Result<(), StartError>) {
        let host = self.host(worker);
        self.event(&format!("resume ended: {result:?}"), Event::ResumeEnded { host, result });
    }

    fn finish(&mut self, worker: &str, build: u64) {
        self.report(worker, picture(build, 1, 9, 0, Some(Outcome::Success)));
        self.pass(0);
    }

    fn state(&self, worker: &str) -> HostState {
        self.core.hosts[&self.host(worker)].host.state
    }

    fn why(&self, build: u64) -> String {
        self.core.why(self.now, BuildId(build)).unwrap().sentence
    }
}

/// A core whose worker `l` has a host that sleeps, after build 1.
fn suspended(plan: Plan) -> Bench {
    let mut bench = Bench::quietly(plan);
    bench.submit(on("l"));
    bench.wake("l");
    bench.finish("l", 1);
    bench.drained("l", 1);
    bench.suspended("l", Ok(Suspension::Suspended));
    assert_eq!(bench.state("l"), HostState::Suspended);
    bench.hush();
    bench
}

#[test]
fn from_idle_to_sleep_and_back_until_it_is_old() {
    let mut bench = Bench::quietly(suspending(&["l"]));
    bench.submit(on("l"));
    bench.wake("l");
    bench.hush();
    bench.finish("l", 1);
    bench.drained("l", 1);
    bench.suspended("l", Ok(Suspension::Requested));
    bench.pass(5);
    // An agent that has not received its end yet, and one on a machine that somebody has started.
    bench.hello_with_token("l", "b", 1);
    bench.suspended("l", Ok(Suspension::Suspended));
    bench.pass(600);
    bench.submit(on("l"));
    // It still tries the secret of its last session, which nobody knows any more.
    bench.hello("l", "c", 1, "an old secret", Vec::new());
    bench.resumed("l", Ok(()));
    bench.hello_with_token("l", "c", 2);
    bench.finish("l", 2);
    bench.drained("l", 1);
    bench.suspended("l", Ok(Suspension::Suspended));
    bench.pass(2_995);
    bench.gone("l");
    bench.check("life_of_a_sleeper");
}

#[test]
fn a_master_that_starts_goes_on_where_it_was() {
    let mut bench = Bench::quietly(suspending(&["l"]));
    bench.submit(on("l"));
    bench.wake("l");
    bench.finish("l", 1);
    bench.drained("l", 1);
    bench.hush();
    bench.restart();
    // A call of the last master may come late, and must not meet a host that was resumed.
    bench.suspended("l", Ok(Suspension::Suspended));
    bench.submit(on("l"));
    assert!(bench.why(2).contains("is being suspended and can be resumed after that"), "{}", bench.why(2));
    bench.pass(100);
    bench.suspended("l", Ok(Suspension::Suspended));
    let token = bench.core.hosts[&bench.host("l")].host.token.clone();
    bench.restart();
    bench.resumed("l", Err(StartError::Unknown("no answer".to_owned())));
    assert!(bench.why(2).contains("resuming it failed and is retried: no answer"), "{}", bench.why(2));
    bench.pass(4);
    bench.resumed("l", Ok(()));
    assert_eq!(bench.core.hosts[&bench.host("l")].host.token, token, "the token that was committed");
    bench.hello_with_token("l", "b", 1);
    bench.check("sleep_restarts");
}

#[test]
fn a_restart_lets_it_sleep_and_ends_it_in_time() {
    let mut bench = suspended(suspending(&["l"]));
    bench.restart();
    bench.pass(3_500);
    assert_eq!(bench.state("l"), HostState::Suspended);
    bench.restart();
    bench.pass(101);
    assert_eq!(bench.state("l"), HostState::Terminating);
}

#[test]
fn what_cannot_be_woken_is_ended_and_another_is_bought() {
    for error in [StartError::Capacity("none left".to_owned()), StartError::Rejected("it is gone".to_owned())] {
        let mut bench = suspended(suspending(&["l"]));
        let first = bench.host("l");
        bench.submit(on("l"));
        assert!(bench.why(2).contains("is being resumed for this build (resumed 0 s ago"), "{}", bench.why(2));
        bench.resumed("l", Err(error));
        assert_eq!(bench.state("l"), HostState::Terminating);
        bench.gone("l");
        assert_ne!(bench.host("l"), first);
        assert!(bench.text.contains("prepare order 0"), "{}", bench.text);
        let failures = bench.core.workers[&name("l")].record.failures;
        assert_eq!(failures, 0, "it is no failed start");
    }
}

/// A call without an answer may still resume the machine after it was suspended again.
#[test]
fn one_is_not_suspended_while_a_call_that_resumes_it_may_still_come() {
    let mut bench = suspended(suspending(&["l"]));
    bench.submit(on("l"));
    bench.resumed("l", Err(StartError::Unknown("no answer".to_owned())));
    bench.pass(4);
    bench.resumed("l", Ok(()));
    bench.hello_with_token("l", "b", 1);
    bench.finish("l", 2);
    bench.drained("l", 1);
    assert!(bench.text.contains("TERMINATE") && !bench.text.contains("SUSPEND"), "{}", bench.text);
}

#[test]
fn one_that_is_given_up_while_it_is_resumed_leaves_evidence() {
    let mut bench = suspended(suspending(&["l"]));
    bench.submit(on("l"));
    bench.pass(300);
    assert!(!bench.text.contains("fetch console"), "the call that resumes it is waited for: {}", bench.text);
    bench.resumed("l", Ok(()));
    assert!(bench.text.contains("fetch console") && !bench.text.contains("TERMINATE"), "{}", bench.text);
    let host = bench.host("l");
    bench.event("console", Event::Console { host, text: Some("panic".to_owned()) });
    assert!(bench.text.contains("TERMINATE"), "{}", bench.text);
}

#[test]
fn one_that_does_not_attach_when_woken_is_given_up() {
    let mut bench = suspended(suspending(&["l"]));
    bench.submit(on("l"));
    bench.resumed("l", Ok(()));
    bench.pass(300);
    assert_eq!(bench.state("l"), HostState::Terminating);
    assert!(bench.text.contains("its agent did not attach within 300 s"), "{}", bench.text);
}

/// The seconds in which the place refuses the call are not the host's.
#[test]
fn one_whose_place_refused_to_wake_it_has_all_its_time_to_attach() {
    let mut bench = suspended(suspending(&["l"]));
    bench.submit(on("l"));
    bench.pass(280);
    bench.resumed("l", Err(StartError::Place("503".to_owned())));
    bench.resumed("l", Ok(()));
    bench.pass(290);
    assert_eq!(bench.state("l"), HostState::Booting, "{}", bench.text);
    bench.pass(15);
    assert!(bench.text.contains("did not attach within 300 s"), "{}", bench.text);
}

#[test]
fn one_that_does_not_fall_asleep_is_ended() {
    let drained = || {
        let mut bench = Bench::quietly(suspending(&["l"]));
        bench.submit(on("l"));
        bench.wake("l");
        bench.finish("l", 1);
        bench.drained("l", 1);
        bench
    };
    let mut bench = drained();
    bench.suspended("l", Ok(Suspension::Unable("it has no disk of its own".to_owned())));
    assert_eq!(bench.state("l"), HostState::Terminating);
    let mut bench = drained();
    while bench.state("l") == HostState::Suspending {
        bench.suspended("l", Err("no answer".to_owned()));
        bench.pass(60);
    }
    assert!(bench.text.contains("it was not suspended within 900 s"), "{}", bench.text);
    let mut bench = drained();
    let host = bench.host("l");
    bench.event("gone", Event::HostGone { host, why: "terminated".to_owned(), reclaimed: false });
    assert!(bench.core.hosts.is_empty());
}

#[test]
fn it_does_not_sleep_where_it_would_not_be_used_again() {
    let mut used_up = suspending(&["l"]);
    let worker = Arc::make_mut(used_up.workers.get_mut(&name("l")).unwrap());
    worker.latent.as_mut().unwrap().max_uses = 1;
    let mut bench = Bench::quietly(used_up);
    bench.submit(on("l"));
    bench.wake("l");
    bench.finish("l", 1);
    bench.drained("l", 1);
    assert_eq!(bench.state("l"), HostState::Terminating);
    // An operator wants it off; whether he says so before or after.
    let mut bench = suspended(suspending(&["l"]));
    bench.operate("l", Operation::Pause);
    assert_eq!(bench.state("l"), HostState::Suspended);
    bench.operate("l", Operation::Drain);
    assert_eq!(bench.state("l"), HostState::Terminating);
}

#[test]
fn a_reload_ends_what_is_not_to_be_woken_any_more() {
    let change = |of: fn(&mut LatentPlan)| {
        let mut plan = suspending(&["l"]);
        let worker = Arc::make_mut(plan.workers.get_mut(&name("l")).unwrap());
        of(worker.latent.as_mut().unwrap());
        plan
    };
    let plans = [
        ("on_idle = terminate", change(|l| l.suspend = None)),
        ("another image", change(|l| l.fingerprint = 2)),
        ("a shorter age", change(|l| l.suspend = Some(Suspend { max_age: secs(0) }))),
        ("the worker is gone", plan(Vec::new())),
        ("it is a standing one now", plan(vec![standing("l")])),
    ];
    for (what, plan) in plans {
        let mut bench = suspended(suspending(&["l"]));
        bench.configure(what, plan);
        assert_eq!(bench.state("l"), HostState::Terminating, "{what}");
        bench.gone("l");
        assert!(bench.core.hosts.is_empty(), "{what}");
    }
    let mut bench = suspended(suspending(&["l"]));
    bench.configure("a longer age", change(|l| l.suspend = Some(Suspend { max_age: secs(7_200) })));
    bench.pass(3_700);
    assert_eq!(bench.state("l"), HostState::Suspended);
    bench.pass(3_600);
    assert_eq!(bench.state("l"), HostState::Terminating);
}

#[test]
fn it_takes_no_place_and_costs_nothing_while_it_sleeps() {
    let mut limited = suspending(&["l", "m"]);
    limited.max_hosts = Some(1);
    let mut bench = Bench::quietly(limited);
    bench.price = Some(1.0);
    bench.event("listed: nothing", Event::Listed { provider: ProviderKind::Ec2, result: Ok(Listing::default()) });
    bench.submit(on("l"));
    bench.wake("l");
    for seq in 1..=18 {
        bench.pass(10);
        bench.heartbeat("l", seq);
    }
    bench.finish("l", 1);
    bench.drained("l", 1);
    bench.suspended("l", Ok(Suspension::Suspended));
    let cost = |bench: &Bench| bench.core.host_views(bench.now)[0].host.cost.unwrap();
    let after_three_minutes = 0.05;
    assert!((cost(&bench) - after_three_minutes).abs() < 1e-9);
    bench.pass(1_800);
    assert!((cost(&bench) - after_three_minutes).abs() < 1e-9);
    // Its place is another's now, and it waits for its own.
    bench.submit(on("m"));
    bench.submit(on("l"));
    assert_eq!(bench.state("l"), HostState::Suspended);
    assert!(bench.why(3).contains("the one host that limits.max_hosts allows is in use"), "{}", bench.why(3));
    bench.wake("m");
    bench.finish("m", 2);
    bench.drained("m", 1);
    bench.suspended("m", Ok(Suspension::Suspended));
    assert_eq!(bench.state("l"), HostState::Resuming);
    bench.resumed("l", Ok(()));
    bench.pass(180);
    let host = bench.host("l");
    let views = bench.core.host_views(bench.now);
    let cost = views.iter().find(|v| v.host.id == host).unwrap().host.cost.unwrap();
    assert!((cost - 2.0 * after_three_minutes).abs() < 1e-9, "{cost}");
}

#[test]
fn one_that_sleeps_is_woken_before_another_is_bought() {
    let mut bench = suspended(suspending(&["a", "l", "z"]));
    bench.submit(anywhere());
    assert_eq!(bench.state("l"), HostState::Resuming);
    assert_eq!(bench.core.hosts.len(), 1);
}

#[test]
fn one_that_runs_all_the_same_is_put_to_sleep_again() {
    let mut bench = suspended(suspending(&["l"]));
    let listed = |bench: &mut Bench, suspended: bool| {
        let host = bench.host("l");
        let machine = ListedHost { host, handle: "i-1".to_owned(), identity: None, owner: Owner::Ours, suspended };
        let result = Ok(vec![machine].into());
        bench.event("listed", Event::Listed { provider: ProviderKind::Ec2, result });
    };
    listed(&mut bench, true);
    assert_eq!(bench.state("l"), HostState::Suspended);
    listed(&mut bench, false);
    assert!(bench.text.contains("SUSPEND"), "{}", bench.text);
    bench.suspended("l", Ok(Suspension::Suspended));
    assert_eq!(bench.state("l"), HostState::Suspended);
    // An audit for a user reports it before the next periodic one. An audit that fixes suspends it.
    let audit = |bench: &mut Bench, mode: AuditMode| {
        let request = RequestId(7);
        bench.hush();
        bench.event(
            &format!("audit: {mode:?}"),
            Event::Command { request, by: Caller::signal("test"), command: Command::Audit(mode) },
        );
        for round in 1..=3 {
            let (host, suspended) = (bench.host("l"), bench.state("l") != HostState::Suspended);
            let machine = ListedHost { host, handle: "i-1".to_owned(), identity: None, owner: Owner::Ours, suspended };
            let (provider, result) = (ProviderKind::Ec2, Ok(vec![machine].into()));
            bench.event("listed", Event::ListedForAudit { request, round, provider, result });
            bench.pass(4);
        }
    };
    audit(&mut bench, AuditMode::Look);
    assert!(bench.text.contains("it should be suspended, but its machine is running"), "{}", bench.text);
    assert!(!bench.text.contains("SUSPEND"), "{}", bench.text);
    audit(&mut bench, AuditMode::Fix);
    assert!(bench.text.contains("SUSPEND") && bench.text.contains("done: true"), "{}", bench.text);
    bench.suspended("l", Ok(Suspension::Suspended));
    assert_eq!(bench.state("l"), HostState::Suspended);
    // Ended by somebody, it is missed.
    for _ in 0..2 {
        bench.pass(100);
        bench.event("listed", Event::Listed { provider: ProviderKind::Ec2, result: Ok(Listing::default()) });
    }
    assert!(bench.core.hosts.is_empty());
}

#[test]
fn what_is_stopped_while_it_is_being_woken_is_stopped_after() {
    let mut bench = suspended(suspending(&["l"]));
    bench.submit(on("l"));
    bench.operate("l", Operation::Drain);
    assert!(!bench.text.contains("TERMINATE"), "the call that resumes it is waited for: {}", bench.text);
    bench.resumed("l", Ok(()));
    assert!(bench.text.contains("TERMINATE"), "{}", bench.text);
    let host = bench.host("l");
    bench.event("terminate ended", Event::TerminateEnded { host, result: Ok(Termination::Gone) });
    assert!(bench.core.hosts.is_empty());
}
