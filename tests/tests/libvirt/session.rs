//! A master of an ordinary user with that user's own libvirt, `qemu:///session`. libvirt starts it automatically. It
//! has no networks, so guests reach the broker through QEMU's own network.

use crate::system::{GUEST, OWN_XML, worker};
use rouse_tests::harness::{
    DEADLINE, Process, free_address, holds_within, processes_with, program, request, scratch, text, write_private,
};
use rouse_tests::virt::{Image, image, run};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// `nobody`: every system has it, and nothing belongs to it.
const USER: u32 = 65_534;

/// Everything of that user's, which ends when this is dropped.
struct Session(PathBuf);

impl Session {
    /// Runs the master's program as the user, in a home of the user's own.
    fn rouse(&self, arguments: &[&str]) -> Command {
        let (dir, id) = (self.0.display(), USER);
        let mut command = Command::new("setpriv");
        command.arg(format!("--reuid={id}")).arg(format!("--regid={id}")).arg("--clear-groups");
        command.args(["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", &format!("HOME={dir}")]);
        command.arg(format!("XDG_RUNTIME_DIR={dir}/run")).arg(self.0.join("rouse")).args(arguments);
        command.current_dir(&self.0);
        command
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let dir = self.0.display().to_string();
        for signal in [libc::SIGTERM, libc::SIGKILL] {
            for (pid, _) in processes_with(&dir) {
                // SAFETY: only numbers are passed; it has just been found by what only our own processes have.
                unsafe { libc::kill(pid, signal) };
            }
            if holds_within(DEADLINE / 4, || processes_with(&dir).is_empty()) {
                break;
            }
        }
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{dir} stays: {error}");
        }
    }
}

fn give(path: &Path) {
    std::os::unix::fs::chown(path, Some(USER), Some(USER)).unwrap();
}

#[test]
fn a_build_in_a_guest_of_an_ordinary_user() {
    if !crate::may_run() {
        return;
    }
    let _turn = crate::together();
    let session = Session(scratch("session"));
    let dir = &session.0;
    for name in ["run", "disks"] {
        fs::create_dir(dir.join(name)).unwrap();
        give(&dir.join(name));
    }
    give(dir);
    // Neither the programs nor what is kept between runs are the user's to read.
    fs::copy(program("rouse"), dir.join("rouse")).unwrap();
    fs::copy(image(&Image::agent()), dir.join("base.qcow2")).unwrap();
    let own = OWN_XML.replace("<interface type='network'><source network='rouse'/>", "<interface type='user'>");
    fs::write(dir.join("vm.xml"), own).unwrap();
    let (http, amqp, auth, shown) = (free_address(), free_address(), free_address(), dir.display());
    let head = format!(
        "[master]\nname = \"session\"\nstate_dir = \"{shown}/state\"\nlisten = \"{http}\"\n[broker]\n\
         auth_listen = \"{auth}\"\nlisten = [\"{amqp}\"]\nagent_url = \"amqp://10.0.2.2:{}/rouse\"\n",
        amqp.port()
    );
    let section = format!(
        "connection = \"qemu:///session\"\nhd_image = \"{shown}/disks/{{name}}.qcow2\"\n\
         base_image = \"{shown}/base.qcow2\"\nxml = {{ file = \"vm.xml\" }}\n"
    );
    write_private(&dir.join("rouse.toml"), &(head + &worker("own", "run_as = \"root\"\nlease = 40", &section)));
    give(&dir.join("rouse.toml"));

    let said = run(&mut session.rouse(&["check", "--online", "-c", "rouse.toml"]));
    assert!(said.contains("answers at qemu:///session"), "{said}");
    let master = Process::start(session.rouse(&["master", "-c", "rouse.toml"]), dir, "master");
    let get = |path: &str| request(http, "GET", path, None, "").filter(|answer| answer.status == 200);
    assert!(holds_within(2 * DEADLINE, || get("/healthz").is_some()), "the master is not ready: {}", master.err());
    let token = fs::read_to_string(dir.join("state/api-token")).unwrap();
    let body = json!({ "worker": "own", "step": [{ "run": ["cat", "/sys/class/dmi/id/product_uuid"] }] });
    let accepted = request(http, "POST", "/api/builds", Some(token.trim()), &body.to_string()).unwrap().json();
    let build = format!("/api/builds/{}", text(&accepted["id"]));
    let over = || get(&build).is_some_and(|answer| answer.json()["finished"].is_string());
    assert!(holds_within(GUEST, over), "the build does not end: {}", master.err());
    let shown = get(&build).unwrap().json();
    assert_eq!(shown["state"], "success", "{shown}");
    let log = get(&format!("{build}/steps/1/log")).unwrap().body;
    assert_eq!(String::from_utf8_lossy(&log).trim().len(), 36, "the UUID of its machine");
    let none = || get("/api/hosts").is_some_and(|answer| answer.json() == json!([]));
    assert!(holds_within(GUEST, none), "its host stays: {}", master.err());
    assert_eq!(fs::read_dir(dir.join("disks")).unwrap().count(), 0, "its disk stays");
}
