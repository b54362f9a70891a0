//! Certificates of an authority that nobody trusts.

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
