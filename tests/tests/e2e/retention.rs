//! Retention: logs are deleted before their builds, a build that is to be kept stays, and no number is given twice.

use rouse_tests::harness::{Master, standing};

#[test]
fn what_is_old_is_deleted_and_what_is_kept_stays() {
    let worker = standing("w", "keepalive_interval = 1\nlease = 60\n");
    let master = Master::start("retention", &worker);
    let _agent = master.agent("w");
    let build = |more: &[&str]| {
        let id = master.detach(&[more, &["--worker", "w", "--", "echo", "hello"]].concat());
        master.until_state(&id, "success");
        id
    };
    let (old, kept) = (build(&[]), build(&["--keep"]));
    let files = |id: &str| master.dir.join("state/logs/0").join(id).exists();
    let log = format!("/api/builds/{old}/steps/1/log");
    assert!(files(&old) && files(&kept) && master.get(&log).status == 200);

    master.configure(&format!("[retention]\nlogs = 1\n{worker}"));
    master.signal(libc::SIGHUP);
    master.until("its log is deleted", || master.get(&log).status == 410 && !files(&old));
    let said = master.rouse(&["log", &old]).ended(4);
    assert!(said.err.contains("was deleted by retention"), "{}", said.err);
    assert_eq!(master.state(&old), "success");
    assert!(master.show(&old)["logs_deleted"].is_string());

    master.kill();
    master.configure(&format!("[retention]\nbuilds = 1\nmax_size = 1\n{worker}"));
    master.begin();
    master.until("the build is deleted", || master.get(&format!("/api/builds/{old}")).status == 404);
    let said = master.rouse(&["show", &old]).ended(4);
    assert!(said.err.contains("was deleted by retention"), "{}", said.err);
    assert_eq!(master.rouse(&["log", &kept]).ended(0).text(), "hello\n");
    let metrics = master.get("/metrics").body;
    let metrics = String::from_utf8_lossy(&metrics);
    assert!(metrics.contains("rouse_builds{state=\"success\"} 1\n"), "{metrics}");
    let next = build(&[]);
    assert_eq!((old.as_str(), kept.as_str(), next.as_str()), ("1", "2", "3"));
    master.end();
}
