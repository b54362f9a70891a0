//! Identifiers. Each is its own type, so that one cannot be taken for another.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// The name of a worker: a host name label (RFC 1123), since DHCP hands it out and routing keys are built from it.
///
/// 1 to 63 characters of `a-z`, `0-9` and `-`, neither beginning nor ending with `-`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WorkerName(String);

/// Why a text is not the name of a worker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkerNameError(String);

impl fmt::Display for WorkerNameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Cut: what is refused may be as long as its sender liked.
        let shown: String = self.0.chars().take(80).collect();
        write!(
            f,
            "{shown:?} is not a worker name: 1 to 63 characters of a-z, 0-9 and '-', not beginning or ending with '-'"
        )
    }
}

impl std::error::Error for WorkerNameError {}

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

/// A build, numbered by its master from 1 in the order of acceptance.
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

/// One try to run a build: the build and the number of the try, from 1. Written `12.1`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct AttemptId {
    /// The build.
    pub build: BuildId,
    /// Which try, from 1.
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
    /// One host, from the order to start it until its provider says that it is gone: `h` and 16 hexadecimal digits.
    HostId
}
opaque_id! {
    /// One agent's attachment, from its hello until its lease ends: 32 hexadecimal digits.
    SessionId
}
opaque_id! {
    /// The generated half of a master's ownership, beside its name: 32 hexadecimal digits, made once for a state directory.
    MasterId
}
opaque_id! {
    /// Drawn by an agent at its start: tells one life of an agent from the next. 32 hexadecimal digits.
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
