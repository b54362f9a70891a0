//! Small guests: Debian's cloud kernel, busybox, and the agent that was just built. Each image is made once for its
//! content and kept between runs.

use crate::harness::program;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// What a small guest needs, in the order in which it is loaded.
const MODULES: [&str; 13] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
    "virtio_blk",
    // Without it the kernel takes a second to have random numbers, which the agent waits for.
    "virtio-rng",
    "virtio_console",
    "button",
    "evdev",
];

/// What the agent loads by itself, as in any image without udev: it is on the disk.
const LATER: &str = "qemu_fw_cfg";

/// What the kernel leaves out or does not look for, because that takes long on an emulated processor; and its messages.
const KERNEL: &str = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr edd=off audit=0 no_timer_check \
    cryptomgr.notests";

/// What is in an image.
#[derive(Clone, Debug)]
pub struct Image {
    /// What the guest does: `agent`, or one of the faults `no-network` and `no-agent`, or `true`, which ends at once.
    pub kind: &'static str,
    /// The agent's configuration.
    pub agent: String,
    /// Further arguments for its kernel.
    pub kernel: &'static str,
    /// The format: `qcow2` or `raw`.
    pub format: &'static str,
    /// Whom its disk was used for before, as an agent has marked it; empty: nobody.
    pub used_for: &'static str,
}

impl Image {
    /// A guest whose agent takes everything from its boot data.
    pub fn agent() -> Self {
        let agent = "power_off = \"latent\"\npower_off_after = \"5m\"\npower_off_command = [\"poweroff\", \"-f\"]\n\
                     work_dir = \"/var/lib/rouse/work\"\n";
        Self { kind: "agent", agent: agent.to_owned(), kernel: "", format: "qcow2", used_for: "" }
    }

    /// One that does something else.
    pub fn of_kind(kind: &'static str) -> Self {
        Self { kind, ..Self::agent() }
    }
}

/// Where things are kept between runs.
///
/// # Panics
/// If there is no such place.
pub fn cache() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").expect("a home directory")).join(".cache");
    std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("rouse")
}

/// The repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests lie in the repository")
}

/// Runs a program that must succeed; what it says.
///
/// # Panics
/// If it does not.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} ended with {}: {said}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The image, made if it is not kept from before. Never to be written to.
///
/// # Panics
/// If it cannot be made.
pub fn image(image: &Image) -> PathBuf {
    image_with(image, &program("rouse-agent"))
}

/// The same, with this program for its agent.
///
/// # Panics
/// If it cannot be made.
pub fn image_with(image: &Image, agent_program: &Path) -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _held = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let kernel = cache().join("kernel");
    let version = fs::read_to_string(kernel.join("version")).expect("a kernel: run `tests/setup test`");
    let agent = fs::read(agent_program).expect("the agent");
    let mut hash = Sha256::new();
    for part in [
        format!("{image:?}, {MODULES:?}, {LATER}, {KERNEL}, unsigned, arguments").as_bytes(),
        version.as_bytes(),
        &agent,
        include_bytes!("guest/init"),
        include_bytes!("guest/run"),
        include_bytes!("guest/udhcpc.script"),
        &fs::read(repository().join("images/disk")).expect("images/disk"),
    ] {
        hash.update(Sha256::digest(part));
    }
    let hash: [u8; 32] = hash.finalize().into();
    let name: String = hash[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    let kept = cache().join("guests").join(format!("{name}.{}", image.format));
    if !kept.is_file() {
        let work = cache().join("guests").join(format!("making-{}-{name}", std::process::id()));
        fs::create_dir_all(&work).expect("a directory to make it in");
        forget_old(&cache().join("guests"));
        make(image, agent_program, &kernel, &version, &work);
        fs::rename(work.join("root/boot/initrd"), initrd_of(&kept)).expect("the initrd can be put into its place");
        fs::write(kept.with_extension("arguments"), format!("{KERNEL} {}", image.kernel)).expect("a file");
        fs::rename(work.join("out"), &kept).expect("the image can be put into its place");
        fs::remove_dir_all(&work).expect("what it was made of can be removed");
    }
    kept
}

fn initrd_of(image: &Path) -> PathBuf {
    image.with_extension("initrd")
}

/// Removes images that nothing has asked for in a week: each build of the agent makes new ones.
fn forget_old(dir: &Path) {
    let week = std::time::Duration::from_secs(7 * 86_400);
    for entry in fs::read_dir(dir).expect("the directory").flatten() {
        let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|m| m.elapsed().ok());
        if age.is_some_and(|age| age > week) {
            fs::remove_file(entry.path()).or_else(|_| fs::remove_dir_all(entry.path())).ok();
        }
    }
}

fn make(image: &Image, agent_program: &Path, kernel: &Path, version: &str, work: &Path) {
    let (root, early) = (work.join("root"), work.join("early"));
    for dir in [
        "bin",
        "sbin",
        "boot",
        "dev",
        "etc/acpi/PWRF",
        "etc/rouse",
        "proc",
        "run",
        "sys",
        "tmp",
        "usr/bin",
        "var/lib/rouse",
    ] {
        fs::create_dir_all(root.join(dir)).expect("a directory");
    }
    for dir in ["bin", "dev", "modules", "proc", "root", "sys"] {
        fs::create_dir_all(early.join(dir)).expect("a directory");
    }
    let write = |path: PathBuf, text: &str, mode: u32| {
        fs::write(&path, text).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("its mode");
    };
    let busybox = Path::new("/bin/busybox");
    for dir in [&root, &early] {
        fs::copy(busybox, dir.join("bin/busybox")).expect("busybox: run `tests/setup test`");
    }
    for applet in run(Command::new(busybox).arg("--list")).split_whitespace().filter(|a| *a != "busybox") {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).expect("a link");
    }
    for module in MODULES {
        let file = format!("{module}.ko");
        let signed = fs::read(kernel.join("modules").join(&file)).expect("a module");
        fs::write(early.join("modules").join(&file), unsigned(&signed)).expect("a module");
    }
    // The package linux-image-6.1.0-9-amd64_6.1.27-1_amd64.deb has the kernel 6.1.0-9-amd64.
    let release = version.trim().strip_prefix("linux-image-").and_then(|name| name.split('_').next());
    let modules = root.join("lib/modules").join(release.expect("the kernel's package"));
    fs::create_dir_all(&modules).expect("a directory");
    fs::copy(kernel.join("modules").join(format!("{LATER}.ko")), modules.join(format!("{LATER}.ko")))
        .expect("a module: run `tests/setup test`");
    write(modules.join("modules.dep"), &format!("{LATER}.ko:\n"), 0o644);
    write(early.join("modules/order"), &MODULES.join("\n"), 0o644);
    write(early.join("init"), include_str!("guest/init"), 0o755);
    write(root.join("sbin/rouse-guest"), include_str!("guest/run"), 0o755);
    write(root.join("etc/udhcpc.script"), include_str!("guest/udhcpc.script"), 0o755);
    let off = "#!/bin/sh\nsync\npoweroff -f\n";
    write(root.join("etc/acpi/PWRF/00000080"), off, 0o755);
    write(root.join("etc/guest-kind"), image.kind, 0o644);
    write(root.join("etc/rouse/agent.toml"), &image.agent, 0o600);
    write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n", 0o644);
    write(root.join("etc/group"), "root:x:0:\n", 0o644);
    if !image.used_for.is_empty() {
        fs::create_dir(root.join("var/lib/rouse/work")).expect("a directory");
        write(root.join("var/lib/rouse/work/disk"), image.used_for, 0o600);
    }
    put_agent(agent_program, &root);
    fs::copy(kernel.join("vmlinuz"), root.join("boot/vmlinuz")).expect("a kernel");
    let initrd = root.join("boot/initrd");
    let pack = format!(
        "cd '{}' && find . | LC_ALL=C sort | busybox cpio -o -H newc 2>/dev/null | gzip -n1 >'{}'",
        early.display(),
        initrd.display()
    );
    run(Command::new("sh").args(["-c", &pack]));
    let out = work.join("out.qcow2");
    let mut disk = Command::new(repository().join("images/disk"));
    disk.arg(&root).arg(&out).args(["128M", "/boot/vmlinuz", "/boot/initrd"]);
    run(disk.args(KERNEL.split_whitespace()).args(image.kernel.split_whitespace()));
    let mut convert = Command::new("qemu-img");
    run(convert.args(["convert", "-q", "-O", image.format]).arg(&out).arg(work.join("out")));
    fs::remove_file(out).expect("the first form can be removed");
}

/// A module without the signature at its end, which an emulated kernel would take long to verify, as
/// Documentation/admin-guide/module-signing.rst has it: the signature, twelve bytes of which the last four are its
/// length, and this text.
fn unsigned(module: &[u8]) -> &[u8] {
    let length = || {
        let rest = module.strip_suffix(b"~Module signature appended~\n")?;
        let (_, length) = rest.split_last_chunk::<4>()?;
        rest.len().checked_sub(12 + usize::try_from(u32::from_be_bytes(*length)).ok()?)
    };
    &module[..length().unwrap_or(module.len())]
}

/// The agent and the libraries that it is linked to, where it looks for them.
fn put_agent(from: &Path, root: &Path) {
    let to = root.join("usr/bin/rouse-agent");
    fs::copy(from, &to).expect("the program");
    run(Command::new("strip").arg(&to));
    // It fails if there is nothing to list: a program that is linked statically.
    let libraries = Command::new("ldd").arg(from).output().expect("ldd").stdout;
    let libraries = String::from_utf8_lossy(&libraries);
    let paths: BTreeSet<&str> = libraries.split_whitespace().filter(|word| word.starts_with('/')).collect();
    for path in paths {
        let to = root.join(&path[1..]);
        fs::create_dir_all(to.parent().expect("a library has a directory")).expect("a directory");
        fs::copy(path, to).expect("a library");
    }
}
