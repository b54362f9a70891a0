//! Why the master cannot run.

use rouse_shared::error::Chain;
use std::error::Error;
use std::fmt;

/// Why the master cannot run: what failed, and the whole chain of causes.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct MasterError(String);

impl MasterError {
    /// What failed, and the error with its causes.
    pub fn new(what: impl fmt::Display, error: &dyn Error) -> Self {
        Self(format!("{what}: {}", Chain(error)))
    }
}

impl From<String> for MasterError {
    fn from(text: String) -> Self {
        Self(text)
    }
}
