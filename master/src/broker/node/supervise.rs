//! Keeps epmd and the broker running until they are to stop.

use super::super::limits::{NODE_READY, NODE_RESTART, NODE_SETTLED, NODE_STOP};
use super::super::rate_limiter::CloseRequest;
use super::config::{Prepared, Unsettled};
use super::process::{self, Programs};
use super::{NodeError, NodeState, unusable};
use crate::clock;
use rouse_shared::error::Chain;
use rouse_shared::names::BUILDS;
use std::time::Duration;
use tokio::net::UnixDatagram;
use tokio::process::Child;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tracing::{error, info, warn};

/// For RabbitMQ's command that closes connections. It takes 1 to 3 s, and 28 s were seen on a busy machine.
const CLOSING: Duration = Duration::from_secs(60);

/// For epmd to listen: it is a small program.
const EPMD_READY: Duration = Duration::from_secs(10);

/// How the first boot came out; if it began with no data because those that were there had to be set aside, what is to
/// be settled.
type FirstBoot = Result<Option<Unsettled>, NodeError>;

struct Running {
    epmd: Child,
    epmd_port: u16,
    broker: Child,
}

/// What is asked of the supervisor.
pub struct Asked {
    /// To end the broker.
    pub stopped: oneshot::Receiver<()>,
    /// To close the connections of workers.
    pub to_close: mpsc::Receiver<CloseRequest>,
}

/// Supervises on this thread, until `stopped` fires or its sender is dropped. The result of the first boot goes to
/// `first`; if that failed nothing is tried again.
pub fn run(
    node: &Prepared,
    programs: &Programs,
    asked: Asked,
    report: &watch::Sender<NodeState>,
    first: oneshot::Sender<FirstBoot>,
) {
    // On this very thread: children die with the thread that started them.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(source) => {
            send_first(first, Err(NodeError::Spawn { program: "the supervisor of the private broker".into(), source }));
            return;
        }
    };
    process::check_descriptors();
    runtime.block_on(supervise(node, programs, asked, report, first));
    report.send_replace(NodeState::Stopped);
}

/// The starter may have given up; then the stop signal follows at once.
fn send_first(first: oneshot::Sender<FirstBoot>, result: FirstBoot) {
    if first.send(result).is_err() {
        info!("nobody waits for the private broker any more");
    }
}

async fn supervise(
    node: &Prepared,
    programs: &Programs,
    Asked { mut stopped, mut to_close }: Asked,
    report: &watch::Sender<NodeState>,
    first: oneshot::Sender<FirstBoot>,
) {
    let mut first = Some(first);
    let mut first_failed = false;
    let mut begun_anew = None;
    let mut set_aside = false;
    let mut pause = NODE_RESTART.0;
    loop {
        report.send_replace(NodeState::Starting);
        let booted = tokio::select! {
            booted = boot(node, programs) => booted,
            // Children that were started meanwhile are killed as they are dropped.
            _ = &mut stopped => return,
        };
        let why = match booted {
            Ok(mut running) => {
                let pid = running.broker.id().unwrap_or_default();
                info!(pid, "the private broker is ready");
                report.send_replace(NodeState::Ready { pid });
                if let Some(first) = first.take() {
                    send_first(first, Ok(begun_anew.take()));
                }
                tokio::select! {
                    why = watch_over(&mut running, node, programs, &mut pause, &mut to_close) => {
                        // At once: its port may be anybody's now.
                        report.send_replace(NodeState::Down(why.clone()));
                        end(running).await;
                        why
                    }
                    _ = &mut stopped => {
                        end(running).await;
                        return;
                    }
                }
            }
            Err(NodeError::OldData { .. }) if !set_aside => {
                set_aside = true;
                match begin_anew(node, first.is_some()) {
                    Ok(unsettled) => {
                        begun_anew = unsettled;
                        continue;
                    }
                    Err(error) => {
                        if let Some(first) = first.take() {
                            send_first(first, Err(error));
                            return;
                        }
                        Chain(&error).to_string()
                    }
                }
            }
            // A connection of somebody's may have got one of its ports before it did.
            Err(error) if first.is_some() && !first_failed => {
                first_failed = true;
                warn!("{}; retrying once", Chain(&error));
                continue;
            }
            Err(error) => {
                if let Some(first) = first.take() {
                    send_first(first, Err(error));
                    return;
                }
                Chain(&error).to_string()
            }
        };
        error!(why, pause_ms = pause.as_millis() as u64, "the private broker is down and will be started again");
        report.send_replace(NodeState::Down(why));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = &mut stopped => return,
        }
        pause = (pause * 2).min(NODE_RESTART.1);
    }
}

/// Sets data aside that the installed version cannot use. Whoever waits for the first boot settles the new ones; later
/// they count as settled, because they may soon hold what was accepted.
fn begin_anew(node: &Prepared, at_first_boot: bool) -> Result<Option<Unsettled>, NodeError> {
    let aside = node.set_aside()?;
    warn!(
        "RabbitMQ does not start on the data that an earlier version has left, because that version had not enabled the \
         feature flags that this one requires: they were moved to {}, and the broker begins with none. Builds that other \
         programs had put into the queue {BUILDS}, and that the master had not taken yet, are there; all else is in the \
         ledger",
        aside.display()
    );
    if at_first_boot { node.unsettle().map(Some) } else { Ok(None) }
}

/// Returns why the broker has ended.
async fn watch_over(
    running: &mut Running,
    node: &Prepared,
    programs: &Programs,
    pause: &mut Duration,
    to_close: &mut mpsc::Receiver<CloseRequest>,
) -> String {
    let settled = tokio::time::sleep(NODE_SETTLED);
    tokio::pin!(settled);
    // One after another: each starts an Erlang of its own.
    let mut closing = JoinSet::new();
    loop {
        tokio::select! {
            ended = running.broker.wait() => return how_it_ended(ended),
            _ = running.epmd.wait() => {
                // The broker goes on without it, but would soon start an epmd that nobody ends.
                warn!("the private broker's epmd ended; starting another");
                match programs.spawn_epmd(node, running.epmd_port) {
                    Ok(epmd) => running.epmd = epmd,
                    Err(error) => return Chain(&error).to_string(),
                }
                // An epmd that dies at once must not make this loop spin.
                tokio::time::sleep(NODE_RESTART.0).await;
            }
            Some(request) = to_close.recv(), if closing.is_empty() => {
                let CloseRequest { worker, closed } = request;
                match programs.spawn_close(node, running.epmd_port, &worker) {
                    Ok(child) => {
                        closing.spawn(async move {
                            (worker, closed, tokio::time::timeout(CLOSING, child.wait_with_output()).await)
                        });
                    }
                    Err(error) => warn!("the connections of {worker} cannot be closed: {}", Chain(&error)),
                }
            }
            Some(Ok((worker, closed, result))) = closing.join_next() => match result {
                Ok(Ok(output)) if output.status.success() => {
                    info!("the connections of {worker} are closed");
                    // The limiter waits for one closing of a worker at a time, and for none once it was dropped.
                    closed.send(clock::now()).ok();
                }
                Ok(Ok(output)) => {
                    let output = String::from_utf8_lossy(&output.stderr);
                    warn!("the connections of {worker} cannot be closed: {}", output.trim());
                }
                Ok(Err(error)) => warn!("the connections of {worker} cannot be closed: {error}"),
                Err(_elapsed) => warn!("the connections of {worker} were not closed within {} s", CLOSING.as_secs()),
            },
            () = &mut settled, if *pause != NODE_RESTART.0 => *pause = NODE_RESTART.0,
        }
    }
}

async fn boot(node: &Prepared, programs: &Programs) -> Result<Running, NodeError> {
    let epmd_port = process::free_port()?;
    let mut epmd = programs.spawn_epmd(node, epmd_port)?;
    wait_for_epmd(&mut epmd, epmd_port).await?;
    let dist_port = process::free_port()?;
    let notify = node.path("notify.sock");
    match std::fs::remove_file(&notify) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(unusable(&notify)(error)),
    }
    let socket = UnixDatagram::bind(&notify).map_err(unusable(&notify))?;
    let mut broker = programs.spawn_broker(node, epmd_port, dist_port, &notify)?;
    tokio::select! {
        ready = is_ready(&socket) => ready.map_err(unusable(&notify))?,
        ended = broker.wait() => {
            let output = process::console_tail(node);
            if process::refuses_data(node) {
                return Err(NodeError::OldData { output });
            }
            return Err(NodeError::Ended { how: how_it_ended(ended), output });
        }
        () = tokio::time::sleep(NODE_READY) => {
            return Err(NodeError::NotReady { output: process::console_tail(node) });
        }
    }
    Ok(Running { epmd, epmd_port, broker })
}

async fn wait_for_epmd(epmd: &mut Child, port: u16) -> Result<(), NodeError> {
    let listening = async {
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = listening => Ok(()),
        ended = epmd.wait() => Err(NodeError::Ended { how: format!("epmd: {}", how_it_ended(ended)), output: "nothing".to_owned() }),
        () = tokio::time::sleep(EPMD_READY) => Err(NodeError::NotReady { output: "nothing: epmd does not listen".to_owned() }),
    }
}

async fn is_ready(socket: &UnixDatagram) -> std::io::Result<()> {
    let mut buffer = [0u8; 4_096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if buffer[..length].split(|&byte| byte == b'\n').any(|line| line == b"READY=1") {
            return Ok(());
        }
    }
}

/// SIGTERM to the broker and SIGKILL after a while; epmd keeps nothing and is killed.
async fn end(mut running: Running) {
    if let Some(pid) = running.broker.id().and_then(|pid| libc::pid_t::try_from(pid).ok()) {
        // SAFETY: the pid is a child of ours that has not been waited for, so it is nobody else's.
        unsafe { libc::kill(pid, libc::SIGTERM) };
    }
    let ended = tokio::time::timeout(NODE_STOP, running.broker.wait()).await;
    if ended.is_err() {
        warn!("the private broker did not end after SIGTERM; killing it");
    }
    for child in [&mut running.broker, &mut running.epmd] {
        if let Err(error) = child.kill().await {
            warn!(%error, "cannot kill a process of the private broker");
        }
    }
}

fn how_it_ended(ended: std::io::Result<std::process::ExitStatus>) -> String {
    match ended {
        Ok(status) => status.to_string(),
        Err(error) => format!("cannot be waited for: {error}"),
    }
}

#[cfg(test)]
#[path = "supervise_tests.rs"]
mod tests;
