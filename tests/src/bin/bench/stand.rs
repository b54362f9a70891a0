//! The system that is measured: a master with its private broker in its own directory, and agents.

use crate::http::{Client, gauge};
use crate::time::Watch;
use serde_json::Value;
use std::fs;
use std::io::{Error, Result};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;

/// For anything to happen at all.
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const PASSWORD: &str = "bench";
/// Workers of one load agent: each takes two descriptors, and a process has 20,000 on common machines.
pub const PER_PROCESS: usize = 2_500;
/// How often something is looked at that is waited for.
const LOOK: Duration = Duration::from_millis(2);

/// The programs that are measured.
pub struct Programs {
    pub rouse: PathBuf,
    pub agent: PathBuf,
    pub load_agent: PathBuf,
}

/// A master and its broker.
pub struct Stand {
    pub programs: Programs,
    dir: TempDir,
    /// Of the agents: in memory if that is possible, since their disks are not the master's.
    work: TempDir,
    address: SocketAddr,
    amqp: u16,
    master: Option<Child>,
}

/// A change that the master has published.
pub struct Change {
    pub at: Watch,
    pub kind: String,
    pub data: Value,
}

/// Ends with this process, however that ends.
pub fn spawn(command: &mut Command) -> Result<Child> {
    // SAFETY: prctl is safe to call between fork and exec.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(Error::last_os_error()),
        });
    }
    command.kill_on_drop(true).spawn()
}

/// Waits for the end of a process after a signal.
pub async fn end(child: &mut Child, signal: i32) -> Result<()> {
    if let Some(pid) = child.id() {
        // SAFETY: the process is ours and not yet waited for.
        unsafe { libc::kill(pid.cast_signed(), signal) };
    }
    child.wait().await.map(drop)
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

impl Stand {
    /// Writes the configuration and starts the master. `most` is the number of workers that a load agent may have.
    pub async fn start(programs: Programs, most: usize) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("rouse-bench-").tempdir()?;
        let memory = Path::new("/dev/shm");
        let work =
            tempfile::Builder::new().prefix("rouse-bench-").tempdir_in(memory).or_else(|_| tempfile::tempdir())?;
        let (port, amqp) = (free_port()?, free_port()?);
        let agent = programs.agent.display();
        let load: String = (0..most.div_ceil(PER_PROCESS)).map(|process| {
            let last = most.min(PER_PROCESS);
            format!("[[worker]]\nname = \"load-{process}{{0001..{last:04}}}\"\npassword = {PASSWORD:?}\nmax_builds = 1\nproperties = {{ kind = \"load\" }}\n")
        }).collect();
        let config = format!(
            "[master]\nname = \"bench\"\nstate_dir = {state:?}\nlisten = \"127.0.0.1:{port}\"\napi_token = {PASSWORD:?}\n\
             [broker]\nlisten = [\"127.0.0.1:{amqp}\"]\nauth_listen = \"127.0.0.1:0\"\n\
             [[worker]]\nname = \"one\"\npassword = {PASSWORD:?}\n\
             [[worker]]\nname = \"never\"\npassword = {PASSWORD:?}\nproperties = {{ kind = \"never\" }}\n\
             [[worker]]\nname = \"rogue\"\npassword = {PASSWORD:?}\nkeepalive_interval = 1\nlease = 10\nproperties = {{ kind = \"rogue\" }}\n\
             [[worker]]\nname = \"real-{{01..20}}\"\npassword = {PASSWORD:?}\nmax_builds = 1\nproperties = {{ kind = \"real\" }}\n\
             {load}\
             [[worker]]\nname = \"host\"\npassword = {PASSWORD:?}\nbuild_wait_timeout = 0\n[worker.process]\nagent = \"{agent}\"\n",
            state = dir.path().join("s"),
        );
        let file = dir.path().join("rouse.toml");
        fs::write(&file, rouse_tests::harness::run_as_root(&config))?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut stand = Self { programs, dir, work, address, amqp, master: None };
        stand.start_master().await?;
        stand.ready().await?;
        Ok(stand)
    }

    /// Starts the master again after [`Self::kill_master`].
    pub async fn start_master(&mut self) -> Result<()> {
        let log = fs::File::options().create(true).append(true).open(self.path("master.log"))?;
        let child = spawn(
            Command::new(&self.programs.rouse)
                .arg("master")
                .arg("-c")
                .arg(self.path("rouse.toml"))
                .env("ROUSE_LOG", "warn")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log),
        )?;
        self.master = Some(child);
        Ok(())
    }

    /// Waits until the master serves and has its broker.
    pub async fn ready(&self) -> Result<()> {
        until("the master", || async {
            let Ok(mut client) = self.client().await else { return false };
            client.get("/healthz").await.is_ok()
        })
        .await
    }

    /// As a crash would.
    pub async fn kill_master(&mut self) -> Result<()> {
        match &mut self.master {
            Some(child) => end(child, libc::SIGKILL).await,
            None => Ok(()),
        }
    }

    /// Ends the master in good order, and starts it again.
    pub async fn restart_master(&mut self) -> Result<()> {
        if let Some(child) = &mut self.master {
            end(child, libc::SIGTERM).await?;
        }
        self.start_master().await?;
        self.ready().await
    }

    /// Ends the master in good order.
    pub async fn stop(mut self) -> Result<()> {
        match &mut self.master {
            Some(child) => end(child, libc::SIGTERM).await,
            None => Ok(()),
        }
    }

    /// A path in the stand's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The broker's port.
    pub fn amqp_port(&self) -> u16 {
        self.amqp
    }

    /// The broker's URL for agents.
    pub fn broker(&self) -> String {
        format!("amqp://127.0.0.1:{}/{}", self.amqp, rouse_master::broker::VHOST)
    }

    /// The broker with the master's own account, which may do everything and is checked by nobody else.
    pub fn raw_url(&self) -> Result<String> {
        let password = fs::read_to_string(self.path("s/broker/password"))?;
        let user = rouse_master::broker::MASTER_USER;
        Ok(format!("amqp://{user}:{}@127.0.0.1:{}/{}", password.trim(), self.amqp, rouse_master::broker::VHOST))
    }

    pub async fn client(&self) -> Result<Client> {
        Client::connect(self.address, PASSWORD).await
    }

    /// The master's process.
    pub fn master_pid(&self) -> u32 {
        self.master.as_ref().and_then(Child::id).unwrap_or(0)
    }

    /// Where what agents write would go.
    pub fn work(&self) -> &Path {
        self.work.path()
    }

    /// The length of the log of a build's first step.
    pub fn log_length(&self, build: &str) -> u64 {
        let number: u64 = build.parse().unwrap_or(0);
        let path = self.path("s/logs").join((number / 1000).to_string()).join(build).join("1/0.log");
        fs::metadata(path).map_or(0, |m| m.len())
    }

    /// All changes from now on.
    pub async fn listen(&self) -> Result<mpsc::Receiver<Change>> {
        let mut client = self.client().await?;
        client.follow("/api/events").await?;
        let (sender, receiver) = mpsc::channel(4_096);
        tokio::spawn(async move {
            let mut text = String::new();
            while let Ok(piece) = client.piece().await {
                let at = Watch::start();
                if piece.is_empty() {
                    return;
                }
                text.push_str(&String::from_utf8_lossy(&piece));
                while let Some((event, rest)) = text.split_once("\n\n") {
                    let field =
                        |name: &str| event.lines().find_map(|l| l.strip_prefix(name).map(|v| v.trim().to_owned()));
                    if let (Some(kind), Some(data)) = (field("event:"), field("data:"))
                        && let Ok(data) = serde_json::from_str(&data)
                        && sender.send(Change { at, kind, data }).await.is_err()
                    {
                        return;
                    }
                    text = rest.to_owned();
                }
            }
        });
        Ok(receiver)
    }

    /// A real agent.
    pub fn agent(&self, worker: &str) -> Result<Child> {
        let log = fs::File::options().create(true).append(true).open(self.path("agents.log"))?;
        spawn(
            Command::new(&self.programs.agent)
                .env("ROUSE_AGENT_BROKER", self.broker())
                .env("ROUSE_AGENT_IDENTITY", "static")
                .env("ROUSE_AGENT_NAME", worker)
                .env("ROUSE_AGENT_PASSWORD", PASSWORD)
                .env("ROUSE_AGENT_WORK_DIR", self.work.path().join(worker))
                .env("ROUSE_AGENT_MAX_LOG_SIZE", "8GB")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log),
        )
    }

    /// Many workers that run nothing; returns once all are attached, with the seconds that took.
    pub async fn load(&self, workers: usize) -> Result<Load> {
        let arguments = ["load-", &workers.to_string(), "5", &self.broker(), PASSWORD].map(str::to_owned);
        Load::start(&self.programs.load_agent, &arguments, workers, &self.path("agents.log")).await
    }

    /// The same in several processes, which start at the same time.
    pub async fn loads(&self, workers: usize) -> Result<Vec<Load>> {
        let broker = self.broker();
        let start = |(process, share): (usize, usize)| {
            let arguments = [&format!("load-{process}"), &share.to_string(), "4", broker.as_str(), PASSWORD];
            Load::begin(&self.programs.load_agent, &arguments.map(str::to_owned), share, &self.path("agents.log"))
        };
        attached_all(shares(workers).map(start).collect::<Result<_>>()?).await
    }

    /// As many raw connections, in several processes.
    pub async fn raw_loads(&self, connections: usize) -> Result<Vec<Load>> {
        let url = self.raw_url()?;
        let start = |(_, share): (usize, usize)| {
            let arguments = ["--raw".to_owned(), share.to_string(), url.clone()];
            Load::begin(&self.programs.load_agent, &arguments, share, &self.path("agents.log"))
        };
        attached_all(shares(connections).map(start).collect::<Result<_>>()?).await
    }

    /// The process of the private broker.
    pub fn broker_pid(&self) -> Result<u32> {
        let dir = self.path("s/broker").display().to_string();
        let mut all = rouse_tests::harness::processes_with(&dir).into_iter();
        let found = all.find(|(_, line)| line.contains("beam")).and_then(|(pid, _)| u32::try_from(pid).ok());
        found.ok_or_else(|| Error::other("the private broker does not run"))
    }

    /// As many connections with a queue each, and nothing else.
    pub async fn raw_load(&self, connections: usize) -> Result<Load> {
        let arguments = ["--raw".to_owned(), connections.to_string(), self.raw_url()?];
        Load::start(&self.programs.load_agent, &arguments, connections, &self.path("agents.log")).await
    }

    /// Waits until so many workers are idle.
    pub async fn idle(&self, workers: u64) -> Result<()> {
        let mut client = self.client().await?;
        let watch = Watch::start();
        loop {
            let idle = gauge(&client.get("/metrics").await?, "rouse_workers{state=\"idle\"}");
            if idle == workers {
                return Ok(());
            }
            if watch.elapsed() > PATIENCE {
                return Err(Error::other(format!("{idle} of {workers} workers are idle")));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// A load agent that runs.
pub struct Load {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// It ends when this is closed.
    input: Option<ChildStdin>,
    /// Until all were attached for the first time.
    pub seconds: f64,
    /// How many workers it has.
    pub workers: usize,
}

impl Load {
    async fn start(program: &Path, arguments: &[String], workers: usize, log: &Path) -> Result<Self> {
        let mut load = Self::begin(program, arguments, workers, log)?;
        load.seconds = load.attached().await?;
        Ok(load)
    }

    /// Does not wait until anything is attached.
    fn begin(program: &Path, arguments: &[String], workers: usize, log: &Path) -> Result<Self> {
        let log = fs::File::options().create(true).append(true).open(log)?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut child = spawn(&mut command)?;
        let output = child.stdout.take().ok_or_else(|| Error::other("no output to read"))?;
        Ok(Self { input: child.stdin.take(), child, lines: BufReader::new(output).lines(), seconds: 0.0, workers })
    }

    /// Waits until all are attached, again if need be.
    pub async fn attached(&mut self) -> Result<f64> {
        let line = tokio::time::timeout(PATIENCE * 2, self.lines.next_line()).await??;
        let seconds = line.as_deref().and_then(|line| line.strip_prefix("attached ")?.parse().ok());
        seconds.ok_or_else(|| Error::other(format!("the load agent said {line:?}")))
    }

    /// Ends it; its workers take leave, else their leases would have to run out before they could come again.
    pub async fn end(mut self) -> Result<()> {
        drop(self.input.take());
        self.child.wait().await.map(drop)
    }
}

/// How many of so many workers each load agent has.
fn shares(workers: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..workers.div_ceil(PER_PROCESS)).map(move |n| (n, PER_PROCESS.min(workers - n * PER_PROCESS)))
}

async fn attached_all(mut loads: Vec<Load>) -> Result<Vec<Load>> {
    for load in &mut loads {
        load.seconds = load.attached().await?;
    }
    Ok(loads)
}

/// Waits until it is so.
pub async fn until<F: Future<Output = bool>>(what: &str, so: impl Fn() -> F) -> Result<()> {
    let watch = Watch::start();
    while !so().await {
        if watch.elapsed() > PATIENCE {
            return Err(Error::other(format!("{what}: not within {} s", PATIENCE.as_secs())));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}
