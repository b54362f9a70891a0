//! `rouse check --online` with a real libvirtd.

use crate::machines::Machines;
use rouse_tests::harness::{program, write_private};
use std::path::Path;
use std::process::Command;

fn check(dir: &Path, workers: &[(&str, &str)]) -> (Option<i32>, String) {
    let section = |(name, section): &(&str, &str)| {
        format!("[[worker]]\nname = \"{name}\"\npassword = \"x\"\nrun_as = \"build\"\n[worker.libvirt]\n{section}\n")
    };
    let path = dir.join("check.toml");
    write_private(&path, &workers.iter().map(section).collect::<String>());
    let output = Command::new(program("rouse")).args(["check", "--online", "-c"]).arg(&path).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn it_says_what_would_be_booted_and_what_is_missing() {
    if !crate::may_run() {
        return;
    }
    let _turn = crate::together();
    let machines = Machines::new("checked");
    let good = machines.section.as_str();
    let base = machines.base.display().to_string();
    let (code, said) = check(&machines.dir, &[("good-{1..3}", good)]);
    assert_eq!(code, Some(0), "{said}");
    let answers = said.lines().filter(|line| line.contains(" answers at qemu+unix:")).count();
    assert!(answers == 1 && said.contains(&format!("boots {base} (qcow2)")), "once for all of them: {said}");
    assert!(!said.contains("spanning tree"), "{said}");

    // As libvirt makes one if nothing is said of it.
    let network = "<network><name>slow</name><ip address='10.152.0.1' netmask='255.255.255.0'/></network>";
    machines.virt_host.set_network("slow", network);
    let (code, said) = check(&machines.dir, &[("slow", &good.replace("\"bare\"", "\"slow\""))]);
    assert!(code == Some(0) && said.contains("the network slow at") && said.contains("first four seconds"), "{said}");

    let text = machines.dir.join("text.qcow2");
    std::fs::write(&text, "no image").unwrap();
    let precious = machines.dir.join("disks/precious.qcow2");
    std::fs::write(&precious, "precious").unwrap();
    let uri = &machines.virt_host.uri;
    let cases = [
        ("no-libvirt", good.replace(uri, "qemu+unix:///system?socket=/nonexistent/socket"), "cannot be reached"),
        ("no-network", good.replace("\"bare\"", "\"nowhere\""), "there is no network nowhere"),
        ("no-image", good.replace(&base, &text.display().to_string()), "is not a qcow2 image"),
        ("no-domain", good.replace("xml = \"builtin\"\n", ""), "there is no domain no-domain"),
        ("no-dir", good.replace("/disks/", "/nowhere/"), "nowhere for hd_image"),
        ("precious", good.to_owned(), "is there already and was not made by rouse"),
    ];
    let sections: Vec<(&str, &str)> = cases.iter().map(|(name, section, _)| (*name, section.as_str())).collect();
    let (code, said) = check(&machines.dir, &sections);
    assert_eq!(code, Some(2), "{said}");
    for (name, _, why) in &cases {
        let says = |line: &str| line.contains(&format!(": {name}: ")) && line.contains(why);
        assert!(said.lines().any(says), "{name}: {why}: {said}");
    }
    assert_eq!(std::fs::read(&precious).unwrap(), b"precious");
    std::fs::remove_file(precious).unwrap();
}
