//! The only place where the benchmark reads a clock, and its statistics of times.

use std::fs;
use std::io::Result;
use std::time::{Duration, Instant, SystemTime};

/// A moment to measure from.
#[derive(Clone, Copy)]
pub struct Watch(Instant);

impl Watch {
    #[expect(clippy::disallowed_methods, reason = "a stopwatch is what a benchmark is made of")]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    pub fn elapsed(self) -> Duration {
        Self::start().0 - self.0
    }

    pub fn seconds(self) -> f64 {
        self.elapsed().as_secs_f64()
    }

    /// From `earlier` to this moment, in milliseconds.
    pub fn since(self, earlier: Self) -> f64 {
        (self.0 - earlier.0).as_secs_f64() * 1e3
    }
}

/// Nanoseconds of the time of day: the same for every process, so a step can print when it began.
#[expect(clippy::disallowed_methods, reason = "the same clock in two processes is what this is about")]
pub fn nanoseconds() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The value below which `share` of the samples lie.
pub fn percentile(samples: &mut [f64], share: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    let index = (samples.len() as f64 * share) as usize;
    samples.get(index.min(samples.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

/// A process's memory.
pub struct Memory {
    /// Resident now, megabytes.
    pub now: f64,
    /// Resident at most since [`Memory::forget_peak`], megabytes.
    pub peak: f64,
}

impl Memory {
    pub fn of(pid: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = |name: &str| {
            let value =
                status.lines().find_map(|line| line.strip_prefix(name)?.strip_suffix("kB")?.trim().parse().ok());
            value.map_or(f64::NAN, |kib: f64| kib * 1.024 / 1e3)
        };
        Ok(Self { now: field("VmRSS:"), peak: field("VmHWM:") })
    }

    /// The peak counts from now on.
    pub fn forget_peak(pid: u32) -> Result<()> {
        fs::write(format!("/proc/{pid}/clear_refs"), "5")
    }
}

/// Seconds of processor time that a process has used.
pub fn cpu(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Behind the name, which may have spaces and brackets in it.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks: f64 = [11, 12].iter().filter_map(|&index| fields.get(index)?.parse::<f64>().ok()).sum();
    // SAFETY: asks for a constant of the machine.
    ticks / unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64
}
