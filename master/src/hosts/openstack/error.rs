//! Errors of calls to a cloud, classified by what they prove.

use super::cloud::{COMPUTE_VERSION, Service};
use crate::core::event::StartError;
use crate::hosts::clock_skew;
use serde_json::Value;

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
        /// The reason, as far as it is known.
        cause: Cause,
        /// The message.
        text: String,
    },
    /// Keystone rejects the credentials, or a service rejects Keystone's token.
    #[error("{0}")]
    Auth(String),
    /// Something that the call needs exists but is not ready yet. Nothing was created.
    #[error("{0}")]
    NotReady(String),
    /// The cloud or the configuration lacks something, such as a service or a network.
    #[error("{0}")]
    Misconfigured(String),
}

/// Why a service refuses a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// A quota of the project, of any service.
    Quota,
    /// The cloud has no capacity: no valid host, no free address.
    NoRoom,
    /// Too many calls at a time.
    Throttled,
    /// Something is not ready yet.
    NotReady,
    /// Any other.
    Other,
}

impl Cause {
    /// The cause that a message, or the fault of a server, names. OpenStack reports an exhausted quota only in words: each
    /// service has its own status for it, and Nova passes on the messages of the others. None for all other messages.
    pub fn of_words(words: &str) -> Option<Self> {
        let words = words.to_lowercase();
        let has = |parts: &[&str]| parts.iter().any(|part| words.contains(part));
        // A policy forbids the call. The name of the rule may contain any of the words below.
        if has(&["policy doesn't allow", "policy does not allow", "disallowed by policy"]) {
            return None;
        }
        let counted = has(&["maximum number of"]) && !has(&["maximum number of retries"]);
        if counted || has(&["quota", "limit exceeded", "limitexceeded", "overlimit"]) {
            return Some(Self::Quota);
        }
        let addresses = has(&["no more", "no free"]) && has(&["ip address", "ips ", "fixed ip", "floating ip"]);
        if addresses || has(&["no valid host", "not enough hosts", "ipaddressgenerationfailure"]) {
            return Some(Self::NoRoom);
        }
        if has(&["is not active", "not in active state", "failed to allocate the network"]) {
            return Some(Self::NotReady);
        }
        None
    }

    /// As an error of a start that has created nothing; none if the cause is unknown.
    pub fn of_start(self, text: String) -> Option<StartError> {
        match self {
            Self::Quota => Some(StartError::Quota(text)),
            Self::NoRoom => Some(StartError::Capacity(text)),
            Self::Throttled | Self::NotReady => Some(StartError::Place(text)),
            Self::Other => None,
        }
    }
}

/// A service's answer that is an error.
pub(super) struct Answer<'a> {
    /// Whose.
    pub(super) service: Service,
    /// HTTP's number.
    pub(super) status: u16,
    /// Its `Date` header.
    pub(super) date: Option<&'a str>,
    /// Whether it has a `Retry-After` header.
    pub(super) asks_to_wait: bool,
    /// The path of the request.
    pub(super) path: &'a str,
    /// The whole body.
    pub(super) body: &'a [u8],
}

impl CloudError {
    /// The error that an answer reports.
    pub(super) fn of_answer(answer: &Answer<'_>) -> Self {
        let Answer { service, status, date, asks_to_wait, path, body } = *answer;
        let message = words(body);
        let mut text = format!("{} answered {status}: {}", service.name(), message.as_deref().unwrap_or(path));
        let is_login = matches!(status, 401 | 403);
        if is_login {
            text.push_str(&clock_skew::remark(date));
        }
        // A proxy's page is not JSON. Glance's own errors may not be JSON either.
        let is_own = is_json(body) || service == Service::Image;
        let cause = match status {
            429 => Cause::Throttled,
            413 if asks_to_wait => Cause::Throttled,
            401 | 404 | 500.. => Cause::Other,
            // Older clouds use it for an exhausted quota, without `Retry-After`.
            413 => Cause::Quota,
            _ => message.and_then(|_| Cause::of_words(&all_words(body))).unwrap_or(Cause::Other),
        };
        match (status, cause) {
            (401, _) => Self::Auth(text),
            (_, Cause::NotReady) => Self::NotReady(text),
            (406, _) if service == Service::Compute => Self::Misconfigured(format!(
                "Nova does not support version {COMPUTE_VERSION} of its API ({})",
                words(body).as_deref().unwrap_or(path)
            )),
            (_, Cause::Other) if !is_own && !is_login && status < 500 => {
                Self::Lost(format!("{text}, and the answer is not {}'s", service.name()))
            }
            (status, cause) => Self::Refused { status, cause, text },
        }
    }

    /// Whether the requested resource does not exist.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }

    /// Whether the call may have been carried out nevertheless. A gateway may answer while the service is still working
    /// on it.
    pub fn leaves_doubt(&self) -> bool {
        match self {
            Self::Lost(_) => true,
            Self::Refused { status, .. } => *status >= 500,
            Self::Unreachable(_) | Self::Auth(_) | Self::NotReady(_) | Self::Misconfigured(_) => false,
        }
    }

    /// The meaning for a call that creates nothing.
    pub fn before_start(self) -> StartError {
        let text = self.to_string();
        match self {
            Self::Unreachable(_) | Self::Lost(_) | Self::Auth(_) | Self::NotReady(_) => StartError::Place(text),
            Self::Misconfigured(_) => StartError::Rejected(text),
            Self::Refused { status, cause, .. } => cause.of_start(text.clone()).unwrap_or(match status {
                403 | 408 | 500.. => StartError::Place(text),
                409 => StartError::Transient(text),
                _ => StartError::Rejected(text),
            }),
        }
    }
}

fn is_json(body: &[u8]) -> bool {
    serde_json::from_slice::<Value>(body).is_ok()
}

/// The message in an error's body: OpenStack wraps it in an object with one key, named after the kind of error.
pub(super) fn words(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let message = |value: &Value| value["message"].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    message(&body).or_else(|| body.as_object()?.values().find_map(message))
}

/// The message, with the names of its kind that Neutron and Nova add.
fn all_words(body: &[u8]) -> String {
    let parsed: Value = serde_json::from_slice(body).unwrap_or_default();
    let mut all = words(body).unwrap_or_default();
    for (key, value) in parsed.as_object().into_iter().flatten() {
        all.push(' ');
        all.push_str(key);
        if let Some(kind) = value["type"].as_str() {
            all.push(' ');
            all.push_str(kind);
        }
    }
    all
}

#[cfg(test)]
#[path = "error_tests.rs"]
mod tests;
