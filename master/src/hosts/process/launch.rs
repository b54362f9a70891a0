//! Starts an agent outside of the sandbox and the cgroup of the master. systemd listens on a socket and starts
//! `rouse launch-host` as a service of its own for each connection (`contrib/systemd/rouse-host.socket`). It receives the
//! order, and becomes the agent.
//!
//! The launcher becomes the agent only if the master is still there when it knows the process. Otherwise the next master
//! could start the host again before it sees this agent.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

/// The environment variable with the path of the socket. Without it, agents are children of the master.
pub(super) const SOCKET_VARIABLE: &str = "ROUSE_HOST_SOCKET";
/// How long systemd and the launcher may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest answer of the launcher, bytes.
const ANSWER: u64 = 4_096;
/// What the launcher's answer begins with if it cannot start the agent.
const FAILED: &str = "failed: ";

/// An agent that is to be started.
#[derive(Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) program: PathBuf,
    /// The whole environment.
    pub(super) environment: BTreeMap<String, String>,
    /// The working directory.
    pub(super) dir: PathBuf,
    /// The file that its output is appended to.
    pub(super) log: PathBuf,
}

impl Order {
    pub(super) fn command(&self) -> io::Result<Command> {
        let log = File::options().append(true).open(&self.log)?;
        let errors = log.try_clone()?;
        let mut command = Command::new(&self.program);
        // The environment has all settings. The file that agents read otherwise is that of the machine's standing agent.
        command.args(["-c", "/dev/null"]);
        command.env_clear().envs(&self.environment).current_dir(&self.dir);
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        Ok(command)
    }
}

/// Has systemd start an agent. Returns its process id.
///
/// # Errors
/// If there is no launcher, or it cannot start the agent.
pub(super) async fn outside(socket: &Path, order: &Order) -> io::Result<i32> {
    let explained = |error: io::Error| {
        let text = format!("{}: {error}; run `systemctl start rouse-host.socket`", socket.display());
        // Whatever its kind: the order is right.
        io::Error::other(text)
    };
    let talk = async {
        let mut stream = UnixStream::connect(socket).await.map_err(explained)?;
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        let (answer, mut approve) = stream.split();
        let mut said = String::new();
        BufReader::new(answer.take(ANSWER)).read_line(&mut said).await?;
        let said = said.trim_end();
        match (said.parse(), said.strip_prefix(FAILED)) {
            (Ok(pid), _) => approve.write_all(b"\n").await.map(|()| pid),
            (Err(_), Some(why)) => Err(io::Error::other(why.to_owned())),
            (Err(_), None) => Err(io::Error::other("the launcher has ended without an answer; see its journal")),
        }
    };
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "systemd has not started the launcher in time");
    tokio::time::timeout(PATIENCE, talk).await.map_err(late)?
}

/// Becomes the agent that a master orders over standard input, which is a socket.
///
/// # Errors
/// If it cannot. Otherwise it does not return.
pub fn launch() -> io::Result<std::convert::Infallible> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    let mut stream = std::os::unix::net::UnixStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut lines = io::BufReader::new(stream.try_clone()?).lines();
    let mut next = || lines.next().unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()));
    let prepared = next().and_then(|line| Ok(serde_json::from_str::<Order>(&line)?)).and_then(|order| order.command());
    let mut command = match prepared {
        Ok(command) => command,
        Err(error) => {
            writeln!(stream, "{FAILED}{error}")?;
            return Err(error);
        }
    };
    writeln!(stream, "{}", std::process::id())?;
    next().map_err(|error| io::Error::new(error.kind(), "the master is gone, so the agent is not started"))?;
    // Returns only if it fails. The master learns that the process has ended, and the reason is in its journal.
    Err(command.exec())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tokio::net::UnixListener;

    fn order(dir: &Path) -> Order {
        let log = dir.join("log");
        File::create(&log).unwrap();
        Order { program: "/bin/true".into(), environment: BTreeMap::new(), dir: dir.to_owned(), log }
    }

    #[tokio::test]
    async fn without_a_launcher_the_error_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let error = outside(&dir.path().join("none"), &order(dir.path())).await.unwrap_err();
        assert!(error.to_string().contains("systemctl start rouse-host.socket"), "{error}");
    }

    #[tokio::test]
    async fn what_the_launcher_says_is_understood() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        for (said, expected, approved) in [
            ("123\n", Ok(123), "\n"),
            ("failed: no such log\n", Err("no such log"), ""),
            ("", Err("without an answer"), ""),
        ] {
            let launcher = async {
                let (stream, _) = listener.accept().await.unwrap();
                let mut stream = BufReader::new(stream);
                let mut line = String::new();
                stream.read_line(&mut line).await.unwrap();
                assert_eq!(serde_json::from_str::<Order>(&line).unwrap().program, Path::new("/bin/true"));
                stream.write_all(said.as_bytes()).await.unwrap();
                stream.shutdown().await.unwrap();
                let mut rest = String::new();
                stream.read_to_string(&mut rest).await.unwrap();
                rest
            };
            let order = order(dir.path());
            let (result, rest) = tokio::join!(outside(&socket, &order), launcher);
            assert_eq!(rest, approved, "{said:?}");
            match (result, expected) {
                (Ok(pid), Ok(expected)) => assert_eq!(pid, expected),
                (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{error}"),
                (result, _) => panic!("{said:?}: {result:?}"),
            }
        }
    }
}
