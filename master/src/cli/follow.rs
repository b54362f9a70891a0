//! Follows builds and their logs: bytes on stdout, messages on stderr, through restarts of the master.

use super::client::Client;
use super::error::CliError;
use super::exit::Exit;
use super::output;
use super::watch::{Changes, ProgressReporter, patiently};
use crate::api::{self, AttemptState, BuildInFull, StepState};
use crate::core::build::BuildState;
use std::io::ErrorKind;
use std::time::Duration;

/// Shortest and longest interval at which a waiting build is checked. Changes of its state arrive at once; this is for
/// `why`.
const FIRST_LOOK: Duration = Duration::from_secs(1);
const LAST_LOOK: Duration = Duration::from_secs(10);
/// Interval at which a step without output is checked.
const STEP_LOOK: Duration = Duration::from_millis(500);
/// Pause before a log is requested again after its connection broke.
const AGAIN: Duration = Duration::from_millis(100);

/// Prints the log of a build: all steps of an attempt, or one.
pub(super) async fn log(
    client: &Client,
    id: u64,
    step: Option<u32>,
    attempt: Option<u32>,
    follow: bool,
) -> Result<(), CliError> {
    let mut progress = ProgressReporter::new();
    let mut follower = Follower::new(client, id, &mut progress, true);
    follower.announces = false;
    let mut build = if follow { follower.look().await? } else { client.get(&path(id)).await? };
    if follow && attempt.is_none() && build.tries.is_empty() {
        build = follower.until_attempt(1).await?;
    }
    let Some(attempt) = attempt.or_else(|| build.tries.last().map(|tried| tried.number)) else {
        output::say(&format!("build {id} has no log: it has not been assigned to a worker"));
        return Ok(());
    };
    let all = 1..=step_count(&build);
    let mut gone = None;
    for number in step.map_or(all, |step| step..=step) {
        let printed = if follow {
            follower.step(attempt, number).await.map(|()| None)
        } else {
            follower.print_step(attempt, number).await.map(Some)
        };
        match printed {
            // The log of a running step is always incomplete.
            Ok(Some(bytes)) if follower.prints && step_over(&build, attempt, number) => {
                follower.report_missing_bytes(&build, attempt, number, bytes);
            }
            Ok(_) => {}
            // The logs of other steps may be available.
            Err(CliError::Refused(why)) if step.is_none() => {
                if let Some(before) = gone.replace(why) {
                    output::say(&before);
                }
            }
            Err(failed) => return Err(failed),
        }
        if !follower.prints {
            return Err(CliError::Closed);
        }
    }
    gone.map_or(Ok(()), |why| Err(CliError::Refused(why)))
}

/// Follows one build.
pub(super) struct Follower<'a> {
    client: &'a Client,
    id: u64,
    progress: &'a mut ProgressReporter,
    changes: Changes,
    /// Whether logs go to stdout, which may have been closed.
    prints: bool,
    /// Whether starts and ends of steps are reported.
    announces: bool,
}

impl<'a> Follower<'a> {
    pub(super) fn new(client: &'a Client, id: u64, progress: &'a mut ProgressReporter, prints: bool) -> Self {
        Self { client, id, progress, changes: Changes::of(id), prints, announces: true }
    }

    /// Follows the build through all of its attempts. Returns the exit code and the build at its end.
    pub(super) async fn build(&mut self) -> Result<(Exit, BuildInFull), CliError> {
        let mut attempt = 1;
        loop {
            let build = self.until_attempt(attempt).await?;
            let Some(tried) = tried(&build, attempt) else { return Ok(self.outcome(build)) };
            let host = tried.host.as_ref().map_or_else(String::new, |host| format!(", host {host}"));
            self.progress.say(&format!("attempt {attempt} is assigned to {}{host}", tried.worker));
            self.steps(attempt, &build).await?;
            let build = self.until(|build| ended(build, attempt)).await?;
            if tried_by_now(&build) == attempt && build.build.state.is_final() {
                return Ok(self.outcome(build));
            }
            let reason = self::tried(&build, attempt).and_then(|tried| tried.reason.as_deref());
            let reason = reason.unwrap_or("its worker is gone");
            self.progress.say(&format!("attempt {attempt} is lost: {reason}; the build will be retried"));
            attempt += 1;
        }
    }

    /// Waits until the build has ended. Returns the exit code and the build.
    pub(super) async fn end(&mut self) -> Result<(Exit, BuildInFull), CliError> {
        let build = self.until(|build| build.build.state.is_final()).await?;
        Ok(self.outcome(build))
    }

    async fn steps(&mut self, attempt: u32, build: &BuildInFull) -> Result<(), CliError> {
        for number in 1..=step_count(build) {
            if !self.prints {
                // There is nothing to print; the end of the build follows.
                return Ok(());
            }
            self.step(attempt, number).await?;
        }
        Ok(())
    }

    /// Waits until this attempt exists or the build has ended without it. Reports meanwhile why the build waits.
    async fn until_attempt(&mut self, attempt: u32) -> Result<BuildInFull, CliError> {
        let mut pause = FIRST_LOOK;
        loop {
            let build = self.look().await?;
            if tried_by_now(&build) >= attempt || build.build.state.is_final() {
                self.progress.quiet();
                return Ok(build);
            }
            let why: api::Why =
                patiently(self.progress, async || self.client.get(&format!("{}/why", path(self.id))).await).await?;
            self.progress.waiting(&why.sentence);
            self.changes.next(self.client, pause).await;
            pause = (pause * 2).min(LAST_LOOK);
        }
    }

    async fn until(&mut self, done: impl Fn(&BuildInFull) -> bool) -> Result<BuildInFull, CliError> {
        loop {
            let build = self.look().await?;
            if done(&build) {
                self.progress.quiet();
                return Ok(build);
            }
            let waiting = if self.prints { "is ending" } else { "is running" };
            if self.announces {
                self.progress.waiting(&format!("build {} {waiting}", self.id));
            }
            self.changes.next(self.client, FIRST_LOOK).await;
        }
    }

    async fn look(&self) -> Result<BuildInFull, CliError> {
        patiently(self.progress, async || self.client.get(&path(self.id)).await).await
    }

    /// Follows one step of an attempt until its log is complete, even if the connection breaks.
    async fn step(&mut self, attempt: u32, number: u32) -> Result<(), CliError> {
        let path = format!("{}/steps/{number}/log?follow=1&attempt={attempt}", path(self.id));
        let mut offset = 0;
        let mut announced = !self.announces;
        // A spinner would overwrite a line that the step has not ended.
        let mut line_ended = true;
        while self.prints {
            let response = patiently(self.progress, async || self.client.log(&path, offset).await).await?;
            let Some(mut response) = response else { return Ok(()) };
            let whole = loop {
                let piece = tokio::select! {
                    piece = response.chunk() => piece,
                    () = tokio::time::sleep(STEP_LOOK), if self.announces => {
                        if !announced {
                            announced = self.announce_start(attempt, number, false).await?;
                        } else if line_ended {
                            self.progress.spinning(&format!("step {number} runs"));
                        }
                        continue;
                    }
                };
                match piece {
                    Ok(Some(bytes)) => {
                        offset += bytes.len() as u64;
                        if !announced {
                            announced = self.announce_start(attempt, number, true).await?;
                        }
                        line_ended = bytes.ends_with(b"\n");
                        self.progress.quiet();
                        self.print(&bytes)?;
                    }
                    Ok(None) => break true,
                    Err(_) => break false,
                }
            };
            if whole {
                let build = self.look().await?;
                if step_over(&build, attempt, number) {
                    self.announce_end(&build, attempt, number, announced, offset);
                    return Ok(());
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
        Ok(())
    }

    /// Prints what is available of a step's log, and returns its number of bytes.
    async fn print_step(&mut self, attempt: u32, number: u32) -> Result<u64, CliError> {
        let path = format!("{}/steps/{number}/log?attempt={attempt}", path(self.id));
        let mut printed = 0;
        let Some(mut response) = self.client.log(&path, 0).await? else { return Ok(printed) };
        while let Some(bytes) = response.chunk().await.map_err(|error| self.client.unreachable_error(&error))? {
            printed += bytes.len() as u64;
            self.print(&bytes)?;
            if !self.prints {
                break;
            }
        }
        Ok(printed)
    }

    fn print(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        match output::bytes(bytes) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.prints = false;
                Ok(())
            }
            written => Ok(written?),
        }
    }

    /// Reports that a step has started, once it has. `surely` if its output proves it.
    async fn announce_start(&mut self, attempt: u32, number: u32, surely: bool) -> Result<bool, CliError> {
        let build = self.look().await?;
        let Some(tried) = tried(&build, attempt) else { return Ok(surely) };
        let begun = surely || step(&build, attempt, number).is_some_and(|step| step.state == StepState::Running);
        if begun {
            self.progress.quiet();
            self.progress.say(&format!("{} begins", title(&build, number)));
        } else if tried.state == AttemptState::Starting {
            self.progress.waiting(&format!("waiting for {} to begin", tried.worker));
        }
        Ok(begun)
    }

    fn announce_end(&mut self, build: &BuildInFull, attempt: u32, number: u32, announced: bool, bytes: u64) {
        let Some(step) = step(build, attempt, number) else { return };
        self.progress.quiet();
        if self.announces && (announced || step.state != StepState::Skipped) {
            let how = match (step.exit_code, step.signal, &step.reason) {
                (Some(code), _, _) if code != 0 => format!(", exit code {code}"),
                (_, Some(signal), _) => format!(", signal {signal}"),
                (_, _, Some(reason)) => format!(": {reason}"),
                _ => String::new(),
            };
            let took = step.duration.filter(|_| step.state != StepState::NotStarted);
            let took = took.map_or_else(String::new, |seconds| format!(" after {seconds:.1} s"));
            self.progress.say(&format!("{}: {}{took}{how}", title(build, number), step.state.words()));
        }
        self.report_missing_bytes(build, attempt, number, bytes);
    }

    /// Reports what is missing of a step's log after this many bytes.
    fn report_missing_bytes(&mut self, build: &BuildInFull, attempt: u32, number: u32, bytes: u64) {
        let Some(step) = step(build, attempt, number) else { return };
        let title = title(build, number);
        if let Some(cut) = step.log_thrown_away.filter(|cut| *cut > 0) {
            self.progress.say(&format!("{title} printed {cut} bytes more than max_log_size; they were dropped"));
        }
        if step.log_lacks_end || step.log_length.is_some_and(|length| length > bytes) {
            self.progress.say(&format!("the end of the log of {title} was lost with its worker"));
        }
    }

    fn outcome(&mut self, build: BuildInFull) -> (Exit, BuildInFull) {
        self.progress.quiet();
        let state = build.build.state;
        let reason = build.build.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
        self.progress.say(&format!("build {}: {}{reason}", self.id, state.as_str()));
        let exit = match state {
            BuildState::Success => Exit::Success,
            BuildState::Lost => Exit::Lost,
            BuildState::Cancelled => Exit::Cancelled,
            BuildState::Queued | BuildState::Starting | BuildState::Running | BuildState::Failure => Exit::Failure,
        };
        (exit, build)
    }
}

fn path(id: u64) -> String {
    format!("/api/builds/{id}")
}

fn step_count(build: &BuildInFull) -> u32 {
    u32::try_from(build.steps.len()).unwrap_or(u32::MAX)
}

fn tried_by_now(build: &BuildInFull) -> u32 {
    build.tries.last().map_or(0, |tried| tried.number)
}

fn tried(build: &BuildInFull, attempt: u32) -> Option<&api::Attempt> {
    build.tries.iter().find(|tried| tried.number == attempt)
}

fn step(build: &BuildInFull, attempt: u32, number: u32) -> Option<&api::Step> {
    tried(build, attempt)?.steps.iter().find(|step| step.number == number)
}

fn ended(build: &BuildInFull, attempt: u32) -> bool {
    build.build.state.is_final()
        || tried_by_now(build) > attempt
        || tried(build, attempt).is_some_and(|tried| tried.ended.is_some())
}

fn step_over(build: &BuildInFull, attempt: u32, number: u32) -> bool {
    let runs = |step: &api::Step| matches!(step.state, StepState::Running | StepState::Pending);
    ended(build, attempt) || !step(build, attempt, number).is_some_and(runs)
}

fn title(build: &BuildInFull, number: u32) -> String {
    let named = build.steps.iter().find(|step| step.number == number).filter(|step| !step.name.is_empty());
    let name = named.map_or_else(String::new, |step| format!(" ({})", step.name));
    format!("step {number} of {}{name}", step_count(build))
}
