//! Boot data: what the master passes to a host at its start in addition to its image, and the forms in which they reach
//! the host.
//!
//! Boot data are TOML. A file or QEMU's fw_cfg device contains them as they are. In user data they are a block of
//! comment lines ([`comment_block`]).

use crate::ids::{HostId, WorkerName};
use serde::{Deserialize, Serialize};

/// What the master gives a latent host: its identity, the broker's address, and a token that is valid for one login.
///
/// Written as TOML. Unknown keys are ignored, because an old image may meet a newer master.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootData {
    /// The worker that the host is for.
    pub name: WorkerName,
    /// The id that the master has given the host.
    pub host: HostId,
    /// Where the agent reaches the broker: `amqp://` or `amqps://`, without user and password.
    pub broker: String,
    /// PEM certificates of the authority that signed the broker's certificate, unless it is a public one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// The one-time password of this host.
    pub token: String,
    /// What the agent reports as its host identity if the machine has none of its own (a local process).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// Seconds after which a host that never attached powers itself off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_off_after: Option<u64>,
}

/// Leaves out the token, because boot data end up in logs.
impl std::fmt::Debug for BootData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BootData")
            .field("name", &self.name)
            .field("host", &self.host)
            .field("broker", &self.broker)
            .finish_non_exhaustive()
    }
}

/// The first line of a block of boot data within a machine's user data.
const BEGIN: &str = "# -----BEGIN ROUSE BOOT DATA-----";
/// The last line of it.
const END: &str = "# -----END ROUSE BOOT DATA-----";

/// The boot data `toml` as a block of comment lines, which every other reader of user data ignores.
pub fn comment_block(toml: &str) -> String {
    let mut block = format!("{BEGIN}\n");
    for line in toml.lines() {
        block.push_str("# ");
        block.push_str(line);
        block.push('\n');
    }
    block.push_str(END);
    block.push('\n');
    block
}

/// Whether a [`comment_block`] begins in the text, complete or not.
pub fn block_begins(text: &str) -> bool {
    text.lines().any(|line| line.trim_end_matches('\r') == BEGIN)
}

/// The TOML in the first complete [`comment_block`] of a text; everything around it is ignored.
pub fn find_block(text: &str) -> Option<String> {
    let mut lines = text.lines().map(|line| line.trim_end_matches('\r'));
    lines.find(|line| *line == BEGIN)?;
    let mut toml = String::new();
    for line in lines {
        if line == END {
            return Some(toml);
        }
        toml.push_str(line.strip_prefix("# ").or_else(|| line.strip_prefix('#'))?);
        toml.push('\n');
    }
    None
}

/// Name of the entry of QEMU's fw_cfg device that holds boot data.
pub const FW_CFG: &str = "opt/rouse/boot";

#[cfg(test)]
mod tests;
