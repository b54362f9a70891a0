//! The driver: one loop that takes the waiting events, lets the core decide, commits the records and then performs the
//! effects.
//!
//! [`run`] runs the master until a signal ends it, `master` assembles it, and `event_loop` is the loop. An operation
//! that takes time runs outside the loop, and its result comes back as an event.
//!
//! **Invariant**: nothing is performed, answered or acknowledged before it is committed.

mod batch;
mod belongings;
mod control;
mod disk_space;
mod encryption;
mod error;
mod event_loop;
mod figures;
mod listeners;
mod live_hosts;
mod log_sync;
mod log_writer;
mod master;
#[cfg(feature = "postgres")]
mod migrate;
mod perform;
mod queries;
mod reader;
mod retention;
mod signals;
mod standby;
mod state;
mod stuck;
mod tenure;
mod uploads;

pub use control::Control;
pub use error::MasterError;
pub use listeners::{COMMANDS, Inherited};
pub use live_hosts::live_hosts;
pub use master::Master;
#[cfg(feature = "postgres")]
pub use migrate::migrate;
pub use signals::{Ended, run};
pub use state::{Locked, State, StateError};
pub use tenure::begin_anew;

/// Capacity of each of the loop's channels. A full channel slows its sender down.
const WAITING: usize = 4_096;
