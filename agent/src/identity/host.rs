//! The host identity: an identity that survives reboots and that no other machine has.

use std::path::Path;

/// UUIDs of boards that have none of their own, in lower case.
const NO_UUIDS: [&str; 4] = [
    "00000000-0000-0000-0000-000000000000",
    "ffffffff-ffff-ffff-ffff-ffffffffffff",
    "03000200-0400-0500-0006-000700080009",
    "not settable",
];

/// `uuid:…` from the firmware, otherwise `machine:…` from the system's machine id; `root` is `/` except in tests.
pub(super) fn identity(root: &Path) -> Option<String> {
    // An agent that is not root uses the machine id.
    uuid(root).or_else(|| read(&root.join("etc/machine-id")).map(|id| format!("machine:{id}")))
}

/// `uuid:…` from the firmware, which only root may read.
pub(super) fn uuid(root: &Path) -> Option<String> {
    let uuid = read(&root.join("sys/class/dmi/id/product_uuid")).filter(|uuid| !NO_UUIDS.contains(&uuid.as_str()));
    uuid.map(|uuid| format!("uuid:{uuid}"))
}

fn read(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let text = text.trim().to_ascii_lowercase();
    // systemd writes this word into images whose machines generate an id at their first boot.
    (!text.is_empty() && text != "uninitialized").then_some(text)
}
