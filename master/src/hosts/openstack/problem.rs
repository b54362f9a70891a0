//! What can go wrong with a call to a cloud, told apart by what it proves.

use crate::core::event::StartError;
use std::fmt;

/// Why a call has no result.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Problem {
    /// There was no connection: nothing was asked for.
    Unreachable(String),
    /// It was asked for, and no whole answer came: it may have been done.
    Lost(String),
    /// The service's answer: its status, and what it says.
    Refused {
        /// HTTP's number.
        status: u16,
        /// In its own words.
        text: String,
    },
    /// Keystone does not take our credentials, or a service does not take Keystone's word.
    Auth(String),
    /// The cloud is not as it has to be, or our configuration is not: no such service, no such network.
    Misfit(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(text) | Self::Lost(text) | Self::Auth(text) | Self::Misfit(text) => f.write_str(text),
            Self::Refused { text, .. } => f.write_str(text),
        }
    }
}

impl std::error::Error for Problem {}

impl Problem {
    /// Whether what was asked for does not exist.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }

    /// Whether the call may have been carried out all the same. A gateway answers for a service that still works on it.
    pub fn leaves_doubt(&self) -> bool {
        match self {
            Self::Lost(_) => true,
            Self::Refused { status, .. } => *status >= 500,
            Self::Unreachable(_) | Self::Auth(_) | Self::Misfit(_) => false,
        }
    }

    /// As an error of a call that makes nothing.
    pub fn before_start(self) -> StartError {
        let text = self.to_string();
        match self {
            Self::Unreachable(_) | Self::Lost(_) => StartError::Transient(text),
            Self::Auth(_) => StartError::Auth(text),
            Self::Misfit(_) => StartError::Rejected(text),
            Self::Refused { status: 403, .. } => StartError::Auth(text),
            Self::Refused { status: 408 | 409 | 413 | 429 | 500.., .. } => StartError::Transient(text),
            Self::Refused { .. } => StartError::Rejected(text),
        }
    }
}
