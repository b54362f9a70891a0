//! The only file of the agent that reads the clock.

use rouse_shared::Timestamp;

/// Milliseconds since the machine was booted, the time that it was suspended included (`CLOCK_BOOTTIME`).
pub fn now() -> Timestamp {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of our own. The call cannot fail: Linux has had this clock since 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
    Timestamp(time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000)
}
