//! A real master with a real broker, real agents, and the commands, as a user has them.

mod brokers;
mod certificates;
mod configuration;
mod cuts;
mod disk;
mod http;
mod keeper;
mod network;
mod place;
mod postgres;
mod process;
mod rabbitmq;
mod relay;

use brokers::Broker;
pub use certificates::{REFUSED_CERTIFICATES, make_certificates, make_own_certificate, tls_server};
pub use configuration::{Trace, check_online, latent, run_as_root, standing, text, write_private};
pub use cuts::Cuts;
pub use disk::Disk;
pub use http::{Reply, open, request};
pub use keeper::{Keeper, is_keeper, kept, turn};
use keeper::{ask_keeper, place_to_start};
pub use network::{Machine, Network};
pub use place::{free_address, scratch};
pub use postgres::{Postgres, ROLE};
pub use process::{DEADLINE, Process, Said, holds_within, peak_memory, processes_with, runs};
pub use rabbitmq::{Files, OwnBroker, rabbitmqctl, try_rabbitmqctl};
pub use relay::{Protection, Relay, TakenMail};

use rouse_master::hosts::process::end_all;
use serde_json::{Value, json};
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a keeper is asked to do: to start its master again.
pub const BEGIN: &str = "begin";
/// How long a master may take to start. RabbitMQ takes 5 s of a processor that nobody else uses.
pub(crate) const READY: Duration = Duration::from_secs(180);
/// The password of every worker.
pub const PASSWORD: &str = "not-a-secret";

/// One of our programs, as `make test` has built it.
///
/// # Panics
/// If it is not there.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("this program has a path");
    let found = test.ancestors().skip(1).take(3).map(|dir| dir.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("there is no {name} near {}: run `cargo build --workspace --bins`", test.display()))
}

/// A master, what it was started with, and everything that belongs to it.
pub struct Master {
    /// Its own directory: configuration, state, output of everything, traces of builds.
    pub dir: PathBuf,
    /// Where its API is.
    pub http: SocketAddr,
    /// What agents dial.
    pub broker_url: String,
    head: String,
    /// Of a master that a keeper runs: the keeper's directory.
    keeper: Option<PathBuf>,
    /// What [`Self::start`] has taken. It is given back after the master has ended.
    broker: Option<Broker>,
    process: Mutex<Option<Process>>,
    commands: Mutex<u32>,
}

impl Master {
    /// Starts a master with these `[[worker]]` sections and a broker that outlives it, and waits until it is ready. The
    /// broker is one that the tests of the run share, in turn: see [`brokers`].
    ///
    /// # Panics
    /// If either does not become ready.
    pub fn start(name: &str, workers: &str) -> Self {
        Self::start_for(name, None, workers)
    }

    /// The same for agents that reach loopback of this machine at the address `agent_host`.
    ///
    /// # Panics
    /// If either does not become ready.
    pub fn start_for(name: &str, agent_host: Option<&str>, workers: &str) -> Self {
        let broker = Broker::take();
        let (port, vhost) = (broker.address.port(), &broker.vhost);
        let dialled = agent_host.map(|host| format!("agent_url = \"amqp://{host}:{port}/{vhost}\"\n"));
        let lines = format!("url = \"{}\"\n{}", broker.url(), dialled.unwrap_or_default());
        let url = format!("amqp://{}/{vhost}", broker.address);
        let mut master = Self::prepare(name, &lines, &url, broker.auth, workers);
        master.broker = Some(broker);
        master.begin_prepared();
        master
    }

    /// As [`Self::start`], with these further sections of the configuration.
    ///
    /// # Panics
    /// If either does not become ready.
    pub fn start_on(name: &str, sections: &str, workers: &str) -> Self {
        let broker = Broker::take();
        let (lines, url) =
            (format!("url = \"{}\"\n", broker.url()), format!("amqp://{}/{}", broker.address, broker.vhost));
        let mut master = Self::prepare(name, &lines, &url, broker.auth, workers);
        master.broker = Some(broker);
        master.add_to_master(sections);
        master.configure(workers);
        master.begin_prepared();
        master
    }

    /// Starts a master with a private broker, for tests of what the master does with it: how both start and end, what is
    /// in the state directory, and that a blocked agent is cut off. RabbitMQ's start takes 5 s of a processor.
    ///
    /// # Panics
    /// If it does not become ready.
    pub fn start_private(name: &str, workers: &str) -> Self {
        let amqp = free_address();
        let broker = format!("listen = [\"{amqp}\"]\n");
        Self::start_with(name, &broker, &format!("amqp://{amqp}/rouse"), free_address(), workers)
    }

    /// Starts a master with these lines of `[broker]`, besides `auth_listen`.
    ///
    /// # Panics
    /// If it does not become ready.
    pub fn start_with(name: &str, broker: &str, broker_url: &str, auth: SocketAddr, workers: &str) -> Self {
        let master = Self::prepare(name, broker, broker_url, auth, workers);
        master.begin_prepared();
        master
    }

    /// Starts it for the first time, and waits until it is ready.
    ///
    /// # Panics
    /// If it does not become ready.
    pub fn begin_prepared(&self) {
        let place = place_to_start();
        self.begin();
        drop(place);
    }

    /// Adds lines to `[master]`, for the next [`Self::configure`].
    pub fn add_to_master(&mut self, lines: &str) {
        self.head = self.head.replacen("[broker]", &format!("{lines}[broker]"), 1);
    }

    /// The same, but does not start it.
    pub fn prepare(name: &str, broker: &str, broker_url: &str, auth: SocketAddr, workers: &str) -> Self {
        let dir = scratch(name);
        let http = free_address();
        let head = format!(
            "[master]\nname = \"{name}\"\nstate_dir = \"{state}\"\nlisten = \"{http}\"\n\
             [broker]\nauth_listen = \"{auth}\"\n{broker}",
            state = dir.join("state").display(),
        );
        let master = Self {
            dir,
            http,
            broker_url: broker_url.to_owned(),
            head,
            keeper: None,
            broker: None,
            process: Mutex::new(None),
            commands: Mutex::new(0),
        };
        master.configure(workers);
        master
    }

    /// The master that this program's keeper runs, from its [`Self::description`] in [`kept`].
    ///
    /// # Panics
    /// If the keeper does not run.
    pub fn of_keeper(description: &Value) -> Self {
        Self {
            dir: text(&description["dir"]).into(),
            http: text(&description["http"]).parse().expect("an address"),
            broker_url: text(&description["broker_url"]),
            head: text(&description["head"]),
            keeper: Some(text(&kept()["keeper"]).into()),
            broker: None,
            process: Mutex::new(None),
            commands: Mutex::new(0),
        }
    }

    /// What other processes have to know of it.
    pub fn description(&self) -> Value {
        json!({ "dir": self.dir, "http": self.http, "broker_url": self.broker_url, "head": self.head })
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes its configuration again, with these workers.
    pub fn configure(&self, workers: &str) {
        let workers = run_as_root(workers);
        write_private(&self.config(), &format!("{}\n{workers}", self.head));
    }

    /// Its configuration's path.
    pub fn config(&self) -> PathBuf {
        self.dir.join("rouse.toml")
    }

    /// Starts it again, and waits until it is ready.
    ///
    /// # Panics
    /// If it does not become ready.
    #[track_caller]
    pub fn begin(&self) {
        match &self.keeper {
            Some(keeper) => ask_keeper(keeper, BEGIN),
            None => self.begin_with(&[]),
        }
    }

    /// The same with more in its environment.
    ///
    /// # Panics
    /// If it does not become ready.
    #[track_caller]
    pub fn begin_with(&self, more: &[(&str, &str)]) {
        let mut command = Command::new(program("rouse"));
        command.envs(more.iter().copied());
        self.begin_by(command);
    }

    /// The same by `command`, which gets the arguments of `rouse` and is to become it.
    ///
    /// # Panics
    /// If it does not become ready.
    #[track_caller]
    pub fn begin_by(&self, mut command: Command) {
        command.args(["master", "-c"]).arg(self.config()).current_dir(&self.dir).env_remove("ROUSE_LOG");
        let process = Process::start(command, &self.dir, "master");
        fs::write(self.dir.join("master.pid"), process.pid().to_string()).expect("its directory can be written");
        *self.process() = Some(process);
        self.until_within(READY, "the master is ready", || {
            let mut process = self.process();
            let ended = process.as_mut().and_then(Process::try_wait);
            assert!(ended.is_none(), "the master ended: {ended:?}\n{}", self.log());
            request(self.http, "GET", "/healthz", None, "").is_some_and(|answer| answer.status == 200)
        });
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: only numbers are passed; whoever started it has not waited for it yet, so the pid is its own.
        assert_eq!(unsafe { libc::kill(self.pid(), signal) }, 0, "a signal must reach the master");
    }

    /// SIGKILL.
    pub fn kill(&self) {
        if self.keeper.is_some() {
            let pid = self.pid();
            self.signal(libc::SIGKILL);
            assert!(holds_within(DEADLINE, || !runs(pid)), "the master can be killed");
        } else {
            self.process().as_mut().expect("the master was started").kill();
        }
    }

    /// SIGTERM, and waits for its end.
    #[track_caller]
    pub fn terminate(&self) {
        self.signal(libc::SIGTERM);
        let process = self.process().take().expect("the master was started");
        process.wait(DEADLINE).ended(0);
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        let pid = fs::read_to_string(self.dir.join("master.pid")).expect("the master was started");
        pid.parse().expect("a pid")
    }

    /// What it has logged, through all of its lives.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.join("master.err")).unwrap_or_default()).into_owned()
    }

    /// The API's token.
    pub fn token(&self) -> String {
        fs::read_to_string(self.dir.join("state/api-token")).expect("the master has made it").trim().to_owned()
    }

    /// Polls until `holds`.
    ///
    /// # Panics
    /// If it does not within [`DEADLINE`].
    #[track_caller]
    pub fn until(&self, what: &str, holds: impl FnMut() -> bool) {
        self.until_within(DEADLINE, what, holds);
    }

    /// Polls until `holds`.
    ///
    /// # Panics
    /// If it does not within `limit`.
    #[track_caller]
    pub fn until_within(&self, limit: Duration, what: &str, holds: impl FnMut() -> bool) {
        assert!(holds_within(limit, holds), "not in time: {what}\n{}", self.log());
    }

    /// A `rouse` command that has begun.
    pub fn begin_rouse(&self, arguments: &[&str]) -> Process {
        let number = {
            let mut commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
            *commands += 1;
            *commands
        };
        let mut command = Command::new(program("rouse"));
        command.args(arguments).current_dir(&self.dir).env_remove("ROUSE_TOKEN");
        command.env("ROUSE_SERVER", format!("http://{}", self.http));
        command.env("ROUSE_TOKEN_FILE", self.dir.join("state/api-token"));
        Process::start(command, &self.dir, &format!("command-{}-{number}", std::process::id()))
    }

    /// Runs a `rouse` command to its end.
    #[track_caller]
    pub fn rouse(&self, arguments: &[&str]) -> Said {
        self.begin_rouse(arguments).wait(DEADLINE * 2)
    }

    /// Submits a build without following it. Its id.
    #[track_caller]
    pub fn detach(&self, arguments: &[&str]) -> String {
        let all: Vec<&str> = ["build", "--detach"].iter().chain(arguments).copied().collect();
        self.rouse(&all).ended(0).text().trim().to_owned()
    }

    /// A build, as `rouse show --json` has it, but without a process for each look.
    #[track_caller]
    pub fn show(&self, build: &str) -> Value {
        self.got(&format!("/api/builds/{build}"))
    }

    /// A build's state.
    #[track_caller]
    pub fn state(&self, build: &str) -> String {
        text(&self.show(build)["state"])
    }

    /// What `rouse why` prints of a build.
    #[track_caller]
    pub fn why(&self, build: &str) -> String {
        text(&self.got(&format!("/api/builds/{build}/why"))["sentence"])
    }

    /// Waits for a state of a build.
    #[track_caller]
    pub fn until_state(&self, build: &str, state: &str) {
        self.until(&format!("build {build} is {state}"), || {
            let now = self.state(build);
            let over = ["success", "failure", "cancelled", "lost"].contains(&now.as_str());
            assert!(!over || now == state, "build {build} is {now} rather than {state}: {}", self.show(build));
            now == state
        });
    }

    /// A worker, as the API has it.
    #[track_caller]
    pub fn worker(&self, name: &str) -> Value {
        let all = self.got("/api/workers");
        all.as_array().and_then(|all| all.iter().find(|w| w["name"] == name)).cloned().unwrap_or(Value::Null)
    }

    /// Waits for a state of a worker.
    #[track_caller]
    pub fn until_worker(&self, name: &str, state: &str) {
        self.until(&format!("worker {name} is {state}"), || self.worker(name)["state"] == state);
    }

    /// The hosts of a worker, as the API has them.
    #[track_caller]
    pub fn hosts(&self, worker: &str) -> Vec<Value> {
        let all = self.got("/api/hosts");
        all.as_array().expect("a list").iter().filter(|h| h["worker"] == worker).cloned().collect()
    }

    /// What the API answers to GET.
    ///
    /// # Panics
    /// If the status is not 200.
    #[track_caller]
    fn got(&self, path: &str) -> Value {
        let reply = self.get(path);
        assert_eq!(reply.status, 200, "GET {path}: {reply:?}");
        reply.json()
    }

    /// GET, with the token.
    ///
    /// # Panics
    /// If nobody answers.
    #[track_caller]
    pub fn get(&self, path: &str) -> Reply {
        request(self.http, "GET", path, Some(&self.token()), "").expect("the master answers")
    }

    /// POST, with the token.
    ///
    /// # Panics
    /// If nobody answers.
    #[track_caller]
    pub fn post(&self, path: &str, body: &str) -> Reply {
        request(self.http, "POST", path, Some(&self.token()), body).expect("the master answers")
    }

    /// An agent of a standing worker, without waiting for it to attach.
    pub fn begin_agent(&self, name: &str, more: &[(&str, &str)]) -> Process {
        self.begin_agent_in(name, name, more)
    }

    /// An agent with a work directory and a log of another name than its worker's.
    pub fn begin_agent_in(&self, worker: &str, place: &str, more: &[(&str, &str)]) -> Process {
        let mut command = Command::new(program("rouse-agent"));
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        let work = self.dir.join(format!("work-{place}"));
        command.env("ROUSE_AGENT_IDENTITY", "static").env("ROUSE_AGENT_NAME", worker);
        command.env("ROUSE_AGENT_PASSWORD", PASSWORD).env("ROUSE_AGENT_BROKER", &self.broker_url);
        command.env("ROUSE_AGENT_WORK_DIR", work).env("AGENT_OWN", "nobody else's").envs(more.iter().copied());
        Process::start(command, &self.dir, &format!("agent-{place}"))
    }

    /// An agent of a standing worker that has attached.
    #[track_caller]
    pub fn agent(&self, name: &str) -> Process {
        let agent = self.begin_agent(name, &[]);
        self.until(&format!("the agent of {name} attaches"), || {
            let state = self.worker(name)["state"].clone();
            state != "offline" && state != "missing"
        });
        agent
    }

    /// A file that builds write their trace to.
    pub fn trace(&self, name: &str) -> Trace {
        Trace(self.dir.join(format!("trace-{name}")))
    }

    /// Ends the master and what belongs to it. One that a keeper runs is the keeper's to end.
    pub fn end(&self) {
        if self.keeper.is_some() {
            return;
        }
        if let Some(mut process) = self.process().take() {
            process.kill();
        }
        let id = fs::read_to_string(self.dir.join("state/identity")).unwrap_or_default();
        let name = self.head.split('"').nth(1).unwrap_or_default().to_owned();
        let owner = format!("{name}/{}", id.trim());
        let gone = holds_within(DEADLINE, || end_all(&owner).is_ok_and(|left| left.is_empty()));
        if !gone {
            eprintln!("processes of {owner} did not end");
        }
        let state = self.dir.join("state").display().to_string();
        holds_within(DEADLINE, || processes_with(&state).is_empty());
        if std::env::var_os("ROUSE_E2E_KEEP").is_none()
            && let Err(error) = fs::remove_dir_all(&self.dir)
            // A disk of its own is taken away by whoever mounted it; and it may have been ended before.
            && !matches!(error.kind(), std::io::ErrorKind::ResourceBusy | std::io::ErrorKind::NotFound)
        {
            eprintln!("{} stays: {error}", self.dir.display());
        }
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        self.end();
    }
}
