//! File descriptors: the master takes as many as it may have, and gives its hosts as many as it was given.

use crate::broker::limits::MOST_DESCRIPTORS;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io;
use std::sync::OnceLock;

/// The limit with which the master was started.
static GIVEN: OnceLock<Rlimit> = OnceLock::new();

/// Raises the soft limit of this process to its hard limit, up to [`MOST_DESCRIPTORS`]. Each connection to the HTTP API
/// and each attempt with a log takes one.
pub fn raise() {
    let given = GIVEN.get_or_init(|| getrlimit(Resource::Nofile));
    let most = given.maximum.unwrap_or(MOST_DESCRIPTORS).min(MOST_DESCRIPTORS);
    if given.current.is_some_and(|current| current < most)
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: given.maximum })
    {
        tracing::warn!("cannot raise the number of file descriptors: {error}");
    }
}

/// Sets the limit of a process that was just forked to what the master was given: programs that use select(2) fail with
/// descriptors above 1,023. Async-signal-safe.
///
/// # Errors
/// If the kernel refuses it.
pub fn restore() -> io::Result<()> {
    match GIVEN.get() {
        Some(given) => setrlimit(Resource::Nofile, *given).map_err(io::Error::from),
        None => Ok(()),
    }
}
