//! cgroups (version 2) of steps: limits, what a step has used, and an end that no process can escape by forking.
//!
//! ```text
//! BASE/                        delegated to the agent: the cgroup of its service
//! BASE/rouse-agent/            the agent, its zygote and its supervisors
//! BASE/rouse-step-10-12/       the step of supervisor 12 of zygote 10
//! ```
//!
//! A cgroup with limits for its children may have no processes of its own, so the agent moves itself to a child first.

use super::sys::{self, Pid};
use crate::clock;
use rouse_shared::message::{self, Limits, Usage};
use rustix::process::Signal;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;

/// The cgroup of the agent's own processes.
const OWN: &str = "rouse-agent";
/// The beginning of the name of a step's cgroup.
const STEP: &str = "rouse-step-";
/// Greatest depth and number of the cgroups that a step (a container engine, for example) may make below its own: they
/// are removed one by one.
const MAX_DEPTH: u32 = 16;
const MAX_DESCENDANTS: u32 = 1_000;
/// Period of a limit of processor time, microseconds: the kernel's default.
const PERIOD: u64 = 100_000;
/// How long the steps of an earlier agent may take to end.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(5);

/// Why steps have no cgroups.
#[derive(Debug, Error)]
pub enum NoCgroups {
    /// The kernel has none of version 2, or they are not mounted.
    #[error("no cgroups of version 2 are mounted")]
    NotMounted,
    /// The agent is in the root cgroup, together with the whole machine.
    #[error("the agent has no cgroup of its own")]
    Root,
    /// Somebody else manages this one.
    #[error("cgroup {} is not delegated to the agent; a unit needs Delegate=yes", .0.display())]
    NotDelegated(PathBuf),
    /// Other processes are in it as well.
    #[error("cgroup {} is not the agent's alone; process {pid} is in it too", .dir.display())]
    Shared {
        /// The cgroup.
        dir: PathBuf,
        /// One of them.
        pid: Pid,
    },
    /// A file or a directory of it cannot be used.
    #[error("{} cannot be used", .0.display())]
    Unusable(PathBuf, #[source] io::Error),
}

/// The cgroup below which each step gets its own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cgroups {
    base: PathBuf,
    enforced: message::Cgroups,
}

impl Cgroups {
    /// Takes over the cgroup of this process: moves the process to a child of it, which must be done before it starts
    /// others, and ends the steps that an earlier agent has left there.
    ///
    /// # Errors
    /// If it is not delegated to this process, or not to it alone.
    pub fn take() -> Result<Self, NoCgroups> {
        let unusable = |path: &Path| {
            let path = path.to_owned();
            move |error| NoCgroups::Unusable(path, error)
        };
        let read = |path: &str| fs::read_to_string(path).map_err(unusable(Path::new(path)));
        let found = locate(&read("/proc/self/cgroup")?, &read("/proc/self/mountinfo")?).ok_or(NoCgroups::NotMounted)?;
        // Executed again, this program is where it has put itself.
        let inside = found.file_name().is_some_and(|name| name == OWN);
        let base = if inside { found.parent().unwrap_or(&found).to_owned() } else { found };
        // Only the root has no type.
        if !base.join("cgroup.type").exists() {
            return Err(NoCgroups::Root);
        }
        if Path::new("/run/systemd/system").exists() && !is_delegated(&base) {
            return Err(NoCgroups::NotDelegated(base));
        }
        let own = std::process::id() as Pid;
        let processes = fs::read_to_string(base.join("cgroup.procs")).map_err(unusable(&base))?;
        if let Some(other) = processes.lines().filter_map(|pid| pid.parse().ok()).find(|pid: &Pid| *pid != own) {
            return Err(NoCgroups::Shared { dir: base, pid: other });
        }
        let leaf = base.join(OWN);
        make(&leaf).map_err(unusable(&leaf))?;
        write(&leaf.join("cgroup.procs"), "0").map_err(unusable(&leaf))?;
        Self::below(&base)
    }

    /// Uses a cgroup that has no processes.
    ///
    /// # Errors
    /// If no cgroup can be made in it, or a step that was left there cannot be ended.
    pub fn below(base: &Path) -> Result<Self, NoCgroups> {
        let unusable = |error| NoCgroups::Unusable(base.to_owned(), error);
        if !end_steps(base, PATIENCE) {
            return Err(unusable(io::Error::other("processes of an earlier step in it cannot be ended")));
        }
        for controller in ["memory", "pids", "cpu"] {
            // If there is none, or it cannot be had, its limits are not enforced.
            let _ = write(&base.join("cgroup.subtree_control"), &format!("+{controller}"));
        }
        let enabled = fs::read_to_string(base.join("cgroup.subtree_control")).map_err(unusable)?;
        let has = |name| enabled.split_whitespace().any(|controller| controller == name);
        let enforced = message::Cgroups { memory: has("memory"), pids: has("pids"), cpu: has("cpu") };
        // Whether one can be made is known only from one that was.
        let probe = Cgroup { dir: base.join(format!("{STEP}probe")), memory_limit: None };
        make(&probe.dir).map_err(|error| NoCgroups::Unusable(probe.dir.clone(), error))?;
        probe.remove();
        Ok(Self { base: base.to_owned(), enforced })
    }

    /// The limits that are enforced.
    pub fn enforced(&self) -> message::Cgroups {
        self.enforced
    }

    /// The directory, for a zygote.
    pub(super) fn base(&self) -> &Path {
        &self.base
    }
}

impl fmt::Display for Cgroups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message::Cgroups { memory, pids, cpu } = self.enforced;
        let limits = [("memory", memory), ("pids", pids), ("cpus", cpu)].into_iter().filter(|(_, has)| *has);
        let limits: Vec<_> = limits.map(|(name, _)| name).collect();
        let limits = if limits.is_empty() { "nothing".to_owned() } else { limits.join(", ") };
        write!(f, "a cgroup below {}, which can limit {limits}", self.base.display())
    }
}

/// The directory of this process's cgroup, by `/proc/self/cgroup` and `/proc/self/mountinfo`.
fn locate(cgroups: &str, mounts: &str) -> Option<PathBuf> {
    let path = cgroups.lines().find_map(|line| line.strip_prefix("0::"))?;
    mounts.lines().find_map(|line| {
        // Id, parent, device, root, mount point, options and optional fields; after a dash the type.
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        // A path with `..` leads out of what is visible.
        let below = Path::new(path).strip_prefix(root).ok().filter(|_| !path.contains(".."))?;
        after.starts_with("cgroup2 ").then(|| Path::new(point).join(below))
    })
}

/// Whether systemd has marked the cgroup as delegated. Older versions do so in a way that only root can read.
fn is_delegated(dir: &Path) -> bool {
    ["user.delegate", "trusted.delegate"].into_iter().any(|name| {
        let mut value = [0u8; 8];
        rustix::fs::getxattr(dir, name, &mut value).is_ok_and(|length| value[..length] == *b"1")
    })
}

fn make(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// Writes to a file of a cgroup, which must exist.
fn write(path: &Path, text: &str) -> io::Result<()> {
    File::options().write(true).open(path)?.write_all(text.as_bytes())
}

/// Kills what is in the steps' cgroups of `base`, and removes them. False if something still runs after `patience`.
/// Blocks the thread.
pub(super) fn end_steps(base: &Path, patience: Duration) -> bool {
    let give_up = clock::now() + patience;
    loop {
        let entries = fs::read_dir(base).into_iter().flatten().flatten();
        let steps = entries.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(STEP)));
        let mut left = false;
        for step in steps {
            let step = Cgroup { dir: step.path(), memory_limit: None };
            step.kill();
            if step.is_empty() { step.remove() } else { left = true }
        }
        if !left || clock::now() >= give_up {
            return !left;
        }
        std::thread::sleep(PAUSE);
    }
}

/// The cgroup of one step.
pub struct Cgroup {
    dir: PathBuf,
    memory_limit: Option<u64>,
}

impl Cgroup {
    /// The one of a supervisor. Killing and removing it does nothing if it was never made.
    pub fn of(base: &Path, zygote: Pid, supervisor: Pid) -> Self {
        Self { dir: base.join(format!("{STEP}{zygote}-{supervisor}")), memory_limit: None }
    }

    /// Makes it, with its limits.
    ///
    /// # Errors
    /// If it cannot be made, or the kernel takes a limit for invalid; for people.
    pub fn make(&mut self, limits: Limits) -> Result<(), String> {
        let failed = |what: &str, error: io::Error| format!("the step's cgroup: {what}: {error}");
        make(&self.dir).map_err(|error| failed("it cannot be created", error))?;
        let set = |file: &str, value: String| match write(&self.dir.join(file), &value) {
            // The controller is not enabled: the master knows that, and says so.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(failed(&format!("{file} cannot be set"), error)),
            Ok(()) => Ok(true),
        };
        set("cgroup.max.depth", MAX_DEPTH.to_string())?;
        set("cgroup.max.descendants", MAX_DESCENDANTS.to_string())?;
        // Without it a step could go on without the process that the kernel has chosen, and fail in odd ways.
        set("memory.oom.group", "1".to_owned())?;
        if let Some(bytes) = limits.memory {
            if set("memory.max", bytes.to_string())? {
                self.memory_limit = Some(bytes);
            }
            // With swap the limit would only make the step, and the machine, slow.
            set("memory.swap.max", "0".to_owned())?;
        }
        if let Some(pids) = limits.pids.or_else(|| self.most_pids()) {
            set("pids.max", pids.to_string())?;
        }
        if let Some(millis) = limits.cpu_millis {
            set("cpu.max", format!("{} {PERIOD}", millis * PERIOD / 1_000))?;
        }
        Ok(())
    }

    /// What a step without a limit of processes gets: it leaves a tenth of the service's to the agent, which otherwise
    /// could not start the supervisor of the next step. Several steps at once can still take all. `None` if the service has
    /// no limit.
    fn most_pids(&self) -> Option<u64> {
        let most: u64 = fs::read_to_string(self.dir.parent()?.join("pids.max")).ok()?.trim().parse().ok()?;
        Some(most - most / 10)
    }

    /// The file that a process writes 0 to in order to enter.
    ///
    /// # Errors
    /// If it cannot be opened; for people.
    pub fn entry(&self) -> Result<File, String> {
        let path = self.dir.join("cgroup.procs");
        File::options().write(true).open(&path).map_err(|e| format!("{} cannot be opened: {e}", path.display()))
    }

    /// Kills everything in it.
    pub fn kill(&self) {
        if write(&self.dir.join("cgroup.kill"), "1").is_ok() || !self.dir.exists() {
            return;
        }
        // A kernel before 5.14: what is frozen cannot fork, and can be killed. If it cannot be frozen, some may fork in
        // time, and `is_empty` notices them.
        let _ = write(&self.dir.join("cgroup.freeze"), "1");
        for pid in self.processes() {
            // It may have ended meanwhile. Whatever refuses to end is noticed by `is_empty`.
            let _ = sys::kill(pid, Signal::KILL);
        }
        let _ = write(&self.dir.join("cgroup.freeze"), "0");
    }

    /// The processes in it and in the cgroups below it.
    pub fn processes(&self) -> Vec<Pid> {
        let mut dirs = vec![self.dir.clone()];
        let mut pids = Vec::new();
        while let Some(dir) = dirs.pop() {
            let list = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            pids.extend(list.lines().filter_map(|pid| pid.parse::<Pid>().ok()));
            dirs.extend(children(&dir));
        }
        pids
    }

    /// Whether no process is left in it.
    pub fn is_empty(&self) -> bool {
        match fs::read_to_string(self.dir.join("cgroup.events")) {
            Ok(events) => value(&events, "populated") == Some(0),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }

    /// What its processes have used.
    pub fn usage(&self) -> Option<Usage> {
        let read = |file: &str| fs::read_to_string(self.dir.join(file)).ok();
        let cpu_ms = value(&read("cpu.stat")?, "usage_usec")? / 1_000;
        let killed = read("memory.events").and_then(|events| value(&events, "oom_kill"));
        Some(Usage {
            cpu_ms,
            peak_memory: read("memory.peak").and_then(|text| text.trim().parse().ok()),
            out_of_memory: killed.is_some_and(|count| count > 0),
            memory_limit: self.memory_limit,
        })
    }

    /// Removes it and those below it, if nothing runs there.
    pub fn remove(&self) {
        let mut dirs = vec![self.dir.clone()];
        let mut next = 0;
        while let Some(dir) = dirs.get(next) {
            dirs.extend(children(dir));
            next += 1;
        }
        for dir in dirs.iter().rev() {
            // What remains is removed when the next agent starts.
            let _ = fs::remove_dir(dir);
        }
    }
}

/// The cgroups in a cgroup.
fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// The number after `key` in a file with one pair on each line.
fn value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_cgroup_is_found_in_what_the_kernel_lists() {
        const WHOLE: &str = "25 30 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        const MIXED: &str = "31 24 0:27 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                             32 31 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                             33 31 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        const PART: &str = "25 30 0:22 /machine/c1 /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let found = |cgroups, mounts| locate(cgroups, mounts).map(|dir| dir.display().to_string());
        for (cgroups, mounts, dir) in [
            ("0::/system.slice/a.service\n", WHOLE, Some("/sys/fs/cgroup/system.slice/a.service")),
            ("4:memory:/x\n0::/y\n", MIXED, Some("/sys/fs/cgroup/unified/y")),
            ("0::/machine/c1/a\n", PART, Some("/sys/fs/cgroup/a")),
            ("0::/elsewhere\n", PART, None),
            ("0::/../a\n", WHOLE, None),
            ("4:memory:/x\n", MIXED, None),
            ("0::/y\n", "", None),
        ] {
            assert_eq!(found(cgroups, mounts).as_deref(), dir, "{cgroups}{mounts}");
        }
    }

    #[test]
    fn figures_are_found_by_their_names() {
        let text = "low 0\nmax 3\noom 1\noom_kill 2\noom_group_kill 1\n";
        assert_eq!((value(text, "oom_kill"), value(text, "max"), value(text, "peak")), (Some(2), Some(3), None));
    }
}
