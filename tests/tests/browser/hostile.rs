//! Text that others choose is shown, and never does anything.

use crate::Page;
use serde_json::json;

/// Markup that calls `hit` if it becomes part of a page.
const MARKUP: &str = "<img src=x onerror=hit()><script>hit()</script>\"'><svg onload=hit()>";

#[test]
fn a_script_in_a_name_a_reason_or_a_log_does_nothing() {
    let page = Page::new();
    let _agent = page.master.agent("desk");
    let steps = json!({
        "name": format!("name {MARKUP}"),
        "worker": "desk",
        "step": [
            { "name": format!("step {MARKUP}"), "run": ["printf", "%s", format!("log {MARKUP}\n")] },
            { "name": "fails", "run": [format!("/no/reason {MARKUP}")] },
        ],
    });
    let build = page.master.post("/api/builds", &steps.to_string()).json()["id"].to_string();
    let build = build.trim_matches('"');
    page.master.until_state(build, "failure");
    page.script("window.hits = 0; window.hit = () => { window.hits += 1 }", json!([]));
    page.until("its name is shown", "document.getElementById('builds').innerText.includes('name <img src=x')");
    page.script("location.hash = arguments[0]", json!([format!("#build/{build}/1/1")]));
    page.until("its log is shown", "document.getElementById('output').innerText.includes('log <img src=x')");
    page.until("its reason is shown", "document.getElementById('build').innerText.includes('/no/reason <img src=x')");
    assert_eq!(page.script("return window.hits", json!([])), 0);
    assert_eq!(
        page.script("return document.querySelectorAll('main img, main svg[onload], main script').length", json!([])),
        0
    );
}

#[test]
fn a_script_in_what_the_master_would_never_send_does_nothing() {
    let page = Page::new();
    // Such a name is refused in the configuration; the page does not rely on that.
    let replace = "
        window.hits = 0; window.hit = () => { window.hits += 1 };
        const real = window.fetch, markup = arguments[0];
        window.fetch = async (path, options) => {
            const answer = await real(path, options);
            if (!String(path).startsWith('/api/workers') || options?.method === 'POST') return answer;
            const workers = await answer.json();
            for (const worker of workers) Object.assign(worker, {
                name: markup, last_failure: markup, unfit: markup, properties: { [markup]: markup },
                refused: { at: new Date().toISOString(), identity: markup, reason: markup },
            });
            return new Response(JSON.stringify(workers), { status: 200, headers: answer.headers });
        };";
    page.script(replace, json!([MARKUP]));
    page.until("the name is shown", "document.getElementById('workers').innerText.includes('<img src=x')");
    assert_eq!(page.script("return window.hits", json!([])), 0);
}
