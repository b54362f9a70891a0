//! Parts of a server that can outlive it: ports, a floating address, a boot volume.
//!
//! Nova creates ports and volumes itself, and the call cannot name them. Therefore they are labelled as soon as they
//! exist. An address is labelled in the call that allocates it. A labelled part whose host has no server is left over.

use super::cloud::{Cloud, Service};
use super::error::CloudError;
use super::servers::{self, MASTER, MASTER_ID, OwnerTag, Server};
use crate::core::event::{ListedHost, Termination};
use rouse_shared::HostId;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// The kinds of parts that can be left over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Port,
    Address,
    Volume,
}

const KINDS: [Kind; 3] = [Kind::Port, Kind::Address, Kind::Volume];

impl Kind {
    /// The prefix of its handles.
    fn prefix(self) -> &'static str {
        match self {
            Self::Port => "port:",
            Self::Address => "address:",
            Self::Volume => "volume:",
        }
    }

    fn service(self) -> Service {
        match self {
            Self::Port | Self::Address => Service::Network,
            Self::Volume => Service::Volume,
        }
    }

    /// Its path, and the key of its list.
    fn list(self) -> (&'static str, &'static str) {
        match self {
            Self::Port => ("/ports", "ports"),
            Self::Address => ("/floatingips", "floatingips"),
            Self::Volume => ("/volumes/detail", "volumes"),
        }
    }

    fn path(self, id: &str) -> String {
        match self {
            Self::Port => format!("/ports/{id}"),
            Self::Address => format!("/floatingips/{id}"),
            Self::Volume => format!("/volumes/{id}"),
        }
    }
}

/// The description of a port or an address of a host.
fn label(tag: &OwnerTag, host: &HostId) -> String {
    format!("rouse {}/{} {host}", tag.name, tag.id)
}

/// The master's id and the host, if the label has this master's name.
fn labelled(kind: Kind, item: &Value, tag: &OwnerTag) -> Option<(String, HostId)> {
    match kind {
        Kind::Port | Kind::Address => {
            let rest = item["description"].as_str()?.strip_prefix("rouse ")?;
            let (owner, host) = rest.split_once(' ')?;
            let theirs = OwnerTag::of(owner);
            (theirs.name == tag.name).then(|| (theirs.id, HostId(host.to_owned())))
        }
        Kind::Volume => {
            let of = |key: &str| item["metadata"][key].as_str();
            let host = HostId(of(servers::HOST)?.to_owned());
            (of(MASTER)? == tag.name).then(|| (of(MASTER_ID).unwrap_or_default().to_owned(), host))
        }
    }
}

/// Labels the parts of a server, and allocates its address. May be repeated.
///
/// # Errors
/// If a service fails. What was done before that stays.
pub(super) async fn dress(cloud: &Cloud, tag: &OwnerTag, server: &Server) -> Result<(), CloudError> {
    let label = label(tag, &server.host);
    let ports = cloud.list(Service::Network, &format!("/ports?device_id={}", server.id), "ports").await?;
    for port in &ports {
        if let Some(id) = port["id"].as_str().filter(|_| port["description"] != *label) {
            let change = json!({ "port": { "description": label } });
            cloud.put(Service::Network, &Kind::Port.path(id), &change).await?;
        }
    }
    for volume in &server.volumes {
        let mine = tag.metadata("", &server.host);
        let path = format!("{}/metadata", Kind::Volume.path(volume));
        cloud.post(Service::Volume, &path, &json!({ "metadata": mine })).await?;
    }
    let Some(pool) = &server.pool else { return Ok(()) };
    let Some(port) = ports.first().and_then(|port| port["id"].as_str()) else {
        return Err(CloudError::Misconfigured(format!("cannot give server {} an address: it has no port", server.id)));
    };
    let have = addresses(cloud, tag, &tag.id, &server.host).await?;
    match have.first() {
        Some(address) if address["port_id"] == *port => {}
        Some(address) => {
            let change = json!({ "floatingip": { "port_id": port } });
            let id = address["id"].as_str().unwrap_or_default();
            cloud.put(Service::Network, &Kind::Address.path(id), &change).await?;
        }
        None => {
            let wanted = json!({ "floating_network_id": pool, "port_id": port, "description": label });
            cloud.post(Service::Network, "/floatingips", &json!({ "floatingip": wanted })).await?;
        }
    }
    Ok(())
}

/// Takes an address from a pool before the host's server is created. [`dress`] assigns it to the server. May be
/// repeated.
///
/// # Errors
/// If Neutron does not assign one.
pub(super) async fn reserve(cloud: &Cloud, tag: &OwnerTag, pool: &str, host: &HostId) -> Result<(), CloudError> {
    if addresses(cloud, tag, &tag.id, host).await?.is_empty() {
        let wanted = json!({ "floating_network_id": pool, "description": label(tag, host) });
        cloud.post(Service::Network, "/floatingips", &json!({ "floatingip": wanted })).await?;
    }
    Ok(())
}

async fn addresses(cloud: &Cloud, tag: &OwnerTag, master: &str, host: &HostId) -> Result<Vec<Value>, CloudError> {
    let (path, key) = Kind::Address.list();
    let all = cloud.list(Service::Network, path, key).await?;
    let theirs = |item: &Value| labelled(Kind::Address, item, tag) == Some((master.to_owned(), host.clone()));
    Ok(all.into_iter().filter(theirs).collect())
}

/// Releases the addresses of a host of the master with this id.
///
/// # Errors
/// If Neutron fails.
pub(super) async fn release(cloud: &Cloud, tag: &OwnerTag, master: &str, host: &HostId) -> Result<(), CloudError> {
    for address in addresses(cloud, tag, master, host).await? {
        let id = address["id"].as_str().unwrap_or_default();
        cloud.delete(Service::Network, &Kind::Address.path(id)).await?;
    }
    Ok(())
}

/// Hosts that have a server in any cloud: the id of the master, and the host's.
pub(super) type Alive = BTreeSet<(String, HostId)>;

/// The parts in this project that have this master's name and belong to a host without a server. A service that the
/// cloud does not have leaves nothing.
///
/// # Errors
/// If a service does not answer.
pub(super) async fn left_over(cloud: &Cloud, tag: &OwnerTag, alive: &Alive) -> Result<Vec<ListedHost>, CloudError> {
    let place = cloud.place().await?;
    let project = place.split(' ').next().unwrap_or_default();
    let mut found = Vec::new();
    for kind in KINDS {
        if !cloud.offers(kind.service()).await? {
            continue;
        }
        let (path, key) = kind.list();
        for item in &cloud.list(kind.service(), path, key).await? {
            let Some(id) = item["id"].as_str() else { continue };
            let Some((master, host)) = labelled(kind, item, tag) else { continue };
            let here = project_of(item).is_none_or(|theirs| theirs == project);
            if here && !alive.contains(&(master.clone(), host.clone())) && !is_in_use(cloud, kind, item).await? {
                // Not the host's own id: the ledger may have that host, and this is not it.
                let host = HostId(format!("{host}.{key}"));
                let (handle, owner) = (format!("{}{id}", kind.prefix()), tag.owner(&master));
                found.push(ListedHost { host, handle, identity: None, owner, suspended: false });
            }
        }
    }
    Ok(found)
}

/// The project of a part. An administrator sees the parts of all projects.
fn project_of(item: &Value) -> Option<&str> {
    let keys = ["project_id", "tenant_id", "os-vol-tenant-attr:tenant_id"];
    keys.iter().find_map(|key| item[key].as_str()).filter(|project| !project.is_empty())
}

/// Whether it belongs to an existing server. The list of servers may lack one that was created after it was read.
async fn is_in_use(cloud: &Cloud, kind: Kind, item: &Value) -> Result<bool, CloudError> {
    let of_port = |port: &Value| port["device_id"].as_str().map(str::to_owned).into_iter().collect::<Vec<_>>();
    let servers = match kind {
        Kind::Port => of_port(item),
        Kind::Address => match item["port_id"].as_str() {
            None => Vec::new(),
            Some(port) => match cloud.get(Service::Network, &Kind::Port.path(port)).await {
                Ok(json) => of_port(&json["port"]),
                Err(problem) if problem.is_missing() => Vec::new(),
                Err(problem) => return Err(problem),
            },
        },
        Kind::Volume => {
            let attached = item["attachments"].as_array().map(Vec::as_slice).unwrap_or_default();
            attached.iter().filter_map(|one| one["server_id"].as_str().map(str::to_owned)).collect()
        }
    };
    for id in servers.iter().filter(|id| !id.is_empty()) {
        if servers::exists(cloud, id).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a handle is one from [`left_over`].
pub(super) fn is_extra(handle: &str) -> bool {
    KINDS.iter().any(|kind| handle.starts_with(kind.prefix()))
}

/// Deletes something that [`left_over`] has found, if it is still left over. `Gone` if this cloud does not have it.
///
/// # Errors
/// If a service fails, or it is no longer left over.
pub(super) async fn end(
    cloud: &Cloud,
    tag: &OwnerTag,
    listed: &ListedHost,
    alive: &Alive,
) -> Result<Termination, CloudError> {
    let found = KINDS.into_iter().find_map(|kind| Some((kind, listed.handle.strip_prefix(kind.prefix())?)));
    let Some((kind, id)) = found else { return Ok(Termination::Gone) };
    if !cloud.offers(kind.service()).await? {
        return Ok(Termination::Gone);
    }
    let item = match cloud.get(kind.service(), &kind.path(id)).await {
        Ok(item) => item,
        Err(problem) if problem.is_missing() => return Ok(Termination::Gone),
        Err(problem) => return Err(problem),
    };
    let item = item.as_object().and_then(|all| all.values().next()).cloned().unwrap_or_default();
    let unfit = |why: &str| Err(CloudError::Misconfigured(format!("cannot delete {}: {why}", listed.handle)));
    let Some((master, host)) = labelled(kind, &item, tag).filter(|(m, _)| tag.owner(m) == listed.owner) else {
        return unfit("it no longer has our label");
    };
    if alive.contains(&(master, host)) || is_in_use(cloud, kind, &item).await? {
        return unfit("its host has a server");
    }
    let there = cloud.delete(kind.service(), &kind.path(id)).await?;
    Ok(if there { Termination::Requested } else { Termination::Gone })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::event::Owner;

    #[test]
    fn labels_are_read_as_they_are_written() {
        let tag = OwnerTag::of("ci/m1");
        let host = HostId("h1".to_owned());
        let ours = Some(("m1".to_owned(), host.clone()));
        let port = json!({ "description": label(&tag, &host) });
        assert_eq!(labelled(Kind::Port, &port, &tag), ours);
        assert_eq!(labelled(Kind::Port, &port, &OwnerTag::of("c/m1")), None);
        let foreign =
            labelled(Kind::Port, &port, &OwnerTag::of("ci/m2")).map(|(id, _)| OwnerTag::of("ci/m2").owner(&id));
        assert_eq!(foreign, Some(Owner::Foreign("m1".to_owned())));
        let volume = json!({ "metadata": tag.metadata("", &host) });
        assert_eq!(labelled(Kind::Volume, &volume, &tag), ours);
        for other in [json!({}), json!({ "description": "rouse" }), json!({ "metadata": { "rouse-master": "ci" } })] {
            assert!(KINDS.iter().all(|kind| labelled(*kind, &other, &tag).is_none()), "{other}");
        }
    }
}
