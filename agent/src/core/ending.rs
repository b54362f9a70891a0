//! The agent's own end: SIGTERM, a master that sends it home, a host that nobody wants.

use super::{Core, Effect, Level};
use rouse_shared::Timestamp;
use rouse_shared::message::{CloudNotice, ToMaster};
use std::time::Duration;

/// Killing takes milliseconds; past this the agent ends all the same, and its supervisors die with it.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// Denials by the broker, some half a minute of them, before what the agent was told at its start may be out of date.
const DENIALS: u32 = 6;

/// How far the agent's end has come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Ending {
    /// It goes on.
    No,
    /// Nothing new is begun; it ends when its builds have ended and are settled.
    Leaving,
    /// Everything was killed; it ends when that has happened, or at `latest`.
    Killing { latest: Timestamp, action: FinalAction, why: String },
    /// [`Effect::Exit`], [`Effect::PowerOff`] or [`Effect::Restart`] was given.
    Done,
}

/// What comes of the agent, or its machine, when it ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FinalAction {
    Exit,
    PowerOff,
    Restart,
}

impl Ending {
    pub(super) fn wakeup(&self) -> Option<Timestamp> {
        match self {
            Ending::Killing { latest, .. } => Some(*latest),
            Ending::No | Ending::Leaving | Ending::Done => None,
        }
    }
}

impl Core {
    /// Whether new orders are turned away since the agent ends.
    pub(super) fn leaving(&self) -> bool {
        !matches!(self.ending, Ending::No)
    }

    pub(super) fn terminate(&mut self, now: Timestamp) {
        match &self.ending {
            Ending::No => {
                self.log(Level::Info, "asked to end: taking nothing new, ending when what runs has ended");
                self.ending = Ending::Leaving;
                if self.session.is_none() {
                    self.forget_if_leaving();
                }
                self.send_leaving();
            }
            Ending::Leaving => self.kill_and_end(now, FinalAction::Exit, "asked to end twice".to_owned()),
            Ending::Killing { action, why, .. } => {
                let (action, why) = (*action, why.clone());
                self.ending = Ending::Killing { latest: now, action, why };
            }
            Ending::Done => {}
        }
    }

    /// Without a session: an agent that was asked to end waits for no other one, which may never be.
    pub(super) fn forget_if_leaving(&mut self) {
        if self.leaving() {
            self.forget_ended();
        }
    }

    /// Tells the master, where it can be told; said again at each welcome.
    pub(super) fn send_leaving(&mut self) {
        if !matches!(self.ending, Ending::Leaving) || self.attempts.is_empty() {
            return;
        }
        if let Some(session) = self.attached_session() {
            self.emit(Effect::Send(Box::new(ToMaster::Leaving { session })));
        }
    }

    /// The cloud has spoken: an interruption is certain, and no rebalance after it takes it back.
    pub(super) fn noticed(&mut self, notice: CloudNotice) {
        let graver = match (&self.notice, &notice) {
            (Some(CloudNotice::Interruption { .. }), CloudNotice::Rebalance { .. }) => false,
            (before, now) => before.as_ref() != Some(now),
        };
        if !graver {
            return;
        }
        let text = match &notice {
            CloudNotice::Rebalance { at } => format!("the cloud may take this machine back soon (said at {at})"),
            CloudNotice::Interruption { action, at } => format!("the cloud takes this machine back: {action} at {at}"),
        };
        self.log(Level::Warn, super::words::cut(text));
        self.notice = Some(notice);
        self.send_notice();
    }

    /// Tells the master, where it can be told; said again at each welcome and with each heartbeat.
    pub(super) fn send_notice(&mut self) {
        if let (Some(session), Some(notice)) = (self.attached_session(), &self.notice) {
            let notice = notice.clone();
            self.emit(Effect::Send(Box::new(ToMaster::Notice { session, notice })));
        }
    }

    /// Kills everything, then ends.
    pub(super) fn kill_and_end(&mut self, now: Timestamp, action: FinalAction, why: String) {
        if matches!(self.ending, Ending::Killing { .. } | Ending::Done) {
            return;
        }
        self.kill_all();
        self.ending = Ending::Killing { latest: now + KILL_PATIENCE, action, why };
    }

    /// The machine has slept: that is no time in which somebody could have called it.
    pub(super) fn discount_suspension(&mut self, now: Timestamp, slept: Duration) {
        self.resumed_at = now;
        self.dead_man = self.dead_man.map(|at| at + slept);
    }

    /// A latent host that may_be_suspended is another one's when it wakes: who it is, and its token, are told it anew.
    pub(super) fn resumed(&mut self, now: Timestamp) {
        if self.settings.latent && self.session.is_none() && (self.master.is_none() || self.to_be_suspended) {
            self.kill_and_end(now, FinalAction::Restart, "the machine has slept".to_owned());
        }
    }

    /// Whether it should ask anew who it is and what its token is: it was turned away as one whose host falls asleep or
    /// wakes, or is not known yet, or the broker goes on saying no. Not every machine can see that it has slept, and no
    /// master counts on a life that none has let in.
    pub(super) fn may_have_stale_boot_data(&self) -> bool {
        let denied = self.settings.latent && !self.said_hello && self.denials >= DENIALS;
        let unknown = self.master.is_none() && self.session.is_none() && matches!(self.ending, Ending::No);
        unknown && (self.to_be_suspended || denied)
    }

    pub(super) fn expire_dead_man(&mut self, now: Timestamp) {
        if self.dead_man.is_some_and(|at| at <= now) {
            self.dead_man = None;
            if self.to_be_suspended {
                // Where its clocks show that it has slept, [`Core::resumed`] was there before. It may have slept without
                // that, or not at all: its next life asks once more, and goes when nobody says so again.
                let why = "the machine was to be put to sleep and runs".to_owned();
                return self.kill_and_end(now, FinalAction::Restart, why);
            }
            let why = match self.master {
                None => "no master has let this host in since it started",
                Some(_) => "this host's lease is over and no master has let it in again",
            };
            self.log(Level::Warn, format!("{why}: powering off"));
            self.kill_and_end(now, FinalAction::PowerOff, why.to_owned());
        }
    }

    pub(super) fn end_if_nothing_left(&mut self, now: Timestamp) {
        let nothing_runs = self.attempts.is_empty() && self.dying.is_empty();
        let (action, why) = match &self.ending {
            Ending::Leaving if nothing_runs => (FinalAction::Exit, "asked to end, and nothing runs".to_owned()),
            Ending::Killing { latest, action, why } if nothing_runs || *latest <= now => (*action, why.clone()),
            Ending::No | Ending::Leaving | Ending::Killing { .. } | Ending::Done => return,
        };
        if let Some(session) = self.attached_session() {
            // Only what is true: a goodbye says that nothing of the builds runs.
            if nothing_runs {
                self.emit(Effect::Send(Box::new(ToMaster::Goodbye { session })));
            }
        }
        self.drop_link();
        self.ending = Ending::Done;
        self.emit(match action {
            FinalAction::Exit => Effect::Exit { why },
            FinalAction::PowerOff => Effect::PowerOff { why },
            FinalAction::Restart => Effect::Restart { why },
        });
    }
}
