//! What a build may do on its machine: limits of steps, which need a kernel with cgroups of its own.

use crate::system::system;
use rouse_tests::harness::text;

/// Twice as many processes again and again, until the limit is reached. There is a bound of its own: 4,000.
const BOMB: &str = "bomb() { [ $1 -gt 0 ] && { bomb $(($1-1)) & bomb $(($1-1)) & wait; sleep 30; }; }; bomb 11";

#[test]
fn limits_of_steps_are_enforced_in_a_guest() {
    if !crate::may_run() {
        return;
    }
    let _turn = crate::together();
    let system = system();
    let master = &system.master;
    let run = |script: &str, more: &str| {
        let name = format!("limits-{}.toml", script.len());
        let step = format!("worker = \"limited\"\nretries = 0\n{more}\n[[step]]\nname = \"it\"\nrun = {script:?}\n");
        std::fs::write(master.dir.join(&name), step).unwrap();
        master.detach(&["--file", &name])
    };
    let ended = |build: &str, state: &str| {
        system.until(build, state);
        let shown = master.show(build);
        let step = shown["tries"][0]["steps"][0].clone();
        (shown, step)
    };

    // The whole step is ended, the shell that would have gone on included.
    let build = run("awk 'BEGIN { s = \"x\"; while (length(s) < 1e8) s = s s }'; echo survived", "");
    let (shown, step) = ended(&build, "failure");
    let out_of_memory = "out of memory: 48.0 MiB of 48 MiB";
    assert!(text(&shown["reason"]).contains(out_of_memory), "{shown}");
    assert_eq!((text(&step["reason"]).as_str(), &step["out_of_memory"]), (out_of_memory, &true.into()));
    assert!(step["peak_memory"].as_u64().unwrap() > 40 << 20 && step["cpu_seconds"].is_number(), "{step}");
    assert!(!system.log(&build).contains("survived"));
    let listed = master.rouse(&["show", &build]).ended(0).text();
    assert!(listed.contains("48.0 MiB") && !listed.contains("not enforced"), "{listed}");

    // A build narrows what the worker allows, and cannot widen it.
    let memory = "limits = { memory = \"1G\", pids = 5, cpus = 0.5 }";
    let files = "cat /sys/fs/cgroup/agent/rouse-step-*/*.max";
    let (_, step) = ended(&run(files, memory), "success");
    assert!(step["peak_memory"].as_u64().is_some_and(|peak| peak > 0), "{step}");
    let build = run(&format!("{files}; true"), memory);
    ended(&build, "success");
    let log = system.log(&build);
    for line in ["50331648", "5", "50000 100000"] {
        assert!(log.lines().any(|found| found == line), "{line}: {log}");
    }

    // The bomb cannot start more than it may, ends with its step, and the next build notices nothing.
    let build = run(BOMB, "timeout = \"5s\"");
    let (shown, _) = ended(&build, "failure");
    assert!(text(&shown["reason"]).contains("longer than 5s"), "{shown}");
    assert!(system.log(&build).contains("can't fork"), "{}", system.log(&build));
    let build = run("ls -d /sys/fs/cgroup/agent/rouse-step-* | wc -l", "");
    ended(&build, "success");
    assert_eq!(system.log(&build).lines().last(), Some("1"));
    let host = master.hosts("limited");
    assert_eq!(text(&host[0]["uses"]), "5", "one machine ran them all");
    master.rouse(&["terminate", &text(&host[0]["id"]), "--yes"]).ended(0);
    system.until_clean(&["limited"]);
}
