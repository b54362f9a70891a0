//! The packages in a clean Debian: installation, builds, an upgrade under running builds, removal, and what is refused.
//! `tests/packages/inside` is what the user does there.
#![allow(clippy::unwrap_used)]

use rouse_tests::harness::program;
use rouse_tests::virt::{cache, repository, run};
use sha2::{Digest as _, Sha256};
use std::fs;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The oldest Debian that the packages are for, and the newest release.
const SUITES: [&str; 2] = ["bookworm", "stable"];

/// Whether this machine can try it: only root, and only on Debian. In CI it must.
fn may_run() -> bool {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let debian = release.lines().any(|line| line == "ID=debian");
    if std::env::var_os("CI").is_none() && (!rustix::process::geteuid().is_root() || !debian) {
        eprintln!("skipped: only root can make a chroot of Debian, and only from the apt sources of a Debian");
        return false;
    }
    true
}

/// A directory of one test at a time, until the file is dropped.
fn locked(dir: &Path) -> fs::File {
    fs::create_dir_all(dir).unwrap();
    let lock = fs::File::create(dir.join("lock")).unwrap();
    rustix::fs::flock(lock.as_fd(), rustix::fs::FlockOperation::LockExclusive).unwrap();
    lock
}

/// The programs that were just built, as packages: these, and the same as the version before.
fn packages(dir: &Path) -> PathBuf {
    let programs = program("rouse").parent().unwrap().to_owned();
    let share = |arguments: &[&str]| run(Command::new(program("rouse")).args(arguments));
    let staged = dir.join("debug");
    let completions = staged.join("share/completions");
    fs::create_dir_all(&completions).unwrap();
    fs::copy(programs.join("rouse"), staged.join("rouse")).unwrap();
    share(&["man", staged.join("share/man").to_str().unwrap()]);
    for shell in ["bash", "zsh", "fish"] {
        fs::write(completions.join(shell), share(&["completions", shell])).unwrap();
    }
    let out = dir.join("packages");
    let mut build = Command::new(repository().join("contrib/packages/build"));
    build.arg("--programs").arg(&staged).arg("--agent").arg(program("rouse-agent")).arg("--out").arg(out.join("new"));
    build.args(["--fast", "yes"]).env_remove("MAKEFLAGS").env_remove("MFLAGS").env_remove("MAKELEVEL");
    run(&mut build);
    fs::create_dir(out.join("old")).unwrap();
    for package in files(&out.join("new"), "deb") {
        let tree = dir.join("tree");
        run(Command::new("dpkg-deb").arg("--raw-extract").arg(&package).arg(&tree));
        let control = tree.join("DEBIAN/control");
        let text = fs::read_to_string(&control).unwrap();
        let version = text.lines().find_map(|line| line.strip_prefix("Version: ")).unwrap();
        fs::write(&control, text.replace(version, "0.0.9-1")).unwrap();
        run(Command::new("dpkg-deb").args(["--root-owner-group", "-Znone", "--build"]).arg(&tree).arg(out.join("old")));
        fs::remove_dir_all(&tree).unwrap();
    }
    out
}

fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|e| e == extension)).collect()
}

/// The root file system of a suite, made if it is not kept from before.
fn root(suite: &str) -> PathBuf {
    let script = repository().join("tests/packages/root");
    let hash: [u8; 32] = Sha256::digest(fs::read(&script).unwrap()).into();
    let name: String = hash[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    let dir = cache().join("roots").join(suite);
    let kept = dir.join(format!("{name}.tar"));
    let _lock = locked(&dir);
    if !kept.is_file() {
        for old in files(&dir, "tar") {
            fs::remove_file(old).unwrap();
        }
        run(Command::new(script).arg(suite).arg(&kept));
    }
    kept
}

#[test]
fn packages_are_installed_upgraded_and_removed() {
    if !may_run() {
        return;
    }
    let dir = tempfile::tempdir_in(cache()).unwrap();
    let packages = packages(dir.path());
    let debs = files(&packages.join("new"), "deb");
    assert_eq!(debs.len(), 3, "{debs:?}");
    assert_eq!(files(&packages.join("new"), "rpm").len(), 1);
    assert_eq!(files(&packages.join("new"), "gz").len(), 1);
    let mut lintian = Command::new("lintian");
    // Whether an override is used may depend on where the linker has placed a text.
    lintian.args(["--allow-root", "--fail-on", "error,warning,info", "--suppress-tags", "unused-override"]);
    let found = lintian.args(&debs).output().unwrap();
    assert!(found.status.success() && found.stdout.is_empty(), "lintian: {}", String::from_utf8_lossy(&found.stdout));
    std::thread::scope(|scope| {
        for suite in SUITES {
            let (packages, dir) = (&packages, dir.path());
            scope.spawn(move || try_in(suite, packages, dir));
        }
    });
}

/// Does all of `tests/packages/inside` in a new root.
fn try_in(suite: &str, packages: &Path, dir: &Path) {
    let tree = dir.join(suite);
    fs::create_dir(&tree).unwrap();
    run(Command::new("tar").arg("-C").arg(&tree).arg("-xf").arg(root(suite)));
    run(Command::new("cp").arg("-r").arg(packages).arg(tree.join("packages")));
    fs::copy(repository().join("tests/packages/inside"), tree.join("inside")).unwrap();
    // Processes of its own, which end with the first of them, and a network of its own.
    let enter =
        "ip link set lo up && mount -t proc proc $0/proc && mount -t tmpfs tmpfs $0/run && exec chroot $0 /inside";
    let mut inside = Command::new("unshare");
    inside.args(["--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]);
    let output = inside.args(["sh", "-c", enter]).arg(&tree).output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.contains("all passed"), "{suite}: {said}");
    // The root is as clean as a new image now.
    let agent =
        files(&packages.join("new"), "deb").into_iter().find(|path| path.to_string_lossy().contains("rouse-agent_"));
    run(Command::new(repository().join("images/install")).arg("--root").arg(&tree).arg("--agent").arg(agent.unwrap()));
    let status =
        run(Command::new("chroot").arg(&tree).args(["dpkg-query", "--show", "--showformat=${Status}", "rouse-agent"]));
    assert_eq!(status, "install ok installed", "{suite}");
    let wanted = tree.join("etc/systemd/system/multi-user.target.wants/rouse-agent.service");
    assert!(
        tree.join(fs::read_link(wanted).unwrap().strip_prefix("/").unwrap()).is_file(),
        "{suite}: the unit is not there"
    );
    fs::remove_dir_all(&tree).unwrap();
}
