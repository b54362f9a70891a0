//! The life of a build and its attempts: accepted, assigned, reported, settled, retried.

use super::build::{Attempt, Build, BuildEnd, BuildSpec, BuildStatus, Requirement};
use super::event::{Effect, Level, Reply, RequestId};
use super::journal::Principal;
use super::queue::{self, Rank};
use super::record::Record;
use super::timers::Timer;
use super::{Core, Timestamp};
use rouse_shared::limits::{MAX_REPORT_TEXT, MAX_TEXT, cut};
use rouse_shared::message::{AttemptReport, Outcome, RunAttempt, StepState, ToAgent};
use rouse_shared::{AttemptId, BuildId, HostId, WorkerName};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Pause between two checks of incomplete logs. Chunks have a queue of their own, which may be long; an agent sends
/// missing bytes again within a round trip.
const LOG_PATIENCE: Duration = Duration::from_secs(20);
/// Number of checks in a row without progress after which a log counts as incomplete for good.
const LOG_LOOKS: u32 = 6;
/// Failed hosts that are kept with a build, with what they printed: the newest.
const FAILED_HOSTS: usize = 5;

/// Why an attempt does not count that its agent has cancelled although no user has cancelled the build.
const NOBODY_CANCELLED: &str =
    "its worker was removed from the configuration before its agent had confirmed the attempt";

/// The wait for the rest of an attempt's logs.
#[derive(Default, Debug)]
pub(super) struct LogWatch {
    /// Checks in a row without progress.
    looks: u32,
    /// The first missing byte of each step at the last check. The agent has been asked for it.
    gaps: BTreeMap<u32, u64>,
    /// Whether the agent's session has ended. Chunks may still wait in the broker.
    gone: bool,
    /// Whether no agent sends more, and the last check is under way, which finds where each log ends.
    last: bool,
}

fn rank(build: &Build) -> Rank {
    (Reverse(build.spec.priority), build.id)
}

impl Core {
    pub(super) fn on_submit(
        &mut self,
        now: Timestamp,
        request: RequestId,
        spec: Arc<BuildSpec>,
        message_id: Option<(String, Option<BuildId>)>,
        submitter: Principal,
    ) {
        let known = message_id.as_ref().and_then(|(id, kept)| kept.or_else(|| self.message_ids.get(id).copied()));
        if let Some(build) = known {
            return self.reply(request, Reply::Accepted(build));
        }
        if let Requirement::Worker(name) = &spec.requirement
            && !self.plan.workers.contains_key(name)
        {
            let reason = format!("there is no worker {name}; `rouse workers` lists them");
            return self.reply(request, Reply::Refused { field: Some("worker".to_owned()), reason });
        }
        self.last_build += 1;
        let id = BuildId(self.last_build);
        let status = BuildStatus { submitter: Some(submitter), ..BuildStatus::new(now) };
        let message_id = message_id.map(|(id, _)| id);
        if let Some(text) = &message_id {
            self.message_ids.insert(text.clone(), id);
            self.named.insert(id, text.clone());
        }
        self.out.push(Effect::Save(Record::NewBuild { id, spec: spec.clone(), message_id, status: status.clone() }));
        self.builds.insert(id, Build { id, spec, status, logs_deleted: None, logs_store: None });
        self.enqueue(now, id);
        self.touch_build(id);
        self.reply(request, Reply::Accepted(id));
    }

    pub(super) fn reply(&mut self, request: RequestId, reply: Reply) {
        self.out.push(Effect::Reply { request, reply });
    }

    pub(super) fn on_cancel(&mut self, now: Timestamp, request: RequestId, id: BuildId) {
        let Some(build) = self.builds.get_mut(&id) else {
            return self.reply(request, Reply::NotFound(format!("build {id} does not exist or has ended")));
        };
        build.status.cancelled = true;
        let live = build.status.live_attempt().map(|a| (a.number, a.worker.clone()));
        self.touch_build(id);
        match live {
            Some((number, worker)) => self.send_cancel(&worker, AttemptId { build: id, number }),
            None => self.end_build(now, id, BuildEnd::Cancelled),
        }
        self.reply(request, Reply::Done);
    }

    pub(super) fn send_cancel(&mut self, worker: &WorkerName, attempt: AttemptId) {
        if let Some(session) = self.session_id(worker) {
            self.send(worker, ToAgent::Cancel { session, attempt });
        }
    }

    /// Puts a build among those that wait.
    pub(super) fn enqueue(&mut self, now: Timestamp, id: BuildId) {
        self.watch_queue(now, id);
        let Some(build) = self.builds.get(&id) else { return };
        let requirement = build.spec.requirement.clone();
        self.queue.push(&requirement, rank(build));
        self.pending.wanted.insert(requirement);
        self.pending.wake = true;
    }

    fn end_build(&mut self, now: Timestamp, id: BuildId, end: BuildEnd) {
        self.timers.clear(&Timer::Queue(id));
        let Some(build) = self.builds.get_mut(&id) else { return };
        build.status.finished = Some(now);
        build.status.end = Some(end);
        let (requirement, rank) = (build.spec.requirement.clone(), rank(build));
        // A host that was being started for it may serve another, or goes when it has been idle.
        let host = self.queue.host_of(id).cloned();
        self.queue.remove(&requirement, rank);
        if let Some(host) = host {
            self.pending.wake = true;
            self.touch_host(&host);
            if let Some(worker) = self.hosts.get(&host).map(|h| h.host.worker.clone()) {
                self.touch_worker(&worker);
            }
        }
        self.touch_build(id);
    }

    /// Gives a build that waits to a worker that is attached and has room. The order goes out after the commit.
    pub(super) fn assign(&mut self, now: Timestamp, worker_name: &WorkerName, requirement: &Requirement, at: Rank) {
        self.queue.remove(requirement, at);
        self.timers.clear(&Timer::Queue(at.1));
        let Some(build) = self.builds.get_mut(&at.1) else { return };
        let Some(worker) = self.workers.get_mut(worker_name) else { return };
        let Some(live) = &worker.session else { return };
        let number = build.status.attempts.last().map_or(1, |a| a.number + 1);
        let allowed = worker.plan.as_ref().map(|plan| plan.limits).unwrap_or_default();
        let unenforced = super::limits::unenforced(allowed, &build.spec, &live.session.facts);
        let attempt = build.attempt_id(number);
        build.status.attempts.push(Attempt {
            number,
            worker: worker_name.clone(),
            host: worker.host.clone(),
            session: live.session.id.clone(),
            ordered: now,
            started: None,
            ended: None,
            revision: 0,
            steps: Vec::new(),
            outcome: None,
            cut_logs: Vec::new(),
            excused: false,
            unenforced,
        });
        worker.attempts.insert(attempt);
        if let Some(host) = worker.host.clone()
            && let Some(live) = self.hosts.get_mut(&host)
        {
            live.host.uses += 1;
            self.touch_host(&host);
        }
        self.open_logs(attempt);
        self.send_order(attempt);
        self.touch_build(attempt.build);
        self.touch_worker(worker_name);
    }

    /// Accepts the logs of a live attempt.
    pub(super) fn open_logs(&mut self, id: AttemptId) {
        let Some(build) = self.builds.get(&id.build) else { return };
        let Some(attempt) = build.status.live_attempt().filter(|attempt| attempt.number == id.number) else { return };
        let (worker, session, steps) = (attempt.worker.clone(), attempt.session.clone(), build.spec.steps.len());
        self.out.push(Effect::OpenLogs { attempt: id, worker, session, steps });
    }

    /// Sends the request to run an attempt, for the first time or again. An agent that has the attempt ignores it.
    pub(super) fn send_order(&mut self, id: AttemptId) {
        let Some(build) = self.builds.get(&id.build) else { return };
        let Some(attempt) = build.status.live_attempt() else { return };
        let worker_name = attempt.worker.clone();
        let Some(plan) = self.workers.get(&worker_name).and_then(|w| w.plan.clone()) else {
            // The worker is no longer in the configuration. An agent that never got the request declines it, and
            // another worker gets the build.
            return self.send_cancel(&worker_name, id);
        };
        let mut env: BTreeMap<String, String> = plan
            .properties
            .iter()
            .map(|(key, value)| (format!("ROUSE_PROP_{}", env_name(key)), value.clone()))
            .collect();
        env.extend(build.spec.env.clone());
        env.insert("ROUSE_BUILD".to_owned(), id.build.to_string());
        env.insert("ROUSE_ATTEMPT".to_owned(), id.number.to_string());
        env.insert("ROUSE_WORKER".to_owned(), worker_name.to_string());
        let order = RunAttempt {
            session: attempt.session.clone(),
            attempt: id,
            env,
            run_as: plan.run_as.clone(),
            timeout_ms: build.spec.timeout_ms,
            limits: plan.limits.narrowed(build.spec.limits),
            steps: build.spec.steps.clone(),
        };
        self.send(&worker_name, ToAgent::RunAttempt(Box::new(order)));
    }

    /// The agent reports the state of an attempt.
    pub(super) fn on_report(&mut self, now: Timestamp, worker: &WorkerName, report: AttemptReport) {
        let id = report.attempt;
        if !self.workers.get(worker).is_some_and(|w| w.attempts.contains(&id)) {
            // The attempt has already ended for the master. If it has ended for the agent too, the agent may forget it;
            // if it runs, it must stop.
            let Some(session) = self.session_id(worker) else { return };
            return match report.outcome {
                Some(_) => self.send(worker, ToAgent::Settled { session, attempts: vec![id] }),
                None => self.send(worker, ToAgent::Cancel { session, attempt: id }),
            };
        }
        let Some(build) = self.builds.get_mut(&id.build) else { return };
        let spec_steps = build.spec.steps.len();
        let Some(attempt) = build.status.attempts.last_mut().filter(|a| a.number == id.number) else { return };
        if report.revision <= attempt.revision || attempt.outcome.is_some() || report.steps.len() > spec_steps {
            return;
        }
        attempt.revision = report.revision;
        attempt.steps = report.steps;
        let mut room = MAX_REPORT_TEXT;
        for step in &mut attempt.steps {
            // The master keeps no more of the log.
            let dropped = step.log_length.saturating_sub(self.plan.max_log_size);
            step.log_length -= dropped;
            step.log_cut = step.log_cut.saturating_add(dropped);
            if let StepState::NotStarted(why) | StepState::Lost(why) = &mut step.state {
                cut_text(why, room.min(MAX_TEXT));
                room -= why.len();
            }
        }
        let begun = !matches!(report.outcome, Some(Outcome::Declined(_)));
        if attempt.started.is_none() && begun {
            attempt.started = Some(now);
            build.status.started = Some(now);
        }
        if let Some(mut outcome) = report.outcome {
            if let Outcome::Failure(why) | Outcome::Lost(why) | Outcome::Declined(why) = &mut outcome {
                cut_text(why, MAX_TEXT);
            }
            // An agent that cannot run anything would otherwise use up all attempts of all builds within a moment.
            let cannot = matches!(outcome, Outcome::Lost(_));
            attempt.outcome = Some(outcome);
            if cannot && let Some(live) = self.workers.get_mut(worker).and_then(|w| w.session.as_mut()) {
                live.held_until_message = true;
            }
            let lengths: Vec<u64> = attempt.steps.iter().map(|s| s.log_length).collect();
            if lengths.iter().all(|length| *length == 0) {
                self.end_attempt(now, id);
            } else {
                self.out.push(Effect::CheckLogs { attempt: id, lengths, overdue: false });
                self.timers.set(Timer::Logs(id), now + LOG_PATIENCE);
            }
        }
        self.touch_build(id.build);
    }

    pub(super) fn on_logs_whole(&mut self, now: Timestamp, id: AttemptId) {
        let last = self.log_watches.get(&id).is_some_and(|watch| watch.last);
        if let Some(attempt) = self.attempt_with_outcome(id) {
            if !last {
                attempt.cut_logs.clear();
            }
            self.end_attempt(now, id);
        }
    }

    /// No agent will send the rest of the logs. Checks each log once more to find where it ends; then the attempt ends.
    fn check_logs(&mut self, now: Timestamp, id: AttemptId) {
        let Some(attempt) = self.attempt_with_outcome(id) else { return };
        attempt.cut_logs.clear();
        self.log_watches.entry(id).or_default().last = true;
        self.timers.set(Timer::Logs(id), now + LOG_PATIENCE);
        self.settle_logs(id);
    }

    /// Requests at once what the logs lack, if the agent has reported the attempt's outcome.
    pub(super) fn ask_for_logs(&mut self, id: AttemptId) {
        let Some(attempt) = self.attempt_with_outcome(id) else { return };
        let lengths = attempt.steps.iter().map(|s| s.log_length).collect();
        self.out.push(Effect::CheckLogs { attempt: id, lengths, overdue: true });
    }

    /// Checks the logs that are not yet known to be incomplete. Only the first gap is reported.
    fn settle_logs(&mut self, id: AttemptId) {
        let Some(attempt) = self.attempt_with_outcome(id) else { return };
        let cut = |step| attempt.cut_logs.iter().any(|(of, _)| *of == step);
        let lengths = attempt.steps.iter().zip(0..).map(|(s, step)| if cut(step) { 0 } else { s.log_length }).collect();
        self.out.push(Effect::CheckLogs { attempt: id, lengths, overdue: true });
    }

    /// The attempt, if its outcome is known and the master has not settled it.
    pub(super) fn attempt_with_outcome(&mut self, id: AttemptId) -> Option<&mut Attempt> {
        let attempt = self.builds.get_mut(&id.build)?.status.attempts.last_mut()?;
        (attempt.number == id.number && attempt.is_live() && attempt.outcome.is_some()).then_some(attempt)
    }

    pub(super) fn on_log_gap(&mut self, id: AttemptId, step: u32, offset: u64) {
        let live = self.builds.get(&id.build).and_then(|b| b.status.live_attempt()).filter(|a| a.number == id.number);
        let Some(worker) = live.map(|a| a.worker.clone()) else { return };
        if self.log_watches.get(&id).is_some_and(|watch| watch.last) {
            if let Some(attempt) = self.attempt_with_outcome(id) {
                attempt.cut_logs.retain(|(s, _)| *s != step);
                attempt.cut_logs.push((step, offset));
            }
            return self.settle_logs(id);
        }
        if self.attempt_with_outcome(id).is_some() {
            let watch = self.log_watches.entry(id).or_default();
            // Progress in any step resets the count.
            if watch.gaps.insert(step, offset) != Some(offset) {
                (watch.looks, watch.gone) = (0, false);
            }
        }
        if let Some(session) = self.session_id(&worker) {
            self.send(&worker, ToAgent::Resend { session, attempt: id, step, offset });
        }
    }

    pub(super) fn on_logs_overdue(&mut self, now: Timestamp, id: AttemptId) {
        let Some(attempt) = self.attempt_with_outcome(id) else { return };
        let lengths: Vec<u64> = attempt.steps.iter().map(|s| s.log_length).collect();
        let worker = attempt.worker.clone();
        let live = self.workers.get(&worker).and_then(|w| w.session.as_ref());
        let away = self.broker_trouble().is_some() || live.is_some_and(|live| !live.attached);
        let watch = self.log_watches.entry(id).or_default();
        if watch.last {
            return self.end_attempt(now, id);
        }
        // Nothing that the agent sends arrives at present. If it does not come back, its session ends with its lease.
        if away && !watch.gone {
            watch.looks = 0;
            return self.timers.set(Timer::Logs(id), now + LOG_PATIENCE);
        }
        watch.looks += 1;
        if watch.gone || watch.looks > LOG_LOOKS {
            self.note(
                Level::Warn,
                format!("the log of attempt {id} is incomplete, and its agent does not send the rest"),
            );
            return self.check_logs(now, id);
        }
        self.out.push(Effect::CheckLogs { attempt: id, lengths, overdue: true });
        self.timers.set(Timer::Logs(id), now + LOG_PATIENCE);
    }

    /// Ends an attempt for which no report of an outcome will come: it is lost.
    pub(super) fn lose_attempt(&mut self, now: Timestamp, id: AttemptId, why: &str) {
        let Some(build) = self.builds.get_mut(&id.build) else { return };
        let Some(attempt) = build.status.attempts.last_mut().filter(|a| a.number == id.number) else { return };
        // A reported outcome stands, even if the end of the log was lost with the host. No agent sends more of the log,
        // but chunks may still wait in the broker.
        if attempt.is_live() && attempt.outcome.is_some() {
            let watch = self.log_watches.entry(id).or_default();
            if !watch.gone && !watch.last {
                watch.gone = true;
                self.timers.set(Timer::Logs(id), now + LOG_PATIENCE);
            }
            return;
        }
        attempt.outcome.get_or_insert_with(|| Outcome::Lost(why.to_owned()));
        self.end_attempt(now, id);
    }

    /// An operator terminates the attempt's host. If the attempt is lost because of that, it uses up no retry.
    pub(super) fn excuse_attempt(&mut self, id: AttemptId, host: &HostId) {
        let Some(build) = self.builds.get_mut(&id.build) else { return };
        let on_host = |a: &&mut Attempt| {
            a.number == id.number && a.is_live() && a.outcome.is_none() && a.host.as_ref() == Some(host)
        };
        if let Some(attempt) = build.status.attempts.last_mut().filter(on_host) {
            attempt.excused = true;
            self.touch_build(id.build);
        }
    }

    /// The attempt has its outcome and its logs. Settles it, and then ends the build or retries it.
    fn end_attempt(&mut self, now: Timestamp, id: AttemptId) {
        self.timers.clear(&Timer::Logs(id));
        self.log_watches.remove(&id);
        let Some(build) = self.builds.get_mut(&id.build) else { return };
        let Some(attempt) = build.status.attempts.last_mut().filter(|a| a.number == id.number) else { return };
        attempt.ended = Some(now);
        if attempt.outcome == Some(Outcome::Cancelled) && !build.status.cancelled {
            // The agent has received the request after all, and then that it is void: see `send_order`.
            attempt.outcome = Some(Outcome::Declined(NOBODY_CANCELLED.to_owned()));
        }
        let worker = attempt.worker.clone();
        let outcome = attempt.outcome.clone();
        let lost = |a: &&Attempt| matches!(a.outcome, Some(Outcome::Lost(_)));
        let excused = build.status.attempts.iter().filter(lost).filter(|a| a.excused).count();
        let lost = build.status.attempts.iter().filter(lost).count() - excused;
        // A build that every agent declines must end too.
        let declined = build.status.attempts.len() - lost - excused;
        let (retries, cancelled) = (build.spec.retries as usize, build.status.cancelled);
        if let Some(w) = self.workers.get_mut(&worker) {
            w.attempts.remove(&id);
        }
        self.touch_worker(&worker);
        self.touch_build(id.build);
        if let Some(session) = self.session_id(&worker) {
            self.send(&worker, ToAgent::Settled { session, attempts: vec![id] });
        }
        self.out.push(Effect::CloseLogs { attempt: id });
        let end = match outcome {
            Some(Outcome::Success) => BuildEnd::Success,
            Some(Outcome::Failure(why)) => BuildEnd::Failure(why),
            Some(Outcome::Cancelled) => BuildEnd::Cancelled,
            Some(Outcome::Lost(_) | Outcome::Declined(_)) | None if cancelled => BuildEnd::Cancelled,
            Some(Outcome::Lost(why)) if lost > retries => BuildEnd::Lost(why),
            Some(Outcome::Declined(why)) if declined > retries.saturating_add(100) => BuildEnd::Lost(why),
            Some(again @ (Outcome::Lost(_) | Outcome::Declined(_))) => {
                let why = match again {
                    Outcome::Declined(why) => {
                        if let Some(live) = self.workers.get_mut(&worker).and_then(|w| w.session.as_mut()) {
                            live.held_until_message = true;
                            // The agent may not have received the end of its drain.
                            let session = live.session.id.clone();
                            if live.drain.is_none() {
                                self.send(&worker, ToAgent::Undrain { session });
                            }
                        }
                        why
                    }
                    Outcome::Lost(why) => why,
                    Outcome::Success | Outcome::Failure(_) | Outcome::Cancelled => String::new(),
                };
                self.note(Level::Warn, format!("attempt {id} on {worker} did not finish: {why}; the build is retried"));
                if let Some(build) = self.builds.get_mut(&id.build) {
                    build.status.requeued = Some(now);
                }
                return self.enqueue(now, id.build);
            }
            None => return,
        };
        self.end_build(now, id.build, end);
    }

    /// Keeps what is known of a host that was started for builds and never attached.
    pub(super) fn keep_failed_host(&mut self, builds: Vec<BuildId>, failed: &super::build::FailedHost) {
        for id in builds {
            let Some(build) = self.builds.get_mut(&id) else { continue };
            let kept = &mut build.status.failed_hosts;
            kept.push(failed.clone());
            kept.drain(..kept.len().saturating_sub(FAILED_HOSTS));
            self.touch_build(id);
        }
    }

    /// Starts to count how long a build waits for something that can run it.
    fn watch_queue(&mut self, now: Timestamp, id: BuildId) {
        let Some(build) = self.builds.get(&id) else { return };
        let own = build.spec.queue_timeout_ms.map(Duration::from_millis);
        match own.or(self.plan.queue_timeout) {
            // The clock may have been set back since.
            Some(timeout) => {
                let since = build.status.queued_at().min(now);
                self.timers.set(Timer::Queue(id), since + timeout);
            }
            None => self.timers.clear(&Timer::Queue(id)),
        }
    }

    /// A reload may have set another limit.
    pub(super) fn watch_all_queued(&mut self, now: Timestamp) {
        let queued: Vec<_> = self.builds.values().filter(|b| b.is_queued()).map(|b| b.id).collect();
        queued.into_iter().for_each(|id| self.watch_queue(now, id));
    }

    /// Nothing has run the build within its `queue_timeout`.
    pub(super) fn on_queue_timeout(&mut self, now: Timestamp, id: BuildId) {
        let Some(build) = self.builds.get(&id).filter(|build| build.is_queued()) else { return };
        let waited = now.since(build.status.queued_at()).as_secs();
        let hosts = build.status.failed_hosts.len();
        let mut why = format!("it waited for {waited} s, its queue_timeout");
        if let Some(last) = build.status.failed_hosts.last() {
            why.push_str(&format!("; of its hosts {hosts} did not start, the last one: {}", last.why));
        }
        if let Some(waiting) = self.why(now, id) {
            why.push_str(&format!("; at the end {}", waiting.sentence));
        }
        self.end_build(now, id, BuildEnd::Lost(why));
    }

    /// Whether any worker of the configuration may run this.
    pub(super) fn someone_matches(&self, requirement: &Requirement) -> bool {
        self.plan.workers.values().any(|w| queue::matches(requirement, w))
    }
}

/// Cuts what an agent says to what is kept of it, without what a terminal or a log would take for more than text.
fn cut_text(text: &mut String, most: usize) {
    cut(text, most);
    *text = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
}

/// The environment variable for a property: upper case, with `_` instead of other characters.
fn env_name(key: &str) -> String {
    key.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
}
