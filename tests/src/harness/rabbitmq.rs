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

/// A node that was set up by an operator, with a virtual host `rouse` beside its default one. It ends when this is
/// dropped.
pub struct OwnBroker {
    /// Where it listens.
    pub address: SocketAddr,
    dir: PathBuf,
    _epmd: Process,
    _server: Process,
}

impl OwnBroker {
    /// Starts a node with these lines in its configuration, and these plugins as in `enabled_plugins`.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn start(name: &str, configuration: &str, plugins: &str) -> Self {
        let dir = scratch(name);
        let (address, epmd_port, dist_port) = (free_address(), free_address().port(), free_address().port());
        let (user, password) = ACCOUNT;
        let definitions = format!(
            "{{\"vhosts\":[{{\"name\":\"/\"}},{{\"name\":\"rouse\"}}],\
             \"users\":[{{\"name\":\"{user}\",\"password\":\"{password}\",\"tags\":\"\"}}],\
             \"permissions\":[{{\"user\":\"{user}\",\"vhost\":\"rouse\",\"configure\":\".*\",\"write\":\".*\",\"read\":\".*\"}}]}}"
        );
        let more = format!(
            "listeners.tcp.1 = {address}\nload_definitions = {dir}/definitions.json\nlog.file = rabbit.log\n",
            dir = dir.display()
        );
        for (file, text) in [
            ("rabbitmq.conf", format!("{configuration}\n{more}").as_str()),
            ("advanced.config", "[].\n"),
            ("enabled_plugins", plugins),
            ("definitions.json", &definitions),
        ] {
            fs::write(dir.join(file), text).expect("its files can be written");
        }
        let command = |program: &str| {
            let mut command = Command::new(program);
            command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("LANG", "C.UTF-8");
            command.env("HOME", &dir).env("ERL_EPMD_PORT", epmd_port.to_string()).env("ERL_EPMD_ADDRESS", "127.0.0.1");
            command.current_dir(&dir);
            command
        };
        // Else the node would start one that outlives it.
        let mut epmd = command("epmd");
        epmd.args(["-port", &epmd_port.to_string(), "-address", "127.0.0.1"]);
        let epmd = Process::start(epmd, &dir, "epmd");
        let listens = || std::net::TcpStream::connect(("127.0.0.1", epmd_port)).is_ok();
        assert!(holds_within(DEADLINE, listens), "epmd does not listen: {}", epmd.err());
        let mut server = command(&format!("{SCRIPTS}/rabbitmq-server"));
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
            server.env(key, dir.join(file));
        }
        server.env("RABBITMQ_CONF_ENV_FILE", "/dev/null").env("RABBITMQ_DIST_PORT", dist_port.to_string());
        server.env("RABBITMQ_NODENAME", format!("own{}@localhost", address.port()));
        let interface = "-kernel inet_dist_use_interface {127,0,0,1}";
        server.env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", interface);
        let server = Process::start(server, &dir, "server");
        let came_up = holds_within(super::READY, || String::from_utf8_lossy(&server.out()).contains("completed with"));
        assert!(came_up, "{}{}", String::from_utf8_lossy(&server.out()), server.err());
        Self { address, dir, _epmd: epmd, _server: server }
    }

    /// `broker.url` for it.
    pub fn url(&self) -> String {
        let (user, password) = ACCOUNT;
        format!("amqp://{user}:{password}@{}/rouse", self.address)
    }
}

impl Drop for OwnBroker {
    fn drop(&mut self) {
        // RabbitMQ's script starts Erlang as its child, which outlives the script.
        for (pid, _) in super::processes_with(&self.dir.display().to_string()) {
            // SAFETY: only numbers are passed. The process may have ended.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("{} stays: {error}", self.dir.display());
        }
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
    if output.status.success() { Ok(()) } else { Err(format!("{output:?}")) }
}
