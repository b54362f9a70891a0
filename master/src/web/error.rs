//! Why requests fail, and how their paths, queries and bodies are read. An error is always the JSON of [`api::Error`].

use super::{MAX_BODY, NoBuild};
use crate::api;
use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use std::error::Error as _;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    /// A part of the request is wrong.
    #[error("{reason}")]
    Invalid { field: Option<String>, reason: String },
    #[error("{0}")]
    Unauthorized(&'static str),
    /// It is known who asks, and they may not.
    #[error("{0}")]
    Forbidden(String),
    #[error("{0}")]
    NotFound(String),
    /// It was there and is not any more.
    #[error("{0}")]
    Gone(String),
    #[error("{0}")]
    MethodNotAllowed(String),
    #[error("{0}")]
    Conflict(String),
    #[error("the body has more than {MAX_BODY} bytes")]
    TooLarge,
    #[error("{0}")]
    Misdirected(String),
    /// The ledger cannot be read, or the core has sent an unexpected reply.
    #[error("{0}")]
    Internal(String),
    #[error("{0}")]
    Unhealthy(String),
    /// Something else does not answer.
    #[error("{0}")]
    Unavailable(String),
    #[error("the master is ending; try again when it is back")]
    Ending,
    #[error("the master did not answer in time; look at its log")]
    Busy,
    /// The disk is full, or the ledger cannot be written.
    #[error("{0}")]
    NoSpace(String),
}

impl ApiError {
    /// A field of the request is wrong.
    pub(super) fn field(field: &str, reason: impl Into<String>) -> Self {
        Self::Invalid { field: Some(field.to_owned()), reason: reason.into() }
    }

    /// There is no build with this number, or not any more.
    pub(super) fn no_build(id: &str, why: NoBuild) -> Self {
        match why {
            NoBuild::Unknown => Self::NotFound(format!("there is no build {id}")),
            NoBuild::Deleted => Self::NotFound(format!("build {id} was deleted by retention")),
            NoBuild::Unreadable(why) => Self::Internal(why),
        }
    }

    /// The core has replied to a command with a reply that does not belong to it.
    pub(super) fn mismatch() -> Self {
        Self::Internal("the master's answer does not fit the request; please report this".to_owned())
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Invalid { .. } => StatusCode::BAD_REQUEST,
            Self::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Gone(_) => StatusCode::GONE,
            Self::MethodNotAllowed(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Misdirected(_) => StatusCode::MISDIRECTED_REQUEST,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unhealthy(_) | Self::Unavailable(_) | Self::Ending | Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::NoSpace(_) => StatusCode::INSUFFICIENT_STORAGE,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, error) = (self.status(), self.to_string());
        let field = if let Self::Invalid { field, .. } = self { field } else { None };
        let mut response = (status, Json(api::Error { error, field })).into_response();
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// The parameters of the query. `T` denies unknown fields, so a misspelt parameter is an error.
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let Query(params) = Query::try_from_uri(&parts.uri).map_err(|rejection| {
            let reason = rejection.source().map_or_else(|| rejection.body_text(), ToString::to_string);
            ApiError::Invalid { field: None, reason: format!("the query is invalid: {reason}") }
        })?;
        Ok(Self(params))
    }
}

/// For a request without parameters.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NoParams {}

/// The variable parts of the path. If one is not UTF-8, nothing exists under that path.
pub(super) struct Segments<T>(pub(super) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Segments<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::from_request_parts(parts, state).await;
        path.map(|Path(segments)| Self(segments)).map_err(|rejection| ApiError::NotFound(rejection.body_text()))
    }
}

/// The bytes of the body.
pub(super) struct Body(pub(super) Bytes);

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let body = Bytes::from_request(request, state).await;
        body.map(Self).map_err(|rejection: BytesRejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => ApiError::TooLarge,
            _ => ApiError::Invalid { field: None, reason: rejection.body_text() },
        })
    }
}
