//! Builds as people submit them: `build.toml`, JSON over HTTP, JSON or MessagePack in the submission queue. All of them
//! have the same fields and go through the same checks.

#[cfg(test)]
pub(crate) mod schema_tests;
#[cfg(test)]
mod tests;

use crate::api::{MAX_NAME, MAX_RETRIES, Submission, SubmittedLimits, SubmittedStep};
use crate::config::shorten;
use crate::core::build::{BuildSpec, Requirement};
use rouse_shared::WorkerName;
use rouse_shared::duration::{self, LONGEST};
use rouse_shared::limits::{LEAST_MEMORY, MAX_MESSAGE, MAX_STEPS, MOST_PIDS};
use rouse_shared::message::{Limits, Step};
use serde::de::Deserializer;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Component, Path};
use std::time::Duration;

/// Largest build that is taken, bytes as a message has them. Half of [`MAX_MESSAGE`]: an order adds the worker's
/// properties to it, and the ids.
pub const MAX_BUILD: usize = MAX_MESSAGE / 2;

/// The default of `retries`.
pub const DEFAULT_RETRIES: u32 = 2;

/// Why a submission is not taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Invalid {
    /// The path of the field at fault, such as `step[0].run`; `build` if the whole is meant.
    pub field: String,
    /// What is wrong with it, and what would be right.
    pub reason: String,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.reason)
    }
}

impl std::error::Error for Invalid {}

fn invalid<T>(field: impl Into<String>, reason: impl Into<String>) -> Result<T, Invalid> {
    Err(Invalid { field: field.into(), reason: reason.into() })
}

/// The build in the text of a `build.toml`.
///
/// # Errors
/// The first thing that is wrong with it; if its place in the text is known, the reason ends with it.
pub fn from_toml(text: &str) -> Result<BuildSpec, Invalid> {
    check(read_toml(text)?)
}

/// The content of a `build.toml`, which need not be a complete build.
///
/// # Errors
/// As [`from_toml`]'s, but the values are not checked.
pub fn read_toml(text: &str) -> Result<Submission, Invalid> {
    refuse_large(text.len())?;
    let place = |span: Option<std::ops::Range<usize>>| {
        let before = span.and_then(|span| text.get(..span.start))?;
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        Some(format!(" (line {line}, column {column})"))
    };
    let document = toml::Deserializer::parse(text).or_else(|error| {
        let place = place(error.span()).unwrap_or_default();
        invalid("build", format!("not TOML: {}{place}", one_line(error.message())))
    })?;
    let (shape, error) = read(document);
    match error {
        None => Ok(shape),
        Some((field, error)) => {
            let place = place(error.span()).unwrap_or_default();
            invalid(field, format!("{}{place}", one_line(error.message())))
        }
    }
}

/// The build in a JSON object.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn from_json(bytes: &[u8]) -> Result<BuildSpec, Invalid> {
    refuse_large(bytes.len())?;
    let mut document = serde_json::Deserializer::from_slice(bytes);
    let (shape, error) = read(&mut document);
    if let Some((field, error)) = error {
        return invalid(field, one_line(&error.to_string()));
    }
    if let Err(error) = document.end() {
        return invalid("build", one_line(&error.to_string()));
    }
    check(shape)
}

/// The build in a MessagePack map of the same keys.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn from_msgpack(bytes: &[u8]) -> Result<BuildSpec, Invalid> {
    refuse_large(bytes.len())?;
    let mut rest = bytes;
    let (shape, error) = read(&mut rmp_serde::Deserializer::new(&mut rest));
    match error {
        Some((field, error)) => invalid(field, one_line(&error.to_string())),
        None if !rest.is_empty() => invalid("build", "there is something after the end of the build"),
        None => check(shape),
    }
}

/// The JSON object that [`from_json`] reads as this build: what a command sends.
pub fn to_json(spec: &BuildSpec) -> serde_json::Value {
    let limit = |ms: Option<u64>| ms.map(|ms| duration::exact(Duration::from_millis(ms)));
    let limits = |limits: Limits| {
        let cpus = limits.cpu_millis.map(|millis| millis as f64 / 1_000.0);
        serde_json::json!({ "memory": limits.memory, "pids": limits.pids, "cpus": cpus })
    };
    let (worker, r#where) = match &spec.requirement {
        Requirement::Worker(name) => (Some(name), None),
        Requirement::Where(properties) => (None, Some(properties)),
    };
    let step = |step: &Step| {
        serde_json::json!({
            "name": step.name, "run": step.run, "workdir": step.workdir, "env": step.env, "always": step.always,
            "timeout": limit(step.timeout_ms), "silence": limit(step.silence_ms), "limits": limits(step.limits),
        })
    };
    serde_json::json!({
        "name": spec.name, "worker": worker, "where": r#where, "priority": spec.priority, "retries": spec.retries,
        "timeout": limit(spec.timeout_ms), "queue_timeout": limit(spec.queue_timeout_ms), "env": spec.env,
        "limits": limits(spec.limits), "keep": spec.keep, "step": spec.steps.iter().map(step).collect::<Vec<_>>(),
    })
}

fn refuse_large(size: usize) -> Result<(), Invalid> {
    if size > MAX_MESSAGE {
        return invalid("build", format!("has {size} bytes, more than {MAX_MESSAGE}, the maximum"));
    }
    Ok(())
}

/// The shape in a document, or an empty one with the path of the field at fault and the reader's error.
fn read<'de, D: Deserializer<'de>>(document: D) -> (Submission, Option<(String, D::Error)>) {
    match serde_path_to_error::deserialize::<_, Submission>(document) {
        Ok(shape) => (shape, None),
        Err(error) => {
            let path = error.path().to_string();
            // A path that got lost, or that goes to the whole, is written with a dot or a question mark.
            let path = shorten(&one_line(&path));
            let field = if path.is_empty() || path.starts_with(['.', '?']) { "build".to_owned() } else { path };
            (Submission::default(), Some((field, error.into_inner())))
        }
    }
}

/// An error's text without line breaks, and not longer than anybody reads.
fn one_line(text: &str) -> String {
    let text = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    let text = text.collect::<Vec<_>>().join(" ");
    if text.chars().count() <= 400 { text } else { text.chars().take(400).chain(['…']).collect() }
}

/// The build that a submission asks for.
///
/// # Errors
/// The first value that cannot be.
pub fn check(shape: Submission) -> Result<BuildSpec, Invalid> {
    let name = shape.name.unwrap_or_default();
    check_name("name", &name)?;
    let requirement = match (shape.worker, shape.r#where) {
        (Some(_), Some(_)) => return invalid("worker", "has `where` beside it: give one of the two"),
        (Some(worker), None) => match worker.parse::<WorkerName>() {
            Ok(worker) => Requirement::Worker(worker),
            Err(why) => return invalid("worker", why.to_string()),
        },
        (None, properties) => Requirement::Where(properties.unwrap_or_default()),
    };
    if let Requirement::Where(properties) = &requirement
        && properties.contains_key("")
    {
        return invalid("where", "a property has a name");
    }
    let retries = match u32::try_from(shape.retries.unwrap_or(DEFAULT_RETRIES.into())) {
        Ok(retries) if retries <= MAX_RETRIES => retries,
        Ok(_) | Err(_) => return invalid("retries", format!("must be 0 to {MAX_RETRIES}")),
    };
    let Ok(priority) = i32::try_from(shape.priority.unwrap_or(0)) else {
        return invalid("priority", format!("must be {} to {}", i32::MIN, i32::MAX));
    };
    let env = shape.env.unwrap_or_default();
    check_env("env", &env)?;
    let steps = shape.step.unwrap_or_default();
    if steps.is_empty() {
        return invalid("step", "a build has one step at least: write [[step]] and its run = [\"…\"]");
    }
    if steps.len() > MAX_STEPS {
        return invalid("step", format!("{} steps are more than {MAX_STEPS}, the maximum", steps.len()));
    }
    let steps = steps.into_iter().enumerate().map(|(i, step)| check_step(i, step)).collect::<Result<_, _>>()?;
    let timeout_ms = check_time("timeout", shape.timeout.map(|t| t.0))?;
    let queue_timeout_ms = check_time("queue_timeout", shape.queue_timeout.map(|t| t.0))?;
    let limits = check_limits("limits", shape.limits)?;
    let keep = shape.keep.unwrap_or(false);
    let spec =
        BuildSpec { name, requirement, priority, retries, timeout_ms, queue_timeout_ms, env, limits, keep, steps };
    let size = rouse_shared::codec::encode(&spec).len();
    if size > MAX_BUILD {
        return invalid("build", format!("has {size} bytes, more than {MAX_BUILD}, the maximum"));
    }
    Ok(spec)
}

fn check_step(i: usize, step: SubmittedStep) -> Result<Step, Invalid> {
    let field = |name: &str| format!("step[{i}].{name}");
    let Some(run) = step.run else {
        return invalid(field("run"), "missing: write run = [\"make\", \"-j4\"], or one string for sh -c");
    };
    let (run, shell) = run.into_words();
    if run.first().is_none_or(|program| program.is_empty()) || (shell && run.last().is_none_or(|t| t.trim().is_empty()))
    {
        return invalid(field("run"), "must begin with a program");
    }
    if let Some(n) = run.iter().position(|word| word.contains('\0')) {
        let path = if shell { field("run") } else { field(&format!("run[{n}]")) };
        return invalid(path, "must not contain a NUL character");
    }
    let name = step.name.filter(|name| !name.is_empty()).unwrap_or_else(|| default_name(i, &run, shell));
    check_name(&field("name"), &name)?;
    let workdir = step.workdir.unwrap_or_default();
    check_workdir(&field("workdir"), &workdir)?;
    let env = step.env.unwrap_or_default();
    check_env(&field("env"), &env)?;
    Ok(Step {
        name,
        workdir,
        env,
        timeout_ms: check_time(&field("timeout"), step.timeout.map(|t| t.0))?,
        silence_ms: check_time(&field("silence"), step.silence.map(|t| t.0))?,
        always: step.always.unwrap_or(false),
        limits: check_limits(&field("limits"), step.limits)?,
        run,
    })
}

/// The command's first word, if that can be a name.
fn default_name(i: usize, run: &[String], shell: bool) -> String {
    let command = if shell { run.last() } else { run.first() };
    let word = command.and_then(|c| if shell { c.split_whitespace().next() } else { Some(c.as_str()) }).unwrap_or("");
    let word = word.rsplit('/').next().unwrap_or("").trim();
    if word.is_empty() || check_name("", word).is_err() { format!("step {}", i + 1) } else { word.to_owned() }
}

fn check_name(field: &str, name: &str) -> Result<(), Invalid> {
    if name.chars().count() > MAX_NAME {
        return invalid(field, format!("must have at most {MAX_NAME} characters"));
    }
    if name.chars().any(char::is_control) {
        return invalid(field, "must be on one line, without control characters");
    }
    Ok(())
}

fn check_workdir(field: &str, workdir: &str) -> Result<(), Invalid> {
    if workdir.contains('\0') {
        return invalid(field, "must not contain a NUL character");
    }
    let below = Path::new(workdir).components().all(|part| match part {
        Component::Normal(_) | Component::CurDir => true,
        Component::ParentDir | Component::RootDir | Component::Prefix(_) => false,
    });
    if below { Ok(()) } else { invalid(field, "must be below the build's own directory: a relative path without ..") }
}

fn check_env(field: &str, env: &BTreeMap<String, String>) -> Result<(), Invalid> {
    for (name, value) in env {
        if name.is_empty() || name.contains(['=', '\0']) {
            let shown = shorten(name);
            return invalid(
                field,
                format!(
                    "{shown:?} cannot be the name of a variable: it must not be empty or contain '=' or a NUL character"
                ),
            );
        }
        if value.contains('\0') {
            return invalid(format!("{field}.{}", shorten(name)), "must not contain a NUL character");
        }
    }
    Ok(())
}

fn check_limits(field: &str, limits: Option<SubmittedLimits>) -> Result<Limits, Invalid> {
    let SubmittedLimits { memory, pids, cpus } = limits.unwrap_or_default();
    if memory.is_some_and(|bytes| bytes.0 < LEAST_MEMORY) {
        return invalid(format!("{field}.memory"), format!("must be at least {LEAST_MEMORY} bytes"));
    }
    let pids = match pids.map(u64::try_from) {
        None => None,
        Some(Ok(pids @ 1..=MOST_PIDS)) => Some(pids),
        Some(_) => return invalid(format!("{field}.pids"), format!("must be 1 to {MOST_PIDS}")),
    };
    let Some(cpu_millis) = cpus.map(Limits::millis_of).map_or(Some(None), |millis| millis.map(Some)) else {
        return invalid(format!("{field}.cpus"), "must be above 0");
    };
    Ok(Limits { memory: memory.map(|bytes| bytes.0), pids, cpu_millis })
}

/// Milliseconds of a limit.
fn check_time(field: &str, time: Option<Duration>) -> Result<Option<u64>, Invalid> {
    match time {
        Some(time) if time < Duration::from_secs(1) => {
            invalid(field, "must be at least 1 s; for no limit leave it out")
        }
        Some(time) if time > LONGEST => invalid(field, "is longer than ten years, the maximum"),
        Some(time) => Ok(u64::try_from(time.as_millis()).ok()),
        None => Ok(None),
    }
}
