//! The end of the lease, in a word of shared memory that the agent writes and every supervisor reads. A supervisor
//! therefore does not depend on an answer of the agent, which may be frozen.

use super::sys;
use rouse_shared::Timestamp;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

/// Stands for "no lease".
const NONE: u64 = u64::MAX;
const SIZE: usize = std::mem::size_of::<AtomicU64>();

/// The shared word.
pub struct Deadline {
    word: *const AtomicU64,
}

// SAFETY: the word is only ever touched as an atomic, and stays mapped while this value lives.
unsafe impl Send for Deadline {}
// SAFETY: as above.
unsafe impl Sync for Deadline {}

impl Deadline {
    /// A new word without a deadline, and the file to share it with.
    pub fn create() -> io::Result<(Self, OwnedFd)> {
        let file = sys::memfd(c"rouse-deadline")?;
        rustix::fs::ftruncate(&file, SIZE as u64)?;
        let deadline = Self::map(file.as_fd())?;
        deadline.set(None);
        Ok((deadline, file))
    }

    /// The word in a file from [`Deadline::create`].
    pub fn map(file: BorrowedFd<'_>) -> io::Result<Self> {
        // SAFETY: a new mapping at an address that the kernel chooses.
        let word =
            unsafe { mmap(ptr::null_mut(), SIZE, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, file, 0)? };
        Ok(Self { word: word.cast() })
    }

    fn word(&self) -> &AtomicU64 {
        // SAFETY: mapped at least as long as `self` lives, and mappings are aligned to pages.
        unsafe { &*self.word }
    }

    /// Changes the deadline for every process that shares the word.
    pub fn set(&self, deadline: Option<Timestamp>) {
        self.word().store(deadline.map_or(NONE, |d| d.0), Ordering::Release);
    }

    /// The current deadline.
    pub fn get(&self) -> Option<Timestamp> {
        Some(self.word().load(Ordering::Acquire)).filter(|&word| word != NONE).map(Timestamp)
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        // SAFETY: this mapping is ours, and `self` is its last user.
        let unmapped = unsafe { munmap(self.word.cast_mut().cast(), SIZE) };
        debug_assert_eq!(unmapped, Ok(()), "a whole mapping can always be unmapped");
    }
}
