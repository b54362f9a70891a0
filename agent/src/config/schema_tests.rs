//! Builds the JSON Schema of `agent.toml` from the type that reads it and from the comments in
//! contrib/agent.example.toml, and compares it with the schema in the repository.
#![allow(clippy::unwrap_used)]

use super::units::{SecretSource, Size};
use super::{File, IdentityKind, KEYS};
use rouse_shared::duration::LONGEST;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use std::borrow::Cow;

macro_rules! inline_schema {
    ($type:ident: $schema:tt) => {
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

inline_schema!(Size: { "anyOf": [
    { "type": "integer", "minimum": 0 },
    { "type": "string", "pattern": "^[0-9]+\\s*(B|kB|KB|MB|GB|KiB|MiB|GiB)?$" },
] });

/// What `HumanDuration` of shared reads: that crate knows nothing of schemas.
pub(super) struct Time;

inline_schema!(Time: { "anyOf": [
    { "type": "integer", "minimum": 0, "maximum": LONGEST.as_secs() },
    {
        "type": "string",
        "pattern": "^([0-9]+|([0-9]+w)?([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?)$",
        "minLength": 1,
    },
] });

inline_schema!(SecretSource: { "anyOf": [
    { "type": "string", "minLength": 1 },
    {
        "type": "object",
        "properties": { "file": { "type": "string" }, "env": { "type": "string" } },
        "additionalProperties": false,
        "minProperties": 1,
        "maxProperties": 1,
    },
] });

/// What `identity` may be.
pub(super) const IDENTITIES: [IdentityKind; 7] = [
    IdentityKind::Auto,
    IdentityKind::Static,
    IdentityKind::Hostname,
    IdentityKind::Ec2,
    IdentityKind::OpenStack,
    IdentityKind::ConfigDrive,
    IdentityKind::BootData,
];

/// The comment above a key of the example. Keys in a row share one.
fn comment(key: &str) -> String {
    const EXAMPLE: &str = include_str!("../../../contrib/agent.example.toml");
    let is_key = |line: &&str| {
        let key = line.strip_prefix("# ").unwrap_or(line).split_once(" = ").map_or("", |(key, _)| key);
        KEYS.contains(&key)
    };
    let lines: Vec<&str> = EXAMPLE.lines().collect();
    let at =
        lines.iter().position(|line| is_key(line) && line.trim_start_matches("# ").starts_with(&format!("{key} ")));
    let above = &lines[..at.unwrap_or_else(|| panic!("contrib/agent.example.toml does not have {key}"))];
    let above = above.iter().rev().skip_while(|line| is_key(line));
    let mut text: Vec<_> = above.take_while(|line| !is_key(line)).map_while(|line| line.strip_prefix("# ")).collect();
    text.reverse();
    assert!(!text.is_empty(), "contrib/agent.example.toml has no comment above {key}");
    text.join("\n")
}

#[test]
fn the_schema_is_the_one_that_is_checked_in() {
    let schema = SchemaSettings::draft07().into_generator().into_root_schema_for::<File>();
    let mut schema = schema.to_value();
    schema["title"] = "agent.toml".into();
    schema["description"] = "The configuration of rouse-agent. `rouse-agent --check` reports errors.".into();
    let properties = schema["properties"].as_object_mut().unwrap();
    let (mut keys, found): (Vec<_>, Vec<_>) = (KEYS.to_vec(), properties.keys().cloned().collect());
    keys.sort();
    assert_eq!(keys, found, "what the environment may give is what the file may give");
    for (key, property) in properties {
        property["description"] = comment(key).into();
        // TOML has no null: what may be absent is written or not.
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
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib/schemas/agent.schema.json");
    let now = format!("{schema:#}\n");
    if std::env::var_os("ROUSE_BLESS").is_some() {
        std::fs::write(&path, &now).unwrap();
    }
    assert!(
        now == std::fs::read_to_string(&path).unwrap_or_default(),
        "contrib/schemas/agent.schema.json is not what the type makes: ROUSE_BLESS=1 cargo test -p rouse-agent schema"
    );
}
