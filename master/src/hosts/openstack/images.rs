//! The image that a host boots, selected by id, by name, by a regular expression, or by a program of the operator.

use super::cloud::{Cloud, Service};
use super::error::CloudError;
use crate::config::hosts::{ImagePick, OpenstackImage};
use crate::core::event::StartError;
use serde_json::{Map, Value, json};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Time limit of an operator's program. It is a part of a call that has [`crate::hosts::CALL_LIMIT`], in which the
/// cloud must answer too.
const COMMAND_LIMIT: Duration = Duration::from_secs(20);
/// Largest number of bytes of its output that are read. An id and a line end have 37.
const OUTPUT: u64 = 64 << 10;
/// The fields that Glance has for every image. All others were set by the owner.
const OWN: &[&str] = &[
    "checksum",
    "container_format",
    "created_at",
    "direct_url",
    "disk_format",
    "file",
    "id",
    "locations",
    "min_disk",
    "min_ram",
    "name",
    "os_hash_algo",
    "os_hash_value",
    "os_hidden",
    "owner",
    "protected",
    "schema",
    "self",
    "size",
    "status",
    "stores",
    "tags",
    "updated_at",
    "virtual_size",
    "visibility",
];

/// The id of the image.
///
/// # Errors
/// If no image matches, or more than one; or if the cloud or the program does not answer.
pub async fn resolve(cloud: &Cloud, image: &OpenstackImage) -> Result<String, StartError> {
    match image {
        OpenstackImage::Id(text) => named(cloud, text).await,
        OpenstackImage::Name { regex, pick } => {
            let (all, coming) = listed(cloud, "").await.map_err(CloudError::before_start)?;
            let is_coming = || coming.iter().find(|image| matches(image, regex));
            matching(&all, regex, *pick).map_err(|why| unless_coming(is_coming(), why))
        }
        OpenstackImage::Command(words) => {
            let (all, _) = listed(cloud, "").await.map_err(CloudError::before_start)?;
            let list = Value::Array(all.iter().map(described).collect()).to_string();
            let chosen = ask_within(COMMAND_LIMIT, words, list).await.and_then(|id| {
                let known = all.iter().any(|image| image["id"] == *id);
                if known {
                    Ok(id)
                } else {
                    Err(format!("it printed {id:?}, which is not the id of an available image"))
                }
            });
            let program = words.first().map(String::as_str).unwrap_or_default();
            chosen.map_err(|why| StartError::Rejected(format!("{program} did not choose an image: {why}")))
        }
    }
}

/// Whether it has the form of an id.
pub fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// The images that can be booted now, and those that are being created.
async fn listed(cloud: &Cloud, more: &str) -> Result<(Vec<Value>, Vec<Value>), CloudError> {
    let all = cloud.list(Service::Image, &format!("/images?limit=100{more}"), "images").await?;
    let (active, others): (Vec<Value>, Vec<Value>) = all.into_iter().partition(|image| image["status"] == "active");
    Ok((active, others.into_iter().filter(is_being_made).collect()))
}

/// Whether it will be active soon: its data are being uploaded or imported.
fn is_being_made(image: &Value) -> bool {
    matches!(image["status"].as_str(), Some("queued" | "saving" | "uploading" | "importing"))
}

/// The error if no image was found. It is temporary if a matching one is being created.
fn unless_coming(coming: Option<&Value>, why: String) -> StartError {
    match coming {
        Some(image) => StartError::Place(format!("{why}; image {} is being created: {}", image["id"], image["status"])),
        None => StartError::Rejected(why),
    }
}

async fn named(cloud: &Cloud, text: &str) -> Result<String, StartError> {
    if is_uuid(text) {
        return match cloud.get(Service::Image, &format!("/images/{text}")).await {
            Ok(image) if image["status"] == "active" => Ok(text.to_owned()),
            Ok(image) => {
                let why = format!("image {text} is not available: its status is {}", image["status"]);
                Err(unless_coming(Some(&image).filter(|image| is_being_made(image)), why))
            }
            Err(problem) if problem.is_missing() => Err(StartError::Rejected(format!(
                "find the image {text}: there is none, or this project may not use it"
            ))),
            Err(problem) => Err(problem.before_start()),
        };
    }
    let query = reqwest::Url::parse_with_params("http://localhost", [("name", text)]);
    let query = query.ok().and_then(|url| url.query().map(|q| format!("&{q}"))).unwrap_or_default();
    let (all, coming) = listed(cloud, &query).await.map_err(CloudError::before_start)?;
    let ids: Vec<&str> = all.iter().filter(|image| image["name"] == *text).filter_map(|i| i["id"].as_str()).collect();
    match ids.as_slice() {
        [id] => Ok((*id).to_owned()),
        [] => {
            let is_coming = coming.iter().find(|image| image["name"] == *text);
            Err(unless_coming(is_coming, format!("image {text:?} not found: no image of that name is available")))
        }
        several => Err(StartError::Rejected(format!(
            "find the image {text:?}: {} have that name ({}); select one by its id, or with name_regex and pick",
            several.len(),
            several.join(", ")
        ))),
    }
}

/// Whether its name matches. An invalid expression matches nothing; [`matching`] reports it.
fn matches(image: &Value, regex: &str) -> bool {
    let regex = regex::Regex::new(regex).ok();
    regex.zip(image["name"].as_str()).is_some_and(|(regex, name)| regex.is_match(name))
}

/// The oldest or newest of the images whose name matches. The expression is already anchored.
fn matching(all: &[Value], regex: &str, pick: ImagePick) -> Result<String, String> {
    let regex = regex::Regex::new(regex)
        .map_err(|error| format!("the image's name_regex is not a regular expression: {error}"))?;
    let matching = all.iter().filter(|image| image["name"].as_str().is_some_and(|name| regex.is_match(name)));
    // Glance writes all times in the same form, in UTC, so they are ordered as text.
    let mut found: Vec<(&str, &str)> =
        matching.filter_map(|image| Some((image["created_at"].as_str()?, image["id"].as_str()?))).collect();
    found.sort_unstable();
    let chosen = match pick {
        ImagePick::Newest => found.last(),
        ImagePick::Oldest => found.first(),
    };
    chosen.map(|(_, id)| (*id).to_owned()).ok_or_else(|| {
        format!("no image found: none of the {} available images has a name that matches {regex}", all.len())
    })
}

/// An image as the operator's program receives it.
fn described(image: &Value) -> Value {
    let parts = image.as_object().cloned().unwrap_or_default();
    let (own, metadata): (Map<_, _>, Map<_, _>) = parts.into_iter().partition(|(key, _)| OWN.contains(&key.as_str()));
    let output = ["id", "name", "status", "created_at", "size"];
    let properties: Map<_, _> = own.into_iter().filter(|(key, _)| !output.contains(&key.as_str())).collect();
    json!({
        "id": image["id"],
        "name": image["name"],
        "status": image["status"],
        "created": image["created_at"],
        "size": image["size"],
        "properties": properties,
        "metadata": metadata,
    })
}

/// Runs the program with the list as its input, and returns its output.
async fn ask(words: &[String], list: String) -> Result<String, String> {
    let (program, arguments) = words.split_first().ok_or("no program is given")?;
    let mut command = tokio::process::Command::new(program);
    // In a process group of its own, so that its children end with it.
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(|error| format!("it cannot be run: {error}"))?;
    let mut group = Group(child.id());
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async move {
        if let Some(mut stdin) = stdin {
            // It need not read its input.
            stdin.write_all(list.as_bytes()).await.ok();
        }
    };
    let ((), output, complaint) = tokio::join!(feed, first_of(stdout), first_of(stderr));
    let status = child.wait().await.map_err(|error| format!("it cannot be waited for: {error}"))?;
    // From here on the process id may belong to another process.
    group.0 = None;
    if !status.success() {
        let last = complaint.trim_end().lines().last().unwrap_or_default();
        return Err(if last.is_empty() { format!("{status}") } else { format!("{status}: {last}") });
    }
    match output.split_whitespace().collect::<Vec<_>>().as_slice() {
        [id] => Ok((*id).to_owned()),
        [] => Err("it printed no id".to_owned()),
        words => Err(format!("it printed {} words instead of one id", words.len())),
    }
}

/// A process group whose leader has not been waited for. Dropping it kills the group.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0.and_then(|leader| libc::pid_t::try_from(leader).ok()) {
            // SAFETY: plain numbers. It is this group: its leader's number stays taken until it is waited for.
            unsafe { libc::kill(-leader, libc::SIGKILL) };
        }
    }
}

/// The same with a time limit, after which the program and its process group are killed.
async fn ask_within(limit: Duration, words: &[String], list: String) -> Result<String, String> {
    let late = || Err(format!("it took longer than {} s", limit.as_secs()));
    tokio::time::timeout(limit, ask(words, list)).await.unwrap_or_else(|_| late())
}

async fn first_of(stream: Option<impl tokio::io::AsyncRead + Unpin>) -> String {
    let Some(mut stream) = stream else { return String::new() };
    let mut bytes = Vec::new();
    // What was read before an error counts.
    (&mut stream).take(OUTPUT).read_to_end(&mut bytes).await.ok();
    // Reads the rest, so that the program does not block.
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.ok();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
