//! A build as people submit it: over HTTP, through the broker, or in a `build.toml`. [`crate::submission`] checks what the
//! values may be.

use crate::config::duration::{self, LONGEST};
use rouse_shared::limits::MAX_STEPS;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{
    AdditionalProperties, Array, ArrayBuilder, Object, ObjectBuilder, OneOfBuilder, Schema, SchemaType, Type,
};
use utoipa::{PartialSchema, ToSchema};

/// Longest name of a build or a step, characters.
pub const MAX_NAME: usize = 200;

/// Most retries that a build may ask for: more would keep a build that kills its hosts going for days.
pub const MAX_RETRIES: u32 = 100;

/// Text without control characters.
const ONE_LINE: &str = r"^[^\u0000-\u001f\u007f-\u009f]*$";
/// Text without a NUL character.
const NO_NUL: &str = r"^[^\u0000]*$";

/// A build to run.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "a build, such as { step = [{ run = [\"make\"] }] }")]
pub struct Submission {
    /// What people call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = name)]
    pub name: Option<String>,
    /// The worker's properties must contain these. Not together with `worker`; without either any worker may run it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = properties)]
    pub r#where: Option<BTreeMap<String, String>>,
    /// The worker that must run it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable, pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    pub worker: Option<String>,
    /// Higher runs first. Default 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<i32>)]
    pub priority: Option<i64>,
    /// How many attempts may be lost beyond the first. Default 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = retries)]
    pub retries: Option<i64>,
    /// Limit of one attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Seconds>,
    /// Environment of every step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = environment)]
    pub env: Option<BTreeMap<String, String>>,
    /// The steps, in their order.
    #[serde(default, alias = "steps", skip_serializing_if = "Option::is_none")]
    #[schema(required, schema_with = steps)]
    pub step: Option<Vec<SubmittedStep>>,
}

/// A step to run.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "a step, such as { run = [\"make\"] }")]
pub struct SubmittedStep {
    /// What people call it. Default: the first word of the command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = name)]
    pub name: Option<String>,
    /// What to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(required, value_type = Run)]
    pub run: Option<Run>,
    /// Directory below the build's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = workdir)]
    pub workdir: Option<String>,
    /// Environment of this step, over that of the build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = environment)]
    pub env: Option<BTreeMap<String, String>>,
    /// Limit of the step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Seconds>,
    /// How long the step may print nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silence: Option<Seconds>,
    /// Also run it after a failed step. Default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub always: Option<bool>,
}

/// A command: a list of words, or one text for the shell.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(untagged)]
pub enum Run {
    /// A program and its arguments.
    Words(Vec<String>),
    /// For `sh -c`.
    Shell(String),
}

impl Run {
    /// The program and its arguments, and whether they came as a text for the shell.
    pub fn into_words(self) -> (Vec<String>, bool) {
        match self {
            Self::Words(words) => (words, false),
            Self::Shell(text) => (vec!["sh".to_owned(), "-c".to_owned(), text], true),
        }
    }
}

impl<'de> Deserialize<'de> for Run {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RunVisitor;

        impl<'de> Visitor<'de> for RunVisitor {
            type Value = Run;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of strings, or one string for sh -c")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Run, E> {
                Ok(Run::Shell(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Run, A::Error> {
                let mut words = Vec::new();
                while let Some(word) = items.next_element::<String>()? {
                    words.push(word);
                }
                Ok(Run::Words(words))
            }
        }

        deserializer.deserialize_any(RunVisitor)
    }
}

/// A duration: whole seconds, or a text with units.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seconds(pub Duration);

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0.as_secs())
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SecondsVisitor;

        impl Visitor<'_> for SecondsVisitor {
            type Value = Seconds;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("whole seconds, or a string such as \"5m\" or \"1h30m\"")
            }

            fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Seconds, E> {
                duration::from_seconds(seconds).map(Seconds).map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<Seconds, E> {
                match u64::try_from(seconds) {
                    Ok(seconds) => self.visit_u64(seconds),
                    Err(_) => Err(E::custom("must not be negative")),
                }
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Seconds, E> {
                duration::parse(text).map(Seconds).map_err(E::custom)
            }
        }

        deserializer.deserialize_any(SecondsVisitor)
    }
}

fn text() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}

fn or_null(kind: Type) -> SchemaType {
    SchemaType::Array(vec![kind, Type::Null])
}

fn name() -> Object {
    text().schema_type(or_null(Type::String)).max_length(Some(MAX_NAME)).pattern(Some(ONE_LINE)).build()
}

fn workdir() -> Object {
    // Relative, and without `..` as a part of it.
    let below = r"^(?!/)(?!(.*/)?\.\.(/|$))[^\u0000]*$";
    text().schema_type(or_null(Type::String)).pattern(Some(below)).build()
}

fn retries() -> Object {
    let kind = or_null(Type::Integer);
    ObjectBuilder::new().schema_type(kind).minimum(Some(0)).maximum(Some(MAX_RETRIES)).build()
}

fn table(keys: &str, values: ObjectBuilder) -> Object {
    ObjectBuilder::new()
        .schema_type(or_null(Type::Object))
        .property_names(Some(text().pattern(Some(keys)).build()))
        .additional_properties(Some(AdditionalProperties::RefOr(RefOr::T(values.build().into()))))
        .build()
}

fn properties() -> Object {
    table(r"^[\s\S]+$", text())
}

fn environment() -> Object {
    table(r"^[^=\u0000]+$", text().pattern(Some(NO_NUL)))
}

fn steps() -> Array {
    let step = utoipa::openapi::Ref::from_schema_name(SubmittedStep::name());
    ArrayBuilder::new().items(step).min_items(Some(1)).max_items(Some(MAX_STEPS)).build()
}

impl PartialSchema for Run {
    fn schema() -> RefOr<Schema> {
        // A program has a name; text for the shell is not only white space.
        let shell = text().pattern(Some(r"^[^\u0000]*[^\u0000\s][^\u0000]*$")).description(Some("For `sh -c`."));
        let words = ArrayBuilder::new()
            .items(text().pattern(Some(NO_NUL)))
            .min_items(Some(1))
            .description(Some("A program and its arguments."));
        OneOfBuilder::new().item(words).item(shell).into()
    }
}

impl ToSchema for Run {}

impl PartialSchema for Seconds {
    fn schema() -> RefOr<Schema> {
        let whole = ObjectBuilder::new()
            .schema_type(Type::Integer)
            .minimum(Some(1))
            .maximum(Some(LONGEST.as_secs() as f64))
            .description(Some("Seconds."));
        let units = text().pattern(Some("^[1-9][0-9]{0,3}(s|m|h)$")).description(Some("With a unit, such as 5m."));
        OneOfBuilder::new().item(whole).item(units).into()
    }
}

impl ToSchema for Seconds {}
