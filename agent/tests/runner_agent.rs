//! Steps when the agent itself dies, freezes or is signalled. The agent is this test program, started as another
//! process.

mod support;

use rouse_agent::clock;
use rouse_agent::runner::{Runner, StepEvent, wait_for_leftovers};
use rustix::process::Signal;
use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;
use support::{AGENT, alive, ancestor, job, kilobytes, new_mark, signal, until};
use tempfile::TempDir;

const TREE: &str =
    "setsid sh -c 'sleep 1000 & sleep 1000' & (setsid sleep 1000 &); sh -c '(setsid setsid sleep 1000 &)'; ";
const TREE_SIZE: usize = 5;
const LOCK: &str = ".supervisors.lock";

/// Not a test by itself: the agent of the other tests. Runs one step and prints its events.
#[test]
fn agent() {
    let Ok(script) = std::env::var("TEST_AGENT_SCRIPT") else { return };
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let dir = std::env::var("TEST_AGENT_DIR").expect("set");
    let dir = Path::new(&dir);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (runner, mut updates) = Runner::start(Path::new(AGENT), &dir.join(LOCK), None).expect("a zygote");
        runner.set_deadline(number("TEST_AGENT_LEASE").map(|ms| clock::now() + Duration::from_millis(ms)));
        let mut job = job(dir, &std::env::var("TEST_AGENT_MARK").expect("set"), &["sh", "-c", &script]);
        job.max_log = number("TEST_AGENT_MAX_LOG").unwrap_or(u64::MAX);
        let descriptors = || fs::read_dir("/proc/self/fd").expect("there").count();
        let (mut times, mut opened) = (number("TEST_AGENT_TIMES").unwrap_or(1), Vec::new());
        runner.run(job.clone());
        while let Some(update) = updates.recv().await {
            if let StepEvent::Ended { .. } = update.event {
                // The stream of a step is closed before its end is reported.
                opened.push(descriptors());
                times -= 1;
                if times > 0 {
                    runner.run(job.clone());
                    continue;
                }
                println!("\nOPEN {} {}", opened[0], opened[opened.len() - 1]);
                let peak = kilobytes(std::process::id() as i32, "VmHWM").expect("known");
                println!("\nEND {:?}\nPEAK {peak}", update.event);
                return;
            }
        }
    });
}

struct Agent {
    process: Child,
    dir: TempDir,
    mark: String,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Agent {
    fn start(script: &str, settings: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mark = new_mark();
        let mut process = Command::new(std::env::current_exe().expect("known"))
            .args(["agent", "--exact", "--nocapture", "--test-threads=1"])
            .env("TEST_AGENT_SCRIPT", script)
            .env("TEST_AGENT_DIR", dir.path())
            .env("TEST_AGENT_MARK", &mark)
            .envs(settings.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        Self { process, dir, mark, lines }
    }

    fn pid(&self) -> i32 {
        self.process.id() as i32
    }

    async fn until_alive(&self) -> Vec<i32> {
        until("the tree runs", || Some(alive(&self.mark)).filter(|pids| pids.len() >= TREE_SIZE)).await
    }

    async fn until_gone(&self) {
        until("nothing of the tree runs", || alive(&self.mark).is_empty().then_some(())).await;
    }

    /// The rest of a line of its output.
    fn says(&mut self, what: &str) -> String {
        self.lines
            .find_map(|line| line.expect("text").strip_prefix(what).map(str::to_owned))
            .unwrap_or_else(|| panic!("it never printed {what}"))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn nothing_outlives_a_killed_agent() {
    let agent = Agent::start(&format!("{TREE} trap : TERM; while :; do sleep 1000; done"), &[]);
    let pids = agent.until_alive().await;
    let supervisor = ancestor(pids[0], "rouse-step").expect("it has one");
    let zygote = ancestor(supervisor, "rouse-zygote").expect("it has one");
    let lock = agent.dir.path().join(LOCK);
    assert!(!wait_for_leftovers(&lock, Duration::ZERO).expect("looked"));

    signal(agent.pid(), Signal::KILL);
    // The next agent waits for exactly this.
    assert!(wait_for_leftovers(&lock, Duration::from_secs(10)).expect("looked"));
    assert_eq!(alive(&agent.mark), [] as [i32; 0]);
    for pid in [supervisor, zygote] {
        let gone = || support::status(pid, "State").is_none_or(|state| state.starts_with('Z')).then_some(());
        until("supervisor and zygote are gone", gone).await;
    }
}

#[tokio::test]
async fn nothing_outlives_an_agent_and_a_supervisor_killed_together() {
    let agent = Agent::start(&format!("{TREE} sleep 1000"), &[]);
    let pids = agent.until_alive().await;
    signal(ancestor(pids[0], "rouse-step").expect("it has one"), Signal::KILL);
    signal(agent.pid(), Signal::KILL);
    agent.until_gone().await;
}

#[tokio::test]
async fn the_lease_of_a_frozen_agent_ends_its_steps() {
    let agent =
        Agent::start(&format!("{TREE} trap : TERM; while :; do sleep 1000; done"), &[("TEST_AGENT_LEASE", "2000")]);
    let started = clock::now();
    agent.until_alive().await;
    signal(agent.pid(), Signal::STOP);
    agent.until_gone().await;
    let took = clock::now().since(started);
    assert!(took >= Duration::from_millis(1900) && took < Duration::from_secs(6), "{took:?}");
    let state = support::status(agent.pid(), "State").expect("it is there");
    assert!(state.starts_with('T'), "the agent was to be frozen all the time, and is {state}");
}

#[tokio::test]
async fn an_agent_keeps_nothing_open_of_past_steps() {
    let mut agent = Agent::start("exit 0", &[("TEST_AGENT_TIMES", "200")]);
    let open = agent.says("OPEN ");
    let (first, last) = open.split_once(' ').expect("two numbers");
    assert_eq!(first, last);
}

#[tokio::test]
async fn signals_to_the_whole_group_end_no_step() {
    let mut agent = Agent::start("sleep 0.5; echo on", &[]);
    let pids = until("the step runs", || Some(alive(&agent.mark)).filter(|pids| !pids.is_empty())).await;
    let supervisor = ancestor(pids[0], "rouse-step").expect("it has one");
    let zygote = ancestor(supervisor, "rouse-zygote").expect("it has one");
    for pid in [supervisor, zygote] {
        for number in [Signal::TERM, Signal::INT, Signal::HUP] {
            signal(pid, number);
        }
    }
    let end = agent.says("END ");
    assert!(end.contains("Exited(0)") && end.contains("log_length: 3"), "{end}");
}

#[tokio::test]
async fn a_gigabyte_of_output_takes_no_memory() {
    let kept = 64 << 20;
    let mut agent = Agent::start("head -c 1G /dev/zero", &[("TEST_AGENT_MAX_LOG", "67108864")]);
    let began = clock::now();
    let mut peak = 0;
    let ended = || agent.process.try_wait().expect("asked");
    let mut ended = ended;
    while ended().is_none() {
        for pid in alive(&agent.mark) {
            let supervisor = ancestor(pid, "rouse-step");
            peak = peak.max(supervisor.and_then(|pid| kilobytes(pid, "VmHWM")).unwrap_or(0));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!("1 GiB in {:?}", clock::now().since(began));
    let end = agent.says("END ");
    assert!(end.contains(&format!("log_length: {kept}, log_cut: {}", (1u64 << 30) - kept)), "{end}");
    assert_eq!(fs::metadata(agent.dir.path().join("spool")).expect("there").len(), kept);
    let agents: u64 = agent.says("PEAK ").parse().expect("a number");
    println!("peak of the supervisor {peak} kB, of the agent {agents} kB; {end}");
    assert!(peak > 0 && peak < 16 << 10, "the supervisor's peak: {peak} kB");
    assert!(agents < 64 << 10, "the agent's peak: {agents} kB");
}
