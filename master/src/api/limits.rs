//! Limits of steps, as people submit them with a build.

use super::object::object;
use rouse_shared::limits::LEAST_MEMORY;
#[cfg(test)]
use rouse_shared::limits::MOST_PIDS;
use rouse_shared::size;
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

/// What a step may use. A build can only narrow what its worker allows.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(inline))]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct SubmittedLimits {
    /// Memory of all processes of the step together: bytes, or a text with a unit, such as 8G.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "Option<crate::submission::schema_tests::Memory>"))]
    pub memory: Option<Bytes>,
    /// Number of processes and threads of the step at the same time.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, minimum = 1, maximum = 4_194_304)]
    #[cfg_attr(test, schemars(range(min = 1, max = MOST_PIDS)))]
    pub pids: Option<i64>,
    /// Processors that the step can keep busy; may be a fraction.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(exclusive_minimum = 0.0)]
    #[cfg_attr(test, schemars(extend("exclusiveMinimum" = 0)))]
    pub cpus: Option<f64>,
}

object!(SubmittedLimits, "limits, such as { memory = \"8G\", pids = 4096, cpus = 2 }");

/// A number of bytes: a whole number, or a text with a unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bytes(pub u64);

impl Serialize for Bytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BytesVisitor;

        impl Visitor<'_> for BytesVisitor {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes, or a string such as \"8G\"")
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Bytes, E> {
                Ok(Bytes(bytes))
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Bytes, E> {
                u64::try_from(bytes).map(Bytes).map_err(|_| E::custom("must not be negative"))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Bytes, E> {
                size::parse(text).map(Bytes).map_err(E::custom)
            }
        }

        deserializer.deserialize_any(BytesVisitor)
    }
}

impl PartialSchema for Bytes {
    fn schema() -> RefOr<Schema> {
        let whole = ObjectBuilder::new()
            .schema_type(Type::Integer)
            .minimum(Some(LEAST_MEMORY as f64))
            .description(Some("Bytes."));
        let units = ObjectBuilder::new()
            .schema_type(Type::String)
            .pattern(Some("^[1-9][0-9]{0,6} *(MB|GB|MiB|GiB|M|G)$"))
            .description(Some("With a unit: MB, GB (powers of 1000), MiB, GiB, M or G (of 1024)."));
        OneOfBuilder::new().item(whole).item(units).into()
    }
}

impl ToSchema for Bytes {}
