//! An agent that attached as a host before the provider reported the host's machine, and that is on another machine.

use super::*;
use crate::core::event::{ListedHost, Owner};

/// A host that is being started, on which a copy of the image with the password in it has attached and runs its build.
fn mistaken() -> Bench {
    let mut bench = Bench::quietly(plan(vec![latent("l")]));
    bench.submit_with(on("l"), 1);
    bench.hello_from("l", "copy", "c", 1, "password", Vec::new());
    bench.report("l", picture(1, 1, 1, 0, None));
    bench.hush();
    bench
}

fn token(bench: &Bench) -> String {
    bench.core.hosts[&bench.host("l")].host.token.clone()
}

#[test]
fn the_right_machine_is_let_in_when_the_lease_of_the_wrong_one_is_over() {
    let mut bench = mistaken();
    let (token, secret) = (token(&bench), bench.secret.clone());
    bench.hello_from("l", "machine", "m", 1, &token, Vec::new());
    bench.started_as("l", Some("machine"));
    let session = bench.session("l");
    bench.pass(5);
    // Neither its heartbeats nor its reports count, and no credential lets it in.
    bench.heartbeat("l", 1);
    bench.report("l", picture(1, 1, 2, 0, Some(Outcome::Success)));
    bench.agent("goodbye", "l", ToMaster::Goodbye { session });
    bench.hello_from("l", "copy", "c", 2, &secret, vec![picture(1, 1, 1, 0, None)]);
    bench.hello_from("l", "copy", "d", 1, &secret, Vec::new());
    bench.hello_from("l", "copy", "e", 1, "password", Vec::new());
    bench.hello_from("l", "machine", "m", 2, &token, Vec::new());
    bench.pass(28);
    bench.pass(2);
    bench.hello_from("l", "copy", "e", 2, "password", Vec::new());
    bench.hello_from("l", "machine", "m", 3, &token, Vec::new());
    bench.heartbeat("l", 1);
    bench.check("impostor");
}

#[test]
fn a_lost_answer_is_made_good_by_the_list_of_a_new_master() {
    let mut bench = mistaken();
    let (host, token) = (bench.host("l"), token(&bench));
    bench.restart();
    let owner = Owner::Ours;
    let machine =
        ListedHost { host, handle: "i-1".to_owned(), identity: Some("machine".to_owned()), owner, suspended: false };
    bench.event("listed", Event::Listed { provider: ProviderKind::Ec2, result: Ok(vec![machine].into()) });
    bench.pass(10);
    bench.restart();
    bench.heartbeat("l", 1);
    bench.hello_from("l", "machine", "m", 1, &token, Vec::new());
    bench.pass(36);
    bench.hello_from("l", "machine", "m", 2, &token, Vec::new());
    bench.check("impostor_after_restart");
}

#[test]
fn that_the_host_is_gone_proves_nothing_of_a_stray() {
    let mut bench = mistaken();
    bench.started_as("l", Some("machine"));
    bench.operate("l", Operation::Drain);
    bench.gone("l");
    bench.operate("l", Operation::Resume);
    bench.pass(36);
    bench.check("impostor_without_host");
}

#[test]
fn that_a_host_is_gone_whose_machine_was_never_known_proves_nothing() {
    let mut bench = mistaken();
    let host = bench.host("l");
    bench.event("host gone", Event::HostGone { host, why: "terminated".to_owned(), reclaimed: false });
    bench.heartbeat("l", 1);
    bench.hello_from("l", "copy", "c", 2, "password", vec![picture(1, 1, 1, 0, None)]);
    bench.pass(36);
    bench.check("gone_unknown");
}

#[test]
fn a_host_that_was_to_be_drained_is_stopped() {
    let mut bench = mistaken();
    bench.operate("l", Operation::Drain);
    bench.started_as("l", Some("machine"));
    bench.check("impostor_draining");
}

#[test]
fn without_a_lease_a_stray_has_as_long_as_its_link_may_be_down() {
    let endless = WorkerPlan { lease: None, ..latent("l") };
    let mut bench = Bench::quietly(plan(vec![endless]));
    bench.submit_with(on("l"), 1);
    bench.hello_from("l", "copy", "c", 1, "password", Vec::new());
    bench.hush();
    bench.started_as("l", Some("machine"));
    bench.restart();
    bench.pass(599);
    bench.pass(10);
    bench.check("impostor_without_lease");
}

#[test]
fn the_right_machine_that_was_first_goes_on() {
    let mut bench = Bench::quietly(plan(vec![latent("l")]));
    bench.submit(on("l"));
    bench.hush();
    bench.hello_with_token("l", "a", 1);
    bench.hello_from("l", "copy", "c", 1, "password", Vec::new());
    bench.started_as("l", Some("machine"));
    bench.hello_from("l", "copy", "c", 2, "password", Vec::new());
    bench.heartbeat("l", 1);
    bench.check("not_impostor");
}

#[test]
fn a_copy_of_a_standing_machine_s_disk_proves_nothing_by_its_secret() {
    let mut bench = Bench::quietly(plan(vec![standing("s")]));
    bench.hello("s", "a", 1, "password", Vec::new());
    let secret = bench.secret.clone();
    bench.hush();
    bench.hello_from("s", "copy", "b", 1, &secret, Vec::new());
    bench.hello("s", "b", 1, &secret, Vec::new());
    bench.check("copied_secret");
}
