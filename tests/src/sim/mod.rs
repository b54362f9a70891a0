//! The simulation: the real cores of master and agents, with a fake cloud, broker, disk and clock, from one seed.
//!
//! [`run`] runs one seed: a time of faults, then a quiet time, after which everything must be in order. The invariants
//! are in `invariants`; they are checked whenever something happens that could break them. The same seed always gives
//! the same run, so a failure can be repeated with its transcript.

mod agent;
mod alarm;
mod breaks;
mod bus;
mod cloud;
mod disk;
mod idle;
mod impostors;
mod invariants;
mod machine;
mod master;
mod misfortunes;
mod perform;
mod places;
mod quiet;
mod relay;
mod retention;
mod script;
mod setup;
mod show;
mod standby;
mod suspend;
mod world;

pub use breaks::Break;

use std::fmt;

/// What a seed that holds has seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    /// Simulated milliseconds.
    pub simulated: u64,
    /// Things that happened; at least 500.
    pub events: u64,
    /// Looks at everything that must hold at any time.
    pub looks: u64,
    /// Builds that were accepted.
    pub builds: u64,
    /// Builds that ended in success, in failure, cancelled and lost.
    pub ends: [u64; 4],
    /// Machines that were made.
    pub machines: u64,
    /// Machines that were resumed.
    pub resumed: u64,
    /// Times that the master died.
    pub crashes: u64,
    /// Agents that were turned away, since another of their name has the lease or their token was used before.
    pub turned_away: u64,
    /// Sessions that turned out to be of a machine that is not the host.
    pub impostors: u64,
}

impl Summary {
    /// Adds another one.
    pub fn add(&mut self, other: &Summary) {
        self.simulated += other.simulated;
        self.events += other.events;
        self.looks += other.looks;
        self.builds += other.builds;
        for (sum, one) in self.ends.iter_mut().zip(other.ends) {
            *sum += one;
        }
        self.machines += other.machines;
        self.resumed += other.resumed;
        self.crashes += other.crashes;
        self.turned_away += other.turned_away;
        self.impostors += other.impostors;
    }
}

/// What a seed has broken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// The seed.
    pub seed: u64,
    /// What was broken on purpose.
    pub broken: Option<Break>,
    /// What must hold and did not.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}: {}", self.seed, self.what)?;
        let broken = self.broken.map(|broken| format!(" ROUSE_SIM_BREAK={broken:?}")).unwrap_or_default();
        write!(f, "replay it: ROUSE_SIM_SEED={}{broken} make sim", self.seed)
    }
}

/// Plays one seed, `broken` in some way or not.
///
/// # Errors
/// What did not hold.
pub fn run(seed: u64, broken: Option<Break>) -> Result<Summary, Box<Violation>> {
    world::World::new(seed, broken, false).play().0
}

/// The same, with the transcript: a line for each thing that happened.
pub fn play_with_transcript(seed: u64, broken: Option<Break>) -> (Result<Summary, Box<Violation>>, Vec<String>) {
    world::World::new(seed, broken, true).play()
}
