//! Listings of builds, workers and hosts, and what is asked of workers.

use super::Failed;
use super::client::Client;
use super::output::{Table, ago, between, listing, plain, say, text};
use rouse_shared::{Timestamp, WorkerName};
use serde_json::Value;

/// Builds that are asked for at once.
const PAGE: usize = 1_000;

/// Lists builds, newest first; as many pages as it takes.
pub(super) async fn builds(
    client: &Client,
    state: Option<&str>,
    limit: usize,
    as_json: bool,
    now: Timestamp,
) -> Result<(), Failed> {
    let mut rows: Vec<Value> = Vec::new();
    while rows.len() < limit {
        let wanted = (limit - rows.len()).min(PAGE);
        let mut path = format!("/api/builds?limit={wanted}");
        if let Some(state) = state {
            path.push_str(&format!("&state={state}"));
        }
        if let Some(last) = rows.last().and_then(|row| row["id"].as_str()) {
            path.push_str(&format!("&before={last}"));
        }
        let page = array(client.get(&path).await?)?;
        let whole = page.len() >= wanted;
        rows.extend(page);
        if !whole {
            break;
        }
    }
    let head = ["ID", "NAME", "STATE", "WORKER", "ATTEMPTS", "CREATED", "TOOK"];
    let row = |build: &Value| {
        [
            text(&build["id"]),
            text(&build["name"]),
            text(&build["state"]),
            text(&build["worker"]),
            text(&build["attempts"]),
            ago(&build["created"], now),
            between(&build["started"], &build["finished"], now),
        ]
    };
    Ok(listing(&rows, as_json, |rows| Table::new(head, rows.iter().map(row)), "there are no such builds")?)
}

/// Says where mail about them does not get away: who looks at the workers looks for what nobody was told.
async fn say_what_waits(client: &Client, now: Timestamp) -> Result<(), Failed> {
    let mails = array(client.get("/api/mails").await?)?;
    let Some(oldest) = mails.first() else { return Ok(()) };
    let many = if mails.len() == 1 { "1 mail waits".to_owned() } else { format!("{} mails wait", mails.len()) };
    let since = between(&oldest["created"], &Value::Null, now);
    let why = mails.iter().find_map(|mail| mail["error"].as_str());
    say(&plain(&format!("{many} for the relay since {since}: {}", why.unwrap_or("it has not answered yet"))));
    Ok(())
}

/// Lists workers.
pub(super) async fn workers(client: &Client, as_json: bool, now: Timestamp) -> Result<(), Failed> {
    let rows = array(client.get("/api/workers").await?)?;
    let head = ["NAME", "KIND", "STATE", "SINCE", "RUNNING/MAX", "HOST", "AGENT"];
    let row = |worker: &Value| {
        [
            text(&worker["name"]),
            text(&worker["kind"]),
            text(&worker["state"]),
            ago(&worker["since"], now),
            format!("{}/{}", text(&worker["running"]), text(&worker["max_builds"])),
            text(&worker["host"]),
            text(&worker["agent_version"]),
        ]
    };
    listing(&rows, as_json, |rows| Table::new(head, rows.iter().map(row)), "there are no workers")?;
    if as_json { Ok(()) } else { say_what_waits(client, now).await }
}

/// Lists hosts.
pub(super) async fn hosts(client: &Client, as_json: bool, now: Timestamp) -> Result<(), Failed> {
    let rows = array(client.get("/api/hosts").await?)?;
    let head = ["ID", "WORKER", "PROVIDER", "HANDLE", "STATE", "AGE", "COST"];
    let row = |host: &Value| {
        [
            text(&host["id"]),
            text(&host["worker"]),
            text(&host["provider"]),
            text(&host["handle"]),
            text(&host["state"]),
            between(&host["created"], &Value::Null, now),
            host["cost"].as_f64().map_or_else(|| "-".to_owned(), |cost| format!("{cost:.4}")),
        ]
    };
    Ok(listing(&rows, as_json, |rows| Table::new(head, rows.iter().map(row)), "there are no hosts")?)
}

/// Asks something of a worker.
pub(super) async fn operate(client: &Client, worker: &str, operation: &str) -> Result<(), Failed> {
    let name: WorkerName =
        worker.parse().map_err(|error| Failed::Refused(format!("there is no such worker: {error}")))?;
    client.post(&format!("/api/workers/{name}/{operation}"), None).await?;
    say(&format!("{name}: {operation} is asked for"));
    Ok(())
}

fn array(answer: Value) -> Result<Vec<Value>, Failed> {
    match answer {
        Value::Array(rows) => Ok(rows),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
            Err(Failed::Refused("the server did not answer with a list: is it a rouse master?".to_owned()))
        }
    }
}
