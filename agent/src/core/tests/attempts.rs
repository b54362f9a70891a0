//! Attempts: steps, outcomes, cancellation, logs.

use super::*;
use rouse_shared::codec;
use rouse_shared::limits::{MAX_CONTROL, MAX_STEPS, MAX_TEXT};

fn agent() -> Agent {
    Agent::attached(settings(), welcome())
}

fn settle(agent: &mut Agent, ms: u64, attempt: &str) -> Vec<String> {
    agent.receives(ms, ToAgent::Settled { session: s1(), attempts: vec![id(attempt)] })
}

fn cancel(agent: &mut Agent, ms: u64, attempt: &str) -> Vec<String> {
    agent.receives(ms, ToAgent::Cancel { session: s1(), attempt: id(attempt) })
}

#[test]
fn a_build_of_one_step_is_two_reports() {
    let mut agent = agent();
    assert_eq!(agent.receives(2_000, order("1.1", vec![step("make")])), ["run 1.1/0 make"]);
    assert_eq!(agent.at(2_001, started("1.1", 0)), ["report 1.1 r1: Running", "log 1.1/0 from 0"]);
    assert_eq!(agent.at(3_000, ended("1.1", 0, StepState::Exited(0))), ["report 1.1 r2: Exited(0) => Success"]);
    // The same snapshot is repeated with each heartbeat until it is settled.
    assert_eq!(
        agent.until(11_000, true),
        ["11000 heartbeat 1", "11000 deadline 71000", "11000 report 1.1 r2: Exited(0) => Success",]
    );
    assert_eq!(settle(&mut agent, 11_500, "1.1"), ["remove 1.1"]);
    assert_eq!(agent.until(21_000, true), ["21000 heartbeat 2", "21000 deadline 81000"]);
    // Late copies start nothing.
    assert_eq!(agent.receives(21_001, order("1.1", vec![step("make")])), [over("1.1")]);
    assert_eq!(cancel(&mut agent, 21_002, "1.1"), [over("1.1")]);
    assert!(settle(&mut agent, 21_003, "1.1").is_empty());
}

fn over(attempt: &str) -> String {
    format!("report {attempt} r{}:  => Lost(\"its agent killed it when the lease ended\")", u32::MAX)
}

#[test]
fn between_two_steps_is_one_report() {
    let mut agent = agent();
    agent.receives(2_000, order("1.1", vec![step("a"), step("b")]));
    agent.at(2_001, started("1.1", 0));
    assert_eq!(agent.at(2_002, ended("1.1", 0, StepState::Exited(0))), ["run 1.1/1 b"]);
    assert_eq!(agent.at(2_003, started("1.1", 1)), ["report 1.1 r2: Exited(0), Running", "log 1.1/1 from 0"]);
    assert_eq!(
        agent.at(2_004, ended("1.1", 1, StepState::Exited(0))),
        ["report 1.1 r3: Exited(0), Exited(0) => Success"]
    );
}

#[test]
fn after_a_failure_only_what_always_runs_does() {
    let mut agent = agent();
    let mut last = step("tidy");
    last.always = true;
    agent.receives(2_000, order("1.1", vec![step("compile"), step("test"), last]));
    agent.at(2_001, started("1.1", 0));
    assert_eq!(agent.at(2_002, ended("1.1", 0, StepState::Exited(2))), ["run 1.1/2 tidy"]);
    assert_eq!(agent.at(2_003, started("1.1", 2)), ["report 1.1 r2: Exited(2), Skipped, Running", "log 1.1/2 from 0"]);
    assert_eq!(
        agent.at(2_004, ended("1.1", 2, StepState::Exited(1))),
        ["report 1.1 r3: Exited(2), Skipped, Exited(1) => Failure(\"step \\\"compile\\\" exited with 2\")"]
    );
}

#[test]
fn each_way_to_end_has_its_words() {
    let mut timed = step("x");
    timed.timeout_ms = Some(1_200_000);
    timed.silence_ms = Some(90_000);
    for (state, outcome) in [
        (StepState::Signalled(9), Outcome::Failure("step \"x\" was ended by signal 9".to_owned())),
        (StepState::TimedOut, Outcome::Failure("step \"x\" ran longer than 20m".to_owned())),
        (StepState::Silent, Outcome::Failure("step \"x\" printed nothing for 1m30s".to_owned())),
        (
            StepState::NotStarted("no such file".to_owned()),
            Outcome::Failure("step \"x\" could not be started: no such file".to_owned()),
        ),
        (
            StepState::Lost("its supervisor was killed".to_owned()),
            Outcome::Lost("its supervisor was killed".to_owned()),
        ),
        (StepState::Stopped, Outcome::Lost("its step was stopped, and not by the agent".to_owned())),
    ] {
        let mut agent = agent();
        agent.receives(2_000, order("1.1", vec![timed.clone(), step("y")]));
        let said = agent.at(2_001, ended("1.1", 0, state.clone())).concat();
        assert!(said.contains(&format!("=> {outcome:?}")), "{state:?}: {said}");
    }
}

#[test]
fn a_directory_that_cannot_be_made_loses_the_attempt() {
    let mut agent = agent();
    agent.receives(2_000, order("1.1", vec![step("a"), step("b")]));
    let failed = Event::PrepareFailed { attempt: id("1.1"), why: "the disk is full".to_owned() };
    assert_eq!(agent.at(2_001, failed.clone()), ["report 1.1 r1:  => Lost(\"the disk is full\")"]);
    assert!(agent.at(2_002, failed).is_empty(), "twice");
}

#[test]
fn a_build_that_takes_too_long_is_stopped() {
    let mut agent = agent();
    let ToAgent::RunAttempt(mut long) = order("1.1", vec![step("a"), step("b")]) else { unreachable!() };
    long.timeout_ms = Some(3_600_000);
    let mut w = welcome();
    w.lease_ms = Some(100_000_000);
    agent = Agent::attached(agent.core.settings, w);
    agent.receives(2_000, ToAgent::RunAttempt(long));
    agent.at(2_001, started("1.1", 0));
    let all = agent.until(3_602_000, true);
    assert_eq!(all.last().unwrap(), "3602000 stop 1.1");
    assert_eq!(
        agent.at(3_602_500, ended("1.1", 0, StepState::Stopped)),
        ["report 1.1 r2: Stopped => Failure(\"the build took longer than 1h\")"]
    );
}

#[test]
fn cancel_stops_what_runs_and_keeps_what_has_not_come() {
    let mut agent = agent();
    agent.receives(2_000, order("1.1", vec![step("a"), step("b")]));
    agent.at(2_001, started("1.1", 0));
    assert_eq!(cancel(&mut agent, 2_002, "1.1"), ["stop 1.1"]);
    assert!(cancel(&mut agent, 2_003, "1.1").is_empty(), "twice");
    assert_eq!(agent.at(2_004, ended("1.1", 0, StepState::Stopped)), ["report 1.1 r2: Stopped => Cancelled"]);
    assert_eq!(cancel(&mut agent, 2_005, "1.1"), ["report 1.1 r2: Stopped => Cancelled"]);
    let declined = "report 2.1 r1:  => Declined(\"cancelled before it arrived\")";
    assert_eq!(cancel(&mut agent, 2_006, "2.1"), [declined]);
    assert_eq!(agent.receives(2_007, order("2.1", vec![step("a")])), [declined]);
    assert_eq!(settle(&mut agent, 2_008, "2.1"), ["remove 2.1"]);
    assert_eq!(agent.receives(2_009, order("2.1", vec![step("a")])), [over("2.1")]);
}

#[test]
fn a_cancel_that_crosses_the_end_counts() {
    let mut agent = agent();
    agent.receives(2_000, order("1.1", vec![step("a"), step("b")]));
    agent.at(2_001, started("1.1", 0));
    cancel(&mut agent, 2_002, "1.1");
    assert_eq!(agent.at(2_003, ended("1.1", 0, StepState::Exited(0))), ["report 1.1 r2: Exited(0) => Cancelled"]);
}

#[test]
fn a_known_order_is_reported_again_and_a_foreign_one_ignored() {
    let mut agent = agent();
    agent.receives(2_000, order("1.1", vec![step("a")]));
    agent.at(2_001, started("1.1", 0));
    assert_eq!(agent.receives(2_002, order("1.1", vec![step("a")])), ["report 1.1 r1: Running"]);
    let ToAgent::RunAttempt(mut foreign) = order("2.1", vec![step("a")]) else { unreachable!() };
    foreign.session = SessionId("s0".to_owned());
    assert!(agent.receives(2_003, ToAgent::RunAttempt(foreign)).is_empty());
    let late = ToAgent::Cancel { session: SessionId("s0".to_owned()), attempt: id("1.1") };
    assert!(agent.receives(2_004, late).is_empty());
}

#[test]
fn orders_that_cannot_be_run_fail() {
    let mut agent = agent();
    assert_eq!(
        agent.receives(2_000, order("1.1", Vec::new())),
        ["report 1.1 r1:  => Failure(\"the build has no steps\")"]
    );
    let many = vec![step("a"); rouse_shared::limits::MAX_STEPS + 1];
    assert_eq!(
        agent.receives(2_000, order("2.1", many)),
        ["report 2.1 r1:  => Failure(\"the build has 1001 steps, more than 1000\")"]
    );
}

#[test]
fn logs_go_on_where_the_broker_has_them() {
    let mut agent = agent();
    agent.receives(2_000, order("1.1", vec![step("a"), step("b")]));
    agent.at(2_001, started("1.1", 0));
    let sent = |step, offset| Event::LogSent { attempt: id("1.1"), step, offset };
    agent.at(2_002, sent(0, 3));
    agent.at(2_003, ended("1.1", 0, StepState::Exited(0)));
    agent.at(2_004, started("1.1", 1));
    agent.at(2_005, sent(1, 7));
    agent.at(2_006, sent(1, 5));
    assert!(agent.breaks(3_000).is_empty());
    assert!(agent.at(3_001, sent(5, 5)).is_empty(), "of a step that is not there");
    agent.until(3_100, true);
    agent.at(3_200, Event::LinkUp { connection: 2 });
    // The first step's three bytes are all there, so only the second goes on.
    assert_eq!(agent.receives(3_300, ToAgent::Welcome(Box::new(welcome()))), ["log 1.1/1 from 7", "deadline 63200"]);
    let resend = |step, offset| ToAgent::Resend { session: s1(), attempt: id("1.1"), step, offset };
    assert_eq!(agent.receives(3_400, resend(0, 1)), ["log 1.1/0 from 1"]);
    assert!(agent.receives(3_401, resend(9, 1)).is_empty());
}

#[test]
fn what_happened_while_the_link_was_down_is_sent_once() {
    let mut agent = agent();
    agent.receives(2_000, order("1.1", vec![step("a")]));
    agent.at(2_001, started("1.1", 0));
    agent.breaks(3_000);
    assert_eq!(agent.until(3_100, true).len(), 1, "a connect");
    let hello = "hello 2 with hush of m1 [1.1 r1: Running]";
    assert_eq!(agent.at(3_200, Event::LinkUp { connection: 2 }), [hello]);
    assert!(agent.at(3_250, ended("1.1", 0, StepState::Exited(0))).is_empty(), "nothing but hello before a welcome");
    assert_eq!(
        agent.receives(3_300, ToAgent::Welcome(Box::new(welcome()))),
        ["report 1.1 r2: Exited(0) => Success", "log 1.1/0 from 0", "deadline 63200"]
    );
}

#[test]
fn the_configured_user_wins_over_the_orders() {
    for (own, expected) in [(None, "theirs"), (Some("ours"), "ours")] {
        let mut agent = Agent::attached(Settings { run_as: own.map(str::to_owned), ..settings() }, welcome());
        let ToAgent::RunAttempt(mut o) = order("1.1", vec![step("a")]) else { unreachable!() };
        o.run_as = Some("theirs".to_owned());
        o.env = BTreeMap::from([("A".to_owned(), "1".to_owned()), ("B".to_owned(), "1".to_owned())]);
        o.steps[0].env = BTreeMap::from([("B".to_owned(), "2".to_owned())]);
        let message = Box::new(ToAgent::RunAttempt(o));
        let effects = agent.core.handle(Timestamp(2_000), Event::FromMaster { connection: 1, message });
        let [Effect::RunStep(run)] = effects.as_slice() else { panic!("{effects:?}") };
        assert_eq!(run.run_as.as_deref(), Some(expected));
        assert_eq!(run.env, BTreeMap::from([("A".to_owned(), "1".to_owned()), ("B".to_owned(), "2".to_owned())]));
    }
}

/// A build of as many steps as there may be, none of which can be started, for a long reason.
fn hopeless(agent: &mut Agent, attempt: &str) {
    let mut step = step("make");
    step.always = true;
    agent.receives(2_000, order(attempt, vec![step; MAX_STEPS]));
    let why = StepState::NotStarted("w".repeat(2 * MAX_TEXT));
    for step in 0..MAX_STEPS as u32 {
        agent.at(
            2_001,
            Event::StepEnded {
                attempt: id(attempt),
                step,
                state: why.clone(),
                log_length: 0,
                log_cut: 0,
                took: Duration::ZERO,
                usage: Some(Usage {
                    cpu_ms: u64::MAX,
                    peak_memory: Some(u64::MAX),
                    out_of_memory: true,
                    memory_limit: Some(u64::MAX),
                }),
                unclean: false,
            },
        );
    }
}

fn sent(agent: &mut Agent, ms: u64, event: Event) -> Vec<ToMaster> {
    let effects = agent.core.handle(Timestamp(ms), event);
    let sent = effects.into_iter().filter_map(|effect| match effect {
        Effect::Send(message) => Some(*message),
        _ => None,
    });
    let sent: Vec<_> = sent.collect();
    for message in &sent {
        let bytes = codec::encode(message).len();
        assert!(bytes <= MAX_CONTROL, "a message of {bytes} bytes, which the master does not take");
    }
    sent
}

/// Otherwise an agent with many builds that have ended could not attach until it is started again.
#[test]
fn a_hello_that_would_be_too_large_lists_the_attempts_and_their_reports_follow() {
    let mut agent = agent();
    for attempt in ["1.1", "2.1", "3.1"] {
        hopeless(&mut agent, attempt);
    }
    agent.receives(2_002, order("4.1", vec![step("make")]));
    agent.at(2_003, started("4.1", 0));
    agent.breaks(3_000);
    agent.until(10_000, false);
    let connection = agent.core.connection;
    let said = sent(&mut agent, 10_000, Event::LinkUp { connection });
    let ToMaster::Hello(hello) = &said[0] else { panic!("{said:?}") };
    let listed: Vec<_> = hello.attempts.iter().map(picture).collect();
    let ended = "r0:  => Failure(\"\")";
    assert_eq!(listed, [format!("1.1 {ended}"), format!("2.1 {ended}"), format!("3.1 {ended}"), "4.1 r0: ".to_owned()]);
    let message = Box::new(ToAgent::Welcome(Box::new(welcome())));
    let said = sent(&mut agent, 10_001, Event::FromMaster { connection, message });
    let reported: Vec<_> = said
        .iter()
        .filter_map(|message| match message {
            ToMaster::Report(report) => Some((report.attempt.attempt, report.attempt.steps.len())),
            _ => None,
        })
        .collect();
    assert_eq!(reported, [(id("1.1"), 1_000), (id("2.1"), 1_000), (id("3.1"), 1_000), (id("4.1"), 1)]);
}

#[test]
fn a_step_that_had_no_memory_left_says_so() {
    let usage = Usage { cpu_ms: 5, peak_memory: Some(8 << 30), out_of_memory: true, memory_limit: Some(8 << 30) };
    let of = |usage, state| super::super::words::failure(&step("make"), &state, Some(usage));
    let killed = StepState::Signalled(9);
    let text = "step \"make\" ran out of memory: 8.0 GiB of 8 GiB".to_owned();
    assert_eq!(of(usage, killed.clone()), Some(text.clone()));
    assert_eq!(of(usage, StepState::Exited(137)), Some(text));
    assert_eq!(of(usage, StepState::Exited(0)), None);
    let machine = Usage { peak_memory: Some(3 << 29), ..usage };
    let text = "step \"make\" ran out of memory: the machine had none left when the step had 1.5 GiB".to_owned();
    assert_eq!(of(machine, killed.clone()), Some(text));
    let fine = Usage { out_of_memory: false, ..usage };
    assert_eq!(of(fine, killed), Some("step \"make\" was ended by signal 9".to_owned()));
}

#[test]
fn a_machine_that_is_not_clean_takes_no_further_build() {
    let mut agent = agent();
    agent.receives(2_000, order("1.1", vec![step("make")]));
    let state = StepState::Lost("process 7 is still running".to_owned());
    let took = Duration::from_millis(1);
    let end = |unclean| Event::StepEnded {
        attempt: id("1.1"),
        step: 0,
        state: state.clone(),
        log_length: 0,
        log_cut: 0,
        took,
        usage: None,
        unclean,
    };
    agent.at(2_100, end(true));
    let of = |sent: &[ToMaster]| {
        sent.iter().find_map(|message| match message {
            ToMaster::Heartbeat(heartbeat) => Some(heartbeat.unclean.clone()),
            _ => None,
        })
    };
    let sent = sent(&mut agent, 11_000, Event::Tick);
    let why = "after step 1 of 1.1, process 7 is still running";
    assert_eq!(of(&sent), Some(Some(why.to_owned())));
    let said = agent.receives(11_001, order("2.1", vec![step("make")]));
    assert!(said.iter().any(|line| line.contains(why)), "{said:?}");
}

#[test]
fn a_limit_is_the_narrowest_of_all() {
    let mut agent = agent();
    let mut limited = step("make");
    limited.limits = Limits { memory: Some(5), cpu_millis: Some(7), ..Limits::default() };
    let ToAgent::RunAttempt(mut request) = order("1.1", vec![limited]) else { panic!() };
    request.limits = Limits { memory: Some(9), pids: Some(3), cpu_millis: None };
    let message = Box::new(ToAgent::RunAttempt(request));
    let effects = agent.core.handle(Timestamp(2_000), Event::FromMaster { connection: 1, message });
    let limits = effects.iter().find_map(|effect| match effect {
        Effect::RunStep(run) => Some(run.limits),
        _ => None,
    });
    assert_eq!(limits, Some(Limits { memory: Some(5), pids: Some(3), cpu_millis: Some(7) }));
}

#[test]
fn nothing_runs_as_root_unless_it_is_written() {
    let facts = Facts { needs_run_as: true, ..Facts::default() };
    let mut agent = Agent::attached(Settings { facts, ..settings() }, welcome());
    let said = agent.receives(2_000, order("1.1", vec![step("make")]));
    assert!(said.iter().any(|line| line.contains("its agent is root")), "{said:?}");
    let ToAgent::RunAttempt(mut request) = order("2.1", vec![step("make")]) else { panic!() };
    request.run_as = Some("root".to_owned());
    let said = agent.receives(2_001, ToAgent::RunAttempt(request));
    assert!(said.iter().any(|line| line.starts_with("run")), "{said:?}");
}
