//! What the manifests and scripts of the repository promise: no dependency needs a newer Rust than `rust-version`,
//! `make install` installs what its pages link to, and `tests/times` reads the report of the last run.
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

/// Of `1.89` or `1.89.0`, numbers that can be compared.
fn version(text: &str) -> [u32; 3] {
    let mut parts = text.split('.').map(|part| part.parse().unwrap_or_else(|_| panic!("{text} is no version of Rust")));
    [(); 3].map(|()| parts.next().unwrap_or(0))
}

/// Those of `cargo metadata` that need a newer Rust than `ours`.
fn newer(metadata: &Value, ours: &str) -> Vec<String> {
    let packages = metadata["packages"].as_array().unwrap();
    let needs = packages.iter().filter_map(|package| Some((package, package["rust_version"].as_str()?)));
    let newer = needs.filter(|(_, needed)| version(needed) > version(ours));
    newer.map(|(package, needed)| format!("{} {} needs {needed}", package["name"], package["version"])).collect()
}

#[test]
fn no_dependency_needs_a_newer_rust() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--offline", "--format-version", "1", "--all-features"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(metadata["packages"].as_array().unwrap().len() > 100);
    let ours = env!("CARGO_PKG_RUST_VERSION");
    assert_eq!(newer(&metadata, ours), [""; 0], "rust-version is {ours}: raise it, or take an older release of these");
    assert_ne!(newer(&metadata, "1.31"), [""; 0], "no dependency says which Rust it needs");
}

#[test]
fn versions_are_compared_as_numbers() {
    assert_eq!(version("1.89"), version("1.89.0"));
    assert!(version("1.100") > version("1.89.1") && version("1.89.1") > version("1.89"));
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// Every file below `dir`.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Where the links of a page in Markdown lead, other than to web pages and within the page itself.
fn links(text: &str) -> Vec<&str> {
    let inline = text.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next());
    let defined =
        text.lines().filter_map(|line| line.strip_prefix('[')?.split_once("]: ").map(|(_, link)| link.trim()));
    let all = inline.chain(defined).filter(|link| !link.contains("://") && !link.starts_with(['#']));
    all.filter_map(|link| link.split('#').next()).collect()
}

#[test]
fn links_are_found_in_each_form() {
    let text = "[a](b.md#c), [d](https://example.org), [e](#f)\n[g]: h/i.md\n[j]: https://example.org\n";
    assert_eq!(links(text), ["b.md", "h/i.md"]);
}

/// Installs with empty files in the place of what `make build` makes, and follows each link of each page.
#[test]
fn what_is_installed_links_to_what_is_installed() {
    let dir = tempfile::tempdir().unwrap();
    let (target, root) = (dir.path().join("target"), dir.path().join("root"));
    for made in
        ["rouse", "share/man/rouse.1", "share/completions/bash", "share/completions/zsh", "share/completions/fish"]
    {
        write(&target.join("release").join(made), "");
    }
    write(&target.join("triple/agent/rouse-agent"), "");
    let mut make = Command::new("make");
    make.args(["--no-print-directory", "install", "PREFIX=/usr"]).arg(format!("DESTDIR={}", root.display()));
    // Those of a `make test` that runs this.
    make.env_remove("MAKEFLAGS").env_remove("MFLAGS").env_remove("MAKELEVEL").env("CARGO_TARGET_DIR", &target);
    let output = make.current_dir(repository()).output().unwrap();
    assert!(output.status.success(), "make install: {}", String::from_utf8_lossy(&output.stderr));
    let installed = files(&root);
    let (mut followed, mut broken) = (0, Vec::new());
    for page in installed.iter().filter(|path| path.extension().is_some_and(|extension| extension == "md")) {
        for link in links(&fs::read_to_string(page).unwrap()) {
            followed += 1;
            if !page.with_file_name(link).exists() {
                broken.push(format!("{}: {link}", page.strip_prefix(&root).unwrap().display()));
            }
        }
    }
    assert!(followed > 20, "{followed} links in {installed:?}");
    assert_eq!(broken, [""; 0], "these links lead nowhere once installed");
    let units = files(&root.join("usr/lib/systemd/system"));
    assert_eq!(units.len(), files(&repository().join("contrib/systemd")).len());
    for unit in units {
        for line in fs::read_to_string(&unit).unwrap().lines() {
            let Some(path) = line.strip_prefix("Documentation=file:/") else { continue };
            assert!(root.join(path).is_file(), "{}: {line}", unit.display());
        }
    }
}

/// What a program of systemd says to `contrib/systemd`, whose programs are replaced by one that exists, and whether it
/// agrees. None if it is not installed.
fn systemd_analyze(arguments: &[&str], units: &[&str]) -> Option<(bool, String)> {
    let dir = tempfile::tempdir().unwrap();
    for unit in files(&repository().join("contrib/systemd")) {
        let text = fs::read_to_string(&unit).unwrap();
        let installed =
            text.replace("/usr/local/bin/rouse-agent", "/bin/true").replace("/usr/local/bin/rouse", "/bin/true");
        fs::write(dir.path().join(unit.file_name().unwrap()), installed).unwrap();
    }
    let mut command = Command::new("systemd-analyze");
    let output = command.args(arguments).args(units).current_dir(dir.path()).env("SYSTEMD_PAGER", "").output();
    let Ok(output) = output else {
        eprintln!("not checked: systemd-analyze is not installed");
        return None;
    };
    Some((output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()))
}

#[test]
fn systemd_finds_no_fault_in_the_units() {
    let units =
        ["./rouse.service", "./rouse.socket", "./rouse-host.socket", "./rouse-host@.service", "./rouse-agent.service"];
    assert_eq!(units.len(), files(&repository().join("contrib/systemd")).len());
    if let Some(said) = systemd_analyze(&["verify", "--man=no"], &units) {
        assert_eq!(said, (true, String::new()));
    }
}

#[test]
fn the_units_are_exposed_no_more_than_they_need() {
    // In tenths. The agent's is that of what builds need.
    for (unit, most) in [("./rouse.service", 20), ("./rouse-agent.service", 92)] {
        let threshold = format!("--threshold={most}");
        let Some((within, said)) = systemd_analyze(&["security", "--offline=true", &threshold], &[unit]) else {
            return;
        };
        assert!(within, "{unit}: {said}");
    }
}

#[test]
fn times_reads_the_newest_report() {
    let dir = tempfile::tempdir().unwrap();
    let report = |profile: &str, seconds: u64, age: u64| {
        let path = dir.path().join("nextest").join(profile).join("junit.xml");
        let case = format!("<testcase name=\"t\" time=\"{seconds}\"/>");
        write(&path, &format!("<testsuites time=\"{seconds}\"><testsuite name=\"s\">{case}</testsuite></testsuites>"));
        let file = fs::File::options().append(true).open(path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 - age)).unwrap();
    };
    let times = |arguments: &[&str]| {
        let mut command = Command::new(repository().join("tests/times"));
        let output = command.args(arguments).env("CARGO_TARGET_DIR", dir.path()).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let (ended, said) = times(&[]);
    assert!(!ended && said.contains("there is no report"), "{said}");
    report("default", 11, 3_600);
    report("ci", 22, 60);
    assert!(times(&[]).1.starts_with("   22.0 s for 1 tests"), "{:?}", times(&[]));
    report("default", 33, 0);
    assert!(times(&[]).1.starts_with("   33.0 s for 1 tests"), "{:?}", times(&[]));
    assert!(times(&["ci"]).1.starts_with("   22.0 s for 1 tests"), "{:?}", times(&["ci"]));
}

#[test]
fn the_manifest_of_an_image_has_no_hash_of_its_password() {
    let tree = tempfile::tempdir().unwrap();
    write(&tree.path().join("etc/rouse/agent.toml"), "power_off = \"latent\"\n");
    write(&tree.path().join("etc/rouse/agent.secret"), "hush\n");
    let output = Command::new(repository().join("images/manifest")).arg(tree.path()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let line = |name: &str| text.lines().find(|line| line.contains(name)).unwrap().split(' ').next_back().unwrap();
    assert_eq!(line("agent.secret"), "secret");
    assert_eq!(line("agent.toml").len(), 64, "{text}");
    assert!(text.contains("d ") && text.contains(" ./etc/rouse -> "), "{text}");
}
