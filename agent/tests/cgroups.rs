//! Steps in cgroups: nothing escapes, even by forking faster than it can be listed, and what is left of an earlier agent
//! is ended. Limits need controllers that a test machine may not have; the tests with libvirt check them in a guest.

mod support;

use rouse_agent::runner::Cgroups;
use rouse_shared::message::{Limits, StepState};
use rustix::process::Signal;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::{Bench, ancestor, signal, until};

/// A cgroup for one test.
struct Place(PathBuf);

impl Place {
    /// `None` if this machine or user has none; then CI fails.
    fn new() -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 ")).and_then(|line| line.split(' ').nth(4));
        let own = fs::read_to_string("/proc/self/cgroup").expect("a cgroup");
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default().to_owned();
        let mount = mount.unwrap_or("/sys/fs/cgroup");
        for parent in [Path::new(mount).join(own), mount.into()] {
            let dir = parent.join(format!("rouse-test-{}", std::process::id()));
            if fs::create_dir(&dir).is_ok() {
                return Some(Self(dir));
            }
        }
        assert!(std::env::var_os("CI").is_none(), "no cgroup can be made here, and CI must run this");
        eprintln!("passed over: no cgroup can be made here");
        None
    }

    fn cgroups(&self) -> Cgroups {
        Cgroups::below(&self.0).expect("usable")
    }

    /// The cgroups of steps.
    fn steps(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.0).expect("there").flatten().map(|entry| entry.path());
        entries.filter(|path| path.is_dir()).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Removed only if it is empty, which each test checks itself.
        let _ = fs::remove_dir(&self.0);
    }
}

/// Each process starts another one and ends, at most so often: no list of processes has a living one for long.
const CHAIN: &str = "chain() { [ $1 -gt 0 ] && { chain $(($1-1)) & }; }; chain 20000; ";

#[tokio::test]
async fn a_step_is_in_a_cgroup_of_its_own_which_goes_with_it() {
    let Some(place) = Place::new() else { return };
    let mut bench = Bench::with(Some(&place.cgroups()));
    let mut job = bench.shell("grep ^0:: /proc/self/cgroup; sh -c 'i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done'");
    job.limits = Limits { memory: Some(1 << 30), pids: Some(100), cpu_millis: Some(1_500) };
    let end = bench.run(job).await;
    assert_eq!(end.state, StepState::Exited(0), "{}", String::from_utf8_lossy(&end.log));
    assert!(String::from_utf8_lossy(&end.log).contains("/rouse-step-"), "{}", String::from_utf8_lossy(&end.log));
    let usage = end.usage.expect("it has a cgroup");
    assert!(usage.cpu_ms > 0 && !usage.out_of_memory, "{usage:?}");
    assert_eq!(place.steps(), [] as [PathBuf; 0]);
}

#[tokio::test]
async fn what_forks_all_the_time_ends_at_once() {
    let Some(place) = Place::new() else { return };
    let mut bench = Bench::with(Some(&place.cgroups()));
    for script in [format!("{CHAIN} sleep 0.2"), format!("trap : TERM; {CHAIN} sleep 1000")] {
        let mut job = bench.shell(&script);
        job.timeout = Some(Duration::from_millis(300));
        bench.runner.run(job.clone());
        bench.until_alive(1).await;
        bench.runner.kill(job.attempt);
        let end = bench.end(&job).await;
        assert!(matches!(end.state, StepState::Stopped | StepState::Exited(0)), "{:?}", end.state);
    }
    assert_eq!(place.steps(), [] as [PathBuf; 0]);
}

#[tokio::test]
async fn the_step_of_a_killed_supervisor_or_zygote_ends() {
    let Some(place) = Place::new() else { return };
    let mut bench = Bench::with(Some(&place.cgroups()));
    for killed in ["rouse-step", "rouse-zygote"] {
        let job = bench.shell("(setsid setsid sleep 1000 &); sleep 1000");
        bench.runner.run(job.clone());
        let pids = bench.until_alive(2).await;
        let supervisor = ancestor(pids[0], "rouse-step").expect("it has one");
        let pid = if killed == "rouse-step" { supervisor } else { ancestor(supervisor, killed).expect("it has one") };
        signal(pid, Signal::KILL);
        let end = bench.end(&job).await;
        assert!(matches!(end.state, StepState::Lost(_)), "{:?}", end.state);
        until("its cgroup is removed", || place.steps().is_empty().then_some(())).await;
    }
}

#[tokio::test]
async fn cgroups_that_a_step_makes_go_with_it() {
    let Some(place) = Place::new() else { return };
    if !rustix::process::geteuid().is_root() {
        eprintln!("passed over: only root can change cgroups");
        return;
    }
    let mut bench = Bench::with(Some(&place.cgroups()));
    let script = format!(
        "cd {}/rouse-step-* && mkdir -p a/b/c d && {{ sleep 1000 & echo $! > a/b/c/cgroup.procs; exit 3; }}",
        place.0.display()
    );
    let end = bench.run(bench.shell(&script)).await;
    assert_eq!(end.state, StepState::Exited(3), "{}", String::from_utf8_lossy(&end.log));
    assert_eq!(place.steps(), [] as [PathBuf; 0]);
}

#[tokio::test]
async fn steps_of_an_earlier_agent_are_ended() {
    let Some(place) = Place::new() else { return };
    let left = place.0.join("rouse-step-1-2");
    fs::create_dir_all(left.join("deeper")).expect("made");
    let mut sleeper = std::process::Command::new("sleep").arg("1000").spawn().expect("run");
    fs::write(left.join("deeper/cgroup.procs"), sleeper.id().to_string()).expect("moved");
    place.cgroups();
    assert!(!sleeper.wait().expect("ended").success());
    assert_eq!(place.steps(), [] as [PathBuf; 0]);
}
