//! Which mails the master writes, to whom, and how they are delivered.

use super::missing::watched;
use super::*;
use crate::core::event::{ListedHost, Owner};

fn to(worker: WorkerPlan, recipients: &[&str]) -> WorkerPlan {
    let notify_on_missing = recipients.iter().map(|r| format!("{r}@example.org")).collect();
    WorkerPlan { notify_on_missing, ..worker }
}

fn relay_fails() -> DeliveryResult {
    Err(MailError::Relay("connection refused".to_owned()))
}

/// A core with one mail on its way, for these recipients.
fn one_mail(recipients: &[&str]) -> Bench {
    let mut bench = Bench::quietly(plan(vec![to(standing("s"), recipients)]));
    bench.pass(300 + 60);
    bench.hush();
    bench
}

#[test]
fn losses_within_a_minute_share_a_mail_for_each_group_of_recipients() {
    let workers = vec![
        WorkerPlan { missing_timeout: secs(300), ..to(standing("a"), &["ann"]) },
        WorkerPlan { missing_timeout: secs(310), ..to(standing("b"), &["bob"]) },
        WorkerPlan { missing_timeout: secs(359), ..to(standing("c"), &["ann", "cyd"]) },
        WorkerPlan { missing_timeout: secs(361), ..to(standing("d"), &["ann", "bob"]) },
    ];
    let mut plan = plan(workers);
    plan.mail.extra_recipients.insert("ops@example.org".to_owned());
    let mut bench = Bench::quietly(plan);
    bench.pass(355);
    bench.hello("a", "a", 1, "password", Vec::new());
    bench.hush();
    bench.pass(80);
    bench.check("mail_groups");
}

#[test]
fn news_that_wait_are_mailed_by_the_next_master() {
    let mut bench = Bench::quietly(plan(vec![watched(standing("s"))]));
    bench.pass(300 + 30);
    bench.hush();
    bench.restart();
    bench.pass(30);
    bench.check("mail_news_restart");
}

#[test]
fn a_mail_whose_answer_a_master_did_not_live_to_keep_is_sent_again_as_the_same() {
    let mut bench = one_mail(&["ops"]);
    bench.restart();
    bench.sent();
    bench.pass(4_000);
    bench.check("mail_again");
}

#[test]
fn a_relay_that_is_down_is_asked_with_growing_pauses_over_restarts() {
    let mut bench = one_mail(&["ops"]);
    for _ in 0..3 {
        bench.mail_result(relay_fails());
        let pause = bench.core.next_wakeup().unwrap().since(bench.now).as_secs();
        bench.pass(pause);
    }
    bench.mail_result(relay_fails());
    bench.restart();
    bench.pass(40);
    // Far later the pauses have an end.
    for _ in 0..8 {
        bench.mail_result(relay_fails());
        let pause = bench.core.next_wakeup().unwrap().since(bench.now).as_secs();
        bench.pass(pause);
    }
    bench.mail_result(relay_fails());
    // A new configuration may name another relay.
    let plan = (*bench.plan).clone();
    bench.configure("reload", plan);
    bench.sent();
    bench.check("mail_relay_down");
}

#[test]
fn a_clock_that_was_put_back_holds_no_mail_for_ever() {
    let mut bench = one_mail(&["ops"]);
    bench.mail_result(relay_fails());
    bench.hush();
    bench.now = Timestamp(START / 2);
    bench.restart();
    bench.pass(900);
    bench.check("mail_clock_back");
}

#[test]
fn one_that_is_refused_is_given_up_and_one_that_is_put_off_is_not() {
    let mut bench = one_mail(&["ann", "bob", "cyd"]);
    let answers = [
        ("ann", RecipientAnswer::Accepted),
        ("bob", RecipientAnswer::Refused("550 no such user".to_owned())),
        ("cyd", RecipientAnswer::Later("451 greylisted".to_owned())),
    ];
    bench.mail_result(Ok(answers.map(|(who, taken)| (format!("{who}@example.org"), taken)).into()));
    bench.pass(5);
    bench.sent();
    bench.pass(90_000);
    assert_eq!(bench.core.mail_count().1, MailCount { sent: 1, failed: 1, given_up: 1 });
    bench.check("mail_refused_one");
}

#[test]
fn a_mail_that_everyone_is_refused_is_offered_for_a_day() {
    for result in [
        Ok(vec![("ops@example.org".to_owned(), RecipientAnswer::Refused("554 relay access denied".to_owned()))]),
        Err(MailError::Refused("550 no such sender".to_owned())),
    ] {
        let mut bench = one_mail(&["ops"]);
        let mut tries = 0;
        while bench.core.mail_count().0 > 0 {
            tries += 1;
            bench.mail_result(result.clone());
            bench.pass(901);
        }
        assert_eq!(bench.core.mail_count().1.given_up, 1);
        let hours = bench.now.since(Timestamp(START)).as_secs() / 3_600;
        assert!((24..26).contains(&hours) && tries < 120, "{tries} tries in {hours} hours");
    }
}

#[test]
fn a_mail_that_makes_the_relay_hang_does_not_hold_up_the_next() {
    let mut bench = Bench::quietly(plan(vec![
        watched(standing("a")),
        WorkerPlan { missing_timeout: secs(400), ..watched(standing("b")) },
    ]));
    bench.pass(360);
    bench.mail_result(relay_fails());
    bench.pass(5);
    bench.mail_result(relay_fails());
    bench.pass(10);
    bench.mail_result(relay_fails());
    bench.hush();
    bench.pass(100);
    bench.mail_result(relay_fails());
    bench.pass(200);
    bench.sent();
    bench.check("mail_hangs");
}

#[test]
fn what_is_answered_twice_or_for_nobody_changes_nothing() {
    let mut bench = one_mail(&["ops"]);
    let mail = bench.core.mails()[0].id.clone();
    bench.sent();
    bench.hush();
    for mail in [mail, MailId("other@example.org".to_owned())] {
        bench.event("mail sent", Event::MailSent { mail, result: relay_fails() });
    }
    bench.check("mail_stray");
}

fn listed(bench: &mut Bench, handles: &[&str]) {
    let machine = |handle: &&str| ListedHost {
        identity: None,
        host: HostId(format!("h-{handle}")),
        handle: (*handle).to_owned(),
        owner: Owner::Ours,
        suspended: false,
    };
    let result = Ok(handles.iter().map(machine).collect::<Vec<_>>().into());
    bench.event("listed", Event::Listed { provider: ProviderKind::Ec2, result });
}

#[test]
fn an_orphan_is_reported_once_while_it_exists() {
    let mut plan = plan(vec![watched(latent("l")), to(standing("s"), &["nobody"])]);
    plan.stop_orphans = false;
    let mut bench = Bench::quietly(plan);
    listed(&mut bench, &["i-9"]);
    bench.pass(100);
    bench.hush();
    listed(&mut bench, &["i-9"]);
    bench.pass(60);
    bench.sent();
    bench.restart();
    listed(&mut bench, &["i-9"]);
    bench.pass(100);
    listed(&mut bench, &["i-9"]);
    listed(&mut bench, &[]);
    bench.check("mail_orphan");
}
