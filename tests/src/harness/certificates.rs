//! Certificates of an authority that nobody trusts.

use super::{DEADLINE, Process, free_address, holds_within};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;

/// A certificate of an authority of its own for localhost: `ca.pem`, `server.pem` and `server.key` in `dir`.
///
/// # Panics
/// If openssl does not make them.
pub fn make_certificates(dir: &Path) {
    std::fs::write(dir.join("server.ext"), "subjectAltName=DNS:localhost\n").expect("the directory can be written");
    for line in [
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem",
        "req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr",
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile server.ext -out server.pem",
    ] {
        let output = Command::new("openssl").args(line.split(' ')).current_dir(dir).output().expect("openssl runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// A certificate that has signed itself, made by these commands of openssl (`server.key`, `server.csr`, `server.pem`), with
/// itself as the authority in `ca.pem`.
///
/// # Panics
/// Where openssl does not make it.
pub fn make_own_certificate(dir: &Path, commands: &[&str]) {
    for command in commands {
        let output = Command::new("openssl").args(command.split_whitespace()).current_dir(dir).output();
        let output = output.expect("openssl runs");
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }
    std::fs::copy(dir.join("server.pem"), dir.join("ca.pem")).expect("the certificate can be copied");
}

/// Certificates that people make and TLS refuses: the commands for [`make_own_certificate`], and what is said of them.
pub const REFUSED_CERTIFICATES: [(&[&str], &str); 3] = [
    (
        &[
            "req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -addext subjectAltName=DNS:localhost -keyout server.key \
           -out server.pem",
        ],
        "CA:TRUE",
    ),
    (
        &[
            "req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -addext basicConstraints=critical,CA:FALSE -keyout server.key \
           -out server.pem",
        ],
        "no subjectAltName",
    ),
    (
        &[
            "req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr",
            "x509 -req -in server.csr -signkey server.key -days 2 -out server.pem",
        ],
        "version 1 of X.509",
    ),
];

/// A TLS server with the certificate in this directory, and where it is.
///
/// # Panics
/// Where it does not listen.
pub fn tls_server(dir: &Path) -> (Process, SocketAddr) {
    let address = free_address();
    let mut command = Command::new("openssl");
    command.args(["s_server", "-quiet", "-www", "-cert", "server.pem", "-key", "server.key", "-accept"]);
    command.arg(address.to_string()).current_dir(dir);
    let mut server = Process::start(command, dir, "tls");
    let listens = || {
        assert!(server.try_wait().is_none(), "{}", server.err());
        TcpStream::connect(address).is_ok()
    };
    assert!(holds_within(DEADLINE, listens), "{}", server.err());
    (server, address)
}
