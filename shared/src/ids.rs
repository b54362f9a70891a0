//! Identifiers. Each has its own type, so that they cannot be confused.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// The name of a worker: a host name label (RFC 1123), because DHCP provides it and routing keys contain it.
///
/// 1 to 63 characters of `a-z`, `0-9` and `-`, neither beginning nor ending with `-`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WorkerName(String);

/// A text that is not the name of a worker.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error(
    "{start:?} is not a worker name: 1 to 63 characters of a-z, 0-9 and '-', not beginning or ending with '-'",
    // The text may be as long as its sender liked.
    start = .0.chars().take(80).collect::<String>()
)]
pub struct WorkerNameError(String);

impl WorkerName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for WorkerName {
    type Err = WorkerNameError;

    fn from_str(text: &str) -> Result<Self, WorkerNameError> {
        let fits = (1..=63).contains(&text.len())
            && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
            && !text.starts_with('-')
            && !text.ends_with('-');
        if fits { Ok(Self(text.to_owned())) } else { Err(WorkerNameError(text.to_owned())) }
    }
}

impl fmt::Display for WorkerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for WorkerName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for WorkerName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A build. Its master numbers builds from 1, in the order in which it accepts them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct BuildId(pub u64);

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl FromStr for BuildId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// One attempt to run a build. Written `12.1`: the build and the number of the attempt.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct AttemptId {
    /// The build that is run.
    pub build: BuildId,
    /// Counts the build's attempts from 1.
    pub number: u32,
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.build, self.number)
    }
}

macro_rules! opaque_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
        pub struct $name(pub String);

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

opaque_id! {
    /// One host, from the request to start it until its provider reports that it is gone: `h` and 16 hexadecimal
    /// digits.
    HostId
}
opaque_id! {
    /// One agent's attachment, from its hello until its lease ends: 32 hexadecimal digits.
    SessionId
}
opaque_id! {
    /// Identifies a master together with its name: 32 hexadecimal digits, generated once for each state directory.
    MasterId
}
opaque_id! {
    /// Identifies one run of the agent program, which draws it at its start: 32 hexadecimal digits.
    Nonce
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worker_names_are_host_name_labels() {
        for good in ["w", "w1", "bot-solaris", "0", &"a".repeat(63)] {
            assert_eq!(good.parse::<WorkerName>().map(|n| n.to_string()).as_deref(), Ok(good));
        }
        for bad in ["", "-w", "w-", "W", "w.x", "w_x", "w#", "w*", "é", "a b", &"a".repeat(64)] {
            assert!(bad.parse::<WorkerName>().is_err(), "{bad:?} was taken");
        }
    }
}
