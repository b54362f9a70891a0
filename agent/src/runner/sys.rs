//! The system calls of the runner, each behind a safe function.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

/// The number of a process.
pub type Pid = libc::pid_t;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A nameless file in memory, closed on exec.
pub fn memfd(name: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: `name` ends with a NUL; the descriptor that comes back is ours alone.
    unsafe { check(libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC)).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

/// A pipe, (read end, write end), both closed on exec. The read end does not block.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: `fds` has room for the two; both are ours alone.
    let (read, write) = unsafe {
        check(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC))?;
        (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1]))
    };
    // SAFETY: plain flag of a descriptor of ours.
    unsafe { check(libc::fcntl(read.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK))? };
    Ok((read, write))
}

/// Makes a pipe hold `size` bytes where the system allows it.
pub fn widen_pipe(fd: &OwnedFd, size: libc::c_int) {
    // A refusal (the user's quota of pipe pages) only costs speed.
    // SAFETY: plain parameter of a descriptor of ours.
    unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETPIPE_SZ, size) };
}

/// Room for the control message that carries two descriptors.
#[repr(align(8))]
struct Control([u8; 64]);

const FDS: usize = 2 * mem::size_of::<RawFd>();

/// Sends one byte and two descriptors over a unix socket. `WouldBlock` where it is full.
pub fn send_fds(socket: BorrowedFd<'_>, fds: [RawFd; 2]) -> io::Result<()> {
    let mut byte = 0u8;
    let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let mut control = Control([0; 64]);
    // SAFETY: the message's pointers are to the locals above, which outlive the call; CMSG_SPACE of two descriptors is
    // less than the room that there is.
    unsafe {
        let mut message: libc::msghdr = mem::zeroed();
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(FDS as u32) as _;
        let header = libc::CMSG_FIRSTHDR(&message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(FDS as u32) as _;
        std::ptr::copy_nonoverlapping(fds.as_ptr().cast::<u8>(), libc::CMSG_DATA(header), FDS);
        match libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL) {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

/// What [`send_fds`] sent; nothing once the other end is closed.
pub fn receive_fds(socket: BorrowedFd<'_>) -> io::Result<Option<[OwnedFd; 2]>> {
    let mut byte = 0u8;
    let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let mut control = Control([0; 64]);
    // SAFETY: as in `send_fds`; the descriptors that arrive are ours alone.
    unsafe {
        let mut message: libc::msghdr = mem::zeroed();
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(FDS as u32) as _;
        match libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC) {
            -1 => return Err(io::Error::last_os_error()),
            0 => return Ok(None),
            _ => {}
        }
        let header = libc::CMSG_FIRSTHDR(&message);
        if header.is_null() || (*header).cmsg_len as usize != libc::CMSG_LEN(FDS as u32) as usize {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message without its descriptors"));
        }
        let mut fds = [0 as RawFd; 2];
        std::ptr::copy_nonoverlapping(libc::CMSG_DATA(header), fds.as_mut_ptr().cast::<u8>(), FDS);
        Ok(Some(fds.map(|fd| OwnedFd::from_raw_fd(fd))))
    }
}

/// Closes every descriptor from 3 on: what whoever started us forgot to close.
pub fn close_inherited() {
    // SAFETY: called first thing in a process that has opened nothing yet.
    if unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) } == 0 {
        return;
    }
    // A kernel before 5.9. The directory's own descriptor is in the list and closed already when its turn comes.
    let listed: Vec<RawFd> = fs::read_dir("/proc/self/fd")
        .map(|entries| entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect())
        .unwrap_or_default();
    for fd in listed.into_iter().filter(|&fd| fd > 2) {
        // SAFETY: as above.
        unsafe { libc::close(fd) };
    }
}

/// Waits until one of `fds` is ready, at most `timeout` milliseconds. A signal counts as a wake-up with nothing ready.
pub fn poll(fds: &mut [libc::pollfd], timeout: u64) -> io::Result<()> {
    let timeout = libc::c_int::try_from(timeout).unwrap_or(libc::c_int::MAX);
    // SAFETY: the pointer and the length are of one slice.
    match check(unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout) }) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {
            fds.iter_mut().for_each(|fd| fd.revents = 0);
            Ok(())
        }
        other => other.map(|_| ()),
    }
}

/// An entry for [`poll`] that waits for input.
pub fn input(fd: RawFd) -> libc::pollfd {
    libc::pollfd { fd, events: libc::POLLIN, revents: 0 }
}

/// Whether the other end of a stream is closed.
pub fn hung_up(stream: &UnixStream) -> bool {
    let mut fds = [libc::pollfd { fd: stream.as_raw_fd(), events: libc::POLLRDHUP, revents: 0 }];
    poll(&mut fds, 0).is_ok() && fds[0].revents != 0
}

/// A set of signals.
pub fn signal_set(signals: &[libc::c_int]) -> libc::sigset_t {
    // SAFETY: an all-zero sigset_t is a valid value, which sigemptyset then fills.
    unsafe {
        let mut set = mem::zeroed();
        libc::sigemptyset(&mut set);
        signals.iter().for_each(|&signal| {
            libc::sigaddset(&mut set, signal);
        });
        set
    }
}

/// Blocks exactly the signals of `set` in this thread.
pub fn block_exactly(set: &libc::sigset_t) {
    // SAFETY: `set` is a valid set. The call fails only for an unknown `how`.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, set, std::ptr::null_mut()) };
}

/// Takes back what this process, or whoever started it, has said about signals.
pub fn default_signals() {
    // All zeros is SIG_DFL, without flags, in the kernel's own structure (four words at most) on every architecture.
    let default = [0u64; 8];
    for signal in 1..=64 {
        // By the kernel's number: the C library refuses to touch the two signals that it keeps for itself, and these
        // may be ignored like any other.
        // SAFETY: the structure is as large as the kernel's, and a set of signals has 8 bytes. KILL and STOP are refused.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null::<u8>(), 8usize) };
    }
}

/// Signals as something that [`poll`] can wait for. The signals must be blocked.
pub struct SignalFd(OwnedFd);

impl SignalFd {
    /// Opens it for the signals of `set`.
    pub fn new(set: &libc::sigset_t) -> io::Result<Self> {
        // SAFETY: `set` is a valid set; the descriptor is ours alone.
        unsafe {
            check(libc::signalfd(-1, set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))
                .map(|fd| Self(OwnedFd::from_raw_fd(fd)))
        }
    }

    /// The descriptor to poll.
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Takes what has arrived; whether `signal` was among it.
    pub fn drain(&self, signal: libc::c_int) -> bool {
        let mut seen = false;
        loop {
            // SAFETY: signalfd_siginfo is plain data, and the length is its own.
            let (read, info) = unsafe {
                let mut info: libc::signalfd_siginfo = mem::zeroed();
                let size = mem::size_of_val(&info);
                (libc::read(self.0.as_raw_fd(), (&raw mut info).cast(), size), info)
            };
            if read <= 0 {
                return seen;
            }
            seen |= info.ssi_signo == signal as u32;
        }
    }
}

/// Waits for one of the blocked signals of `set`, at most `milliseconds` (less than 1000), and takes it.
pub fn wait_signal(set: &libc::sigset_t, milliseconds: i64) {
    let time = libc::timespec { tv_sec: 0, tv_nsec: (milliseconds * 1_000_000) as _ };
    // SAFETY: valid pointers; an expired wait is no error to us.
    unsafe { libc::sigtimedwait(set, std::ptr::null_mut(), &time) };
}

/// What became of a child.
pub enum Reaped {
    /// It ended, with this status of `waitpid`.
    Ended(Pid, libc::c_int),
    /// There are children and none has ended.
    None,
    /// There are no children.
    Childless,
}

/// Takes the end of one child, or of the child `pid` where it is positive, without waiting. -1: of any child.
pub fn reap(pid: Pid) -> Reaped {
    let mut status = 0;
    loop {
        // SAFETY: the pointer is to a local.
        match unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) } {
            0 => return Reaped::None,
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            -1 => return Reaped::Childless,
            pid => return Reaped::Ended(pid, status),
        }
    }
}

/// Sends a signal.
pub fn kill(pid: Pid, signal: libc::c_int) -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::kill(pid, signal) }).map(|_| ())
}

/// One process, as `/proc` has it.
pub struct Process {
    /// Its number.
    pub pid: Pid,
    /// Its parent's.
    pub parent: Pid,
    /// Its session's.
    pub session: Pid,
}

/// Every process that this one may see.
pub fn processes() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read(entry.path().join("stat")).ok()?;
            // The name in parentheses may hold anything, so count from the last one: state, parent, group, session.
            let after = stat.iter().rposition(|&b| b == b')')? + 1;
            let fields = std::str::from_utf8(&stat[after..]).ok()?;
            let mut fields = fields.split_ascii_whitespace().skip(1);
            let parent = fields.next()?.parse().ok()?;
            let session = fields.nth(1)?.parse().ok()?;
            Some(Process { pid, parent, session })
        })
        .collect()
}

/// The children of this process, which must have one thread. A child may be missing while its siblings come and go, so
/// only [`Reaped::Childless`] proves that there is none.
pub fn children() -> Vec<Pid> {
    match fs::read_to_string("/proc/thread-self/children") {
        Ok(list) => list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect(),
        // A kernel without this list.
        Err(_) => {
            let own = std::process::id() as Pid;
            processes().into_iter().filter(|p| p.parent == own).map(|p| p.pid).collect()
        }
    }
}

/// All that descends from this process.
pub fn descendants() -> Vec<Pid> {
    let mut children: BTreeMap<Pid, Vec<Pid>> = BTreeMap::new();
    for process in processes() {
        children.entry(process.parent).or_default().push(process.pid);
    }
    let mut found = vec![std::process::id() as Pid];
    let mut next = 0;
    while let Some(parent) = found.get(next) {
        // Taken out, so that numbers that changed hands while we read cannot lead in a circle.
        found.extend(children.remove(parent).unwrap_or_default());
        next += 1;
    }
    found.split_off(1)
}

/// Makes this process the one that orphans among its descendants come to.
pub fn become_subreaper() {
    // SAFETY: no memory is involved. Linux has had it since 3.4.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
}

/// What `ps` shows this process as; at most 15 bytes.
pub fn set_name(name: &CStr) {
    // SAFETY: `name` ends with a NUL.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
}

/// Has this process sent `signal` when its parent dies. False where the parent is not `parent` any more.
pub fn signal_on_parent_death(signal: libc::c_int, parent: Pid) -> bool {
    // SAFETY: no memory is involved.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, signal, 0, 0, 0);
        libc::getppid() == parent
    }
}
