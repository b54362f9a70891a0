//! Servers in Nova: how they are tagged, found, interpreted and deleted.

use super::cloud::{Cloud, End, Service};
use super::error::{Cause, CloudError};
use super::order::segment;
use crate::core::event::{Owner, StartError, Termination};
use rouse_shared::HostId;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// Keys of a server's metadata. They are part of the creating call, so no server of rouse is ever without them.
pub const MASTER: &str = "rouse-master";
/// The master's generated id.
pub const MASTER_ID: &str = "rouse-master-id";
/// The host's id.
pub const HOST: &str = "rouse-host";
/// The network for the floating address, if the server is to have one.
pub const POOL: &str = "rouse-pool";
/// The worker's name.
pub const NAME: &str = "rouse-name";

/// Lines of a console that are evidence.
const CONSOLE_LINES: u32 = 200;
/// Largest number of times that the list of servers is read until two readings agree.
const READINGS: u32 = 6;
/// How much of a console is evidence, bytes.
const CONSOLE: usize = 8 << 10;

/// A server with this master's name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Server {
    /// When it was created, as Nova writes it. Ordered as text.
    pub created: String,
    /// Its UUID.
    pub id: String,
    /// The host in its tag.
    pub host: HostId,
    /// The master's id in its tag.
    pub master: String,
    /// Its status.
    pub status: Status,
    /// What Nova is doing with it, such as `scheduling`.
    pub task: String,
    /// Nova's message, if it is in error.
    pub fault: Option<String>,
    /// Whether it has ever run.
    pub launched: bool,
    /// The network for its floating address.
    pub pool: Option<String>,
    /// The volumes that are attached to it.
    pub volumes: Vec<String>,
}

/// The status of a server, as far as it matters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Status {
    /// Being made.
    Building,
    /// It could not be created, or something else failed.
    Error,
    /// Deleted, and kept for a while so that it can be restored.
    SoftDeleted,
    /// Any other status: it exists.
    There,
}

impl Server {
    /// A server of Nova's list, if it has this master's name.
    pub fn of(json: &Value, name: &str) -> Option<Self> {
        let tag = |key: &str| json["metadata"][key].as_str().map(str::to_owned);
        if tag(MASTER).as_deref() != Some(name) {
            return None;
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Some(Self {
            id: json["id"].as_str()?.to_owned(),
            created: text(&json["created"]),
            host: HostId(tag(HOST).unwrap_or_default()),
            master: tag(MASTER_ID).unwrap_or_default(),
            status: match json["status"].as_str().unwrap_or_default() {
                "BUILD" => Status::Building,
                "ERROR" => Status::Error,
                "SOFT_DELETED" => Status::SoftDeleted,
                _ => Status::There,
            },
            task: text(&json["OS-EXT-STS:task_state"]),
            fault: json["fault"]["message"].as_str().map(|text| text.trim().to_owned()),
            launched: json["OS-SRV-USG:launched_at"].is_string(),
            pool: tag(POOL),
            volumes: json["os-extended-volumes:volumes_attached"]
                .as_array()
                .map(|all| all.iter().map(|volume| text(&volume["id"])).collect())
                .unwrap_or_default(),
        })
    }

    /// Whether Nova has placed it. An error after that is no lack of capacity.
    pub fn is_placed(&self) -> bool {
        self.status != Status::Building || !matches!(self.task.as_str(), "" | "scheduling")
    }
}

/// The master as owner.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OwnerTag {
    /// The master's name.
    pub name: String,
    /// Its generated id.
    pub id: String,
}

impl OwnerTag {
    /// From `name/id`.
    pub fn of(owner: &str) -> Self {
        let (name, id) = owner.rsplit_once('/').unwrap_or((owner, ""));
        Self { name: name.to_owned(), id: id.to_owned() }
    }

    /// Whom a machine with this master's name belongs to.
    pub fn owner(&self, master: &str) -> Owner {
        if master == self.id { Owner::Ours } else { Owner::Foreign(master.to_owned()) }
    }

    /// The metadata of a host's server.
    pub fn metadata(&self, worker: &str, host: &HostId) -> BTreeMap<String, String> {
        let ours = [(MASTER, self.name.as_str()), (MASTER_ID, &self.id), (HOST, host.as_str()), (NAME, worker)];
        ours.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }
}

/// Every server of the project that has our name.
///
/// The whole project is listed: Nova lets only administrators filter by metadata, and ignores the filter of others.
///
/// A server has another place in the list once Nova has found a host for it. If it moves while pages are read, one page
/// is too early for it and the next too late. That happens once in its life, so whatever two readings have is all.
///
/// # Errors
/// If the list is incomplete.
pub async fn all(cloud: &Cloud, tag: &OwnerTag) -> Result<Vec<Server>, CloudError> {
    read(cloud, tag, "").await
}

async fn read(cloud: &Cloud, tag: &OwnerTag, query: &str) -> Result<Vec<Server>, CloudError> {
    let path = format!("/servers/detail{query}");
    let mut found = BTreeMap::new();
    let (mut whole, mut broken) = (0, None);
    for _ in 0..READINGS {
        let pages = cloud.read(Service::Compute, &path, "servers", End::NothingNew).await?;
        let ours = pages.items.iter().filter_map(|server| Server::of(server, &tag.name));
        found.extend(ours.map(|server| (server.id.clone(), server)));
        match pages.broken {
            None => whole += 1,
            Some(why) => broken = Some(why),
        }
        if whole == 2 || (whole == 1 && pages.count == 1) {
            return Ok(found.into_values().collect());
        }
    }
    let unread =
        || CloudError::Misconfigured("cannot list the servers: they change faster than they can be read".to_owned());
    Err(broken.unwrap_or_else(unread))
}

/// The servers of one host, the one that counts first: normally one. There are two only if a call that was taken for
/// lost was carried out late; then it is the older one.
///
/// # Errors
/// If the list is incomplete.
pub async fn of_host(cloud: &Cloud, tag: &OwnerTag, name: &str, host: &HostId) -> Result<Vec<Server>, CloudError> {
    // A regular expression for Nova; our names are letters, digits and hyphens.
    let mut found = read(cloud, tag, &format!("?name=%5E{name}%24")).await?;
    found.retain(|server| server.master == tag.id && server.host == *host);
    found.sort();
    Ok(found)
}

/// One server; none if Nova reports that there is none.
///
/// # Errors
/// If Nova does not answer this.
pub async fn one(cloud: &Cloud, tag: &OwnerTag, id: &str) -> Result<Option<Server>, CloudError> {
    match cloud.get(Service::Compute, &format!("/servers/{id}")).await {
        Ok(mut json) => {
            let server = Server::of(&json["server"].take(), &tag.name);
            // Somebody has removed the owner tag from a server that this master has created.
            server
                .map(Some)
                .ok_or_else(|| CloudError::Misconfigured(format!("server {id} does not have our owner tag")))
        }
        Err(problem) if problem.is_missing() => Ok(None),
        Err(problem) => Err(problem),
    }
}

/// Whether there is such a server, whoever owns it.
///
/// # Errors
/// If Nova does not answer this.
pub async fn exists(cloud: &Cloud, id: &str) -> Result<bool, CloudError> {
    match cloud.get(Service::Compute, &format!("/servers/{}", segment(id))).await {
        Ok(_) => Ok(true),
        Err(problem) if problem.is_missing() => Ok(false),
        Err(problem) => Err(problem),
    }
}

/// Requests the deletion of a server. `Gone` if Nova reports that there is none.
///
/// # Errors
/// If Nova does not accept the request.
pub async fn delete(cloud: &Cloud, tag: &OwnerTag, id: &str) -> Result<Termination, CloudError> {
    if !cloud.delete(Service::Compute, &format!("/servers/{id}")).await? {
        return Ok(Termination::Gone);
    }
    let left = one(cloud, tag, id).await?;
    if left.is_some_and(|server| server.status == Status::SoftDeleted) {
        // Otherwise the cloud would keep it for days, and count it.
        let action = json!({ "forceDelete": null });
        match cloud.post(Service::Compute, &format!("/servers/{id}/action"), &action).await {
            Ok(_) => {}
            Err(problem) if problem.is_missing() => return Ok(Termination::Gone),
            Err(problem) => return Err(problem),
        }
    }
    Ok(Termination::Requested)
}

/// Deletes a server and waits until Nova reports that it is gone, but not longer than `patience`. Returns whether it is
/// gone.
///
/// # Errors
/// If Nova does not answer.
pub async fn end(cloud: &Cloud, tag: &OwnerTag, id: &str, patience: Duration) -> Result<bool, CloudError> {
    const LOOK: Duration = Duration::from_millis(500);
    let mut looks = patience.as_millis() / LOOK.as_millis();
    while delete(cloud, tag, id).await? != Termination::Gone {
        if looks == 0 {
            return Ok(false);
        }
        looks -= 1;
        tokio::time::sleep(LOOK).await;
    }
    Ok(true)
}

/// Why a server is in error, as the error of its start. If no compute host was ever asked to build it, there is no
/// capacity. If one was asked and failed, the image or the configuration is to blame.
pub async fn failure(cloud: &Cloud, server: &Server) -> StartError {
    let fault = server.fault.as_deref().unwrap_or("Nova gives no reason");
    let text = format!("server {} is in error: {fault}", server.id);
    if let Some(error) = Cause::of_words(fault).and_then(|cause| cause.of_start(text.clone())) {
        return error;
    }
    match was_built(cloud, &server.id).await {
        Ok(false) => StartError::Capacity(text),
        Ok(true) | Err(_) => StartError::Rejected(text),
    }
}

async fn was_built(cloud: &Cloud, id: &str) -> Result<bool, CloudError> {
    let path = format!("/servers/{id}/os-instance-actions");
    let actions = cloud.list(Service::Compute, &path, "instanceActions").await?;
    let creation = actions.iter().find(|action| action["action"] == "create");
    let Some(request) = creation.and_then(|action| action["request_id"].as_str()) else { return Ok(true) };
    let action = cloud.get(Service::Compute, &format!("{path}/{request}")).await?;
    let events = action["instanceAction"]["events"].as_array().map(Vec::as_slice).unwrap_or_default();
    let scheduled = events.iter().any(|e| e["event"] == "conductor_schedule_and_build_instances");
    // Only the compute service has events with this name.
    let built = events.iter().any(|e| e["event"].as_str().is_some_and(|name| name.starts_with("compute_")));
    Ok(built || !scheduled)
}

/// Whether a refusal of a new server (403) is for want of quota: the project's limits are held against what it uses.
/// Nova has one answer for that and for a policy that forbids it, and only its words differ.
///
/// # Errors
/// If the limits or the flavor cannot be read.
pub async fn lacks_quota(cloud: &Cloud, flavor: &str) -> Result<bool, CloudError> {
    let limits = cloud.get(Service::Compute, "/limits").await?;
    let flavor = cloud.get(Service::Compute, &format!("/flavors/{flavor}")).await?;
    let number = |value: &Value| value.as_i64();
    let limits = &limits["limits"]["absolute"];
    let room = |used: &str, most: &str, wanted: Option<i64>| {
        // A limit below zero is none.
        let most = number(&limits[most]).filter(|most| *most >= 0);
        most.zip(number(&limits[used])).zip(wanted).is_none_or(|((most, used), wanted)| used + wanted <= most)
    };
    Ok(!(room("totalInstancesUsed", "maxTotalInstances", Some(1))
        && room("totalCoresUsed", "maxTotalCores", number(&flavor["flavor"]["vcpus"]))
        && room("totalRAMUsed", "maxTotalRAMSize", number(&flavor["flavor"]["ram"]))))
}

/// The last part of a server's console output, or why it cannot be read; none if it is empty.
pub async fn console(cloud: &Cloud, id: &str) -> Option<String> {
    let action = json!({ "os-getConsoleOutput": { "length": CONSOLE_LINES } });
    let json = match cloud.post(Service::Compute, &format!("/servers/{id}/action"), &action).await {
        Ok(json) => json,
        Err(error) => return Some(format!("(the console output cannot be read: {error})")),
    };
    let text = json["output"].as_str().filter(|text| !text.is_empty())?;
    let mut from = text.len().saturating_sub(CONSOLE);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    Some(text[from..].to_owned())
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
