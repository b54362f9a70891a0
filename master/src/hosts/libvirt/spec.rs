//! The complete launch spec of a domain. The ledger keeps it, and it is never changed.

use super::disk::NewDisk;
use super::domain::OwnerTag;
use rouse_shared::HostId;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A complete start.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Spec {
    /// The connection, such as `qemu:///system`.
    pub connection: String,
    /// UUID of the domain.
    pub uuid: String,
    /// The domain, boot data and all.
    pub xml: String,
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
            disk: self.disk.as_ref().map(|fresh| fresh.path.clone()),
            base: self.disk.as_ref().map(|fresh| (fresh.base.clone(), fresh.change.clone())),
            console: self.console.clone(),
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
