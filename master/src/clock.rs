//! The only place where the master reads a clock.

use rouse_shared::Timestamp;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch, as they were when the process started plus the time that has passed since, time
/// asleep included. A step of the wall clock moves nothing: leases and timers would end early or be kept too long.
pub fn now() -> Timestamp {
    static START: OnceLock<(Duration, Duration)> = OnceLock::new();
    let boot = since_boot();
    let (wall, then) = *START.get_or_init(|| (wall_clock(), boot));
    Timestamp(0) + wall + boot.saturating_sub(then)
}

/// The wall clock of this machine, steps included, in milliseconds since the Unix epoch. For comparison with other
/// machines only; nothing is timed by it.
pub fn wall() -> Timestamp {
    Timestamp(0) + wall_clock()
}

#[expect(clippy::disallowed_methods, reason = "this is the clock")]
fn wall_clock() -> Duration {
    // Before 1970 the clock is wrong in any case.
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Time since the machine was booted, precise enough to measure short times.
pub fn since_boot() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the result; CLOCK_BOOTTIME exists on every Linux since 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}
