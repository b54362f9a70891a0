//! `make bench-libvirt`: measures a build in a libvirt guest and compares it with the virtual machine alone. Its
//! argument is the agent that is put into the guests.
//!
//! The reference is the same kernel and disk, started by QEMU alone until its init has run `true`. Both are emulated,
//! so that the figures are comparable on every machine. The difference between them is the cost of rouse and libvirt.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use rouse_tests::harness::{Master, PASSWORD, free_address, holds_within, text};
use rouse_tests::virt::{BRIDGE, Boot, Image, VirtHost, image_with, own_world, run};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Guests in a row, and as many bare ones.
const GUESTS: usize = 10;
/// How long one may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(240);

fn main() {
    let agent = std::env::args_os().nth(1).map(PathBuf::from).expect("the agent's program as the first argument");
    // Before there are threads: those would stay in the network that they began in.
    assert!(own_world(), "only root can have a network of its own");
    let virt_host = &VirtHost::start(Boot::Loader);
    virt_host.need_network("rouse");
    let port = free_address().port();
    let broker = format!("amqp://{BRIDGE}:{port}/rouse");
    // This process is in a network of its own, whose bridge is not in /sys.
    let lines =
        format!("listen = [\"127.0.0.1:{port}\", \"{BRIDGE}:{port}\"]\nagent_url = \"{broker}\"\ntls = \"off\"\n");
    let disk = virt_host.dir.join("vm.qcow2");
    let worker = format!(
        "[[worker]]\nname = \"vm\"\npassword = \"{PASSWORD}\"\nlease = 120\n[worker.libvirt]\nconnection = \"{}\"\n\
         hd_image = \"{}\"\nbase_image = \"{}\"\nxml = \"builtin\"\nmemory_mb = 160\ncpus = 1\nnetwork = \"rouse\"\n",
        virt_host.uri,
        disk.display(),
        image_with(&Image::agent(), &agent).display(),
    );
    let url = format!("amqp://127.0.0.1:{port}/rouse");
    let master = Master::start_with("bench-virt", &lines, &url, free_address(), &worker);
    let bare_image = image_with(&Image::of_kind("true"), &agent);
    // The first of each warms what is cached.
    one(&master);
    bare(virt_host, &bare_image);
    let before = grown(&master, virt_host);
    let (mut guests, mut bares, mut overlays) = (Vec::new(), Vec::new(), Vec::new());
    for number in 1..=GUESTS {
        bares.push(bare(virt_host, &bare_image));
        overlays.push(overlay(virt_host, &bare_image));
        guests.push(one(&master));
        eprintln!("guest {number}: {:?}, bare {:?}", guests[number - 1], bares[number - 1]);
    }
    let after = grown(&master, virt_host);
    let median = |mut all: Vec<Duration>| {
        all.sort();
        all[all.len() / 2].as_secs_f64()
    };
    let of = |part: fn(&Parts) -> Duration| median(guests.iter().map(part).collect());
    let bare_run = median(bares);
    println!("| what (median of {GUESTS}) | seconds |\n|---|---|");
    println!("| bare QEMU, start until its init has run `true` | {bare_run:.2} |");
    println!("| queued until first output in a guest | {:.2} |", of(|p| p.output));
    println!("| on top of bare QEMU | {:.2} |", of(|p| p.output) - bare_run);
    println!("| of it: overlay (qemu-img alone) | {:.2} |", median(overlays));
    println!("| of it: overlay, define and start, until the provider has it | {:.2} |", of(|p| p.booted));
    println!("| of it: boot, until its init runs | {:.2} |", of(|p| p.init - p.booted));
    println!("| of it: DHCP, and the agent's start | {:.2} |", of(|p| p.named - p.init));
    println!("| of it: attach | {:.2} |", of(|p| p.attached - p.named));
    println!("| of it: dispatch and first output | {:.2} |", of(|p| p.output.saturating_sub(p.attached)));
    println!("| last output until nothing is left | {:.2} |", of(|p| p.gone));
    println!("| grown over {GUESTS} guests: {} | |", differences(&before, &after));
}

/// When each was, from the submission on; `gone` from the output.
#[derive(Debug)]
struct Parts {
    booted: Duration,
    /// Its init runs.
    init: Duration,
    /// Its agent knows who it is.
    named: Duration,
    attached: Duration,
    output: Duration,
    gone: Duration,
}

/// One build on a fresh guest.
fn one(master: &Master) -> Parts {
    let since = Instant::now();
    let body = r#"{"worker": "vm", "step": [{"run": ["echo", "first"]}]}"#;
    let build = text(&master.post("/api/builds", body).json()["id"]);
    let state = |wanted: &[&str]| {
        let reached = || master.hosts("vm").iter().any(|host| wanted.contains(&text(&host["state"]).as_str()));
        assert!(holds_within(LIMIT, reached), "{}", master.log());
        since.elapsed()
    };
    let booted = state(&["booting", "ready", "draining", "terminating"]);
    // As far as they can be seen from outside: in what the guest prints.
    let host = text(&master.hosts("vm")[0]["id"]);
    let console = master.dir.join(format!("state/hosts/libvirt/{host}.console"));
    let said = |words: &str| {
        let has = || fs::read(&console).is_ok_and(|said| String::from_utf8_lossy(&said).contains(words));
        assert!(holds_within(LIMIT, has), "{words}: {}", master.log());
        since.elapsed()
    };
    let (init, named) = (said("guest: agent"), said("this is worker"));
    let attached = state(&["ready", "draining", "terminating"]);
    let log = format!("/api/builds/{build}/steps/1/log");
    let printed = || master.get(&log).body.starts_with(b"first");
    assert!(holds_within(LIMIT, printed), "{}", master.log());
    let output = since.elapsed();
    assert!(holds_within(LIMIT, || master.hosts("vm").is_empty()), "{}", master.log());
    Parts { booted, init, named, attached, output, gone: since.elapsed() - output }
}

/// The same kernel and disk under bare QEMU.
fn bare(virt_host: &VirtHost, base: &Path) -> Duration {
    let (disk, console) = (virt_host.dir.join("bare.qcow2"), virt_host.dir.join("bare.console"));
    fs::remove_file(&console).ok();
    let since = Instant::now();
    lay_over(base, &disk);
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args([
        "-M",
        "q35",
        "-accel",
        "tcg",
        "-m",
        "160",
        "-display",
        "none",
        "-nodefaults",
        "-no-reboot",
        "-nic",
        "none",
    ]);
    qemu.arg("-drive").arg(format!("file={},if=virtio,cache=unsafe", disk.display()));
    qemu.arg("-serial").arg(format!("file:{}", console.display())).stdin(Stdio::null());
    let mut machine = qemu.spawn().unwrap();
    let done = || fs::read(&console).is_ok_and(|said| String::from_utf8_lossy(&said).contains("guest: true has run"));
    let reached = holds_within(LIMIT, done);
    let took = since.elapsed();
    machine.kill().unwrap();
    machine.wait().unwrap();
    assert!(reached, "bare QEMU came to nothing");
    took
}

fn lay_over(base: &Path, disk: &Path) {
    let mut create = Command::new("qemu-img");
    run(create.args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]).arg(base).arg(disk));
}

fn overlay(virt_host: &VirtHost, base: &Path) -> Duration {
    let since = Instant::now();
    lay_over(base, &virt_host.dir.join("bare.qcow2"));
    since.elapsed()
}

/// What may grow: memory (kB), open files and threads of master and libvirtd, and files that hosts leave.
fn grown(master: &Master, virt_host: &VirtHost) -> Vec<(String, u64)> {
    let libvirtd = virt_host.pids("libvirtd", &virt_host.dir.display().to_string())[0];
    let mut all = Vec::new();
    for (name, pid) in [("master", master.pid()), ("libvirtd", libvirtd)] {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0)
        };
        all.push((format!("{name} kB"), field("VmRSS:")));
        all.push((format!("{name} threads"), field("Threads:")));
        all.push((format!("{name} files"), fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as u64));
    }
    all.push((
        "files of hosts".to_owned(),
        fs::read_dir(master.dir.join("state/hosts/libvirt")).unwrap().count() as u64,
    ));
    all
}

fn differences(before: &[(String, u64)], after: &[(String, u64)]) -> String {
    let shown = before.iter().zip(after).map(|((name, b), (_, a))| format!("{name} {b} → {a}"));
    shown.collect::<Vec<_>>().join(", ")
}
