//! A real browser: headless Chromium, driven by its WebDriver server over HTTP.

use crate::harness::{DEADLINE, Process, free_address, holds_within, request};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// A browser with one window. Commands panic if the driver refuses them, with its reason.
pub struct Browser {
    driver: SocketAddr,
    session: String,
    /// Of whoever has started it.
    process: Option<Process>,
}

impl Browser {
    /// Starts the driver and the browser, which keep their files in `dir`.
    ///
    /// # Panics
    /// If they do not start. `tests/setup test` installs both.
    pub fn start(dir: &Path) -> Self {
        let driver = free_address();
        let mut command = Command::new("chromedriver");
        command.arg(format!("--port={}", driver.port())).env("HOME", dir).env("TMPDIR", dir);
        let process = Process::start(command, dir, "chromedriver");
        let ready = || request(driver, "GET", "/status", None, "").is_some_and(|reply| reply.status == 200);
        assert!(holds_within(DEADLINE, ready), "the driver is ready: {}", process.err());
        let mut browser = Self { driver, session: String::new(), process: Some(process) };
        // The tests may run as root, for whom Chromium has no sandbox. It opens only pages of the tests.
        let arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--mute-audio"];
        let options = json!({ "args": arguments });
        // What a test waits for, it says itself: the end of loading tells nothing of a page that goes on asking.
        let wanted = json!({ "pageLoadStrategy": "none", "goog:chromeOptions": options });
        let wanted = json!({ "capabilities": { "alwaysMatch": wanted } });
        let made = browser.call("POST", "/session", &wanted);
        browser.session = made["sessionId"].as_str().expect("a session").to_owned();
        browser
    }

    /// What other processes have to know of it.
    pub fn description(&self) -> Value {
        json!({ "driver": self.driver, "session": self.session })
    }

    /// The browser that another process has started, from its [`Self::description`].
    ///
    /// # Panics
    /// If that is none.
    pub fn of(description: &Value) -> Self {
        let part = |name: &str| description[name].as_str().expect("a description of a browser");
        Self { driver: part("driver").parse().expect("an address"), session: part("session").to_owned(), process: None }
    }

    /// Ends the browser and its driver.
    ///
    /// # Panics
    /// If it was started by another process.
    pub fn end(mut self) {
        self.command("DELETE", "", &Value::Null);
        self.process.take().expect("this process has started it").kill();
    }

    #[track_caller]
    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let reply = request(self.driver, method, path, None, &body).expect("the driver of the browser answers");
        let answer = reply.json();
        assert_eq!(reply.status, 200, "{method} {path}: {}", answer["value"]["message"]);
        answer["value"].clone()
    }

    /// A command of WebDriver, by its path below that of the session.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn command(&self, method: &str, path: &str, body: &Value) -> Value {
        self.call(method, &format!("/session/{}{path}", self.session), body)
    }

    /// Opens a page, even if it differs from the present one only in its fragment.
    #[track_caller]
    pub fn open(&self, url: &str) {
        self.command("POST", "/url", &json!({ "url": "about:blank" }));
        self.command("POST", "/url", &json!({ "url": url }));
    }

    /// The result of a script: the body of a function.
    #[track_caller]
    pub fn script(&self, script: &str, arguments: Value) -> Value {
        self.command("POST", "/execute/sync", &json!({ "script": script, "args": arguments }))
    }

    /// The same for a script that passes its result to the function that is its last argument.
    #[track_caller]
    pub fn later(&self, script: &str) -> Value {
        self.command("POST", "/execute/async", &json!({ "script": script, "args": [] }))
    }

    /// Waits until an expression is true.
    ///
    /// # Panics
    /// If it is not within [`DEADLINE`], with what the page shows.
    #[track_caller]
    pub fn until(&self, what: &str, expression: &str) {
        self.until_within(DEADLINE, what, expression);
    }

    /// The same within `limit`.
    ///
    /// # Panics
    /// If it is not.
    #[track_caller]
    pub fn until_within(&self, limit: Duration, what: &str, expression: &str) {
        // While a page is being opened, its elements are not there.
        let script = format!("try {{ return !!({expression}) }} catch {{ return false }}");
        let holds = holds_within(limit, || self.script(&script, json!([])) == true);
        assert!(holds, "not in time: {what}; the page shows\n{}", self.shown("body"));
    }

    /// The text that an element shows.
    #[track_caller]
    pub fn shown(&self, selector: &str) -> String {
        let shown = self.script("return document.querySelector(arguments[0])?.innerText ?? ''", json!([selector]));
        shown.as_str().unwrap_or_default().to_owned()
    }

    #[track_caller]
    fn element(&self, selector: &str) -> String {
        let found = self.command("POST", "/element", &json!({ "using": "css selector", "value": selector }));
        let id = found.as_object().and_then(|found| found.values().next()).and_then(Value::as_str);
        id.expect("an element has an id").to_owned()
    }

    /// Clicks on an element, as a user does: it must be visible, and nothing may cover it.
    #[track_caller]
    pub fn click(&self, selector: &str) {
        self.command("POST", &format!("/element/{}/click", self.element(selector)), &json!({}));
    }

    /// Types into an element, after what is there.
    #[track_caller]
    pub fn type_into(&self, selector: &str, text: &str) {
        self.command("POST", &format!("/element/{}/value", self.element(selector)), &json!({ "text": text }));
    }

    /// Gives the window a size, in pixels.
    #[track_caller]
    pub fn resize(&self, width: u32, height: u32) {
        self.command("POST", "/window/rect", &json!({ "width": width, "height": height }));
    }

    /// A command of Chromium's DevTools.
    #[track_caller]
    pub fn devtools(&self, name: &str, parameters: Value) -> Value {
        self.command("POST", "/goog/cdp/execute", &json!({ "cmd": name, "params": parameters }))
    }

    /// Whether pages are shown in dark colours.
    #[track_caller]
    pub fn dark(&self, dark: bool) {
        let value = if dark { "dark" } else { "light" };
        let features = json!([{ "name": "prefers-color-scheme", "value": value }]);
        self.devtools("Emulation.setEmulatedMedia", json!({ "features": features }));
    }

    /// A picture of the window, as PNG.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn picture(&self) -> Vec<u8> {
        let picture = self.command("GET", "/screenshot", &Value::Null);
        BASE64_STANDARD.decode(picture.as_str().expect("base64")).expect("a picture")
    }
}
