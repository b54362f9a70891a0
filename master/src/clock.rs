//! The one place where the master's program reads the clock.

use rouse_shared::Timestamp;
use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch; 0 where the machine's clock stands before it.
#[expect(clippy::disallowed_methods, reason = "this is the place that clippy.toml points to")]
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
