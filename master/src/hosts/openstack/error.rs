//! What can go wrong with a call to a cloud, told apart by what it proves.

use crate::core::event::StartError;

/// Why a call has no result.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CloudError {
    /// There was no connection: nothing was asked for.
    #[error("{0}")]
    Unreachable(String),
    /// It was asked for, and no whole answer came: it may have been done.
    #[error("{0}")]
    Lost(String),
    /// The service's answer: its status, and what it says.
    #[error("{text}")]
    Refused {
        /// HTTP's number.
        status: u16,
        /// In its own words.
        text: String,
    },
    /// Keystone rejects our credentials, or a service rejects Keystone's token.
    #[error("{0}")]
    Auth(String),
    /// The cloud or our configuration lacks something: no such service, no such network.
    #[error("{0}")]
    Misconfigured(String),
}

impl CloudError {
    /// Whether what was asked for does not exist.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }

    /// Whether the call may have been carried out all the same. A gateway answers for a service that still works on it.
    pub fn leaves_doubt(&self) -> bool {
        match self {
            Self::Lost(_) => true,
            Self::Refused { status, .. } => *status >= 500,
            Self::Unreachable(_) | Self::Auth(_) | Self::Misconfigured(_) => false,
        }
    }

    /// As an error of a call that makes nothing.
    pub fn before_start(self) -> StartError {
        let text = self.to_string();
        match self {
            Self::Unreachable(_) | Self::Lost(_) | Self::Auth(_) => StartError::Place(text),
            Self::Misconfigured(_) => StartError::Rejected(text),
            Self::Refused { status: 403 | 408 | 413 | 429 | 500.., .. } => StartError::Place(text),
            Self::Refused { status: 409, .. } => StartError::Transient(text),
            Self::Refused { .. } => StartError::Rejected(text),
        }
    }
}
