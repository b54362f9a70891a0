//! The image that `vmbuilder` builds: two builds give the same image, and it works.

use rouse_tests::harness::program;
use rouse_tests::virt::{cache, outside, repository, run};
use sha2::{Digest as _, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Everything that goes into the image and is ours, but for the agent.
const PARTS: [&str; 8] = [
    "contrib/libvirt/vmbuilder",
    "contrib/systemd/rouse-agent.service",
    "images/agent.toml",
    "images/disk",
    "images/install",
    "images/manifest",
    "images/metadata.nft",
    "images/rouse-metadata.service",
];
/// What the unit of the agent runs before the agent: a metadata service on the machine itself, and who reaches it.
const PROBE: &str = r#"use IO::Socket::INET;
system("ip link set lo up; ip address add 169.254.169.254/32 dev lo");
my $service = IO::Socket::INET->new(LocalAddr => "169.254.169.254:80", Listen => 9) or die;
my $connect = 'exit !IO::Socket::INET->new(PeerAddr => "169.254.169.254:80", Timeout => 20)';
for my $user ("root", "build") {
    my $failed = system("setpriv", "--reuid", $user, "--clear-groups", "perl", "-MIO::Socket::INET", "-e", $connect);
    print "$user ", $failed ? "does not reach" : "reaches", " the metadata\n";
}
"#;
/// Where the agent is in it.
const AGENT: &str = "/usr/local/bin/rouse-agent";

/// The agent as it was just built, without what only a debugger needs.
fn agent(dir: &Path) -> PathBuf {
    let agent = dir.join(format!("agent-{}", std::process::id()));
    run(Command::new("strip").arg("-o").arg(&agent).arg(program("rouse-agent")));
    agent
}

fn build(agent: &Path, out: &Path) {
    let mut command = Command::new(repository().join("contrib/libvirt/vmbuilder"));
    command.args(["--size", "2G", "--agent"]).arg(agent).arg(out);
    run(outside(&mut command));
}

/// The image, built twice if it is not kept from before, with the agent as it is now.
fn image(out: &Path) {
    let mut hash = Sha256::new();
    for part in PARTS {
        hash.update(Sha256::digest(fs::read(repository().join(part)).unwrap()));
    }
    let hash: [u8; 32] = hash.finalize().into();
    let name: String = hash[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    let dir = cache().join("images");
    let kept = dir.join(format!("{name}.qcow2"));
    if !kept.is_file() {
        // Only the newest is kept: each has some hundred megabytes.
        fs::remove_dir_all(&dir).ok();
        fs::create_dir_all(&dir).unwrap();
        let agent = agent(&dir);
        let [first, second] = ["first", "second"].map(|name| dir.join(format!("{name}.qcow2")));
        // At once: most of it is waiting for packages and for the disk.
        std::thread::scope(|scope| {
            for out in [&first, &second] {
                let agent = &agent;
                scope.spawn(move || build(agent, out));
            }
        });
        let manifest = |of: &str| fs::read_to_string(dir.join(format!("{of}.qcow2.manifest"))).unwrap();
        let (one, other) = (manifest("first"), manifest("second"));
        let differs = one.lines().zip(other.lines()).find(|(a, b)| a != b);
        assert!(one == other, "the same sources give the same files; the first that differs: {differs:?}");
        assert!(one.contains(&format!(".{AGENT}")) && one.lines().count() > 1_000);
        fs::remove_file(second).unwrap();
        fs::remove_file(agent).unwrap();
        fs::rename(first, &kept).unwrap();
    }
    // Kept is the image of an agent that may be older: it gets the one of now, so that not each change of the agent costs
    // two builds.
    run(Command::new("qemu-img").args(["convert", "-q", "-O", "raw"]).arg(&kept).arg(out));
    let agent = agent(&dir);
    put(&agent, out, AGENT, 0o755);
    fs::remove_file(agent).unwrap();
}

/// Puts a file into the file system of a raw disk, which begins a mebibyte into it.
fn put(file: &Path, disk: &Path, to: &str, mode: u32) {
    let file_system = format!("{}?offset={}", disk.display(), 1 << 20);
    let (place, name) = to.rsplit_once('/').unwrap();
    let commands = disk.with_extension("commands");
    let text = format!("cd {place}\nrm {name}\nwrite {} {name}\nsif {name} mode 0100{mode:o}\n", file.display());
    fs::write(&commands, text).unwrap();
    run(Command::new("/sbin/debugfs").arg("-w").arg("-f").arg(&commands).arg(&file_system));
    fs::remove_file(commands).unwrap();
    let stat = run(Command::new("/sbin/debugfs").args(["-R", &format!("stat {to}"), &file_system]));
    let size = fs::metadata(file).unwrap().len();
    assert!(stat.contains(&format!("Size: {size}")) && stat.contains(&format!("Mode:  {mode:04o}")), "{to}: {stat}");
}

#[test]
fn the_built_image_is_fit() {
    if !crate::may_run() {
        return;
    }
    let _turn = crate::together();
    let dir = tempfile::tempdir_in(cache()).unwrap();
    let disk = dir.path().join("disk.raw");
    image(&disk);
    let (file, console) = (dir.path().join("file"), dir.path().join("console"));
    for (text, path) in [
        (PROBE, "/etc/rouse/probe"),
        (
            "[Service]\nExecStartPre=/usr/bin/perl /etc/rouse/probe\n",
            "/etc/systemd/system/rouse-agent.service.d/probe.conf",
        ),
    ] {
        fs::write(&file, text).unwrap();
        put(&file, &disk, path, 0o644);
    }
    let check = || {
        let mut check = Command::new(repository().join("images/check"));
        // An emulated Debian needs a minute of a processor, which other tests may be using.
        check.args(["--limit", "900"]);
        check
    };
    let said = run(check().arg("--console").arg(&console).arg(&disk));
    assert!(said.contains("powers the machine off") && said.contains("works"), "{said}");
    let console = String::from_utf8_lossy(&fs::read(console).unwrap()).into_owned();
    for (user, can) in [("root", "reaches"), ("build", "does not reach")] {
        assert!(console.contains(&format!("{user} {can} the metadata")), "{user}: {console}");
    }
    fs::write(&file, "[Service]\n").unwrap();
    put(&file, &disk, "/etc/systemd/system/rouse-agent.service.d/probe.conf", 0o644);
    // With broker and password in it, as `--broker` and `--password-file` put them there, it takes the name that
    // systemd-networkd has from DHCP.
    let baked = fs::read_to_string(repository().join("images/agent.toml")).unwrap()
        + "broker = \"amqp://192.0.2.1/rouse\"\npassword = \"not-a-secret\"\n";
    let config = dir.path().join("agent.toml");
    fs::write(&config, baked).unwrap();
    put(&config, &disk, "/etc/rouse/agent.toml", 0o600);
    let said = run(check().arg("--name-from-dhcp").arg(&disk));
    assert!(said.contains("knows its identity") && said.contains("works"), "{said}");
}

#[test]
fn an_image_without_an_agent_is_not_fit() {
    if !crate::may_run() {
        return;
    }
    let _turn = crate::together();
    let image = rouse_tests::virt::image(&rouse_tests::virt::Image::of_kind("true"));
    let output = Command::new(repository().join("images/check")).arg(&image).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("does not work: the agent did not report its identity") && said.contains("guest: true has run"),
        "{said}"
    );
}
