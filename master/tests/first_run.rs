//! What a new user sees first: the program when something is missing or in its way. Each message reports what happened,
//! to what, and what to do. Each is kept in a file in `first_run/`, with paths and ports replaced. `ROUSE_BLESS=1 cargo
//! test -p rouse-master --test first_run` rewrites the files.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::Permissions;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use tempfile::TempDir;

/// How long a line that has to come may take.
const LIMIT: Duration = Duration::from_secs(60);
/// Nobody listens there.
const CLOSED: &str = "amqp://guest:guest@127.0.0.1:1/";
/// Where a command looks for the token if nothing else is given.
const TOKEN_FILE: &str = "/var/lib/rouse/api-token";

/// A directory with a configuration in it.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new(config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let text = config.replace("STATE", state.to_str().unwrap());
        let path = dir.path().join("rouse.toml");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
        Self { dir }
    }

    /// One whose master runs without a broker.
    fn without_broker(more: &str) -> Self {
        Self::new(&format!(
            "[master]\nlisten = \"127.0.0.1:0\"\nstate_dir = \"STATE\"\n{more}\n\
             [broker]\nurl = \"{CLOSED}\"\nauth_listen = \"127.0.0.1:0\"\n"
        ))
    }

    /// One whose master runs a broker of its own.
    fn with_broker(listen: &str) -> Self {
        Self::new(&format!(
            "[master]\nlisten = \"127.0.0.1:0\"\nstate_dir = \"STATE\"\n\
             [broker]\nlisten = [\"{listen}\"]\nauth_listen = \"127.0.0.1:0\"\n"
        ))
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("rouse.toml")
    }

    fn master(&self) -> Command {
        let mut command = rouse();
        command.arg("master").arg("-c").arg(self.config()).env("ROUSE_LOG", "error");
        command
    }

    /// The text that a person sees, without what differs from one run to the next.
    fn shown(&self, text: &str, ports: &[u16]) -> String {
        let mut text = text.replace(self.dir.path().to_str().unwrap(), "DIR");
        for port in ports {
            text = text.replace(&format!(":{port}"), ":PORT");
        }
        text
    }
}

/// The program, with an environment that holds no settings for it.
fn rouse() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rouse"));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Compares what a program has said with the file of that name.
#[track_caller]
fn compare(name: &str, command: &str, code: Option<i32>, said: &str) {
    let ended = code.map_or_else(|| "runs on".to_owned(), |code| format!("ends with {code}"));
    let now = format!("$ {command}\n{said}{}({ended})\n", if said.ends_with('\n') { "" } else { "\n" });
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/first_run").join(format!("{name}.txt"));
    if std::env::var_os("ROUSE_BLESS").is_some() {
        std::fs::write(&path, &now).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(golden, now, "{} differs; if the new text is right: ROUSE_BLESS=1", path.display());
}

#[track_caller]
fn ends(name: &str, place: &Place, command: &str, output: &Output, ports: &[u16]) {
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    let said = place.shown(&String::from_utf8(said).unwrap(), ports);
    compare(name, command, Some(output.status.code().unwrap()), &said);
}

/// A master that runs; ended with this.
struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Running {
    fn start(place: &Place) -> Self {
        let mut child = place.master().env("ROUSE_LOG", "info").spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (said, lines) = mpsc::sync_channel(1_000);
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).all(|line| said.send(line).is_ok()));
        Self { child, lines }
    }

    /// The next line with these words in it, from its level on.
    fn says(&self, words: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(LIMIT).unwrap_or_else(|_| panic!("it does not log {words:?}"));
            if line.contains(words) {
                return line.split_once(' ').map_or("", |(_time, rest)| rest).trim_start().to_owned();
            }
        }
    }

    /// Where its API is, once it is there.
    fn server(&self) -> String {
        let line = self.says("listening on http://");
        line.split(&[' ', ';']).find(|word| word.starts_with("http://")).unwrap().to_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn the_port_of_the_api_is_in_use() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let place = Place::new(&format!(
        "[master]\nlisten = \"{address}\"\nstate_dir = \"STATE\"\n[broker]\nurl = \"{CLOSED}\"\nauth_listen = \"127.0.0.1:0\"\n"
    ));
    let output = place.master().output().unwrap();
    ends("listen_in_use", &place, "rouse master -c DIR/rouse.toml", &output, &[address.port()]);
}

#[test]
fn the_port_of_the_private_broker_is_in_use() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let place = Place::with_broker(&address.to_string());
    let output = place.master().output().unwrap();
    ends("broker_listen_in_use", &place, "rouse master -c DIR/rouse.toml", &output, &[address.port()]);
}

#[test]
fn rabbitmq_is_missing() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let place = Place::with_broker(&free.to_string());
    // If it is installed it is hidden from this one program.
    let script = "for dir in /usr/lib/rabbitmq /usr/lib64/rabbitmq /opt/rabbitmq /usr/local/lib/rabbitmq \
                  /usr/local/opt/rabbitmq; do [ ! -d $dir ] || mount -t tmpfs none $dir || exit 77; done; \
                  exec \"$0\" master -c \"$1\"";
    let mut command = Command::new("unshare");
    command.arg(if rustix::process::geteuid().is_root() { "-m" } else { "-Urm" });
    command.args(["sh", "-c", script, env!("CARGO_BIN_EXE_rouse")]).arg(place.config());
    let output = command.env("ROUSE_LOG", "error").stdin(Stdio::null()).output().unwrap();
    if output.status.code() == Some(77) || output.stderr.starts_with(b"unshare:") {
        assert!(
            std::env::var_os("CI").is_none(),
            "RabbitMQ cannot be hidden: this test cannot run, and CI must run it"
        );
        return eprintln!("not run: this user may not hide RabbitMQ");
    }
    ends("rabbitmq_missing", &place, "rouse master -c DIR/rouse.toml", &output, &[]);
}

#[test]
fn the_state_directory_cannot_be_made() {
    let place = Place::new(&format!(
        "[master]\nlisten = \"127.0.0.1:0\"\nstate_dir = \"STATE/rouse\"\n[broker]\nurl = \"{CLOSED}\"\n"
    ));
    // A file in its way stops root, too.
    std::fs::write(place.dir.path().join("state"), "").unwrap();
    let output = place.master().output().unwrap();
    ends("state_dir_not_writable", &place, "rouse master -c DIR/rouse.toml", &output, &[]);
}

#[test]
fn another_master_uses_the_state_directory() {
    let place = Place::without_broker("");
    let first = Running::start(&place);
    first.server();
    let output = place.master().output().unwrap();
    ends("second_master", &place, "rouse master -c DIR/rouse.toml", &output, &[]);
}

#[test]
fn the_configuration_has_five_errors() {
    let place = Place::new(
        "[master]\nlisten = \"localhost\"\nstat_dir = \"/var/lib/rouse\"\n[broker]\nurl = \"http://broker.example.com\"\n\
         [limits]\nmax_hosts = -1\n[[worker]]\nname = \"w 1\"\npassword = \"x\"\n",
    );
    let output = place.master().output().unwrap();
    ends("five_errors", &place, "rouse master -c DIR/rouse.toml", &output, &[]);
}

#[test]
fn the_broker_is_away() {
    let place = Place::without_broker("");
    let master = Running::start(&place);
    let said = place.shown(&master.says("to the broker"), &[]);
    compare("broker_away", "rouse master -c DIR/rouse.toml", None, &said);
}

#[test]
fn a_command_has_no_token() {
    if Path::new(TOKEN_FILE).exists() {
        assert!(std::env::var_os("CI").is_none(), "{TOKEN_FILE} is there");
        return eprintln!("not run: {TOKEN_FILE} is there, so a command has a token");
    }
    let place = Place::without_broker("");
    let master = Running::start(&place);
    let output = rouse().args(["cancel", "1", "--server", &master.server()]).output().unwrap();
    ends("token_missing", &place, "rouse cancel 1", &output, &[]);
}

#[test]
fn no_master_runs() {
    let place = Place::without_broker("");
    let output = rouse().args(["builds", "--server", "http://127.0.0.1:1"]).output().unwrap();
    ends("master_not_running", &place, "rouse builds --server http://127.0.0.1:1", &output, &[]);
}
