//! Steps with real processes: how they end, what they print, and that no process of them is left.

mod support;

use rouse_agent::clock;
use rouse_agent::runner::StepEvent;
use rouse_shared::message::StepState;
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;
use support::{Bench, ancestor, attempt, children, signal, until};

/// Leaves its group, its session and its parent, and forks again from there.
const TREE: &str = "setsid sh -c 'sleep 1000 & sleep 1000' & (setsid sleep 1000 &); \
                    sh -c '(setsid setsid sh -c \"trap : TERM; while :; do sleep 1000; done\" >/dev/null 2>&1 &)'; ";
/// How many processes that are.
const TREE_SIZE: usize = 6;

fn root() -> bool {
    rustix::process::geteuid().is_root()
}

#[tokio::test]
async fn a_step_ends_as_its_command_does() {
    let mut bench = Bench::new();
    for (script, state) in [
        ("exit 0", StepState::Exited(0)),
        ("exit 7", StepState::Exited(7)),
        ("kill -9 $$", StepState::Signalled(9)),
        ("kill -TERM $$", StepState::Signalled(15)),
    ] {
        let end = bench.run(bench.shell(script)).await;
        assert_eq!(end.state, state, "{script}");
        assert_eq!(end.events[0], StepEvent::Started);
    }
}

#[tokio::test]
async fn output_is_kept_to_the_byte() {
    let mut bench = Bench::new();
    let end = bench.run(bench.shell("echo a; echo b >&2; echo c; printf d >&2")).await;
    assert_eq!(end.log, b"a\nb\nc\nd");

    let end = bench.run(bench.shell("head -c 100000 /dev/zero | tr '\\0' x; echo")).await;
    assert!(end.log.len() == 100_001 && end.log[..100_000].iter().all(|&b| b == b'x'));

    let end = bench.run(bench.shell("head -c 20000000 /dev/urandom > original; cat original")).await;
    assert_eq!(end.state, StepState::Exited(0));
    assert!(end.log == fs::read(bench.path("original")).expect("read"));
    assert_eq!(end.cut, 0);

    let mut job = bench.shell("printf 0123456789");
    job.max_log = 4;
    let end = bench.run(job).await;
    assert_eq!((end.log.as_slice(), end.cut), (b"0123".as_slice(), 6));
}

#[tokio::test]
async fn output_that_the_disk_refuses_is_cut() {
    let mut bench = Bench::new();
    let mut job = bench.shell("echo lost; echo too");
    job.spool = "/dev/full".into();
    bench.runner.run(job);
    let end = loop {
        if let StepEvent::Ended { state, log_length, log_cut, .. } = bench.next().await {
            break (state, log_length, log_cut);
        }
    };
    assert_eq!(end, (StepState::Exited(0), 0, 9));
}

#[tokio::test]
async fn output_is_announced_while_the_step_runs() {
    let mut bench = Bench::new();
    let job = bench.shell("echo first; sleep 1000");
    bench.runner.run(job.clone());
    assert_eq!(bench.next().await, StepEvent::Started);
    assert_eq!(bench.next().await, StepEvent::Output { length: 6 });
    assert_eq!(fs::read(&job.spool).expect("read"), b"first\n");
    bench.runner.kill(job.attempt);
    assert_eq!(bench.end(&job).await.state, StepState::Stopped);
}

#[tokio::test]
async fn a_step_is_given_its_environment_and_directory_and_nothing_else() {
    let mut bench = Bench::new();
    let end = bench.run(bench.job(&["env"])).await;
    let expected = format!("PATH={}\n{}={}\n", support::PATH, support::MARK, bench.mark);
    assert_eq!(String::from_utf8_lossy(&end.log), expected);

    let end = bench.run(bench.shell("pwd -P; ls /proc/self/fd; umask; cat; cat /proc/self/oom_score_adj")).await;
    let cwd = fs::canonicalize(bench.dir.path()).expect("there");
    // 0 to 2, and the directory that ls itself reads.
    assert_eq!(String::from_utf8_lossy(&end.log), format!("{}\n0\n1\n2\n3\n0022\n500\n", cwd.display()));

    let end = bench.run(bench.job(&["grep", "-E", "^Sig(Blk|Ign)|^NoNewPrivs", "/proc/self/status"])).await;
    let log = String::from_utf8_lossy(&end.log).into_owned();
    assert_eq!(log, "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\nNoNewPrivs:\t0\n");
}

#[tokio::test]
async fn a_step_that_cannot_start_says_why() {
    let mut bench = Bench::new();
    let plain = bench.path("plain");
    fs::write(&plain, "exit 3\n").expect("written");
    let plain_text = plain.display().to_string();

    let nowhere = bench.job(&["no-such-program"]);
    let forbidden = bench.job(&[&plain_text]);
    let mut no_directory = bench.shell("exit 0");
    no_directory.cwd = bench.path("none");
    let mut no_user = bench.shell("exit 0");
    no_user.run_as = Some("no-such-user".into());
    let mut no_spool = bench.shell("exit 0");
    no_spool.spool = bench.path("none/spool");
    let nul = bench.job(&["echo", "a\0b"]);
    for (job, text) in [
        (nowhere, "the command \"no-such-program\" was not found".to_owned()),
        (forbidden, format!("the command {plain_text:?} cannot be run: Permission denied (os error 13)")),
        (
            no_directory,
            format!(
                "the work directory {} cannot be entered: No such file or directory (os error 2)",
                bench.path("none").display()
            ),
        ),
        (no_user, "there is no user \"no-such-user\", neither in /etc/passwd nor for getent".to_owned()),
        (
            no_spool,
            format!(
                "the log file {} cannot be created: No such file or directory (os error 2)",
                bench.path("none/spool").display()
            ),
        ),
        (nul, "the command contains a NUL character".to_owned()),
        (bench.job(&[]), "the step has no command".to_owned()),
    ] {
        let end = bench.run(job).await;
        assert_eq!(end.state, StepState::NotStarted(text));
        assert_eq!(end.events.len(), 1);
    }

    // A script needs no first line, as in a shell.
    fs::set_permissions(&plain, fs::Permissions::from_mode(0o755)).expect("set");
    assert_eq!(bench.run(bench.job(&["./plain"])).await.state, StepState::Exited(3));
}

#[tokio::test]
async fn limits_of_time_and_silence_end_a_step() {
    let mut bench = Bench::new();
    let mut job = bench.shell(&format!("{TREE} while :; do echo; sleep 0.1; done"));
    job.timeout = Some(Duration::from_millis(700));
    job.silence = Some(Duration::from_millis(600));
    let end = bench.run(job).await;
    assert_eq!(end.state, StepState::TimedOut);
    // One process of the tree ignores SIGTERM.
    assert!(end.took >= Duration::from_millis(5700) && end.took < Duration::from_secs(9), "{:?}", end.took);

    let mut job = bench.shell("echo; sleep 0.2; echo; exec sleep 1000");
    job.timeout = Some(Duration::from_secs(20));
    job.silence = Some(Duration::from_millis(500));
    let end = bench.run(job).await;
    assert_eq!((end.state, end.log.as_slice()), (StepState::Silent, b"\n\n".as_slice()));
    assert!(end.took >= Duration::from_millis(700) && end.took < Duration::from_secs(4), "{:?}", end.took);
}

#[tokio::test]
async fn a_stopped_step_may_clean_up_and_is_killed_if_it_does_not_end() {
    let mut bench = Bench::new();
    // The shell ends at once; what it started in another session still gets its time.
    let job = bench
        .shell("setsid sh -c 'trap \"sleep 0.3; echo clean; exit\" TERM; echo; while :; do sleep 0.1; done' & wait");
    bench.runner.run(job.clone());
    while !matches!(bench.next().await, StepEvent::Output { .. }) {}
    bench.runner.stop(job.attempt);
    let end = bench.end(&job).await;
    assert_eq!(end.state, StepState::Stopped);
    // The shell itself may say that its sleep was terminated.
    assert!(end.log.ends_with(b"clean\n"), "{end:?}");
    assert!(end.took < Duration::from_secs(4), "{:?}", end.took);

    let job = bench.shell("trap : TERM; echo; while :; do sleep 0.1; done");
    bench.runner.run(job.clone());
    while !matches!(bench.next().await, StepEvent::Output { .. }) {}
    let stopped = clock::now();
    bench.runner.stop(job.attempt);
    bench.runner.stop(attempt(2));
    assert_eq!(bench.end(&job).await.state, StepState::Stopped);
    let took = clock::now().since(stopped);
    assert!(took >= Duration::from_millis(4900) && took < Duration::from_secs(8), "{took:?}");

    // Before it could begin.
    fs::remove_file(&job.spool).expect("there");
    bench.runner.run(job.clone());
    bench.runner.kill(job.attempt);
    assert_eq!(bench.end(&job).await.state, StepState::Stopped);
}

#[tokio::test]
async fn what_a_step_leaves_behind_ends_with_it() {
    let mut bench = Bench::new();
    // They hold the pipe of the output, and nobody waits for them to close it.
    let end = bench.run(bench.shell(&format!("{TREE} sleep 0.2; echo done; exit 4"))).await;
    assert_eq!((end.state, end.log.as_slice()), (StepState::Exited(4), b"done\n".as_slice()));
    assert!(end.took < Duration::from_secs(5), "{:?}", end.took);
}

#[tokio::test]
async fn processes_that_multiply_are_all_ended() {
    let mut bench = Bench::new();
    let job = bench.shell(
        "trap : TERM; multiply() { i=0; while [ $i -lt 300 ]; do (setsid sleep 1000 &); i=$((i+1)); sleep 0.01; done; }; \
         (multiply &); (multiply &); while :; do (setsid sleep 2 &); sleep 0.01; done",
    );
    bench.runner.run(job.clone());
    bench.until_alive(60).await;
    bench.runner.kill(job.attempt);
    assert_eq!(bench.end(&job).await.state, StepState::Stopped);
}

/// Each process starts the next one and ends, so none lives for long enough to be listed and killed; at most so often.
#[tokio::test]
async fn a_chain_of_processes_is_ended() {
    let mut bench = Bench::new();
    let job = bench
        .shell("chain() { [ $1 -gt 0 ] && { chain $(($1-1)) & }; }; trap : TERM; chain 50000; chain 50000; sleep 1000");
    bench.runner.run(job.clone());
    bench.until_alive(2).await;
    bench.runner.kill(job.attempt);
    assert_eq!(bench.end(&job).await.state, StepState::Stopped);
}

#[tokio::test]
async fn the_end_of_the_lease_kills_at_once() {
    let mut bench = Bench::new();
    let job = bench.shell(&format!("{TREE} sleep 1000"));
    bench.runner.run(job.clone());
    bench.until_alive(TREE_SIZE).await;
    // If the deadline is moved, a step goes on.
    bench.runner.set_deadline(Some(clock::now() + Duration::from_millis(400)));
    bench.runner.set_deadline(Some(clock::now() + Duration::from_millis(900)));
    let began = clock::now();
    let end = bench.end(&job).await;
    assert_eq!(end.state, StepState::Lost("the lease ended".into()));
    let took = clock::now().since(began);
    assert!(took >= Duration::from_millis(850) && took < Duration::from_secs(3), "{took:?}");

    let end = bench.run(bench.shell("echo ran")).await;
    assert_eq!((end.state, end.log.len()), (StepState::Lost("the lease ended".into()), 0));
    bench.runner.set_deadline(None);
    assert_eq!(bench.run(bench.shell("exit 0")).await.state, StepState::Exited(0));
}

#[tokio::test]
async fn a_step_whose_supervisor_was_killed_is_lost() {
    let mut bench = Bench::new();
    let job = bench.shell(&format!("{TREE} echo begun; sleep 1000"));
    bench.runner.run(job.clone());
    let pids = bench.until_alive(TREE_SIZE).await;
    let supervisor = ancestor(pids[0], "rouse-step").expect("it has one");
    signal(supervisor, Signal::KILL);
    let end = bench.end(&job).await;
    assert_eq!(end.state, StepState::Lost("its supervisor was killed".into()));
    assert_eq!(bench.run(bench.shell("exit 0")).await.state, StepState::Exited(0));
}

#[tokio::test]
async fn a_supervisor_that_is_frozen_at_the_leases_end_is_killed() {
    let mut bench = Bench::new();
    let job = bench.shell(&format!("{TREE} sleep 1000"));
    bench.runner.run(job.clone());
    let pids = bench.until_alive(TREE_SIZE).await;
    signal(ancestor(pids[0], "rouse-step").expect("it has one"), Signal::STOP);
    bench.runner.set_deadline(Some(clock::now() + Duration::from_millis(100)));
    assert!(matches!(bench.end(&job).await.state, StepState::Lost(_)));
}

#[tokio::test]
async fn steps_of_a_killed_zygote_are_lost_and_another_takes_over() {
    let mut bench = Bench::new();
    for with_supervisor in [false, true] {
        let job = bench.shell(&format!("{TREE} sleep 1000"));
        bench.runner.run(job.clone());
        let pids = bench.until_alive(TREE_SIZE).await;
        let supervisor = ancestor(pids[0], "rouse-step").expect("it has one");
        signal(ancestor(supervisor, "rouse-zygote").expect("it has one"), Signal::KILL);
        if with_supervisor {
            // It may be gone already.
            let _ = kill_process(Pid::from_raw(supervisor).expect("a pid"), Signal::KILL);
        }
        let end = bench.end(&job).await;
        assert!(matches!(&end.state, StepState::Lost(why) if why.contains("the process that starts steps")), "{end:?}");
        let end = bench.run(bench.shell("echo again")).await;
        assert_eq!((end.state, end.log.as_slice()), (StepState::Exited(0), b"again\n".as_slice()));
    }
}

/// There the session of every process is 0, since its leader is not one of the container's.
#[test]
fn a_zygote_is_replaced_in_a_container_that_was_entered_from_outside() {
    let mut unshare = std::process::Command::new("unshare");
    unshare.args(["--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child"]);
    if !unshare.arg("true").status().is_ok_and(|status| status.success()) {
        assert!(std::env::var_os("CI").is_none(), "no namespaces can be had here, and CI must run this");
        eprintln!("passed over: no namespaces can be had here");
        return;
    }
    let mut unshare = std::process::Command::new("unshare");
    unshare.args(["--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child"]);
    unshare.arg(std::env::current_exe().expect("it has a path"));
    unshare.args(["steps_of_a_killed_zygote_are_lost_and_another_takes_over", "--exact"]);
    let ran = unshare.output().expect("it can be run");
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&ran.stderr));
}

#[tokio::test]
async fn steps_run_as_another_user() {
    if !root() {
        eprintln!("passed over: only root can run steps as another user");
        return;
    }
    let mut bench = Bench::new();
    fs::set_permissions(bench.dir.path(), fs::Permissions::from_mode(0o755)).expect("set");
    let mut job = bench.shell("id -un; id -Gn; kill -9 $PPID || echo kept");
    job.run_as = Some("nobody".into());
    let end = bench.run(job).await;
    assert_eq!(end.state, StepState::Exited(0));
    let log = String::from_utf8_lossy(&end.log).into_owned();
    assert!(log.starts_with("nobody\nnogroup\n") || log.starts_with("nobody\nnobody\n"), "{log}");
    assert!(log.ends_with("kept\n"), "{log}");

    // Its processes are killed like any others.
    let mut job = bench.shell(&format!("{TREE} sleep 0.2"));
    job.run_as = Some("nobody".into());
    assert_eq!(bench.run(job).await.state, StepState::Exited(0));
}

#[tokio::test]
async fn many_steps_leak_nothing() {
    let mut bench = Bench::new();
    let job = bench.shell("sleep 1000");
    bench.runner.run(job.clone());
    let pids = bench.until_alive(1).await;
    let zygote = ancestor(pids[0], "rouse-zygote").expect("it has one");
    bench.runner.kill(job.attempt);
    bench.end(&job).await;

    let descriptors = |pid: i32| fs::read_dir(format!("/proc/{pid}/fd")).expect("there").count();
    let settled = || Some(()).filter(|()| children(zygote).is_empty());
    until("the supervisor is reaped", settled).await;
    let before = descriptors(zygote);
    for _ in 0..200 {
        assert_eq!(bench.run(bench.job(&["true"])).await.state, StepState::Exited(0));
    }
    until("all supervisors are reaped", settled).await;
    assert_eq!(descriptors(zygote), before);
}

/// Not a check: what a step costs. `cargo test -p rouse-agent --test runner costs -- --ignored --nocapture`
#[tokio::test]
#[ignore = "measures, checks nothing"]
async fn costs() {
    const STEPS: u32 = 1000;
    let mut bench = Bench::new();
    let job = bench.job(&["/bin/true"]);
    let mut last = None;
    // The first round warms up.
    for _ in 0..2 {
        let began = clock::now();
        for _ in 0..STEPS {
            bench.runner.run(job.clone());
            while !matches!(bench.next().await, StepEvent::Ended { .. }) {}
        }
        last = Some(clock::now().since(began) / STEPS);
    }
    println!("a step: {last:?}");

    let began = clock::now();
    for _ in 0..STEPS {
        assert!(std::process::Command::new("/bin/true").status().expect("run").success());
    }
    println!("posix_spawn alone: {:?}", clock::now().since(began) / STEPS);

    let echo = bench.shell("echo; sleep 0.005");
    let mut first = Duration::ZERO;
    for _ in 0..STEPS {
        let began = clock::now();
        bench.runner.run(echo.clone());
        while !matches!(bench.next().await, StepEvent::Output { .. }) {}
        first += clock::now().since(began);
        while !matches!(bench.next().await, StepEvent::Ended { .. }) {}
    }
    println!("to the first output: {:?}", first / STEPS);

    let mut first = Duration::ZERO;
    for _ in 0..STEPS {
        let began = clock::now();
        let mut command = std::process::Command::new("/bin/sh");
        command.args(["-c", "echo; sleep 0.005"]).stdout(std::process::Stdio::piped());
        let mut process = command.spawn().expect("run");
        let mut output = process.stdout.take().expect("piped");
        std::io::Read::read_exact(&mut output, &mut [0]).expect("a line");
        first += clock::now().since(began);
        process.wait().expect("ended");
    }
    println!("posix_spawn alone: {:?}", first / STEPS);
}

/// To a list of processes it seems to have ended.
#[tokio::test]
async fn a_process_without_its_first_thread_is_ended() {
    let mut bench = Bench::new();
    let script = "import ctypes, os, threading, time\n\
                  threading.Thread(target=time.sleep, args=(1000,)).start()\n\
                  open('pid', 'w').write(str(os.getpid()))\n\
                  ctypes.CDLL(None).syscall(60, 0)";
    fs::write(bench.path("script.py"), script).expect("written");
    let end = bench
        .run(bench.shell("setsid setsid python3 script.py & until [ -s pid ]; do sleep 0.1; done; sleep 0.2"))
        .await;
    assert_eq!(end.state, StepState::Exited(0));
    let pid = fs::read_to_string(bench.path("pid")).expect("it has run");
    let gone = || (!std::path::Path::new("/proc").join(&pid).exists()).then_some(());
    until("it is gone", gone).await;
}

/// A cgroup of version 1 in which processes are frozen so that not even SIGKILL ends them, as a broken device would.
struct Freezer(std::path::PathBuf);

impl Freezer {
    /// `None` if this machine or user has none.
    fn new() -> Option<Self> {
        let dir = std::path::Path::new("/sys/fs/cgroup/freezer").join(format!("rouse-test-{}", std::process::id()));
        fs::create_dir(&dir).ok().map(|()| Self(dir))
    }

    fn freeze(&self, pids: &[i32]) {
        for pid in pids {
            fs::write(self.0.join("cgroup.procs"), pid.to_string()).expect("moved");
        }
        fs::write(self.0.join("freezer.state"), "FROZEN").expect("frozen");
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        fs::write(self.0.join("freezer.state"), "THAWED").expect("thawed");
        for _ in 0..200 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[tokio::test]
async fn a_step_that_cannot_be_ended_is_lost_and_its_machine_not_clean() {
    let Some(freezer) = Freezer::new() else {
        assert!(std::env::var_os("CI").is_none(), "nothing can be frozen here, and CI must run this");
        eprintln!("passed over: nothing can be frozen here");
        return;
    };
    let mut bench = Bench::new();
    for with_supervisor in [true, false] {
        let job = bench.shell("setsid sleep 1000 & sleep 1000");
        bench.runner.run(job.clone());
        let pids = bench.until_alive(2).await;
        let supervisor = ancestor(pids[0], "rouse-step").expect("it has one");
        freezer.freeze(&pids[..1]);
        if with_supervisor {
            bench.runner.kill(job.attempt);
        } else {
            signal(supervisor, Signal::KILL);
        }
        let (state, unclean) = loop {
            if let StepEvent::Ended { state, unclean, .. } = bench.next().await {
                break (state, unclean);
            }
        };
        let StepState::Lost(why) = state else { panic!("{state:?}") };
        assert!(unclean && why.contains(&format!("1 of the step's processes, such as {},", pids[0])), "{why}");
        fs::write(freezer.0.join("freezer.state"), "THAWED").expect("thawed");
        until("it has ended", || support::alive(&bench.mark).is_empty().then_some(())).await;
    }
    // Other steps go on.
    assert_eq!(bench.run(bench.shell("exit 0")).await.state, StepState::Exited(0));
}
