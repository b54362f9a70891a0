//! A libvirtd for the tests with real QEMU guests, separate from that of the machine. It has its own network, process
//! and mount namespaces, so nothing of it outlives the test run and nothing else is touched.

mod image;

pub use image::{Image, cache, image, image_with, repository, run};

use crate::harness::{DEADLINE, Process, holds_within, is_keeper, kept, scratch, text};
use serde_json::{Value, json};
use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

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

/// Moves this thread, and with it those that it starts later, into the network and the mounts of another process. Tokio's
/// threads are to be started after that.
///
/// # Panics
/// If it cannot: the process has ended, or this one is not root's.
pub fn enter_world_of(pid: i64) {
    let here = std::env::current_dir().expect("a current directory");
    if OUTSIDE.load(Ordering::Relaxed) < 0 {
        // SAFETY: the string ends with a zero; the descriptor is ours, and open as long as this process.
        let outside = unsafe { libc::open(c"/proc/thread-self/ns/net".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
        OUTSIDE.store(outside, Ordering::Relaxed);
    }
    // SAFETY: only a number is passed. A thread that shares its directories with others may not change its mounts.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_FS) }, 0, "{}", std::io::Error::last_os_error());
    for (name, kind) in [("net", libc::CLONE_NEWNET), ("mnt", libc::CLONE_NEWNS)] {
        let space = fs::File::open(format!("/proc/{pid}/ns/{name}")).expect("the keeper runs");
        // SAFETY: the descriptor is open.
        let entered = unsafe { libc::setns(space.as_raw_fd(), kind) };
        assert_eq!(entered, 0, "the keeper's {name}: {}", std::io::Error::last_os_error());
    }
    std::env::set_current_dir(here).expect("the directory is there as well");
}

/// The programs that must be there.
const PROGRAMS: [&str; 6] = ["libvirtd", "virsh", "qemu-system-x86_64", "qemu-img", "dnsmasq", "busybox"];

/// File systems with little room: one for tests to fill up, one for a guest.
pub const SMALL: [(&str, &str); 2] = [("small", "size=4m"), ("tight", "size=8m")];

/// The bridge's address in the network `rouse`, where guests find the broker.
pub const BRIDGE: &str = "10.150.0.1";

/// The tests' libvirtd for clients that take it for one of another machine.
pub const ELSEWHERE: &str = "qemu+tcp://127.0.0.1/system";

/// How the small guests boot.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Boot {
    /// With the boot loader on their disks, as the machines of users do.
    Loader,
    /// Without it: on an emulated processor, it takes longer than all the rest. See `virt/qemu`.
    Direct,
}

/// The tests' libvirtd.
pub struct VirtHost {
    /// Where everything of it is, overlays included. In it are the file systems [`SMALL`].
    pub dir: PathBuf,
    /// What clients open.
    pub uri: String,
    /// Absent if it is the keeper's.
    process: Option<Process>,
}

impl VirtHost {
    /// The one of this test run, which the keeper starts.
    ///
    /// # Panics
    /// If it cannot be had.
    pub fn get() -> &'static Self {
        static VIRT_HOST: OnceLock<VirtHost> = OnceLock::new();
        VIRT_HOST.get_or_init(|| match is_keeper() {
            true => Self::start(Boot::Direct),
            false => {
                let description = &kept()["virt_host"];
                Self { dir: text(&description["dir"]).into(), uri: text(&description["uri"]), process: None }
            }
        })
    }

    /// What other processes have to know of it.
    pub fn description(&self) -> Value {
        json!({ "dir": self.dir, "uri": self.uri })
    }

    /// Starts one, in a network of this process's own.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn start(boot: Boot) -> Self {
        let mut path = "/usr/sbin:/sbin:/usr/bin:/bin".to_owned();
        for program in PROGRAMS {
            let found = path.split(':').any(|dir| std::path::Path::new(dir).join(program).is_file());
            assert!(found, "{program} is missing: run `tests/setup test`");
        }
        let dir = scratch("libvirt");
        for (name, size) in SMALL {
            fs::create_dir(dir.join(name)).expect("a directory");
            run(Command::new("mount").args(["-t", "tmpfs", "-o", size, "tmpfs"]).arg(dir.join(name)));
        }
        fs::write(dir.join("run-libvirtd"), include_str!("libvirtd")).expect("the script");
        if boot == Boot::Direct {
            let programs = dir.join("programs");
            let qemu = programs.join("qemu-system-x86_64");
            fs::create_dir(&programs).expect("a directory");
            let text = include_str!("qemu").replace("$ROUSE_CACHE", &cache().display().to_string());
            fs::write(&qemu, text).expect("the script");
            fs::set_permissions(&qemu, fs::Permissions::from_mode(0o755)).expect("its mode");
            path = format!("{}:{path}", programs.display());
        }
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash"]);
        command.arg(dir.join("run-libvirtd")).arg(&dir).env("PATH", path);
        let process = Process::start(command, &dir, "run-libvirtd");
        let uri = format!("qemu+unix:///system?socket={}", dir.join("sock/libvirt-sock").display());
        let virt_host = Self { dir, uri, process: Some(process) };
        virt_host.until_up();
        virt_host
    }

    /// Waits until libvirtd answers.
    ///
    /// # Panics
    /// If it does not.
    pub fn until_up(&self) {
        let answers = || self.virsh_may_fail(&["version"]).is_some();
        let log = || fs::read_to_string(self.dir.join("run-libvirtd.err")).unwrap_or_default();
        assert!(holds_within(DEADLINE, answers), "libvirtd does not answer: {}", log());
    }

    /// Runs virsh; what it says.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn virsh(&self, arguments: &[&str]) -> String {
        run(Command::new("virsh").args(["-q", "-c", &self.uri]).args(arguments))
    }

    /// Runs virsh; what it says, if it succeeds.
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
        let one_at_a_time = fs::File::create(self.dir.join("networks")).expect("a lock");
        one_at_a_time.lock().expect("the lock can be waited for");
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
    /// If it is not there.
    pub fn signal(&self, signal: i32) {
        let pids = self.pids("libvirtd", &self.dir.display().to_string());
        assert_eq!(pids.len(), 1, "one libvirtd");
        // SAFETY: only numbers are passed.
        assert_eq!(unsafe { libc::kill(pids[0], signal) }, 0);
    }

    /// Sends the QEMU of a domain a signal.
    ///
    /// # Panics
    /// If it is not there.
    pub fn signal_guest(&self, name: &str, signal: i32) {
        // QEMU is in the mount namespace of its libvirtd. Another run of these tests has domains of the same names.
        let namespace = |pid: &i32| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        let own = self.pids("libvirtd", &self.dir.display().to_string()).first().and_then(namespace);
        let mut pids = self.pids("qemu-system-x86_64", &format!("guest={name},"));
        pids.retain(|pid| own.is_none() || namespace(pid) == own);
        assert_eq!(pids.len(), 1, "one QEMU of {name}");
        // SAFETY: only numbers are passed.
        assert_eq!(unsafe { libc::kill(pids[0], signal) }, 0);
    }

    /// Ends it with everything that it runs, if this process has started it.
    pub fn end(&self) {
        let Some(process) = &self.process else { return };
        process.signal(libc::SIGKILL);
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

impl Drop for VirtHost {
    fn drop(&mut self) {
        self.end();
    }
}
