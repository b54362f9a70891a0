//! Two masters share the ledger. The active one is stopped in the middle of its work, or is cut off from the database.
//! The other one takes the ledger over, and the former one goes on as if nothing had happened.

use super::Break;
use super::master::Delivery;
use super::setup::Faults;
use super::world::World;
use crate::chance::Chance;
use rouse_master::core::Core;
use rouse_master::core::event::{Effect, Event};

/// How long the lease of a master lasts, milliseconds.
const LEASE: u64 = 15_000;
/// How long the other one needs at most to act once the lease has ended, milliseconds.
const TAKEOVER: u64 = 10_000;
/// How long a master is stopped at most, milliseconds.
const STOPPED: u64 = 600_000;

/// Whether another master stands by in a seed. It takes no number from the seed's own row, which stays as it was.
pub(super) fn of_seed(seed: u64, faults: &Faults) -> bool {
    !faults.agents_behave() && Chance::new(seed ^ 0x57a_4d87).permille(300)
}

/// A master that does not know that another one has the ledger.
struct Former {
    core: Core,
    epoch: u64,
    clock: i64,
    /// What it has committed and not performed.
    late: Vec<Effect>,
}

/// Whether an effect is performed elsewhere, so that it may be under way while the master is stopped.
fn leaves_the_master(effect: &Effect) -> bool {
    matches!(effect, Effect::StartHost(_) | Effect::TerminateHost(_) | Effect::TerminateOrphan { .. })
}

impl World {
    /// The master is stopped when it has committed `late` and not performed it.
    pub(super) fn master_stops(&mut self, late: Vec<Effect>, unacknowledged: Vec<Delivery>) {
        let Some(core) = self.master.core.take() else { return };
        let former = Former { core, epoch: self.master.epoch, clock: self.master.clock, late };
        self.say(|| "master: is stopped".to_owned());
        // How much of the lease was over is not known.
        let taken_over = self.delay(250, LEASE + TAKEOVER);
        self.master_is_gone(taken_over, unacknowledged);
        let goes_on = self.delay(LEASE, STOPPED);
        self.after(goes_on, move |w| w.former_master_goes_on(former));
    }

    /// It finds out before it does anything more that its lease is over; a broken one does not look.
    fn former_master_goes_on(&mut self, former: Former) {
        let Former { mut core, epoch, clock, late } = former;
        self.say(|| "the former master goes on".to_owned());
        let own = (self.master.epoch, self.master.clock, self.master.linked);
        // Its connections are closed, and nobody waits for what its calls answer.
        (self.master.epoch, self.master.clock, self.master.linked) = (epoch, clock, false);
        // What was on its way to a cloud arrives there. A relay has broken off by then.
        let calls = late.into_iter().filter(leaves_the_master);
        let arrive: Vec<_> = calls.filter(|_| self.chance.permille(500)).collect();
        arrive.into_iter().for_each(|effect| drop(self.perform(effect)));
        if self.broken == Some(Break::NoEpoch) {
            let (records, others): (Vec<_>, Vec<_>) =
                core.handle(self.time(), Event::Tick).into_iter().partition(|e| matches!(e, Effect::Save(_)));
            self.commit(records, false);
            others.into_iter().for_each(|effect| drop(self.perform(effect)));
        }
        (self.master.epoch, self.master.clock, self.master.linked) = own;
    }
}
