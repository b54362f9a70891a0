//! Boot data: what a host is told at its birth, beside what its image knows.

use crate::ids::{HostId, WorkerName};
use serde::{Deserialize, Serialize};

/// What the master gives to a latent host: who it is, whom to call, and the token that lets it in once.
///
/// Written as TOML. Unknown keys are ignored, since an old image may meet a newer master.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootData {
    /// The worker that the host is for.
    pub name: WorkerName,
    /// The host, as its master calls it.
    pub host: HostId,
    /// Where the agent reaches the broker: `amqp://` or `amqps://`, without user and password.
    pub broker: String,
    /// PEM certificates that the broker's is signed by, where it is not a public authority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// The one-time password of this host.
    pub token: String,
    /// What the agent gives as its host identity, where the machine has none of its own (a local process).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// Seconds after which a host that never attached powers itself off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_off_after: Option<u64>,
}

/// Without the token: boot data end up in logs.
impl std::fmt::Debug for BootData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BootData")
            .field("name", &self.name)
            .field("host", &self.host)
            .field("broker", &self.broker)
            .finish_non_exhaustive()
    }
}
