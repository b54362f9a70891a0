//! Which submissions are accepted, which are refused, and with which messages.
#![allow(clippy::unwrap_used)]

use super::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};
use serde_json::json;

const WHOLE: &str = r#"
name = "unit tests"
where = { os = "linux" }
priority = 5
retries = 0
timeout = "1h"
env = { CI = "true" }
limits = { memory = "8G", pids = 4096, cpus = 1.5 }
[[step]]
name = "compile"
run = ["make", "-j4"]
workdir = "src"
env = { V = "1" }
timeout = "20m"
silence = 600
limits = { memory = 1048576 }
[[step]]
run = "  ./report.sh | tee out"
always = true
[[step]]
run = ["/usr/bin/env"]
"#;

fn said(result: Result<BuildSpec, Invalid>) -> String {
    result.map_or_else(|e| e.to_string(), |spec| format!("taken: {spec:?}"))
}

fn json_said(value: serde_json::Value) -> String {
    said(from_json(value.to_string().as_bytes()))
}

/// What is said of a build of one step with this in it.
fn step_said(step: serde_json::Value) -> String {
    json_said(json!({ "step": [step] }))
}

#[test]
fn every_key_is_read() {
    let spec = from_toml(WHOLE).unwrap();
    let texts =
        |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect::<BTreeMap<_, _>>();
    assert_eq!((&*spec.name, spec.priority, spec.retries, spec.timeout_ms), ("unit tests", 5, 0, Some(3_600_000)));
    assert_eq!(spec.requirement, Requirement::Where(texts(&[("os", "linux")])));
    assert_eq!(spec.env, texts(&[("CI", "true")]));
    let compile = Step {
        name: "compile".into(),
        run: vec!["make".into(), "-j4".into()],
        workdir: "src".into(),
        env: texts(&[("V", "1")]),
        timeout_ms: Some(1_200_000),
        silence_ms: Some(600_000),
        always: false,
        limits: Limits { memory: Some(1 << 20), ..Limits::default() },
    };
    assert_eq!(spec.limits, Limits { memory: Some(8 << 30), pids: Some(4_096), cpu_millis: Some(1_500) });
    assert_eq!(from_json(to_json(&spec).to_string().as_bytes()), Ok(spec.clone()));
    assert_eq!(spec.steps[0], compile);
    assert_eq!((&*spec.steps[1].name, spec.steps[1].always), ("report.sh", true));
    assert_eq!(spec.steps[1].run, ["sh", "-c", "  ./report.sh | tee out"]);
    assert_eq!(spec.steps[2].name, "env");
}

#[test]
fn all_languages_say_the_same() {
    let spec = from_toml(WHOLE).unwrap();
    let json = to_json(&spec);
    assert_eq!(from_json(json.to_string().as_bytes()).as_ref(), Ok(&spec));
    assert_eq!(from_msgpack(&rmp_serde::to_vec_named(&json).unwrap()).as_ref(), Ok(&spec));
    let written: serde_json::Value = toml::from_str(WHOLE).unwrap();
    assert_eq!(from_msgpack(&rmp_serde::to_vec_named(&written).unwrap()).as_ref(), Ok(&spec));
    assert_eq!(from_json(written.to_string().as_bytes()), Ok(spec));
}

#[test]
fn little_is_needed() {
    let spec = from_json(br#"{"steps": [{"run": ["true"]}], "worker": null, "timeout": null}"#).unwrap();
    assert_eq!((&*spec.name, spec.priority, spec.retries, spec.timeout_ms), ("", 0, DEFAULT_RETRIES, None));
    assert_eq!(spec.requirement, Requirement::Where(BTreeMap::new()));
    let named = from_json(br#"{"worker": "bot1", "step": [{"run": "true"}]}"#).unwrap();
    assert_eq!(named.requirement, Requirement::Worker("bot1".parse().unwrap()));
    assert_eq!(from_json(to_json(&named).to_string().as_bytes()), Ok(named));
}

#[test]
fn steps_have_names() {
    for (run, name) in [
        (json!(["make", "all"]), "make"),
        (json!(["./x/y z"]), "y z"),
        (json!("cargo test\n"), "cargo"),
        (json!(["a\nb"]), "step 1"),
        (json!(["dir/"]), "step 1"),
        (json!(["a".repeat(201)]), "step 1"),
    ] {
        let spec = from_json(json!({"step": [{"run": run}]}).to_string().as_bytes()).unwrap();
        assert_eq!(spec.steps[0].name, name, "{run}");
    }
}

#[test]
fn what_is_refused_and_how() {
    let ok = json!([{"run": "true"}]);
    let table = [
        (json!({}), "step: a build has one step at least: write [[step]] and its run = [\"…\"]"),
        (json!({"step": []}), "step: a build has one step at least: write [[step]] and its run = [\"…\"]"),
        (json!({"step": ok, "worker": "w", "where": {}}), "worker: has `where` beside it: give one of the two"),
        (json!({"step": ok, "retries": -1}), "retries: must be 0 to 100"),
        (json!({"step": ok, "retries": 101}), "retries: must be 0 to 100"),
        (json!({"step": ok, "priority": 2147483648u32}), "priority: must be -2147483648 to 2147483647"),
        (json!({"step": ok, "timeout": 0}), "timeout: must be at least 1 s; for no limit leave it out"),
        (json!({"step": ok, "timeout": "0s"}), "timeout: must be at least 1 s; for no limit leave it out"),
        (json!({"step": ok, "where": {"": "x"}}), "where: a property has a name"),
        (json!({"step": ok, "name": "a\u{7}"}), "name: must be on one line, without control characters"),
        (json!({"step": ok, "name": "x".repeat(201)}), "name: must have at most 200 characters"),
        (
            json!({"step": ok, "env": {"A=B": "x"}}),
            "env: \"A=B\" cannot be the name of a variable: it must not be empty or contain '=' or a NUL character",
        ),
        (
            json!({"step": ok, "env": {"": "x"}}),
            "env: \"\" cannot be the name of a variable: it must not be empty or contain '=' or a NUL character",
        ),
        (json!({"step": ok, "env": {"A": "x\0"}}), "env.A: must not contain a NUL character"),
        (json!({"step": ok, "limits": {"memory": "1kB"}}), "limits.memory: must be at least 1048576 bytes"),
        (json!({"step": ok, "limits": {"pids": 0}}), "limits.pids: must be 1 to 4194304"),
        (json!({"step": ok, "limits": {"cpus": 0}}), "limits.cpus: must be above 0"),
        (json!({"step": [{"run": "true", "limits": {"pids": -1}}]}), "step[0].limits.pids: must be 1 to 4194304"),
        (json!({"step": vec![json!({"run": "true"}); 1001]}), "step: 1001 steps are more than 1000, the maximum"),
    ];
    for (build, expected) in table {
        assert_eq!(json_said(build), expected);
    }
    let missing = "step[0].run: missing: write run = [\"make\", \"-j4\"], or one string for sh -c";
    let below = "step[0].workdir: must be below the build's own directory: a relative path without ..";
    let steps = [
        (json!({}), missing),
        (json!({"run": []}), "step[0].run: must begin with a program"),
        (json!({"run": [""]}), "step[0].run: must begin with a program"),
        (json!({"run": " \n"}), "step[0].run: must begin with a program"),
        (json!({"run": ["a", "b\0"]}), "step[0].run[1]: must not contain a NUL character"),
        (json!({"run": "b\0"}), "step[0].run: must not contain a NUL character"),
        (json!({"run": "a", "workdir": "/tmp"}), below),
        (json!({"run": "a", "workdir": "a/../../b"}), below),
        (json!({"run": "a", "workdir": ".."}), below),
        (json!({"run": "a", "name": "x\n"}), "step[0].name: must be on one line, without control characters"),
        (
            json!({"run": "a", "env": {"X\0": ""}}),
            "step[0].env: \"X\\0\" cannot be the name of a variable: it must not be empty or contain '=' or a NUL character",
        ),
        (json!({"run": "a", "silence": 0}), "step[0].silence: must be at least 1 s; for no limit leave it out"),
    ];
    for (step, expected) in steps {
        assert_eq!(step_said(step), expected);
    }
    assert!(step_said(json!({"run": "a", "workdir": "./a/b"})).starts_with("taken"));
}

#[test]
fn readers_name_the_field_too() {
    let begins = [
        (json!({"step": [{"run": "a"}], "nmae": "x"}), "nmae: unknown field `nmae`, expected one of "),
        (json!({"step": [{"run": "a", "cwd": "x"}]}), "step[0].cwd: unknown field `cwd`"),
        (
            json!({"step": [{"run": "a"}, {"run": ["a", 7]}]}),
            "step[1].run[1]: invalid type: integer `7`, expected a string",
        ),
        (
            json!({"step": [{"run": 7}]}),
            "step[0].run: invalid type: integer `7`, expected a list of strings, or one string",
        ),
        (json!({"step": "true"}), "step: invalid type: string \"true\""),
        (json!({"step": [], "timeout": 1.5}), "timeout: invalid type: floating point `1.5`, expected whole seconds"),
        (json!({"step": [], "timeout": -1}), "timeout: must not be negative"),
        (json!({"step": [], "timeout": "5x"}), "timeout: \"5x\" is not a duration: write 300, \"5m\" or \"1h30m\""),
        (json!({"step": [], "timeout": u64::MAX}), "timeout: a duration must not be longer than ten years"),
        (json!({"step": [], "priority": "high"}), "priority: invalid type: string \"high\""),
        (json!({"step": [], "where": {"os": 1}}), "where.os: invalid type: integer `1`"),
        (json!({"step": [{"run": "a"}], "worker": "No"}), "worker: \"No\" is not a worker name"),
        (json!("make"), "build: invalid type: string \"make\", expected a build"),
        (json!({"step": [7]}), "step[0]: invalid type: integer `7`, expected a step"),
    ];
    for (build, expected) in begins {
        let text = json_said(build.clone());
        assert!(text.starts_with(expected), "{text}\n  instead of\n{expected}");
        let text = said(from_msgpack(&rmp_serde::to_vec_named(&build).unwrap()));
        let field = expected.split(": ").next().unwrap();
        assert!(text.starts_with(&format!("{field}: ")), "MessagePack: {text}\n  instead of {field}");
    }
    assert!(said(from_json(b"{\"step\": [")).starts_with("step"), "{}", said(from_json(b"{\"step\": [")));
    assert!(said(from_json(b"")).starts_with("build: EOF while parsing"));
    assert!(said(from_json(b"{\"step\": [{\"run\": \"a\"}]} x")).starts_with("build: trailing characters"));
    let mut twice = rmp_serde::to_vec_named(&json!({"step": [{"run": "a"}]})).unwrap();
    twice.push(0);
    assert_eq!(said(from_msgpack(&twice)), "build: there is something after the end of the build");
}

#[test]
fn toml_has_line_and_column() {
    assert_eq!(
        said(from_toml("name = \"x\"\n[[step]]\nrun = \"a\"\n  cwd = \"b\"\n")).split(", expected").next().unwrap(),
        "step[0].cwd: unknown field `cwd`"
    );
    assert!(said(from_toml("name = \"x\"\n[[step]]\nrun = \"a\"\n  cwd = \"b\"\n")).ends_with(" (line 4, column 3)"));
    let text = said(from_toml("[[step]]\nrun = [\"é\", 7]\n"));
    assert!(
        text.starts_with("step[0].run[1]: invalid type: integer `7`") && text.ends_with("(line 2, column 13)"),
        "{text}"
    );
    let text = said(from_toml("name = \n"));
    assert!(text.starts_with("build: not TOML: ") && text.ends_with("(line 1, column 8)"), "{text}");
}

#[test]
fn builds_have_a_size() {
    let build = |bytes: usize| json_said(json!({"step": [{"run": ["echo", "x".repeat(bytes)]}]}));
    assert!(build(MAX_BUILD - 1000).starts_with("taken"));
    assert!(build(MAX_BUILD).starts_with("build: has "));
    assert!(build(MAX_MESSAGE).starts_with("build: has "));
    let spaces = vec![b' '; MAX_MESSAGE + 1];
    assert!(said(from_json(&spaces)).starts_with("build: has 4194305 bytes"));
    assert!(said(from_msgpack(&spaces)).starts_with("build: has 4194305 bytes"));
}

#[test]
fn no_bytes_make_it_panic() {
    let mut random = ChaCha8Rng::seed_from_u64(2);
    let spec = from_toml(WHOLE).unwrap();
    let seeds = [
        WHOLE.as_bytes().to_vec(),
        to_json(&spec).to_string().into_bytes(),
        rmp_serde::to_vec_named(&to_json(&spec)).unwrap(),
    ];
    for round in 0..6000 {
        let mut bytes = seeds[round % seeds.len()].clone();
        for _ in 0..1 + random.next_u32() % 8 {
            let at = random.next_u32() as usize % bytes.len();
            match random.next_u32() % 3 {
                0 => bytes[at] = random.next_u32() as u8,
                1 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, random.next_u32() as u8),
            }
        }
        for result in [from_json(&bytes), from_msgpack(&bytes), from_toml(&String::from_utf8_lossy(&bytes))] {
            if let Err(invalid) = result {
                let text = invalid.to_string();
                assert!(
                    !invalid.field.is_empty() && !invalid.reason.is_empty() && !text.contains(char::is_control),
                    "{text:?}"
                );
            }
        }
    }
    for deep in ["[", "{\"a\":", "{\"step\":[", "step=[[["] {
        let text = deep.repeat(50_000);
        assert!(from_json(text.as_bytes()).is_err() && from_toml(&text).is_err());
    }
    assert!(from_msgpack(&[0x91; 100_000]).is_err());
    assert!(from_msgpack(&[0xdf, 0xff, 0xff, 0xff, 0xff]).is_err());
}
