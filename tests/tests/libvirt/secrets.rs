//! What another user of the hypervisor can learn of a guest's boot data: not the token, at no time.

use crate::machines::Machines;
use crate::system::system;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use rouse_master::core::record::Host;
use rouse_master::hosts::libvirt::Observer;
use rouse_tests::contract;
use rouse_tests::virt::VirtHost;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;

/// Not that of other tests, which may run at the same time.
const OWNER: &str = "secrets/0123456789abcdef0123456789abcdef";
const TOKEN: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f0";
/// `nobody`: every system has it, and nothing belongs to it.
const OTHER: u32 = 65_534;

/// The token as it is, and within base64, whatever is before it.
fn forms() -> Vec<String> {
    let within = |before: usize| {
        let digits = STANDARD_NO_PAD.encode(format!("{}{TOKEN}", "x".repeat(before)));
        digits[4..digits.len() - 4].to_owned()
    };
    [TOKEN.to_owned()].into_iter().chain((0..3).map(within)).collect()
}

/// All that another user of the machine can read about a domain: command lines, libvirt's read-only connection, files.
fn readable_to_others(virt_host: &VirtHost, dirs: &[&Path], domain: &str) -> String {
    let libvirtd = virt_host.pids("libvirtd", &virt_host.dir.display().to_string())[0];
    let socket = virt_host.dir.join("sock/libvirt-sock-ro");
    let dirs: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    let script = format!(
        "cat /proc/[0-9]*/cmdline | tr '\\0' ' '\n\
         virsh -r -c 'qemu+unix:///system?socket={}' dumpxml {domain}\n\
         find {} /run/libvirt /var/log/libvirt /var/lib/libvirt -type f -size -256k -readable -exec cat {{}} +\n",
        socket.display(),
        dirs.join(" "),
    );
    // Where libvirtd keeps its files, which are in a mount namespace of its own.
    let mut command = Command::new("nsenter");
    command.args(["--target", &libvirtd.to_string(), "--mount", "--pid", "setpriv"]);
    command.arg(format!("--reuid={OTHER}")).arg(format!("--regid={OTHER}")).arg("--clear-groups");
    let output = command.args(["sh", "-c", &script]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn leaks(seen: &str) -> Option<&str> {
    forms().iter().find_map(|form| seen.find(form.as_str())).map(|at| {
        let begin = (0..=at.saturating_sub(300)).rev().find(|index| seen.is_char_boundary(*index)).unwrap_or(0);
        &seen[begin..at]
    })
}

fn host(machines: &Machines) -> Host {
    let [worker, _] = rouse_tests::contract::ProviderFixture::workers(machines);
    Host { token: TOKEN.to_owned(), ..contract::host(machines, &worker) }
}

#[test]
fn no_other_user_of_the_hypervisor_can_read_the_token() {
    if !crate::may_run() {
        return;
    }
    let _turn = crate::together();
    assert!(
        leaks(&format!("before {TOKEN}")).is_some() && leaks(&STANDARD_NO_PAD.encode(format!("a {TOKEN} b"))).is_some()
    );
    let machines = Machines::new("secret");
    let mut host = host(&machines);
    let file = machines.dir.join("consoles").join(format!("{}.boot", host.id));
    // What the file is like when libvirt is about to read it.
    let written: Arc<Mutex<Option<(u32, String)>>> = Arc::default();
    let observer: Observer = {
        let (written, file) = (written.clone(), file.clone());
        Arc::new(move |step| {
            if step == "boot data written" {
                let mode = fs::metadata(&file).unwrap().permissions().mode() & 0o777;
                *written.lock().unwrap() = Some((mode, fs::read_to_string(&file).unwrap()));
            }
        })
    };
    let is_started = Arc::new(AtomicBool::new(false));
    let watch = {
        let (is_started, dir, virt_host) = (is_started.clone(), machines.dir.clone(), machines.virt_host);
        move || {
            let mut seen = String::new();
            while !is_started.load(Ordering::Relaxed) {
                seen += &readable_to_others(virt_host, &[&dir], "secret-1");
            }
            seen + &readable_to_others(virt_host, &[&dir], "secret-1")
        }
    };
    crate::block_on(async {
        let (deaths, _heard) = mpsc::channel(64);
        let provider = machines.observed(OWNER, deaths, Some(observer));
        let watch = tokio::task::spawn_blocking(watch);
        contract::started(&provider, &mut host).await;
        assert_eq!(fs::read_to_string(&file).unwrap(), "", "QEMU has read it");
        is_started.store(true, Ordering::Relaxed);
        let seen = watch.await.unwrap();
        assert!(seen.contains("guest=secret-1,") && seen.contains("opt/rouse/boot"), "the guest was looked at: {seen}");
        if let Some(before) = leaks(&seen) {
            panic!("another user reads the token, after: {before}");
        }
        contract::gone(&provider, &host).await;
        assert!(!file.exists());
    });
    let (mode, text) = written.lock().unwrap().take().expect("it was written");
    assert!(mode == 0o600 && text.contains(TOKEN), "{mode:o}: {text}");
}

/// The file is a volume of the other machine's, which the master writes and removes through libvirt.
#[test]
fn a_guest_elsewhere_has_its_boot_data_in_a_volume() {
    if !crate::may_run() {
        return;
    }
    let _turn = crate::together();
    let system = system();
    let pool = system.virt_host.dir.join("pool-of-distant");
    let of_far = || -> Vec<(String, u32, u64)> {
        let entries = fs::read_dir(&pool).unwrap().map(|entry| entry.unwrap());
        let entries = entries.filter(|entry| entry.file_name() != "disk.qcow2");
        let about = |entry: &fs::DirEntry| {
            let about = entry.metadata().unwrap();
            (entry.file_name().to_string_lossy().into_owned(), about.permissions().mode() & 0o777, about.len())
        };
        entries.map(|entry| about(&entry)).collect()
    };
    let build = system.master.detach(&["--worker", "distant", "--", "sh", "-c", "echo begun; sleep 600"]);
    system.until_said(&build, "begun");
    let host = rouse_tests::harness::text(&system.master.hosts("distant")[0]["id"]);
    assert_eq!(of_far(), [(format!("rouse-{host}.boot"), 0o600, 0)], "QEMU has read it, and it is empty");
    system.master.rouse(&["cancel", &build]).ended(0);
    system.until_clean(&["distant"]);
    assert_eq!(of_far(), []);
}
