//! `rouse demo`: runs a complete system on this machine, without a configuration: a master with a private broker, one
//! latent worker whose host is a process, and a real build. At the end it prints what happened when.

use crate::clock;
use crate::config::Config;
use crate::core::build::BuildState;
use crate::core::event::{Change, WorkerState};
use crate::core::record::HostState;
use crate::driver::{Control, Inherited, Master, MasterError};
use crate::files;
use crate::hosts::process;
use rouse_shared::Timestamp;
use std::fs::{self, DirBuilder};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::sync::broadcast;

/// The program that is built if the source of rouse is not available.
const CARRIED: &str = include_str!("demo/primes.sh");
/// How long the host may take to go after it has been idle.
const GOING: Duration = Duration::from_secs(60);
/// Idle time before the demo's host is shut down: long enough to be seen.
const IDLE: &str = "3s";

/// When what happened for the first time.
#[derive(Default)]
struct Timeline(Vec<(&'static str, Timestamp)>);

impl Timeline {
    fn record(&mut self, change: &Change) {
        let (what, at) = match change {
            Change::Build { state, at, .. } => {
                let what = match state {
                    BuildState::Queued | BuildState::Starting if self.0.is_empty() => "queued",
                    BuildState::Queued | BuildState::Starting => return,
                    BuildState::Running => "first step",
                    BuildState::Success | BuildState::Failure | BuildState::Cancelled | BuildState::Lost => "done",
                };
                (what, *at)
            }
            Change::Host { state, at, .. } => {
                let what = match state {
                    HostState::Ordered => "ordered",
                    HostState::Booting => "booted",
                    HostState::Ready => "attached",
                    HostState::Terminated => "gone",
                    HostState::Draining => "draining",
                    HostState::Terminating => "stopping",
                    // A process does not sleep.
                    HostState::Suspending | HostState::Suspended | HostState::Resuming => return,
                };
                (what, *at)
            }
            Change::Worker { state: WorkerState::Idle, at, .. } if self.has("first step") => ("idle", *at),
            Change::Worker { .. } => return,
        };
        if !self.has(what) {
            self.0.push((what, at));
        }
    }

    fn has(&self, what: &str) -> bool {
        self.0.iter().any(|(known, _)| *known == what)
    }

    fn print(&mut self) {
        // All events of one turn of the master have the same time, so the order of a host's life decides.
        let life =
            ["queued", "ordered", "booted", "attached", "first step", "done", "idle", "draining", "stopping", "gone"];
        self.0.sort_by_key(|(what, at)| (*at, life.iter().position(|known| known == what)));
        let Some((_, start)) = self.0.first().copied() else { return };
        eprintln!("\nwhat happened when, in seconds:");
        for (what, at) in &self.0 {
            eprintln!("  {:>9.3}  {what}", at.since(start).as_secs_f64());
        }
    }
}

/// Runs the demo; true if everything went as it should.
///
/// # Errors
/// If the machine lacks something that the demo needs.
pub fn run(source: Option<&Path>) -> Result<bool, MasterError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|e| MasterError::new("cannot start", &e))?;
    let dir = make_dir()?;
    let mut owner = None;
    let shown = runtime.block_on(show(&dir, source, &mut owner));
    // The master's loop gives a build whose host has ended to another one, which it starts on this runtime: only
    // without it is what runs now all that there will be.
    runtime.shutdown_timeout(GOING);
    let shown = owner.map_or(Ok(()), |owner| end_hosts(&owner)).and(shown);
    if let Err(error) = files::remove_tree(&dir) {
        eprintln!("rouse: {} could not be removed: {error}", dir.display());
    }
    shown
}

/// So many random bytes, in hexadecimal digits.
fn random_hex(bytes: usize) -> Result<String, MasterError> {
    let mut raw = vec![0_u8; bytes];
    getrandom::fill(&mut raw).map_err(|e| MasterError::new("cannot draw random numbers", &e))?;
    Ok(hex::encode(raw))
}

fn make_dir() -> Result<PathBuf, MasterError> {
    let name = random_hex(6)?;
    let dir = std::env::temp_dir().join(format!("rouse-demo-{name}"));
    DirBuilder::new().mode(0o711).create(&dir).map_err(|e| MasterError::new(dir.display(), &e))?;
    Ok(dir)
}

/// Runs the demo. Sets `owner` once hosts may have been started.
async fn show(dir: &Path, source: Option<&Path>, owner: &mut Option<String>) -> Result<bool, MasterError> {
    let build = write_build(dir, source)?;
    let port = free_port()?;
    let text = format!(
        "[master]\nname = \"demo\"\nstate_dir = {state:?}\nlisten = \"127.0.0.1:0\"\nread_token = false\n\
         [broker]\nlisten = [\"127.0.0.1:{port}\"]\nauth_listen = \"127.0.0.1:0\"\n\
         [[worker]]\nname = \"demo\"\npassword = {password:?}\nbuild_wait_timeout = {IDLE:?}\ngrace = {IDLE:?}\n{run_as}\
         [worker.process]\n",
        state = dir.join("state"),
        password = random_hex(16)?,
        // The agent is whoever runs the demo, and runs builds as root only if that is written.
        run_as = if rustix::process::geteuid().is_root() { "run_as = \"root\"\n" } else { "" },
    );
    let config = Config::parse(&text, Path::new("demo.toml"))
        .map_err(|errors| MasterError::from(format!("the demo's configuration is invalid: {errors}")))?;
    eprintln!("rouse: starting a master with a private broker (a few seconds)");
    let mut interrupted = std::pin::pin!(interrupt());
    let mut master = tokio::select! {
        started = Master::start(config, Inherited::default()) => started?,
        () = &mut interrupted => {
            eprintln!("rouse: interrupted");
            return Ok(false);
        }
    };
    // There is no file to read again.
    drop(master.reloads());
    *owner = Some(master.control.owner.clone());
    let changes = master.control.changes.subscribe();
    let good = tokio::select! {
        good = play(&master.control, &build, changes) => good,
        () = &mut interrupted => {
            eprintln!("rouse: interrupted; ending everything");
            Ok(false)
        }
    };
    master.stop().await;
    good
}

async fn interrupt() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        // Without them the demo still ends by itself.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// Builds as a user would, and watches until the host is gone.
async fn play(control: &Control, build: &Path, mut changes: broadcast::Receiver<Change>) -> Result<bool, MasterError> {
    let program = std::env::current_exe().map_err(|e| MasterError::new("cannot find this program", &e))?;
    let server = format!("http://{}", control.address);
    eprintln!("rouse: $ rouse build --server {server} --file {}", build.display());
    let mut child = tokio::process::Command::new(program)
        .args(["build", "--server", &server, "--file"])
        .arg(build)
        .env("ROUSE_TOKEN", &*control.token())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| MasterError::new("cannot run `rouse build`", &e))?;
    let mut timeline = Timeline::default();
    let mut status: Option<std::process::ExitStatus> = None;
    let mut deadline = None;
    let mut summarised = false;
    loop {
        let refused = status.is_some_and(|s| !s.success()) && timeline.0.is_empty();
        if refused || (status.is_some() && timeline.has("gone")) {
            break;
        }
        let late = async {
            match deadline {
                Some(at) => tokio::time::sleep(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            change = changes.recv() => match change {
                Ok(change) => timeline.record(&change),
                Err(_) => break,
            },
            ended = child.wait(), if status.is_none() => {
                status = Some(ended.map_err(|e| MasterError::new("cannot wait for `rouse build`", &e))?);
                deadline = Some(GOING);
            }
            () = late => {
                eprintln!("rouse: the host was not terminated within {} s", GOING.as_secs());
                break;
            }
        }
        // After the build's own last words, which another process says.
        if !summarised && status.is_some() && timeline.has("idle") && !timeline.has("gone") {
            eprintln!("rouse: the host is idle; after {IDLE} without work it is terminated");
            summarised = true;
        }
    }
    timeline.print();
    let good = status.is_some_and(|s| s.success()) && timeline.has("gone");
    if good {
        eprintln!("rouse: the demo succeeded; the private broker ends now and nothing is left running");
    }
    Ok(good)
}

/// Ends what the demo's hosts still run, however it came to an end.
fn end_hosts(owner: &str) -> Result<(), MasterError> {
    let began = clock::now();
    loop {
        let left = process::end_all(owner).map_err(|e| MasterError::new("cannot end the demo's hosts", &e))?;
        if left.is_empty() {
            return Ok(());
        }
        if clock::now().since(began) > GOING {
            return Err(MasterError::from(format!("processes {left:?} of the demo did not end; end them by hand")));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn free_port() -> Result<u16, MasterError> {
    let socket = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    let address = socket.and_then(|s| s.local_addr()).map_err(|e| MasterError::new("cannot find a free port", &e))?;
    Ok(address.port())
}

/// Writes the build that the demo runs: this repository's `shared` crate if it can be found, otherwise a program that
/// this one carries.
fn write_build(dir: &Path, source: Option<&Path>) -> Result<PathBuf, MasterError> {
    let repository = match source {
        Some(given) => Some(given.to_owned()),
        None => std::env::current_dir().ok().and_then(|here| find_repository(&here)),
    };
    let archive = dir.join("source.tar");
    let text = match repository.as_deref().map(|root| pack(root, &archive)) {
        Some(Ok(())) => {
            let variable = |name: &str| std::env::var(name).ok().map(|value| format!("{name} = {value:?}\n"));
            let home = std::env::var("HOME").unwrap_or_default();
            let cargo_home = std::env::var("CARGO_HOME").unwrap_or_else(|_| format!("{home}/.cargo"));
            let rustup_home = std::env::var("RUSTUP_HOME").unwrap_or_else(|_| format!("{home}/.rustup"));
            format!(
                "name = \"rouse-shared\"\nworker = \"demo\"\n[env]\n{path}CARGO_HOME = {cargo_home:?}\nRUSTUP_HOME = {rustup_home:?}\n\
                 [[step]]\nname = \"unpack\"\nrun = [\"tar\", \"-xf\", {archive:?}]\n\
                 [[step]]\nname = \"compile\"\nrun = [\"cargo\", \"build\", \"--locked\", \"-p\", \"rouse-shared\"]\n\
                 [[step]]\nname = \"test\"\nrun = [\"cargo\", \"test\", \"--locked\", \"-p\", \"rouse-shared\"]\n",
                path = variable("PATH").unwrap_or_default(),
            )
        }
        Some(Err(why)) if source.is_some() => return Err(MasterError::from(why)),
        Some(Err(_)) | None => format!(
            "name = \"primes\"\nworker = \"demo\"\n\
             [[step]]\nname = \"unpack\"\nrun = [\"sh\", \"-c\", '''cat > primes.sh <<\"END\"\n{CARRIED}END\n''']\n\
             [[step]]\nname = \"run\"\nrun = [\"sh\", \"primes.sh\", \"2000\"]\n\
             [[step]]\nname = \"test\"\nrun = [\"sh\", \"primes.sh\", \"--test\"]\n"
        ),
    };
    let path = dir.join("build.toml");
    fs::write(&path, text).map_err(|e| MasterError::new(path.display(), &e))?;
    Ok(path)
}

fn find_repository(from: &Path) -> Option<PathBuf> {
    from.ancestors()
        .find(|dir| dir.join(".git").exists() && dir.join("shared/src/message.rs").exists())
        .map(Path::to_owned)
}

fn pack(root: &Path, archive: &Path) -> Result<(), String> {
    let output = std::process::Command::new("git")
        .arg("-C")
        .arg(root)
        .args(["archive", "--format=tar", "-o"])
        .arg(archive)
        .arg("HEAD")
        .output()
        .map_err(|error| format!("cannot run git: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(format!("cannot pack the source in {}: {why}", root.display()))
}
