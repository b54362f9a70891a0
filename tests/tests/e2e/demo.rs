//! `rouse demo` leaves nothing behind, whenever it is interrupted.

use rouse_tests::harness::{DEADLINE, Process, Said, holds_within, processes_with, program, scratch};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Runs the demo until `moment`, interrupts it as Ctrl-C does, and looks for what is left. Without a moment: to its end.
fn demo(name: &str, moment: Option<fn(&Process, &str) -> bool>) -> Said {
    let dir = scratch(name);
    let place = dir.join("tmp");
    std::fs::create_dir(&place).unwrap();
    let mut command = Command::new(program("rouse"));
    // Outside of any repository, so that it builds the program that it carries.
    command.arg("demo").current_dir(&dir).env("TMPDIR", &place).env_remove("ROUSE_LOG").process_group(0);
    let process = Process::start(command, &dir, "demo");
    let place = place.display().to_string();
    if let Some(moment) = moment {
        let came = holds_within(DEADLINE, || moment(&process, &place));
        assert!(came, "the moment did not come: {}", process.err());
        // SAFETY: only numbers are passed; the group is the demo's own.
        assert_eq!(unsafe { libc::kill(-process.pid(), libc::SIGINT) }, 0);
    }
    let said = process.wait(DEADLINE * 2);
    let left = processes_with(&place);
    assert!(left.is_empty(), "{left:?}");
    let left: Vec<_> = std::fs::read_dir(&place).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    std::fs::remove_dir_all(dir).unwrap();
    said
}

#[test]
fn the_demo_runs_a_build_and_leaves_nothing() {
    let said = demo("demo-whole", None).ended(0);
    assert!(said.text().ends_with("test passed\n"), "{}", said.text());
    let story: Vec<&str> = said.err.lines().skip_while(|line| !line.starts_with("what happened")).skip(1).collect();
    let words: Vec<&str> = story.iter().filter_map(|line| line.trim().split_once("  ")).map(|(_, what)| what).collect();
    let life =
        ["queued", "ordered", "booted", "attached", "first step", "done", "idle", "draining", "stopping", "gone"];
    assert_eq!(words, life, "{}", said.err);
}

#[test]
fn interrupted_while_its_broker_starts_it_leaves_nothing() {
    demo("demo-start", Some(|_, place| processes_with(place).iter().any(|(_, line)| line.contains("beam")))).ended(1);
}

#[test]
fn interrupted_while_its_build_runs_it_leaves_nothing() {
    demo("demo-build", Some(|demo, _| !demo.out().is_empty())).ended(1);
}

#[test]
fn interrupted_while_its_host_is_idle_it_leaves_nothing() {
    demo("demo-idle", Some(|demo, _| demo.err().contains("the host is idle"))).ended(1);
}
