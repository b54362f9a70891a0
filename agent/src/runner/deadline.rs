//! The end of the lease as one word of memory that the agent writes and every supervisor reads.
//!
//! So a supervisor knows it without asking an agent that may be frozen.

use super::sys;
use rouse_shared::Timestamp;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
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
    /// A new word without a deadline, and the file to share it by.
    pub fn create() -> io::Result<(Self, OwnedFd)> {
        let file = sys::memfd(c"rouse-deadline")?;
        // SAFETY: plain parameter of a descriptor of ours.
        if unsafe { libc::ftruncate(file.as_raw_fd(), SIZE as libc::off_t) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let deadline = Self::map(std::os::fd::AsFd::as_fd(&file))?;
        deadline.set(None);
        Ok((deadline, file))
    }

    /// The word behind a file that [`Deadline::create`] made.
    pub fn map(file: BorrowedFd<'_>) -> io::Result<Self> {
        // SAFETY: a fresh mapping at a place of the kernel's choice.
        let word = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), SIZE, access, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        if word == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { word: word.cast() })
    }

    fn word(&self) -> &AtomicU64 {
        // SAFETY: mapped at least as long as `self`, and a mapping is aligned to pages.
        unsafe { &*self.word }
    }

    /// Changes the deadline for everybody.
    pub fn set(&self, deadline: Option<Timestamp>) {
        self.word().store(deadline.map_or(NONE, |d| d.0), Ordering::Release);
    }

    /// The deadline as it is now.
    pub fn get(&self) -> Option<Timestamp> {
        Some(self.word().load(Ordering::Acquire)).filter(|&word| word != NONE).map(Timestamp)
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        // SAFETY: this mapping is ours, and `self` is its last user.
        unsafe { libc::munmap(self.word.cast_mut().cast(), SIZE) };
    }
}
