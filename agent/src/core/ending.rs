//! The end of the agent: after SIGTERM, at the master's request, or because no master accepts the agent of a latent
//! host.

use super::{Core, Effect, Level};
use rouse_shared::Timestamp;
use rouse_shared::message::{CloudNotice, ToMaster};
use std::time::Duration;

/// Longest wait for killed steps, which normally takes milliseconds. After that the agent exits anyway, and its
/// supervisors end with it.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// Number of refusals by the broker (about half a minute) after which the agent's boot data may be out of date.
const DENIALS: u32 = 6;

/// Progress of the agent's end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Ending {
    /// The agent is not ending.
    No,
    /// It starts nothing new, and ends when its builds have ended and are settled.
    Leaving,
    /// It has killed everything, and ends when all steps have ended, or at `latest`.
    Killing { latest: Timestamp, action: FinalAction, why: String },
    /// [`Effect::Exit`], [`Effect::PowerOff`] or [`Effect::Restart`] has been returned.
    Done,
}

/// What the agent does last.
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
    /// Whether new attempts are declined because the agent is ending.
    pub(super) fn leaving(&self) -> bool {
        !matches!(self.ending, Ending::No)
    }

    pub(super) fn terminate(&mut self, now: Timestamp) {
        match &self.ending {
            Ending::No => {
                self.log(Level::Info, "SIGTERM: taking no new builds, exiting when the running ones have ended");
                self.ending = Ending::Leaving;
                if self.session.is_none() {
                    self.forget_if_leaving();
                }
                self.send_leaving();
            }
            Ending::Leaving => self.kill_and_end(now, FinalAction::Exit, "a second SIGTERM".to_owned()),
            Ending::Killing { action, why, .. } => {
                let (action, why) = (*action, why.clone());
                self.ending = Ending::Killing { latest: now, action, why };
            }
            Ending::Done => {}
        }
    }

    /// Called when there is no session: an agent that is to exit does not wait for another one, which may never come.
    pub(super) fn forget_if_leaving(&mut self) {
        if self.leaving() {
            self.forget_ended();
        }
    }

    /// Reports to the master that the agent is leaving; repeated after each welcome.
    pub(super) fn send_leaving(&mut self) {
        if !matches!(self.ending, Ending::Leaving) || self.attempts.is_empty() {
            return;
        }
        if let Some(session) = self.attached_session() {
            self.emit(Effect::Send(Box::new(ToMaster::Leaving { session })));
        }
    }

    /// Handles a notice of the cloud. An interruption is certain, and a later rebalance does not replace it.
    pub(super) fn noticed(&mut self, notice: CloudNotice) {
        let graver = match (&self.notice, &notice) {
            (Some(CloudNotice::Interruption { .. }), CloudNotice::Rebalance { .. }) => false,
            (before, now) => before.as_ref() != Some(now),
        };
        if !graver {
            return;
        }
        let text = match &notice {
            CloudNotice::Rebalance { at } => format!("the cloud may take this machine back soon (notice of {at})"),
            CloudNotice::Interruption { action, at } => {
                format!("the cloud will take this machine back: {action} at {at}")
            }
        };
        self.log(Level::Warn, super::words::cut(text));
        self.notice = Some(notice);
        self.send_notice();
    }

    /// Reports the cloud's notice to the master; repeated after each welcome and with each heartbeat.
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

    /// Postpones the dead-man timer by a suspension, during which no master could reach the machine.
    pub(super) fn discount_suspension(&mut self, now: Timestamp, slept: Duration) {
        self.resumed_at = now;
        self.dead_man = self.dead_man.map(|at| at + slept);
    }

    /// A latent host that was suspended may be resumed as another one, with new boot data. Without a session the agent
    /// restarts to read them.
    pub(super) fn resumed(&mut self, now: Timestamp) {
        let without_session = self.session.is_none() && (self.master.is_none() || self.to_be_suspended);
        // The master ends the session before it suspends the machine, however long the lease lasts.
        if self.settings.latent && (without_session || self.may_have_been_suspended()) {
            self.kill_and_end(now, FinalAction::Restart, "the machine was suspended".to_owned());
        }
    }

    /// Whether the agent should restart to read its boot data again: the master has refused it without powering it off
    /// (its host is being suspended or resumed, or is not known yet), or the broker keeps refusing it. Not every
    /// machine notices that it was suspended, and no master relies on an agent that none has accepted.
    pub(super) fn may_have_stale_boot_data(&self) -> bool {
        let denied = self.settings.latent && !self.said_hello && self.denials >= DENIALS;
        let unknown = self.master.is_none() && self.session.is_none() && matches!(self.ending, Ending::No);
        unknown && (self.to_be_suspended || denied)
    }

    pub(super) fn expire_dead_man(&mut self, now: Timestamp) {
        if self.dead_man.is_some_and(|at| at <= now) {
            self.dead_man = None;
            if self.to_be_suspended {
                // If the clocks had shown a suspension, [`Core::resumed`] would have restarted the agent. There may
                // have been one all the same: the next run asks once more, and powers off if it gets no such answer
                // again.
                let why = "the machine was to be suspended and is running".to_owned();
                return self.kill_and_end(now, FinalAction::Restart, why);
            }
            let why = match self.master {
                None => "no master has accepted this host since it started",
                Some(_) => "this host's lease has ended and no master has accepted it since",
            };
            self.log(Level::Warn, format!("{why}: powering off"));
            self.kill_and_end(now, FinalAction::PowerOff, why.to_owned());
        }
    }

    pub(super) fn end_if_nothing_left(&mut self, now: Timestamp) {
        let nothing_runs = self.attempts.is_empty() && self.dying.is_empty();
        let (action, why) = match &self.ending {
            Ending::Leaving if nothing_runs => (FinalAction::Exit, "SIGTERM, and no build runs".to_owned()),
            Ending::Killing { latest, action, why } if nothing_runs || *latest <= now => (*action, why.clone()),
            Ending::No | Ending::Leaving | Ending::Killing { .. } | Ending::Done => return,
        };
        if let Some(session) = self.attached_session() {
            // A goodbye says that no build runs, so it must be true.
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
