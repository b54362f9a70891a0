//! Builds the JSON Schema of `build.toml` from the types that read it, and compares it with the schema in the
//! repository.
#![allow(clippy::unwrap_used)]

use crate::api::{Run, Submission};
use crate::config::schema::{DURATION, SIZE, assert_checked_in};
use rouse_shared::duration::LONGEST;
use rouse_shared::limits::LEAST_MEMORY;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use std::borrow::Cow;

impl JsonSchema for Run {
    fn schema_name() -> Cow<'static, str> {
        "Run".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [
            { "type": "array", "items": { "type": "string" }, "minItems": 1 },
            { "type": "string", "minLength": 1 },
        ] })
    }
}

/// What `HumanDuration` of shared reads: that crate knows nothing of schemas.
pub(crate) struct Time;

impl JsonSchema for Time {
    fn schema_name() -> Cow<'static, str> {
        "Time".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [
            { "type": "integer", "minimum": 1, "maximum": LONGEST.as_secs() },
            { "type": "string", "pattern": DURATION, "minLength": 2 },
        ] })
    }
}

/// What `Bytes` reads.
pub(crate) struct Memory;

impl JsonSchema for Memory {
    fn schema_name() -> Cow<'static, str> {
        "Memory".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [
            { "type": "integer", "minimum": LEAST_MEMORY },
            { "type": "string", "pattern": SIZE },
        ] })
    }
}

#[test]
fn the_schema_of_builds_is_the_one_that_is_checked_in() {
    let schema = SchemaSettings::draft07().into_generator().into_root_schema_for::<Submission>();
    let mut schema = schema.to_value();
    without_null(&mut schema);
    without_null(&mut schema["properties"]["limits"]);
    without_null(&mut schema["properties"]["step"]["items"]);
    without_null(&mut schema["properties"]["step"]["items"]["properties"]["limits"]);
    schema["title"] = "build.toml".into();
    assert_checked_in("build", &schema);
}

/// TOML has no null: what may be absent is written or not. And the width of an integer says nothing beside its range.
fn without_null(schema: &mut serde_json::Value) {
    for property in schema["properties"].as_object_mut().unwrap().values_mut() {
        property.as_object_mut().unwrap().remove("format");
        if let Some(types) = property.get("type").and_then(|t| t.as_array()) {
            property["type"] = types[0].clone();
        }
        if let Some(kinds) = property.get_mut("anyOf").and_then(|k| k.as_array_mut()) {
            kinds.retain(|kind| kind["type"] != "null");
            if let [only] = &kinds[..] {
                *kinds = only["anyOf"].as_array().unwrap().clone();
            }
        }
    }
}
