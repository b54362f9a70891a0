//! Starts epmd and the broker in such a way that neither outlives the master.

use super::super::limits::{LOW_DESCRIPTORS, MOST_DESCRIPTORS};
use super::NodeError;
use super::config::Prepared;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::process::{Child, Command};
use tracing::warn;

/// Where the programs are.
pub struct Programs {
    server: PathBuf,
    epmd: PathBuf,
}

impl Programs {
    /// Looks in the places that distributions use. `/usr/sbin/rabbitmq-server` switches users and is not wanted.
    pub fn find() -> Result<Self, NodeError> {
        let server = first_file(&[
            "/usr/lib/rabbitmq/bin/rabbitmq-server",
            "/usr/lib64/rabbitmq/bin/rabbitmq-server",
            "/opt/rabbitmq/sbin/rabbitmq-server",
            "/usr/local/lib/rabbitmq/bin/rabbitmq-server",
            "/usr/local/opt/rabbitmq/sbin/rabbitmq-server",
        ])
        .ok_or(NodeError::NotInstalled { program: "rabbitmq-server" })?;
        let epmd = first_file(&[
            "/usr/bin/epmd",
            "/usr/local/bin/epmd",
            "/usr/lib/erlang/bin/epmd",
            "/usr/lib64/erlang/bin/epmd",
            "/usr/local/lib/erlang/bin/epmd",
            "/opt/erlang/lib/erlang/bin/epmd",
        ])
        .ok_or(NodeError::NotInstalled { program: "epmd" })?;
        Ok(Self { server, epmd })
    }

    /// Other programs, for tests.
    #[cfg(test)]
    pub fn at(server: PathBuf, epmd: PathBuf) -> Self {
        Self { server, epmd }
    }

    /// Starts epmd on a port of the loopback address.
    pub fn spawn_epmd(&self, node: &Prepared, port: u16) -> Result<Child, NodeError> {
        let mut command = self.command(&self.epmd, node);
        command.arg("-port").arg(port.to_string()).args(["-address", "127.0.0.1"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        spawn(command, &self.epmd)
    }

    /// Starts the broker, which reports on the socket `notify` that it is ready.
    pub fn spawn_broker(
        &self,
        node: &Prepared,
        epmd_port: u16,
        dist_port: u16,
        notify: &Path,
    ) -> Result<Child, NodeError> {
        let output = console_path(node);
        let unwritable = |source| NodeError::Directory { path: output.clone(), source };
        let stdout = File::create(&output).map_err(unwritable)?;
        let stderr = stdout.try_clone().map_err(unwritable)?;
        let mut command = self.command(&self.server, node);
        command
            .env("ERL_EPMD_PORT", epmd_port.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("NOTIFY_SOCKET", notify)
            // Nothing of a system-wide broker's configuration is read.
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env("RABBITMQ_CONFIG_FILE", node.path("rabbitmq.conf"))
            .env("RABBITMQ_CONFIG_FILES", node.path("conf.d").join("*.conf"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", node.path("advanced.config"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", node.path("enabled_plugins"))
            .env("RABBITMQ_GENERATED_CONFIG_DIR", node.path("config"))
            .env("RABBITMQ_SCHEMA_DIR", node.path("schema"))
            .env("RABBITMQ_MNESIA_BASE", node.path("mnesia"))
            .env("RABBITMQ_LOG_BASE", node.path("log"))
            .env("RABBITMQ_NODENAME", &node.node_name)
            .env("RABBITMQ_DIST_PORT", dist_port.to_string())
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", erlang_arguments(node.asks_by_ipv6))
            .stdout(stdout)
            .stderr(stderr);
        spawn(command, &self.server)
    }

    /// Starts RabbitMQ's command that closes the connections of a user.
    pub fn spawn_close(&self, node: &Prepared, epmd_port: u16, user: &str) -> Result<Child, NodeError> {
        let program = self.server.with_file_name("rabbitmqctl");
        let mut command = self.command(&program, node);
        command
            .env("ERL_EPMD_PORT", epmd_port.to_string())
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env("RABBITMQ_NODENAME", &node.node_name)
            .args(["close_all_user_connections", user, "blocked: too much was sent in this name"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        spawn(command, &program)
    }

    fn command(&self, program: &Path, node: &Prepared) -> Command {
        let mut command = Command::new(program);
        // An environment of its own: RABBITMQ_* and ERL_* of the master's would reach into it.
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into()))
            .env("HOME", node.path("home"))
            .env("LANG", "C.UTF-8")
            .current_dir(&node.dir)
            .stdin(Stdio::null())
            // A group of its own: a Ctrl-C at the terminal is for the master, which then ends the broker cleanly.
            .process_group(0)
            .kill_on_drop(true);
        command
    }
}

/// The arguments of Erlang. RabbitMQ's script splits it at the spaces, and at nothing else.
fn erlang_arguments(asks_by_ipv6: bool) -> String {
    // Without this the distribution port listens on every address.
    let mut arguments = "-kernel inet_dist_use_interface {127,0,0,1}".to_owned();
    // So often, in milliseconds, Erlang looks whether the files of a certificate have changed. Its default is 2 minutes.
    arguments += " -ssl ssl_pem_cache_clean 5000";
    // A later version starts on the data only if this one has enabled what it requires. A node enables nothing by
    // itself after its first boot.
    arguments += " -eval spawn(fun()->rabbit:await_startup(),rabbit_feature_flags:enable_all()end).";
    if asks_by_ipv6 {
        // Erlang's HTTP client, with which RabbitMQ asks who may connect, knows only IPv4 unless it is told.
        arguments += " -eval inets:start(),httpc:set_options([{ipfamily,inet6fb4}]).";
    }
    arguments
}

fn first_file(candidates: &[&str]) -> Option<PathBuf> {
    candidates.iter().map(PathBuf::from).find(|path| path.is_file())
}

/// Where the broker's standard output goes; emptied at each boot.
pub fn console_path(node: &Prepared) -> PathBuf {
    node.path("log").join("console.log")
}

/// The end of what the broker printed, for an error.
pub fn console_tail(node: &Prepared) -> String {
    const TAIL: usize = 1_500;
    let bytes = fs::read(console_path(node)).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(TAIL)..]).trim().to_owned();
    if text.is_empty() { format!("nothing (see {})", node.path("log").display()) } else { text }
}

/// Words of RabbitMQ (3.11 to 4.x) when it does not start on data of an earlier version, which had not enabled a
/// feature flag that it requires. It has no exit code for that.
const REFUSALS: [&str; 3] = [
    "disabled_required_feature_flag",
    "disabled_mandatory_feature_flag",
    "failed_to_initialize_feature_flags_registry",
];

/// Whether the broker that has just ended said that its data are too old for it.
pub fn refuses_data(node: &Prepared) -> bool {
    let bytes = fs::read(console_path(node)).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    REFUSALS.iter().any(|words| text.contains(words))
}

/// A port that was free a moment ago, on the loopback address.
pub fn free_port() -> Result<u16, NodeError> {
    let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    std::net::TcpListener::bind(any)
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|source| NodeError::Listen { address: any, source })
}

/// Warns if the broker will have few file descriptors.
pub fn check_descriptors() {
    if let Some(limit) = descriptors()
        && limit.rlim_max < LOW_DESCRIPTORS
    {
        warn!(
            limit = limit.rlim_max,
            "few file descriptors for the private broker: connections beyond that hang; raise the limit (ulimit -Hn, LimitNOFILE=)"
        );
    }
}

/// How many file descriptors epmd and the broker get: as many as the hard limit allows, up to [`MOST_DESCRIPTORS`].
/// `None` if the kernel does not report it.
fn descriptors() -> Option<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit writes into the struct that it is given.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return None;
    }
    let given = capped(limit.rlim_max);
    Some(libc::rlimit { rlim_cur: given, rlim_max: given })
}

/// How many of so many descriptors do the programs good.
pub(super) fn capped(hard: u64) -> u64 {
    hard.min(MOST_DESCRIPTORS)
}

fn spawn(mut command: Command, program: &Path) -> Result<Child, NodeError> {
    // SAFETY: getpid cannot fail.
    let master = unsafe { libc::getpid() };
    // SAFETY: between fork and exec only async-signal-safe calls are made, and nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The master may have died before the line above.
            if libc::getppid() != master {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            // The hard limit too: a program that raises its own limit must not undo this.
            if let Some(limit) = descriptors() {
                libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
            }
            Ok(())
        });
    }
    command.spawn().map_err(|source| NodeError::Spawn { program: program.to_owned(), source })
}
