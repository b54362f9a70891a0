//! System calls of the runner that rustix lacks, and some of its calls with the arguments that the runner needs.

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use rustix::process::{Signal, WaitOptions, WaitStatus};
use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

/// The number of a process.
pub type Pid = libc::pid_t;

/// A nameless file in memory, closed on exec.
pub fn memfd(name: &CStr) -> io::Result<OwnedFd> {
    Ok(rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)?)
}

/// A pipe, (read end, write end), both closed on exec. The read end does not block.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    rustix::fs::fcntl_setfl(&read, rustix::fs::OFlags::NONBLOCK)?;
    Ok((read, write))
}

/// Sends one byte and two descriptors over a unix socket. `WouldBlock` if it is full.
pub fn send_fds(socket: BorrowedFd<'_>, fds: [BorrowedFd<'_>; 2]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other("no room for two descriptors in a message"));
    }
    sendmsg(socket, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives what [`send_fds`] sent; `None` once the other end is closed.
pub fn receive_fds(socket: BorrowedFd<'_>) -> io::Result<Option<[OwnedFd; 2]>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(these) = message {
            fds.extend(these);
        }
    }
    let fds = fds.try_into();
    fds.map(Some).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a message without its two descriptors"))
}

/// Closes every descriptor from 3 on, which whoever started this process may have left open.
pub fn close_inherited() {
    // SAFETY: called at the start of a process that has opened nothing yet.
    if unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) } == 0 {
        return;
    }
    // A kernel before 5.9. The list includes the directory's own descriptor, which is closed by then.
    let listed: Vec<RawFd> = fs::read_dir("/proc/self/fd")
        .map(|entries| entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect())
        .unwrap_or_default();
    for fd in listed.into_iter().filter(|&fd| fd > 2) {
        // SAFETY: as above.
        unsafe { libc::close(fd) };
    }
}

/// Waits until one of `fds` can be read (its end counts), for at most `timeout` milliseconds, and returns which can.
/// `None` never can. A signal ends the wait with none that can.
pub fn wait_for_input<const N: usize>(fds: [Option<BorrowedFd<'_>>; N], timeout: u64) -> io::Result<[bool; N]> {
    let mut polled: Vec<_> = fds.iter().flatten().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    if !poll(&mut polled, timeout)? {
        return Ok([false; N]);
    }
    let mut ready = polled.iter().map(|fd| !fd.revents().is_empty());
    Ok(fds.map(|fd| fd.is_some() && ready.next().unwrap_or(false)))
}

/// Waits for at most `timeout` milliseconds. False if nothing is ready, be it because of a signal.
fn poll(fds: &mut [PollFd<'_>], timeout: u64) -> io::Result<bool> {
    // 24 days are as good as forever.
    let milliseconds = i32::try_from(timeout).unwrap_or(i32::MAX);
    let timeout =
        Timespec { tv_sec: (milliseconds / 1_000).into(), tv_nsec: (milliseconds % 1_000 * 1_000_000).into() };
    match rustix::event::poll(fds, Some(&timeout)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether the other end of a stream is closed.
pub fn hung_up(stream: &UnixStream) -> bool {
    poll(&mut [PollFd::new(stream, PollFlags::RDHUP)], 0).unwrap_or(false)
}

/// A set of signals.
pub fn signal_set(signals: &[Signal]) -> libc::sigset_t {
    // SAFETY: an all-zero sigset_t is a valid value, which sigemptyset then fills.
    unsafe {
        let mut set = mem::zeroed();
        libc::sigemptyset(&mut set);
        signals.iter().for_each(|&signal| {
            libc::sigaddset(&mut set, signal.as_raw());
        });
        set
    }
}

/// Blocks exactly the signals of `set` in this thread.
pub fn block_exactly(set: &libc::sigset_t) {
    // SAFETY: `set` is a valid set. The call fails only for an unknown `how`.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, set, std::ptr::null_mut()) };
}

/// Resets the handling of all signals, which this process or whoever started it may have changed.
pub fn default_signals() {
    // All zeros is SIG_DFL, without flags, in the kernel's own structure (four words at most) on every architecture.
    let default = [0u64; 8];
    for signal in 1..=64 {
        // By a system call: the C library refuses to change the two signals that it reserves, which may be ignored too.
        // SAFETY: the structure is as large as the kernel's, and a set of signals has 8 bytes. KILL and STOP are
        // refused.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null::<u8>(), 8usize) };
    }
}

/// Signals as a descriptor for [`wait_for_input`]. The signals must be blocked.
pub struct SignalFd(OwnedFd);

impl SignalFd {
    /// Opens it for the signals of `set`.
    pub fn new(set: &libc::sigset_t) -> io::Result<Self> {
        // SAFETY: `set` is a valid set; the descriptor is ours alone.
        match unsafe { libc::signalfd(-1, set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) } {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: as above.
            fd => Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) })),
        }
    }

    /// The descriptor to wait for.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Takes the signals that have arrived. True if `signal` is one of them.
    pub fn drain(&self, signal: Signal) -> bool {
        let mut seen = false;
        let mut info = [0; mem::size_of::<libc::signalfd_siginfo>()];
        while let Ok(1..) = rustix::io::read(&self.0, &mut info) {
            // Its first field is the signal's number.
            seen |= info.first_chunk().is_some_and(|number| u32::from_ne_bytes(*number) == signal.as_raw() as u32);
        }
        seen
    }
}

/// Waits for one of the blocked signals of `set`, at most `milliseconds` (less than 1000), and takes it.
pub fn wait_signal(set: &libc::sigset_t, milliseconds: i64) {
    let time = libc::timespec { tv_sec: 0, tv_nsec: (milliseconds * 1_000_000) as _ };
    // SAFETY: valid pointers. An expired wait needs no handling.
    unsafe { libc::sigtimedwait(set, std::ptr::null_mut(), &time) };
}

/// The result of [`reap`].
pub enum Reaped {
    /// It ended.
    Ended(Pid, WaitStatus),
    /// There are children and none has ended.
    None,
    /// There are no children.
    Childless,
}

/// Takes the end of one child without waiting: of `child`, or of any if there is none given.
pub fn reap(child: Option<Pid>) -> Reaped {
    loop {
        let ended = match child.and_then(rustix::process::Pid::from_raw) {
            Some(child) => rustix::process::waitpid(Some(child), WaitOptions::NOHANG),
            None => rustix::process::wait(WaitOptions::NOHANG),
        };
        match ended {
            Ok(Some((pid, status))) => return Reaped::Ended(pid.as_raw_nonzero().get(), status),
            Ok(None) => return Reaped::None,
            Err(Errno::INTR) => {}
            Err(_) => return Reaped::Childless,
        }
    }
}

/// Sends a signal.
pub fn kill(pid: Pid, signal: Signal) -> io::Result<()> {
    let pid = rustix::process::Pid::from_raw(pid).ok_or(Errno::SRCH)?;
    Ok(rustix::process::kill_process(pid, signal)?)
}

/// One process in `/proc`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Process {
    /// Number of the process.
    pub pid: Pid,
    /// Number of its parent.
    pub parent: Pid,
    /// Number of its session.
    pub session: Pid,
    /// Whether it has ended, and its parent has not taken note of that.
    pub ended: bool,
}

/// Every process that is visible to this one.
pub fn processes() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| stat(entry.file_name().to_str()?.parse().ok()?)).collect()
}

/// All descendants of this process that have not ended, without those of `except` and itself.
pub fn descendants(except: impl Fn(&Process) -> bool) -> Vec<Process> {
    let mut children: BTreeMap<Pid, Vec<Process>> = BTreeMap::new();
    for process in processes().into_iter().filter(|process| !process.ended && !except(process)) {
        children.entry(process.parent).or_default().push(process);
    }
    // Removed, so that numbers that were reused meanwhile cannot form a circle.
    let mut found = children.remove(&(std::process::id() as Pid)).unwrap_or_default();
    let mut next = 0;
    while let Some(parent) = found.get(next).map(|process| process.pid) {
        found.extend(children.remove(&parent).unwrap_or_default());
        next += 1;
    }
    found
}

/// Sends a signal to a process that was listed before. The process may have ended since, and its number may belong to
/// another one by now, unless its parent is this process, which has not reaped it.
pub fn signal(process: &Process, signal: Signal) -> io::Result<()> {
    let own = std::process::id() as Pid;
    if process.parent == own {
        return kill(process.pid, signal);
    }
    let pid = rustix::process::Pid::from_raw(process.pid).ok_or(Errno::SRCH)?;
    let opened = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty());
    let opened = match opened {
        // A kernel before 5.3.
        Err(Errno::NOSYS) => return kill(process.pid, signal),
        opened => opened?,
    };
    // Looked at only now that the number cannot change its owner unnoticed. If its parent has ended meanwhile, this process
    // has inherited it.
    if stat(process.pid).is_none_or(|now| now.parent != process.parent && now.parent != own) {
        return Err(Errno::SRCH.into());
    }
    Ok(rustix::process::pidfd_send_signal(opened, signal)?)
}

/// A process by its number.
fn stat(pid: Pid) -> Option<Process> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may contain anything. After the last one follow state, parent, group, session, and as the 18th the number of threads.
    let after = stat.iter().rposition(|&b| b == b')')? + 1;
    let fields = std::str::from_utf8(&stat[after..]).ok()?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    // A process goes on without its first thread, whose state this is.
    let threads: u32 = fields.nth(13)?.parse().ok()?;
    Some(Process { pid, parent, session, ended: matches!(state, "Z" | "X") && threads <= 1 })
}

/// Makes this process the parent of what among its descendants loses its own.
pub fn become_subreaper() {
    let set = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    debug_assert_eq!(set, Ok(()), "Linux has had it since 3.4");
}

/// Has the kernel send `signal` to this process when its parent dies. False if the parent is no longer `parent`.
pub fn signal_on_parent_death(signal: Signal, parent: Pid) -> bool {
    let set = rustix::process::set_parent_process_death_signal(Some(signal));
    set.is_ok() && rustix::process::getppid() == rustix::process::Pid::from_raw(parent)
}
