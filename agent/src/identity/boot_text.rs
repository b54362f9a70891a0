//! Boot data as text from one of the sources, and the identity that they contain.

use super::{Identity, IdentityError, Machine, firmware, host, trust};
use crate::config::{self, AgentConfig};
use crate::link::Target;
use crate::tls::Trust;
use rouse_shared::boot::{self, BootData};
use rouse_shared::limits::MAX_BOOT_DATA;
use std::path::Path;
use std::time::Duration;

/// Longest description of what is wrong with boot data, characters: a line or two of a log.
const MAX_WHY: usize = 300;

/// Boot data and their source.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct BootText {
    /// Where they were found, for people.
    pub(super) source: String,
    /// The TOML, or why it is not complete.
    pub(super) toml: Result<String, String>,
    /// Whether they are for a single process, whose host identity they give. For a whole machine its own identity is
    /// preferred, so that a copy of the boot data on another machine shows.
    pub(super) of_a_process: bool,
}

/// Leaves out the TOML, which holds the token.
impl std::fmt::Debug for BootText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BootText").field("source", &self.source).finish_non_exhaustive()
    }
}

impl BootText {
    /// The boot data in a file of their own.
    pub(super) fn in_file(path: &Path) -> Result<Self, IdentityError> {
        let unreadable = |error| IdentityError::Unreadable(path.to_owned(), error);
        let bytes = firmware::read_at_most(path, MAX_BOOT_DATA as u64).map_err(unreadable)?;
        if let Some(why) = config::exposed(path, &path.metadata().map_err(unreadable)?) {
            return Err(IdentityError::BadBootData(path.display().to_string(), why));
        }
        let toml = String::from_utf8(bytes).map_err(|_| "not valid UTF-8".to_owned());
        Ok(Self { source: path.display().to_string(), toml, of_a_process: true })
    }

    /// The boot data within user data; everything around them is ignored.
    pub(super) fn in_user_data(source: &str, user_data: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(user_data);
        let toml = match boot::find_block(&text) {
            Some(toml) => Ok(toml),
            None if boot::block_begins(&text) => Err("incomplete, or with a line that is not a comment".to_owned()),
            None => return None,
        };
        Some(Self { source: source.to_owned(), toml, of_a_process: false })
    }

    /// The identity that they give to an agent on `machine`.
    pub(super) fn identity(
        self,
        config: &AgentConfig,
        root: &Path,
        machine: Machine,
    ) -> Result<Identity, IdentityError> {
        // The description may quote boot data, which may be long.
        let bad = |why: String| IdentityError::BadBootData(self.source.clone(), why.chars().take(MAX_WHY).collect());
        let toml = self.toml.clone().map_err(bad)?;
        // Only the message: the whole error would quote the line, which may hold the token.
        let boot: BootData = toml::from_str(&toml).map_err(|error| bad(error.message().to_owned()))?;
        let trust = match boot.ca {
            Some(ca) => Trust::Authorities(Some(ca)),
            None => trust(config)?,
        };
        Target::parse(&boot.broker, trust.clone()).map_err(bad)?;
        let given = if self.of_a_process { boot.identity.clone() } else { None };
        let own = given.or(machine.host).or_else(|| host::uuid(root));
        let host = own.or(boot.identity).or_else(|| host::identity(root));
        Ok(Identity {
            host: host.unwrap_or_else(|| format!("name:{}", boot.name)),
            worker: boot.name,
            user: boot.host.0,
            proof: machine.proof,
            password: boot.token,
            broker: boot.broker,
            trust,
            power_off_after: boot.power_off_after.map(Duration::from_secs),
            is_ec2: machine.is_ec2,
        })
    }
}
