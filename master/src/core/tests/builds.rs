//! Builds: assigned, reported, settled, cancelled, lost, retried.

use super::*;
use crate::core::event::Reply;

/// A standing worker that is attached.
fn attached() -> Bench {
    let mut bench = Bench::quietly(plan(vec![standing("s")]));
    bench.hello("s", "a", 1, "password", Vec::new());
    bench.hush();
    bench
}

#[test]
fn from_submission_to_the_end_on_a_standing_worker() {
    let mut bench = attached();
    bench.submit(on("s"));
    bench.report("s", picture(1, 1, 1, 0, None));
    bench.report("s", picture(1, 1, 2, 40, Some(Outcome::Success)));
    bench.event("logs whole", Event::LogsWhole { attempt: AttemptId { build: BuildId(1), number: 1 } });
    bench.report("s", picture(1, 1, 2, 40, Some(Outcome::Success)));
    bench.check("standing");
}

#[test]
fn cancelled_while_it_waits() {
    let mut bench = Bench::quietly(plan(vec![standing("s")]));
    bench.submit(on("s"));
    bench.cancel(1);
    bench.cancel(1);
    bench.check("cancel_waiting");
}

#[test]
fn cancelled_before_it_has_begun() {
    let mut bench = attached();
    bench.submit(on("s"));
    bench.cancel(1);
    bench.pass(10);
    bench.heartbeat("s", 1);
    bench.report("s", picture(1, 1, 1, 0, Some(Outcome::Declined("cancelled before it arrived".to_owned()))));
    bench.check("cancel_ordered");
}

#[test]
fn cancelled_while_it_runs() {
    let mut bench = attached();
    bench.submit(on("s"));
    bench.report("s", picture(1, 1, 1, 0, None));
    bench.cancel(1);
    bench.report("s", picture(1, 1, 2, 0, Some(Outcome::Cancelled)));
    bench.check("cancel_running");
}

/// The request to run the build was on its way when the worker was removed, and so was what takes it back.
#[test]
fn cancelled_by_an_agent_whose_worker_was_removed_and_by_no_user_it_is_tried_again() {
    let mut bench = attached();
    bench.submit(anywhere());
    bench.configure("without s", plan(vec![standing("z")]));
    bench.restart();
    bench.pass(25);
    bench.heartbeat("s", 1);
    bench.pass(6);
    bench.heartbeat("s", 2);
    assert!(bench.text.contains("cancel 1.1"), "it is taken back: {}", bench.text);
    bench.report("s", picture(1, 1, 1, 0, None));
    bench.report("s", picture(1, 1, 2, 0, Some(Outcome::Cancelled)));
    bench.event("logs whole", Event::LogsWhole { attempt: AttemptId { build: BuildId(1), number: 1 } });
    let status = &bench.core.builds[&BuildId(1)].status;
    assert!(status.end.is_none() && matches!(status.attempts[0].outcome, Some(Outcome::Declined(_))), "{status:?}");
    bench.hello("z", "b", 1, "password", Vec::new());
    assert_eq!(bench.core.builds[&BuildId(1)].status.attempts[1].worker, name("z"));
}

#[test]
fn cancelled_while_a_host_is_started_for_it() {
    let mut bench = Bench::quietly(plan(vec![latent("l")]));
    bench.submit(on("l"));
    bench.cancel(1);
    bench.wake("l");
    for seq in 1..=6 {
        bench.pass(10);
        bench.heartbeat("l", seq);
    }
    bench.check("cancel_starting");
}

#[test]
fn a_lost_attempt_is_tried_again_until_the_retries_are_used_up() {
    let mut bench = attached();
    bench.submit_with(on("s"), 1);
    bench.report("s", picture(1, 1, 1, 0, None));
    bench.report("s", picture(1, 1, 2, 0, Some(Outcome::Lost("the disk is full".to_owned()))));
    // Not at once: another worker may have it before.
    bench.pass(10);
    bench.heartbeat("s", 1);
    bench.report("s", picture(1, 2, 1, 0, Some(Outcome::Lost("the disk is full".to_owned()))));
    bench.check("retries");
}

#[test]
fn an_unconfirmed_request_is_sent_again() {
    let mut bench = attached();
    bench.submit(on("s"));
    bench.pass(10);
    bench.heartbeat("s", 1);
    bench.pass(10);
    bench.heartbeat("s", 2);
    bench.check("order_again");
}

#[test]
fn a_declined_order_waits_for_a_sign_of_life() {
    let mut bench = attached();
    bench.submit(on("s"));
    bench.report("s", picture(1, 1, 1, 0, Some(Outcome::Declined("the host is being drained".to_owned()))));
    bench.heartbeat("s", 1);
    bench.check("declined");
}

#[test]
fn an_incomplete_log_is_reported_when_its_agent_is_lost() {
    let mut bench = attached();
    let attempt = AttemptId { build: BuildId(1), number: 1 };
    bench.submit(on("s"));
    bench.report("s", picture(1, 1, 1, 40, Some(Outcome::Success)));
    let session = bench.session("s");
    bench.agent("goodbye", "s", ToMaster::Goodbye { session });
    // What it had sent may be on its way.
    bench.pass(20);
    bench.event("log gap", Event::LogGap { attempt, step: 0, offset: 17 });
    bench.event("logs whole", Event::LogsWhole { attempt });
    bench.check("cut_log");
}

#[test]
fn the_end_of_a_log_comes_with_the_next_session_of_its_agent() {
    let mut bench = attached();
    let attempt = AttemptId { build: BuildId(1), number: 1 };
    bench.submit(on("s"));
    bench.report("s", picture(1, 1, 1, 40, Some(Outcome::Success)));
    bench.pass(36);
    bench.hello("s", "a", 2, "password", vec![picture(1, 1, 1, 40, Some(Outcome::Success))]);
    bench.event("log gap", Event::LogGap { attempt, step: 0, offset: 17 });
    // Who follows it would take that for its end.
    assert_eq!(
        bench.core.builds[&BuildId(1)].status.attempts[0].cut_logs,
        [],
        "a log whose bytes are being requested is not reported as incomplete"
    );
    bench.event("logs whole", Event::LogsWhole { attempt });
    bench.check("log_after_lease");
}

#[test]
fn an_agent_that_comes_back_without_a_log_will_not_send_its_end() {
    let mut bench = attached();
    let attempt = AttemptId { build: BuildId(1), number: 1 };
    bench.submit(on("s"));
    bench.report("s", picture(1, 1, 1, 40, Some(Outcome::Success)));
    bench.pass(36);
    bench.hello("s", "b", 1, "password", Vec::new());
    bench.pass(20);
    bench.event("log gap", Event::LogGap { attempt, step: 0, offset: 17 });
    bench.event("logs whole", Event::LogsWhole { attempt });
    bench.check("log_without_agent");
}

#[test]
fn a_gap_is_sent_again_and_given_up_at_last() {
    let mut bench = attached();
    let attempt = AttemptId { build: BuildId(1), number: 1 };
    bench.submit(on("s"));
    bench.report("s", picture(1, 1, 1, 40, Some(Outcome::Success)));
    for seq in 1..=16 {
        bench.pass(10);
        bench.heartbeat("s", seq);
        if seq % 2 == 0 {
            bench.event("log gap", Event::LogGap { attempt, step: 0, offset: 17 });
        }
    }
    bench.event("logs whole", Event::LogsWhole { attempt });
    bench.check("gap");
}

#[test]
fn the_highest_priority_goes_first_then_the_oldest() {
    let mut bench = attached();
    for _ in 0..3 {
        bench.submit(anywhere());
    }
    bench.report("s", picture(1, 1, 1, 0, Some(Outcome::Success)));
    bench.check("order_of_age");
}

#[test]
fn a_name_is_one_build_although_it_ended_in_the_batch_that_it_came_with() {
    let mut bench = Bench::quietly(plan(vec![standing("s")]));
    let mut accepted = Vec::new();
    for _ in 0..2 {
        bench.submit(on("s"));
        let Record::NewBuild { spec, .. } = bench.disk.values().find(|r| matches!(r, Record::NewBuild { .. })).unwrap()
        else {
            panic!("a build was accepted")
        };
        // The ledger has not committed anything of it.
        let message_id = Some(("nightly".to_owned(), None));
        let event = Event::Command {
            request: RequestId(1),
            by: Caller::signal("test"),
            command: Command::Submit { spec: spec.clone(), message_id },
        };
        accepted.extend(bench.core.handle(bench.now, event).into_iter().find_map(|effect| match effect {
            Effect::Reply { reply, .. } => Some(reply),
            _ => None,
        }));
        bench.cancel(2);
    }
    assert_eq!(accepted, [Reply::Accepted(BuildId(2)), Reply::Accepted(BuildId(2))]);
}
