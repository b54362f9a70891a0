//! The sockets that a service manager holds for the master while it is away.

use crate::commands::{end, result_of};
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::process::{Child, Command};

/// Descriptors that nothing else in this process has.
const ABOVE: RawFd = 200;

/// A master that gets these sockets as systemd passes them, and no broker.
fn master(config: &Path, sockets: &[RawFd], log: impl Into<Stdio>) -> Child {
    let mut command = Command::new("sh");
    // The number of the process is known only in it.
    command.args(["-c", "LISTEN_PID=$$ exec \"$0\" master -c \"$1\""]).arg(env!("CARGO_BIN_EXE_rouse")).arg(config);
    command.env_clear().env("PATH", "/usr/bin:/bin").env("LISTEN_FDS", sockets.len().to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
    let sockets = sockets.to_vec();
    // SAFETY: `dup2` is async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            // First out of the way: one of them may have the number that another is to get.
            for (above, from) in (ABOVE..).zip(&sockets) {
                assert_ne!(libc::dup2(*from, above), -1);
            }
            for (above, to) in (ABOVE..).zip(3..).take(sockets.len()) {
                assert_ne!(libc::dup2(above, to), -1);
            }
            Ok(())
        });
    }
    command.spawn().unwrap()
}

/// Writes a file that only its owner can read, because it contains a password.
fn write_secret(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

async fn command(server: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rouse"));
    command.env_clear().env("ROUSE_SERVER", server).args(arguments).kill_on_drop(true);
    end(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()).await
}

/// Asks as RabbitMQ does, and returns the first line of the answer once it comes.
async fn ask_as_broker(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let body = "username=nobody&password=guess";
    let head = format!("POST /auth/user HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 200];
    let read = tokio::time::timeout(Duration::from_secs(60), stream.read(&mut answer)).await;
    let answer = &answer[..read.expect("in time").unwrap()];
    String::from_utf8_lossy(answer).lines().next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn what_the_service_manager_holds_nobody_else_gets_while_the_master_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
    let (http, auth) = (listen(), listen());
    let addresses = [http.local_addr().unwrap(), auth.local_addr().unwrap()];
    let path = dir.path().join("elsewhere.sock");
    let socket = UnixListener::bind(&path).unwrap();
    let config = dir.path().join("rouse.toml");
    let [http_at, auth_at] = addresses;
    let state = dir.path().join("state");
    let text = format!(
        "[master]\nlisten = \"{http_at}\"\nstate_dir = {state:?}\n\
         [broker]\nurl = \"amqp://guest:guest@127.0.0.1:1/\"\nauth_listen = \"{auth_at}\"\n"
    );
    write_secret(&config, &text);
    let (local, url) = (format!("unix:{}", path.display()), format!("http://{http_at}"));
    // Not in the order of the configuration: they are known by their addresses.
    let passed = [auth.as_raw_fd(), socket.as_raw_fd(), http.as_raw_fd()];
    let mut first = master(&config, &passed, Stdio::inherit());
    for server in [&local, &url] {
        let (code, out, err) = result_of(command(server, &["workers", "--json"]).await);
        assert_eq!((code, out.as_str()), (0, "[]\n"), "{err}");
    }
    assert!(ask_as_broker(auth_at).await.contains("200"));
    assert!(!state.join("rouse.sock").exists(), "it needs no socket of its own");

    // Killed, so that it does not tidy up.
    first.kill().await.unwrap();
    for address in addresses {
        let taken = TcpListener::bind(address).map(drop).map_err(|error| error.kind());
        assert_eq!(taken, Err(std::io::ErrorKind::AddrInUse));
    }
    // Who comes meanwhile waits for the next master.
    let waiting = tokio::spawn(async move { command(&local, &["resume", "nobody"]).await });
    let asked = tokio::spawn(ask_as_broker(auth_at));
    UnixStream::connect(&path).await.unwrap();
    let _second = master(&config, &passed, Stdio::inherit());
    let (code, _, err) = result_of(waiting.await.unwrap());
    assert_eq!(code, 4, "it has the rights of the token, and there is no such worker: {err}");
    assert!(err.contains("nobody"), "{err}");
    assert!(asked.await.unwrap().contains("200"));
}

#[tokio::test]
async fn a_socket_that_no_setting_names_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let config = dir.path().join("rouse.toml");
    let text = format!(
        "[master]\nlisten = \"127.0.0.1:0\"\nstate_dir = {:?}\n\
         [broker]\nurl = \"amqp://guest:guest@127.0.0.1:1/\"\nauth_listen = \"127.0.0.1:0\"\n",
        dir.path().join("state")
    );
    write_secret(&config, &text);
    let log = dir.path().join("log");
    let _master = master(&config, &[held.as_raw_fd()], fs::File::create(&log).unwrap());
    let words = format!("systemd listens on {} for the master", held.local_addr().unwrap());
    let said = async {
        while !fs::read_to_string(&log).unwrap_or_default().contains(&words) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), said).await.expect("it warns");
}
