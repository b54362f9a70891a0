//! The API of a live master against its own document: schemathesis makes requests of all kinds from `/openapi.json`, and
//! checks every answer. The master's workers have no agents, so that no submitted build runs.
#![allow(clippy::unwrap_used)]

use rouse_tests::harness::free_address;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Between two looks whether the master is ready, and how many there are at most: two minutes, for a broker of its own.
const LOOK: Duration = Duration::from_millis(50);
const LOOKS: usize = 2_400;

struct Master(Child);

impl Drop for Master {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).ok();
        self.0.wait().ok();
    }
}

fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let found = test.ancestors().skip(1).take(3).map(|dir| dir.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("there is no {name} near {}: run `cargo build --workspace --bins`", test.display()))
}

fn is_healthy(address: SocketAddr) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        write!(stream, "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 "))
}

fn start(dir: &Path) -> (Master, SocketAddr) {
    let http = free_address();
    let config = dir.join("rouse.toml");
    fs::write(
        &config,
        format!(
            "[master]\nname = \"openapi\"\nstate_dir = {state:?}\nlisten = \"{http}\"\n\
             [broker]\nlisten = [\"{}\"]\nauth_listen = \"{}\"\n[limits]\nmax_hosts = 1\n\
             [[worker]]\nname = \"standing\"\npassword = \"not-a-secret\"\n\
             [[worker]]\nname = \"latent\"\npassword = \"not-a-secret\"\n[worker.process]\nagent = \"/bin/true\"\n",
            free_address(),
            free_address(),
            state = dir.join("state"),
        ),
    )
    .unwrap();
    let log = fs::File::create(dir.join("master.log")).unwrap();
    let mut command = Command::new(program("rouse"));
    command.args(["master", "-c"]).arg(&config).current_dir(dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let mut master = Master(command.spawn().unwrap());
    for _ in 0..LOOKS {
        if is_healthy(http) {
            return (master, http);
        }
        let ended = master.0.try_wait().unwrap();
        assert!(ended.is_none(), "the master ended:\n{}", fs::read_to_string(dir.join("master.log")).unwrap());
        std::thread::sleep(LOOK);
    }
    panic!("the master is not ready:\n{}", fs::read_to_string(dir.join("master.log")).unwrap());
}

#[test]
fn every_answer_fits_the_document() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = Command::new(tests.join("venv")).arg("api").stderr(Stdio::inherit()).output().unwrap();
    assert!(python.status.success(), "tests/venv api failed");
    let python = PathBuf::from(String::from_utf8(python.stdout).unwrap().trim());
    let dir = tempfile::tempdir().unwrap();
    let (master, http) = start(dir.path());
    let token = fs::read_to_string(dir.path().join("state/api-token")).unwrap();
    let checked = Command::new(python.with_file_name("schemathesis"))
        .arg("--config-file")
        .arg(tests.join("api/schemathesis.toml"))
        .args(["run", "--no-color", "--checks", "all", "--header"])
        .arg(format!("Authorization: Bearer {}", token.trim()))
        .arg(format!("http://{http}/openapi.json"))
        .current_dir(dir.path())
        .env("NO_PROXY", "127.0.0.1")
        .env("no_proxy", "127.0.0.1")
        .output()
        .unwrap();
    drop(master);
    assert!(
        checked.status.success(),
        "{}\n{}\nthe master's log:\n{}",
        String::from_utf8_lossy(&checked.stdout),
        String::from_utf8_lossy(&checked.stderr),
        fs::read_to_string(dir.path().join("master.log")).unwrap(),
    );
}
