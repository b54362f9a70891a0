//! Performs the core's effects.

use super::session_file::SessionFile;
use super::workdir::WorkDir;
use crate::build_logs::BuildLogs;
use crate::core::{Effect, Event, Level, RunStep};
use crate::diagnostics::log;
use crate::link::{Link, LinkEvent, Login, Target};
use crate::runner::users::{self, User};
use crate::runner::{Job, Runner};
use crate::vitals;
use lapin::Connection;
use rouse_shared::error::Chain;
use rouse_shared::limits::MAX_CONTROL;
use rouse_shared::message::{StepState, ToMaster};
use rouse_shared::{AttemptId, WorkerName, codec};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use sysinfo::System;
use tokio::sync::mpsc;

/// Longest time for the last messages to be sent.
const CLOSING: Duration = Duration::from_secs(4);
/// `PATH` of a build that does not set its own.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How the agent ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    Exit,
    PowerOff,
    Restart,
}

/// What a performer acts on.
pub(super) struct Parts {
    pub worker: WorkerName,
    pub target: Target,
    pub runner: Runner,
    pub work: WorkDir,
    pub session_file: SessionFile,
    pub system: System,
    pub link_events: mpsc::Sender<(u64, LinkEvent)>,
    /// Largest log of a step, bytes.
    pub max_log: u64,
}

/// Performs effects.
pub(super) struct Performer {
    parts: Parts,
    logs: BuildLogs,
    link: Option<(u64, Link)>,
    /// Attempts that have a directory.
    made: BTreeSet<AttemptId>,
    /// Each link holds a sender, so the receiver ends when all links are closed.
    closing: (mpsc::Sender<()>, mpsc::Receiver<()>),
}

impl Performer {
    pub(super) fn new(logs: BuildLogs, parts: Parts) -> Self {
        Self { parts, logs, link: None, made: BTreeSet::new(), closing: mpsc::channel(1) }
    }

    /// Performs one effect, and adds to `more` the events that it causes at once.
    pub(super) fn perform(&mut self, effect: Effect, more: &mut Vec<Event>) -> Option<End> {
        match effect {
            Effect::Connect { connection, queue, credential } => {
                self.logs.set_link(None);
                let login = Login { worker: self.parts.worker.clone(), credential, connection, queue };
                let (target, events) = (self.parts.target.clone(), self.parts.link_events.clone());
                self.link = Some((connection, Link::open(target, login, events, self.closing.0.clone())));
            }
            Effect::Disconnect { connection } => self.link_is_down(connection),
            Effect::Send(message) => self.send(*message, more),
            Effect::RunStep(step) => self.run_step(*step, more),
            Effect::StopAttempt(attempt) => self.parts.runner.stop(attempt),
            Effect::KillAttempt(attempt) => self.parts.runner.kill(attempt),
            Effect::SetDeadline(deadline) => self.parts.runner.set_deadline(deadline),
            Effect::StoreSecret(secret) => {
                if let Err(error) = self.parts.session_file.store(&secret) {
                    let text = format!(
                        "the session secret cannot be kept, so a restart of the agent will lose builds: {error}"
                    );
                    log(Level::Error, &text);
                }
            }
            Effect::ForgetSecret => {
                if let Err(error) = self.parts.session_file.forget() {
                    log(Level::Error, &format!("the session secret cannot be removed: {error}"));
                }
            }
            Effect::RemoveAttempt(attempt) => {
                self.logs.forget(attempt);
                self.made.remove(&attempt);
                self.parts.work.remove(attempt);
            }
            Effect::SendLogFrom { attempt, step, offset } => self.logs.send_from(attempt, step, offset),
            Effect::PowerOff { why } => {
                log(Level::Warn, &format!("powering off: {why}"));
                return Some(End::PowerOff);
            }
            Effect::Exit { why } => {
                log(Level::Info, &format!("exiting: {why}"));
                return Some(End::Exit);
            }
            Effect::Restart { why } => {
                log(Level::Info, &format!("restarting: {why}"));
                return Some(End::Restart);
            }
            Effect::Log(level, text) => log(level, &text),
        }
        None
    }

    pub(super) fn link_is_up(&mut self, connection: u64, amqp: Arc<Connection>) {
        if self.link.as_ref().is_some_and(|(number, _)| *number == connection) {
            self.logs.set_link(Some(amqp));
        }
    }

    pub(super) fn link_is_down(&mut self, connection: u64) {
        if self.link.as_ref().is_some_and(|(number, _)| *number == connection) {
            self.logs.set_link(None);
            self.link = None;
        }
    }

    pub(super) fn output(&self, attempt: AttemptId, step: u32, length: u64) {
        self.logs.set_length(attempt, step, length);
    }

    /// Waits until the last messages are sent.
    pub(super) async fn close(mut self) {
        self.logs.set_link(None);
        self.link = None;
        let (sender, mut receiver) = self.closing;
        drop(sender);
        if tokio::time::timeout(CLOSING, receiver.recv()).await.is_err() {
            log(Level::Warn, "the broker did not accept the last messages");
        }
    }

    fn send(&mut self, mut message: ToMaster, more: &mut Vec<Event>) {
        if let ToMaster::Heartbeat(heartbeat) = &mut message {
            heartbeat.vitals = vitals::vitals(&mut self.parts.system, self.parts.work.root());
        }
        let bytes = codec::encode(&message);
        if bytes.len() > MAX_CONTROL {
            return log(Level::Error, &format!("a message of {} bytes is too long and was not sent", bytes.len()));
        }
        let Some((connection, link)) = &self.link else { return };
        if !link.send(bytes) {
            let (connection, why) = (*connection, "it accepts no more messages".to_owned());
            more.push(Event::LinkDown { connection, refused: false, why });
            self.link_is_down(connection);
        }
    }

    fn run_step(&mut self, step: RunStep, more: &mut Vec<Event>) {
        let (attempt, number) = (step.attempt, step.step);
        let user = match step.run_as.as_deref().map(users::lookup).transpose() {
            Ok(user) => user,
            Err(error) => return more.push(Event::PrepareFailed { attempt, why: Chain(&error).to_string() }),
        };
        if !self.made.contains(&attempt) {
            if let Err(error) = self.parts.work.make(attempt, user.as_ref()) {
                return more.push(Event::PrepareFailed { attempt, why: Chain(&error).to_string() });
            }
            self.made.insert(attempt);
        }
        let session = step.session.clone();
        match self.job(step, user.as_ref()) {
            Ok(job) => {
                self.logs.add(session, attempt, number, job.spool.clone());
                self.parts.runner.run(job);
            }
            Err(why) => more.push(Event::StepEnded {
                attempt,
                step: number,
                state: StepState::NotStarted(why),
                log_length: 0,
                log_cut: 0,
                took: Duration::ZERO,
                usage: None,
                unclean: false,
            }),
        }
    }

    fn job(&self, step: RunStep, user: Option<&User>) -> Result<Job, String> {
        if step.run.is_empty() {
            return Err("the step has no command".to_owned());
        }
        let work = &self.parts.work;
        let cwd = work.step_dir(step.attempt, &step.workdir, user).map_err(|error| Chain(&error).to_string())?;
        let (build, tmp) = (work.build(step.attempt), work.tmp(step.attempt));
        Ok(Job {
            attempt: step.attempt,
            step: step.step,
            run: step.run,
            cwd,
            env: environment(step.env, user, build, tmp),
            run_as: step.run_as,
            timeout: step.timeout,
            silence: step.silence,
            spool: work.spool_file(step.attempt, step.step),
            max_log: self.parts.max_log,
            limits: step.limits,
        })
    }
}

/// The build's own variables, and the usual ones that it does not set. The agent's environment is not passed on.
fn environment(
    mut env: BTreeMap<String, String>,
    user: Option<&User>,
    build: PathBuf,
    tmp: PathBuf,
) -> BTreeMap<String, String> {
    let text = |path: PathBuf| path.to_string_lossy().into_owned();
    let mut usual = vec![("PATH", PATH.to_owned()), ("LANG", "C.UTF-8".to_owned()), ("TMPDIR", text(tmp))];
    match user {
        Some(user) => {
            usual.push(("HOME", text(user.home.clone())));
            usual.push(("USER", user.name.clone()));
            usual.push(("LOGNAME", user.name.clone()));
        }
        None => usual.push(("HOME", text(build))),
    }
    for (name, value) in usual {
        env.entry(name.to_owned()).or_insert(value);
    }
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_builds_own_variables_override_the_usual_ones() {
        let own = BTreeMap::from([("PATH".to_owned(), "/opt/bin".to_owned()), ("CI".to_owned(), "true".to_owned())]);
        let env = environment(own, None, "/w/1.1/build".into(), "/w/1.1/tmp".into());
        let pairs: Vec<_> = env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(
            pairs,
            [
                ("CI", "true"),
                ("HOME", "/w/1.1/build"),
                ("LANG", "C.UTF-8"),
                ("PATH", "/opt/bin"),
                ("TMPDIR", "/w/1.1/tmp"),
            ]
        );
    }
}
