//! The JSON Schema of `rouse.toml`, for editors: the keys that the reader knows, with the comments of the example file.
//!
//! The schema accepts everything that the reader accepts. It refuses what a schema can refuse: unknown keys, wrong
//! types, most ranges and combinations. Only `rouse check` can find out whether names are unique and whether files
//! exist.
#![allow(clippy::unwrap_used)]

use super::keys::{Key, Kind, ROOT, Rule, Section};
use rouse_shared::duration::LONGEST;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// What every duration written as text looks like: each unit at most once, the larger before the smaller.
pub(crate) const DURATION: &str = "^([0-9]+w)?([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$";

/// What every size written as text looks like.
pub(crate) const SIZE: &str = "^[0-9]+ *(B|kB|KB|MB|GB|KiB|MiB|GiB|K|M|G)?$";

const EXAMPLE: &str = include_str!("../../../contrib/rouse.example.toml");

/// The comments of sections and keys in the example, by path such as `worker.ec2.region`.
#[derive(Default)]
struct Comments {
    sections: BTreeSet<String>,
    texts: BTreeMap<String, String>,
}

impl Comments {
    fn of(example: &str) -> Self {
        let mut comments = Self::default();
        let (mut section, mut block, mut last) = (String::new(), Vec::new(), String::new());
        for line in example.lines() {
            if let Some(header) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
                section = header.trim_matches('[').to_owned();
                if comments.sections.insert(section.clone()) && !block.is_empty() {
                    comments.texts.insert(section.clone(), block.join("\n"));
                }
                (block, last) = (Vec::new(), String::new());
            } else if let Some(key) = key_of(line).filter(|key| is_key(&section, key)) {
                // Keys in a row share the comment above them. What is said of a key elsewhere comes on top.
                if !block.is_empty() {
                    last = std::mem::take(&mut block).join("\n");
                    let text: &mut String = comments.texts.entry(format!("{section}.{key}")).or_default();
                    *text = if text.is_empty() { last.clone() } else { format!("{text}\n{last}") };
                } else if !last.is_empty() {
                    comments.texts.entry(format!("{section}.{key}")).or_insert_with(|| last.clone());
                }
            } else if let Some(text) = line.strip_prefix('#') {
                if !text.ends_with("----") {
                    block.push(text.strip_prefix(' ').unwrap_or(text));
                }
            } else if line.is_empty() {
                (block, last) = (Vec::new(), String::new());
            }
        }
        comments
    }
}

/// The key that a line gives, or would give without its `#`.
fn key_of(line: &str) -> Option<&str> {
    let (key, _) = line.strip_prefix("# ").unwrap_or(line).split_once(" = ")?;
    key.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_').then_some(key)
}

fn is_key(section: &str, key: &str) -> bool {
    let mut keys = &ROOT;
    for part in section.split('.') {
        let found = keys.keys.iter().find(|key| key.name == part).map(|key| &key.kind);
        let Some(Kind::Table(next) | Kind::List(_, Kind::Table(next))) = found else { return false };
        keys = next;
    }
    keys.keys.iter().any(|known| known.name == key)
}

/// The schema, draft 7, which the common TOML editors read.
fn schema() -> Value {
    let comments = Comments::of(EXAMPLE);
    let mut schema = section(&ROOT, "", &comments);
    schema["$schema"] = json!("http://json-schema.org/draft-07/schema#");
    schema["title"] = json!("rouse.toml");
    schema["description"] = json!("The configuration of rouse's master. `rouse check` reports all errors.");
    schema
}

fn section(section: &Section, path: &str, comments: &Comments) -> Value {
    let properties: Map<String, Value> =
        section.keys.iter().map(|key| (key.name.to_owned(), described(key, path, comments))).collect();
    let required: Vec<_> = section.keys.iter().filter(|key| key.required).map(|key| key.name).collect();
    let mut schema = json!({ "type": "object", "properties": properties, "additionalProperties": false });
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    let rules: Vec<_> = section.rules.iter().flat_map(rule).collect();
    if !rules.is_empty() {
        schema["allOf"] = json!(rules);
    }
    schema
}

fn described(key: &Key, section: &str, comments: &Comments) -> Value {
    let path = if section.is_empty() { key.name.to_owned() } else { format!("{section}.{}", key.name) };
    let mut schema = kind(&key.kind, &path, comments);
    let text = comments.texts.get(&path);
    if let Some(text) = text {
        schema["description"] = json!(text);
    }
    let is_section = matches!(key.kind, Kind::Table(_)) && comments.sections.contains(&path);
    let in_example = is_section || text.is_some();
    let expected = section.is_empty() || comments.sections.contains(section);
    assert!(in_example || !expected || path == "worker", "contrib/rouse.example.toml has no comment above {path}");
    if let Some(default) = key.default {
        schema["default"] = serde_json::from_str(default).unwrap();
    }
    schema
}

fn kind(kind: &Kind, path: &str, comments: &Comments) -> Value {
    let inner = |kind| self::kind(kind, path, comments);
    match kind {
        Kind::Word => json!({ "type": "string", "minLength": 1 }),
        Kind::Text => json!({ "type": "string" }),
        Kind::Pattern(pattern) => json!({ "type": "string", "pattern": pattern }),
        Kind::Choice(words) => json!({ "enum": words }),
        Kind::Boolean => json!({ "type": "boolean" }),
        Kind::Whole(least, most) => json!({ "type": "integer", "minimum": least, "maximum": most }),
        Kind::Signed => json!({ "type": "integer", "minimum": i32::MIN, "maximum": i32::MAX }),
        Kind::Number => json!({ "type": "number", "minimum": 0 }),
        Kind::Positive => json!({ "type": "number", "exclusiveMinimum": 0 }),
        Kind::Duration(least) => duration(json!({ "type": "integer", "minimum": least, "maximum": LONGEST.as_secs() })),
        Kind::DurationOrNever => duration(json!({ "type": "integer", "maximum": LONGEST.as_secs() })),
        Kind::Size(least) => json!({ "anyOf": [
            { "type": "integer", "minimum": least },
            { "type": "string", "pattern": SIZE },
        ] }),
        Kind::Texts => json!({ "type": "object", "additionalProperties": { "type": "string" } }),
        Kind::List(least, item) => json!({ "type": "array", "items": inner(item), "minItems": least }),
        Kind::Pair => json!({ "type": "array", "items": inner(&Kind::Word), "minItems": 2, "maxItems": 2 }),
        Kind::Table(keys) => section(keys, path, comments),
        Kind::Any(kinds) => json!({ "anyOf": kinds.iter().map(inner).collect::<Vec<_>>() }),
    }
}

fn duration(seconds: Value) -> Value {
    json!({ "anyOf": [seconds, { "type": "string", "pattern": DURATION, "minLength": 2 }] })
}

fn rule(rule: &Rule) -> Vec<Value> {
    let has = |keys: &[&str]| json!({ "required": keys });
    let any = |keys: &[&str]| json!({ "anyOf": keys.iter().map(|key| has(&[*key])).collect::<Vec<_>>() });
    match rule {
        Rule::Needs(key, others) => vec![json!({ "if": has(&[*key]), "then": any(others) })],
        Rule::Some(keys) => vec![any(keys)],
        Rule::Apart(keys) => {
            let pairs = keys.iter().enumerate().flat_map(|(i, a)| keys[..i].iter().map(move |b| [*b, *a]));
            pairs.map(|pair| json!({ "not": has(&pair) })).collect()
        }
    }
}

/// Compares a schema with the one below contrib/schemas, or writes it there.
pub(crate) fn assert_checked_in(name: &str, schema: &Value) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../contrib/schemas/{name}.schema.json"));
    let now = format!("{schema:#}\n");
    if std::env::var_os("ROUSE_BLESS").is_some() {
        std::fs::write(&path, &now).unwrap();
    }
    assert!(
        now == std::fs::read_to_string(&path).unwrap_or_default(),
        "contrib/schemas/{name}.schema.json is out of date: ROUSE_BLESS=1 cargo test -p rouse-master schema"
    );
}

#[test]
fn the_schema_of_the_configuration_is_the_one_that_is_checked_in() {
    assert_checked_in("rouse", &schema());
}

#[test]
fn comments_belong_to_the_keys_below_them() {
    let comments = Comments::of(
        "# Not of a key.\n\n# Mail.\n[mail]\n# Who\n# sends it.\nfrom = \"a\"\nrelay = \"b\"\n# x = no key\n# ca = \"c\"\n\
         # ----\n# One.\n[[worker]]\n# Unique.\nname = \"a\"\n\n[[worker]]\n# Twenty.\nname = \"b\"\npassword = \"c\"\n",
    );
    let texts: Vec<_> = comments.texts.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    let expected = [
        ("mail", "Mail."),
        ("mail.ca", "x = no key"),
        ("mail.from", "Who\nsends it."),
        ("mail.relay", "Who\nsends it."),
        ("worker", "One."),
        ("worker.name", "Unique.\nTwenty."),
        ("worker.password", "Twenty."),
    ];
    assert_eq!(texts, expected);
}
