//! `rouse build`: puts a build together from file and options, submits it, follows it.

use super::args::BuildArgs;
use super::client::Client;
use super::follow::Follower;
use super::watch::Voice;
use super::{Failed, number, output};
use crate::submission;
use rouse_shared::duration;
use serde_json::{Map, Value, json};
use std::path::Path;

/// What shells show for a program that Ctrl-C has ended.
const INTERRUPTED: u8 = 130;

/// Submits, and unless detached follows. The exit code of the build, or of the submission.
pub(super) async fn build(client: &Client, args: &BuildArgs) -> Result<u8, Failed> {
    let build = put_together(args)?;
    let accepted = client.post("/api/builds", Some(&build)).await?;
    let id =
        accepted["id"].as_str().ok_or_else(|| Failed::Refused("the master gave the build no number".to_owned()))?;
    let id = number(id)?;
    if args.detach {
        if args.json {
            output::json(&client.get(&format!("/api/builds/{id}")).await?)?;
        } else {
            output::line(&id.to_string())?;
        }
        return Ok(0);
    }
    let mut voice = Voice::new();
    voice.say(&format!("build {id} is accepted"));
    let followed = {
        let mut follower = Follower::new(client, id, &mut voice, !args.json);
        tokio::select! {
            followed = follower.build() => Some(followed),
            _ = tokio::signal::ctrl_c() => None,
        }
    };
    voice.quiet();
    let Some(followed) = followed else {
        voice
            .say(&format!("build {id} goes on; `rouse cancel {id}` ends it, `rouse log {id} --follow` shows it again"));
        return Ok(INTERRUPTED);
    };
    let (code, build) = followed?;
    if args.json {
        output::json(&build)?;
    }
    Ok(code)
}

/// The build as the master takes it: what the file says, and over it what the options say.
fn put_together(args: &BuildArgs) -> Result<Value, Failed> {
    let mut build = match &args.file {
        Some(path) => read(path, args.command.is_empty())?,
        None => Map::new(),
    };
    let mut set = |key: &str, value: Value| build.insert(key.to_owned(), value);
    if let Some(name) = &args.name {
        set("name", json!(name));
    }
    if let Some(priority) = args.priority {
        set("priority", json!(priority));
    }
    if let Some(retries) = args.retries {
        set("retries", json!(retries));
    }
    if let Some(timeout) = args.timeout {
        set("timeout", json!(duration::exact(timeout)));
    }
    if !args.command.is_empty() {
        set("step", json!([{ "run": args.command }]));
    }
    // One says the opposite of the other: whichever the options have replaces both of the file's.
    if let Some(worker) = &args.worker {
        set("worker", json!(worker));
        build.remove("where");
    } else if !args.properties.is_empty() {
        set("where", args.properties.iter().map(|(key, value)| (key.clone(), json!(value))).collect());
        build.remove("worker");
    }
    if !args.env.is_empty() {
        let env = build.entry("env").or_insert_with(|| json!({}));
        // What is no table is told by the check below.
        if let Value::Object(env) = env {
            env.extend(args.env.iter().map(|(key, value)| (key.clone(), json!(value))));
        }
    }
    let build = Value::Object(build);
    submission::from_json(build.to_string().as_bytes()).map_err(|invalid| Failed::Usage(invalid.to_string()))?;
    Ok(build)
}

/// What a file says. `whole`: it must be a build by itself, and its faults are told with their lines.
fn read(path: &Path, whole: bool) -> Result<Map<String, Value>, Failed> {
    let wrong = |what: &dyn std::fmt::Display| Failed::Usage(format!("{}: {what}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| wrong(&error))?;
    if whole {
        submission::from_toml(&text).map_err(|invalid| wrong(&invalid))?;
    }
    toml::from_str(&text).map_err(|error| wrong(&error))
}
