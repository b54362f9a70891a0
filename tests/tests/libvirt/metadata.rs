//! EC2's metadata at the address that EC2 uses: an agent in a guest queries 169.254.169.254, which is an address of the
//! bridge, and learns from the answer which host it is.

use crate::system::{GUEST, OWN_XML};
use crate::{may_run, together};
use rouse_tests::ec2::{Authority, Cloud, with_defaults};
use rouse_tests::harness::{Master, free_address};
use rouse_tests::virt::{BRIDGE, Image, VirtHost, image, outside, run};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;
use tokio::net::{TcpListener, TcpStream};

const METADATA: &str = "169.254.169.254";
const GUEST_NAME: &str = "instance";

/// Passes on what comes to the address that every instance asks, as long as the runtime lives.
async fn serve_metadata(of: String) {
    let listener = TcpListener::bind((METADATA, 80)).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut guest, _)) = listener.accept().await {
            let Ok(mut service) = TcpStream::connect(&of).await else { continue };
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut guest, &mut service).await });
        }
    });
}

/// The network's bridge has the address beside its own.
fn give_address(virt_host: &VirtHost) {
    let network = virt_host.virsh(&["net-dumpxml", "rouse"]);
    let bridge = network.split_once("<bridge name='").unwrap().1.split('\'').next().unwrap();
    run(Command::new("ip").args(["address", "replace", &format!("{METADATA}/32"), "dev", bridge]));
}

/// A guest that goes with the test, however that ends.
struct Guest<'a> {
    virt_host: &'a VirtHost,
    console: PathBuf,
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // What the master says is not all: whether it has gone is up to the agent and its kernel.
            eprintln!("the guest's console:\n{}", std::fs::read_to_string(&self.console).unwrap_or_default());
            let ask = |words: &[&str]| eprintln!("{}", self.virt_host.virsh_may_fail(words).unwrap_or_default());
            ask(&["domstate", "--reason", GUEST_NAME]);
            ask(&["qemu-monitor-command", "--hmp", GUEST_NAME, "info registers"]);
        }
        // It may have gone by itself.
        self.virt_host.virsh_may_fail(&["destroy", GUEST_NAME]);
    }
}

/// A guest over an image whose agent is on EC2, by its configuration.
fn boot<'a>(virt_host: &'a VirtHost, dir: &Path) -> Guest<'a> {
    let agent = Image::agent().agent + "identity = \"ec2\"\n";
    let base = image(&Image { agent, ..Image::agent() });
    let disk = dir.join("instance.qcow2");
    let mut overlay = Command::new("qemu-img");
    run(overlay.args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]).arg(&base).arg(&disk));
    let console = dir.join("console");
    let xml = OWN_XML
        .replace("anything", GUEST_NAME)
        .replace("/nonexistent", &disk.display().to_string())
        .replace("<serial type='pty'/>", &format!("<serial type='pty'><log file='{}'/></serial>", console.display()));
    let path = dir.join("instance.xml");
    std::fs::write(&path, xml).unwrap();
    virt_host.virsh(&["create", &path.display().to_string()]);
    Guest { virt_host, console }
}

#[test]
fn an_agent_in_a_guest_asks_the_address_of_the_metadata() {
    if !may_run() {
        return;
    }
    let _turn = together();
    let virt_host = VirtHost::get();
    virt_host.need_network("rouse");
    give_address(virt_host);
    // Its packages come from outside, if it was not made before.
    run(outside(Command::new(rouse_tests::virt::repository().join("tests/venv")).arg("ec2")));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let cloud = runtime.block_on(Cloud::alone());
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "authority");
    cloud.set(&json!({ "signer": authority.signer() }));

    let port = free_address().port();
    // This process is in a network of its own, whose bridge is not in /sys.
    let lines = format!(
        "listen = [\"127.0.0.1:{port}\", \"{BRIDGE}:{port}\"]\nagent_url = \"amqp://{BRIDGE}:{port}/rouse\"\ntls = \"off\"\n"
    );
    let certificates = format!("identity_certificates = {:?}\n", authority.certificate);
    let workers = format!(
        "[[worker]]\nname = \"w\"\npassword = \"x\"\nbuild_wait_timeout = 1\nkeepalive_interval = 2\nlease = 15\ngrace = 6\n[worker.ec2]\n{}",
        with_defaults(&cloud.endpoint(), &certificates)
    );
    let broker = format!("amqp://127.0.0.1:{port}/rouse");
    let master = Master::start_with("imds", &lines, &broker, free_address(), &workers);
    let build = master.detach(&["--worker", "w", "--", "cat", "/etc/guest-kind"]);
    master.until("an instance is created", || cloud.alive().len() == 1);
    let imds = cloud.instances()[0]["imds"].as_str().unwrap().trim_start_matches("http://").to_owned();
    runtime.block_on(serve_metadata(imds));
    let _guest = boot(virt_host, dir.path());
    master.until_within(GUEST, "it has run", || master.state(&build) == "success");
    assert_eq!(master.rouse(&["log", &build]).ended(0).text(), "agent", "in the guest\n{}", master.log());
    // It is not wanted any more: the instance is ended, and the guest that stands for it switches itself off.
    master.until("the instance is terminated", || cloud.alive().is_empty());
    // A QEMU that is on its way out still has its domain; what is asked is whether the guest runs.
    let runs = || virt_host.virsh(&["list", "--state-running", "--name"]).lines().any(|name| name == GUEST_NAME);
    master.until_within(GUEST, "the guest is off", || !runs());
    master.end();
}
