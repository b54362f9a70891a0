//! Sessions: which agents are accepted, leases, and what it means if an agent comes back.

use super::*;
use crate::core::Admitted;
use rouse_shared::message::CloudNotice;

fn running_latent() -> Bench {
    let mut bench = Bench::quietly(plan(vec![latent("l")]));
    bench.submit_with(on("l"), 1);
    bench.wake("l");
    bench.report("l", picture(1, 1, 1, 0, None));
    bench.hush();
    bench
}

fn running_standing() -> Bench {
    let mut bench = Bench::quietly(plan(vec![standing("s")]));
    bench.submit_with(on("s"), 1);
    bench.hello("s", "a", 1, "password", Vec::new());
    bench.report("s", picture(1, 1, 1, 0, None));
    bench.hush();
    bench
}

#[test]
fn a_blip_ends_nothing() {
    let mut bench = running_standing();
    let event = Event::Detached { worker: name("s"), queue: Some("s/a/1".to_owned()) };
    bench.event("detached", event);
    bench.pass(20);
    bench.hello("s", "a", 2, "password", vec![picture(1, 1, 1, 0, None)]);
    bench.hello("s", "a", 1, "password", Vec::new());
    bench.pass(20);
    bench.heartbeat("s", 1);
    bench.check("blip");
}

#[test]
fn a_hello_that_comes_twice_takes_no_build_away() {
    let mut bench = running_standing();
    bench.event("detached", Event::Detached { worker: name("s"), queue: Some("s/a/1".to_owned()) });
    bench.hello("s", "a", 1, "password", Vec::new());
    bench.check("hello_again");
}

#[test]
fn an_agent_that_comes_back_without_its_attempt_has_lost_it() {
    let mut bench = running_standing();
    bench.hello("s", "a", 2, "password", Vec::new());
    bench.check("back_without");
}

#[test]
fn the_lease_of_a_standing_worker_ends() {
    let mut bench = running_standing();
    bench.pass(34);
    bench.pass(2);
    bench.pass(300);
    bench.hello("s", "b", 1, "password", Vec::new());
    bench.check("lease_standing");
}

#[test]
fn a_new_password_ends_the_session_of_the_old_one_when_nothing_runs() {
    let mut bench = running_standing();
    let secret = bench.secret.clone();
    let mut changed = standing("s");
    changed.password = Digest::of("new password");
    bench.configure("reload: s has a new password", plan(vec![changed]));
    bench.submit(on("s"));
    // Its running build goes on, also over a new connection and a new life, which have only the session secret.
    bench.hello("s", "a", 2, &secret, vec![picture(1, 1, 1, 0, None)]);
    bench.heartbeat("s", 1);
    bench.report("s", picture(1, 1, 2, 0, Some(Outcome::Success)));
    bench.hello("s", "a", 3, &secret, Vec::new());
    bench.hello("s", "a", 4, "password", Vec::new());
    bench.hello("s", "b", 1, "new password", Vec::new());
    bench.check("new_password");
}

#[test]
fn the_secret_of_a_session_does_not_replace_a_new_password() {
    let mut bench = Bench::quietly(plan(vec![standing("s")]));
    bench.hello("s", "a", 1, "password", Vec::new());
    bench.submit(on("s"));
    bench.report("s", picture(1, 1, 1, 0, None));
    let mut changed = standing("s");
    changed.password = Digest::of("new password");
    bench.configure("reload: s has a new password", plan(vec![changed]));
    let secret = bench.secret.clone();
    bench.hush();
    // The agent is started again, and has lost its build with its machine.
    bench.hello("s", "b", 1, &secret, Vec::new());
    bench.check("old_secret_new_password");
}

#[test]
fn a_standing_agent_does_not_take_the_place_of_the_host_before_it() {
    let mut bench = Bench::quietly(plan(vec![latent("l")]));
    bench.submit(on("l"));
    bench.started("l");
    let mut now_standing = standing("l");
    now_standing.name = name("l");
    bench.hush();
    bench.configure("l is a standing worker", plan(vec![now_standing]));
    bench.hello_from("l", "desk", "d", 1, "password", Vec::new());
    bench.hello_with_token("l", "a", 1);
    bench.drained("l", 1);
    bench.gone("l");
    bench.hello_from("l", "desk", "d", 2, "password", Vec::new());
    bench.check("latent_to_standing");
}

#[test]
fn the_lease_of_a_latent_host_ends() {
    let mut bench = running_latent();
    bench.pass(36);
    bench.hello_with_token("l", "a", 2);
    bench.gone("l");
    bench.check("lease_latent");
}

#[test]
fn a_provider_s_proof_frees_the_build_at_once() {
    let mut bench = running_latent();
    let host = bench.host("l");
    bench.event("host gone", Event::HostGone { host, why: "terminated".to_owned(), reclaimed: false });
    bench.check("proof");
}

#[test]
fn a_new_life_with_the_secret_proves_the_old_one_dead() {
    let mut bench = running_standing();
    let secret = bench.secret.clone();
    bench.hello("s", "b", 1, &secret, Vec::new());
    // What the old one had said on another connection, and that was on its way all the time.
    bench.hello("s", "a", 2, &secret, Vec::new());
    bench.check("new_life");
}

#[test]
fn a_secret_is_good_for_the_next_life_too_where_its_welcome_was_lost() {
    let mut bench = running_standing();
    let secret = bench.secret.clone();
    bench.hello("s", "b", 1, &secret, Vec::new());
    bench.hello("s", "c", 1, &secret, Vec::new());
    assert!(bench.text.contains("s/c/1 <- welcome"), "{}", bench.text);
}

#[test]
fn who_comes_while_the_master_ends_is_promised_as_much_as_the_others() {
    let mut bench = Bench::quietly(plan(vec![standing("s")]));
    bench.event("terminate", Event::Shutdown);
    bench.hello("s", "a", 1, "password", Vec::new());
    bench.hello("s", "a", 2, "password", Vec::new());
    for connection in ["s/a/1", "s/a/2"] {
        assert!(bench.text.contains(&format!("{connection} <- renewed 0 Some(300000)")), "{}", bench.text);
    }
}

#[test]
fn a_drain_goes_on_in_the_next_session() {
    let mut bench = running_latent();
    bench.operate("l", Operation::Drain);
    let secret = bench.secret.clone();
    bench.hello("l", "b", 1, &secret, Vec::new());
    bench.drained("l", 1);
    bench.check("drain_in_next_session");
}

#[test]
fn who_is_refused() {
    let mut bench = Bench::quietly(plan(vec![standing("s"), latent("l")]));
    bench.hello("s", "a", 1, "password", Vec::new());
    bench.hush();
    bench.hello("s", "b", 1, "password", Vec::new());
    bench.hello("nobody", "b", 1, "password", Vec::new());
    bench.hello("s", "b", 1, "wrong", Vec::new());
    bench.hello("l", "b", 1, "password", Vec::new());
    bench.check("refused");
}

#[test]
fn a_token_is_good_for_one_life_until_the_secret_is_used() {
    let mut bench = Bench::quietly(plan(vec![latent("l")]));
    bench.submit(on("l"));
    bench.started("l");
    bench.hush();
    bench.hello_with_token("l", "a", 1);
    bench.hello_with_token("l", "thief", 1);
    // The welcome was lost: the same life may ask again.
    bench.hello_with_token("l", "a", 2);
    let secret = bench.secret.clone();
    bench.hello("l", "a", 3, &secret, Vec::new());
    let event = Event::Detached { worker: name("l"), queue: Some("l/a/3".to_owned()) };
    bench.event("detached", event);
    bench.hello_with_token("l", "thief", 2);
    bench.check("token");
}

/// Most agents never connect again, and builds on their machine may have read the token.
#[test]
fn a_token_is_worth_nothing_once_its_agent_has_sent_a_heartbeat() {
    let mut bench = Bench::quietly(plan(vec![latent("l")]));
    bench.submit(on("l"));
    bench.started("l");
    bench.hello_with_token("l", "a", 1);
    let token = bench.core.hosts.values().next().map(|live| live.host.token.clone()).unwrap_or_default();
    let admitted = |bench: &Bench, password: &str| bench.core.admit("l", password).ok();
    assert_eq!(admitted(&bench, &token), Some(Admitted::Anybody), "the welcome may be lost");
    bench.heartbeat("l", 1);
    assert_eq!(admitted(&bench, &token), None);
    let secret = bench.secret.clone();
    assert_eq!(admitted(&bench, &secret), Some(Admitted::Agent));
}

#[test]
fn the_wrong_machine_is_refused() {
    let mut with_identity = plan(vec![latent("l")]);
    let mut worker = latent("l");
    worker.latent.iter_mut().for_each(|l| l.provider = ProviderKind::Process);
    with_identity.workers.insert(name("l"), Arc::new(worker));
    let mut bench = Bench::quietly(with_identity);
    bench.submit(on("l"));
    bench.started("l");
    bench.hush();
    bench.hello_from("l", "another machine", "a", 1, "password", Vec::new());
    let identity = bench.host("l").0;
    bench.hello_from("l", &identity, "b", 1, "password", Vec::new());
    bench.check("wrong_machine");
}

#[test]
fn a_disk_that_was_used_before_is_refused() {
    let mut bench = Bench::quietly(plan(vec![latent("l")]));
    bench.mark = Some("hbefore".to_owned());
    bench.submit(on("l"));
    bench.started("l");
    bench.hush();
    bench.hello_with_token("l", "a", 1);
    bench.mark = Some(bench.host("l").0);
    bench.hello_with_token("l", "a", 1);
    bench.check("used_disk");
}

#[test]
fn who_may_connect() {
    let mut bench = Bench::quietly(plan(vec![standing("s"), latent("l")]));
    bench.submit(on("l"));
    let token = bench.core.hosts[&bench.host("l")].host.token.clone();
    let admit = |worker, password: &str| bench.core.admit(worker, password).is_ok();
    assert!(admit("s", "password") && admit("l", "password") && admit("l", &token));
    assert!(!admit("s", &token) && !admit("s", "") && !admit("nobody", "password") && !admit("A.b", "password"));
}

#[test]
fn who_was_refused_is_shown_for_a_while() {
    let mut bench = running_standing();
    let shown = |bench: &Bench| bench.core.worker_views(bench.now).remove(0).refused;
    assert_eq!(shown(&bench), None);
    bench.hello_from("s", "m2", "b", 1, "password", Vec::new());
    let refused = shown(&bench).expect("it is shown");
    assert_eq!((refused.at, refused.identity.as_str()), (bench.now, "m2"));
    assert!(refused.reason.contains("another agent"), "{}", refused.reason);
    bench.submit(on("s"));
    let why = |bench: &Bench| bench.core.why(bench.now, BuildId(2)).expect("a build").sentence;
    assert!(!why(&bench).contains("m2"), "its worker is there: {}", why(&bench));
    bench.event("detached", Event::Detached { worker: name("s"), queue: Some("s/a/1".to_owned()) });
    assert!(why(&bench).contains("claims to be s on m2 was refused 0 s ago: another agent"), "{}", why(&bench));
    bench.now = bench.now + secs(599);
    assert_eq!(shown(&bench), Some(refused));
    bench.now = bench.now + secs(1);
    assert_eq!(shown(&bench), None);
    // Another agent is accepted at last, and the worker continues.
    bench.hello_from("s", "m3", "c", 1, "password", Vec::new());
    assert!(shown(&bench).is_some_and(|refused| refused.identity == "m3"));
    bench.pass(60);
    bench.hello_from("s", "m3", "c", 2, "password", Vec::new());
    assert_eq!(shown(&bench), None);
    bench.hello_from("s", "m3", "c", 3, "wrong", Vec::new());
    assert!(shown(&bench).is_some());
    bench.hello_from("s", "m3", "c", 4, "password", Vec::new());
    assert_eq!(shown(&bench), None);
}

#[test]
fn a_build_shows_why_its_host_did_not_start() {
    let mut bench = Bench::quietly(plan(vec![latent("l")]));
    bench.submit(on("l"));
    bench.started_as("l", Some("m1"));
    let long = format!("m2\u{1b}{}", "x".repeat(5_000));
    bench.hello_from("l", &long, "b", 1, "password", Vec::new());
    let why = bench.core.why(bench.now, BuildId(1)).expect("a build").sentence;
    assert!(why.contains("is booting for this build") && why.contains("claims to be l on m2xx"), "{why}");
    assert!(why.len() < 600 && !why.contains('\u{1b}'), "{why}");
}

/// An agent that does not say that it has begun, and asks and asks.
#[test]
fn what_may_be_lost_is_repeated_once_each_keepalive_interval() {
    let mut bench = Bench::quietly(plan(vec![standing("s")]));
    bench.hello("s", "a", 1, "password", Vec::new());
    bench.submit(on("s"));
    let mut orders = 0;
    for second in 0..100 {
        bench.pass(1);
        for n in 0..100 {
            let (session, seq) = (bench.session("s"), second * 100 + n);
            let message = ToMaster::Heartbeat(Heartbeat { session, seq, vitals: Vitals::default(), unclean: None });
            let effects = bench.core.handle(bench.now, Event::Agent { worker: name("s"), message });
            let is_order = |e: &&Effect| matches!(e, Effect::Send { message: ToAgent::RunAttempt(_), .. });
            orders += effects.iter().filter(is_order).count();
            assert!(effects.iter().any(|e| matches!(e, Effect::Send { message: ToAgent::Renewed { .. }, .. })));
        }
    }
    assert!((8..=20).contains(&orders), "{orders} times in 100 s");
}

#[test]
fn a_load_that_is_no_number_is_not_shown() {
    let mut bench = running_standing();
    for (said, shown) in [(f32::NAN, 0.0), (f32::INFINITY, 0.0), (1.5, 1.5)] {
        let session = bench.session("s");
        let vitals = Vitals { load: said, ..Vitals::default() };
        bench.agent("vitals", "s", ToMaster::Heartbeat(Heartbeat { session, seq: 1, vitals, unclean: None }));
        let views = bench.core.worker_views(bench.now);
        assert_eq!(views[0].vitals.map(|vitals| vitals.load), Some(shown), "{said}");
    }
}

#[test]
fn an_agent_cannot_fill_the_log_with_notices() {
    let mut bench = running_standing();
    let session = bench.session("s");
    let mut lines = 0;
    for n in 0..1_000 {
        let at = format!("2026-01-01T00:00:{n}Z");
        let notice = match n % 2 {
            0 => CloudNotice::Rebalance { at },
            _ => CloudNotice::Interruption { action: "stop".to_owned(), at },
        };
        let unclean = Some(format!("process {n} is still running"));
        let heartbeat = Heartbeat { session: session.clone(), seq: n, vitals: Vitals::default(), unclean };
        for message in [ToMaster::Notice { session: session.clone(), notice }, ToMaster::Heartbeat(heartbeat)] {
            let effects = bench.core.handle(bench.now, Event::Agent { worker: name("s"), message });
            lines += effects.iter().filter(|effect| matches!(effect, Effect::Log(..))).count();
        }
    }
    assert_eq!(lines, 3, "one of each");
    // The cloud has moved the time.
    bench.pass(10);
    let notice = CloudNotice::Interruption { action: "stop".to_owned(), at: "later".to_owned() };
    let message = ToMaster::Notice { session, notice };
    let effects = bench.core.handle(bench.now, Event::Agent { worker: name("s"), message });
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Log(..))));
}
