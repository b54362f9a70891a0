//! Tests the promises of the transition function, and compares it with the table in ARCHITECTURE.md.
#![allow(clippy::unwrap_used)]

use super::phase::{HostEvent, IllegalEvent, Phase, StartOutcome, next};
use crate::core::record::HostState;
use std::collections::BTreeMap;

const CALLS: [bool; 2] = [false, true];

/// Each phase, with what `next` looks at.
fn phases() -> Vec<Phase> {
    let mut phases = vec![Phase::Preparing { number: 0 }, Phase::Preparing { number: 1 }];
    for call in CALLS {
        phases.extend([
            Phase::Launching { call, tries: 0, trouble: None },
            Phase::Booting { call },
            Phase::Ready { call },
            Phase::Draining { call },
            Phase::Suspending { call, tries: 1 },
            Phase::Resuming { call, tries: 0, trouble: None },
            Phase::Terminating { call, tries: 0, console: false },
            Phase::Terminating { call, tries: 0, console: true },
        ]);
    }
    phases.extend([Phase::Suspended, Phase::Terminated]);
    phases
}

/// Each event, with what `next` looks at.
fn events() -> Vec<HostEvent> {
    let why = || "why".to_owned();
    let mut events = vec![HostEvent::Prepared { number: 1 }, HostEvent::ResumeFailed { why: why() }];
    events.extend(
        [
            StartOutcome::Made,
            StartOutcome::Unclear { why: why() },
            StartOutcome::NoCapacity { next: 1 },
            StartOutcome::NotMade,
        ]
        .map(HostEvent::StartEnded),
    );
    for yes in CALLS {
        events.extend([HostEvent::SuspendEnded { suspended: yes }, HostEvent::TerminateEnded { gone: yes }]);
    }
    events.extend([
        HostEvent::NotPrepared,
        HostEvent::Called,
        HostEvent::Resumed,
        HostEvent::Attached,
        HostEvent::Disowned,
        HostEvent::Drain,
        HostEvent::Suspend,
        HostEvent::Resume,
        HostEvent::Terminate,
        HostEvent::GiveUp,
        HostEvent::Console,
        HostEvent::Gone,
        HostEvent::Forgotten,
    ]);
    events
}

/// The arrows between states, a line each, with the events that lead along it.
fn diagram() -> String {
    let mut arrows = BTreeMap::<(HostState, HostState), Vec<&str>>::new();
    for phase in phases() {
        for event in events() {
            let Ok(next) = next(&phase, &event) else { continue };
            let names = arrows.entry((phase.state(), next.state())).or_default();
            if phase.state() != next.state() && !names.contains(&event.name()) {
                names.push(event.name());
            }
        }
    }
    arrows.retain(|_, names| !names.is_empty());
    let line = |((from, to), names): (&(HostState, HostState), &Vec<&str>)| {
        format!("    {:<11} -> {:<11}  {}\n", from.as_str(), to.as_str(), names.join(", "))
    };
    arrows.iter().map(line).collect()
}

#[test]
fn architecture_md_shows_every_arrow() {
    let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../ARCHITECTURE.md"));
    let shown = text.split_once("<!-- host arrows -->\n").and_then(|(_, rest)| rest.split_once("<!-- end -->"));
    let shown = shown.map(|(shown, _)| shown.trim_matches('\n'));
    let expected = diagram();
    assert!(
        shown == Some(expected.trim_matches('\n')),
        "ARCHITECTURE.md must have this between <!-- host arrows --> and <!-- end -->:\n\n{expected}"
    );
}

#[test]
fn a_terminated_host_stays_so() {
    for event in events() {
        assert!(matches!(next(&Phase::Terminated, &event), Ok(Phase::Terminated) | Err(IllegalEvent)), "{event:?}");
    }
}

#[test]
fn every_host_can_be_terminated() {
    for phase in phases().into_iter().filter(|phase| *phase != Phase::Terminated) {
        let terminating = next(&phase, &HostEvent::Terminate).unwrap();
        assert_eq!(terminating.state(), HostState::Terminating, "{phase:?}");
        // A call that may make the machine is waited for, and what the machine printed, and nothing else.
        let answered = next(&terminating, &HostEvent::StartEnded(StartOutcome::Made)).unwrap();
        let fetches = matches!(phase, Phase::Terminating { console: true, .. });
        assert_eq!(next(&answered, &HostEvent::Called).is_err(), fetches, "{phase:?}");
        let called = next(&next(&answered, &HostEvent::Console).unwrap(), &HostEvent::Called).unwrap();
        assert_eq!(next(&called, &HostEvent::TerminateEnded { gone: true }), Ok(Phase::Terminated), "{phase:?}");
        let waits = phase.may_be_starting() || fetches;
        assert_eq!(next(&terminating, &HostEvent::Called).is_err(), waits, "{phase:?}");
    }
}

#[test]
fn no_call_to_start_resume_or_suspend_is_made_before_the_last_one_is_answered() {
    for phase in phases() {
        if let Ok(called) = next(&phase, &HostEvent::Called) {
            let again = next(&called, &HostEvent::Called);
            assert_eq!(again.is_ok(), matches!(called, Phase::Terminating { .. }), "{phase:?}");
        }
    }
}
