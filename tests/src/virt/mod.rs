//! A libvirtd of the tests' own with real QEMU guests, apart from the machine's: it has a network, a process and a mount
//! namespace of its own, so nothing of it outlives the test run and nothing else is touched.

mod image;

pub use image::{Image, cache, image, image_with, repository, run};

use crate::harness::{DEADLINE, Process, holds_within, scratch};
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// The network that this process began in.
static OUTSIDE: AtomicI32 = AtomicI32::new(-1);

/// Has a program run in the network that this process began in: where packages come from.
pub fn outside(command: &mut Command) -> &mut Command {
    // SAFETY: `setns` is async-signal-safe, and the descriptor stays open for as long as this process.
    unsafe {
        command.pre_exec(|| match libc::setns(OUTSIDE.load(Ordering::Relaxed), libc::CLONE_NEWNET) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        })
    }
}

/// Moves this process into a network of its own, with loopback up, and sees to it that what it mounts goes with it. To be
/// called before there are other threads; the programs that it starts are in there too. Whether it could: only root may.
pub fn own_world() -> bool {
    // SAFETY: plain calls with numbers, and with a structure that lives through them. The descriptor is ours.
    unsafe {
        OUTSIDE.store(libc::open(c"/proc/self/ns/net".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC), Ordering::Relaxed);
        if libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) != 0 {
            return false;
        }
        let none = std::ptr::null();
        if libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, std::ptr::null()) != 0 {
            return false;
        }
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(*b"lo") {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
        let up = libc::ioctl(socket, libc::SIOCSIFFLAGS as _, &request);
        libc::close(socket);
        up == 0
    }
}

/// The programs that must be there.
const PROGRAMS: [&str; 6] = ["libvirtd", "virsh", "qemu-system-x86_64", "qemu-img", "dnsmasq", "busybox"];

/// File systems with little room: one for tests to fill up, one for a guest.
pub const SMALL: [(&str, &str); 2] = [("small", "size=4m"), ("tight", "size=8m")];

/// The bridge's address in the network `rouse`, where guests find the broker.
pub const BRIDGE: &str = "10.150.0.1";

/// The tests' libvirtd for clients that take it for one of another machine.
pub const ELSEWHERE: &str = "qemu+tcp://127.0.0.1/system";

/// The tests' libvirtd.
pub struct Lab {
    /// Where everything of it is, overlays included. In it are the file systems [`SMALL`].
    pub dir: PathBuf,
    /// What clients open.
    pub uri: String,
    process: Process,
}

static LAB: OnceLock<Lab> = OnceLock::new();

extern "C" fn end_lab() {
    if let Some(lab) = LAB.get() {
        lab.end();
    }
}

impl Lab {
    /// The one of this test run, with the network `rouse` for these workers.
    ///
    /// # Panics
    /// Where it cannot be had.
    pub fn get() -> &'static Self {
        LAB.get_or_init(|| {
            // SAFETY: the function is registered once and does not unwind into C: what it calls reports instead.
            assert_eq!(unsafe { libc::atexit(end_lab) }, 0);
            Self::start()
        })
    }

    fn start() -> Self {
        let path = "/usr/sbin:/sbin:/usr/bin:/bin";
        for program in PROGRAMS {
            let found = path.split(':').any(|dir| std::path::Path::new(dir).join(program).is_file());
            assert!(found, "{program} is missing: run `tests/setup test`");
        }
        let dir = scratch("libvirt");
        for (name, size) in SMALL {
            fs::create_dir(dir.join(name)).expect("a directory");
            run(Command::new("mount").args(["-t", "tmpfs", "-o", size, "tmpfs"]).arg(dir.join(name)));
        }
        fs::write(dir.join("lab"), include_str!("lab")).expect("the script");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash"]);
        command.arg(dir.join("lab")).arg(&dir).env("PATH", path);
        let process = Process::start(command, &dir, "lab");
        let uri = format!("qemu+unix:///system?socket={}", dir.join("sock/libvirt-sock").display());
        let lab = Self { dir, uri, process };
        lab.until_up();
        lab
    }

    /// Waits until libvirtd answers.
    ///
    /// # Panics
    /// Where it does not.
    pub fn until_up(&self) {
        let answers = || self.virsh_may_fail(&["version"]).is_some();
        let log = || fs::read_to_string(self.dir.join("lab.err")).unwrap_or_default();
        assert!(holds_within(DEADLINE, answers), "libvirtd does not answer: {}", log());
    }

    /// Runs virsh; what it says.
    ///
    /// # Panics
    /// Where it fails.
    #[track_caller]
    pub fn virsh(&self, arguments: &[&str]) -> String {
        run(Command::new("virsh").args(["-q", "-c", &self.uri]).args(arguments))
    }

    /// Runs virsh; what it says, where it succeeds.
    pub fn virsh_may_fail(&self, arguments: &[&str]) -> Option<String> {
        let output = Command::new("virsh").args(["-q", "-c", &self.uri]).args(arguments).output().expect("virsh runs");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Makes the network of this description, in place of one with its name.
    pub fn set_network(&self, name: &str, xml: &str) {
        if self.virsh_may_fail(&["net-uuid", name]).is_some() {
            self.virsh_may_fail(&["net-destroy", name]);
            self.virsh(&["net-undefine", name]);
        }
        let path = self.dir.join(format!("network-{name}.xml"));
        fs::write(&path, xml).expect("a file");
        self.virsh(&["net-define", &path.display().to_string()]);
        self.virsh(&["net-start", name]);
    }

    /// Has a network, whoever is on it: `rouse`, or `bare`, where nobody finds a broker.
    pub fn need_network(&self, name: &str) {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _held = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        if self.virsh_may_fail(&["net-uuid", name]).is_none() {
            let xml = include_str!("../../../contrib/libvirt/network.xml");
            let bare = |xml: &str| xml.replace("<name>rouse<", "<name>bare<").replace("10.150.", "10.151.");
            self.set_network(name, &if name == "rouse" { xml.to_owned() } else { bare(xml) });
        }
    }

    /// The names of the domains that run.
    pub fn running(&self) -> Vec<String> {
        self.virsh(&["list", "--name"]).split_whitespace().map(str::to_owned).collect()
    }

    /// The names of all domains.
    pub fn domains(&self) -> Vec<String> {
        self.virsh(&["list", "--all", "--name"]).split_whitespace().map(str::to_owned).collect()
    }

    /// The process ids of programs whose command line has both texts, as this side of the namespace sees them.
    pub fn pids(&self, program: &str, argument: &str) -> Vec<i32> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").expect("/proc").flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let is_it = line.split(' ').next().is_some_and(|first| first.ends_with(program));
            if is_it && line.contains(argument) {
                found.push(pid);
            }
        }
        found
    }

    /// Sends libvirtd a signal.
    ///
    /// # Panics
    /// Where it is not there.
    pub fn signal(&self, signal: i32) {
        let pids = self.pids("libvirtd", &self.dir.display().to_string());
        assert_eq!(pids.len(), 1, "one libvirtd");
        // SAFETY: only numbers are passed.
        assert_eq!(unsafe { libc::kill(pids[0], signal) }, 0);
    }

    /// Sends the QEMU of a domain a signal.
    ///
    /// # Panics
    /// Where it is not there.
    pub fn signal_guest(&self, name: &str, signal: i32) {
        let pids = self.pids("qemu-system-x86_64", &format!("guest={name},"));
        assert_eq!(pids.len(), 1, "one QEMU of {name}");
        // SAFETY: only numbers are passed.
        assert_eq!(unsafe { libc::kill(pids[0], signal) }, 0);
    }

    /// Ends it with everything that it runs.
    pub fn end(&self) {
        self.process.signal(libc::SIGKILL);
        let dir = self.dir.display().to_string();
        if !holds_within(DEADLINE, || self.pids("libvirtd", &dir).is_empty()) {
            eprintln!("libvirtd did not end");
        }
        for (name, _) in SMALL {
            Command::new("umount").arg(self.dir.join(name)).status().ok();
        }
        if std::env::var_os("ROUSE_E2E_KEEP").is_none()
            && let Err(error) = fs::remove_dir_all(&self.dir)
        {
            eprintln!("{} stays: {error}", self.dir.display());
        }
    }
}
