//! Finds processes by the owner tag in their environment, and kills them.

use super::beside;
use rouse_shared::HostId;
use rouse_shared::names::ZYGOTE_ARGUMENT;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

/// Environment variable with the master's name and id.
pub(super) const OWNER_VARIABLE: &str = "ROUSE_OWNER";
/// Environment variable with the host's id.
pub(super) const HOST_VARIABLE: &str = "ROUSE_HOST";

/// A process that has our owner tag, or one with our name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct TaggedProcess {
    /// The name and id of its master.
    pub(super) owner: String,
    pub(super) host: HostId,
    pub(super) pid: i32,
    /// Whether it is an agent, and not one that looks after an agent's steps.
    pub(super) agent: bool,
    /// Clock ticks from the machine's boot to the process's start: distinguishes it from a later one with the same pid.
    started: u64,
}

impl TaggedProcess {
    /// An agent that was just started.
    pub(super) fn agent(owner: String, host: HostId, pid: i32) -> Self {
        Self { owner, host, pid, agent: true, started: started(pid).unwrap_or(0) }
    }

    pub(super) fn handle(&self) -> String {
        format!("{}:{}", self.pid, self.started)
    }
}

/// Every process that has an owner tag with such an owner and is not a zombie.
pub(super) fn tagged(wanted: impl Fn(&str) -> bool) -> io::Result<Vec<TaggedProcess>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // Processes of other users, and those that end just now, are not ours to see.
        let Ok(environ) = fs::read(format!("/proc/{pid}/environ")) else { continue };
        let value = |name: &str| {
            environ.split(|b| *b == 0).find_map(|line| {
                let text = std::str::from_utf8(line).ok()?;
                text.strip_prefix(name)?.strip_prefix('=').map(str::to_owned)
            })
        };
        let Some(owner) = value(OWNER_VARIABLE).filter(|owner| wanted(owner)) else { continue };
        let host = value(HOST_VARIABLE).filter(|host| is_host_id(host));
        if let (Some(host), Ok(started)) = (host, started(pid)) {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let agent = command.split(|b| *b == 0).nth(1) != Some(ZYGOTE_ARGUMENT.as_bytes());
            found.push(TaggedProcess { owner, host: HostId(host), pid, agent, started });
        }
    }
    Ok(found)
}

/// [`tagged`], beside.
pub(super) async fn scan(owner: &str) -> io::Result<Vec<TaggedProcess>> {
    let owner = owner.to_owned();
    beside(move || tagged(|of| of == owner)).await
}

/// One process for each host: its agent, or if that is gone the oldest of what it has left.
pub(super) fn agents_of(all: &[TaggedProcess]) -> Vec<TaggedProcess> {
    let mut agents: BTreeMap<(&str, &HostId), &TaggedProcess> = BTreeMap::new();
    for process in all {
        let known = agents.entry((&process.owner, &process.host)).or_insert(process);
        if (!process.agent, process.started) < (!known.agent, known.started) {
            *known = process;
        }
    }
    agents.into_values().cloned().collect()
}

/// Whether the process of such a handle ([`TaggedProcess::handle`]) is there.
pub(super) fn runs(handle: &str) -> bool {
    let parts = handle.split_once(':').and_then(|(pid, since)| Some((pid.parse().ok()?, since.parse().ok()?)));
    parts.is_some_and(|(pid, since): (i32, u64)| started(pid).is_ok_and(|started| started == since))
}

/// The name in an owner tag.
pub(super) fn name_of(owner: &str) -> &str {
    owner.rsplit_once('/').map_or(owner, |(name, _)| name)
}

/// The id in an owner tag.
pub(super) fn id_of(owner: &str) -> &str {
    owner.rsplit_once('/').map_or("", |(_, id)| id)
}

/// Whether it can be a host's id: directories are named after it, and anybody can write an environment.
fn is_host_id(text: &str) -> bool {
    !text.is_empty() && text.len() <= 64 && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// When a process was started, as in [`TaggedProcess::started`]; none that is a zombie.
pub(super) fn started(pid: i32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name in parentheses, and may itself hold spaces and parentheses.
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let mut fields = rest.split_whitespace();
    // After the name: state is field 3, the start time 22.
    if fields.next() == Some("Z") {
        return Err(io::ErrorKind::NotFound.into());
    }
    let started = fields.nth(18).and_then(|f| f.parse().ok());
    started.ok_or_else(|| io::Error::other("unexpected form of /proc/PID/stat"))
}

pub(super) fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two numbers and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, libc::PIDFD_NONBLOCK) };
    let fd = i32::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// SIGKILL, to this very process and not to a later one with its pid.
pub(super) fn kill(process: &TaggedProcess) -> io::Result<()> {
    let fd = match pidfd(process.pid) {
        Ok(fd) => fd,
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
        Err(error) => return Err(error),
    };
    if started(process.pid).ok() != Some(process.started) {
        return Ok(());
    }
    // SAFETY: the descriptor is open; no signal information is passed.
    let sent =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd.as_raw_fd(), libc::SIGKILL, std::ptr::null::<u8>(), 0) };
    match sent {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            error => Err(error),
        },
    }
}
