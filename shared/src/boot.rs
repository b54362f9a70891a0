//! Boot data: what a host is told at its birth, beside what its image knows; and the forms in which it gets there.
//!
//! They are TOML. A file or qemu's fw_cfg holds them as they are. In user data they stand in a block of comment
//! lines ([`comment_block`]). In the firmware's tables they are strings of base64 ([`oem_strings`]).

use crate::ids::{HostId, WorkerName};
use crate::limits::MAX_BOOT_DATA;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use std::fmt;

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

/// Whether a [`comment_block`] begins in the text, whole or not.
pub fn block_begins(text: &str) -> bool {
    text.lines().any(|line| line.trim_end_matches('\r') == BEGIN)
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

/// Name of the entry of qemu's fw_cfg device that holds boot data.
pub const FW_CFG: &str = "opt/rouse/boot";

/// What the firmware's strings begin with.
const OEM_PREFIX: &str = "rouse.boot:";
/// Base64 digits in one string: some firmware copies strings through buffers, and none of those is smaller.
const OEM_DIGITS: usize = 1_000;
/// Strings that one structure of the firmware's table can number.
const OEM_STRINGS: usize = 255;

/// Why something that bears boot data does not hold them whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BootDataError {
    /// A string of the firmware's is neither whole nor a numbered piece.
    BadString,
    /// Pieces are missing or do not agree: how many there are, and of how many.
    Pieces(usize, usize),
    /// Not base64, or not text.
    BadBase64,
    /// Longer than [`MAX_BOOT_DATA`].
    TooLong,
}

impl fmt::Display for BootDataError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadString => write!(f, "a string that begins with {OEM_PREFIX:?} is neither whole nor numbered"),
            Self::Pieces(found, of) => write!(f, "the boot data are in {of} pieces and {found} of them fit together"),
            Self::BadBase64 => f.write_str("the boot data are not text in base64"),
            Self::TooLong => write!(f, "the boot data are longer than {MAX_BOOT_DATA} bytes"),
        }
    }
}

impl std::error::Error for BootDataError {}

/// The boot data `toml` as strings for the firmware's table (SMBIOS type 11), at most 255 where they are no longer than
/// [`MAX_BOOT_DATA`]. A short text is one string; a longer one is numbered, so that the strings may stand in any order
/// and among others.
pub fn oem_strings(toml: &str) -> Vec<String> {
    let digits = BASE64.encode(toml);
    if digits.len() <= OEM_DIGITS {
        return vec![format!("{OEM_PREFIX}{digits}")];
    }
    let of = digits.len().div_ceil(OEM_DIGITS);
    let pieces = (0..of).map(|n| &digits[n * OEM_DIGITS..digits.len().min((n + 1) * OEM_DIGITS)]);
    pieces.enumerate().map(|(n, piece)| format!("{OEM_PREFIX}{}/{of}:{piece}", n + 1)).collect()
}

/// The boot data's TOML in the firmware's strings; others among them are passed over. `None` where none is ours.
///
/// # Errors
/// Where some are ours and do not make a whole.
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
