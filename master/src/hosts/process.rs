//! Hosts that are processes on the master's machine, for trying rouse or for using one large machine.
//!
//! Each host is an agent in its own session, which outlives the master. The master's id and the host's id are in its
//! environment from the start, so the provider lists its hosts by reading `/proc`. The agent's supervisors have the
//! same owner tag. The host is gone when no process has the tag, and then no process of its builds is running.
//!
//! Under systemd, the agents are services of their own, which systemd starts for the master ([`mod@launch`]).

mod launch;
mod tagged;

pub use launch::launch;

use super::overdue::Overdue;
use super::{Death, Provider};
use crate::clock;
use crate::config::{Config, ProcessConfig};
use crate::core::event::{ListedHost, Listing, Owner, StartError, Started, Termination};
use crate::core::record::{Host, LaunchSpec};
use crate::descriptors;
use crate::files;
use crate::sync::lock;
use async_trait::async_trait;
use launch::Order;
use rouse_shared::boot::BootData;
use rouse_shared::{HostId, Timestamp, WorkerName};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;
use tagged::{
    HOST_VARIABLE, OWNER_VARIABLE, TaggedProcess, agents_of, id_of, kill, name_of, pidfd, runs, scan, tagged,
};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

/// Size at which an agent's log is moved away at the next start, bytes.
const LOG_LIMIT: u64 = 4 << 20;
/// How long supervisors may take to end what they run once their agent is gone. After that they are killed.
const LEFTOVER_PATIENCE: Duration = Duration::from_secs(60);
/// Number of bytes at the end of an agent's log that are evidence.
const CONSOLE: u64 = 8 << 10;

/// The directory of what is being removed.
const GONE: &str = ".gone";

/// The agent program of each worker.
type Agents = BTreeMap<WorkerName, PathBuf>;

/// A launch spec.
#[derive(serde::Serialize, serde::Deserialize)]
struct Spec {
    /// The agent's program.
    agent: PathBuf,
    /// The boot data that it gets at its start.
    boot: BootData,
}

/// The provider.
pub struct Processes {
    dir: PathBuf,
    owner: String,
    agents: Mutex<Agents>,
    deaths: mpsc::Sender<Death>,
    /// Hosts whose end is already being watched.
    watched: Mutex<BTreeSet<HostId>>,
    /// Hosts that have no agent but other processes, and since when.
    leftovers: Mutex<BTreeMap<HostId, Timestamp>>,
    /// Hosts that were killed and whose processes still run.
    overdue: Overdue,
    /// The socket at which systemd starts agents, if the master is to use it.
    launcher: Option<PathBuf>,
}

impl Processes {
    /// The provider. Agents work and log below `dir`, and have the owner tag `owner`.
    ///
    /// # Errors
    /// If that directory cannot be created.
    pub fn new(dir: PathBuf, owner: String, config: &Config, deaths: mpsc::Sender<Death>) -> io::Result<Self> {
        // Builds with `run_as` must be able to pass through to their own directory.
        files::make_dir(&dir, 0o711)?;
        // Whoever starts the agents may be in another directory.
        let dir = std::path::absolute(dir)?;
        let gone = dir.join(GONE);
        files::make_dir(&gone, 0o700)?;
        for left in fs::read_dir(&gone)?.filter_map(Result::ok) {
            remove_in_background(left.path());
        }
        Ok(Self {
            dir,
            owner,
            agents: Mutex::new(agents_in(config)),
            deaths,
            watched: Mutex::default(),
            leftovers: Mutex::default(),
            overdue: Overdue::default(),
            launcher: std::env::var_os(launch::SOCKET_VARIABLE).map(PathBuf::from),
        })
    }

    /// Applies the agents of a new configuration.
    pub fn configure(&self, config: &Config) {
        *lock(&self.agents) = agents_in(config);
    }

    fn log_path(&self, worker: &WorkerName) -> PathBuf {
        self.dir.join(format!("{worker}.log"))
    }

    fn host_dir(&self, host: &HostId) -> PathBuf {
        self.dir.join(host.as_str())
    }

    /// The host's agent, if it runs.
    async fn find(&self, host: &HostId) -> io::Result<Option<TaggedProcess>> {
        Ok(agents_of(&scan(&self.owner).await?).into_iter().find(|p| p.host == *host))
    }

    /// Reports the death of an agent that is not a child of this process, because an earlier master has started it.
    fn watch(&self, host: HostId, agent: &TaggedProcess) {
        if !lock(&self.watched).insert(host.clone()) {
            return;
        }
        // SAFETY: an `OwnedFd` stays open, and the same descriptor, for as long as the `AsyncFd` owns it.
        let Ok(fd) = pidfd(agent.pid).and_then(|fd| unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)) else {
            // It is already gone, or no descriptor is available. The next list checks again.
            lock(&self.watched).remove(&host);
            return;
        };
        let ending = self.ending(host);
        tokio::spawn(async move {
            // A pidfd becomes readable when its process ends.
            if fd.readable().await.is_ok() {
                ending.report_when_gone("its agent ended".to_owned()).await;
            }
        });
    }

    fn ending(&self, host: HostId) -> Ending {
        Ending { owner: self.owner.clone(), dir: self.host_dir(&host), host, deaths: self.deaths.clone() }
    }

    async fn end(&self, owner: &str, host: &HostId) -> Result<Termination, String> {
        let all = scan(owner).await.map_err(|e| format!("cannot list processes: {e}"))?;
        let ours: Vec<TaggedProcess> = all.into_iter().filter(|p| p.host == *host).collect();
        if ours.is_empty() {
            lock(&self.watched).remove(host);
            lock(&self.leftovers).remove(host);
            self.overdue.gone(host.as_str());
            let dir = self.host_dir(host);
            discard(&dir).map_err(|e| format!("cannot move {} away: {e}", dir.display()))?;
            return Ok(Termination::Gone);
        }
        for process in self.to_kill(host, &ours) {
            kill(process).map_err(|e| format!("cannot kill process {}: {e}", process.pid))?;
        }
        match self.overdue.still_there(clock::now(), host.as_str()) {
            None => Ok(Termination::Requested),
            Some(taken) => {
                let left: Vec<String> = ours.iter().map(|process| process.pid.to_string()).collect();
                let (left, taken) = (left.join(", "), taken.as_secs());
                Err(format!("its processes {left} have not ended within {taken} s; the kernel may be blocking them"))
            }
        }
    }

    /// The processes to kill: first the agent alone. Its supervisors notice that, end what they run, and exit. If they
    /// were killed as well, nobody would end the processes of a step, so they get some time.
    fn to_kill<'a>(&self, host: &HostId, ours: &'a [TaggedProcess]) -> Vec<&'a TaggedProcess> {
        let mut leftovers = lock(&self.leftovers);
        let agents: Vec<&TaggedProcess> = ours.iter().filter(|p| p.agent).collect();
        if !agents.is_empty() {
            leftovers.remove(host);
            return agents;
        }
        let now = clock::now();
        let since = *leftovers.entry(host.clone()).or_insert(now);
        if now.since(since) < LEFTOVER_PATIENCE { Vec::new() } else { ours.iter().collect() }
    }
}

impl Processes {
    fn environment(&self, host: &Host, boot: &Path, dir: &Path) -> BTreeMap<String, String> {
        let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/local/bin:/usr/bin:/bin".to_owned());
        let text = |path: &Path| path.to_string_lossy().into_owned();
        [
            ("PATH", path),
            (OWNER_VARIABLE, self.owner.clone()),
            (HOST_VARIABLE, host.id.to_string()),
            ("ROUSE_AGENT_IDENTITY", "boot-data".to_owned()),
            ("ROUSE_AGENT_BOOT_DATA", text(boot)),
            ("ROUSE_AGENT_WORK_DIR", text(&dir.join("work"))),
            ("ROUSE_AGENT_POWER_OFF", "latent".to_owned()),
            ("ROUSE_AGENT_POWER_OFF_COMMAND", String::new()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    /// Runs an agent: as a service of systemd if there is a launcher, otherwise as a child.
    async fn run(&self, host: &HostId, order: &Order) -> io::Result<Started> {
        if let Some(socket) = &self.launcher {
            let pid = launch::outside(socket, order).await?;
            let agent = TaggedProcess::agent(self.owner.clone(), host.clone(), pid);
            self.watch(host.clone(), &agent);
            return Ok(Started { handle: agent.handle(), identity: None });
        }
        let mut command = tokio::process::Command::from(order.command()?);
        // SAFETY: both calls are async-signal-safe and touch nothing of the parent's.
        unsafe {
            command.pre_exec(|| {
                descriptors::restore()?;
                if libc::setsid() == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
            });
        }
        let mut child = command.spawn()?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or(0);
        let agent = TaggedProcess::agent(self.owner.clone(), host.clone(), pid);
        lock(&self.watched).insert(host.clone());
        let ending = self.ending(host.clone());
        tokio::spawn(async move {
            let why = match child.wait().await {
                Ok(status) => format!("its agent ended ({status})"),
                Err(error) => format!("its agent could not be waited for: {error}"),
            };
            ending.report_when_gone(why).await;
        });
        Ok(Started { handle: agent.handle(), identity: None })
    }
}

/// The line in a worker's log after which this host's agent writes.
fn begin_mark(host: &HostId) -> String {
    format!("---- host {host}\n")
}

#[async_trait]
impl Provider for Processes {
    async fn prepare(
        &self,
        host: &Host,
        _number: u32,
        _resting: &BTreeSet<String>,
        mut boot: BootData,
    ) -> Result<LaunchSpec, StartError> {
        let agent = {
            let agents = lock(&self.agents);
            agents.get(&host.worker).cloned().unwrap_or_else(|| PathBuf::from("rouse-agent"))
        };
        // A process has no identity of its own, so it reports its host's id.
        let identity = Some(host.id.0.clone());
        boot.identity.clone_from(&identity);
        let image = agent.display().to_string();
        let spec = serde_json::to_string(&Spec { agent, boot });
        let spec = spec.map_err(|e| StartError::Rejected(format!("cannot serialize the order: {e}")))?;
        let alternative = String::new();
        Ok(LaunchSpec {
            number: 0,
            alternative,
            image,
            spec,
            more: false,
            fresh: false,
            identity,
            price: None,
            spot: false,
        })
    }

    async fn start(&self, host: &Host) -> Result<Started, StartError> {
        let spec = host.launch.as_ref().map_or("", |o| &o.spec);
        let Spec { agent, boot } = serde_json::from_str(spec)
            .map_err(|e| StartError::Rejected(format!("the order of host {} is not readable: {e}", host.id)))?;
        if let Some(found) = self.find(&host.id).await.map_err(|e| failed("look for a running agent", &e))? {
            self.watch(host.id.clone(), &found);
            return Ok(Started { handle: found.handle(), identity: None });
        }
        let program = locate(&agent).ok_or_else(|| {
            let path = agent.display();
            StartError::Rejected(format!("agent program {path} not found; install it or set worker.process.agent"))
        })?;
        let dir = self.host_dir(&host.id);
        let prepare = || -> io::Result<(PathBuf, PathBuf)> {
            fs::DirBuilder::new().recursive(true).mode(0o711).create(&dir)?;
            let boot_path = dir.join("boot.toml");
            let mut file = File::options().create(true).write(true).truncate(true).mode(0o600).open(&boot_path)?;
            let text = toml::to_string(&boot).map_err(io::Error::other)?;
            file.write_all(text.as_bytes())?;
            let log_path = self.log_path(&host.worker);
            if fs::metadata(&log_path).is_ok_and(|m| m.len() > LOG_LIMIT) {
                fs::rename(&log_path, log_path.with_extension("log.1"))?;
            }
            let mut log = File::options().create(true).append(true).mode(0o600).open(&log_path)?;
            // All hosts of the worker share the log. The output of this host begins here.
            log.write_all(begin_mark(&host.id).as_bytes())?;
            Ok((boot_path, log_path))
        };
        let (boot_path, log) = prepare().map_err(|e| failed(&format!("prepare {}", dir.display()), &e))?;
        let order = Order { environment: self.environment(host, &boot_path, &dir), program, dir, log };
        self.run(&host.id, &order).await.map_err(|error| failed(&format!("run {}", order.program.display()), &error))
    }

    async fn terminate(&self, host: &Host) -> Result<Termination, String> {
        self.end(&self.owner, &host.id).await
    }

    async fn list(&self) -> Result<Listing, String> {
        let name = name_of(&self.owner).to_owned();
        let all = beside(move || tagged(|owner| name_of(owner) == name)).await;
        let agents = agents_of(&all.map_err(|e| format!("cannot list processes: {e}"))?);
        let mut listed = Vec::new();
        for agent in agents {
            let owner = if agent.owner == self.owner {
                self.watch(agent.host.clone(), &agent);
                Owner::Ours
            } else {
                Owner::Foreign(id_of(&agent.owner).to_owned())
            };
            let (handle, identity) = (agent.handle(), Some(agent.host.0.clone()));
            listed.push(ListedHost { handle, host: agent.host, identity, owner, suspended: false });
        }
        Ok(Listing::from(listed))
    }

    fn expect(&self, hosts: &[&Host]) {
        for host in hosts {
            let Some(handle) = &host.handle else { continue };
            // If this master may not read the environment of its processes, for example as another user, a running one
            // is still not dead.
            if !runs(handle) {
                let ending = self.ending(host.id.clone());
                tokio::spawn(ending.report_when_gone("its agent ended while no master was there".to_owned()));
            }
        }
    }

    async fn terminate_listed(&self, listed: &ListedHost) -> Result<Termination, String> {
        let owner = match &listed.owner {
            Owner::Ours => self.owner.clone(),
            Owner::Foreign(id) => format!("{}/{id}", name_of(&self.owner)),
        };
        self.end(&owner, &listed.host).await
    }

    async fn console(&self, host: &Host) -> Option<String> {
        let path = self.log_path(&host.worker);
        let text = match end_of_file(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => return Some(format!("({} cannot be read: {error})", path.display())),
        };
        Some(match text.rsplit_once(&begin_mark(&host.id)) {
            Some((_, own)) => own.to_owned(),
            None => text,
        })
    }
}

/// The last part of a log.
fn end_of_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(io::SeekFrom::Start(length.saturating_sub(CONSOLE)))?;
    let mut bytes = Vec::new();
    file.take(CONSOLE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// An error of the system as the error of a start.
fn failed(what: &str, error: &io::Error) -> StartError {
    let text = format!("cannot {what}: {error}");
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound => StartError::Rejected(text),
        // The system or the user has no more processes.
        io::ErrorKind::StorageFull | io::ErrorKind::OutOfMemory | io::ErrorKind::WouldBlock => {
            StartError::Capacity(text)
        }
        io::ErrorKind::QuotaExceeded => StartError::Quota(text),
        _ => StartError::Transient(text),
    }
}

/// The agent programs of the workers whose hosts are processes.
fn agents_in(config: &Config) -> Agents {
    config.sections::<ProcessConfig>().map(|(worker, section)| (worker.clone(), section.agent.clone())).collect()
}

/// An agent that has ended. Reported once nothing of its host is left.
struct Ending {
    owner: String,
    host: HostId,
    /// Where the host worked.
    dir: PathBuf,
    deaths: mpsc::Sender<Death>,
}

impl Ending {
    /// Waits until no process has the host's owner tag, removes its directory and reports its death. The supervisors
    /// end within milliseconds after the agent. A host whose other processes stay is not dead, and is left to the lease
    /// and the audit.
    async fn report_when_gone(self, why: String) {
        for pause in [1_u64, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000] {
            let gone = scan(&self.owner).await.is_ok_and(|all| all.iter().all(|p| p.host != self.host));
            if gone {
                return self.report(why).await;
            }
            tokio::time::sleep(std::time::Duration::from_millis(pause)).await;
        }
        tracing::warn!("the agent of host {} has ended, but some of its processes still run", self.host);
    }

    async fn report(self, why: String) {
        if let Err(error) = discard(&self.dir) {
            tracing::warn!("cannot move {} away: {error}", self.dir.display());
        }
        // A master that ends takes no more news; the next one looks for itself.
        if self.deaths.send(Death { host: self.host.clone(), why, reclaimed: false }).await.is_err() {
            tracing::debug!("nobody was there to hear that host {} is gone", self.host);
        }
    }
}

/// Moves the directory of a host that is gone away, if it exists, and removes it in the background: what builds have
/// left there may take minutes to remove, and must not keep the host from being gone.
fn discard(dir: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else { return Ok(()) };
    let gone = parent.join(GONE).join(name);
    match fs::rename(dir, &gone) {
        Ok(()) => remove_in_background(gone),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

/// What cannot be removed is tried again when the master starts.
fn remove_in_background(dir: PathBuf) {
    let remove = move || {
        if let Err(error) = files::remove_tree(&dir) {
            tracing::warn!("cannot remove {}: {error}", dir.display());
        }
    };
    if let Err(error) = std::thread::Builder::new().spawn(remove) {
        tracing::warn!("cannot start a thread that removes what builds have left: {error}");
    }
}

/// Runs blocking work on a separate thread, so that the tasks that keep the link alive are not delayed.
async fn beside<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// The path of a program that is given as it is, in `PATH`, or beside this program.
pub fn locate(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return program.is_file().then(|| program.to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
    own.into_iter()
        .chain(std::env::split_paths(&path))
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
}

/// Kills the agents that an owner has started, whatever its ledger says. Returns the processes of it that are left:
/// supervisors take a moment to end what they run.
///
/// # Errors
/// If `/proc` cannot be read, or a process cannot be killed.
pub fn end_all(owner: &str) -> io::Result<Vec<i32>> {
    let all = tagged(|of| of == owner)?;
    for agent in all.iter().filter(|p| p.agent) {
        kill(agent)?;
    }
    Ok(all.into_iter().map(|p| p.pid).collect())
}
