//! The host name as identity: waits until the machine has one that is its own.

use crate::core::Level;
use crate::log;
use rouse_shared::WorkerName;
use std::path::Path;
use std::time::Duration;

/// Names that many images bear: two machines of them would attach as one worker.
const WELL_KNOWN: [&str; 10] = [
    "localhost",
    "localhost.localdomain",
    "(none)",
    "debian",
    "ubuntu",
    "raspberrypi",
    "fedora",
    "alpine",
    "arch",
    "nixos",
];
/// Where systemd-networkd keeps what DHCP said; it often may not set the host name itself.
const LEASES: &str = "/run/systemd/netif/leases";
/// Between looks.
const POLL: Duration = Duration::from_secs(1);

/// The first usable name; waits without limit and says once what it waits for.
pub(super) async fn wait(refused: &[String]) -> WorkerName {
    let mut told = None;
    loop {
        let name = kernel_name();
        let why = match accept(&name, refused) {
            Ok(worker) => return worker,
            Err(why) => why,
        };
        if let Some(worker) = leased_name(Path::new(LEASES), refused) {
            return worker;
        }
        if told.as_ref() != Some(&why) {
            log::line(Level::Info, &format!("waiting for a host name that is a worker's: {why}"));
            told = Some(why);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The worker of a host name: its first label, unless it is one that images bear.
pub(super) fn accept(name: &str, refused: &[String]) -> Result<WorkerName, String> {
    let name = name.trim().to_ascii_lowercase();
    let label = name.split('.').next().unwrap_or_default();
    let is_default = |default: &str| default.eq_ignore_ascii_case(&name) || default.eq_ignore_ascii_case(label);
    if WELL_KNOWN.iter().any(|d| is_default(d)) || refused.iter().any(|d| is_default(d)) {
        return Err(format!("{name:?} is an image's default name"));
    }
    label.parse().map_err(|error: rouse_shared::ids::InvalidName| error.to_string())
}

/// The name in the first lease that has a usable one.
pub(super) fn leased_name(leases: &Path, refused: &[String]) -> Option<WorkerName> {
    let mut files: Vec<_> = std::fs::read_dir(leases).ok()?.filter_map(|e| e.ok().map(|e| e.path())).collect();
    files.sort();
    files.iter().find_map(|file| {
        let text = std::fs::read_to_string(file).ok()?;
        text.lines().filter_map(|line| line.strip_prefix("HOSTNAME=")).find_map(|name| accept(name, refused).ok())
    })
}

/// The kernel's idea of the host name; empty where it has none.
pub fn kernel_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map(|name| name.trim().to_owned()).unwrap_or_default()
}
