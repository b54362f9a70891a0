//! Attempts: an order's steps, one after another, to exactly one outcome, which is said until it is settled.

use super::{Core, Effect, Level, RunStep, words};
use rouse_shared::duration;
use rouse_shared::limits::{MAX_STEPS, REMEMBERED_ATTEMPTS};
use rouse_shared::message::{AttemptReport, Order, Outcome, Report, StepReport, StepState, ToMaster};
use rouse_shared::{AttemptId, Timestamp};
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

/// Attempts that an agent has at once, at most: far above what one machine can run, and it bounds what a master can make
/// it remember. The link's outbox holds a report of each.
const MAX_ATTEMPTS: usize = 1_000;

/// One attempt of the session.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Attempt {
    /// What to run; absent once it has ended.
    order: Option<Box<Order>>,
    begun: Timestamp,
    revision: u32,
    /// Whether the picture has changed since it was last sent.
    unsaid: bool,
    /// The steps that have begun or were passed over; their place is their number.
    steps: Vec<StepReport>,
    /// For each of them the log's bytes that the broker has.
    sent: Vec<u64>,
    /// The step that was asked for and has not ended.
    running: Option<u32>,
    /// The first failure.
    failed: Option<String>,
    /// Why its step is being stopped.
    stop: Option<Stop>,
    outcome: Option<Outcome>,
}

/// Why a step is stopped; the first reason counts.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Stop {
    Cancelled,
    TookTooLong(Duration),
}

/// How a step ended, as [`super::Event::StepEnded`] tells it.
pub(super) struct Ended {
    pub state: StepState,
    pub log_length: u64,
    pub log_cut: u64,
    pub took: Duration,
}

impl Attempt {
    fn new(now: Timestamp, order: Option<Box<Order>>, outcome: Option<Outcome>) -> Self {
        Self {
            order,
            begun: now,
            revision: 0,
            unsaid: true,
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

    /// When the whole build has taken too long.
    pub(super) fn wakeup(&self) -> Option<Timestamp> {
        if self.running.is_none() || self.stop.is_some() {
            return None;
        }
        let limit = self.order.as_ref()?.timeout_ms?;
        Some(self.begun + Duration::from_millis(limit))
    }

    /// The picture to send now.
    fn say(&mut self, attempt: AttemptId) -> AttemptReport {
        if self.unsaid {
            self.revision += 1;
            self.unsaid = false;
        }
        AttemptReport { attempt, revision: self.revision, steps: self.steps.clone(), outcome: self.outcome.clone() }
    }

    /// Lists the step as begun.
    fn begin(&mut self, now: Timestamp) {
        self.unsaid = true;
        let started_ms = u64::try_from(now.since(self.begun).as_millis()).unwrap_or(u64::MAX);
        self.steps.push(StepReport { state: StepState::Running, started_ms, took_ms: 0, log_length: 0, log_cut: 0 });
        self.sent.push(0);
    }

    fn end(&mut self, outcome: Outcome) {
        self.unsaid = true;
        self.running = None;
        self.order = None;
        self.outcome = Some(outcome);
    }

    /// What to do when no step runs: the next step, or the outcome where there is none.
    fn advance(&mut self, now: Timestamp, attempt: AttemptId, run_as: Option<&String>) -> Option<RunStep> {
        let order = self.order.take()?;
        while let Some(step) = order.steps.get(self.steps.len()) {
            if self.failed.is_some() && !step.always {
                self.begin(now);
                if let Some(report) = self.steps.last_mut() {
                    report.state = StepState::Skipped;
                }
                continue;
            }
            let number = u32::try_from(self.steps.len()).unwrap_or(u32::MAX);
            let mut env = order.env.clone();
            env.extend(step.env.iter().map(|(k, v)| (k.clone(), v.clone())));
            let run = RunStep {
                attempt,
                step: number,
                run: step.run.clone(),
                workdir: step.workdir.clone(),
                env,
                run_as: run_as.or(order.run_as.as_ref()).cloned(),
                timeout: step.timeout_ms.map(Duration::from_millis),
                silence: step.silence_ms.map(Duration::from_millis),
            };
            self.running = Some(number);
            self.order = Some(order);
            return Some(run);
        }
        let outcome = self.failed.take().map_or(Outcome::Success, Outcome::Failure);
        self.end(outcome);
        None
    }
}

/// Attempts that were here once, so that a late copy of an order starts nothing; the oldest are forgotten first.
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
    pub(super) fn order(&mut self, now: Timestamp, order: Box<Order>) {
        let attempt = order.attempt;
        if self.attempts.contains_key(&attempt) {
            self.report(attempt);
            return;
        }
        if self.dying.contains(&attempt) {
            return self.decline(now, attempt, "an attempt of this number is still being ended here");
        }
        if self.remembered.set.contains(&attempt) {
            return self.say_it_is_over(attempt);
        }
        if self.leaving() {
            return self.decline(now, attempt, "the agent is about to end");
        }
        if self.draining() {
            return self.decline(now, attempt, "the host is being drained");
        }
        if self.attempts.len() >= MAX_ATTEMPTS {
            return self.decline(now, attempt, "the agent has as many builds as it can keep track of");
        }
        let refusal = if order.steps.is_empty() {
            Some("the build has no steps".to_owned())
        } else if order.steps.len() > MAX_STEPS {
            Some(format!("the build has {} steps, more than {MAX_STEPS}", order.steps.len()))
        } else {
            None
        };
        if let Some(why) = refusal {
            self.attempts.insert(attempt, Attempt::new(now, None, Some(Outcome::Failure(why))));
            return self.report(attempt);
        }
        self.attempts.insert(attempt, Attempt::new(now, Some(order), None));
        self.advance(now, attempt);
    }

    /// Answers an order or a cancel for an attempt that was here and is over. After a copy that came late it means nothing
    /// to the master; but where the lease ended before it heard of the attempt it would say the same again and again.
    fn say_it_is_over(&mut self, attempt: AttemptId) {
        self.log(Level::Info, format!("asked for {attempt}, which is over here"));
        let Some(session) = self.attached_session() else { return };
        let outcome = Some(Outcome::Lost("its agent ended it when the lease was over".to_owned()));
        // Newer than whatever was said of it: there will be nothing more.
        let report = AttemptReport { attempt, revision: u32::MAX, steps: Vec::new(), outcome };
        self.emit(Effect::Send(Box::new(ToMaster::Report(Box::new(Report { session, attempt: report })))));
    }

    /// Says that the attempt was never begun here and never will be.
    fn decline(&mut self, now: Timestamp, attempt: AttemptId, why: &str) {
        let mut declined = Attempt::new(now, None, Some(Outcome::Declined(why.to_owned())));
        self.log(Level::Info, format!("declining {attempt}: {why}"));
        // Said until it is settled, but only while there is room: an order that is not heard of is sent again.
        if self.attempts.len() < MAX_ATTEMPTS && !self.dying.contains(&attempt) {
            self.attempts.insert(attempt, declined);
            self.report(attempt);
        } else if let Some(session) = self.attached_session() {
            self.remembered.add(attempt);
            let report = Report { session, attempt: declined.say(attempt) };
            self.emit(Effect::Send(Box::new(ToMaster::Report(Box::new(report)))));
        }
    }

    /// Runs the next step, or says how it ended.
    fn advance(&mut self, now: Timestamp, attempt: AttemptId) {
        let Some(this) = self.attempts.get_mut(&attempt) else { return };
        match this.advance(now, attempt, self.settings.run_as.as_ref()) {
            Some(run) => self.emit(Effect::RunStep(Box::new(run))),
            None => self.report(attempt),
        }
    }

    /// Sends the attempt's picture, where there is somebody to send it to; else it is in the next hello.
    fn report(&mut self, attempt: AttemptId) {
        let Some(session) = self.attached_session() else { return };
        let Some(this) = self.attempts.get_mut(&attempt) else { return };
        let report = Report { session, attempt: this.say(attempt) };
        self.emit(Effect::Send(Box::new(ToMaster::Report(Box::new(report)))));
    }

    /// All attempts, for hello.
    pub(super) fn pictures(&mut self) -> Vec<AttemptReport> {
        self.attempts.iter_mut().map(|(id, attempt)| attempt.say(*id)).collect()
    }

    /// What the hello that was just answered could not say yet, and the logs from where the broker has them.
    pub(super) fn catch_up(&mut self) {
        let unsaid: Vec<_> = self.attempts.iter().filter(|(_, a)| a.unsaid).map(|(id, _)| *id).collect();
        for attempt in unsaid {
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

    /// The ends that are not settled, said again.
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
        self.log(Level::Error, format!("{attempt} could not be run: {why}"));
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
        this.unsaid = true;
        if let Some(report) = this.steps.last_mut() {
            report.state = words::cut_state(ended.state.clone());
            report.took_ms = u64::try_from(ended.took.as_millis()).unwrap_or(u64::MAX);
            report.log_length = ended.log_length;
            report.log_cut = ended.log_cut;
        }
        if let Some(stop) = this.stop.take() {
            this.end(stop.outcome());
        } else {
            match ended.state {
                StepState::Lost(why) => this.end(Outcome::Lost(words::cut(why))),
                // Nobody here asked for it.
                StepState::Stopped => this.end(Outcome::Lost("its step was stopped from outside".to_owned())),
                StepState::Running | StepState::Skipped => {
                    this.end(Outcome::Lost("its step ended in a way that nobody knows".to_owned()));
                }
                StepState::Exited(_)
                | StepState::Signalled(_)
                | StepState::TimedOut
                | StepState::Silent
                | StepState::NotStarted(_) => {
                    if this.failed.is_none() {
                        let step = this.order.as_ref().and_then(|o| o.steps.get(step as usize));
                        this.failed = step.and_then(|step| words::failure(step, &ended.state));
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
                return self.say_it_is_over(attempt);
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
                let limit = attempt.order.as_ref().and_then(|o| o.timeout_ms).unwrap_or(0);
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
                    self.log(Level::Warn, format!("the master has settled {attempt}, which still runs: ending it"));
                }
                self.forget(*attempt);
            }
        }
    }

    /// Nothing more is said of the attempt; what runs of it is killed, what is left of it removed.
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

    /// Kills what runs. What has ended stays until it is settled: the master may lack the end of its log.
    pub(super) fn kill_running(&mut self) {
        self.forget_where(Attempt::runs);
    }

    /// Kills what runs and forgets the rest.
    pub(super) fn kill_all(&mut self) {
        self.kill_running();
        self.forget_ended();
    }

    /// Forgets what has ended, logs included.
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
            None => self.log(Level::Warn, format!("asked for the log of {attempt}, step {step}, which is not here")),
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
