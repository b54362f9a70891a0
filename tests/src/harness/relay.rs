//! A real mail relay that tests can make fail: `tests/smtp/relay.py`.

use super::process::{DEADLINE, Process, holds_within};
use super::{free_address, scratch};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// How the relay's connections are protected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protection {
    /// Not at all.
    None,
    /// STARTTLS, without which it takes no login.
    StartTls,
    /// From the first byte.
    Implicit,
}

/// A mail that the relay has taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TakenMail {
    /// Whom the sender said it is from.
    pub from: String,
    /// The recipients that the relay has taken it for.
    pub to: Vec<String>,
    /// Whether it came over TLS.
    pub tls: bool,
    /// Who had logged in.
    pub login: Option<String>,
    /// The name that it was greeted with.
    pub hello: String,
    /// The message.
    pub text: String,
}

impl TakenMail {
    /// The message id, in its brackets.
    ///
    /// # Panics
    /// If it has none.
    pub fn id(&self) -> &str {
        let id = self.text.lines().find_map(|line| line.strip_prefix("Message-ID: "));
        id.unwrap_or_else(|| panic!("no message id in {}", self.text))
    }
}

/// A relay with a directory and a port of its own, running or not.
pub struct Relay {
    /// Where its mails are, and the certificates that it has.
    pub dir: PathBuf,
    /// Its port on 127.0.0.1.
    pub port: u16,
    arguments: Vec<String>,
    process: Option<Process>,
}

impl Relay {
    /// A relay that does not run yet. `login` is `USER:PASSWORD`, without which it then takes nothing.
    pub fn new(name: &str, protection: Protection, login: Option<&str>) -> Self {
        let dir = scratch(&format!("relay-{name}"));
        let mut arguments = Vec::new();
        let mut add = |key: &str, value: String| arguments.extend([key.to_owned(), value]);
        if protection != Protection::None {
            super::make_certificates(&dir);
            add("--tls", if protection == Protection::Implicit { "implicit" } else { "starttls" }.to_owned());
            add("--cert", dir.join("server.pem").display().to_string());
            add("--key", dir.join("server.key").display().to_string());
        }
        if let Some(login) = login {
            add("--login", login.to_owned());
        }
        Self { dir, port: free_address().port(), arguments, process: None }
    }

    /// Starts it, on the same port each time.
    ///
    /// # Panics
    /// If it does not run.
    pub fn begin(&mut self) {
        let tests = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let made = Command::new(tests.join("venv")).arg("smtp").output().expect("tests/venv runs");
        assert!(made.status.success(), "tests/setup test: {}", String::from_utf8_lossy(&made.stderr));
        let python = String::from_utf8_lossy(&made.stdout).trim().to_owned();
        let mut command = Command::new(python);
        command.arg(tests.join("smtp/relay.py")).arg(&self.dir).arg(self.port.to_string()).args(&self.arguments);
        fs::remove_file(self.dir.join("relay.out")).ok();
        let mut process = Process::start(command, &self.dir, "relay");
        let ready = holds_within(DEADLINE, || {
            assert!(process.try_wait().is_none(), "the relay ended: {}", process.err());
            process.out().starts_with(b"ready")
        });
        assert!(ready, "the relay is not ready: {}", process.err());
        self.process = Some(process);
    }

    /// Ends it.
    pub fn end(&mut self) {
        self.process = None;
    }

    /// How it answers from now on; see relay.py.
    ///
    /// # Panics
    /// If the rules cannot be written.
    pub fn rules(&self, rules: &Value) {
        let (partial, path) = (self.dir.join("rules.part"), self.dir.join("rules.json"));
        fs::write(&partial, rules.to_string()).expect("its directory can be written");
        fs::rename(partial, path).expect("its directory can be written");
    }

    /// The mails that it has taken, in that order.
    ///
    /// # Panics
    /// If one cannot be read.
    pub fn mails(&self) -> Vec<TakenMail> {
        let read = |number: u32| fs::read(self.dir.join(format!("{number}.json"))).ok();
        let text = |value: &Value| value.as_str().map(str::to_owned);
        (1..)
            .map_while(read)
            .map(|bytes| {
                let mail: Value = serde_json::from_slice(&bytes).expect("the relay writes JSON");
                TakenMail {
                    from: text(&mail["from"]).expect("a sender"),
                    to: mail["to"].as_array().expect("recipients").iter().filter_map(text).collect(),
                    tls: mail["tls"].as_bool().expect("whether it was protected"),
                    login: text(&mail["login"]),
                    hello: text(&mail["hello"]).expect("a name"),
                    text: text(&mail["text"]).expect("a message").replace("\r\n", "\n"),
                }
            })
            .collect()
    }

    /// How many lines a file of its directory has: connections, or refused logins.
    pub fn count(&self, file: &str) -> usize {
        fs::read_to_string(self.dir.join(file)).unwrap_or_default().lines().count()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.end();
        // The next run removes what stays.
        fs::remove_dir_all(&self.dir).ok();
    }
}
