//! A build as people submit it: over HTTP, through the broker, or in a `build.toml`. [`crate::submission`] checks the
//! values.

use super::limits::SubmittedLimits;
use super::object::object;
use rouse_shared::duration::{self, HumanDuration, LONGEST};
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

/// Maximum of `retries`. With more, a build that kills its hosts would go on for days.
pub const MAX_RETRIES: u32 = 100;

/// Text without control characters.
const ONE_LINE: &str = r"^[^\u0000-\u001f\u007f-\u009f]*$";
/// Text without a NUL character.
const NO_NUL: &str = r"^[^\u0000]*$";

/// A build: what runs, and where.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(extend("not" = { "required": ["where", "worker"] })))]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct Submission {
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = name)]
    #[cfg_attr(test, schemars(length(max = MAX_NAME)))]
    pub name: Option<String>,
    /// Run the build on any worker that has all of these properties. Without `where` and `worker`, any worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = properties)]
    pub r#where: Option<BTreeMap<String, String>>,
    /// Run the build on this worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable, pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    #[cfg_attr(test, schemars(regex(pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")))]
    pub worker: Option<String>,
    /// Waiting builds with a higher number start first; with the same number, the oldest build.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<i32>)]
    #[cfg_attr(test, schemars(range(min = i32::MIN, max = i32::MAX), extend("default" = 0)))]
    pub priority: Option<i64>,
    /// How many lost attempts are retried before the build is lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = retries)]
    #[cfg_attr(test, schemars(range(min = 0, max = MAX_RETRIES), extend("default" = crate::submission::DEFAULT_RETRIES)))]
    pub retries: Option<i64>,
    /// Time limit of the whole build. If it is exceeded, the build fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "Option<crate::submission::schema_tests::Time>"))]
    pub timeout: Option<Seconds>,
    /// How long the build may wait for something that can run it, counted from zero each time that it is queued. After
    /// that, the build is lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "Option<crate::submission::schema_tests::Time>"))]
    pub queue_timeout: Option<Seconds>,
    /// Environment variables of every step.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = environment)]
    pub env: Option<BTreeMap<String, String>>,
    /// What each step may use, if that is less than the worker allows.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable)]
    pub limits: Option<SubmittedLimits>,
    /// Never delete this build and its logs, whatever the master's `[retention]` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(extend("default" = false)))]
    pub keep: Option<bool>,
    /// The steps, which run one after another.
    #[serde(alias = "steps", skip_serializing_if = "Option::is_none")]
    #[schema(required, schema_with = steps)]
    #[cfg_attr(test, schemars(required, length(min = 1, max = MAX_STEPS)))]
    pub step: Option<Vec<SubmittedStep>>,
}

object!(Submission, "a build, such as { step = [{ run = [\"make\"] }] }");

/// A step of a build.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(inline))]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct SubmittedStep {
    /// Its name. Default: the first word of the command.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = name)]
    #[cfg_attr(test, schemars(length(max = MAX_NAME)))]
    pub name: Option<String>,
    /// The program and its arguments, or one string for `sh -c`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required, value_type = Run)]
    #[cfg_attr(test, schemars(required))]
    pub run: Option<Run>,
    /// A directory below the build's directory, which is new and empty for each attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = workdir)]
    pub workdir: Option<String>,
    /// Environment variables of this step. They override the build's `env`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = environment)]
    pub env: Option<BTreeMap<String, String>>,
    /// Time limit of the step.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "Option<crate::submission::schema_tests::Time>"))]
    pub timeout: Option<Seconds>,
    /// How long the step may run without printing anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "Option<crate::submission::schema_tests::Time>"))]
    pub silence: Option<Seconds>,
    /// What the step may use, if that is less than the build and the worker allow.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable)]
    pub limits: Option<SubmittedLimits>,
    /// Whether the step runs even if an earlier step failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(extend("default" = false)))]
    pub always: Option<bool>,
}

object!(SubmittedStep, "a step, such as { run = [\"make\"] }");

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
    /// The program and its arguments, and whether they were given as one string for the shell.
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
        match self.0.subsec_nanos() {
            0 => serializer.serialize_u64(self.0.as_secs()),
            _ => serializer.serialize_str(&duration::exact(self.0)),
        }
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        HumanDuration::deserialize(deserializer).map(|HumanDuration(duration)| Self(duration))
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
        const UNITS: &str = "^([0-9]{1,6}w)?([0-9]{1,6}d)?([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?([0-9]{1,6}ms)?$";
        let units =
            text().min_length(Some(2)).pattern(Some(UNITS)).description(Some("With units, such as 5m or 1h30m."));
        OneOfBuilder::new().item(whole).item(units).into()
    }
}

impl ToSchema for Seconds {}
