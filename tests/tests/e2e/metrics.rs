//! What the master measures, and the rules and the board in contrib/ that use it.

use crate::shared;
use rouse_master::metrics::table::{self, Kind};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn contrib(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib").join(path)
}

fn promtool(arguments: &[&str], input: &str) -> Output {
    let mut promtool = Command::new("promtool");
    promtool.args(arguments).current_dir(contrib("prometheus"));
    promtool.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = promtool.spawn().expect("promtool is installed by `tests/setup test`");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[track_caller]
fn accepted(output: &Output) {
    let said = [output.stdout.as_slice(), output.stderr.as_slice()].map(String::from_utf8_lossy).concat();
    assert!(output.status.success(), "{said}");
}

/// The metrics of rouse that a text names.
fn named(text: &str) -> Vec<&str> {
    let word = |c: char| c.is_ascii_lowercase() || c == '_' || c == ':';
    let words = text.split(|c| !word(c));
    words.filter(|word| word.starts_with("rouse_")).collect()
}

/// Whether `/metrics` may have a series of this name.
fn exists(name: &str) -> bool {
    table::ALL.iter().any(|metric| match metric.kind {
        Kind::Histogram => ["_bucket", "_sum", "_count"].iter().any(|end| name.strip_suffix(end) == Some(metric.name)),
        Kind::Counter | Kind::Gauge => name == metric.name,
    })
}

#[test]
fn prometheus_reads_what_a_master_measures() {
    let master = shared();
    let _agent = master.agent("talk");
    let build = master.detach(&["--worker", "talk", "--", "true"]);
    master.until_state(&build, "success");
    let text = String::from_utf8(master.get("/metrics").body).unwrap();
    accepted(&promtool(&["check", "metrics"], &text));
    let metrics = table::ALL.iter().filter(|m| m.name != "rouse_blob_store_down" && !m.name.contains("log_uploads"));
    for metric in metrics {
        let head = format!("# TYPE {} {}\n", metric.name, metric.kind.as_str());
        // No host is needed here, so none was started.
        let of_hosts = ["rouse_host_phase_seconds"].contains(&metric.name);
        assert!(text.matches(&head).count() == 1 || of_hosts, "{head} is not there once:\n{text}");
    }
    for line in ["rouse_build_wait_seconds_count{template=\"talk\"} ", "rouse_commit_seconds_count "] {
        let count = text.lines().find_map(|l| l.strip_prefix(line)).unwrap_or_else(|| panic!("no {line} in {text}"));
        assert!(count.parse::<u64>().unwrap() >= 1, "{line}{count}");
    }
}

#[test]
fn the_rules_are_right_and_each_alert_is_raised_by_a_test() {
    accepted(&promtool(&["check", "rules", "rouse.rules.yml"], ""));
    accepted(&promtool(&["test", "rules", "rouse.rules.test.yml"], ""));
    let rules = fs::read_to_string(contrib("prometheus/rouse.rules.yml")).unwrap();
    let tests = fs::read_to_string(contrib("prometheus/rouse.rules.test.yml")).unwrap();
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 10, "{alerts:?}");
    for alert in alerts {
        assert!(tests.contains(&format!("- alertname: {alert}\n")), "no test raises {alert}");
    }
    let records: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- record: ")).collect();
    for record in &records {
        assert!(tests.contains(&format!("expr: {record}\n")), "no test computes {record}");
    }
    let board = fs::read_to_string(contrib("grafana/rouse.json")).unwrap();
    serde_json::from_str::<serde_json::Value>(&board).unwrap();
    for name in named(&rules).into_iter().chain(named(&board)) {
        assert!(exists(name), "there is no metric {name}");
    }
    let of_rules = board.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || ":_".contains(c)));
    for name in of_rules.filter(|word| word.starts_with("rouse:")) {
        assert!(records.contains(&name), "there is no rule {name}");
    }
}
