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

/// The first line of a block of boot data within a machine's user data.
const BEGIN: &str = "# -----BEGIN ROUSE BOOT DATA-----";
/// The last line of it.
const END: &str = "# -----END ROUSE BOOT DATA-----";

/// Boot data (their TOML) as a block of comment lines, so that nothing else that reads the user data takes it for its own.
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

/// The TOML in the first whole [`comment_block`] of a text, whatever stands around it.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_found_among_other_things() {
        let toml = "name = \"w7\"\nca = \"\"\"\nPEM\n\n# no comment\n\"\"\"\n";
        let block = comment_block(toml);
        assert!(block.lines().all(|line| line.starts_with('#')), "{block}");
        for text in [block.clone(), format!("#cloud-config\r\n{}{{}}\n", block.replace('\n', "\r\n"))] {
            assert_eq!(find_block(&text).as_deref(), Some(toml));
        }
        assert_eq!(find_block(&format!("x\n{block}y\n{block}")).as_deref(), Some(toml), "the first one");
    }

    #[test]
    fn half_a_block_is_none() {
        let block = comment_block("name = \"w7\"\n");
        let cut = &block[..block.len() - 5];
        for text in ["", "#!/bin/sh\n", cut, &block.replace("# name", "name"), &block.replace("# -----B", "-----B")] {
            assert_eq!(find_block(text), None, "{text:?}");
        }
    }
}
