//! Explains what a store has answered. Every fault is retried, so nothing depends on the words of an answer; they only
//! make the explanation better.

use super::StoreError;
use super::location::address;
use std::error::Error;
use std::time::Duration;

/// Longest part of a store's own words in an explanation, characters.
const MOST_WORDS: usize = 300;

/// Why a store did not do what it was asked for.
#[derive(Debug)]
pub(super) enum Fault {
    /// The library's error.
    Error(object_store::Error),
    /// There was no answer in time.
    Late(Duration),
    /// What answers has objects that nobody has written.
    NoStore,
    /// The store has another number of bytes than it was sent.
    WrongSize {
        /// Bytes that were sent.
        sent: u64,
        /// Bytes that the store reports.
        stored: u64,
    },
}

impl From<object_store::Error> for Fault {
    fn from(error: object_store::Error) -> Self {
        Self::Error(error)
    }
}

impl Fault {
    /// Whether there is no such object.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, Self::Error(object_store::Error::NotFound { .. }))
    }

    /// A sentence with the address of the store.
    pub(super) fn explain(self, location: &str) -> StoreError {
        let store = address(location);
        StoreError(match self {
            Self::Late(limit) => format!("{store} did not answer within {} s", limit.as_secs()),
            Self::WrongSize { sent, stored } => {
                format!("{store} has {stored} bytes of a log of {sent} bytes that was sent to it")
            }
            Self::NoStore => {
                format!("{store} cannot be used: what answers is not a store; correct blobs.endpoint_url")
            }
            Self::Error(error) => explain(store, &error),
        })
    }
}

fn explain(store: &str, error: &object_store::Error) -> String {
    let mut innermost: &(dyn Error + 'static) = error;
    let mut all = error.to_string();
    while let Some(source) = innermost.source() {
        innermost = source;
        all.push_str(&format!(": {source}"));
    }
    let code = element(&all, "Code");
    let status = status(&all);
    let full =
        |code: &str| code.contains("QuotaExceeded") || code.contains("StorageFull") || code == "InsufficientStorage";
    let elsewhere = |code: &str| {
        matches!(
            code,
            "PermanentRedirect"
                | "TemporaryRedirect"
                | "AuthorizationHeaderMalformed"
                | "IllegalLocationConstraintException"
        )
    };
    let why = match (code, status) {
        (Some("NoSuchBucket"), _) => "there is no such bucket; create it, or correct blobs.store".to_owned(),
        (Some(code), _) if full(code) => format!("the store is full ({code})"),
        (_, Some("507")) => "the store is full (507 Insufficient Storage)".to_owned(),
        (Some(code), _) if elsewhere(code) => elsewhere_at(element(&all, "Region").or(element(&all, "Endpoint"))),
        (_, Some("301" | "307")) => elsewhere_at(None),
        _ if all.contains("Received redirect without LOCATION") => elsewhere_at(None),
        (Some("RequestTimeTooSkewed"), _) => {
            "this machine's clock is wrong, so the store refuses its requests; set the clock".to_owned()
        }
        (Some("InvalidAccessKeyId" | "InvalidToken" | "InvalidClientTokenId"), _) => {
            "the store does not know the access key; correct the credentials".to_owned()
        }
        (Some("SignatureDoesNotMatch"), _) => "the secret key is wrong; correct the credentials".to_owned(),
        (Some("ExpiredToken"), _) => "the credentials have expired".to_owned(),
        (Some("BadDigest" | "XAmzContentSHA256Mismatch" | "XAmzContentChecksumMismatch" | "InvalidDigest"), _) => {
            "the log was damaged on its way".to_owned()
        }
        (Some("SlowDown" | "ServiceUnavailable" | "InternalError"), _) => {
            format!("the store is overloaded or has a fault ({})", code.unwrap_or_default())
        }
        (Some(code @ ("AccessDenied" | "AllAccessDisabled" | "AccountProblem")), _) => {
            format!("the credentials do not permit it, or the bucket belongs to another account ({code})")
        }
        (None, Some("403")) => {
            "the credentials do not permit it, or the bucket belongs to another account (403 Forbidden)".to_owned()
        }
        (None, Some("401")) => "the store requires other credentials (401 Unauthorized)".to_owned(),
        _ if is_page(&all) => format!(
            "what answers is not S3: it sent an HTML page{}; correct blobs.endpoint_url",
            in_parentheses(status)
        ),
        (Some(code), _) => {
            let message = element(&all, "Message").map(|text| format!(": {text}")).unwrap_or_default();
            shorten(&format!("the store refuses it ({code}{message})"))
        }
        (None, Some(status)) => format!("the store answered with status {status}"),
        (None, None) => shorten(&innermost.to_string()),
    };
    format!("{store} cannot be used: {why}")
}

fn elsewhere_at(region: Option<&str>) -> String {
    let region = region.map(|region| format!(" ({region})")).unwrap_or_default();
    format!("the bucket is in another region{region}; set blobs.region, or correct blobs.endpoint_url")
}

fn in_parentheses(status: Option<&str>) -> String {
    status.map(|status| format!(" with status {status}")).unwrap_or_default()
}

/// The text of the first XML element of this name in a store's answer.
fn element<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (inner, _) = rest.split_once("</")?;
    Some(inner.trim()).filter(|inner| !inner.is_empty() && inner.len() <= MOST_WORDS)
}

/// The HTTP status in a message of the library.
fn status(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("status code: ")?;
    rest.get(..3).filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
}

fn is_page(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    text.contains("<!doctype html") || text.contains("<html")
}

fn shorten(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MOST_WORDS) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line,
    }
}
