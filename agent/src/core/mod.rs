//! The agent's protocol: what to do at each event. Pure: no clock, no files, no I/O.
//!
//! [`Core::handle`] takes an event and gives effects; [`Core::next_wakeup`] says when to come back. Four lifecycles live
//! here: the link (connecting, hello, attached), the session (a lease that outlives links), attempts, and the ending of
//! the agent itself.

mod attempts;
mod credentials;
mod ending;
pub mod event;
mod link;
mod session;
pub mod words;

pub use event::{Effect, Event, Level, RunStep};
pub(crate) use link::NETWORK_DEBOUNCE;

use attempts::{Attempt, Remembered};
use ending::Ending;
use link::Link;
use rouse_shared::message::{CloudNotice, Facts, Proof};
use rouse_shared::{AttemptId, MasterId, Nonce, Timestamp, WorkerName};
use session::Session;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What the core is told about its agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// The worker that it is.
    pub worker: WorkerName,
    /// Host identity, for hello.
    pub identity: String,
    /// What speaks for it, for hello.
    pub proof: Proof,
    /// Version of the agent, for hello.
    pub version: String,
    /// The machine, for hello.
    pub facts: Facts,
    /// The worker's password, or the boot token.
    pub password: String,
    /// A session secret that an earlier life of this agent has kept.
    pub secret: Option<String>,
    /// Whether the host powers itself off when nobody wants it (`power_off = "latent"`).
    pub latent: bool,
    /// When the agent's process started: the dead-man timer counts from there.
    pub started: Timestamp,
    /// A latent host that has not attached within this of `started` powers itself off.
    pub power_off_after: Duration,
    /// The user to run steps as, whatever an order says.
    pub run_as: Option<String>,
}

/// The agent's protocol as a plain value.
#[derive(Clone, Debug)]
pub struct Core {
    settings: Settings,
    nonce: Nonce,
    /// State of the generator of jitter, seeded from the nonce.
    random: u64,

    link: Link,
    /// Connections so far in this life.
    connection: u64,
    /// Failures to attach since the last welcome.
    failures: u32,
    /// Those of them since the network changed, for the backoff.
    failures_here: u32,
    /// Since when there is no welcome on a live link.
    detached_since: Timestamp,
    credentials: credentials::Credentials,

    /// The master of the last welcome.
    master: Option<MasterId>,
    session: Option<Session>,
    /// What the supervisors were told last.
    reported_deadline: Option<Timestamp>,
    /// When a latent host powers itself off; absent: not armed. The time that it slept does not count.
    dead_man: Option<Timestamp>,
    /// When the machine woke up last.
    resumed_at: Timestamp,
    /// Refused by a master that does not want the machine off: it is about to put it to sleep, or may let it in soon.
    to_be_suspended: bool,
    /// Whether this life has said hello, so that a master may count on it.
    said_hello: bool,
    /// How often the broker has said no to all that this life has to show.
    denials: u32,

    /// Running in the session, or ended in this one or an earlier one and not settled.
    attempts: BTreeMap<AttemptId, Attempt>,
    /// Killed and forgotten, but their step has not ended yet.
    dying: BTreeSet<AttemptId>,
    remembered: Remembered,

    /// What the cloud said last about the machine's end.
    notice: Option<CloudNotice>,
    ending: Ending,
    effects: Vec<Effect>,
}

impl Core {
    /// A core that has not begun; `nonce` is this life's, and the seed of its jitter.
    pub fn new(settings: Settings, nonce: Nonce) -> Self {
        // FNV-1a: any spread of the nonce's digits will do.
        let random =
            nonce.as_str().bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        let dead_man = settings.latent.then(|| settings.started + settings.power_off_after);
        let detached_since = settings.started;
        let credentials = credentials::Credentials::new(settings.secret.clone());
        Self {
            settings,
            nonce,
            random,
            link: Link::Unstarted,
            connection: 0,
            failures: 0,
            failures_here: 0,
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
            ending: Ending::No,
            effects: Vec::new(),
        }
    }

    /// Whether [`Effect::Exit`], [`Effect::PowerOff`] or [`Effect::Restart`] has been given: nothing more follows.
    pub fn ended(&self) -> bool {
        matches!(self.ending, Ending::Done)
    }

    /// Attempts that run here, or have ended without being settled.
    pub fn attempts(&self) -> impl Iterator<Item = AttemptId> + '_ {
        self.attempts.keys().copied()
    }

    /// Takes one event. `now` never goes back.
    pub fn handle(&mut self, now: Timestamp, event: Event) -> Vec<Effect> {
        if self.ended() {
            return Vec::new();
        }
        if let Event::Resumed(slept) = event {
            self.discount_suspension(now, slept);
        }
        // Before the event: what comes after the end of the lease comes too late, whatever it says.
        self.expire_session(now);
        match event {
            Event::Start => self.start(now),
            Event::LinkUp { connection } => self.link_up(now, connection),
            Event::LinkDown { connection, refused, why } => self.link_down(now, connection, refused, &why),
            Event::FromMaster { connection, message } => self.hear(now, connection, *message),
            Event::PrepareFailed { attempt, why } => self.prepare_failed(now, attempt, &why),
            Event::StepStarted { attempt, step } => self.step_started(now, attempt, step),
            Event::StepEnded { attempt, step, state, log_length, log_cut, took } => {
                self.step_ended(now, attempt, step, attempts::Ended { state, log_length, log_cut, took });
            }
            Event::LogSent { attempt, step, offset } => self.log_sent(attempt, step, offset),
            Event::Notice(notice) => self.noticed(notice),
            Event::Resumed(_) => self.resumed(now),
            Event::NetworkChanged => self.network_changed(now),
            Event::Tick => {}
            Event::Terminate => self.terminate(now),
        }
        self.expire_session(now);
        self.expire_link(now);
        self.expire_attempts(now);
        self.heartbeat_if_due(now);
        self.answer_drain();
        self.expire_dead_man(now);
        self.end_if_nothing_left(now);
        self.report_deadline();
        std::mem::take(&mut self.effects)
    }

    /// When to send [`Event::Tick`], unless another event comes first. Absent: nothing is waited for.
    pub fn next_wakeup(&self) -> Option<Timestamp> {
        if self.ended() {
            return None;
        }
        let attempts = self.attempts.values().filter_map(Attempt::wakeup).min();
        [self.link_wakeup(), self.deadline(), self.dead_man, self.ending.wakeup(), attempts].into_iter().flatten().min()
    }

    fn emit(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    fn log(&mut self, level: Level, text: impl Into<String>) {
        self.effects.push(Effect::Log(level, text.into()));
    }

    /// A number below `bound`, which is at least 1 (splitmix64).
    fn random_below(&mut self, bound: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound.max(1)
    }

    /// Between half of `whole` and `whole`, so that agents that lost one broker do not come back as one.
    fn jittered(&mut self, whole: Duration) -> Duration {
        let ms = u64::try_from(whole.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(ms / 2 + self.random_below(ms / 2 + 1))
    }
}

#[cfg(test)]
mod tests;
