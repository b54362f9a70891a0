//! The server that the broker asks, over real sockets: who may ask, and how long the answers take.
#![allow(clippy::unwrap_used)]
use super::*;
use crate::config::Secret;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A server that lets workers in whose password is `right`.
async fn server(askers: &Askers, refusals: &Refusals) -> AuthServer {
    server_with(askers, refusals, Pauses::default()).await
}

async fn server_with(askers: &Askers, refusals: &Refusals, pauses: Pauses) -> AuthServer {
    let (admissions, mut asked) = mpsc::channel::<Admission>(64);
    tokio::spawn(async move {
        while let Some(Admission { password, reply, .. }) = asked.recv().await {
            let right = password == "right";
            reply.send(if right { Ok(Admitted::Anybody) } else { Err("wrong password".to_owned()) }).ok();
        }
    });
    let listener = AuthServer::listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let conduct = RateLimiter::new(refusals.clone());
    let answers = Answers { admissions, refusals: refusals.clone(), conduct, pauses };
    AuthServer::start_with(listener, askers.clone(), "rouse", answers).unwrap()
}

fn request(path: &str, password: &str) -> String {
    let body = format!("username=w1&password={password}");
    format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// The status and the body of the answer.
fn answer(text: &str) -> (u16, String) {
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, text.rsplit("\r\n\r\n").next().unwrap_or_default().to_owned())
}

async fn ask(address: SocketAddr, path: String, password: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request(&path, password).as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    answer(&text)
}

#[tokio::test]
async fn who_does_not_know_the_secret_learns_nothing() {
    let refusals = Refusals::default();
    let private = Askers::private_broker().unwrap();
    assert_ne!(private.path("user"), Askers::private_broker().unwrap().path("user"));
    let own = Askers::own_broker(Some(Secret::new("0123456789abcdefghij")));
    assert_eq!(own.path("user"), "/auth/0123456789abcdefghij/user");
    for askers in [private, own] {
        let server = server(&askers, &refusals).await;
        assert_eq!(ask(server.address(), askers.path("user"), "right").await, (200, "allow".to_owned()));
        assert_eq!(ask(server.address(), askers.path("user"), "wrong").await, (200, "deny".to_owned()));
        for path in ["/auth/user", "/auth//user", "/auth/0123456789abcdefghix/user", "/"] {
            for password in ["right", "wrong"] {
                let (status, said) = ask(server.address(), path.to_owned(), password).await;
                assert_eq!((status, said.as_str()), (403, NOT_THE_BROKER.1), "{path}");
            }
        }
        assert!(refusals.reason(OWN_ADDRESS).unwrap().contains("broker.auth_secret"));
    }
    // As every version before has configured it.
    assert_eq!(Askers::own_broker(None).path("topic"), "/auth/topic");
}

/// Otherwise they could open as many as there may be, and the broker would find none.
#[tokio::test]
async fn who_may_not_ask_keeps_no_connection() {
    let server = server(&Askers::private_broker().unwrap(), &Refusals::default()).await;
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    let request = request("/auth/user", "right").replace("Connection: close\r\n", "");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    // Shorter than an idle connection is kept.
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read_to_string(&mut text)).await;
    read.expect("it is closed at once").unwrap();
    assert_eq!(answer(&text), (403, NOT_THE_BROKER.1.to_owned()));
}

/// The kernel names the user of an open connection only, and whoever has closed the half that it sends on still gets an
/// answer.
#[tokio::test]
async fn a_half_closed_connection_is_not_taken_for_one_of_another_machine() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ours = listener.local_addr().unwrap();
    // An address of this machine that is not loopback, if it has one.
    let routed = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let routed = routed.connect("192.0.2.1:9").and_then(|()| routed.local_addr()).map(|address| address.ip());
    for ip in routed.into_iter().chain(["127.0.0.1".parse().unwrap(), "127.0.0.5".parse().unwrap()]) {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((ip, 0).into()).unwrap();
        let mut stream = socket.connect(ours).await.unwrap();
        let (_accepted, theirs) = listener.accept().await.unwrap();
        let askers = Askers::own_broker(None);
        assert_eq!(askers.stranger(theirs, ours), None, "from {ip}, of the user of the test");
        stream.shutdown().await.unwrap();
        assert!(askers.stranger(theirs, ours).is_some(), "from {ip}");
        assert_eq!(askers.stranger("192.0.2.1:9".parse().unwrap(), ours), None, "of another machine");
    }
}

/// Asks as the user `nobody`, if the test may become that user.
async fn ask_as_nobody(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let script = "exec 3<>/dev/tcp/127.0.0.1/$0 && printf %s \"$1\" >&3 && cat <&3";
    let mut command = tokio::process::Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "bash", "-c", script]);
    command.arg(address.port().to_string()).arg(request(path, "right"));
    let output = command.stdin(Stdio::null()).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(answer(&String::from_utf8_lossy(&output.stdout)))
}

#[tokio::test]
async fn other_users_of_the_machine_are_not_answered() {
    for (askers, answered) in [
        (Askers::private_broker().unwrap(), false),
        (Askers::own_broker(None), false),
        // Whoever knows the secret: the broker may run as any user, for example in a container.
        (Askers::own_broker(Some(Secret::new("0123456789abcdefghij"))), true),
    ] {
        let refusals = Refusals::default();
        let server = server(&askers, &refusals).await;
        assert_eq!(ask(server.address(), askers.path("user"), "right").await.0, 200);
        let Some((status, _)) = ask_as_nobody(server.address(), &askers.path("user")).await else {
            return eprintln!("not checked: only root may become another user");
        };
        assert_eq!(status, if answered { 200 } else { 403 });
        let reason = refusals.reason(OWN_ADDRESS);
        assert_eq!(reason.is_some_and(|reason| reason.contains("the user with the id 65534")), !answered);
    }
}

#[tokio::test]
async fn a_wrong_password_waits_and_a_right_one_does_not() {
    let (askers, refusals) = (Askers::private_broker().unwrap(), Refusals::default());
    // Those that wait do so for as long as the test runs.
    let pauses = Pauses::up_to(Duration::from_secs(3_600));
    let server = server_with(&askers, &refusals, pauses).await;
    let (address, path) = (server.address(), askers.path("user"));
    let free = usize::try_from(pauses::FREE).unwrap();
    let mut guesses = tokio::task::JoinSet::new();
    let too_many = 10;
    for _ in 0..free + pauses::WAITING + too_many {
        let path = path.clone();
        guesses.spawn(async move { ask(address, path, "wrong").await });
    }
    let answered = async {
        for _ in 0..free + too_many {
            assert_eq!(guesses.join_next().await.unwrap().unwrap(), (200, "deny".to_owned()));
        }
    };
    tokio::time::timeout(Duration::from_secs(60), answered).await.expect("these need not wait");
    for _ in 0..10 {
        assert_eq!(ask(address, path.clone(), "right").await.1, "allow");
    }
    while guesses.try_join_next().is_some() {}
    assert!(!guesses.is_empty(), "the other wrong ones still wait");
}
