//! What the page shows of many workers, of the queue, of a build's time and of its log.

use crate::Page;
use rouse_tests::harness::text;
use serde_json::json;
use std::time::Duration;

/// A master with 500 workers more, of five templates, as its API would list them.
const MANY: &str = "
    const real = window.fetch;
    window.load = 0;
    window.fetch = async (path, options) => {
        const answer = await real(path, options);
        if (!String(path).startsWith('/api/workers') || options?.method === 'POST') return answer;
        const workers = await answer.json();
        window.load += 1;
        for (let i = 0; i < 500; i += 1) workers.push({ ...workers[0],
            name: `w${i % 5}-${i}`, template: `w${i % 5}-{0..499}`, state: i % 7 ? 'idle' : 'busy', running: i % 7 ? 0 : 1,
            properties: { os: i % 5 ? 'linux' : 'solaris' }, vitals: { load: window.load, memory_used: 1, memory_total: 2, disk_free: 1, disk_total: 2 } });
        return new Response(JSON.stringify(workers), { status: 200, headers: answer.headers });
    };";

#[test]
fn many_workers_are_grouped_by_template_and_searched() {
    let page = Page::new();
    page.script(MANY, json!([]));
    let rows = "document.querySelectorAll('#workers tbody tr').length";
    page.until("the templates are shown", "document.querySelectorAll('#workers .group').length === 5");
    assert_eq!(page.script(&format!("return {rows}"), json!([])), 7, "five templates and the master's two workers");
    let group = page.shown("#workers [data-key='template w0-{0..499}']");
    assert!(group.contains("100 workers") && group.contains("busy"), "{group}");

    page.click("[data-group='w0-{0..499}']");
    page.until("the template is open", &format!("{rows} === 107"));
    assert_eq!(page.script("return document.querySelectorAll('[aria-expanded=true]').length", json!([])), 1);
    page.click("[data-group='w0-{0..499}']");
    page.until("it is closed again", &format!("{rows} === 7"));

    page.type_into("#find-worker", "w3-113 idle");
    page.until("one is found", &format!("{rows} === 1"));
    assert!(page.shown("#workers tbody th").starts_with("w3-113"), "{}", page.shown("#workers tbody"));
    assert_eq!(page.shown("#workers-count"), "1 of 502");
    page.type_into("#find-worker", "x");
    page.until("none is found", "document.querySelector('#workers + p').innerText.includes('No worker matches')");
}

#[test]
fn a_build_that_waits_is_in_the_queue_with_its_reason() {
    let page = Page::new();
    let build = page.master.detach(&["--where", "os=plan9", "--name", "for nobody", "--", "true"]);
    page.until("it is in the queue", "document.getElementById('queue').innerText.includes('for nobody')");
    let why = page.master.why(&build);
    page.until("its reason is there", &format!("document.getElementById('queue').innerText.includes({})", json!(why)));
    page.master.rouse(&["cancel", &build]).ended(0);
    page.until("it is gone", "!document.getElementById('queue').innerText.includes('for nobody')");
}

#[test]
fn a_build_has_a_timeline_of_its_waiting_and_its_steps() {
    let page = Page::new();
    let _agent = page.master.agent("desk");
    let steps = json!({ "worker": "desk", "name": "timed", "step": [
        { "name": "good", "run": ["sleep", "0.3"] },
        { "name": "bad", "run": ["sh", "-c", "sleep 0.3; exit 2"] },
    ] });
    let build = text(&page.master.post("/api/builds", &steps.to_string()).json()["id"]);
    page.master.until_state(&build, "failure");
    page.show(&format!("#build/{build}"));
    page.until(
        "the steps are drawn",
        "document.querySelectorAll('#build-line rect.success, #build-line rect.failure').length === 2",
    );
    let label = page.script("return document.querySelector('#build-line svg').getAttribute('aria-label')", json!([]));
    let label = text(&label);
    assert!(label.contains("step 1 good") && label.contains("step 2 bad"), "{label}");
    let inside = "return [...document.querySelectorAll('#build-line rect')].every((r) => r.x.baseVal.value >= 0 && r.x.baseVal.value + r.width.baseVal.value <= 1002)";
    assert_eq!(page.script(inside, json!([])), true);
}

#[test]
fn a_log_has_colours_and_is_searched() {
    let page = Page::new();
    let _agent = page.master.agent("desk");
    let script = r"printf '\033[1;31mred ne\033[0medle\033[2K\n\033[38;5;200mmany\033[m needle\n'";
    let build = page.master.detach(&["--worker", "desk", "--name", "colours", "--", "sh", "-c", script]);
    page.master.until_state(&build, "success");
    page.show(&format!("#build/{build}"));
    page.until("the log is whole", "document.getElementById('log-state').innerText.includes('complete')");
    assert_eq!(page.shown("#output").trim(), "red needle\nmany needle", "no sequence is left");
    let red =
        page.script("const e = document.querySelector('#output .c1'); return [e.textContent, e.className]", json!([]));
    assert_eq!(red, json!(["red ne", "bold c1"]));

    page.type_into("#log-find", "NEEDLE");
    page.until("both are found, also across colours", "document.getElementById('log-found').innerText === '1 of 2'");
    page.click("#log-search [type=submit]");
    page.until("the next one is chosen", "document.getElementById('log-found').innerText === '2 of 2'");
    page.click("#log-search [type=submit]");
    page.until("the first one follows the last", "document.getElementById('log-found').innerText === '1 of 2'");
    page.click("#log-back");
    page.until("the last one precedes the first", "document.getElementById('log-found').innerText === '2 of 2'");
    page.type_into("#log-find", "x");
    page.until("nothing is found", "document.getElementById('log-found').innerText === 'not found'");
}

#[test]
fn a_log_of_a_million_lines_is_shown_to_its_end() {
    let page = Page::new();
    let _agent = page.master.agent("desk");
    let build = page.master.detach(&["--worker", "desk", "--name", "long", "--", "seq", "1", "1000000"]);
    page.master.until_state(&build, "success");
    page.show(&format!("#build/{build}"));
    page.until_within(
        Duration::from_secs(30),
        "the end is shown",
        "document.getElementById('output').textContent.endsWith('\\n1000000\\n')",
    );
    assert_eq!(
        page.script("return document.getElementById('log-cut').hidden", json!([])),
        false,
        "it says that it is cut"
    );
    let kept = page.script("return document.getElementById('output').textContent.length", json!([]));
    assert!(kept.as_u64().unwrap() < 3_000_000, "{kept} characters are kept");
}
