//! A PostgreSQL server of a test's own, from the distribution's packages.

use super::certificates::make_certificates;
use super::process::{DEADLINE, Process, holds_within};
use super::{free_address, scratch};
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// The role that masters log in as, and its password.
pub const ROLE: (&str, &str) = ("rouse", "not-a-secret");

/// A server. It is killed when this is dropped.
pub struct Postgres {
    /// Where it listens.
    pub address: SocketAddr,
    dir: PathBuf,
    programs: PathBuf,
    process: Option<Process>,
}

impl Postgres {
    /// Where the programs of PostgreSQL are; nothing if it is not installed.
    ///
    /// # Panics
    /// If it is not installed on a machine of CI.
    pub fn programs() -> Option<PathBuf> {
        let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let mut found: Vec<_> =
            versions.map(|entry| entry.path().join("bin")).filter(|bin| bin.join("initdb").exists()).collect();
        found.sort();
        let found = found.pop();
        assert!(
            found.is_some() || std::env::var_os("CI").is_none(),
            "PostgreSQL is not installed: run tests/setup test"
        );
        if found.is_none() {
            eprintln!("skipped: PostgreSQL is not installed; tests/setup test installs it");
        }
        found
    }

    /// Makes a server with these further lines of `postgresql.conf`, and starts it; nothing if it is not installed.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn start(name: &str, settings: &str) -> Option<Self> {
        let programs = Self::programs()?;
        let dir = scratch(name);
        let mut server = Self { address: free_address(), dir: dir.join("postgres"), programs, process: None };
        fs::create_dir(&server.dir).expect("a directory of its own");
        if let Some((user, group)) = other_user() {
            chown(&server.dir, Some(user), Some(group)).expect("root can give it away");
        }
        let mut make = server.command("initdb");
        make.args(["--no-sync", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--username=postgres", "-D"]);
        let made = make.arg(server.data()).output().expect("initdb can be run");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mut text = fs::read_to_string(server.data().join("postgresql.conf")).expect("initdb has made it");
        text += &format!("listen_addresses = '127.0.0.1'\nport = {}\n", server.address.port());
        text += &format!("unix_socket_directories = '{}'\n{settings}\n", server.dir.display());
        fs::write(server.data().join("postgresql.conf"), text).expect("its files can be written");
        let access = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
        fs::write(server.data().join("pg_hba.conf"), access).expect("its files can be written");
        server.begin();
        server.sql("postgres", &format!("CREATE ROLE {} LOGIN PASSWORD '{}'", ROLE.0, ROLE.1));
        Some(server)
    }

    /// The server that another process has started, by what [`Self::description`] says.
    ///
    /// # Panics
    /// If there is none.
    pub fn of_keeper(description: &serde_json::Value) -> Option<Self> {
        let dir = PathBuf::from(description["dir"].as_str()?);
        let address = description["address"].as_str()?.parse().expect("an address");
        Some(Self { address, dir, programs: Self::programs()?, process: None })
    }

    /// What other processes have to know of it.
    pub fn description(&self) -> serde_json::Value {
        serde_json::json!({ "dir": self.dir, "address": self.address })
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// PostgreSQL refuses to run as root.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        if let Some((user, group)) = other_user() {
            command.uid(user).gid(group);
        }
        command.current_dir("/").env("LC_ALL", "C.UTF-8");
        command
    }

    /// Starts it, for the first time or again, and waits until it serves.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn begin(&mut self) {
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data());
        self.process = Some(Process::start(command, self.dir.parent().expect("it is in another"), "postgres"));
        assert!(holds_within(DEADLINE, || self.try_sql("postgres", "SELECT 1").is_ok()), "{}", self.log());
    }

    /// Starts it again with TLS, and a certificate of an authority of its own for localhost. The authority's file.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn begin_with_tls(&mut self) -> PathBuf {
        self.kill();
        make_certificates(&self.dir);
        let key = self.dir.join("server.key");
        if let Some((user, group)) = other_user() {
            chown(&key, Some(user), Some(group)).expect("root can give it away");
        }
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("it is ours");
        let file = self.data().join("postgresql.conf");
        let mut text = fs::read_to_string(&file).expect("initdb has made it");
        for (setting, name) in [("ssl_cert_file", "server.pem"), ("ssl_key_file", "server.key")] {
            text += &format!("{setting} = '{}'\n", self.dir.join(name).display());
        }
        fs::write(&file, text + "ssl = on\n").expect("its files can be written");
        self.begin();
        self.dir.join("ca.pem")
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::err).unwrap_or_default()
    }

    /// SIGKILL to the server. Its other processes end by themselves.
    ///
    /// # Panics
    /// If it was not started here.
    pub fn kill(&mut self) {
        self.process.as_mut().expect("it was started here").kill();
        // A new server refuses to start as long as one of them has the memory that they share.
        let data = self.data().display().to_string();
        let gone = || super::process::processes_with(&data).is_empty() && self.try_sql("postgres", "SELECT 1").is_err();
        assert!(holds_within(DEADLINE, gone), "its processes do not end");
    }

    /// Sends a signal to all its processes.
    ///
    /// # Panics
    /// If it was not started here.
    pub fn signal_all(&self, signal: i32) {
        let server = self.process.as_ref().expect("it was started here").pid();
        for pid in children(server).into_iter().chain([server]) {
            // SAFETY: only numbers are passed. A child that has ended meanwhile has not been replaced by another process
            // so soon.
            unsafe { libc::kill(pid, signal) };
        }
    }

    /// What psql prints for these statements, executed by the superuser.
    ///
    /// # Panics
    /// If they fail.
    #[track_caller]
    pub fn sql(&self, database: &str, statements: &str) -> String {
        self.try_sql(database, statements).unwrap_or_else(|why| panic!("{statements}: {why}"))
    }

    fn try_sql(&self, database: &str, statements: &str) -> Result<String, String> {
        let mut psql = self.command("psql");
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", database, "-h"]);
        psql.arg(&self.dir).args(["-p", &self.address.port().to_string(), "-c", statements]);
        let output = psql.env("PGCONNECT_TIMEOUT", "2").output().expect("psql can be run");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// A new database, which the role owns.
    pub fn database(&self) -> String {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}_{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name} OWNER {}", ROLE.0));
        name
    }

    /// The URL of a database of it.
    pub fn url(&self, database: &str) -> String {
        Self::url_at(self.address, database)
    }

    /// The URL of a database of a server, perhaps behind a proxy.
    pub fn url_at(address: SocketAddr, database: &str) -> String {
        format!("postgres://{}:{}@{address}/{database}", ROLE.0, ROLE.1)
    }

    /// The directory of its socket.
    pub fn socket(&self) -> &Path {
        &self.dir
    }
}

/// Who runs the server, if this is root.
fn other_user() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").expect("there are users");
    let ids = |name: &str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2).map_while(|field| field.parse().ok());
        Some((fields.next()?, fields.next()?))
    };
    ids("postgres").or_else(|| ids("nobody"))
}

/// The processes whose parent this is.
fn children(parent: i32) -> Vec<i32> {
    let of = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields =
            stat.rsplit_once(") ").map(|(_, rest)| rest.split_whitespace().nth(1).and_then(|f| f.parse().ok()));
        fields.flatten() == Some(parent)
    };
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    entries.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok()).filter(of).collect()
}
