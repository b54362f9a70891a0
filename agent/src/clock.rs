//! The only place where the agent reads a clock.

use rouse_shared::Timestamp;
use rustix::time::{ClockId, clock_gettime};
use std::time::{Duration, SystemTime};

/// Time since the machine booted, including the time during which it was suspended: a lease runs on meanwhile. The same
/// for every process of the machine, so that supervisors can compare deadlines with it.
pub fn now() -> Timestamp {
    read(ClockId::Boottime)
}

/// Time since the machine booted, without the time during which it was suspended.
pub fn running() -> Timestamp {
    read(ClockId::Monotonic)
}

/// How long the machine has been suspended since it booted. Too short if the caller is interrupted in the middle of it,
/// but never too long.
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

/// The time of day, for log lines only.
#[expect(clippy::disallowed_methods, reason = "this is the file that reads the clock")]
pub fn time_of_day() -> SystemTime {
    SystemTime::now()
}
