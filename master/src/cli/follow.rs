//! Following builds and their logs: bytes to stdout, words to stderr, through restarts of the master.

use super::client::Client;
use super::watch::{Changes, Voice, patiently};
use super::{Failed, output};
use serde_json::Value;
use std::io::ErrorKind;
use std::time::Duration;

/// Between two looks at a build that waits, at first and at last. Its own changes are seen at once; this is for `why`.
const FIRST_LOOK: Duration = Duration::from_secs(1);
const LAST_LOOK: Duration = Duration::from_secs(10);
/// Between two looks whether a step has begun that prints nothing.
const STEP_LOOK: Duration = Duration::from_millis(500);
/// Before a log that was cut in the middle is asked for again.
const AGAIN: Duration = Duration::from_millis(100);

/// Prints the log of a build: all steps of an attempt, or one.
pub(super) async fn log(
    client: &Client,
    id: u64,
    step: Option<u32>,
    attempt: Option<u32>,
    follow: bool,
) -> Result<(), Failed> {
    let mut voice = Voice::new();
    let mut follower = Follower::new(client, id, &mut voice, true);
    follower.announces = false;
    let mut build = client.get(&path(id)).await?;
    if follow && attempt.is_none() && tries(&build) == 0 {
        build = follower.until_attempt(1).await?;
    }
    let Some(attempt) = attempt.or_else(|| u32::try_from(tries(&build)).ok().filter(|number| *number > 0)) else {
        output::say(&format!("build {id} has no log: it has not been given to a worker"));
        return Ok(());
    };
    let count = build["steps"].as_array().map_or(0, Vec::len);
    let all = 1..=u32::try_from(count).unwrap_or(u32::MAX);
    let mut gone = None;
    for number in step.map_or(all, |step| step..=step) {
        let printed = if follow {
            follower.step(attempt, number).await.map(|()| None)
        } else {
            follower.print_step(attempt, number).await.map(Some)
        };
        match printed {
            // One that still runs lacks its end as a matter of course.
            Ok(Some(bytes)) if follower.prints && step_over(&build, attempt, number) => {
                follower.tell_cut(&build, attempt, number, bytes);
            }
            Ok(_) => {}
            // Those of other steps may be there.
            Err(Failed::Refused(why)) if step.is_none() => {
                if let Some(before) = gone.replace(why) {
                    output::say(&before);
                }
            }
            Err(failed) => return Err(failed),
        }
        if !follower.prints {
            return Err(Failed::Closed);
        }
    }
    gone.map_or(Ok(()), |why| Err(Failed::Refused(why)))
}

/// Follows one build.
pub(super) struct Follower<'a> {
    client: &'a Client,
    id: u64,
    voice: &'a mut Voice,
    changes: Changes,
    /// Whether logs go to stdout; no more once nobody reads it.
    prints: bool,
    /// Whether beginnings and ends of steps are told.
    announces: bool,
}

impl<'a> Follower<'a> {
    pub(super) fn new(client: &'a Client, id: u64, voice: &'a mut Voice, prints: bool) -> Self {
        Self { client, id, voice, changes: Changes::of(id), prints, announces: true }
    }

    /// Follows the build through all of its attempts. Its exit code, and how it ended.
    pub(super) async fn build(&mut self) -> Result<(u8, Value), Failed> {
        let mut attempt = 1;
        loop {
            let build = self.until_attempt(attempt).await?;
            if tries(&build) < attempt as usize {
                return Ok(self.outcome(build));
            }
            let tried = nth(&build["tries"], attempt);
            let host = tried["host"].as_str().map_or_else(String::new, |host| format!(", host {host}"));
            self.voice.say(&format!("attempt {attempt} is given to {}{host}", output::text(&tried["worker"])));
            self.steps(attempt, &build).await?;
            let build = self.until(|build| ended(build, attempt)).await?;
            if tries(&build) == attempt as usize && is_final(&build) {
                return Ok(self.outcome(build));
            }
            let reason = nth(&build["tries"], attempt)["reason"].as_str().unwrap_or("its worker is gone").to_owned();
            self.voice.say(&format!("attempt {attempt} is lost: {reason}; the build is to be tried again"));
            attempt += 1;
        }
    }

    async fn steps(&mut self, attempt: u32, build: &Value) -> Result<(), Failed> {
        let count = build["steps"].as_array().map_or(0, Vec::len);
        for number in 1..=u32::try_from(count).unwrap_or(u32::MAX) {
            if !self.prints {
                // Nothing to show, and the end comes with the build's own.
                return Ok(());
            }
            self.step(attempt, number).await?;
        }
        Ok(())
    }

    /// Waits until there is an attempt of this number, or the build has ended without; says meanwhile why it waits.
    async fn until_attempt(&mut self, attempt: u32) -> Result<Value, Failed> {
        let mut pause = FIRST_LOOK;
        loop {
            let build = self.look().await?;
            if tries(&build) >= attempt as usize || is_final(&build) {
                self.voice.quiet();
                return Ok(build);
            }
            let why = patiently(self.voice, async || self.client.get(&format!("{}/why", path(self.id))).await).await?;
            if let Some(sentence) = why["sentence"].as_str() {
                self.voice.waiting(sentence);
            }
            self.changes.next(self.client, pause).await;
            pause = (pause * 2).min(LAST_LOOK);
        }
    }

    async fn until(&mut self, done: impl Fn(&Value) -> bool) -> Result<Value, Failed> {
        loop {
            let build = self.look().await?;
            if done(&build) {
                self.voice.quiet();
                return Ok(build);
            }
            let waiting = if self.prints { "is ending" } else { "is running" };
            if self.announces {
                self.voice.waiting(&format!("build {} {waiting}", self.id));
            }
            self.changes.next(self.client, FIRST_LOOK).await;
        }
    }

    async fn look(&self) -> Result<Value, Failed> {
        patiently(self.voice, async || self.client.get(&path(self.id)).await).await
    }

    /// Follows one step of an attempt until its log is whole, wherever it is cut meanwhile.
    async fn step(&mut self, attempt: u32, number: u32) -> Result<(), Failed> {
        let path = format!("{}/steps/{number}/log?follow=1&attempt={attempt}", path(self.id));
        let mut offset = 0;
        let mut told = !self.announces;
        // A spinner would wipe out a line that the step has not ended.
        let mut line_ended = true;
        while self.prints {
            let response = patiently(self.voice, async || self.client.log(&path, offset).await).await?;
            let Some(mut response) = response else { return Ok(()) };
            let whole = loop {
                let piece = tokio::select! {
                    piece = response.chunk() => piece,
                    () = tokio::time::sleep(STEP_LOOK), if self.announces => {
                        if !told {
                            told = self.tell_begin(attempt, number, false).await?;
                        } else if line_ended {
                            self.voice.spinning(&format!("step {number} runs"));
                        }
                        continue;
                    }
                };
                match piece {
                    Ok(Some(bytes)) => {
                        offset += bytes.len() as u64;
                        if !told {
                            told = self.tell_begin(attempt, number, true).await?;
                        }
                        line_ended = bytes.ends_with(b"\n");
                        self.voice.quiet();
                        self.print(&bytes)?;
                    }
                    Ok(None) => break true,
                    Err(_) => break false,
                }
            };
            if whole {
                let build = self.look().await?;
                if step_over(&build, attempt, number) {
                    self.tell_end(&build, attempt, number, told, offset);
                    return Ok(());
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
        Ok(())
    }

    /// Prints what there is of a step's log. How many bytes that was.
    async fn print_step(&mut self, attempt: u32, number: u32) -> Result<u64, Failed> {
        let path = format!("{}/steps/{number}/log?attempt={attempt}", path(self.id));
        let mut printed = 0;
        let Some(mut response) = self.client.log(&path, 0).await? else { return Ok(printed) };
        while let Some(bytes) = response.chunk().await.map_err(|error| self.client.away(&error))? {
            printed += bytes.len() as u64;
            self.print(&bytes)?;
            if !self.prints {
                break;
            }
        }
        Ok(printed)
    }

    fn print(&mut self, bytes: &[u8]) -> Result<(), Failed> {
        match output::bytes(bytes) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.prints = false;
                Ok(())
            }
            written => Ok(written?),
        }
    }

    /// Says that a step has begun, once it has; `surely` where its output shows that.
    async fn tell_begin(&mut self, attempt: u32, number: u32, surely: bool) -> Result<bool, Failed> {
        let build = self.look().await?;
        let tried = nth(&build["tries"], attempt);
        let step = nth(&tried["steps"], number);
        let begun = surely || step["state"] == "running";
        if begun {
            self.voice.quiet();
            self.voice.say(&format!("{} begins", title(&build, number)));
        } else if tried["started"].is_null() && tried["ended"].is_null() {
            self.voice.waiting(&format!("waiting for {} to begin", output::text(&tried["worker"])));
        }
        Ok(begun)
    }

    fn tell_end(&mut self, build: &Value, attempt: u32, number: u32, told: bool, bytes: u64) {
        let step = nth(&nth(&build["tries"], attempt)["steps"], number);
        let title = title(build, number);
        self.voice.quiet();
        if self.announces && (told || step["state"] != "skipped") {
            let how = match (step["exit_code"].as_i64(), step["signal"].as_i64(), step["reason"].as_str()) {
                (Some(code), _, _) if code != 0 => format!(", exit code {code}"),
                (_, Some(signal), _) => format!(", signal {signal}"),
                (_, _, Some(reason)) => format!(": {reason}"),
                _ => String::new(),
            };
            let took = step["duration"].as_f64().filter(|_| step["state"] != "not_started");
            let took = took.map_or_else(String::new, |seconds| format!(" after {seconds:.1} s"));
            let state = output::text(&step["state"]).replace('_', " ");
            self.voice.say(&format!("{title}: {state}{took}{how}"));
        }
        self.tell_cut(build, attempt, number, bytes);
    }

    /// Says what is missing of a step's log, of which so many bytes came.
    fn tell_cut(&mut self, build: &Value, attempt: u32, number: u32, bytes: u64) {
        let step = nth(&nth(&build["tries"], attempt)["steps"], number);
        let title = title(build, number);
        if let Some(cut) = step["log_thrown_away"].as_u64().filter(|cut| *cut > 0) {
            self.voice
                .say(&format!("{title} printed {cut} bytes more, past the limit of log size; they are thrown away"));
        }
        if step["log_lacks_end"] == true || step["log_length"].as_u64().is_some_and(|length| length > bytes) {
            self.voice.say(&format!("the log of {title} lacks its end: it was lost with its worker"));
        }
    }

    fn outcome(&mut self, build: Value) -> (u8, Value) {
        self.voice.quiet();
        let state = output::text(&build["state"]);
        let reason = build["reason"].as_str().map_or_else(String::new, |reason| format!(": {reason}"));
        self.voice.say(&format!("build {}: {state}{reason}", self.id));
        let code = match state.as_str() {
            "success" => 0,
            "lost" => 5,
            "cancelled" => 6,
            _ => 1,
        };
        (code, build)
    }
}

fn path(id: u64) -> String {
    format!("/api/builds/{id}")
}

/// The `number`th of a list, from 1; null where there is none.
fn nth(list: &Value, number: u32) -> &Value {
    &list[(number as usize).saturating_sub(1)]
}

fn tries(build: &Value) -> usize {
    build["tries"].as_array().map_or(0, Vec::len)
}

fn is_final(build: &Value) -> bool {
    ["success", "failure", "cancelled", "lost"].iter().any(|state| build["state"] == *state)
}

fn ended(build: &Value, attempt: u32) -> bool {
    is_final(build) || tries(build) > attempt as usize || !nth(&build["tries"], attempt)["ended"].is_null()
}

fn step_over(build: &Value, attempt: u32, number: u32) -> bool {
    let step = nth(&nth(&build["tries"], attempt)["steps"], number);
    ended(build, attempt) || !(step["state"] == "running" || step["state"] == "pending")
}

fn title(build: &Value, number: u32) -> String {
    let steps = &build["steps"];
    let name = nth(steps, number)["name"].as_str().filter(|name| !name.is_empty());
    let name = name.map_or_else(String::new, |name| format!(" ({name})"));
    format!("step {number} of {}{name}", steps.as_array().map_or(0, Vec::len))
}
