//! A failed call, and what its code proves. The text of the error is never interpreted.

use super::codes::{kind_of_code, said};
use crate::core::event::StartError;
use crate::hosts::clock_skew;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_ec2::config::http::HttpResponse;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use std::error::Error;

/// The kind of an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// No capacity, or a spot price above the bid.
    Capacity,
    /// A limit of the account.
    Quota,
    /// This type is not available in this zone, or not in this way. Another may be.
    NotHere,
    /// The call is wrong, or names something that does not exist.
    Rejected,
    /// There is no such instance, request, volume or address.
    NotFound,
    /// Something that was just created or changed may not be known everywhere yet.
    NotYet,
    /// The client token was used with another call.
    Mismatch,
    /// The resource already exists.
    Exists,
    /// The credentials are missing or rejected.
    Auth,
    /// Too many calls: nothing was done.
    Throttled,
    /// The call may have been carried out.
    Unknown,
    /// A dry run that would have succeeded.
    WouldWork,
}

/// A call that failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text}")]
pub struct CallError {
    /// What it means.
    pub kind: Kind,
    /// What failed, with AWS's text.
    pub text: String,
}

impl CallError {
    /// The meaning for a call that creates nothing.
    pub fn before_start(self) -> StartError {
        match self.kind {
            Kind::Auth | Kind::Throttled | Kind::Unknown => StartError::Place(self.text),
            Kind::Capacity | Kind::NotHere => StartError::Capacity(self.text),
            Kind::Quota => StartError::Quota(self.text),
            Kind::NotYet => StartError::Transient(self.text),
            Kind::Rejected | Kind::NotFound | Kind::Mismatch | Kind::Exists | Kind::WouldWork => {
                StartError::Rejected(self.text)
            }
        }
    }

    /// The meaning for the call that creates an instance. `more` is whether another type or zone can be tried.
    pub fn of_start(self, more: bool) -> StartError {
        match self.kind {
            Kind::Auth | Kind::Throttled => StartError::Place(self.text),
            Kind::Capacity => StartError::Capacity(self.text),
            Kind::Quota => StartError::Quota(self.text),
            Kind::NotHere if more => StartError::Capacity(self.text),
            Kind::NotYet => StartError::Transient(self.text),
            Kind::Unknown | Kind::Mismatch => StartError::Unknown(self.text),
            Kind::NotHere | Kind::Rejected | Kind::NotFound | Kind::Exists | Kind::WouldWork => {
                StartError::Rejected(self.text)
            }
        }
    }
}

/// Converts the error of a call. `what` is the purpose of the call, such as "start the instance".
pub fn call_error<E>(what: &str, error: &SdkError<E, HttpResponse>) -> CallError
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let kind = kind_of(error);
    let words = match (error.code(), error.message()) {
        (Some(code), Some(message)) => format!("{}: {}", said(code).unwrap_or(code), message.trim_end_matches('.')),
        (Some(code), None) => said(code).unwrap_or(code).to_owned(),
        (None, _) => chain(error),
    };
    let remark = match kind {
        Kind::Auth => clock_skew::remark(error.raw_response().and_then(|answer| answer.headers().get("date"))),
        _ => String::new(),
    };
    CallError { kind, text: format!("cannot {what}: {words}{remark}") }
}

fn kind_of<E>(error: &SdkError<E, HttpResponse>) -> Kind
where
    E: ProvideErrorMetadata + Error + 'static,
{
    match error {
        SdkError::ServiceError(service) => kind_of_answer(service.raw().status().as_u16(), error.code()),
        SdkError::ConstructionFailure(_) | SdkError::DispatchFailure(_) if without_credentials(error) => Kind::Auth,
        SdkError::ConstructionFailure(_) => Kind::Rejected,
        // The connection broke, or the answer was not understood. The call may have arrived.
        _ => Kind::Unknown,
    }
}

/// The meaning of an answer with this status, and with this code if it has one.
fn kind_of_answer(status: u16, code: Option<&str>) -> Kind {
    match (code, status) {
        (_, 429) => Kind::Throttled,
        (Some(code), _) => kind_of_code(code).unwrap_or(if status >= 500 { Kind::Unknown } else { Kind::Rejected }),
        // Not AWS's answer: a proxy has refused the call before AWS received it.
        (None, 401 | 403 | 407) => Kind::Auth,
        // Whether AWS received the call is unknown.
        (None, _) => Kind::Unknown,
    }
}

fn without_credentials(error: &(dyn Error + 'static)) -> bool {
    let mut next = error.source();
    while let Some(cause) = next {
        if cause.is::<CredentialsError>() {
            return true;
        }
        next = cause.source();
    }
    false
}

/// An error with its causes, each once, because some errors repeat their source.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_start(status: u16, code: Option<&str>, more: bool) -> StartError {
        CallError { kind: kind_of_answer(status, code), text: String::new() }.of_start(more)
    }

    fn before_start(status: u16, code: Option<&str>) -> StartError {
        CallError { kind: kind_of_answer(status, code), text: String::new() }.before_start()
    }

    #[test]
    fn kinds_decide_what_comes_next() {
        let no_words = String::new;
        assert_eq!(of_start(500, Some("InsufficientInstanceCapacity"), false), StartError::Capacity(no_words()));
        assert_eq!(of_start(400, Some("VcpuLimitExceeded"), false), StartError::Quota(no_words()));
        // If this zone does not have a type, another type is tried. If there is no other, the configuration is wrong.
        assert_eq!(of_start(400, Some("Unsupported"), true), StartError::Capacity(no_words()));
        assert_eq!(of_start(400, Some("Unsupported"), false), StartError::Rejected(no_words()));
        assert_eq!(of_start(401, Some("AuthFailure"), true), StartError::Place(no_words()));
        assert_eq!(of_start(503, Some("RequestLimitExceeded"), true), StartError::Place(no_words()));
        // What may have made something is repeated as it is, never bought again.
        for code in ["InternalError", "Unavailable", "IdempotentParameterMismatch"] {
            assert_eq!(of_start(500, Some(code), true), StartError::Unknown(no_words()), "{code}");
        }
    }

    #[test]
    fn an_answer_that_is_not_aws_s_blames_the_place() {
        for status in [404, 418, 500, 502, 503, 504] {
            assert_eq!(of_start(status, None, true), StartError::Unknown(String::new()), "{status}");
            assert_eq!(before_start(status, None), StartError::Place(String::new()), "{status}");
        }
        // A proxy has refused the call before AWS received it.
        for status in [401, 403, 407, 429] {
            assert_eq!(of_start(status, None, true), StartError::Place(String::new()), "{status}");
        }
        assert_eq!(of_start(429, Some("NeverHeardOf"), true), StartError::Place(String::new()));
        assert_eq!(of_start(503, Some("NeverHeardOf"), true), StartError::Unknown(String::new()));
        assert_eq!(of_start(400, Some("NeverHeardOf"), true), StartError::Rejected(String::new()));
    }
}
