//! The master with its private broker in the sandbox of contrib/systemd/rouse.service, and its process hosts outside.

use rouse_tests::harness::{Master, free_address, program, standing};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// `nobody`
const USER: u32 = 65_534;

/// Does what systemd does for rouse-host.socket, until the test ends.
fn start_hosts(socket: &Path, rouse: &Path) {
    let listener = UnixListener::bind(socket).unwrap();
    fs::set_permissions(socket, fs::Permissions::from_mode(0o777)).unwrap();
    let rouse = rouse.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut command = Command::new(&rouse);
            command.arg("launch-host").stdin(Stdio::from(std::os::fd::OwnedFd::from(stream.unwrap())));
            let mut child = command.env_clear().current_dir("/").uid(USER).gid(USER).process_group(0).spawn().unwrap();
            std::thread::spawn(move || child.wait());
        }
    });
}

/// A line of `/proc/PID/status`.
fn status(pid: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    text.lines().find_map(|line| Some(line.strip_prefix(key)?.strip_prefix(':')?.trim().to_owned()))
}

fn processes() -> impl Iterator<Item = String> {
    fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().into_string().ok())
}

#[test]
fn the_master_works_in_its_sandbox_and_process_hosts_outside() {
    if !rustix::process::geteuid().is_root() || !cfg!(target_arch = "x86_64") {
        return eprintln!("not checked: only root can make a sandbox, and only for x86-64");
    }
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        return eprintln!("not checked: systemd-analyze is not installed");
    }
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap();
    let amqp = free_address();
    let broker = format!("listen = [\"{amqp}\"]\n");
    let master = Master::prepare("sandbox", &broker, &format!("amqp://{amqp}/rouse"), free_address(), "");
    // Where this user can reach them.
    let programs = master.dir.join("programs");
    fs::create_dir(&programs).unwrap();
    for name in ["rouse", "rouse-agent"] {
        fs::copy(program(name), programs.join(name)).unwrap();
    }
    let (rouse, socket) = (programs.join("rouse"), programs.join("host.sock"));
    start_hosts(&socket, &rouse);
    let agent = programs.join("rouse-agent");
    let boxed = standing("boxed", "build_wait_timeout = 600");
    // Its agent is not root, so its builds run as its own user.
    let worker = format!("{boxed}grace = 20\n[worker.process]\nagent = \"{}\"\n", agent.display());
    let head = fs::read_to_string(master.config()).unwrap();
    fs::write(master.config(), head + &worker).unwrap();
    for path in [&master.dir, &master.config()] {
        std::os::unix::fs::chown(path, Some(USER), Some(USER)).unwrap();
    }
    let mut command = Command::new(repository.join("tests/sandbox"));
    command.arg(repository.join("contrib/systemd/rouse.service")).arg(USER.to_string());
    command.arg(&master.dir).arg(&rouse).env("ROUSE_HOST_SOCKET", &socket);
    master.begin_by(command);

    let pid = master.pid().to_string();
    let confined = |pid: &str| ["NoNewPrivs", "Seccomp", "CapBnd"].map(|key| status(pid, key).unwrap());
    assert_eq!(confined(&pid), ["1", "2", "0000000000000000"]);
    let of_master = |pid: &String| status(pid, "PPid").as_ref() == Some(&master.pid().to_string());
    let broker = processes().find(|pid| of_master(pid) && status(pid, "Name").unwrap_or_default().starts_with("beam"));
    assert_eq!(confined(&broker.expect("the master has a broker")), confined(&pid));

    let script = "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status";
    let said = master.rouse(&["build", "--worker", "boxed", "--", "sh", "-c", script]).ended(0);
    assert_eq!(said.text().split_whitespace().collect::<Vec<_>>(), ["NoNewPrivs:", "0", "Seccomp:", "0"]);
    let host = master.get("/api/hosts").json()[0].clone();
    let agent = host["handle"].as_str().unwrap().split(':').next().unwrap().to_owned();
    assert_eq!(status(&agent, "Uid").unwrap().split_whitespace().next(), Some("65534"));

    // The agent is not the master's child, and does not end with it.
    master.terminate();
    assert_eq!(status(&agent, "Name").as_deref(), Some("rouse-agent"));
    assert_ne!(status(&agent, "State").unwrap().chars().next(), Some('Z'));
}
