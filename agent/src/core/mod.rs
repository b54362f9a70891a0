//! The agent's side of the protocol. Pure: no clock, no files, no I/O.
//!
//! [`Core::handle`] takes an event and returns effects; [`Core::next_wakeup`] says when to call it next. There are four
//! lifecycles: the link (connecting, hello, attached), the session (a lease that outlives links), the attempts, and the
//! end of the agent itself.

mod attempts;
mod blocked;
mod credentials;
mod ending;
pub mod event;
mod link;
pub(crate) mod random;
mod session;
pub mod words;

pub use event::{Effect, Event, Level, RunStep};
pub(crate) use link::NETWORK_DEBOUNCE;

use attempts::{Attempt, Remembered};
use ending::Ending;
use link::Link;
use random::SplitMix64;
use rouse_shared::message::{CloudNotice, Facts, Proof};
use rouse_shared::{AttemptId, MasterId, Nonce, Timestamp, WorkerName};
use session::Session;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Properties of the agent that do not change while it runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// The worker that the agent runs builds for.
    pub worker: WorkerName,
    /// Host identity, for hello.
    pub identity: String,
    /// Evidence of the host identity, for hello.
    pub proof: Proof,
    /// Version of the agent, for hello.
    pub version: String,
    /// Properties of the machine, for hello.
    pub facts: Facts,
    /// The worker's password, or the boot token.
    pub password: String,
    /// The session secret that an earlier agent of this worker has kept.
    pub secret: Option<String>,
    /// Whether the host powers itself off if no master wants it (`power_off = "latent"`).
    pub latent: bool,
    /// Start of the dead-man timer.
    pub started: Timestamp,
    /// How long after `started` a latent host that has never attached powers itself off.
    pub power_off_after: Duration,
    /// The user to run steps as, whatever the build says.
    pub run_as: Option<String>,
}

/// The state of the agent's side of the protocol.
#[derive(Clone, Debug)]
pub struct Core {
    settings: Settings,
    nonce: Nonce,
    /// For jitter; seeded from the nonce.
    random: SplitMix64,

    link: Link,
    /// Whether the broker has blocked the connection; only while it is up.
    blocked: Option<blocked::Blocked>,
    /// Number of connections since the start.
    connection: u64,
    /// Failures to attach since the last welcome.
    failures: u32,
    /// Failures to attach since the last welcome or change of the network, for the backoff.
    failures_here: u32,
    /// Hellos in a row that nobody has answered.
    unanswered_hellos: u32,
    /// When the agent was last attached.
    detached_since: Timestamp,
    credentials: credentials::Credentials,

    /// The master of the last welcome.
    master: Option<MasterId>,
    session: Option<Session>,
    /// The deadline that the supervisors have.
    reported_deadline: Option<Timestamp>,
    /// The dead-man timer: when a latent host powers itself off; absent if it is disarmed. Time during which the
    /// machine was suspended does not count.
    dead_man: Option<Timestamp>,
    /// When the machine was last resumed.
    resumed_at: Timestamp,
    /// Refused by a master that wants the machine to stay on: it is about to suspend it, or may accept it soon.
    to_be_suspended: bool,
    /// Whether a hello was sent since the start, so that a master may rely on this run of the agent.
    said_hello: bool,
    /// How often the broker has refused every credential of this run.
    denials: u32,

    /// Attempts that run in the session, or have ended in this or an earlier session and are not settled.
    attempts: BTreeMap<AttemptId, Attempt>,
    /// Attempts that were killed and forgotten, but whose step has not ended yet.
    dying: BTreeSet<AttemptId>,
    remembered: Remembered,

    /// The gravest notice of the machine's end so far.
    notice: Option<CloudNotice>,
    /// Why the machine takes no further builds: processes of a step that is over still run.
    unclean: Option<String>,
    ending: Ending,
    effects: Vec<Effect>,
}

impl Core {
    /// A core before [`Event::Start`]. The nonce also seeds its jitter.
    pub fn new(settings: Settings, nonce: Nonce) -> Self {
        // FNV-1a: any function that spreads the nonce's digits will do.
        let seed =
            nonce.as_str().bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        let dead_man = settings.latent.then(|| settings.started + settings.power_off_after);
        let detached_since = settings.started;
        let credentials = credentials::Credentials::new(settings.secret.clone());
        Self {
            settings,
            nonce,
            random: SplitMix64(seed),
            link: Link::Unstarted,
            blocked: None,
            connection: 0,
            failures: 0,
            failures_here: 0,
            unanswered_hellos: 0,
            detached_since,
            credentials,
            master: None,
            session: None,
            reported_deadline: None,
            dead_man,
            resumed_at: Timestamp(0),
            to_be_suspended: false,
            said_hello: false,
            denials: 0,
            attempts: BTreeMap::new(),
            dying: BTreeSet::new(),
            remembered: Remembered::default(),
            notice: None,
            unclean: None,
            ending: Ending::No,
            effects: Vec::new(),
        }
    }

    /// Whether [`Effect::Exit`], [`Effect::PowerOff`] or [`Effect::Restart`] has been returned. No effect follows.
    pub fn ended(&self) -> bool {
        matches!(self.ending, Ending::Done)
    }

    /// Attempts that run here, or have ended without being settled.
    pub fn attempts(&self) -> impl Iterator<Item = AttemptId> + '_ {
        self.attempts.keys().copied()
    }

    /// Handles one event. `now` must never go back.
    pub fn handle(&mut self, now: Timestamp, event: Event) -> Vec<Effect> {
        if self.ended() {
            return Vec::new();
        }
        if let Event::Resumed(slept) = event {
            self.discount_suspension(now, slept);
        }
        // Before the event, which is too late if the lease has ended, whatever it is.
        self.expire_session(now);
        match event {
            Event::Start => self.start(now),
            Event::LinkUp { connection } => self.link_up(now, connection),
            Event::LinkDown { connection, refused, why } => self.link_down(now, connection, refused, &why),
            Event::LinkBlocked { connection, why } => self.link_blocked(now, connection, &why),
            Event::LinkUnblocked { connection } => self.link_unblocked(now, connection),
            Event::FromMaster { connection, message } => self.on_message(now, connection, *message),
            Event::PrepareFailed { attempt, why } => self.prepare_failed(now, attempt, &why),
            Event::StepStarted { attempt, step } => self.step_started(now, attempt, step),
            Event::StepEnded { attempt, step, state, log_length, log_cut, took, usage, unclean } => {
                let ended = attempts::Ended { state, log_length, log_cut, took, usage, unclean };
                self.step_ended(now, attempt, step, ended);
            }
            Event::LogSent { attempt, step, offset } => self.log_sent(attempt, step, offset),
            Event::Notice(notice) => self.noticed(notice),
            Event::Resumed(_) => self.resumed(now),
            Event::NetworkChanged => self.network_changed(now),
            Event::Tick => {}
            Event::Terminate => self.terminate(now),
        }
        self.expire_session(now);
        self.extend_blocked(now);
        self.expire_link(now);
        self.expire_attempts(now);
        self.heartbeat_if_due(now);
        self.answer_drain();
        self.expire_dead_man(now);
        self.end_if_nothing_left(now);
        self.report_deadline();
        std::mem::take(&mut self.effects)
    }

    /// When to send [`Event::Tick`], unless another event comes first. `None` if the core waits for nothing.
    pub fn next_wakeup(&self) -> Option<Timestamp> {
        if self.ended() {
            return None;
        }
        let attempts = self.attempts.values().filter_map(Attempt::wakeup).min();
        let blocked = self.blocked_wakeup();
        let all = [self.link_wakeup(), blocked, self.deadline(), self.dead_man, self.ending.wakeup(), attempts];
        all.into_iter().flatten().min()
    }

    fn emit(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    fn log(&mut self, level: Level, text: impl Into<String>) {
        self.effects.push(Effect::Log(level, text.into()));
    }

    /// A duration from half of `whole` to `whole`, so that agents that lost the same broker do not all return at once.
    fn jittered(&mut self, whole: Duration) -> Duration {
        let ms = u64::try_from(whole.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(ms / 2 + self.random.below(ms / 2 + 1))
    }
}

#[cfg(test)]
mod tests;
