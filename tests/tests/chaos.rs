//! The whole system while its parts are killed, frozen and disconnected, and its disks are filled: nothing is lost,
//! nothing runs twice, nothing is left running. All the time, agents with valid credentials do harm.
//!
//! `make chaos` runs it for minutes; `make test` runs a shorter one. The seed that is printed selects the faults.
//! ROUSE_CHAOS_SEED repeats the selection, but not the timing of the machine.
#![allow(clippy::unwrap_used)]
#![expect(clippy::disallowed_methods, reason = "mischief has its times, and no other clock is needed")]

use rouse_tests::chance::Chance;
use rouse_tests::ec2::{Authority, Cloud, boot, refusal, with_defaults};
use rouse_tests::harness::{
    Cuts, Disk, Master, Process, free_address, latent, peak_memory, processes_with, request, scratch, standing, text,
    try_rabbitmqctl,
};
use rouse_tests::rogue::{Hostile, Rogue};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};
use tokio::task::JoinHandle;

const STANDING: usize = 10;
/// Of these, workers whose lease an alarm of the broker may not end.
const PATIENT: usize = 3;
const LATENT: usize = 20;
const INSTANCES: usize = 3;
/// Workers whose agents mean harm. They run builds of their own only.
const ROGUES: usize = 4;
/// Pause of a rogue between two messages, and between two tries to come in.
const PAUSES: (Duration, Duration) = (Duration::from_millis(4), Duration::from_secs(1));
/// How long a rogue waits for an answer of the broker or of the master.
const PATIENCE: Duration = Duration::from_secs(10);
/// Whether the rogues are to end.
static OVER: AtomicBool = AtomicBool::new(false);
/// What the master may take, bytes.
const MEMORY: u64 = 200_000_000;
/// Lines that each build prints.
const LINES: usize = 500;
/// The rogues end before the master does. Their workers, and builds, wait until a lease that a restarted master has made
/// longer is over.
const RESTART_LEASE: &str = "restart_lease = \"60s\"\n";
/// Longest that all builds may take to end once nothing is done to them any more.
const SETTLE: Duration = Duration::from_secs(300);

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap())
}

/// What is to be taken back, and when.
enum Relief {
    Continue(i32),
    Room,
    Connect,
    Alarm,
    Cloud,
}

/// Draws of [`Stage::mischief`] that each run begins with, last first, so that a short one has what is rare, too.
const FIRST: [usize; 6] = [99, 97, 0, 96, 0, 0];

struct Stage {
    master: Master,
    disk: Disk,
    cuts: Cuts,
    cloud: Cloud,
    /// Runs what is between the master and the cloud.
    runtime: tokio::runtime::Runtime,
    refuses: bool,
    alarm: bool,
    first: Vec<usize>,
    agents: BTreeMap<String, Process>,
    chance: Chance,
    reliefs: Vec<(Instant, Relief)>,
    full: bool,
    /// The agents of which workers were killed, and when.
    killed: Vec<(String, SystemTime)>,
    counts: BTreeMap<&'static str, u32>,
}

fn workers(ec2: &str) -> String {
    let common = "keepalive_interval = 1\nmax_builds = 1\nmissing_timeout = 45\n";
    let honest = format!("{common}properties = {{ pool = \"honest\" }}\n");
    let lease = |n| if n <= PATIENT { "lease = 40\n" } else { "lease = 12\n" };
    let rogues = format!("{common}lease = 12\n");
    let rogues: String = (1..=ROGUES).map(|n| standing(&format!("r{n}"), &rogues)).collect();
    let standing: String =
        (1..=STANDING).map(|n| standing(&format!("s{n}"), &format!("{honest}{}", lease(n)))).collect();
    let waits = format!("{honest}lease = 12\nbuild_wait_timeout = 3\n");
    let latent: String = (1..=LATENT).map(|n| latent(&format!("l{n}"), &waits)).collect();
    let of_ec2 =
        format!("[[worker]]\nname = \"i{{1..{INSTANCES}}}\"\npassword = \"x\"\nprefer = 1\n{waits}[worker.ec2]\n{ec2}");
    // Failures by the dozen are what is wanted here: no worker is to be given up for them.
    let limits = "[limits]\nmail_after_failed_starts = 1000\nmax_log_size = \"1MB\"\n[audit]\ninterval = 5\n";
    format!("{limits}{rogues}{standing}{latent}{of_ec2}")
}

impl Stage {
    fn new(seed: u64) -> Self {
        let disk = Disk::mount("chaos", 1_024);
        let (amqp, auth) = (free_address(), free_address());
        let cuts = Cuts::to(amqp);
        let url = format!("amqp://{}/rouse", cuts.address());
        let broker = format!("listen = [\"{amqp}\"]\nagent_url = \"{url}\"\n");
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let cloud = runtime.block_on(Cloud::alone());
        let papers = scratch("chaos-papers");
        let authority = Authority::new(&papers, "authority");
        let certificates = format!("identity_certificates = {:?}\n", authority.certificate);
        let ec2 = with_defaults(&cloud.endpoint(), &certificates);
        let mut master = Master::prepare("chaos", &broker, &url, auth, "");
        master.add_to_master(RESTART_LEASE);
        master.configure(&workers(&ec2));
        master.begin_prepared();
        for dir in ["traces", "instances"] {
            fs::create_dir_all(master.dir.join(dir)).unwrap();
        }
        cloud.set(&json!({ "boot": boot(&master.dir.join("instances")), "signer": authority.signer() }));
        let agents = (1..=STANDING)
            .map(|n| format!("s{n}"))
            .map(|name| (name.clone(), master.begin_agent(&name, &[])))
            .collect();
        Self {
            master,
            disk,
            cuts,
            cloud,
            runtime,
            refuses: false,
            alarm: false,
            first: FIRST.to_vec(),
            agents,
            chance: Chance::new(seed),
            reliefs: Vec::new(),
            full: false,
            killed: Vec::new(),
            counts: BTreeMap::new(),
        }
    }

    /// A build that shows on disk where it ran, and whether it ran twice at the same time: its shell and whatever that
    /// starts hold a lock for as long as any of them lives.
    fn submit(&mut self, number: usize) -> Option<String> {
        let traces = self.master.dir.join("traces");
        let traces = traces.display();
        let naps = self.chance.below(10);
        let script = format!(
            "exec 9>>{traces}/$ROUSE_BUILD.lock; flock -n 9 || echo $ROUSE_BUILD $ROUSE_ATTEMPT >> {traces}/twice; \
             echo begin $ROUSE_ATTEMPT >> {traces}/$ROUSE_BUILD; seq {LINES}; sleep 0.{naps}; \
             echo end $ROUSE_ATTEMPT >> {traces}/$ROUSE_BUILD"
        );
        let body = json!({ "name": format!("chaos {number}"), "retries": 100, "where": { "pool": "honest" }, "step": [{ "run": script }] });
        let token = self.master.token();
        let answer = request(self.master.http, "POST", "/api/builds", Some(&token), &body.to_string())?;
        (answer.status == 201).then(|| text(&answer.json()["id"]))
    }

    /// An agent of a worker of its own that means harm, again and again: until it is blocked, and afterwards if it is let
    /// in once more. How often it came in, and how many messages it sent.
    fn rogue(&self, number: usize) -> JoinHandle<(u64, u64)> {
        let (url, name) = (self.master.broker_url.clone(), format!("r{number}"));
        let (http, token) = (self.master.http, self.master.token());
        let body = json!({
            "worker": name, "retries": 0, "queue_timeout": "5s", "step": [{ "run": ["true"] }],
        });
        let submit = move || drop(request(http, "POST", "/api/builds", Some(&token), &body.to_string()));
        self.runtime.spawn(async move {
            let (mut came, mut sent) = (0, 0);
            while !OVER.load(Ordering::Relaxed) {
                tokio::time::sleep(PAUSES.1).await;
                let attach = async {
                    let hostile = Hostile::connect(&url, &name, "not-a-secret").await?;
                    Rogue::attach(hostile, &submit).await
                };
                let Ok(Ok(mut rogue)) = tokio::time::timeout(PATIENCE, attach).await else { continue };
                came += 1;
                // The last sends everything that it may, and soon too much. Each of the others sends one kind of message.
                let what = |n: u64| if number == ROGUES { n } else { 4 * n + number as u64 };
                while !OVER.load(Ordering::Relaxed) {
                    // The broker may be frozen, or accept nothing.
                    let Ok(Ok(())) = tokio::time::timeout(PATIENCE, rogue.act(what(sent))).await else { break };
                    sent += 1;
                    tokio::time::sleep(PAUSES.0).await;
                }
            }
            (came, sent)
        })
    }

    fn end_rogues(&self, rogues: Vec<JoinHandle<(u64, u64)>>) -> Vec<(u64, u64)> {
        OVER.store(true, Ordering::Relaxed);
        self.runtime.block_on(async {
            let mut all = Vec::new();
            for rogue in rogues {
                all.push(rogue.await.unwrap());
            }
            all
        })
    }

    fn signal(pid: i32, signal: i32) {
        // SAFETY: only numbers are passed. The process may have ended; nobody else here uses pids that fast.
        unsafe { libc::kill(pid, signal) };
    }

    /// Sends a signal to some agent, of either kind.
    fn harm(&mut self, signal: i32) -> i32 {
        let hosts =
            request(self.master.http, "GET", "/api/hosts", Some(&self.master.token()), "").filter(|a| a.status == 200);
        let hosts = hosts.map(|answer| answer.json()).unwrap_or_default();
        let agent =
            |host: &Value| Some((text(&host["worker"]), text(&host["handle"]).split(':').next()?.parse().ok()?));
        let mut agents: Vec<(String, i32)> = hosts.as_array().into_iter().flatten().filter_map(agent).collect();
        agents.extend(self.agents.iter().map(|(name, agent)| (name.clone(), agent.pid())));
        let index = self.chance.below(agents.len());
        let (worker, pid) = agents.swap_remove(index);
        Self::signal(pid, signal);
        if signal == libc::SIGKILL {
            self.killed.push((worker, SystemTime::now()));
        }
        pid
    }

    fn broker(&self) -> PathBuf {
        self.master.dir.join("state/broker")
    }

    fn brokers(&self) -> Vec<i32> {
        let all = processes_with(&self.broker().display().to_string());
        all.into_iter().filter(|(_, line)| line.contains("beam")).map(|(pid, _)| pid).collect()
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.chance.range(from, to - 1))
    }

    fn later(&mut self, from: u64, to: u64, relief: Relief) {
        let at = Instant::now() + self.millis(from, to);
        self.reliefs.push((at, relief));
    }

    /// Does one thing that should not happen.
    fn mischief(&mut self) {
        let draw = self.first.pop().unwrap_or_else(|| self.chance.below(100));
        let what = match draw {
            0..=34 => {
                self.harm(libc::SIGKILL);
                "agent killed"
            }
            35..=59 => {
                let pid = self.harm(libc::SIGSTOP);
                self.later(500, 20_000, Relief::Continue(pid));
                "agent frozen"
            }
            60..=67 => {
                self.cuts.cut();
                "connections cut"
            }
            68..=75 => {
                self.cuts.close(true);
                self.cuts.cut();
                self.later(500, 8_000, Relief::Connect);
                "network away"
            }
            76..=81 if !self.full => {
                self.disk.leave(if self.chance.below(2) == 0 { 0 } else { 20 });
                self.full = true;
                self.later(1_000, 6_000, Relief::Room);
                "disk full"
            }
            76..=84 => {
                // Nobody could ask it anything meanwhile.
                let pid = self.master.pid();
                Self::signal(pid, libc::SIGSTOP);
                std::thread::sleep(self.millis(200, 8_000));
                Self::signal(pid, libc::SIGCONT);
                "master frozen"
            }
            85..=92 => {
                self.relieve_all();
                self.master.kill();
                std::thread::sleep(self.millis(10, 3_000));
                self.master.begin();
                "master killed"
            }
            93..=94 => {
                self.relieve_all();
                self.master.terminate();
                self.master.begin();
                "master restarted"
            }
            95 => {
                for instance in self.cloud.alive().into_iter().take(1) {
                    self.cloud.kill(&instance);
                }
                "instance taken back"
            }
            96 if !self.alarm => {
                // There may be no node at the moment.
                let raised = try_rabbitmqctl(&self.broker(), &["set_disk_free_limit", "100000GB"]);
                if raised.is_ok() {
                    self.alarm = true;
                    self.later(1_000, 15_000, Relief::Alarm);
                }
                if raised.is_ok() { "broker's disk too small" } else { "no broker to harm" }
            }
            97..=98 if !self.refuses => {
                let _proxy = self.runtime.enter();
                self.cloud.proxy.fail(0, usize::MAX, refusal(503, "ServiceUnavailable"), |_| true);
                self.refuses = true;
                self.later(1_000, 30_000, Relief::Cloud);
                "cloud refuses"
            }
            _ => {
                for pid in self.brokers() {
                    Self::signal(pid, libc::SIGKILL);
                }
                "broker killed"
            }
        };
        *self.counts.entry(what).or_default() += 1;
    }

    fn relieve(&mut self, due: impl Fn(Instant) -> bool) {
        for (at, relief) in std::mem::take(&mut self.reliefs) {
            match relief {
                later if !due(at) => self.reliefs.push((at, later)),
                Relief::Continue(pid) => Self::signal(pid, libc::SIGCONT),
                Relief::Room => {
                    self.full = false;
                    self.disk.make_room();
                }
                Relief::Connect => self.cuts.close(false),
                Relief::Alarm => {
                    self.alarm = false;
                    // A node that is gone takes the limit with it.
                    try_rabbitmqctl(&self.broker(), &["set_disk_free_limit", "8MB"]).ok();
                }
                Relief::Cloud => {
                    self.refuses = false;
                    self.cloud.proxy.heal();
                }
            }
        }
        for (name, agent) in &mut self.agents {
            if agent.try_wait().is_some() {
                *agent = self.master.begin_agent(name, &[]);
            }
        }
    }

    fn relieve_all(&mut self) {
        self.relieve(|_| true);
    }

    /// Every build has ended.
    fn settled(&self) -> bool {
        let token = self.master.token();
        ["queued", "starting", "running"].iter().all(|state| {
            let path = format!("/api/builds?state={state}&limit=1");
            let answer = request(self.master.http, "GET", &path, Some(&token), "");
            answer.is_some_and(|a| a.status == 200 && a.json() == json!([]))
        })
    }

    /// The builds that have not ended, and what the system knows of them.
    fn unsettled(&self) -> String {
        let token = self.master.token();
        let ask = |path: &str| {
            request(self.master.http, "GET", path, Some(&token), "")
                .map_or_else(|| "no answer".into(), |answer| String::from_utf8_lossy(&answer.body).into_owned())
        };
        let mut said = format!("workers: {}\nhosts: {}\n", ask("/api/workers"), ask("/api/hosts"));
        for state in ["queued", "starting", "running"] {
            let _ = writeln!(said, "{state}: {}", ask(&format!("/api/builds?state={state}&limit=5")));
        }
        said
    }

    /// What must hold when all is over.
    fn check(&self, builds: &[String]) {
        let traces = self.master.dir.join("traces");
        assert_eq!(fs::read_to_string(traces.join("twice")).unwrap_or_default(), "", "ran twice at the same time");
        let (mut cut, mut full) = (0, 0);
        let whole: String = (1..=LINES).map(|n| format!("{n}\n")).collect();
        for id in builds {
            let shown = self.master.get(&format!("/api/builds/{id}")).json();
            assert_eq!(shown["state"], "success", "{shown}");
            let last = text(&shown["attempts"]);
            let trace = fs::read_to_string(traces.join(id)).unwrap();
            assert!(trace.ends_with(&format!("begin {last}\nend {last}\n")), "build {id}: {trace}");
            // An agent may die between a step's end and the word of it, so an attempt before may have its end as well.
            assert_eq!(trace.matches(&format!("end {last}\n")).count(), 1, "build {id} ended twice: {trace}");
            let log = self.master.get(&format!("/api/builds/{id}/steps/1/log"));
            let log = String::from_utf8_lossy(&log.body).into_owned();
            assert!(whole.starts_with(&log), "the log of build {id} is another one: {shown}");
            let tries = shown["tries"].as_array().unwrap();
            let tried = &tries[tries.len() - 1];
            let step = &tried["steps"][0];
            assert_eq!(step["exit_code"], 0, "{shown}");
            if step["log_lacks_end"] == json!(true) {
                // A standing worker's agent brings it after whatever it lives through; a host whose lease is over is ended.
                assert!(
                    self.was_killed(tried) || tried["host"] != Value::Null,
                    "the log of build {id} is cut: {shown}"
                );
                cut += 1;
                continue;
            }
            // An agent whose disk is full throws away what it cannot keep, and says how much.
            let thrown_away = step["log_thrown_away"].as_u64().unwrap_or_default();
            full += usize::from(thrown_away > 0);
            let received = log.len() as u64 + thrown_away;
            assert!(received == whole.len() as u64, "the log of build {id} is not whole: {} bytes, {shown}", log.len());
        }
        // An agent may die after the report that a build has ended and before the end of its log, which is then incomplete.
        let harmed: u32 = ["agent killed", "agent frozen"].iter().filter_map(|what| self.counts.get(what)).sum();
        println!(
            "chaos: {cut} logs are reported as incomplete, {harmed} agents were killed or frozen; {full} met a full disk"
        );
        assert!(full == 0 || self.counts.contains_key("disk full"), "{full} logs met a disk that was never full");
        assert!(cut <= harmed, "{cut} logs lack their end, and {harmed} agents were killed or frozen");
    }

    /// Whether the agent of this try was killed before the try was over.
    fn was_killed(&self, tried: &Value) -> bool {
        let at = |key: &str| humantime::parse_rfc3339(tried[key].as_str().unwrap()).unwrap();
        let (ordered, ended) = (at("ordered"), at("ended"));
        self.killed.iter().any(|(worker, when)| *worker == text(&tried["worker"]) && (ordered..ended).contains(when))
    }
}

#[test]
fn nothing_is_lost_and_nothing_is_left_running() {
    let count = usize::try_from(setting("ROUSE_CHAOS_BUILDS", 150)).unwrap();
    let length = Duration::from_secs(setting("ROUSE_CHAOS_SECONDS", 25));
    // In CI always the same, so that a red run can be repeated; elsewhere another each time.
    let usual = if std::env::var_os("CI").is_some() { 1 } else { std::process::id() };
    let seed = setting("ROUSE_CHAOS_SEED", u64::from(usual));
    println!("chaos: seed {seed}, {count} builds, {} s of mischief", length.as_secs());
    // Left by a run that was ended by force.
    drop(scratch("chaos"));
    let mut stage = Stage::new(seed);
    let rogues: Vec<_> = (1..=ROGUES).map(|n| stage.rogue(n)).collect();
    let (began, mut next) = (Instant::now(), Instant::now());
    let mut builds = Vec::new();
    while began.elapsed() < length || builds.len() < count {
        let due = began.elapsed().as_secs_f64() / length.as_secs_f64() * count as f64;
        if builds.len() < count && builds.len() as f64 <= due {
            builds.extend(stage.submit(builds.len()));
        }
        stage.relieve(|at| at <= Instant::now());
        if next <= Instant::now() && began.elapsed() < length {
            stage.mischief();
            next = Instant::now() + stage.millis(200, 2_000);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    println!("chaos: {:?}", stage.counts);
    stage.relieve_all();
    let harm = stage.end_rogues(rogues);
    println!("chaos: the rogues came in and sent messages: {harm:?}");
    assert!(harm.iter().any(|(_, sent)| *sent > 0), "no rogue came in");
    let peak = peak_memory(stage.master.pid());
    assert!(peak < MEMORY, "the master took {peak} bytes");
    let settling = Instant::now();
    while !stage.settled() {
        assert!(settling.elapsed() < SETTLE, "builds have not ended\n{}\n{}", stage.unsettled(), stage.master.log());
        stage.relieve_all();
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("chaos: all {} ended {} s after", builds.len(), settling.elapsed().as_secs());
    stage.check(&builds);

    // The hosts go, the ledger and the provider agree, and with the agents ends whatever they ran.
    stage.master.until_within(SETTLE, "no host is left", || {
        request(stage.master.http, "GET", "/api/hosts", Some(&stage.master.token()), "")
            .is_some_and(|a| a.json() == json!([]))
    });
    stage.master.rouse(&["audit"]).ended(0);
    assert_eq!(stage.cloud.alive(), Vec::<String>::new());
    println!("chaos: {} instances were started", stage.cloud.instances().len());
    for agent in stage.agents.values() {
        agent.signal(libc::SIGTERM);
    }
    for agent in std::mem::take(&mut stage.agents).into_values() {
        agent.wait(Duration::from_secs(60)).ended(0);
    }
    stage.master.terminate();
    let dir = stage.master.dir.display().to_string();
    let left = processes_with(&dir);
    assert!(left.is_empty(), "{left:?}");
}
