//! The driver: one loop that takes the events that are waiting, lets the core decide, commits, and then performs.
//!
//! [`run`] runs the master until a signal; `master` puts it together. `event_loop` is the loop; what takes time runs beside
//! it and comes back as an event.
//!
//! **Invariant**: nothing is performed, answered or acknowledged before it is committed.

mod batch;
mod control;
mod disk_space;
mod error;
mod event_loop;
mod log_writer;
mod master;
mod perform;
mod signals;
mod state;
mod stuck;

pub use control::Control;
pub use error::MasterError;
pub use master::Master;
pub use signals::run;
pub use state::{State, StateError};

use crate::core::build::BuildState;
use crate::core::event::Change;

/// Events that wait for the loop, at most, from each side: a full channel slows its sender down.
const WAITING: usize = 4_096;

/// Whether a change says that a build has ended.
fn ended(change: &Change) -> Option<BuildState> {
    match change {
        Change::Build { state, .. } if state.is_final() => Some(*state),
        Change::Build { .. } | Change::Worker { .. } | Change::Host { .. } => None,
    }
}
