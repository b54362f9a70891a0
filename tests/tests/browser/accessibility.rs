//! axe-core finds no fault of accessibility in any state of the page.

use crate::Page;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;

/// The faults that axe-core finds in the page as it is shown.
#[track_caller]
fn has_no_fault(page: &Page, state: &str) {
    let found = page.later("axe.run().then(arguments[arguments.length - 1])");
    assert!(found["passes"].as_array().is_some_and(|passes| passes.len() > 5), "axe-core has run: {found}");
    let faults = found["violations"].as_array().expect("a list");
    let told: Vec<String> = faults.iter().map(|fault| format!("{}: {}", fault["help"], nodes(fault))).collect();
    assert!(told.is_empty(), "{state}: {}", told.join("\n"));
}

fn nodes(fault: &Value) -> String {
    let nodes = fault["nodes"].as_array().into_iter().flatten();
    nodes.map(|node| format!("{} ({})", node["html"], node["failureSummary"])).collect::<Vec<_>>().join("; ")
}

/// Puts axe-core into the page.
#[track_caller]
fn with_axe(page: &Page) {
    let axe = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("axe")).output().unwrap();
    assert!(axe.status.success(), "axe-core is not installed: tests/setup test");
    let axe = fs::read_to_string(String::from_utf8(axe.stdout).unwrap().trim()).unwrap();
    page.script(&axe, json!([]));
}

#[test]
fn axe_finds_nothing_in_any_state() {
    let page = Page::new();
    let _agent = page.master.agent("desk");
    let failed = page.master.detach(&["--worker", "desk", "--name", "fails", "--", "sh", "-c", "echo lines; exit 3"]);
    page.master.until_state(&failed, "failure");
    let waits = page.master.detach(&["--worker", "bench", "--name", "waits", "--", "true"]);
    for (dark, width) in [(false, 1280), (true, 400)] {
        page.dark(dark);
        page.resize(width, 900);
        page.show("");
        with_axe(&page);
        page.until("the list is there", "document.getElementById('builds').innerText.includes('waits')");
        has_no_fault(&page, &format!("overview, dark {dark}, {width}"));
        page.script("location.hash = arguments[0]", json!([format!("#build/{failed}")]));
        page.until("the log is there", "document.getElementById('output').innerText.includes('lines')");
        has_no_fault(&page, &format!("ended build, dark {dark}, {width}"));
        page.script("location.hash = arguments[0]", json!([format!("#build/{waits}")]));
        page.until("why is there", "!document.getElementById('build-why').hidden");
        has_no_fault(&page, &format!("waiting build, dark {dark}, {width}"));
        page.script("document.getElementById('check').onclick(); location.hash = ''", json!([]));
        page.until("it asks for the token", "document.getElementById('ask').open");
        has_no_fault(&page, &format!("dialog, dark {dark}, {width}"));
    }
    page.master.rouse(&["cancel", &waits]).ended(0);
}
