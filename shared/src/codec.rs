//! MessagePack maps with field names, so that fields can be added without breaking old agents.

use crate::limits::{MAX_DEPTH, MAX_MESSAGE};
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use thiserror::Error;

/// Why bytes are not a message.
#[derive(Debug, Error)]
pub enum DecodeError {
    /// More bytes than [`MAX_MESSAGE`]: this many.
    #[error("the message has {0} bytes, more than the limit of {limit}", limit = MAX_MESSAGE)]
    TooLarge(usize),
    /// Not MessagePack, a kind of message that is not known, or a field that is missing or of another type.
    #[error("the message is malformed or of an unknown kind")]
    Malformed(#[source] rmp_serde::decode::Error),
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
/// If there are too many bytes, or they are not a message of a known kind.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    if bytes.len() > MAX_MESSAGE {
        return Err(DecodeError::TooLarge(bytes.len()));
    }
    nested(bytes).map_err(DecodeError::Malformed)
}

/// Whether `bytes` begin with a MessagePack value: a message of an unknown kind does, garbage does not.
pub fn is_messagepack(bytes: &[u8]) -> bool {
    nested::<IgnoredAny>(bytes).is_ok()
}

/// Decodes with a bounded depth: at the library's own 1,024 levels a hostile message overflows a thread's stack.
fn nested<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, rmp_serde::decode::Error> {
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(bytes);
    deserializer.set_max_depth(MAX_DEPTH);
    T::deserialize(&mut deserializer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::ToMaster;

    #[test]
    fn deep_nesting_is_an_error_and_not_a_crash() {
        let deep = vec![0x91; MAX_MESSAGE];
        assert!(decode::<ToMaster>(&deep).is_err() && !is_messagepack(&deep));
        // Also if it hides in an unknown field.
        let mut hidden = vec![0x81, 0xa9];
        hidden.extend(b"Heartbeat");
        hidden.extend([0x81, 0xa1, b'x']);
        hidden.extend(&deep[..10_000]);
        assert!(decode::<ToMaster>(&hidden).is_err() && !is_messagepack(&hidden));
        assert!(is_messagepack(&[0x81, 0xa1, b'x', 0x01]) && !is_messagepack(&[0xc1]) && !is_messagepack(&[]));
    }
}
