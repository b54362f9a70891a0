//! Locks.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex whatever its earlier holders did: one that panicked is not a reason for all others to panic too. What
/// these mutexes hold is consistent after each single change.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
