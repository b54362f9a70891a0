//! The host name as identity. The agent waits until the machine has a name of its own.

use super::leases;
use crate::core::Level;
use crate::diagnostics::log;
use rouse_shared::WorkerName;
use std::path::Path;
use std::time::Duration;

/// Default names of many images: two machines of one image would attach as the same worker.
const WELL_KNOWN: [&str; 12] = [
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
    "buildroot",
    "archlinux",
];
/// Prefixes of an address or an instance id in the default names of clouds.
const OF_CLOUDS: [&str; 3] = ["ip-", "host-", "i-"];
/// Time between observations at first, and later.
const LOOK: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// Number of observations with the shorter interval: a minute.
const FIRST_LOOKS: u32 = 600;
/// Number of observations for which a latent host that has only the name from its image waits for another: about ten
/// seconds, longer than DHCP takes on a working network.
const WAIT_FOR_DHCP: u32 = 100;

/// The names at one moment.
#[derive(Clone, Default, Debug)]
pub(super) struct Observation {
    /// The kernel's host name.
    pub(super) kernel: String,
    /// The content of /etc/hostname.
    pub(super) written: String,
    /// The names in current DHCP leases.
    pub(super) leased: Vec<String>,
}

/// Decides from successive observations when the name is final.
#[derive(Debug)]
pub(super) struct Debouncer<'a> {
    refused: &'a [String],
    latent: bool,
    looks: u32,
    before: Option<WorkerName>,
}

impl<'a> Debouncer<'a> {
    pub(super) fn new(refused: &'a [String], latent: bool) -> Self {
        Self { refused, latent, looks: 0, before: None }
    }

    /// The worker, once its name is final; until then the reason to wait, for people.
    pub(super) fn look(&mut self, observation: &Observation) -> Result<WorkerName, String> {
        self.looks = self.looks.saturating_add(1);
        let kernel = accept(&observation.kernel, self.refused);
        let leased = observation.leased.iter().find_map(|name| accept(name, self.refused).ok());
        let before = std::mem::replace(&mut self.before, kernel.as_ref().ok().cloned());
        let worker = match (kernel, leased) {
            // DHCP names latent hosts. A standing host has the name that a person has given it.
            (Ok(_), Some(leased)) if self.latent => return Ok(leased),
            (Err(_), Some(leased)) => return Ok(leased),
            (Err(why), None) => return Err(why),
            (Ok(worker), Some(_) | None) => worker,
        };
        let written = accept(&observation.written, self.refused).is_ok_and(|written| written == worker);
        match (written, self.latent) {
            (true, false) => Ok(worker),
            // It may be the name from the image, before the one from DHCP.
            (true, true) if self.looks < WAIT_FOR_DHCP => {
                Err(format!("{worker} is the name in /etc/hostname, and DHCP may still provide another"))
            }
            (true, true) => Ok(worker),
            // Set since the machine booted: final if two observations agree.
            (false, _) if before.as_ref() == Some(&worker) => Ok(worker),
            (false, _) => Err(format!("{worker} has just been set")),
        }
    }
}

/// Waits without limit for the final name, and logs each reason to wait once.
pub(super) async fn wait(root: &Path, refused: &[String], latent: bool) -> WorkerName {
    let mut debouncer = Debouncer::new(refused, latent);
    let mut logged = None;
    loop {
        let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default();
        let observation = Observation {
            kernel: read("proc/sys/kernel/hostname"),
            // The first line that is not a comment.
            written: read("etc/hostname").lines().find(|line| !line.starts_with('#')).unwrap_or_default().to_owned(),
            leased: leases::names(root, &leases::addresses()),
        };
        let why = match debouncer.look(&observation) {
            Ok(worker) => return worker,
            Err(why) => why,
        };
        // A reason that is gone at the second observation is not worth a line.
        if debouncer.looks > 1 && logged.as_ref() != Some(&why) {
            log(Level::Info, &format!("waiting for a host name that can be the name of a worker: {why}"));
            logged = Some(why);
        }
        tokio::time::sleep(if debouncer.looks < FIRST_LOOKS { LOOK.0 } else { LOOK.1 }).await;
    }
}

/// The worker of a host name: its first label, unless that is a default name.
pub(super) fn accept(name: &str, refused: &[String]) -> Result<WorkerName, String> {
    let name = name.trim().to_ascii_lowercase();
    let label = name.split('.').next().unwrap_or_default();
    let is_default = |default: &str| default.eq_ignore_ascii_case(&name) || default.eq_ignore_ascii_case(label);
    if WELL_KNOWN.iter().any(|d| is_default(d)) || refused.iter().any(|d| is_default(d)) {
        return Err(format!("{name:?} is an image's default name"));
    }
    if is_of_a_cloud(label) {
        return Err(format!("{name:?} is a cloud's default name"));
    }
    label.parse().map_err(|error: rouse_shared::ids::WorkerNameError| error.to_string())
}

/// `ip-192-0-2-7`, `host-192-0-2-7`, `i-0123456789abcdef0`.
fn is_of_a_cloud(label: &str) -> bool {
    OF_CLOUDS.iter().filter_map(|prefix| label.strip_prefix(prefix)).any(|rest| {
        let address = rest.split('-').count() == 4 && rest.split('-').all(|part| part.parse::<u8>().is_ok());
        let id = (rest.len() == 8 || rest.len() == 17) && rest.bytes().all(|b| b.is_ascii_hexdigit());
        address || id
    })
}

/// The kernel's host name; empty if it cannot be read.
pub fn kernel_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map(|name| name.trim().to_owned()).unwrap_or_default()
}
