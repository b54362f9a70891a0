//! How the machine is and what it is, for heartbeats and hello.

use crate::identity;
use rouse_shared::message::{Facts, Vitals};
use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use sysinfo::{MemoryRefreshKind, System};

/// The machine's memory, load, and the disk where builds run. Memory and load come from sysinfo; its list of disks looks
/// at every mount, and a dead network mount would hold heartbeats up, so the one disk is asked directly.
pub fn vitals(system: &mut System, work_dir: &Path) -> Vitals {
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    let (disk_free, disk_total) = disk(work_dir).unwrap_or_default();
    Vitals {
        load: System::load_average().one as f32,
        memory_used: system.used_memory(),
        memory_total: system.total_memory(),
        disk_free,
        disk_total,
    }
}

/// What the machine is.
pub fn facts(system: &mut System) -> Facts {
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    let (os, arch) = uname();
    let cpus = std::thread::available_parallelism().map_or(0, |n| u32::try_from(n.get()).unwrap_or(u32::MAX));
    Facts { os, arch, hostname: identity::kernel_name(), cpus, memory: system.total_memory() }
}

/// Name of the system and of its architecture.
fn uname() -> (String, String) {
    // SAFETY: all zeroes is a valid utsname: arrays of characters.
    let mut names: libc::utsname = unsafe { std::mem::zeroed() };
    // SAFETY: `names` is a valid utsname for the kernel to write to.
    if unsafe { libc::uname(&raw mut names) } != 0 {
        return Default::default();
    }
    let text = |field: &[libc::c_char]| {
        // SAFETY: uname ends every field with a zero.
        unsafe { CStr::from_ptr(field.as_ptr()) }.to_string_lossy().into_owned()
    };
    (text(&names.sysname), text(&names.machine))
}

/// Free bytes for a user without privileges, and all bytes.
fn disk(path: &Path) -> Option<(u64, u64)> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: all zeroes is a valid statvfs: numbers.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` ends with a zero and `stat` is valid for the kernel to write to.
    if unsafe { libc::statvfs(path.as_ptr(), &raw mut stat) } != 0 {
        return None;
    }
    Some((stat.f_bavail.saturating_mul(stat.f_frsize), stat.f_blocks.saturating_mul(stat.f_frsize)))
}
