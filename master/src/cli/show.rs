//! One build for people: what it is, its attempts with their steps, and what failed hosts left behind.

use super::output::{Table, ago, between, line, plain, text};
use rouse_shared::{Timestamp, duration};
use serde_json::Value;
use std::io;
use std::time::Duration;

/// Prints why a build has not started, or what has become of it.
pub(super) fn why(why: &Value) -> io::Result<()> {
    line(&plain(&text(&why["sentence"])))
}

/// Prints a build with all that is known of it.
pub(super) fn build(build: &Value, now: Timestamp) -> io::Result<()> {
    let mut out = head(build, now);
    for attempt in list(&build["tries"]) {
        out.push('\n');
        out.push_str(&self::attempt(attempt, now));
    }
    for failed in list(&build["evidence"]) {
        out.push('\n');
        out.push_str(&evidence(failed, now));
    }
    line(out.trim_end())
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn head(build: &Value, now: Timestamp) -> String {
    let mut out = format!("build {}  {}\n", text(&build["id"]), text(&build["state"]));
    let mut field = |key: &str, value: String| {
        if value != "-" {
            out.push_str(&format!("  {key:<9} {}\n", plain(&value)));
        }
    };
    field("name", text(&build["name"]));
    field("reason", text(&build["reason"]));
    field("worker", text(&build["wanted_worker"]));
    let properties = build["where"].as_object().map(|properties| {
        let pairs: Vec<_> = properties.iter().map(|(key, value)| format!("{key}={}", text(value))).collect();
        if pairs.is_empty() { "any worker".to_owned() } else { pairs.join(" ") }
    });
    field("where", properties.unwrap_or_else(|| "-".to_owned()));
    field("priority", text(&build["priority"]));
    field("retries", text(&build["retries"]));
    let limit = build["timeout"].as_f64().map(Duration::from_secs_f64);
    field("timeout", limit.map_or_else(|| "-".to_owned(), duration::exact));
    field("created", format!("{} ({})", text(&build["created"]), ago(&build["created"], now)));
    if !build["started"].is_null() {
        field("started", text(&build["started"]));
        field("took", between(&build["started"], &build["finished"], now));
    }
    field("finished", text(&build["finished"]));
    out
}

fn attempt(attempt: &Value, now: Timestamp) -> String {
    let host = attempt["host"].as_str().map_or_else(String::new, |host| format!(", host {host}"));
    let reason = attempt["reason"].as_str().map_or_else(String::new, |reason| format!(": {reason}"));
    let title = format!(
        "attempt {} on {}{host}: {}{reason}, given out {}",
        text(&attempt["number"]),
        text(&attempt["worker"]),
        text(&attempt["state"]),
        ago(&attempt["ordered"], now),
    );
    let rows = list(&attempt["steps"]).iter().map(|step| {
        let code = match (&step["exit_code"], &step["signal"]) {
            (Value::Null, Value::Null) => "-".to_owned(),
            (Value::Null, signal) => format!("signal {}", text(signal)),
            (code, _) => text(code),
        };
        let note = match (step["log_thrown_away"].as_u64(), step["log_lacks_end"].as_bool()) {
            (Some(cut), _) if cut > 0 => format!("{cut} bytes of its log are thrown away"),
            (_, Some(true)) => "its log lacks its end".to_owned(),
            _ => step["reason"].as_str().unwrap_or_default().to_owned(),
        };
        let cells = [text(&step["number"]), text(&step["name"]), text(&step["state"]), code];
        let [number, name, state, code] = cells;
        [String::new(), number, name, state, code, seconds(&step["duration"]), text(&step["log_length"]), note]
    });
    let table = Table::new(["", "STEP", "NAME", "STATE", "EXIT", "TOOK", "LOG", ""], rows);
    format!("{}\n{table}", plain(&title))
}

fn evidence(failed: &Value, now: Timestamp) -> String {
    let mut out = plain(&format!(
        "host {} of {} never attached: {}, {}",
        text(&failed["host"]),
        text(&failed["worker"]),
        text(&failed["why"]),
        ago(&failed["at"], now),
    ));
    out.push('\n');
    if let Some(console) = failed["console"].as_str() {
        out.push_str("  it printed at last:\n");
        for printed in console.lines() {
            out.push_str(&format!("  | {}\n", plain(printed)));
        }
    }
    out
}

/// Seconds for people.
fn seconds(value: &Value) -> String {
    value.as_f64().map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.1}s"))
}
