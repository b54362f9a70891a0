//! The texts that describe the end of a build.

use rouse_shared::duration;
use rouse_shared::limits::{self, MAX_TEXT, MAX_WORD};
use rouse_shared::message::{Step, StepState, Usage};
use std::time::Duration;

/// How a step failed, with its name; `None` if it did not fail.
pub fn failure(step: &Step, state: &StepState, usage: Option<Usage>) -> Option<String> {
    let how = match state {
        StepState::Exited(0) | StepState::Running | StepState::Skipped => return None,
        // The kernel kills the whole step. A shell in it that has survived would exit with 137.
        StepState::Exited(_) | StepState::Signalled(_) if usage.is_some_and(|usage| usage.out_of_memory) => {
            format!("ran {}", usage.and_then(|usage| usage.memory_failure())?)
        }
        StepState::Exited(code) => format!("exited with {code}"),
        StepState::Signalled(signal) => format!("was ended by signal {signal}"),
        StepState::TimedOut => format!("ran longer than {}", limit(step.timeout_ms)),
        StepState::Silent => format!("printed nothing for {}", limit(step.silence_ms)),
        StepState::Stopped => "was stopped".to_owned(),
        StepState::NotStarted(why) => format!("could not be started: {why}"),
        StepState::Lost(why) => format!("was lost: {why}"),
    };
    Some(cut(format!("step {:?} {how}", step.name)))
}

fn limit(ms: Option<u64>) -> String {
    ms.map_or_else(|| "its limit".to_owned(), |ms| duration::exact(Duration::from_millis(ms)))
}

/// The text, cut to what the wire carries.
pub fn cut(text: String) -> String {
    cut_to(text, MAX_TEXT)
}

/// The text, cut to a word of a hello.
pub fn cut_word(text: String) -> String {
    cut_to(text, MAX_WORD)
}

fn cut_to(mut text: String, most: usize) -> String {
    limits::cut(&mut text, most);
    text
}

/// The text of a state: it may quote what a user wrote.
pub fn text_of(state: &StepState) -> Option<&str> {
    match state {
        StepState::NotStarted(why) | StepState::Lost(why) => Some(why),
        StepState::Running
        | StepState::Exited(_)
        | StepState::Signalled(_)
        | StepState::TimedOut
        | StepState::Silent
        | StepState::Stopped
        | StepState::Skipped => None,
    }
}

/// The state with its text cut likewise, and to what its report has room for.
pub fn cut_state(state: StepState, room: usize) -> StepState {
    let most = room.min(MAX_TEXT);
    match state {
        StepState::NotStarted(why) => StepState::NotStarted(cut_to(why, most)),
        StepState::Lost(why) => StepState::Lost(cut_to(why, most)),
        state @ (StepState::Running
        | StepState::Exited(_)
        | StepState::Signalled(_)
        | StepState::TimedOut
        | StepState::Silent
        | StepState::Stopped
        | StepState::Skipped) => state,
    }
}
