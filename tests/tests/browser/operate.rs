//! What an operator does with the page.

use crate::Page;
use serde_json::json;

#[test]
fn a_build_appears_its_log_grows_and_it_ends() {
    let page = Page::new();
    let _agent = page.master.agent("desk");
    let gate = page.master.dir.join("gate");
    let script = format!("echo first; while [ ! -e {} ]; do sleep 0.1; done; echo second", gate.display());
    let build = page.master.detach(&["--worker", "desk", "--name", "grows", "--", "sh", "-c", &script]);
    page.until("the build appears", "document.getElementById('builds').innerText.includes('grows')");
    page.click(&format!("#builds a[href='#build/{build}']"));
    page.until("its log is shown", "document.getElementById('output').innerText.includes('first')");
    assert!(!page.shown("#output").contains("second"));
    page.until("it runs", "document.getElementById('build-state').innerText.includes('running')");
    std::fs::write(&gate, "").unwrap();
    page.until("the log grows", "document.getElementById('output').innerText.includes('second')");
    page.until("it ends", "document.getElementById('build-state').innerText.includes('success')");
    page.until("the log is complete", "document.getElementById('log-state').innerText.includes('complete')");
    std::fs::remove_file(gate).unwrap();
}

#[test]
fn a_build_is_cancelled_with_the_token_and_not_without_it() {
    let page = Page::new();
    let build = page.master.detach(&["--worker", "bench", "--name", "unwanted", "--", "true"]);
    page.show(&format!("#build/{build}"));
    page.until("the build is shown", "!document.getElementById('cancel').hidden");
    page.click("#cancel");
    page.command("POST", "/alert/accept", &json!({}));
    page.enter_token("0123456789abcdef");
    page.until("the wrong token is refused", "/did not accept/.test(document.getElementById('ask-why').textContent)");
    assert_eq!(page.master.state(&build), "queued");
    page.enter_token(&page.master.token());
    page.until("it is cancelled", "document.getElementById('build-state').innerText.includes('cancelled')");
    assert_eq!(page.master.state(&build), "cancelled");
}

#[test]
fn a_worker_has_its_newest_operation_for_who_may_read_the_journal() {
    let page = Page::new();
    page.master.rouse(&["pause", "bench", "--note", "new <b>disk</b>"]).ended(0);
    let resume = "#workers [data-worker='bench'][data-do='resume']";
    page.until("it can be resumed", &format!("document.querySelector(\"{resume}\")"));
    page.click(resume);
    page.enter_token(&page.master.token());
    let row = "document.querySelector('#workers tr[data-key=bench]').innerText";
    page.until("it is resumed", &format!("{row}.includes('resume by admin')"));
    page.master.rouse(&["pause", "bench", "--note", "new <b>disk</b>"]).ended(0);
    page.until(
        "the note is shown",
        &format!("{row}.includes('pause by admin') && {row}.includes(': new <b>disk</b>')"),
    );
    page.master.rouse(&["resume", "bench"]).ended(0);
}

#[test]
fn the_page_says_that_it_has_lost_the_master_and_mends_itself() {
    let page = Page::new();
    page.master.kill();
    page.until("the loss is shown", "!/^(live|updated)/.test(document.getElementById('connection').textContent)");
    page.master.begin();
    page.until("it is mended", "/^(live|updated)/.test(document.getElementById('connection').textContent)");
    let build = page.master.detach(&["--worker", "bench", "--name", "after the loss", "--", "true"]);
    page.until("it has new data", "document.getElementById('builds').innerText.includes('after the loss')");
    page.master.rouse(&["cancel", &build]).ended(0);
}
