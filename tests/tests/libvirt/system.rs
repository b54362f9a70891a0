//! One master with its broker and its libvirt workers, as a user has them. The keeper runs it, and all tests of this
//! program share it.

use crate::machines::names;
use rouse_tests::harness::{Master, PASSWORD, free_address, kept, latent, standing, text};
use rouse_tests::virt::{BRIDGE, ELSEWHERE, Image, SMALL, VirtHost, image};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

/// How long a guest may take to boot, run a build and go, on a busy machine that has to emulate it.
pub const GUEST: Duration = Duration::from_secs(240);

pub struct LibvirtSystem {
    pub virt_host: &'static VirtHost,
    pub master: Master,
    /// Where guests find its broker.
    pub broker: String,
    /// Where disks are.
    pub disks: PathBuf,
    /// All workers of its configuration.
    pub workers: String,
}

/// A worker's section.
pub fn worker(name: &str, lines: &str, section: &str) -> String {
    format!("[[worker]]\nname = \"{name}\"\npassword = \"{PASSWORD}\"\n{lines}\n[worker.libvirt]\n{section}\n")
}

/// The section of a built-in machine over a base image.
pub fn builtin(virt_host: &VirtHost, disks: &Path, base: &Path) -> String {
    let (uri, disks, base) = (&virt_host.uri, disks.display(), base.display());
    format!(
        "connection = \"{uri}\"\nhd_image = \"{disks}/{{name}}.qcow2\"\nbase_image = \"{base}\"\nxml = \"builtin\"\n\
         memory_mb = 160\ncpus = 1\nnetwork = \"rouse\""
    )
}

/// A user's own description, with an address that follows from nothing.
pub const OWN_XML: &str = "<domain type='qemu'><name>anything</name><memory unit='MiB'>160</memory>\
    <os><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features><devices>\
    <disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='unsafe'/><source file='/nonexistent'/>\
    <target dev='vda' bus='virtio'/></disk>\
    <interface type='network'><source network='rouse'/><model type='virtio'/><rom enabled='no'/></interface>\
    <serial type='pty'/><memballoon model='none'/></devices></domain>";

/// The one that the keeper runs.
pub fn system() -> &'static LibvirtSystem {
    static SYSTEM: OnceLock<LibvirtSystem> = OnceLock::new();
    SYSTEM.get_or_init(|| {
        let description = kept();
        LibvirtSystem {
            virt_host: VirtHost::get(),
            master: Master::of_keeper(&description["master"]),
            broker: text(&description["broker"]),
            disks: text(&description["disks"]).into(),
            workers: text(&description["workers"]),
        }
    })
}

/// Starts it all.
pub fn start() -> LibvirtSystem {
    let virt_host = VirtHost::get();
    virt_host.need_network("rouse");
    let disks = virt_host.dir.join("disks");
    std::fs::create_dir_all(&disks).unwrap();
    let port = free_address().port();
    let broker = format!("amqp://{BRIDGE}:{port}/rouse");
    // This process is in a network of its own, whose bridge is not in /sys.
    let lines =
        format!("listen = [\"127.0.0.1:{port}\", \"{BRIDGE}:{port}\"]\nagent_url = \"{broker}\"\ntls = \"off\"\n");
    let workers = workers(virt_host, &disks, &broker);
    let master =
        Master::start_with("virt", &lines, &format!("amqp://127.0.0.1:{port}/rouse"), free_address(), &workers);
    // The network that it prints for these workers, in place of the one without names.
    let network = master.rouse(&["libvirt-network", "-c", "rouse.toml", "--network", "rouse"]).ended(0).text();
    virt_host.set_network("rouse", &network);
    LibvirtSystem { virt_host, master, broker, disks, workers }
}

fn workers(virt_host: &VirtHost, disks: &Path, broker: &str) -> String {
    let write = |name: &str, text: &str| {
        let path = virt_host.dir.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let base = image(&Image::agent());
    let plain = builtin(virt_host, disks, &base);
    let patient = "keepalive_interval = 2\nlease = 40\ngrace = 60";
    let mut text = String::new();
    for pool in ["plain", "mortal", "quits", "apart"] {
        let lines = format!("{patient}\nmax_builds = 1\nproperties = {{ pool = \"{pool}\" }}");
        text += &worker(&format!("{pool}-{{1..2}}"), &lines, &plain);
    }
    let tight = plain.replace(&disks.display().to_string(), &virt_host.dir.join("tight").display().to_string());
    text += &worker("tight", &format!("{patient}\nmax_builds = 1"), &tight);
    let lonely = "keepalive_interval = 1\nlease = 15\ngrace = 6";
    text += &worker("lonely", &format!("{lonely}\nbuild_wait_timeout = 120"), &plain);
    let limits = "limits = { memory = \"48M\", pids = 60, cpus = 1 }";
    text += &worker("limited", &format!("{patient}\nmax_builds = 1\nbuild_wait_timeout = 120\n{limits}"), &plain);
    text += &worker("lasting", "keepalive_interval = 2\nlease = 60\ngrace = 120", &plain);
    text += &worker("cloned", &format!("{patient}\nbuild_wait_timeout = 120"), &plain);
    // An image with everything baked in, whose name comes from DHCP.
    let baked = format!(
        "identity = \"hostname\"\nbroker = \"{broker}\"\npassword = \"{PASSWORD}\"\npower_off = \"latent\"\n\
         power_off_command = [\"poweroff\", \"-f\"]\nwork_dir = \"/var/lib/rouse/work\"\n"
    );
    let baked = image(&Image { agent: baked, ..Image::agent() });
    let xml = write("own.xml", OWN_XML);
    let own = builtin(virt_host, disks, &baked).replace("\"builtin\"", &format!("{{ file = \"{}\" }}", xml.display()));
    text += &worker("dhcp", patient, &own);
    let defined = builtin(virt_host, disks, &base).replace("xml = \"builtin\"\n", "");
    text += &worker("defined", patient, &defined);
    let disk = virt_host.dir.join("own-disk.qcow2");
    std::fs::copy(&base, &disk).unwrap();
    let (uri, disk) = (&virt_host.uri, disk.display());
    let own_disk = format!(
        "connection = \"{uri}\"\nhd_image = \"{disk}\"\nxml = \"builtin\"\nmemory_mb = 160\ncpus = 1\nnetwork = \"rouse\""
    );
    text += &worker("keeper", patient, &own_disk);
    let far = virt_host.dir.join("far-disk.qcow2");
    std::fs::copy(&base, &far).unwrap();
    for name in ["far", "distant"] {
        // A guest elsewhere has its boot data in the storage pool of its disk.
        let pool = virt_host.dir.join(format!("pool-of-{name}"));
        std::fs::create_dir(&pool).unwrap();
        virt_host.virsh(&["pool-create-as", name, "dir", "--target", &pool.display().to_string()]);
        let far = pool.join("disk.qcow2");
        std::fs::copy(&base, &far).unwrap();
        let far = own_disk.replace(uri, ELSEWHERE).replace(&disk.to_string(), &far.display().to_string());
        text += &worker(name, patient, &far);
    }
    // Guests that never attach: two that have to be given up, and two that end by themselves.
    for (name, timeout, image_of) in [
        ("mute", 60, Image::of_kind("no-agent")),
        ("deaf", 60, Image::of_kind("no-network")),
        ("used", 180, Image { used_for: "hbefore", ..Image::agent() }),
        ("panics", 180, Image { kernel: "rdinit=/nonexistent root=/dev/nowhere", ..Image::agent() }),
    ] {
        let lines = format!("{patient}\nmissing_timeout = {timeout}");
        text += &worker(name, &lines, &builtin(virt_host, disks, &image(&image_of)));
    }
    let zeros = write("zeros.img", &"\0".repeat(4096));
    text += &worker("blank", &format!("{patient}\nmissing_timeout = 45"), &builtin(virt_host, disks, &zeros));
    for name in crate::names::WORKERS {
        text += &standing(name, "");
    }
    text += &faulty(virt_host, disks, &base, &write);
    text + &latent("local", "keepalive_interval = 2\nlease = 40\nbuild_wait_timeout = 0")
}

/// Workers whose machines cannot be made. Each has a name of its own for the good base image: what fails counts against
/// the image.
fn faulty(virt_host: &VirtHost, disks: &Path, base: &Path, write: &dyn Fn(&str, &str) -> PathBuf) -> String {
    let plain = |name: &str| {
        let path = virt_host.dir.join(format!("base-of-{name}.qcow2"));
        std::fs::copy(base, &path).unwrap();
        builtin(virt_host, disks, &path)
    };
    let mut text = worker("no-base", "", &builtin(virt_host, disks, Path::new("/nonexistent/base.qcow2")));
    text += &worker("no-image", "", &builtin(virt_host, disks, &write("text.qcow2", "this is no image")));
    let cut = write("cut.qcow2", "");
    std::fs::write(&cut, &std::fs::read(base).unwrap()[..300]).unwrap();
    text += &worker("cut-image", "", &builtin(virt_host, disks, &cut));
    let broken = write("broken.xml", "<domain><devices></domain>");
    let bad = write("bad.xml", &OWN_XML.replace(">hvm<", ">nonsense<"));
    for (name, xml) in [("broken-xml", broken), ("bad-xml", bad)] {
        text += &worker(name, "", &plain(name).replace("\"builtin\"", &format!("{{ file = \"{}\" }}", xml.display())));
    }
    text += &worker("no-network", "", &plain("no-network").replace("network = \"rouse\"", "network = \"nowhere\""));
    text += &worker("no-domain", "", &plain("no-domain").replace("xml = \"builtin\"\n", ""));
    let small = virt_host.dir.join("small").display().to_string();
    text + &worker("full", "", &plain("full").replace(&disks.display().to_string(), &small))
}

impl LibvirtSystem {
    /// What the tests have to know of it.
    pub fn description(&self) -> Value {
        json!({
            "world": std::process::id(), "virt_host": self.virt_host.description(), "master": self.master.description(), "broker": self.broker,
            "disks": self.disks, "workers": self.workers,
        })
    }

    /// Ends it all.
    pub fn end(&self) {
        self.master.end();
        self.virt_host.end();
    }

    /// Waits until these workers have no host, and nothing of any is left: domains that run, disks with their marks,
    /// consoles.
    #[track_caller]
    pub fn until_clean(&self, workers: &[&str]) {
        let hosts = || self.master.get("/api/hosts").json().as_array().cloned().unwrap_or_default();
        self.master.until_within(GUEST, &format!("no host of {workers:?} is left"), || {
            hosts().iter().all(|host| !workers.contains(&text(&host["worker"]).as_str()))
        });
        let files = names(&self.disks)
            .into_iter()
            .chain(SMALL.iter().flat_map(|(name, _)| names(&self.virt_host.dir.join(name))));
        let left: Vec<String> = self.virt_host.running().into_iter().chain(files).collect();
        let of =
            |name: &&String| workers.iter().any(|worker| *name == worker || name.starts_with(&format!("{worker}.")));
        let left: Vec<&String> = left.iter().filter(of).collect();
        assert!(left.is_empty(), "{left:?} is left\n{}", self.master.log());
        // A console's name is its host's.
        self.master.until("no console is left", || {
            let consoles = names(&self.master.dir.join("state/hosts/libvirt"));
            let of = |console: &str| hosts().iter().any(|h| console.starts_with(&format!("{}.", text(&h["id"]))));
            consoles.iter().all(|console| console == "connections" || of(console))
        });
    }

    /// Waits for a state of a build.
    #[track_caller]
    pub fn until(&self, build: &str, state: &str) {
        self.master.until_within(GUEST, &format!("build {build} is {state}"), || {
            let now = self.master.state(build);
            let over = ["success", "failure", "cancelled", "lost"].contains(&now.as_str());
            assert!(
                !over || now == state,
                "build {build} is {now}: {}\n{}",
                self.master.show(build),
                self.master.log()
            );
            now == state
        });
    }

    /// Waits until a build says something in its log.
    #[track_caller]
    pub fn until_said(&self, build: &str, said: &str) {
        self.until(build, "running");
        self.master.until_within(GUEST, &format!("build {build} says {said:?}"), || self.log(build).contains(said));
    }

    /// The log of a build's first step; empty if there is none yet.
    #[track_caller]
    pub fn log(&self, build: &str) -> String {
        let answer = self.master.get(&format!("/api/builds/{build}/steps/1/log"));
        if answer.status == 200 { String::from_utf8_lossy(&answer.body).into_owned() } else { String::new() }
    }
}
