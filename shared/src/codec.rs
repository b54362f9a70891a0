//! MessagePack maps with field names, so that fields can be added without breaking old agents.

use crate::limits::MAX_MESSAGE;
use serde::{Serialize, de::DeserializeOwned};
use std::fmt;

/// Why bytes are not a message.
#[derive(Debug)]
pub enum DecodeError {
    /// More bytes than [`MAX_MESSAGE`]; how many.
    TooLarge(usize),
    /// Not MessagePack, not of a known kind, or a field is missing or of another type.
    Malformed(rmp_serde::decode::Error),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge(size) => write!(f, "the message has {size} bytes, more than {MAX_MESSAGE}"),
            Self::Malformed(_) => f.write_str("the message is malformed or of an unknown kind"),
        }
    }
}

impl std::error::Error for DecodeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::TooLarge(_) => None,
            Self::Malformed(error) => Some(error),
        }
    }
}

/// The bytes of a message.
///
/// # Panics
/// Never for the types of [`crate::message`]: their maps have text keys and their lengths are known.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    rmp_serde::to_vec_named(message).expect("messages have text keys and known lengths")
}

/// The message in `bytes`.
///
/// # Errors
/// Where there are too many bytes, or they are no message of a known kind.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    if bytes.len() > MAX_MESSAGE {
        return Err(DecodeError::TooLarge(bytes.len()));
    }
    rmp_serde::from_slice(bytes).map_err(DecodeError::Malformed)
}
