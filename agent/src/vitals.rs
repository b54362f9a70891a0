//! Properties of the machine for the hello message, and its load, memory and disk space for heartbeats.

use crate::identity;
use rouse_shared::message::{Facts, Vitals};
use std::path::Path;
use sysinfo::{MemoryRefreshKind, System};

/// The machine's memory and load, and the disk where builds run. Memory and load are from sysinfo. The disk is not,
/// because sysinfo asks every mounted file system, and a dead network mount would delay heartbeats.
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

/// The machine's properties, without what the agent has of it.
pub fn facts(system: &mut System) -> Facts {
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    let (os, arch) = uname();
    let cpus = std::thread::available_parallelism().map_or(0, |n| u32::try_from(n.get()).unwrap_or(u32::MAX));
    Facts { os, arch, hostname: identity::kernel_name(), cpus, memory: system.total_memory(), ..Facts::default() }
}

/// Names of the system and of its architecture.
fn uname() -> (String, String) {
    let names = rustix::system::uname();
    let text = |name: &std::ffi::CStr| name.to_string_lossy().into_owned();
    (text(names.sysname()), text(names.machine()))
}

/// Free bytes for a user without privileges, and total bytes.
fn disk(path: &Path) -> Option<(u64, u64)> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some((stat.f_bavail.saturating_mul(stat.f_frsize), stat.f_blocks.saturating_mul(stat.f_frsize)))
}
