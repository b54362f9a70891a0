//! The complete launch spec of a domain. The ledger keeps it, and it is never changed.

use super::boot_file::BootFile;
use super::disk::NewDisk;
use super::domain::OwnerTag;
use rouse_shared::HostId;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The boot data of a host, and the file in which QEMU gets them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// The boot data.
    pub toml: String,
    /// The file.
    pub file: BootFile,
}

/// Leaves out the boot data, which contain the token.
impl std::fmt::Debug for Boot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Boot").field("file", &self.file).finish_non_exhaustive()
    }
}

/// A complete start.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Spec {
    /// The connection, such as `qemu:///system`.
    pub connection: String,
    /// UUID of the domain.
    pub uuid: String,
    /// The domain. It names the file with the boot data.
    pub xml: String,
    /// The boot data. Absent if an earlier version has written the launch spec: then they are in the description.
    #[serde(default)]
    pub boot: Option<Boot>,
    /// Its memory, megabytes; 0 if that is not known.
    pub memory_mb: u64,
    /// The disk that is made for it.
    pub disk: Option<NewDisk>,
    /// The file that keeps what it prints.
    pub console: Option<PathBuf>,
}

impl Spec {
    /// As the ledger keeps it.
    pub fn to_text(&self) -> String {
        // Text and numbers only: nothing in it cannot be written.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The owner tag on what is made by it.
    pub fn tag(&self, owner: &str, host: &HostId) -> OwnerTag {
        let (master, id) = owner.rsplit_once('/').unwrap_or((owner, ""));
        OwnerTag {
            master: master.to_owned(),
            id: id.to_owned(),
            host: host.0.clone(),
            uuid: self.uuid.clone(),
            has_disk: self.disk.is_some(),
        }
    }

    /// From the ledger.
    ///
    /// # Errors
    /// If it is not a launch spec of this provider.
    pub fn parse(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map_err(|error| format!("its order cannot be read: {error}"))
    }
}
