//! A RabbitMQ that is not private to a master, and commands for any RabbitMQ.

use super::network::{Machine, Network};
use super::process::{DEADLINE, Process, holds_within};
use super::{free_address, scratch};
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// For a node that was cut off to come back. With Erlang 25, it sometimes waits for ever for a lock that it takes from the
/// other nodes.
const COMES_BACK: Duration = Duration::from_secs(60);

/// Where distributions put RabbitMQ's scripts. Those in `PATH` change the user.
const SCRIPTS: &str = "/usr/lib/rabbitmq/bin";
/// The master's account, and its password.
pub(super) const ACCOUNT: (&str, &str) = ("rouse_master", "the-masters-own");

/// What a node of the pool evaluates beside RabbitMQ.
const RESET: &str = include_str!("reset.erl");

/// One or more nodes that were set up by an operator, with a virtual host `rouse` beside the default one. They end when
/// this is dropped.
pub struct OwnBroker {
    /// Where the first node listens.
    pub address: SocketAddr,
    dir: PathBuf,
    nodes: Vec<Node>,
}

struct Node {
    name: String,
    address: SocketAddr,
    dist_port: u16,
    epmd_port: u16,
    dir: PathBuf,
    server: Option<Process>,
    epmd: Option<Process>,
    /// Absent if it runs on the test's machine.
    machine: Option<Machine>,
    /// Where it can be made to forget everything, if it can be.
    reset: Option<PathBuf>,
}

/// What an operator writes into the files of each node.
#[derive(Clone, Copy)]
pub struct Files<'a> {
    /// rabbitmq.conf
    pub configuration: &'a str,
    /// advanced.config
    pub advanced: &'a str,
    /// enabled_plugins
    pub plugins: &'a str,
}

impl OwnBroker {
    /// Starts a node on this machine with these lines in its configuration, and these plugins as in `enabled_plugins`.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn start(name: &str, configuration: &str, plugins: &str) -> Self {
        Self::start_one(name, configuration, plugins, false)
    }

    /// The same with a socket, at which `reset.erl` answers.
    ///
    /// # Panics
    /// If it does not come up.
    pub(super) fn start_with_reset(name: &str, configuration: &str, plugins: &str) -> Self {
        Self::start_one(name, configuration, plugins, true)
    }

    fn start_one(name: &str, configuration: &str, plugins: &str, with_reset: bool) -> Self {
        let dir = scratch(name);
        let address = free_address();
        let node = Node {
            name: format!("own{}@localhost", address.port()),
            address,
            dist_port: free_address().port(),
            epmd_port: free_address().port(),
            dir: dir.join("node0"),
            server: None,
            epmd: None,
            machine: None,
            reset: with_reset.then(|| dir.join("reset.sock")),
        };
        let mut broker = Self { address, dir, nodes: vec![node] };
        broker.configure(0, Files { configuration, advanced: "[].", plugins });
        broker.begin(0);
        broker
    }

    /// Starts a cluster of so many nodes, each on a machine of its own.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn cluster(name: &str, files: Files<'_>, network: &Network, nodes: u8) -> Self {
        let dir = scratch(name);
        let node = |number: u8| {
            let machine = network.machine(number, &dir);
            Node {
                name: format!("rabbit@{}", machine.address),
                address: (machine.address, 5_672).into(),
                dist_port: 25_672,
                epmd_port: 4_369,
                dir: dir.join(format!("node{number}")),
                server: None,
                epmd: None,
                machine: Some(machine),
                reset: None,
            }
        };
        let nodes: Vec<Node> = (1..=nodes).map(node).collect();
        let mut broker = Self { address: nodes[0].address, dir, nodes };
        for number in 0..broker.nodes.len() {
            broker.configure(number, files);
        }
        // The others join the first one.
        broker.begin(0);
        let others: Vec<usize> = (1..broker.nodes.len()).map(|number| broker.launch(number)).collect();
        for (number, starts) in (1..).zip(others) {
            broker.until_up(number, starts);
        }
        broker
    }

    fn configure(&mut self, number: usize, files: Files<'_>) {
        let (count, first) = (self.nodes.len(), self.nodes[0].name.clone());
        let node = &mut self.nodes[number];
        let (user, password) = ACCOUNT;
        // As an operator of a cluster may have it. No queue of one connection can be of this type.
        let default = if count > 1 { "quorum" } else { "classic" };
        let definitions = serde_json::json!({
            "vhosts": [{ "name": "/" }, { "name": "rouse", "default_queue_type": default, "metadata": { "default_queue_type": default } }],
            "users": [{ "name": user, "password": password, "tags": "monitoring" }],
            "permissions": [{ "user": user, "vhost": "rouse", "configure": ".*", "write": ".*", "read": ".*" }],
        });
        let definitions = definitions.to_string();
        let mut more = format!("listeners.tcp.1 = {}\nlog.file = rabbit.log\n", node.address);
        if number == 0 {
            more += &format!("load_definitions = {}/definitions.json\n", node.dir.display());
        } else {
            more += "cluster_formation.peer_discovery_backend = classic_config\n";
            more += &format!("cluster_formation.classic_config.nodes.1 = {first}\n");
        }
        fs::create_dir(&node.dir).expect("a directory of its own");
        for (file, text) in [
            ("rabbitmq.conf", format!("{}\n{more}", files.configuration).as_str()),
            ("advanced.config", files.advanced),
            ("enabled_plugins", files.plugins),
            ("definitions.json", &definitions),
        ] {
            fs::write(node.dir.join(file), text).expect("its files can be written");
        }
        // Else the node would start one that outlives it.
        let mut epmd = node.command("epmd");
        epmd.args(["-port", &node.epmd_port.to_string()]);
        if node.machine.is_none() {
            epmd.args(["-address", "127.0.0.1"]);
        }
        // Not what `kill_all` looks for: it stays when the node is killed.
        let epmd = Process::start(epmd, &self.dir, &format!("epmd{number}"));
        let listens = || TcpStream::connect((node.address.ip(), node.epmd_port)).is_ok();
        assert!(holds_within(DEADLINE, listens), "epmd does not listen: {}", epmd.err());
        node.epmd = Some(epmd);
    }

    /// Starts a node, for the first time or again, and waits until it serves.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn begin(&mut self, number: usize) {
        let starts = self.launch(number);
        self.until_up(number, starts);
    }

    /// Starts a node, for the first time or again. What [`Self::until_up`] waits for: how often it has started then.
    ///
    /// # Panics
    /// If its program is not there.
    pub fn launch(&mut self, number: usize) -> usize {
        let node = &mut self.nodes[number];
        let starts = node.starts() + 1;
        let mut server = node.command(&format!("{SCRIPTS}/rabbitmq-server"));
        for (key, file) in [
            ("RABBITMQ_CONFIG_FILE", "rabbitmq.conf"),
            ("RABBITMQ_CONFIG_FILES", "conf.d/*.conf"),
            ("RABBITMQ_ADVANCED_CONFIG_FILE", "advanced.config"),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", "enabled_plugins"),
            ("RABBITMQ_GENERATED_CONFIG_DIR", "config"),
            ("RABBITMQ_SCHEMA_DIR", "schema"),
            ("RABBITMQ_MNESIA_BASE", "mnesia"),
            ("RABBITMQ_LOG_BASE", "log"),
        ] {
            server.env(key, node.dir.join(file));
        }
        server.env("RABBITMQ_CONF_ENV_FILE", "/dev/null").env("RABBITMQ_DIST_PORT", node.dist_port.to_string());
        server.env("RABBITMQ_NODENAME", &node.name);
        // Threads of Erlang that spin while they have nothing to do take the processor from the other nodes.
        let mut arguments = "+sbwt none +sbwtdcpu none +sbwtdio none".to_owned();
        match node.machine {
            Some(_) => server.env("RABBITMQ_USE_LONGNAME", "true"),
            None => {
                arguments += " -kernel inet_dist_use_interface {127,0,0,1}";
                &mut server
            }
        };
        if let Some(reset) = &node.reset {
            // Of an earlier life.
            fs::remove_file(reset).ok();
            let script = node.dir.join("reset.erl");
            fs::write(&script, RESET).expect("its files can be written");
            // It is split at the spaces.
            arguments += &format!(" -eval spawn(fun()->ok=file:eval({script:?})end).");
            server.env("ROUSE_TESTS_RESET", reset).env("ROUSE_TESTS_ACCOUNT", ACCOUNT.0);
        }
        server.env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", arguments);
        node.server = Some(Process::start(server, &node.dir, "server"));
        starts
    }

    /// Waits until a node serves that was launched.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn until_up(&self, number: usize, starts: usize) {
        let node = &self.nodes[number];
        let resets = || node.reset.as_ref().is_none_or(|reset| reset.exists());
        let came_up = holds_within(super::READY, || node.starts() >= starts && resets());
        assert!(came_up, "{}", fs::read_to_string(node.dir.join("server.out")).unwrap_or_default());
    }

    /// Waits until a node that was cut off is part of the cluster again. Restarts it if it does not come back by itself,
    /// as contrib/rabbitmq/cluster.md says.
    ///
    /// # Panics
    /// If it does not start.
    pub fn until_back(&mut self, number: usize) {
        if !holds_within(COMES_BACK, || self.accepts(number)) {
            eprintln!("the node {number} has not come back, and is restarted");
            self.kill(number);
            let starts = self.launch(number);
            self.until_up(number, starts);
        }
    }

    /// Kills a node with SIGKILL.
    pub fn kill(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        kill_all(&node.dir);
        node.server = None;
    }

    /// Stops a node as an operator does, and waits for its end.
    ///
    /// # Panics
    /// If it does not end.
    pub fn stop(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        let (beam, _) = beam(&node.dir).expect("the node runs");
        // SAFETY: only numbers are passed.
        unsafe { libc::kill(beam, libc::SIGTERM) };
        node.server.take().expect("the node was started").wait(DEADLINE);
    }

    /// Where the first node can be made to forget everything.
    pub(super) fn reset(&self) -> Option<&Path> {
        self.nodes[0].reset.as_deref()
    }

    /// The machine of a node.
    ///
    /// # Panics
    /// If it is the test's.
    pub fn machine(&self, number: usize) -> &Machine {
        self.nodes[number].machine.as_ref().expect("each node of a cluster has a machine")
    }

    /// Whether a node accepts connections.
    pub fn accepts(&self, number: usize) -> bool {
        TcpStream::connect_timeout(&self.nodes[number].address, Duration::from_secs(1)).is_ok()
    }

    /// Runs `rabbitmqctl` on a node. What it prints.
    ///
    /// # Panics
    /// If it fails.
    pub fn rabbitmqctl(&self, number: usize, arguments: &[&str]) -> String {
        output_of_rabbitmqctl(&self.nodes[number].dir, arguments).unwrap_or_else(|why| panic!("{arguments:?}: {why}"))
    }

    /// The names of the master's queues without a consumer.
    ///
    /// # Panics
    /// If the first node does not list them.
    pub fn unread(&self) -> Vec<String> {
        let listed =
            self.rabbitmqctl(0, &["list_queues", "-p", "rouse", "--no-table-headers", "-q", "name", "consumers"]);
        let pairs = listed.lines().filter_map(|line| line.split_once('\t'));
        pairs.filter(|(_, consumers)| *consumers == "0").map(|(name, _)| name.to_owned()).collect()
    }

    /// `broker.url` for it, with all its nodes.
    pub fn url(&self) -> String {
        let (user, password) = ACCOUNT;
        format!("amqp://{user}:{password}@{}/rouse", self.addresses(0))
    }

    /// Where its nodes listen, as they are written in a URL, beginning with one of them.
    pub fn addresses(&self, first: usize) -> String {
        let nodes = self.nodes.iter().cycle().skip(first).take(self.nodes.len());
        nodes.map(|node| node.address.to_string()).collect::<Vec<_>>().join(",")
    }
}

impl Node {
    /// A program where the node is. Its environment is not that of the tests.
    fn command(&self, program: &str) -> Command {
        let mut command = match &self.machine {
            Some(machine) => machine.command(program),
            None => Command::new(program),
        };
        let home = self.dir.parent().expect("the broker's directory");
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("LANG", "C.UTF-8");
        command.env("HOME", home).env("ERL_EPMD_PORT", self.epmd_port.to_string()).current_dir(home);
        command
    }

    /// How often it has started. What it prints follows what it printed in its earlier lives.
    fn starts(&self) -> usize {
        let printed = fs::read(self.dir.join("server.out")).unwrap_or_default();
        String::from_utf8_lossy(&printed).matches("completed with").count()
    }
}

impl Drop for OwnBroker {
    fn drop(&mut self) {
        kill_all(&self.dir);
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("{} stays: {error}", self.dir.display());
        }
    }
}

/// RabbitMQ's script starts Erlang as its child, which outlives the script.
fn kill_all(dir: &Path) {
    for (pid, _) in super::processes_with(&dir.display().to_string()) {
        // SAFETY: only numbers are passed. The process may have ended.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
}

/// Runs `rabbitmqctl` on the node whose processes have `dir` in their environment.
///
/// # Panics
/// If there is none, or the command fails.
pub fn rabbitmqctl(dir: &Path, arguments: &[&str]) {
    if let Err(why) = try_rabbitmqctl(dir, arguments) {
        panic!("{arguments:?}: {why}");
    }
}

/// The same for a node that may be gone.
///
/// # Errors
/// If there is none, or the command fails; why.
pub fn try_rabbitmqctl(dir: &Path, arguments: &[&str]) -> Result<(), String> {
    output_of_rabbitmqctl(dir, arguments).map(drop)
}

/// The Erlang of the node with this directory.
fn beam(dir: &Path) -> Option<(i32, String)> {
    super::processes_with(&dir.display().to_string()).into_iter().find(|(_, line)| line.contains("beam"))
}

fn output_of_rabbitmqctl(dir: &Path, arguments: &[&str]) -> Result<String, String> {
    let (beam, _) = beam(dir).ok_or("no node runs")?;
    let environment = fs::read(format!("/proc/{beam}/environ")).map_err(|error| error.to_string())?;
    let program = format!("{SCRIPTS}/rabbitmqctl");
    let network_of = |who: &str| fs::read_link(format!("/proc/{who}/ns/net")).ok();
    let mut command = if network_of(&beam.to_string()) == network_of("thread-self") {
        Command::new(program)
    } else {
        let mut there = Command::new("nsenter");
        there.arg(format!("--net=/proc/{beam}/ns/net")).arg(program);
        there
    };
    command.env_clear().env("RABBITMQ_CONF_ENV_FILE", "/dev/null").args(arguments);
    for pair in String::from_utf8_lossy(&environment).split('\0') {
        const KEPT: [&str; 6] = ["PATH", "LANG", "HOME", "ERL_EPMD_PORT", "RABBITMQ_NODENAME", "RABBITMQ_USE_LONGNAME"];
        if let Some((key, value)) = pair.split_once('=').filter(|(key, _)| KEPT.contains(key)) {
            command.env(key, value);
        }
    }
    let output = command.output().map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("{output:?}"))
    }
}
