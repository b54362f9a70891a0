//! A RabbitMQ that is not private to a master, and commands for any RabbitMQ.

use super::process::{DEADLINE, Process, holds_within};
use super::{free_address, scratch};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where distributions put RabbitMQ's scripts. Those in `PATH` change the user.
const SCRIPTS: &str = "/usr/lib/rabbitmq/bin";
/// The master's account, and its password.
const ACCOUNT: (&str, &str) = ("rouse_master", "the-masters-own");

/// One or more nodes that were set up by an operator, with a virtual host `rouse` beside the default one. They end when
/// this is dropped.
pub struct OwnBroker {
    /// Where the first node listens.
    pub address: SocketAddr,
    dir: PathBuf,
    epmd_port: u16,
    nodes: Vec<Node>,
    _epmd: Process,
}

struct Node {
    address: SocketAddr,
    dist_port: u16,
    dir: PathBuf,
    server: Option<Process>,
}

impl OwnBroker {
    /// Starts a node with these lines in its configuration, and these plugins as in `enabled_plugins`.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn start(name: &str, configuration: &str, plugins: &str) -> Self {
        Self::cluster(name, configuration, plugins, 1)
    }

    /// Starts a cluster of so many nodes.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn cluster(name: &str, configuration: &str, plugins: &str, nodes: usize) -> Self {
        let dir = scratch(name);
        let epmd_port = free_address().port();
        // Else the first node would start one that outlives it.
        let mut epmd = command("epmd", &dir, epmd_port);
        epmd.args(["-port", &epmd_port.to_string(), "-address", "127.0.0.1"]);
        let epmd = Process::start(epmd, &dir, "epmd");
        let listens = || std::net::TcpStream::connect(("127.0.0.1", epmd_port)).is_ok();
        assert!(holds_within(DEADLINE, listens), "epmd does not listen: {}", epmd.err());
        let nodes: Vec<Node> = (0..nodes)
            .map(|number| {
                let (address, dist_port) = (free_address(), free_address().port());
                Node { address, dist_port, dir: dir.join(format!("node{number}")), server: None }
            })
            .collect();
        let mut broker = Self { address: nodes[0].address, dir, epmd_port, nodes, _epmd: epmd };
        for number in 0..broker.nodes.len() {
            broker.configure(number, configuration, plugins);
            broker.begin(number);
        }
        broker
    }

    fn configure(&self, number: usize, configuration: &str, plugins: &str) {
        let node = &self.nodes[number];
        let (user, password) = ACCOUNT;
        // As an operator of a cluster may have it. No queue of one connection can be of this type.
        let default = if self.nodes.len() > 1 { "quorum" } else { "classic" };
        let definitions = serde_json::json!({
            "vhosts": [{ "name": "/" }, { "name": "rouse", "default_queue_type": default, "metadata": { "default_queue_type": default } }],
            "users": [{ "name": user, "password": password, "tags": "" }],
            "permissions": [{ "user": user, "vhost": "rouse", "configure": ".*", "write": ".*", "read": ".*" }],
        });
        let definitions = definitions.to_string();
        let mut more = format!("listeners.tcp.1 = {}\nlog.file = rabbit.log\n", node.address);
        if number == 0 {
            more += &format!("load_definitions = {}/definitions.json\n", node.dir.display());
        } else {
            more += &format!(
                "cluster_formation.peer_discovery_backend = classic_config\ncluster_formation.classic_config.nodes.1 = {}\n",
                self.nodes[0].name()
            );
        }
        fs::create_dir(&node.dir).expect("a directory of its own");
        for (file, text) in [
            ("rabbitmq.conf", format!("{configuration}\n{more}").as_str()),
            ("advanced.config", "[].\n"),
            ("enabled_plugins", plugins),
            ("definitions.json", &definitions),
        ] {
            fs::write(node.dir.join(file), text).expect("its files can be written");
        }
    }

    /// Starts a node, for the first time or again, and waits until it serves.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn begin(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        let mut server = command(&format!("{SCRIPTS}/rabbitmq-server"), &self.dir, self.epmd_port);
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
        server.env("RABBITMQ_NODENAME", node.name());
        let interface = "-kernel inet_dist_use_interface {127,0,0,1}";
        server.env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", interface);
        // What it prints follows what it printed in its earlier lives.
        let starts = |out: &[u8]| String::from_utf8_lossy(out).matches("completed with").count();
        let before = starts(&fs::read(node.dir.join("server.out")).unwrap_or_default());
        let server = Process::start(server, &node.dir, "server");
        let came_up = holds_within(super::READY, || starts(&server.out()) > before);
        assert!(came_up, "{}{}", String::from_utf8_lossy(&server.out()), server.err());
        node.server = Some(server);
    }

    /// Kills a node with SIGKILL.
    pub fn kill(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        kill_all(&node.dir);
        node.server = None;
    }

    /// The names of the master's queues without a consumer.
    ///
    /// # Panics
    /// If the first node does not list them.
    pub fn unread(&self) -> Vec<String> {
        let arguments = ["list_queues", "-p", "rouse", "--no-table-headers", "-q", "name", "consumers"];
        let listed = output_of_rabbitmqctl(&self.nodes[0].dir, &arguments).expect("the node lists its queues");
        let pairs = listed.lines().filter_map(|line| line.split_once('\t'));
        pairs.filter(|(_, consumers)| *consumers == "0").map(|(name, _)| name.to_owned()).collect()
    }

    /// `broker.url` for it, with all its nodes.
    pub fn url(&self) -> String {
        let (user, password) = ACCOUNT;
        format!("amqp://{user}:{password}@{}/rouse", self.addresses())
    }

    /// Where its nodes listen, as they are written in a URL.
    pub fn addresses(&self) -> String {
        self.nodes.iter().map(|node| node.address.to_string()).collect::<Vec<_>>().join(",")
    }
}

impl Node {
    fn name(&self) -> String {
        format!("own{}@localhost", self.address.port())
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

/// A program of a broker with this directory. Its environment is not that of the tests.
fn command(program: &str, dir: &Path, epmd_port: u16) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("LANG", "C.UTF-8");
    command.env("HOME", dir).env("ERL_EPMD_PORT", epmd_port.to_string()).env("ERL_EPMD_ADDRESS", "127.0.0.1");
    command.current_dir(dir);
    command
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

fn output_of_rabbitmqctl(dir: &Path, arguments: &[&str]) -> Result<String, String> {
    let all = super::processes_with(&dir.display().to_string());
    let (beam, _) = all.into_iter().find(|(_, line)| line.contains("beam")).ok_or("no node runs")?;
    let environment = fs::read(format!("/proc/{beam}/environ")).map_err(|error| error.to_string())?;
    let mut command = Command::new(format!("{SCRIPTS}/rabbitmqctl"));
    command.env_clear().env("RABBITMQ_CONF_ENV_FILE", "/dev/null").args(arguments);
    for pair in String::from_utf8_lossy(&environment).split('\0') {
        if let Some((key @ ("PATH" | "LANG" | "HOME" | "ERL_EPMD_PORT" | "RABBITMQ_NODENAME"), value)) =
            pair.split_once('=')
        {
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
