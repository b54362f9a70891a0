//! The shape of a submission, as serde reads it from any of its languages. What the values may be is checked later.

use rouse_shared::duration::HumanDuration;
use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a build, such as { step = [{ run = [\"make\"] }] }")]
pub(super) struct BuildShape {
    pub(super) name: Option<String>,
    pub(super) r#where: Option<BTreeMap<String, String>>,
    pub(super) worker: Option<String>,
    pub(super) priority: Option<i64>,
    pub(super) retries: Option<i64>,
    pub(super) timeout: Option<HumanDuration>,
    pub(super) env: Option<BTreeMap<String, String>>,
    #[serde(alias = "steps")]
    pub(super) step: Option<Vec<StepShape>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a step, such as { run = [\"make\"] }")]
pub(super) struct StepShape {
    pub(super) name: Option<String>,
    pub(super) run: Option<Run>,
    pub(super) workdir: Option<String>,
    pub(super) env: Option<BTreeMap<String, String>>,
    pub(super) timeout: Option<HumanDuration>,
    pub(super) silence: Option<HumanDuration>,
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
