//! Errors of calls to a cloud, by what they prove.

use crate::core::event::StartError;

/// Why a call has no result.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CloudError {
    /// There was no connection, so nothing was requested.
    #[error("{0}")]
    Unreachable(String),
    /// The request was sent and no complete answer came, so it may have been carried out.
    #[error("{0}")]
    Lost(String),
    /// The service has refused the request.
    #[error("{text}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The service's own text.
        text: String,
    },
    /// Keystone rejects the credentials, or a service rejects Keystone's token.
    #[error("{0}")]
    Auth(String),
    /// Something is missing in the cloud or wrong in the configuration, such as a service or a network.
    #[error("{0}")]
    Misconfigured(String),
}

impl CloudError {
    /// Whether the requested object does not exist.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }

    /// Whether the call may have been carried out nevertheless. A gateway may answer while the service is still working
    /// on it.
    pub fn leaves_doubt(&self) -> bool {
        match self {
            Self::Lost(_) => true,
            Self::Refused { status, .. } => *status >= 500,
            Self::Unreachable(_) | Self::Auth(_) | Self::Misconfigured(_) => false,
        }
    }

    /// The meaning for a call that creates nothing.
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
