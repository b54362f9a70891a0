//! Locks mutexes and ignores poison.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex whose value is consistent between any two statements that hold the lock, so that it stays usable after
/// a panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
