//! Boot data: what the master passes to a host at its start in addition to its image, and the forms in which they reach
//! the host.
//!
//! Boot data are TOML. A file or QEMU's fw_cfg device contains them as they are. In user data they are a block of
//! comment lines ([`comment_block`]). In the tables of the firmware they are base64 strings ([`oem_strings`]).

use crate::ids::{HostId, WorkerName};
use crate::limits::MAX_BOOT_DATA;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use thiserror::Error;

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

/// Prefix of the firmware strings that hold boot data.
const OEM_PREFIX: &str = "rouse.boot:";
/// Base64 digits in one string: some firmware copies strings through buffers, none of which is smaller.
const OEM_DIGITS: usize = 1_000;
/// Number of strings that one structure of a firmware table can hold.
const OEM_STRINGS: usize = 255;

/// Why firmware strings do not hold complete boot data.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum BootDataError {
    /// A firmware string is neither complete nor a numbered piece.
    #[error("a firmware string that begins with {prefix:?} is neither complete nor numbered", prefix = OEM_PREFIX)]
    BadString,
    /// Pieces are missing or contradict each other: how many were found, of how many.
    #[error("boot data are in {1} pieces, of which {0} were found to fit together")]
    Pieces(usize, usize),
    /// Not base64, or not text.
    #[error("boot data are not base64 text")]
    BadBase64,
    /// Longer than [`MAX_BOOT_DATA`].
    #[error("boot data are longer than {limit} bytes", limit = MAX_BOOT_DATA)]
    TooLong,
}

/// The boot data `toml` as strings for a firmware table (SMBIOS type 11): at most 255 if they are no longer than
/// [`MAX_BOOT_DATA`]. A short text is one string. The pieces of a longer one are numbered, so that they may appear in
/// any order and among other strings.
pub fn oem_strings(toml: &str) -> Vec<String> {
    let digits = BASE64.encode(toml);
    if digits.len() <= OEM_DIGITS {
        return vec![format!("{OEM_PREFIX}{digits}")];
    }
    let of = digits.len().div_ceil(OEM_DIGITS);
    let pieces = (0..of).map(|n| &digits[n * OEM_DIGITS..digits.len().min((n + 1) * OEM_DIGITS)]);
    pieces.enumerate().map(|(n, piece)| format!("{OEM_PREFIX}{}/{of}:{piece}", n + 1)).collect()
}

/// The TOML of the boot data in firmware strings. Strings without the prefix are ignored; `None` if there are no
/// others.
///
/// # Errors
/// If the strings with the prefix are not complete boot data.
pub fn from_oem_strings<'a>(strings: impl IntoIterator<Item = &'a str>) -> Result<Option<String>, BootDataError> {
    let mut pieces: Vec<Option<&str>> = Vec::new();
    for text in strings.into_iter().filter_map(|text| text.strip_prefix(OEM_PREFIX)) {
        let (number, of, piece) = match text.split_once(':') {
            None => (1, 1, text),
            Some((place, piece)) => {
                let (number, of) = place.split_once('/').ok_or(BootDataError::BadString)?;
                let count = |text: &str| text.parse::<usize>().map_err(|_| BootDataError::BadString);
                (count(number)?, count(of)?, piece)
            }
        };
        if of == 0 || of > OEM_STRINGS || number == 0 || number > of {
            return Err(BootDataError::BadString);
        }
        if pieces.is_empty() {
            pieces.resize(of, None);
        }
        let found = pieces.iter().flatten().count();
        if pieces.len() != of || pieces[number - 1].is_some_and(|before| before != piece) {
            return Err(BootDataError::Pieces(found, of));
        }
        pieces[number - 1] = Some(piece);
    }
    if pieces.is_empty() {
        return Ok(None);
    }
    let found = pieces.iter().flatten().count();
    if found < pieces.len() {
        return Err(BootDataError::Pieces(found, pieces.len()));
    }
    let digits: String = pieces.into_iter().flatten().collect();
    if digits.len() / 4 * 3 > MAX_BOOT_DATA {
        return Err(BootDataError::TooLong);
    }
    let bytes = BASE64.decode(digits).map_err(|_| BootDataError::BadBase64)?;
    String::from_utf8(bytes).map(Some).map_err(|_| BootDataError::BadBase64)
}

#[cfg(test)]
mod tests;
