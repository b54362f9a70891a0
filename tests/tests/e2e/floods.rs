//! Large output: logs are complete to the byte, or report where they were cut, and memory stays limited.

use crate::shared;
use rouse_tests::harness::{peak_memory, processes_with, text};
use std::fs;
use std::time::Duration;

const MB: u64 = 1_000_000;

/// The agent's own processes: itself, and the parents of its steps.
fn agents(work: &str) -> Vec<i32> {
    let ours = |pid: &i32| {
        let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        program.file_name().is_some_and(|name| name == "rouse-agent")
    };
    processes_with(work).into_iter().map(|(pid, _)| pid).filter(ours).collect()
}

#[test]
fn a_gigabyte_of_output_is_truncated_with_a_report_and_memory_stays_small() {
    let master = shared();
    let agent = master.begin_agent("flood", &[("ROUSE_AGENT_MAX_LOG_SIZE", "20MB")]);
    let gate = master.dir.join("flood-gate");
    let script = format!(
        "dd if=/dev/zero bs=1000000 count=1000 status=none | tr '\\0' x; until [ -e {} ]; do sleep 0.05; done; echo done",
        gate.display()
    );
    let id = master.detach(&["--worker", "flood", "--", "sh", "-c", &script]);
    let work = master.dir.join("work-flood").display().to_string();
    let tr = || processes_with(&work).iter().any(|(_, line)| line.starts_with("tr ") || line.starts_with("dd "));
    master.until("it prints", tr);
    master.until_within(Duration::from_secs(120), "it has printed all", || !tr());
    let peaks: Vec<u64> = agents(&work).into_iter().map(peak_memory).collect();
    assert!(peaks.len() >= 2 && peaks.iter().all(|peak| *peak < 30 * MB), "the agent's processes: {peaks:?}");
    fs::write(gate, "").unwrap();
    master.until_state(&id, "success");
    assert!(peak_memory(master.pid()) < 100 * MB, "the master: {}", peak_memory(master.pid()));
    let shown = master.show(&id);
    let step = &shown["tries"][0]["steps"][0];
    let (kept, cut) = (step["log_length"].as_u64().unwrap(), step["log_thrown_away"].as_u64().unwrap());
    assert!(kept <= 20 * MB + 1_000 && cut >= 980 * MB && kept + cut >= 1_000 * MB, "{step}");
    assert!(master.rouse(&["show", &id]).ended(0).text().contains("dropped"));
    // The log has only the step's bytes. That there were more is reported separately.
    let log = master.rouse(&["log", &id]).ended(0);
    assert!(log.out.len() as u64 == kept && log.out.iter().all(|byte| *byte == b'x'));
    assert!(log.err.contains("dropped") && log.err.contains(&cut.to_string()), "{}", log.err);
    drop(agent);
}

#[test]
fn a_long_log_and_a_long_line_come_to_the_byte() {
    let master = shared();
    let _agent = master.agent("bytes");
    // Any bytes, lines of any length, and one of 100,000 characters.
    let mut state = 88_172_645_463_325_252_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut bytes: Vec<u8> = (0..20 * MB / 8).flat_map(|_| next().to_le_bytes()).collect();
    let line: Vec<u8> = (0..100_000).map(|n| b'a' + (n % 26) as u8).chain([b'\n']).collect();
    bytes.extend(&line);
    let file = master.dir.join("bytes");
    fs::write(&file, &bytes).unwrap();
    let file = file.display().to_string();
    let said = master.rouse(&["build", "--worker", "bytes", "--", "cat", &file]).ended(0);
    assert_eq!(said.out.len(), bytes.len());
    assert!(said.out == bytes, "what is followed differs");
    let id = text(
        &master
            .get("/api/builds?limit=1000")
            .json()
            .as_array()
            .unwrap()
            .iter()
            .find(|b| b["worker"] == "bytes")
            .unwrap()["id"],
    );
    assert!(master.rouse(&["log", &id]).ended(0).out == bytes, "what is kept differs");
}
