//! The JSON Schemas in contrib/schemas compared with the readers: what a reader accepts fits the schema, and the
//! defaults are those of the reader. `schemas/gaps.txt` lists what a schema cannot refuse.
//!
//! `ROUSE_BLESS=1 cargo test -p rouse-tests --test schemas` rewrites this list.
#![allow(clippy::unwrap_used)]

use rouse_agent::config::AgentConfig;
use rouse_master::broker::Authority;
use rouse_master::clock;
use rouse_master::config::{Config, Problem};
use rouse_master::submission;
use rouse_tests::harness::scratch;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use toml::{Table, Value};

const SCHEMAS: [&str; 3] = ["rouse", "agent", "build"];
const ROUSE: usize = 0;
const AGENT: usize = 1;
const BUILD: usize = 2;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn schema(schema: usize) -> Json {
    serde_json::from_str(&read(&format!("contrib/schemas/{}.schema.json", SCHEMAS[schema]))).unwrap()
}

/// What is wrong with each document by its schema; empty if nothing is.
fn verdicts(documents: &[(usize, &Table)]) -> Vec<String> {
    let python = Command::new(root().join("tests/venv")).arg("schemas").output().unwrap();
    assert!(python.status.success(), "tests/venv schemas: {}", String::from_utf8_lossy(&python.stderr));
    let mut validator = Command::new(String::from_utf8(python.stdout).unwrap().trim())
        .arg(root().join("tests/schemas/validate.py"))
        .args(SCHEMAS.map(|name| root().join(format!("contrib/schemas/{name}.schema.json"))))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines: String = documents.iter().map(|case| serde_json::to_string(case).unwrap() + "\n").collect();
    let mut input = validator.stdin.take().unwrap();
    // Beside the reading below: a pipe that is full holds both up.
    let writer = std::thread::spawn(move || input.write_all(lines.as_bytes()));
    let output = validator.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success());
    let verdicts: Vec<_> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(verdicts.len(), documents.len());
    verdicts
}

fn errors(document: &Table) -> Vec<Problem> {
    let text = toml::to_string(document).unwrap();
    Config::parse(&text, &root().join("rouse.toml")).map_or_else(|errors| errors.0, |_| Vec::new())
}

fn accepts(schema: usize, document: &Table) -> bool {
    let text = toml::to_string(document).unwrap();
    match schema {
        ROUSE => errors(document).is_empty(),
        AGENT => {
            AgentConfig::parse(&text, "agent.toml", &std::env::vars().filter(|(name, _)| name == "PATH").collect())
                .is_ok()
        }
        _ => submission::from_toml(&text).is_ok(),
    }
}

#[test]
fn the_examples_fit_and_name_their_schema() {
    let pages = read("docs/builds.md");
    let build = pages.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let examples = [
        (ROUSE, "contrib/rouse.example.toml", read("contrib/rouse.example.toml")),
        (ROUSE, "master/src/config/tests/example.toml", read("master/src/config/tests/example.toml")),
        (AGENT, "contrib/agent.example.toml", read("contrib/agent.example.toml")),
        (AGENT, "images/agent.toml", read("images/agent.toml")),
        (BUILD, "docs/builds.md", build.to_owned()),
    ];
    let documents: Vec<Table> = examples.iter().map(|(_, _, text)| text.parse().unwrap()).collect();
    let cases: Vec<_> = examples.iter().zip(&documents).map(|((schema, _, _), document)| (*schema, document)).collect();
    for ((_, path, _), wrong) in examples.iter().zip(verdicts(&cases)) {
        assert_eq!(wrong, "", "{path}");
    }
    for (schema, path, text) in examples.iter().filter(|(_, path, _)| path.starts_with("contrib/")) {
        let line = format!("#:schema ./schemas/{}.schema.json\n", SCHEMAS[*schema]);
        assert!(text.starts_with(&line), "{path} does not begin with {line}");
    }
}

/// Documents around each section, in which one key at a time is replaced. Further ones are for keys that no value fits in
/// the ones before, since keys depend on each other.
const AROUND: [(usize, &str, &[&str]); 16] = [
    (ROUSE, "", &[""]),
    (ROUSE, "master", &[""]),
    (ROUSE, "broker", &[""]),
    (ROUSE, "mail", &[""]),
    (ROUSE, "audit", &[""]),
    (ROUSE, "limits", &[""]),
    (
        ROUSE,
        "token",
        &[
            "[[token]]\nname = 't'\nhash = 'sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08'\nmay = ['read']",
        ],
    ),
    (ROUSE, "remote_user", &["[remote_user]\ntrusted_proxies = '192.0.2.1'\nmay = ['read']"]),
    (
        ROUSE,
        "worker",
        &["[[worker]]\nname = 'w'\npassword = 'x'", "[[worker]]\nname = 'w'\npassword = 'x'\n[worker.process]"],
    ),
    (
        ROUSE,
        "worker.ec2",
        &[
            "[[worker]]\nname = 'w'\npassword = 'x'\n[worker.ec2]\ninstance_type = 'm'\nami = 'a'",
            "[[worker]]\nname = 'w'\npassword = 'x'\n[worker.ec2]\ninstance_type = 'm'\nvalid_ami_owners = 1",
            "[[worker]]\nname = 'w'\npassword = 'x'\n[worker.ec2]\ninstance_type = 'm'\nami = 'a'\nidentifier = 'i'\n\
             secret_identifier = 's'",
        ],
    ),
    (
        ROUSE,
        "worker.libvirt",
        &["[[worker]]\nname = 'w'\npassword = 'x'\n[worker.libvirt]\nconnection = 'qemu:///session'\nhd_image = 'd'"],
    ),
    (
        ROUSE,
        "worker.openstack",
        &[
            "[[worker]]\nname = 'w'\npassword = 'x'\n[worker.openstack]\nflavor = 'f'\nimage = 'i'",
            "[[worker]]\nname = 'w'\npassword = 'x'\n[worker.openstack]\nflavor = 'f'\nimage = 'i'\n\
             os_application_credential_id = 'i'\nos_application_credential_secret = 's'",
        ],
    ),
    (ROUSE, "worker.process", &["[[worker]]\nname = 'w'\npassword = 'x'\n[worker.process]"]),
    (AGENT, "", &["broker = 'amqps://h'\nidentity = 'static'\nname = 'w'\npassword = 'x'"]),
    (BUILD, "", &["[[step]]\nrun = 'true'"]),
    (BUILD, "step", &["[[step]]\nrun = 'true'"]),
];

/// What each key is given, right or wrong. `PRIVATE` stands for a file that only its owner can read.
const SAMPLES: &str = r#"
    "" | "x" | "Cargo.toml" | "two words" | "/x" | "none" | "5m" | "1h30m" | "5m1h" | "0s" | "64MB" | "1d2ms" | "b" | "static" | "latent"
    "stop" | "report" | "terminate" | "hibernate" | "builtin" | "newest" | "w{1..3}" | "Bad_Name" | "127.0.0.1:8090"
    "[::1]:80" | "localhost:80" | "a@example.org" | "amqp://h/v" | "amqps://u:p@h/v" | "http://h" | "https://h/p"
    "smtp://h" | "smtps://u:p@h:1" | "0123456789abcdefghij" | "qemu:///system" | "208.77.188.166" | "a\nb"
    0 | 1 | -1 | 7 | 101 | 5000000000 | 1000000000000 | 0.0 | 1.5 | -1.5 | true | false
    [] | [""] | ["x"] | ["b", "c"] | ["a@example.org"] | ["127.0.0.1:1"] | ["stop", 1] | [1] | [1.5] | [["a", "b"]] | [["a"]]
    [{ device = "/dev/x" }] | [{ size = 1 }] | [{ run = "x" }] | [{}]
    {} | { a = "x" } | { a = 1 } | { file = "PRIVATE" } | { env = "PATH" } | { file = "PRIVATE", env = "PATH" }
    { name_regex = "x" } | { name_regex = "x", pick = "oldest" } | { command = ["x"] } | { command = ["x"], pick = "oldest" }
    ["read"] | ["build", "admin"] | ["read", "destroy"] | { trusted_proxies = ["2001:db8::1"], may = ["read"] }
    { name_regex = "x", command = ["x"] } | { path = "x" }
    "on" | "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08" | { cert = "PEM", key = "PEM" } | { cert = "PEM" }
"#;

/// Writes a file that only its owner can read.
fn private() -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("private");
    rouse_tests::harness::write_private(&path, "x");
    path
}

/// `PEM` is the file with this certificate and its key.
fn samples(pem: &Path) -> Vec<(String, Value)> {
    let private = private();
    let real = |text: &str| text.replace("PEM", pem.to_str().unwrap()).replace("PRIVATE", private.to_str().unwrap());
    let texts = SAMPLES.lines().flat_map(|line| line.split(" | ")).map(str::trim).filter(|text| !text.is_empty());
    texts
        .map(|text| (text.to_owned(), format!("x = {}", real(text)).parse::<Table>().unwrap().remove("x").unwrap()))
        .collect()
}

/// The table of a document at such a path; of a list, its last item.
fn table_at<'t>(document: &'t mut Table, path: &str) -> &'t mut Table {
    path.split('.').filter(|part| !part.is_empty()).fold(document, |table, part| {
        let next = table.entry(part).or_insert_with(|| Table::new().into());
        match next {
            Value::Array(items) => items.last_mut().unwrap().as_table_mut().unwrap(),
            other => other.as_table_mut().unwrap(),
        }
    })
}

/// The schemas of a section's keys.
fn keys(schema: &Json, path: &str) -> BTreeMap<String, Json> {
    let section = path.split('.').filter(|part| !part.is_empty()).fold(schema, |section, part| {
        let next = &section["properties"][part];
        next.get("items").unwrap_or(next)
    });
    section["properties"].as_object().unwrap().clone().into_iter().collect()
}

/// Whether the reader accepts each sample, and whether the schema does.
type Verdicts<'s> = BTreeMap<&'s str, (bool, bool)>;

#[test]
fn what_a_reader_accepts_fits_and_the_gaps_are_known() {
    let dir = scratch("schemas");
    let authority = Authority::open(&dir).unwrap();
    authority.issue(&["localhost".to_owned()], clock::wall()).unwrap();
    let samples = samples(&authority.issued().cert);
    let mut cases = Vec::new();
    for (number, section, around) in AROUND {
        for key in keys(&schema(number), section).into_keys() {
            let path = if section.is_empty() { key.clone() } else { format!("{section}.{key}") };
            for text in around {
                let mut any = false;
                for (sample, value) in &samples {
                    let mut document: Table = text.parse().unwrap();
                    table_at(&mut document, section).insert(key.clone(), value.clone());
                    let accepted = accepts(number, &document);
                    any |= accepted;
                    cases.push((number, path.clone(), sample, accepted, document));
                }
                // Else the key needs others beside it, or none of those that are there.
                if any {
                    break;
                }
            }
        }
    }
    let documents: Vec<_> = cases.iter().map(|(schema, _, _, _, document)| (*schema, document)).collect();
    let mut found: BTreeMap<(usize, &str), Verdicts<'_>> = BTreeMap::new();
    for ((schema, path, sample, accepted, document), wrong) in cases.iter().zip(verdicts(&documents)) {
        let name = SCHEMAS[*schema];
        assert!(!*accepted || wrong.is_empty(), "{name}.toml: {path} = {sample} is accepted, and {wrong}: {document}");
        let (reader, fits) = found.entry((*schema, path)).or_default().entry(sample).or_default();
        *reader |= *accepted;
        *fits |= wrong.is_empty();
    }
    let mut gaps =
        String::from("# Values that fit the schema and that the reader refuses: the key, then the values.\n");
    for ((schema, path), samples) in &found {
        let is_section = AROUND.iter().any(|(number, section, _)| (number, section) == (schema, path));
        assert!(is_section || samples.values().any(|(reader, _)| *reader), "no sample of {path} is right");
        assert!(samples.values().any(|(_, fits)| !*fits), "no sample of {path} is wrong by the schema");
        let known: Vec<_> = samples.iter().filter(|(_, verdict)| **verdict == (false, true)).map(|(s, _)| *s).collect();
        if !known.is_empty() {
            writeln!(gaps, "{}.toml {path}: {}", SCHEMAS[*schema], known.join(" | ")).unwrap();
        }
    }
    fs::remove_dir_all(dir).unwrap();
    let path = root().join("tests/tests/schemas/gaps.txt");
    if std::env::var_os("ROUSE_BLESS").is_some() {
        fs::write(&path, &gaps).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        gaps == kept,
        "tests/tests/schemas/gaps.txt is not as it was; now:\n{gaps}\nif that is right, ROUSE_BLESS=1"
    );
}

/// The configuration without what the spelling of a file leaves in it.
fn meaning(document: &Table) -> Option<Config> {
    let mut config = Config::parse(&toml::to_string(document).unwrap(), Path::new("rouse.toml")).ok()?;
    config.warnings.clear();
    for worker in config.plan.workers.values_mut() {
        if let Some(latent) = &mut Arc::make_mut(worker).latent {
            latent.fingerprint = 0;
        }
    }
    Some(config)
}

#[test]
fn the_defaults_of_the_schema_are_those_of_the_readers() {
    let mut compared = 0;
    for (number, section, around) in AROUND {
        for (key, described) in keys(&schema(number), section) {
            let Some(default) = described.get("default") else { continue };
            let default = Value::try_from(default).unwrap();
            let mut here = 0;
            for text in around {
                let mut without: Table = text.parse().unwrap();
                table_at(&mut without, section).remove(&key);
                let mut with = without.clone();
                table_at(&mut with, section).insert(key.clone(), default.clone());
                let (without_text, with_text) = (toml::to_string(&without).unwrap(), toml::to_string(&with).unwrap());
                let same = match number {
                    ROUSE => meaning(&with).map(|with| Some(with) == meaning(&without)),
                    AGENT => {
                        let read = |text| AgentConfig::parse(text, "agent.toml", &Vec::new()).ok();
                        read(&with_text).map(|with| Some(with) == read(&without_text))
                    }
                    _ => {
                        let read = |text| submission::from_toml(text).ok();
                        read(&with_text).map(|with| Some(with) == read(&without_text))
                    }
                };
                assert_ne!(
                    same,
                    Some(false),
                    "{}.toml: {section} {key} = {default} is not the default",
                    SCHEMAS[number]
                );
                here += usize::from(same.is_some());
            }
            assert!(here > 0, "{}.toml: {section} {key} = {default} is refused", SCHEMAS[number]);
            compared += here;
        }
    }
    assert!(compared > 40, "only {compared} defaults were compared");
}

/// Right values for keys that are wrong in faulty.toml; one that is not here is left out.
const RIGHT: &str = "
    name = 'w'
    password = 'x'
    [ec2]
    ami = 'a'
    instance_type = 'm'
    valid_ami_location_regex = 'x'
    [libvirt]
    connection = 'qemu:///session'
    hd_image = 'd'
    [openstack]
    flavor = 'f'
    image = 'i'
";

/// ConfigErrors of faulty.toml that no schema can express, by line and key.
const NOT_EXPRESSED: [&str; 11] = [
    "8 broker.auth_listen",
    "17 mail.relay",
    "35 worker.name",
    "36 worker.password.file",
    "38 worker.lease",
    "43 worker.password.env",
    "53 worker.ec2.valid_ami_location_regex",
    "64 worker.ec2.elastic_ip",
    "87 worker.libvirt.hd_image",
    "95 worker.libvirt.base_image",
    "123 store.url",
];

#[test]
fn each_fault_that_a_schema_can_express_does_not_fit() {
    let text = read("master/src/config/tests/faulty.toml");
    let errors = Config::parse(&text, Path::new("rouse.toml")).unwrap_err().0;
    let document: Table = text.parse().unwrap();
    let isolated: Vec<Table> = errors.iter().map(|error| isolate(&document, &text, error, &errors)).collect();
    let cases: Vec<_> = isolated.iter().map(|document| (ROUSE, document)).collect();
    let passed = errors.iter().zip(verdicts(&cases)).filter(|(_, wrong)| wrong.is_empty());
    let passed: Vec<_> = passed.map(|(error, _)| format!("{} {}", error.line, error.key)).collect();
    assert_eq!(passed, NOT_EXPRESSED);
}

const PROVIDERS: [&str; 4] = ["ec2", "libvirt", "openstack", "process"];

/// The section of an error alone, with every other error of it put right.
fn isolate(document: &Table, text: &str, error: &Problem, all: &[Problem]) -> Table {
    // Workers have one path: which is meant, the line says.
    let place = |error: &Problem| {
        let section = error.key.split('.').next().unwrap().to_owned();
        (section, text.lines().take(error.line).filter(|line| *line == "[[worker]]").count())
    };
    let (section, worker) = place(error);
    let mut alone = document[&section].clone();
    if section == "worker" {
        alone = vec![alone.as_array().unwrap()[worker - 1].clone()].into();
    }
    let mut isolated = Table::from_iter([(section.clone(), alone)]);
    let table = table_at(&mut isolated, &section);
    let key = key_of(error);
    for other in all.iter().filter(|other| place(other) == place(error)).map(key_of).filter(|other| *other != key) {
        if other.len() == 1 && other.first() == key.first() {
            // Its whole section is the other error: the worker has another provider.
            PROVIDERS.iter().filter(|name| **name != other[0]).for_each(|name| drop(table.remove(*name)));
        } else {
            put_right(table, &other);
        }
    }
    isolated
}

/// A error's key in its section: `ec2.ami` of a worker, `listen` of the broker. Not what is wrong within its value.
fn key_of(error: &Problem) -> Vec<String> {
    let parts: Vec<&str> = error.key.split(['.', '[']).skip(1).collect();
    let provider = PROVIDERS.iter().any(|name| parts.first() == Some(name));
    parts.into_iter().take(if provider { 2 } else { 1 }).map(str::to_owned).collect()
}

fn put_right(table: &mut Table, key: &[String]) {
    let right: Table = RIGHT.parse().unwrap();
    match key {
        [key] => match right.get(key).filter(|value| !value.is_table()) {
            Some(value) => drop(table.insert(key.clone(), value.clone())),
            None => drop(table.remove(key)),
        },
        [section, key] => {
            let Some(table) = table.get_mut(section).and_then(Value::as_table_mut) else { return };
            match right.get(section).and_then(|section| section.get(key)) {
                Some(value) => drop(table.insert(key.clone(), value.clone())),
                None => drop(table.remove(key)),
            }
        }
        _ => {}
    }
}
