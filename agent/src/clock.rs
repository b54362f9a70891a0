//! The only place where the agent reads a clock.

use rouse_shared::Timestamp;
use rustix::time::{ClockId, clock_gettime};
use std::time::{Duration, SystemTime};

/// Milliseconds since the machine booted, the time it was suspended included: a lease runs on while a machine sleeps.
/// The same for every process of the machine, so that supervisors can compare deadlines with it.
pub fn now() -> Timestamp {
    read(ClockId::Boottime)
}

/// Milliseconds that the machine has been awake since it booted.
pub fn running() -> Timestamp {
    read(ClockId::Monotonic)
}

/// How long the machine has slept since it booted. Where the caller is stopped in the middle of it the answer is too
/// short, and never too long.
pub fn suspended() -> Duration {
    let now = now();
    now.since(running())
}

fn read(clock: ClockId) -> Timestamp {
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
    Timestamp(seconds * 1000 + nanoseconds / 1_000_000)
}

/// The time of day, for the lines of the log alone.
#[expect(clippy::disallowed_methods, reason = "this is the file that reads the clock")]
pub fn time_of_day() -> SystemTime {
    SystemTime::now()
}
