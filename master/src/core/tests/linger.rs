//! Hosts that stay although they were asked to end.

use super::super::event::{ListedHost, Owner, Termination};
use super::*;

const WHY: &str = "OperationNotPermitted: i-1 is protected";

/// A host that an operator has just asked to end, while a build runs on it. One waits for its worker, after which
/// somebody looks, and one for another worker.
fn terminated() -> Bench {
    let mut worker = latent("l");
    worker.notify_on_missing = vec!["ann@example.org".to_owned()];
    let mut plan = plan(vec![worker, latent("m")]);
    plan.max_hosts = Some(1);
    let mut bench = Bench::quietly(plan);
    for worker in ["l", "l", "m"] {
        bench.submit(on(worker));
    }
    bench.wake("l");
    bench.hush();
    bench.terminate("l");
    bench
}

/// The provider answers each call for so many seconds.
fn answers(bench: &mut Bench, seconds: u64, result: &Result<Termination, String>) {
    let (host, end) = (bench.host("l"), bench.now + secs(seconds));
    while bench.now < end {
        bench.event("terminate ended", Event::TerminateEnded { host: host.clone(), result: result.clone() });
        bench.pass(10);
    }
}

fn count(bench: &Bench, what: &str) -> usize {
    bench.text.matches(what).count()
}

/// Of the build that ran on it, and of those that wait.
fn why(bench: &Bench) -> [String; 3] {
    [1, 2, 3].map(|build| bench.core.why(bench.now, BuildId(build)).unwrap().sentence)
}

#[test]
fn a_host_whose_termination_is_refused_is_reported_once_and_again_when_it_is_gone() {
    let mut bench = terminated();
    answers(&mut bench, 60, &Ok(Termination::Requested));
    answers(&mut bench, 330, &Err(WHY.to_owned()));
    assert_eq!(count(&bench, "lingers"), 0, "that may pass: {}", bench.text);
    let seen = bench.core.host_views(bench.now).remove(0).host.why.unwrap();
    assert!(seen.ends_with(&format!("; it could not be terminated yet: {WHY}")), "{seen}");
    let asked = format!("host {} (i-1 of ec2) of worker l was asked to end 390 s ago: {WHY}", bench.host("l"));
    let [ran, waits, other] = why(&bench);
    assert!(ran.ends_with(&format!("the build is retried once the machine is gone; {asked}")), "{ran}");
    assert!(waits.ends_with(&format!("for worker l (1 draining); {asked}")), "{waits}");
    assert!(other.ends_with(&format!("limits.max_hosts allows is in use; {asked}")), "{other}");
    answers(&mut bench, 7_200, &Err(WHY.to_owned()));
    let warned =
        format!("host host1 (i-1 of ec2) of l could not be terminated for 7 minutes and may cost money: {WHY}");
    let told = format!("for ann@example.org: i-1 lingers: {WHY}");
    assert_eq!((count(&bench, &warned), count(&bench, &told)), (1, 1), "{}", bench.text);
    assert_eq!(count(&bench, "host1 could not be terminated:"), 1, "each reason once: {}", bench.text);
    assert_eq!(bench.core.lingering_count(), 1);
    // The next master goes on with it, and repeats nothing.
    bench.restart();
    answers(&mut bench, 1_800, &Err(WHY.to_owned()));
    assert_eq!(count(&bench, &told), 1, "{}", bench.text);
    bench.gone("l");
    bench.pass(60);
    assert_eq!(count(&bench, "for ann@example.org: i-1 gone after all"), 1, "{}", bench.text);
}

#[test]
fn a_host_whose_termination_is_accepted_and_does_not_happen_is_reported_too() {
    let mut bench = terminated();
    answers(&mut bench, 3_600, &Ok(Termination::Requested));
    let accepted = "its provider has accepted the termination, and the machine is still there";
    assert_eq!(count(&bench, &format!("for ann@example.org: i-1 lingers: {accepted}")), 1, "{}", bench.text);
    assert!(why(&bench).iter().all(|why| why.contains(accepted)), "{:?}", why(&bench));
}

#[test]
fn a_host_whose_provider_never_answers_is_reported_too() {
    let mut bench = terminated();
    for _ in 0..60 {
        bench.pass(10);
    }
    assert_eq!(count(&bench, "for ann@example.org: i-1 lingers"), 1, "{}", bench.text);
}

#[test]
fn a_host_that_ends_in_a_few_minutes_or_was_given_up_is_no_news() {
    let mut bench = terminated();
    answers(&mut bench, 300, &Err(WHY.to_owned()));
    bench.gone("l");
    bench.pass(600);
    assert_eq!((count(&bench, "lingers"), count(&bench, "after all")), (0, 0), "{}", bench.text);
    let mut bench = terminated();
    let host = bench.host("l");
    let forget =
        Event::Command { request: RequestId(4), by: Caller::signal("test"), command: Command::ForgetHost(host) };
    // Its agent has just been heard of: the host is given up when its lease is over.
    bench.pass(200);
    bench.event("forget", forget);
    bench.pass(1_200);
    assert_eq!(count(&bench, "lingers"), 0, "{}", bench.text);
}

#[test]
fn an_orphan_whose_termination_is_refused_is_reported_once_and_again_when_it_is_gone() {
    let mut plan = plan(vec![latent("l")]);
    plan.mail.extra_recipients.insert("ops@example.org".to_owned());
    let mut bench = Bench::quietly(plan);
    let provider = ProviderKind::Ec2;
    let handle = "i-0".to_owned();
    let host = HostId("h0".to_owned());
    let orphan = ListedHost { host, handle: handle.clone(), identity: None, owner: Owner::Ours, suspended: false };
    let list = |bench: &mut Bench, listed: Vec<ListedHost>| {
        bench.event("listed", Event::Listed { provider, result: Ok(listed.into()) });
    };
    list(&mut bench, vec![orphan.clone()]);
    bench.pass(91);
    // The audit has found it. From now on the master looks by itself, long before the next audit.
    list(&mut bench, vec![orphan.clone()]);
    for _ in 0..180 {
        let asked = count(&bench, "list ec2");
        let result = Err(WHY.to_owned());
        bench.event(
            "orphan's terminate ended",
            Event::OrphanTerminateEnded { provider, handle: handle.clone(), result },
        );
        bench.pass(10);
        if count(&bench, "list ec2") > asked {
            list(&mut bench, vec![orphan.clone()]);
        }
    }
    assert!(count(&bench, "TERMINATE ORPHAN i-0") >= 4, "{}", bench.text);
    assert_eq!(count(&bench, &format!("for ops@example.org: i-0 lingers: {WHY}")), 1, "{}", bench.text);
    assert_eq!(bench.core.lingering_count(), 1);
    assert_eq!(count(&bench, "orphan i-0 could not be terminated:"), 1, "{}", bench.text);
    list(&mut bench, Vec::new());
    bench.pass(60);
    assert_eq!(count(&bench, "for ops@example.org: i-0 gone after all"), 1, "{}", bench.text);
}
