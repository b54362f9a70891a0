//! The status page in a real browser. All tests use one browser, one after the other (.config/nextest.toml), and one
//! master.

#![allow(clippy::unwrap_used)]

mod accessibility;
mod hostile;
mod operate;
mod views;

use rouse_tests::browser::Browser;
use rouse_tests::harness::{BEGIN, Keeper, Master, kept, scratch, standing, turn};
use serde_json::json;
use std::fs::{self, File};
use std::ops::Deref;

/// The page of the shared master in the shared browser, for one test at a time.
struct Page {
    browser: Browser,
    master: Master,
    _turn: File,
}

impl Deref for Page {
    type Target = Browser;

    fn deref(&self) -> &Browser {
        &self.browser
    }
}

impl Page {
    /// The page with nobody's token, in a wide window in light colours.
    fn new() -> Self {
        let turn = turn(true);
        let (browser, master) = (Browser::of(&kept()["browser"]), Master::of_keeper(&kept()["master"]));
        let page = Self { browser, master, _turn: turn };
        page.resize(1280, 1000);
        page.dark(false);
        page.show("");
        page.script("sessionStorage.clear(); localStorage.clear()", json!([]));
        page.show("");
        page
    }

    /// Opens the page at a fragment, and waits until it has data.
    #[track_caller]
    fn show(&self, fragment: &str) {
        self.open(&format!("http://{}/{fragment}", self.master.http));
        self.until(
            "the page has the master's data",
            "/^(live|updated)/.test(document.getElementById('connection').textContent)",
        );
    }

    /// Enters a token in the dialog, which must be open.
    #[track_caller]
    fn enter_token(&self, token: &str) {
        self.until("the page asks for the token", "document.getElementById('ask').open");
        self.type_into("#ask-token", token);
        self.click("#ask-form [type=submit]");
    }
}

#[test]
#[ignore = "keeps the master and the browser for the other tests, which start it"]
fn keeper() {
    let Some(keeper) = Keeper::here() else { return };
    let dir = scratch("browser");
    let workers = [standing("desk", ""), standing("bench", "max_builds = 2")].concat();
    let master = Master::start("page", &workers);
    let browser = Browser::start(&dir);
    let kept = json!({ "master": master.description(), "browser": browser.description() });
    keeper.serve(&kept, |request| {
        assert_eq!(request, BEGIN);
        master.begin();
    });
    browser.end();
    master.end();
    fs::remove_dir_all(dir).unwrap();
}
