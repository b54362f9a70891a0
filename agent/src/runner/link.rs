//! The agent's side of the zygote and the supervisors.

use super::wire::{Frame, KILL, SEEN, STOP, StepJob};
use super::{Job, StepEvent, Update, cgroup, supervisor, sys, zygote};
use crate::clock;
use crate::core::Level;
use crate::diagnostics::log;
use crate::mutex;
use rouse_shared::message::StepState;
use rouse_shared::{AttemptId, codec};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};

/// Pause between attempts to start a zygote while the system lacks the resources.
const RETRY: Duration = Duration::from_secs(1);

/// How long orphaned supervisors may take to kill their steps after their zygote has died.
const ORPHANS: Duration = Duration::from_secs(10);

/// What is to become of a step. It only ever grows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Desired {
    Run,
    Stop,
    Kill,
}

/// What has become of the processes of a zygote.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Remains {
    /// It lives, or what it has started is still being killed.
    Unknown,
    /// It has died, and nothing that it had started is left.
    Nothing,
    /// It has died, and something that it had started cannot be ended.
    Something,
}

/// A zygote that is alive, or has just died.
pub(super) struct Link {
    control: UnixStream,
    remains: watch::Receiver<Remains>,
}

/// What a zygote is started with.
pub(super) struct Start {
    pub program: PathBuf,
    pub lock_file: PathBuf,
    /// The cgroup for those of steps.
    pub cgroups: Option<PathBuf>,
    /// The file of the deadline.
    pub deadline: OwnedFd,
}

/// The living zygotes of this process. Each leads a session, to which its supervisors belong.
static ZYGOTES: Mutex<BTreeSet<sys::Pid>> = Mutex::new(BTreeSet::new());

struct Started {
    child: Child,
    link: Arc<Link>,
    remains: watch::Sender<Remains>,
}

fn start(with: &Start) -> io::Result<Started> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let control = UnixStream::from_std(ours)?;
    // Held during the start, so that `kill_leftovers` meets no zygote that is not listed.
    let mut zygotes = mutex::lock(&ZYGOTES);
    let child = zygote::spawn(&with.program, &with.lock_file, with.cgroups.as_deref(), theirs.into(), &with.deadline)?;
    zygotes.insert(child.id() as sys::Pid);
    let (remains, receiver) = watch::channel(Remains::Unknown);
    Ok(Started { child, link: Arc::new(Link { control, remains: receiver }), remains })
}

/// Starts a zygote, and another one whenever it dies. The watch holds `None` while the leftovers of a dead one are
/// killed.
pub(super) fn keep(with: Start) -> io::Result<watch::Receiver<Option<Arc<Link>>>> {
    let mut started = start(&with)?;
    let (sender, receiver) = watch::channel(Some(started.link.clone()));
    tokio::spawn(async move {
        loop {
            let Started { child, link, remains } = started;
            tokio::select! {
                () = closed(&link.control) => {}
                // The runner and its steps are gone. The zygote ends when its stream does.
                () = sender.closed() => return,
            }
            sender.send_replace(None);
            log(Level::Error, "the process that starts steps was killed: its steps are lost, and it is started again");
            let cgroups = with.cgroups.clone();
            let reaped = tokio::task::spawn_blocking(move || reap_zygote(child, cgroups.as_deref())).await;
            // Fails only if the runtime is shutting down.
            let clean = reaped.unwrap_or(true);
            remains.send_replace(if clean { Remains::Nothing } else { Remains::Something });
            started = loop {
                match start(&with) {
                    Ok(started) => break started,
                    Err(error) => {
                        let text = format!("the process that starts steps cannot be started: {error}; retrying");
                        log(Level::Error, &text);
                        tokio::time::sleep(RETRY).await;
                    }
                }
            };
            sender.send_replace(Some(started.link.clone()));
        }
    });
    Ok(receiver)
}

/// Waits for the end of a stream that nobody writes to.
async fn closed(stream: &UnixStream) {
    loop {
        if stream.readable().await.is_err() {
            return;
        }
        match stream.try_read(&mut [0]) {
            Ok(1..) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(0) | Err(_) => return,
        }
    }
}

/// Kills a zygote and everything that it has started, and waits for the end of all of it. False if something is left.
fn reap_zygote(mut zygote: Child, cgroups: Option<&Path>) -> bool {
    // It may have closed its stream without having exited.
    let _ = zygote.kill();
    let _ = zygote.wait();
    let session = zygote.id() as sys::Pid;
    mutex::lock(&ZYGOTES).remove(&session);
    let end = clock::now() + ORPHANS;
    while kill_leftovers(session, clock::now() >= end) {
        if clock::now() >= end + supervisor::PATIENCE {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    // All of them are of the dead zygote: there is no other before this returns.
    cgroups.is_none_or(|base| cgroup::end_steps(base, supervisor::PATIENCE))
}

/// Kills the processes that this one has inherited from a dead zygote and dead supervisors. True if some are left.
///
/// A process of a step is never in this process's session. What this process has started itself is in it, except for
/// zygotes. Supervisors are in the session of the dead zygote. They notice its death, and may end by themselves unless
/// `impatient`.
fn kill_leftovers(dead: sys::Pid, impatient: bool) -> bool {
    let own = std::process::id() as sys::Pid;
    let processes = sys::processes();
    // Not from getsid(2): in a container that was entered from outside it returns 0, which rustix takes for impossible.
    let Some(own_session) = processes.iter().find(|process| process.pid == own).map(|process| process.session) else {
        // Without this, it is unknown whom the other processes belong to.
        return false;
    };
    let zygotes = mutex::lock(&ZYGOTES);
    let mut left = false;
    for process in processes {
        let foreign = process.parent == own && process.session != own_session && !zygotes.contains(&process.session);
        if !foreign {
            continue;
        }
        let is_supervisor = process.session == dead;
        // Another user's processes may not be killed, and are not waited for.
        let refused = (!is_supervisor || impatient) && sys::kill(process.pid, Signal::KILL).is_err();
        left |= !refused;
        sys::reap(Some(process.pid));
    }
    left
}

/// Runs a step and returns its end.
pub(super) async fn run(
    job: Job,
    mut links: watch::Receiver<Option<Arc<Link>>>,
    mut desired: watch::Receiver<Desired>,
    updates: &mpsc::Sender<Update>,
) -> StepEvent {
    let ended = StepEvent::ended;
    let link = tokio::select! {
        link = links.wait_for(Option::is_some) => link.ok().and_then(|link| link.clone()),
        _ = desired.wait_for(|&wish| wish > Desired::Run) => return ended(StepState::Stopped, 0, Duration::ZERO),
    };
    // There is always another zygote until the runtime shuts down.
    let Some(link) = link else {
        return ended(StepState::NotStarted("the agent is exiting".to_owned()), 0, Duration::ZERO);
    };

    let began = clock::now();
    let spool = job.spool.clone();
    let (attempt, step) = (job.attempt, job.step);
    let stream = match hand_over(job, &link).await {
        Ok(stream) => stream,
        Err(error) => {
            let reason = format!("the step's supervisor cannot be started: {error}");
            return ended(StepState::NotStarted(reason), 0, Duration::ZERO);
        }
    };
    let reporter = Reporter { updates, attempt, step };
    let end = tokio::select! {
        end = listen(&stream, reporter) => end,
        never = forward(&stream, desired) => match never {},
        // Nobody receives updates any more. The supervisor notices the end of its stream.
        () = updates.closed() => return ended(StepState::Stopped, 0, clock::now().since(began)),
    };
    let lost = |reason: String, unclean| {
        // The supervisor's own count is lost with it, so the length of the file counts.
        let log_length = std::fs::metadata(&spool).map_or(0, |data| data.len());
        let (state, took) = (StepState::Lost(reason), clock::now().since(began));
        StepEvent::Ended { state, log_length, log_cut: 0, took, usage: None, unclean }
    };
    match end {
        Some(Frame::Ended { state, log_length, log_cut, took_ms, usage, unclean }) => {
            let took = Duration::from_millis(took_ms);
            StepEvent::Ended { state, log_length, log_cut, took, usage, unclean }
        }
        Some(Frame::Lost { why, unclean }) => lost(why, unclean),
        // Neither supervisor nor zygote has reported the end: both were killed.
        Some(Frame::Started | Frame::Output { .. }) | None => {
            // Closed first, so that a supervisor that is still alive ends.
            drop(stream);
            let mut remains = link.remains.clone();
            let known = remains.wait_for(|&remains| remains != Remains::Unknown);
            // The timeout is reached only if a supervisor has sent nonsense.
            let known = tokio::time::timeout(ORPHANS + 2 * supervisor::PATIENCE + RETRY, known).await;
            let something = known.is_ok_and(|known| known.is_ok_and(|remains| *remains == Remains::Something));
            let left = if something { ", and some of its processes cannot be ended" } else { "" };
            let why = format!("its supervisor and the process that starts steps were killed{left}");
            lost(why, something)
        }
    }
}

/// Sends the updates of one step.
struct Reporter<'a> {
    updates: &'a mpsc::Sender<Update>,
    attempt: AttemptId,
    step: u32,
}

impl Reporter<'_> {
    async fn report(&self, event: StepEvent) {
        // If nobody receives updates any more, `run` ends by itself.
        let _ = self.updates.send(Update { attempt: self.attempt, step: self.step, event }).await;
    }
}

/// Sends a job to the zygote. Returns our end of the stream to its supervisor.
async fn hand_over(job: Job, link: &Link) -> io::Result<UnixStream> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let ours = UnixStream::from_std(ours)?;
    let mut description = File::from(sys::memfd(c"rouse-step")?);
    description.write_all(&codec::encode(&StepJob::new(job)))?;
    let fds = [theirs.as_fd(), description.as_fd()];
    link.control.async_io(Interest::WRITABLE, || sys::send_fds(link.control.as_fd(), fds)).await?;
    Ok(ours)
}

/// Reports what the supervisor sends, and returns its last frame; `None` if the stream ends before that.
async fn listen(stream: &UnixStream, reporter: Reporter<'_>) -> Option<Frame> {
    let mut bytes = Vec::new();
    loop {
        while let Some(frame) = Frame::take(&mut bytes).ok()? {
            match frame {
                Frame::Started => reporter.report(StepEvent::Started).await,
                Frame::Output { length } => {
                    reporter.report(StepEvent::Output { length }).await;
                    send_byte(stream, SEEN).await;
                }
                end @ (Frame::Ended { .. } | Frame::Lost { .. }) => return Some(end),
            }
        }
        stream.readable().await.ok()?;
        match stream.try_read_buf(&mut bytes) {
            Ok(1..) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(0) | Err(_) => return None,
        }
    }
}

/// Sends one byte to the supervisor. If nobody reads it any more, `listen` notices the end of the stream.
async fn send_byte(stream: &UnixStream, byte: u8) {
    while stream.writable().await.is_ok() {
        match stream.try_write(&[byte]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(_) | Err(_) => return,
        }
    }
}

/// Sends the supervisor what is to become of the step.
async fn forward(stream: &UnixStream, mut desired: watch::Receiver<Desired>) -> std::convert::Infallible {
    loop {
        let wish = *desired.borrow_and_update();
        let byte = match wish {
            Desired::Run => None,
            Desired::Stop => Some(STOP),
            Desired::Kill => Some(KILL),
        };
        if let Some(byte) = byte {
            send_byte(stream, byte).await;
        }
        if desired.changed().await.is_err() {
            // Nobody can change it any more.
            std::future::pending::<()>().await;
        }
    }
}
