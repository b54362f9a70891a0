//! The dead-man timer of a latent host, with the real program, a command that leaves a trace instead of powering off,
//! and everything that may keep an agent from its master.
#![expect(clippy::disallowed_methods, reason = "what is measured here is how long the real timers take")]

#[allow(dead_code)] // Other tests use the rest.
#[path = "support/metadata.rs"]
mod metadata;

use metadata::Metadata;
use rouse_shared::boot::comment_block;
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longest wait for anything.
const DEADLINE: Duration = Duration::from_secs(60);

/// An agent whose power-off command writes a line to a file.
struct Host {
    dir: TempDir,
    agent: Child,
}

impl Host {
    /// With these lines of configuration; `off` is what the command does after it has left its trace.
    fn start(more: &str, off: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let config = format!(
            "work_dir = {work:?}\npower_off = \"latent\"\n\
             power_off_command = [\"/bin/sh\", \"-c\", \"echo off >> {trace}; {off}\"]\n{more}\n",
            work = dir.path().join("work"),
            trace = dir.path().join("trace").display(),
        );
        let path = dir.path().join("agent.toml");
        fs::write(&path, config).expect("a configuration");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("our file");
        let agent = Self::spawn(&dir);
        Self { dir, agent }
    }

    fn spawn(dir: &TempDir) -> Child {
        let said = fs::File::options().create(true).append(true).open(dir.path().join("said")).expect("a log");
        Self::spawn_with(dir, said.into())
    }

    /// The same with another standard error.
    fn spawn_with(dir: &TempDir, said: Stdio) -> Child {
        Command::new(env!("CARGO_BIN_EXE_rouse-agent"))
            .arg("-c")
            .arg(dir.path().join("agent.toml"))
            .stdin(Stdio::null())
            .stderr(said)
            .spawn()
            .expect("an agent")
    }

    fn trace(&self) -> PathBuf {
        self.dir.path().join("trace")
    }

    fn said(&self) -> String {
        fs::read_to_string(self.dir.path().join("said")).unwrap_or_default()
    }

    fn offs(&self) -> usize {
        fs::read_to_string(self.trace()).map_or(0, |text| text.lines().count())
    }

    fn until(&self, what: &str, mut true_at_last: impl FnMut(&Self) -> bool) {
        let begun = Instant::now();
        while !true_at_last(self) {
            assert!(begun.elapsed() < DEADLINE, "{what} did not come about; the agent said:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for the power-off, which must not happen before `at_least` has passed.
    fn goes_off_after(&self, begun: Instant, at_least: Duration) {
        self.until("the power-off", |host| host.offs() > 0);
        // The clocks of the agent and of this test are read a moment apart.
        assert!(begun.elapsed() > at_least - Duration::from_millis(100), "{:?}\n{}", begun.elapsed(), self.said());
    }

    fn signal(&self, signal: Signal) {
        // The child is not waited for yet.
        kill_process(Pid::from_child(&self.agent), signal).expect("signalled");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.agent.kill().expect("killed");
        self.agent.wait().expect("waited for");
    }
}

fn boot_data(broker: &str, power_off_after: u64) -> String {
    format!(
        "name = \"w7\"\nhost = \"h0123456789abcdef\"\nbroker = \"amqp://{broker}\"\ntoken = \"t0\"\n\
         power_off_after = {power_off_after}\n"
    )
}

/// A worker with a static identity and this broker.
fn worker(broker: &str) -> String {
    format!("identity = \"static\"\nname = \"w7\"\npassword = \"hush\"\nbroker = \"amqp://{broker}\"")
}

/// An address where nobody listens.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its address").to_string()
}

const TWO: Duration = Duration::from_secs(2);

#[test]
fn a_broker_that_is_not_there_or_does_not_answer_ends_the_host() {
    // The kernel accepts connections for it, and nobody ever answers.
    let mute = TcpListener::bind("127.0.0.1:0").expect("a port");
    for broker in [nobody(), mute.local_addr().expect("its address").to_string()] {
        let begun = Instant::now();
        let host = Host::start(&format!("power_off_after = 2\n{}", worker(&broker)), "true");
        host.goes_off_after(begun, TWO);
        assert!(host.said().contains("no master has accepted this host"), "{}", host.said());
    }
}

#[test]
fn an_identity_that_never_comes_ends_the_host() {
    let mute = TcpListener::bind("127.0.0.1:0").expect("a port");
    let mute = mute.local_addr().expect("its address");
    // With the log line that says what each waits for.
    for (identity, said) in [
        (
            format!("identity = \"ec2\"\nmetadata = \"http://{}\"", nobody()),
            "waiting for EC2's metadata service: cannot connect: ",
        ),
        (format!("identity = \"ec2\"\nmetadata = \"http://{mute}\""), ""),
        (format!("identity = \"openstack\"\nmetadata = \"http://{}\"", nobody()), "waiting for OpenStack's metadata"),
        ("identity = \"config-drive\"".to_owned(), "waiting for the config drive: no disk is labelled config-2"),
        ("identity = \"boot-data\"\nboot_data = \"/nonexistent/boot.toml\"".to_owned(), "cannot start: /nonexistent"),
        ("identity = \"auto\"".to_owned(), "there are no boot data, and the configuration has no password; retrying"),
    ] {
        let begun = Instant::now();
        let host = Host::start(&format!("power_off_after = 2\n{identity}"), "true");
        host.goes_off_after(begun, TWO);
        assert!(host.said().contains(said), "{identity}: {}", host.said());
    }
}

#[test]
fn boot_data_change_the_time() {
    let fake = Metadata::ec2("i-0123456789abcdef0");
    for (own, given, expected) in [(60, 2, 2), (2, 5, 5)] {
        fake.put("/latest/user-data", &comment_block(&boot_data(&nobody(), given)));
        let begun = Instant::now();
        let host =
            Host::start(&format!("power_off_after = {own}\nidentity = \"ec2\"\nmetadata = {:?}", fake.url()), "true");
        host.goes_off_after(begun, Duration::from_secs(expected));
        assert!(host.said().contains("worker w7 on host ec2:i-0123456789abcdef0"), "{}", host.said());
    }
}

#[test]
fn a_command_that_fails_is_run_until_it_works() {
    let host = Host::start(&format!("power_off_after = 1\n{}", worker(&nobody())), "exit 3");
    host.until("a second try", |host| host.offs() >= 2);
    assert!(host.said().contains("cannot power off: ") && host.said().contains("exit status: 3"), "{}", host.said());
}

#[test]
fn a_log_that_nobody_reads_keeps_no_host_on() {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    let room = rustix::pipe::fcntl_getpipe_size(&writer).expect("its size");
    writer.write_all(&vec![b'x'; room]).expect("filled to the last byte");
    let mut host = Host::start(&format!("power_off_after = 2\n{}", worker(&nobody())), "true");
    host.agent.kill().expect("killed");
    host.agent.wait().expect("waited for");
    let begun = Instant::now();
    host.agent = Host::spawn_with(&host.dir, writer.into());
    host.until("the power-off", |host| host.offs() > 0);
    assert!(begun.elapsed() < 5 * TWO, "{:?}", begun.elapsed());
    drop(reader);
}

#[test]
fn a_frozen_agent_powers_off_when_it_thaws() {
    let host = Host::start(&format!("power_off_after = 2\n{}", worker(&nobody())), "true");
    host.until("it has begun", |host| host.said().contains("this is worker w7"));
    host.signal(Signal::STOP);
    std::thread::sleep(TWO);
    assert_eq!(host.offs(), 0);
    host.signal(Signal::CONT);
    let thawed = Instant::now();
    host.until("the power-off", |host| host.offs() > 0);
    assert!(thawed.elapsed() < TWO, "{:?}", thawed.elapsed());
}

#[test]
fn an_agent_that_crashes_again_and_again_does_not_wind_it_up() {
    let begun = Instant::now();
    let mut host = Host::start(&format!("power_off_after = 4\n{}", worker(&nobody())), "true");
    let mut lives = 1;
    while host.offs() == 0 {
        assert!(begun.elapsed() < DEADLINE, "it lives on: {}", host.said());
        // As a service manager does: each run is far shorter than the timer.
        std::thread::sleep(Duration::from_millis(900));
        if host.offs() == 0 {
            host.agent.kill().expect("killed");
            host.agent.wait().expect("waited for");
            host.agent = Host::spawn(&host.dir);
            lives += 1;
        }
    }
    assert!(lives > 2 && begun.elapsed() > Duration::from_secs(4), "{lives} lives in {:?}", begun.elapsed());
}

#[test]
fn a_standing_machine_has_no_timer() {
    let host = Host::start(&format!("power_off_after = 1\n{}", worker(&nobody())), "true");
    // The last value counts, as for every environment variable.
    let dir = tempfile::tempdir().expect("a directory");
    let mut standing = Command::new(env!("CARGO_BIN_EXE_rouse-agent"))
        .arg("-c")
        .arg(host.dir.path().join("agent.toml"))
        .env("ROUSE_AGENT_POWER_OFF", "never")
        .env("ROUSE_AGENT_WORK_DIR", dir.path())
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("an agent");
    host.until("the latent one's power-off", |host| host.offs() > 0);
    std::thread::sleep(TWO);
    assert_eq!(host.offs(), 1, "the standing one's");
    assert!(standing.try_wait().expect("asked").is_none(), "it keeps trying");
    standing.kill().expect("killed");
    standing.wait().expect("waited for");
}
