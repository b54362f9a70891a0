//! The data types of the HTTP API, which are defined only here. The server writes them, the commands and the tests read
//! them, and `/openapi.json` is generated from them.
//!
//! Ids are strings, times are RFC 3339 in UTC, and durations are in seconds. A value that is unknown or absent is null.
//! Scripts rely on the names of the fields.

mod audit;
mod builds;
mod changes;
mod fleet;
mod journal;
mod limits;
mod object;
mod submission;

pub use audit::{Audit, AuditRequest, Difference};
pub use builds::{Attempt, AttemptState, Build, BuildInFull, Evidence, RequestedStep, Step, StepState, Why};
pub use changes::{BuildChange, Change, HostChange, Lagged, WorkerChange};
pub use fleet::{
    Facts, ForgottenHost, ForgottenPlace, Health, HealthStatus, Host, LogUploads, Mail, Master, Place, Refusal, Role,
    RotatedToken, TerminatedHost, Vitals, Worker, WorkerKind, WorkerOperation,
};
pub use journal::{JournalEntry, Reloaded};
pub use limits::{Bytes, SubmittedLimits};
pub use submission::{MAX_NAME, MAX_RETRIES, Run, Seconds, Submission, SubmittedStep};

use rouse_shared::{BuildId, Timestamp};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::time::{Duration, UNIX_EPOCH};
use utoipa::ToSchema;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, Schema, SchemaFormat, Type};

/// Why a request failed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Error {
    /// What is wrong, and what to do about it.
    pub error: String,
    /// The field at fault, if it is one field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

/// The build that was accepted or cancelled.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct AcceptedBuild {
    /// The build's number.
    pub id: Id,
}

/// How to submit a build again.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default, remote = "Self")]
pub struct RerunRequest {
    /// The worker that the new build requires. Absent: whatever the old build requires.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable, pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    pub worker: Option<String>,
}

object::object!(RerunRequest, "an object, such as { \"worker\": \"w1\" }");

/// The number of a build, as text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Id(pub BuildId);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map(Self).map_err(serde::de::Error::custom)
    }
}

impl utoipa::PartialSchema for Id {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new().schema_type(Type::String).pattern(Some("^[0-9]+$")).into()
    }
}

impl ToSchema for Id {}

/// A moment, to the millisecond.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Time(pub Timestamp);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A corrupted record may hold a moment past the year 9999, which cannot be written: that year's last one is.
        const LATEST: u64 = 253_402_300_799_999;
        let since_epoch = Duration::from_millis(self.0.0.min(LATEST));
        humantime::format_rfc3339_millis(UNIX_EPOCH + since_epoch).fmt(f)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Time {
    /// Reads an RFC 3339 time in UTC.
    ///
    /// # Errors
    /// If the text is no such time.
    pub fn parse(text: &str) -> Result<Self, String> {
        let time = humantime::parse_rfc3339(text).map_err(|error| error.to_string())?;
        let since_epoch = time.duration_since(UNIX_EPOCH).map_err(|error| error.to_string())?;
        let milliseconds = u64::try_from(since_epoch.as_millis()).map_err(|error| error.to_string())?;
        Ok(Self(Timestamp(milliseconds)))
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl utoipa::PartialSchema for Time {
    fn schema() -> RefOr<Schema> {
        let format = SchemaFormat::KnownFormat(KnownFormat::DateTime);
        ObjectBuilder::new().schema_type(Type::String).format(Some(format)).into()
    }
}

impl ToSchema for Time {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_times_are_read_as_they_are_written() {
        for (time, text) in [(1_795_435_200_250, "2026-11-23T12:00:00.250Z"), (0, "1970-01-01T00:00:00.000Z")] {
            let time = Time(Timestamp(time));
            assert_eq!(time.to_string(), text);
            assert_eq!(serde_json::from_value::<Time>(text.into()).expect("a time"), time);
        }
        assert_eq!(Time(Timestamp(u64::MAX)).to_string(), "9999-12-31T23:59:59.999Z");
        let id = serde_json::to_value(Id(BuildId(12))).expect("JSON");
        assert_eq!(id, "12");
        assert_eq!(serde_json::from_value::<Id>(id).expect("an id"), Id(BuildId(12)));
        for wrong in ["x", "-1", "", "1.5"] {
            assert!(serde_json::from_value::<Id>(wrong.into()).is_err(), "{wrong:?}");
        }
    }
}
