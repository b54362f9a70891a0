//! The shape of a submission, as serde reads it from any of its languages. What the values may be is checked later.

use rouse_shared::duration::HumanDuration;
use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;

/// A build: what runs, and where.
#[derive(Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(extend("not" = { "required": ["where", "worker"] })))]
#[serde(deny_unknown_fields, expecting = "a build, such as { step = [{ run = [\"make\"] }] }")]
pub(super) struct BuildShape {
    /// What people call it.
    #[cfg_attr(test, schemars(length(max = super::MAX_NAME)))]
    pub(super) name: Option<String>,
    /// Any worker that has all of these properties; without `where` and `worker`, any worker.
    pub(super) r#where: Option<BTreeMap<String, String>>,
    /// This worker.
    #[cfg_attr(test, schemars(regex(pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")))]
    pub(super) worker: Option<String>,
    /// Among waiting builds the higher number goes first, then the older build.
    #[cfg_attr(test, schemars(range(min = i32::MIN, max = i32::MAX), extend("default" = 0)))]
    pub(super) priority: Option<i64>,
    /// How many attempts may be lost with their hosts before the build is lost too.
    #[cfg_attr(test, schemars(range(min = 0, max = super::MAX_RETRIES), extend("default" = super::DEFAULT_RETRIES)))]
    pub(super) retries: Option<i64>,
    /// The longest that the whole build may run. After that it fails.
    #[cfg_attr(test, schemars(with = "Option<super::schema_tests::Time>"))]
    pub(super) timeout: Option<HumanDuration>,
    /// Added to the environment of every step.
    pub(super) env: Option<BTreeMap<String, String>>,
    /// The steps, which run one after another.
    #[cfg_attr(test, schemars(required, length(min = 1, max = super::MAX_STEPS)))]
    #[serde(alias = "steps")]
    pub(super) step: Option<Vec<StepShape>>,
}

/// A step of a build.
#[derive(Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(inline))]
#[serde(deny_unknown_fields, expecting = "a step, such as { run = [\"make\"] }")]
pub(super) struct StepShape {
    /// What people call it. Default: the command's first word.
    #[cfg_attr(test, schemars(length(max = super::MAX_NAME)))]
    pub(super) name: Option<String>,
    /// The program and its arguments, or one string for `sh -c`.
    #[cfg_attr(test, schemars(required))]
    pub(super) run: Option<Run>,
    /// A directory below the build's own, which is new and empty for each attempt.
    pub(super) workdir: Option<String>,
    /// Added to the environment, on top of the build's `env`.
    pub(super) env: Option<BTreeMap<String, String>>,
    /// The longest that the step may run.
    #[cfg_attr(test, schemars(with = "Option<super::schema_tests::Time>"))]
    pub(super) timeout: Option<HumanDuration>,
    /// The longest that the step may print nothing.
    #[cfg_attr(test, schemars(with = "Option<super::schema_tests::Time>"))]
    pub(super) silence: Option<HumanDuration>,
    /// Whether the step runs even after one that failed.
    #[cfg_attr(test, schemars(extend("default" = false)))]
    pub(super) always: Option<bool>,
}

/// A command: a list of words, or one text for the shell.
pub(super) enum Run {
    Words(Vec<String>),
    Shell(String),
}

impl Run {
    /// The program and its arguments, and whether they came as a text for the shell.
    pub(super) fn into_words(self) -> (Vec<String>, bool) {
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
