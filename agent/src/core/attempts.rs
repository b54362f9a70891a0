//! Attempts. The steps of an attempt run one after another and lead to exactly one outcome, which the agent reports
//! until the attempt is settled.

use super::{Core, Effect, Level, RunStep, words};
use rouse_shared::duration;
use rouse_shared::limits::{MAX_ATTEMPTS, MAX_HELLO_REPORTS, MAX_REPORT_TEXT, MAX_STEPS, REMEMBERED_ATTEMPTS};
use rouse_shared::message::{AttemptReport, Outcome, Report, RunAttempt, StepReport, StepState, ToMaster, Usage};
use rouse_shared::{AttemptId, Timestamp, codec};
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

/// One attempt of the session.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Attempt {
    /// What to run; absent once the attempt has ended.
    request: Option<Box<RunAttempt>>,
    begun: Timestamp,
    revision: u32,
    /// Whether the attempt has changed since it was last reported.
    unreported: bool,
    /// The steps that were started or skipped, by their number.
    steps: Vec<StepReport>,
    /// For each of them, how many bytes of its log the broker has.
    sent: Vec<u64>,
    /// The step that was requested and has not ended.
    running: Option<u32>,
    /// The first failure, for people.
    failed: Option<String>,
    /// Why the attempt is being stopped.
    stop: Option<Stop>,
    outcome: Option<Outcome>,
}

/// Why an attempt is stopped; the first reason counts.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Stop {
    Cancelled,
    TookTooLong(Duration),
}

/// How a step ended, from [`super::Event::StepEnded`].
pub(super) struct Ended {
    pub state: StepState,
    pub log_length: u64,
    pub log_cut: u64,
    pub took: Duration,
    pub usage: Option<Usage>,
    pub unclean: bool,
}

impl Attempt {
    fn new(now: Timestamp, request: Option<Box<RunAttempt>>, outcome: Option<Outcome>) -> Self {
        Self {
            request,
            begun: now,
            revision: 0,
            unreported: true,
            steps: Vec::new(),
            sent: Vec::new(),
            running: None,
            failed: None,
            stop: None,
            outcome,
        }
    }

    /// Whether it has no outcome yet.
    pub(super) fn runs(&self) -> bool {
        self.outcome.is_none()
    }

    /// When the build will have exceeded its timeout.
    pub(super) fn wakeup(&self) -> Option<Timestamp> {
        if self.running.is_none() || self.stop.is_some() {
            return None;
        }
        let limit = self.request.as_ref()?.timeout_ms?;
        Some(self.begun + Duration::from_millis(limit))
    }

    /// The snapshot to send now.
    fn say(&mut self, attempt: AttemptId) -> AttemptReport {
        if self.unreported {
            self.revision += 1;
            self.unreported = false;
        }
        AttemptReport { attempt, revision: self.revision, steps: self.steps.clone(), outcome: self.outcome.clone() }
    }

    /// That there is the attempt, and whether it has ended; older than every snapshot. A snapshot is to follow.
    fn mention(&mut self, attempt: AttemptId) -> AttemptReport {
        self.unreported = true;
        let outcome = self.outcome.as_ref().map(|outcome| match outcome {
            Outcome::Success => Outcome::Success,
            Outcome::Cancelled => Outcome::Cancelled,
            Outcome::Failure(_) => Outcome::Failure(String::new()),
            Outcome::Lost(_) => Outcome::Lost(String::new()),
            Outcome::Declined(_) => Outcome::Declined(String::new()),
        });
        AttemptReport { attempt, revision: 0, steps: Vec::new(), outcome }
    }

    /// Adds the next step as running.
    fn begin(&mut self, now: Timestamp) {
        self.unreported = true;
        let started_ms = u64::try_from(now.since(self.begun).as_millis()).unwrap_or(u64::MAX);
        let state = StepState::Running;
        self.steps.push(StepReport { state, started_ms, took_ms: 0, log_length: 0, log_cut: 0, usage: None });
        self.sent.push(0);
    }

    fn end(&mut self, outcome: Outcome) {
        self.unreported = true;
        self.running = None;
        self.request = None;
        self.outcome = Some(outcome);
    }

    /// Called when no step runs: returns the next step, or sets the outcome if there is none.
    fn advance(&mut self, now: Timestamp, attempt: AttemptId, run_as: Option<&String>) -> Option<RunStep> {
        let request = self.request.take()?;
        while let Some(step) = request.steps.get(self.steps.len()) {
            if self.failed.is_some() && !step.always {
                self.begin(now);
                if let Some(report) = self.steps.last_mut() {
                    report.state = StepState::Skipped;
                }
                continue;
            }
            let number = u32::try_from(self.steps.len()).unwrap_or(u32::MAX);
            let mut env = request.env.clone();
            env.extend(step.env.iter().map(|(k, v)| (k.clone(), v.clone())));
            let run = RunStep {
                session: request.session.clone(),
                attempt,
                step: number,
                run: step.run.clone(),
                workdir: step.workdir.clone(),
                env,
                run_as: run_as.or(request.run_as.as_ref()).cloned(),
                timeout: step.timeout_ms.map(Duration::from_millis),
                silence: step.silence_ms.map(Duration::from_millis),
                limits: request.limits.narrowed(step.limits),
            };
            self.running = Some(number);
            self.request = Some(request);
            return Some(run);
        }
        let outcome = self.failed.take().map_or(Outcome::Success, Outcome::Failure);
        self.end(outcome);
        None
    }
}

/// Attempts that were here once, so that a late copy of a request starts nothing. The oldest are forgotten first.
#[derive(Clone, Default, Debug)]
pub(super) struct Remembered {
    order: VecDeque<AttemptId>,
    set: BTreeSet<AttemptId>,
}

impl Remembered {
    fn add(&mut self, attempt: AttemptId) {
        if self.set.insert(attempt) {
            self.order.push_back(attempt);
        }
        while self.order.len() > REMEMBERED_ATTEMPTS {
            if let Some(oldest) = self.order.pop_front() {
                self.set.remove(&oldest);
            }
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

impl Core {
    pub(super) fn run_attempt(&mut self, now: Timestamp, request: Box<RunAttempt>) {
        let attempt = request.attempt;
        if self.attempts.contains_key(&attempt) {
            self.report(attempt);
            return;
        }
        if self.dying.contains(&attempt) {
            return self.decline(now, attempt, "an attempt with this number is still being killed here");
        }
        if self.remembered.set.contains(&attempt) {
            return self.report_over(attempt);
        }
        if self.leaving() {
            return self.decline(now, attempt, "the agent is about to exit");
        }
        if self.draining() {
            return self.decline(now, attempt, "the host is being drained");
        }
        if let Some(why) = self.unclean.clone() {
            return self.decline(now, attempt, &why);
        }
        if self.settings.facts.needs_run_as && request.run_as.is_none() {
            return self.decline(now, attempt, rouse_shared::message::NEEDS_RUN_AS);
        }
        if self.attempts.len() >= MAX_ATTEMPTS {
            return self.decline(now, attempt, "the agent has too many unfinished or unsettled builds");
        }
        let refusal = if request.steps.is_empty() {
            Some("the build has no steps".to_owned())
        } else if request.steps.len() > MAX_STEPS {
            Some(format!("the build has {} steps, more than {MAX_STEPS}", request.steps.len()))
        } else {
            None
        };
        if let Some(why) = refusal {
            self.attempts.insert(attempt, Attempt::new(now, None, Some(Outcome::Failure(why))));
            return self.report(attempt);
        }
        self.attempts.insert(attempt, Attempt::new(now, Some(request), None));
        self.advance(now, attempt);
    }

    /// Answers a request for an attempt that was here and is over. The master ignores the answer to a late copy. But if
    /// the lease ended before the master got a report of the attempt, it would repeat its request forever.
    fn report_over(&mut self, attempt: AttemptId) {
        self.log(Level::Info, format!("the master requests {attempt}, which is already over here"));
        let Some(session) = self.attached_session() else { return };
        let outcome = Some(Outcome::Lost("its agent killed it when the lease ended".to_owned()));
        // Newer than every other report of it; nothing more will follow.
        let report = AttemptReport { attempt, revision: u32::MAX, steps: Vec::new(), outcome };
        self.emit(Effect::Send(Box::new(ToMaster::Report(Box::new(Report { session, attempt: report })))));
    }

    /// Reports that the attempt was never started here and never will be.
    fn decline(&mut self, now: Timestamp, attempt: AttemptId, why: &str) {
        let mut declined = Attempt::new(now, None, Some(Outcome::Declined(why.to_owned())));
        self.log(Level::Info, format!("declining {attempt}: {why}"));
        // Repeated until it is settled, but only while there is room: the master repeats a request without an answer.
        if self.attempts.len() < MAX_ATTEMPTS && !self.dying.contains(&attempt) {
            self.attempts.insert(attempt, declined);
            self.report(attempt);
        } else if let Some(session) = self.attached_session() {
            self.remembered.add(attempt);
            let report = Report { session, attempt: declined.say(attempt) };
            self.emit(Effect::Send(Box::new(ToMaster::Report(Box::new(report)))));
        }
    }

    /// Runs the next step, or reports the outcome.
    fn advance(&mut self, now: Timestamp, attempt: AttemptId) {
        let Some(this) = self.attempts.get_mut(&attempt) else { return };
        match this.advance(now, attempt, self.settings.run_as.as_ref()) {
            Some(run) => self.emit(Effect::RunStep(Box::new(run))),
            None => self.report(attempt),
        }
    }

    /// Sends a snapshot of the attempt. Without a session the next hello includes it.
    fn report(&mut self, attempt: AttemptId) {
        let Some(session) = self.attached_session() else { return };
        let Some(this) = self.attempts.get_mut(&attempt) else { return };
        let report = Report { session, attempt: this.say(attempt) };
        self.emit(Effect::Send(Box::new(ToMaster::Report(Box::new(report)))));
    }

    /// Snapshots of all attempts, for hello. If they are too large for it, it lists only which attempts there are, and
    /// the welcome is answered by their reports.
    pub(super) fn snapshots(&mut self) -> Vec<AttemptReport> {
        let reports: Vec<_> = self.attempts.iter_mut().map(|(id, attempt)| attempt.say(*id)).collect();
        if reports.iter().map(|report| codec::encode(report).len()).sum::<usize>() <= MAX_HELLO_REPORTS {
            return reports;
        }
        self.attempts.iter_mut().map(|(id, attempt)| attempt.mention(*id)).collect()
    }

    /// Reports what has changed since the hello that was just answered, and resumes the logs where the broker has them.
    pub(super) fn catch_up(&mut self) {
        let unreported: Vec<_> = self.attempts.iter().filter(|(_, a)| a.unreported).map(|(id, _)| *id).collect();
        for attempt in unreported {
            self.report(attempt);
        }
        let mut logs = Vec::new();
        for (id, attempt) in &self.attempts {
            for ((step, report), sent) in (0u32..).zip(&attempt.steps).zip(&attempt.sent) {
                if report.state == StepState::Running || *sent < report.log_length {
                    logs.push(Effect::SendLogFrom { attempt: *id, step, offset: *sent });
                }
            }
        }
        self.effects.extend(logs);
    }

    /// Reports again the outcomes that are not settled.
    pub(super) fn repeat_ends(&mut self) {
        let ended: Vec<_> = self.attempts.iter().filter(|(_, a)| a.outcome.is_some()).map(|(id, _)| *id).collect();
        for attempt in ended {
            self.report(attempt);
        }
    }

    pub(super) fn prepare_failed(&mut self, now: Timestamp, attempt: AttemptId, why: &str) {
        if self.dying.remove(&attempt) {
            return self.emit(Effect::RemoveAttempt(attempt));
        }
        let Some(this) = self.attempts.get_mut(&attempt) else { return };
        if this.running.is_none() {
            return;
        }
        let outcome = match this.stop.take() {
            None => Outcome::Lost(words::cut(why.to_owned())),
            Some(stop) => stop.outcome(),
        };
        this.end(outcome);
        self.log(Level::Error, format!("{attempt} cannot be run: {why}"));
        self.advance(now, attempt);
    }

    pub(super) fn step_started(&mut self, now: Timestamp, attempt: AttemptId, step: u32) {
        let Some(this) = self.attempts.get_mut(&attempt) else { return };
        if this.running != Some(step) || this.steps.len() != step as usize {
            return;
        }
        this.begin(now);
        self.report(attempt);
        self.send_log(attempt, step, 0);
    }

    fn send_log(&mut self, attempt: AttemptId, step: u32, offset: u64) {
        if self.attached_session().is_some() {
            self.emit(Effect::SendLogFrom { attempt, step, offset });
        }
    }

    pub(super) fn step_ended(&mut self, now: Timestamp, attempt: AttemptId, step: u32, ended: Ended) {
        if let StepState::Lost(why) = &ended.state
            && ended.unclean
            && self.unclean.is_none()
        {
            let text = words::cut(format!("after step {} of {attempt}, {why}", step + 1));
            self.log(
                Level::Error,
                format!("this machine takes no more builds until the agent is started again: {text}"),
            );
            self.unclean = Some(text);
        }
        if self.dying.remove(&attempt) {
            return self.emit(Effect::RemoveAttempt(attempt));
        }
        let Some(this) = self.attempts.get_mut(&attempt) else { return };
        if this.running != Some(step) {
            return;
        }
        let unannounced = this.steps.len() == step as usize;
        if unannounced {
            this.begin(now);
        }
        this.running = None;
        this.unreported = true;
        let text: usize = this.steps.iter().map(|step| words::text_of(&step.state).map_or(0, str::len)).sum();
        if let Some(report) = this.steps.last_mut() {
            report.state = words::cut_state(ended.state.clone(), MAX_REPORT_TEXT.saturating_sub(text));
            report.took_ms = u64::try_from(ended.took.as_millis()).unwrap_or(u64::MAX);
            report.log_length = ended.log_length;
            report.log_cut = ended.log_cut;
            report.usage = ended.usage;
        }
        if let Some(stop) = this.stop.take() {
            this.end(stop.outcome());
        } else {
            match ended.state {
                StepState::Lost(why) => this.end(Outcome::Lost(words::cut(why))),
                // Not at this agent's request.
                StepState::Stopped => this.end(Outcome::Lost("its step was stopped, and not by the agent".to_owned())),
                StepState::Running | StepState::Skipped => {
                    this.end(Outcome::Lost("its step ended in an unknown way".to_owned()));
                }
                StepState::Exited(_)
                | StepState::Signalled(_)
                | StepState::TimedOut
                | StepState::Silent
                | StepState::NotStarted(_) => {
                    if this.failed.is_none() {
                        let step = this.request.as_ref().and_then(|o| o.steps.get(step as usize));
                        this.failed = step.and_then(|step| words::failure(step, &ended.state, ended.usage));
                    }
                }
            }
        }
        self.advance(now, attempt);
        if unannounced && ended.log_length > 0 {
            self.send_log(attempt, step, 0);
        }
    }

    pub(super) fn cancel(&mut self, now: Timestamp, attempt: AttemptId) {
        let Some(this) = self.attempts.get_mut(&attempt) else {
            if self.remembered.set.contains(&attempt) {
                return self.report_over(attempt);
            }
            return self.decline(now, attempt, "cancelled before it arrived");
        };
        if this.outcome.is_some() {
            return self.report(attempt);
        }
        if this.stop.is_none() {
            this.stop = Some(Stop::Cancelled);
            self.emit(Effect::StopAttempt(attempt));
        }
    }

    pub(super) fn expire_attempts(&mut self, now: Timestamp) {
        let mut late = Vec::new();
        for (id, attempt) in &mut self.attempts {
            if attempt.wakeup().is_some_and(|at| at <= now) {
                let limit = attempt.request.as_ref().and_then(|o| o.timeout_ms).unwrap_or(0);
                attempt.stop = Some(Stop::TookTooLong(Duration::from_millis(limit)));
                late.push(Effect::StopAttempt(*id));
            }
        }
        self.effects.extend(late);
    }

    pub(super) fn settled(&mut self, attempts: &[AttemptId]) {
        for attempt in attempts {
            if let Some(this) = self.attempts.get(attempt) {
                if this.running.is_some() {
                    self.log(
                        Level::Warn,
                        format!("the master has settled {attempt}, which is still running: killing it"),
                    );
                }
                self.forget(*attempt);
            }
        }
    }

    /// Forgets the attempt: kills what runs of it, removes its files, and reports nothing more.
    fn forget(&mut self, attempt: AttemptId) {
        let Some(this) = self.attempts.remove(&attempt) else { return };
        self.remembered.add(attempt);
        if this.running.is_some() {
            self.dying.insert(attempt);
            self.emit(Effect::KillAttempt(attempt));
        } else {
            self.emit(Effect::RemoveAttempt(attempt));
        }
    }

    /// Kills the running attempts. Those that have ended stay until they are settled: the master may lack parts of
    /// their logs.
    pub(super) fn kill_running(&mut self) {
        self.forget_where(Attempt::runs);
    }

    /// Kills the running attempts and forgets the others.
    pub(super) fn kill_all(&mut self) {
        self.kill_running();
        self.forget_ended();
    }

    /// Forgets the attempts that have ended, including their logs.
    pub(super) fn forget_ended(&mut self) {
        self.forget_where(|attempt| !attempt.runs());
    }

    fn forget_where(&mut self, which: impl Fn(&Attempt) -> bool) {
        let these: Vec<_> = self.attempts.iter().filter(|(_, a)| which(a)).map(|(id, _)| *id).collect();
        for attempt in these {
            self.forget(attempt);
        }
    }

    pub(super) fn log_sent(&mut self, attempt: AttemptId, step: u32, offset: u64) {
        let sent = self.attempts.get_mut(&attempt).and_then(|a| a.sent.get_mut(step as usize));
        if let Some(sent) = sent {
            *sent = offset.max(*sent);
        }
    }

    pub(super) fn resend(&mut self, attempt: AttemptId, step: u32, offset: u64) {
        let sent = self.attempts.get_mut(&attempt).and_then(|a| a.sent.get_mut(step as usize));
        match sent {
            Some(sent) => {
                *sent = offset;
                self.send_log(attempt, step, offset);
            }
            None => self
                .log(Level::Warn, format!("the master requests the log of {attempt}, step {step}, which is not here")),
        }
    }
}

impl Stop {
    fn outcome(self) -> Outcome {
        match self {
            Stop::Cancelled => Outcome::Cancelled,
            Stop::TookTooLong(limit) => {
                Outcome::Failure(format!("the build took longer than {}", duration::exact(limit)))
            }
        }
    }
}
