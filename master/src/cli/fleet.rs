//! Lists of builds, workers and hosts, and operations on workers.

use super::args::{Filter, When, WorkerOperation};
use super::client::Client;
use super::error::CliError;
use super::output::{Table, ago, between, listing, or_dash, plain, say};
use crate::api;
use crate::core::event::Operation;
use rouse_shared::{Timestamp, WorkerName, duration};

/// Number of builds in one request.
const PAGE: usize = 1_000;

/// Lists builds, newest first, with as many requests as needed.
pub(super) async fn builds(
    client: &Client,
    filter: &Filter,
    limit: usize,
    as_json: bool,
    now: Timestamp,
) -> Result<(), CliError> {
    let mut rows: Vec<api::Build> = Vec::new();
    while rows.len() < limit {
        let wanted = (limit - rows.len()).min(PAGE);
        let last = rows.last().map(|last| last.id.0.0).or(filter.before);
        let page: Vec<api::Build> = client.get(&format!("/api/builds?{}", query(filter, wanted, last, now))).await?;
        let whole = page.len() >= wanted;
        rows.extend(page);
        if !whole {
            break;
        }
    }
    let head = ["ID", "NAME", "STATE", "WORKER", "ATTEMPTS", "CREATED", "TOOK"];
    let row = |build: &api::Build| {
        [
            build.id.to_string(),
            or_dash(Some(&build.name)),
            build.state.as_str().to_owned(),
            or_dash(build.worker.as_ref()),
            build.attempts.to_string(),
            ago(Some(build.created), now),
            between(build.started, build.finished, now),
        ]
    };
    Ok(listing(&rows, as_json, |rows| Table::new(head, rows.iter().map(row)), "there are no such builds")?)
}

/// The query for builds that are older than `before`.
fn query(filter: &Filter, limit: usize, before: Option<u64>, now: Timestamp) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("limit", &limit.to_string());
    let mut add = |key, value: Option<&str>| {
        query.extend_pairs(value.map(|value| (key, value)));
    };
    let time = |when: Option<When>| when.map(|when| api::Time(when.at(now)).to_string());
    add("since", time(filter.since).as_deref());
    add("until", time(filter.until).as_deref());
    add("state", filter.state.or(filter.outcome).map(|state| state.as_str()));
    add("worker", filter.worker.as_ref().map(|worker| worker.as_str()));
    add("name", filter.name.as_deref());
    add("before", before.map(|before| before.to_string()).as_deref());
    for (key, value) in &filter.properties {
        add("where", Some(&format!("{key}={value}")));
    }
    query.finish()
}

/// Reports mail that is stuck. Whoever lists the workers would otherwise miss it.
async fn report_waiting_mail(client: &Client, now: Timestamp) -> Result<(), CliError> {
    let mails: Vec<api::Mail> = client.get("/api/mails").await?;
    let Some(oldest) = mails.first() else { return Ok(()) };
    let many = match mails.len() {
        1 => "1 mail has".to_owned(),
        count => format!("{count} mails have"),
    };
    let waited = duration::rough(now.since(oldest.created.0));
    let why = mails.iter().find_map(|mail| mail.error.as_deref()).unwrap_or("it has not answered yet");
    say(&plain(&format!("{many} been waiting for the relay for {waited}: {why}")));
    Ok(())
}

/// Lists workers.
pub(super) async fn workers(client: &Client, as_json: bool, now: Timestamp) -> Result<(), CliError> {
    let rows: Vec<api::Worker> = client.get("/api/workers").await?;
    let head = ["NAME", "KIND", "STATE", "SINCE", "RUNNING/MAX", "HOST", "AGENT"];
    let row = |worker: &api::Worker| {
        [
            worker.name.to_string(),
            worker.kind.as_str().to_owned(),
            worker.state.as_str().to_owned(),
            ago(Some(worker.since), now),
            format!("{}/{}", worker.running, or_dash(worker.max_builds.as_ref())),
            or_dash(worker.host.as_ref()),
            or_dash(worker.agent_version.as_ref()),
        ]
    };
    listing(&rows, as_json, |rows| Table::new(head, rows.iter().map(row)), "there are no workers")?;
    if as_json { Ok(()) } else { report_waiting_mail(client, now).await }
}

/// Lists hosts.
pub(super) async fn hosts(client: &Client, as_json: bool, now: Timestamp) -> Result<(), CliError> {
    let rows: Vec<api::Host> = client.get("/api/hosts").await?;
    let head = ["ID", "WORKER", "PROVIDER", "HANDLE", "STATE", "AGE", "COST"];
    let row = |host: &api::Host| {
        [
            host.id.to_string(),
            host.worker.to_string(),
            host.provider.as_str().to_owned(),
            or_dash(host.handle.as_ref()),
            host.state.as_str().to_owned(),
            between(Some(host.created), None, now),
            or_dash(host.cost.map(|cost| format!("{cost:.4}")).as_ref()),
        ]
    };
    Ok(listing(&rows, as_json, |rows| Table::new(head, rows.iter().map(row)), "there are no hosts")?)
}

/// Lists places.
pub(super) async fn places(client: &Client, as_json: bool, now: Timestamp) -> Result<(), CliError> {
    let rows: Vec<api::Place> = client.get("/api/places").await?;
    let head = ["ID", "PROVIDER", "NAME", "STATE", "SINCE", "NEXT PROBE", "HOSTS", "REASON"];
    let row = |place: &api::Place| {
        [
            place.id.clone(),
            place.provider.as_str().to_owned(),
            place.name.clone(),
            place.state.as_str().to_owned(),
            ago(place.since, now),
            place.next_probe.map_or_else(|| "-".to_owned(), |at| between(Some(api::Time(now)), Some(at), now)),
            place.hosts.to_string(),
            or_dash(place.reason.as_ref()),
        ]
    };
    Ok(listing(&rows, as_json, |rows| Table::new(head, rows.iter().map(row)), "there are no places")?)
}

/// Lists the masters that share the ledger.
pub(super) async fn masters(client: &Client, as_json: bool, now: Timestamp) -> Result<(), CliError> {
    let rows: Vec<api::Master> = client.get("/api/masters").await?;
    let head = ["HOLDER", "ROLE", "ADDRESS", "BROKER", "SINCE", "SEEN", "EPOCH", "VERSION"];
    let row = |master: &api::Master| {
        [
            master.holder.clone(),
            match master.role {
                api::Role::Active => "active".to_owned(),
                api::Role::Standby => "standby".to_owned(),
            },
            master.address.clone(),
            if master.broker { "reached" } else { "away" }.to_owned(),
            ago(Some(master.since), now),
            ago(Some(master.seen), now),
            or_dash(master.epoch.map(|epoch| epoch.to_string()).as_ref()),
            master.version.clone(),
        ]
    };
    let none = "the ledger is not shared: that needs [store] url and [broker] url";
    Ok(listing(&rows, as_json, |rows| Table::new(head, rows.iter().map(row)), none)?)
}

/// Pauses, resumes or drains a worker.
pub(super) async fn operate(client: &Client, of: &WorkerOperation, operation: Operation) -> Result<(), CliError> {
    let name: WorkerName =
        of.worker.parse().map_err(|error| CliError::Refused(format!("there is no such worker: {error}")))?;
    let verb = operation.as_str();
    let done: api::WorkerOperation = client.post(&of.note.added_to(&format!("/api/workers/{name}/{verb}"))).await?;
    say(&format!("worker {}: {verb} requested", done.name));
    Ok(())
}
