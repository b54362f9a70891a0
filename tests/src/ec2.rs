//! An EC2 for tests: moto's server with our patches (tests/ec2/server.py lists them), behind a proxy that causes the
//! faults that a test requests.

use crate::harness::{kept, program, request};
use crate::proxy::{Fault, Proxy, Request};
use rouse_master::config::Config;
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The region of the tests.
pub const REGION: &str = "us-west-2";
/// An image that is there from the start.
pub const IMAGE: &str = "ami-0b0b0001";
/// The access key of the tests, and its secret.
pub const KEY: &str = "AKIAROUSETEST";

/// An authority that signs identity documents.
pub struct Authority {
    /// Its certificate, a PEM file.
    pub certificate: PathBuf,
    key: PathBuf,
}

impl Authority {
    /// A new one, in files of this name.
    ///
    /// # Panics
    /// If openssl does not make it.
    pub fn new(dir: &Path, name: &str) -> Self {
        let (certificate, key) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test", "-days", "2", "-keyout"])
            .args([&key, Path::new("-out"), &certificate])
            .output()
            .expect("openssl can be run");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Self { certificate, key }
    }

    /// As the server of tests/ec2 takes it.
    pub fn signer(&self) -> Value {
        json!({ "certificate": self.certificate, "key": self.key })
    }

    /// What it makes of a file: PKCS #7 as the metadata service has it.
    ///
    /// # Panics
    /// If openssl does not sign it.
    pub fn sign(&self, file: &Path) -> String {
        let signed = Command::new("openssl")
            .args(["cms", "-sign", "-binary", "-nodetach", "-nocerts", "-outform", "PEM", "-in"])
            .args([file, Path::new("-signer"), &self.certificate, Path::new("-inkey"), &self.key])
            .output()
            .expect("openssl can be run");
        let text = String::from_utf8(signed.stdout).expect("PEM is text");
        text.lines().filter(|line| !line.starts_with('-')).collect::<Vec<_>>().join("\n")
    }
}

/// What starts clouds: a Python that has moto loaded, which takes seconds, and forks one for each that connects.
pub struct Clouds(Child);

impl Clouds {
    /// Starts it at this unix socket.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(socket: &Path) -> Self {
        let (child, _) = server(&[socket]);
        Self(child)
    }
}

impl Drop for Clouds {
    fn drop(&mut self) {
        // Its standard input is closed with it; what it has forked ends with the connection.
        drop(self.0.stdin.take());
        self.0.wait().ok();
    }
}

/// A server of tests/ec2, and the line that it has printed.
fn server(arguments: &[&Path]) -> (Child, Value) {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = Command::new(tests.join("venv")).arg("ec2").output().expect("tests/venv can be run");
    assert!(python.status.success(), "tests/venv ec2: {}", String::from_utf8_lossy(&python.stderr));
    let mut server = Command::new(String::from_utf8_lossy(&python.stdout).trim())
        .arg(tests.join("ec2/server.py"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the server can be started");
    let json = line(server.stdout.take().expect("it was piped"));
    (server, json)
}

fn line(from: impl Read) -> Value {
    let mut line = String::new();
    BufReader::new(from).read_line(&mut line).expect("it prints its address");
    serde_json::from_str(&line).expect("it prints its address")
}

/// How long a cloud lasts.
enum Life {
    /// As the process, which ends with its standard input.
    Process(Child),
    /// As the connection to [`Clouds`].
    Connection { _kept: UnixStream },
}

/// The cloud; it ends with the test.
pub struct Cloud {
    life: Life,
    address: SocketAddr,
    /// What stands between it and the provider.
    pub proxy: Proxy,
}

impl Drop for Cloud {
    fn drop(&mut self) {
        if let Life::Process(server) = &mut self.life {
            // Its standard input is closed with it; what it has started ends with it.
            drop(server.stdin.take());
            if server.wait().is_err() {
                server.kill().ok();
            }
        }
    }
}

impl Cloud {
    /// A new one, with nothing in it but the images of tests/ec2/images.json, from the [`Clouds`] of this program's keeper.
    ///
    /// # Panics
    /// If it cannot be started.
    pub async fn start() -> Self {
        let socket = tokio::task::block_in_place(kept)["clouds"].as_str().expect("a socket");
        let connection = UnixStream::connect(socket).expect("the keeper listens");
        let json = line(&connection);
        Self::at(&json, Life::Connection { _kept: connection }).await
    }

    /// The same in a process of its own, for a program whose network is not the keeper's.
    ///
    /// # Panics
    /// If it cannot be started.
    pub async fn alone() -> Self {
        let (server, json) = server(&[]);
        Self::at(&json, Life::Process(server)).await
    }

    async fn at(json: &Value, life: Life) -> Self {
        let port = json["port"].as_u64().and_then(|port| u16::try_from(port).ok()).expect("a port");
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        Self { proxy: Proxy::start(&[address]).await, life, address }
    }

    /// What the provider dials.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.proxy.front(self.address))
    }

    /// The server itself, past the proxy.
    pub fn direct(&self) -> String {
        format!("http://{}", self.address)
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = request(self.address, method, path, None, &body).expect("the server answers");
        assert_eq!(answer.status, 200, "{method} {path}: {}", String::from_utf8_lossy(&answer.body));
        answer.json()
    }

    /// Steers it: see tests/ec2/server.py.
    pub fn set(&self, settings: &Value) {
        self.ask("PUT", "/_ctl", settings);
    }

    /// Adds an image.
    pub fn add_image(&self, id: &str, location: &str) {
        self.ask("POST", "/_images", &json!({ "ami_id": id, "image_location": location }));
    }

    /// A metadata service that says this (path to text); where it is.
    pub fn metadata(&self, json: &Value) -> String {
        self.ask("POST", "/_imds", json).as_str().expect("an address").to_owned()
    }

    /// Everything that was ever made.
    pub fn instances(&self) -> Vec<Value> {
        self.ask("GET", "/_instances", &Value::Null).as_array().cloned().unwrap_or_default()
    }

    /// Ids of the instances that are not on their way out.
    pub fn alive(&self) -> Vec<String> {
        let alive = |i: &Value| !matches!(i["state"].as_str(), Some("shutting-down" | "terminated"));
        let instances = self.instances();
        instances.iter().filter(|i| alive(i)).filter_map(|i| i["id"].as_str().map(str::to_owned)).collect()
    }

    /// An instance that is gone by itself.
    pub fn kill(&self, instance: &str) {
        self.ask("POST", "/_kill", &json!({ "instance": instance }));
    }

    /// A call straight to it, past the provider: action and parameters.
    ///
    /// # Panics
    /// If it is refused.
    pub fn call(&self, action: &str, parameters: &[(&str, &str)]) -> String {
        let mut form = format!("Action={action}&Version=2016-11-15");
        for (name, value) in parameters {
            form.push_str(&format!("&{name}={value}"));
        }
        let scope = format!("AWS4-HMAC-SHA256 Credential={KEY}/20260101/{REGION}/ec2/aws4_request");
        let head = format!(
            "POST / HTTP/1.0\r\nHost: {}\r\nAuthorization: {scope}, SignedHeaders=host, Signature=0\r\n\
             Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{form}",
            self.address,
            form.len()
        );
        let mut stream = TcpStream::connect(self.address).expect("the server listens");
        stream.write_all(head.as_bytes()).expect("it takes the call");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("it answers");
        assert!(text.starts_with("HTTP/1.1 200 ") && !text.contains("<Errors>"), "{action}: {text}");
        text
    }

    /// From now on, so many calls of this action, after `skip` of them, go wrong like this.
    pub fn fail(&self, action: &'static str, skip: usize, times: usize, fault: Fault) {
        self.proxy.fail(skip, times, fault, move |request| is(request, action));
    }

    /// The actions that were asked for since this was last asked.
    pub fn calls(&self) -> Vec<String> {
        self.proxy.take_seen().iter().map(action).collect()
    }
}

/// What an EC2 request asks for.
pub fn action(request: &Request) -> String {
    let pairs = request.body.split('&').find_map(|pair| pair.strip_prefix("Action="));
    pairs.unwrap_or_default().to_owned()
}

fn is(request: &Request, wanted: &str) -> bool {
    action(request) == wanted
}

/// AWS refuses in this way.
pub fn refusal(status: u16, code: &str) -> Fault {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Response><Errors><Error><Code>{code}</Code><Message>requested by the \
         test</Message></Error></Errors><RequestID>00000000-0000-0000-0000-000000000000</RequestID></Response>"
    );
    Fault::Refuse { status, head: "X-Test: 1", body: Box::leak(body.into_boxed_str()) }
}

/// Whether a request is for this region.
pub fn is_in(request: &Request, region: &str) -> bool {
    request.head.contains(&format!("/{region}/ec2/"))
}

/// What instances do when they boot, as a setting of [`Cloud::set`]: they start an agent, which leaves what it writes in
/// this directory.
pub fn boot(dir: &Path) -> Value {
    json!({
        "argv": [program("rouse-agent")],
        "log": dir.join("{instance}.log"),
        "env": {
            "ROUSE_AGENT_IDENTITY": "ec2",
            "ROUSE_AGENT_METADATA": "{imds}",
            "ROUSE_AGENT_WORK_DIR": dir.join("{instance}"),
            "ROUSE_AGENT_POWER_OFF": "latent",
            "ROUSE_AGENT_POWER_OFF_COMMAND": "",
        }
    })
}

/// A configuration of workers `w-1` and `w-2` there; `more` is added to their section.
///
/// # Panics
/// If it is wrong.
pub fn config(endpoint: &str, more: &str) -> Config {
    config_of("w-{1..2}", &with_defaults(endpoint, more))
}

/// A section with the image and the keys of the tests, if `more` has no others.
pub fn with_defaults(endpoint: &str, more: &str) -> String {
    let mut section = String::new();
    for (key, line) in [
        ("instance_type", "instance_type = \"m5.large\"".to_owned()),
        ("ami", format!("ami = \"{IMAGE}\"")),
        ("region", format!("region = \"{REGION}\"")),
        ("identifier", format!("identifier = \"{KEY}\"\nsecret_identifier = \"secret\"")),
        ("endpoint_url", format!("endpoint_url = \"{endpoint}\"")),
    ] {
        let given = |line: &str| line.split('=').next().is_some_and(|name| name.trim() == key);
        let filtered = key == "ami" && more.lines().any(|line| line.starts_with("valid_ami"));
        let logged_in = key == "identifier" && more.lines().any(|line| line.starts_with("profile"));
        if !filtered && !logged_in && !more.lines().any(given) {
            section.push_str(&line);
            section.push('\n');
        }
    }
    section + more
}

/// A configuration of these workers with exactly this section.
///
/// # Panics
/// If it is wrong.
pub fn config_of(name: &str, section: &str) -> Config {
    let text = format!("[[worker]]\nname = \"{name}\"\npassword = \"x\"\n[worker.ec2]\n{section}\n");
    Config::parse(&text, Path::new("rouse.toml")).unwrap_or_else(|faults| panic!("{faults}\n{text}"))
}

/// How long anything may take.
pub const LIMIT: Duration = Duration::from_secs(60);
