//! Builds as people submit them: `build.toml`, JSON over HTTP, JSON or MessagePack in the inbox. One shape, one check.

use std::fmt;

/// Why a submission is not taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Invalid {
    /// The path of the field at fault, such as `step[0].run`; `build` where the whole is meant.
    pub field: String,
    /// What is wrong with it, and what would be right.
    pub reason: String,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.reason)
    }
}

impl std::error::Error for Invalid {}
