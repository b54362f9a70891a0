//! An OpenStack cloud on loopback: the real Keystone, Glance, Placement and Nova (tests/openstack), one for each test
//! run.

use crate::harness::{Process, holds_within, kept, program, scratch, text};
use serde_json::{Value, json};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

/// How long a cloud may take to start: on a machine that compiles beside it, four times what it takes alone.
const START: Duration = Duration::from_secs(120);
/// How long its programs may take to be installed and its state to be made, if they are not there yet.
const PREPARE: Duration = Duration::from_secs(900);
/// Pages that a list has at most, with those that are read again.
const PAGES: usize = 200;
/// The user of the tests, and its password.
pub const USER: (&str, &str) = ("ci", "ci-secret");
/// Its project, without limits.
pub const PROJECT: &str = "rouse";
/// Its project that has room for one server.
pub const SMALL: &str = "small";
/// Another project of its.
pub const OTHER: &str = "other";

/// A cloud.
pub struct Cloud {
    urls: Value,
    /// A Python that has OpenStack's own packages.
    pub python: PathBuf,
    /// Where its logs are.
    pub dir: PathBuf,
}

impl Cloud {
    /// The one that the tests of a run share; it is their keeper's.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn shared() -> &'static Self {
        static CLOUD: OnceLock<Cloud> = OnceLock::new();
        CLOUD.get_or_init(|| {
            let json = &kept()["cloud"];
            Self { urls: json["urls"].clone(), python: text(&json["python"]).into(), dir: text(&json["dir"]).into() }
        })
    }

    /// What other processes have to know of it.
    pub fn description(&self) -> Value {
        json!({ "urls": self.urls, "python": self.python, "dir": self.dir })
    }

    /// Starts one, whose guests are run by `tests/openstack/guest`. It ends with the process that is returned.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start() -> (Self, Process) {
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("openstack");
        let dir = scratch("openstack");
        let prepared =
            Process::start(Command::new(here.join("prepare")), &dir, "prepare").wait(PREPARE).ended(0).text();
        let [python, state] = prepared.lines().collect::<Vec<_>>()[..] else { panic!("not two lines: {prepared}") };
        let out = dir.join("cloud.out");
        let mut command = Command::new(python);
        let python = PathBuf::from(python);
        command.arg(here.join("cloud.py")).arg("serve").arg(state).arg(dir.join("run"));
        command.arg(here.join("guest")).env("ROUSE_TESTS_AGENT", program("rouse-agent"));
        let mut process = Process::start_with_input(command, &dir, "cloud", Stdio::piped());
        let mut ended = None;
        holds_within(START, || {
            ended = process.try_wait();
            ended.is_some() || fs::read_to_string(&out).is_ok_and(|text| text.ends_with('\n'))
        });
        let json = fs::read_to_string(&out).unwrap_or_default();
        let urls = serde_json::from_str(&json);
        let urls = urls.unwrap_or_else(|_| panic!("no cloud ({ended:?}): {json}{}", process.err()));
        (Self { urls, python, dir }, process)
    }

    /// The address of a service: `identity`, `image`, `compute`, `network`, `volume`.
    ///
    /// # Panics
    /// If there is no such service.
    pub fn url(&self, service: &str) -> &str {
        self.urls[service].as_str().unwrap_or_else(|| panic!("no service {service}"))
    }

    /// Host and port of a service.
    ///
    /// # Panics
    /// As [`Self::url`].
    pub fn address(&self, service: &str) -> SocketAddr {
        let authority = self.url(service).split('/').nth(2).expect("an authority");
        authority.parse().expect("an address")
    }

    /// All services that rouse talks to.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        ["identity", "image", "compute", "network", "volume"].map(|service| self.address(service)).to_vec()
    }

    /// The user in a project, past the provider.
    pub async fn user(&'static self, project: &str) -> User {
        self.login(USER, project).await
    }

    /// The administrator.
    pub async fn admin(&'static self) -> User {
        self.login(("admin", "secret"), "admin").await
    }

    async fn login(&'static self, (name, password): (&str, &str), project: &str) -> User {
        let domain = json!({ "id": "default" });
        let body = json!({ "auth": {
            "identity": { "methods": ["password"], "password": {
                "user": { "name": name, "password": password, "domain": domain },
            } },
            "scope": { "project": { "name": project, "domain": domain } },
        } });
        let http = client();
        let answer = http.post(format!("{}/auth/tokens", self.url("identity"))).json(&body).send().await;
        let answer = answer.expect("Keystone answers");
        assert!(answer.status().is_success(), "{answer:?}");
        let token = answer.headers()["X-Subject-Token"].to_str().expect("text").to_owned();
        let json: Value = answer.json().await.expect("JSON");
        let id = |value: &Value| value["id"].as_str().unwrap_or_default().to_owned();
        User { cloud: self, http, token, id: id(&json["token"]["user"]), project: id(&json["token"]["project"]) }
    }
}

fn client() -> reqwest::Client {
    // Another test may have done so before.
    rustls::crypto::ring::default_provider().install_default().ok();
    reqwest::Client::builder().no_proxy().tls_certs_only([]).build().expect("an HTTP client")
}

/// Somebody who talks to the cloud without rouse.
pub struct User {
    cloud: &'static Cloud,
    http: reqwest::Client,
    /// The token.
    pub token: String,
    /// The user's id.
    pub id: String,
    /// The project's id.
    pub project: String,
}

impl User {
    /// Asks a service. The status and what it says.
    ///
    /// # Panics
    /// If it does not answer.
    pub async fn ask(&self, method: &str, service: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let method = method.parse().expect("a method");
        let mut request = self.http.request(method, format!("{}{path}", self.cloud.url(service)));
        request = request.header("X-Auth-Token", &self.token).header("OpenStack-API-Version", "compute 2.53");
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap_or_else(|error| panic!("{service}{path}: {error:?}"));
        let status = answer.status().as_u16();
        (status, answer.json().await.unwrap_or_default())
    }

    /// The items of a list, of all its pages. If others change it meanwhile, one may be passed over.
    ///
    /// # Panics
    /// If there is no such list.
    pub async fn list(&self, service: &str, path: &str, key: &str) -> Vec<Value> {
        let place = path.split('?').next().unwrap_or_default();
        let (mut next, mut all) = (path.to_owned(), Vec::new());
        for _ in 0..PAGES {
            let (status, json) = self.ask("GET", service, &next, None).await;
            if !all.is_empty() && matches!(status, 400 | 404) {
                // The last item of the page before has gone.
                (next, all) = (path.to_owned(), Vec::new());
                continue;
            }
            let items = json[key].as_array().unwrap_or_else(|| panic!("{service}{next} answered {status}: {json}"));
            all.extend(items.iter().cloned());
            let links = json[format!("{key}_links")].as_array().cloned().unwrap_or_default();
            let link = links.iter().find(|link| link["rel"] == "next").map(|link| &link["href"]);
            let Some(link) = link.or_else(|| json.get("next")).and_then(Value::as_str) else { return all };
            next = format!("{place}?{}", link.split_once('?').map_or("", |(_, query)| query));
        }
        panic!("{service}{path} has no end");
    }

    /// The servers of the project whose name begins like this. Up to two, which fit on a page, are told for certain: between
    /// pages Nova's list moves.
    pub async fn servers(&self, prefix: &str) -> Vec<Value> {
        let all = self.list("compute", &format!("/servers/detail?name=%5E{prefix}"), "servers").await;
        all.into_iter().filter(|s| s["name"].as_str().is_some_and(|name| name.starts_with(prefix))).collect()
    }
}

/// The section of a worker whose hosts are servers of this cloud. Each key may be replaced by one of `more`, and an
/// application credential there replaces the user.
pub fn section(auth_url: &str, more: &str) -> String {
    let given = |key: &str| more.lines().any(|line| line.starts_with(key));
    let usual = [
        ("flavor", "1"),
        ("image", "rouse-base-1"),
        ("os_username", USER.0),
        ("os_password", USER.1),
        ("os_tenant_name", PROJECT),
        ("os_auth_url", auth_url),
    ];
    let mut text = String::from("[worker.openstack]\n");
    for (key, value) in usual {
        let of_user = matches!(key, "os_username" | "os_password" | "os_tenant_name");
        let replaced = given(key) || (of_user && given("os_application_credential"));
        if !replaced {
            text.push_str(&format!("{key} = \"{value}\"\n"));
        }
    }
    format!("{text}{more}\n")
}
