//! Lists this master's servers and leftovers in all clouds, and ends those that are not in the ledger.

use super::cloud::Cloud;
use super::clouds::{Places, Target, late};
use super::error::CloudError;
use super::extras::{self, Alive};
use super::servers::{self, Server, Status};
use super::{Servers, Shared, identity_of};
use crate::core::event::{ListedHost, Listing, Termination, UnlistedPlace};
use futures_util::future::join_all;
use rouse_shared::HostId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Time limits for the servers of one of several clouds, and for what is left over there, so that an audit gets the lists
/// of the others in time.
const SERVERS: Duration = Duration::from_secs(20);
const LEFT_OVER: Duration = Duration::from_secs(10);

impl Servers {
    /// The servers of every cloud, and what is left over of others. One that does not answer hides only its own, and
    /// what is left over in its project, which may belong to one of its servers.
    pub(super) async fn list_clouds(&self) -> Listing {
        let shared = &self.shared;
        let Places { reached, mut unlisted, mut hidden } = shared.clouds.places().await;
        unlisted.extend(shared.unusable());
        let (mut machines, mut alive, mut heard) = (Vec::new(), Alive::new(), Vec::new());
        for (target, servers) in reached.iter().zip(shared.servers(&reached).await) {
            match servers {
                Ok(servers) => {
                    alive.extend(hosts_of(&servers));
                    machines.extend(shared.listed(&target.cloud, &servers));
                    heard.push((target, servers.is_empty()));
                }
                Err(problem) => {
                    hidden.insert(target.project().to_owned());
                    unlisted.extend(target.unlisted(&problem.to_string()));
                }
            }
        }
        heard.retain(|(target, _)| !hidden.contains(target.project()));
        let found = heard.iter().map(|(target, _)| async {
            let left = tokio::time::timeout(LEFT_OVER, extras::left_over(&target.cloud, &shared.tag, &alive));
            left.await.unwrap_or_else(|_| Err(late(&target.cloud, LEFT_OVER)))
        });
        for ((target, is_empty), found) in heard.iter().zip(join_all(found).await) {
            match found {
                Ok(left) => {
                    if left.is_empty() && *is_empty && shared.is_settled() {
                        shared.clouds.forget(target);
                    }
                    // Regions may share a service.
                    let known: BTreeSet<String> = machines.iter().map(|one| one.handle.clone()).collect();
                    machines.extend(left.into_iter().filter(|one| !known.contains(&one.handle)));
                }
                Err(problem) => unlisted.extend(target.unlisted(&problem.to_string())),
            }
        }
        if unlisted.is_empty() {
            let there: BTreeSet<&str> = machines.iter().map(|machine| machine.handle.as_str()).collect();
            shared.state().labelled.retain(|id| there.contains(id.as_str()));
        }
        Listing { machines, unlisted }
    }

    /// The handle does not say which cloud it is in. An id exists in one cloud only.
    pub(super) async fn terminate_by_handle(&self, listed: &ListedHost) -> Result<Termination, String> {
        let shared = &self.shared;
        let Places { reached, mut unlisted, mut hidden } = shared.clouds.places().await;
        unlisted.extend(shared.unusable());
        let mut failures: Vec<String> = unlisted.iter().map(said).collect();
        let is_extra = extras::is_extra(&listed.handle);
        let mut alive = Alive::new();
        if is_extra {
            for (target, servers) in reached.iter().zip(shared.servers(&reached).await) {
                match servers {
                    Ok(servers) => alive.extend(hosts_of(&servers)),
                    Err(problem) => {
                        hidden.insert(target.project().to_owned());
                        failures.push(problem.to_string());
                    }
                }
            }
        }
        // Its server may be in a region that does not answer.
        for target in reached.iter().filter(|target| !is_extra || !hidden.contains(target.project())) {
            let ended = match is_extra {
                true => extras::end(&target.cloud, &shared.tag, listed, &alive).await,
                false => shared.terminate_listed(&target.cloud, listed).await,
            };
            match ended {
                Ok(Termination::Requested) => return Ok(Termination::Requested),
                Ok(Termination::Gone) => {}
                Err(problem) => failures.push(problem.to_string()),
            }
        }
        if failures.is_empty() { Ok(Termination::Gone) } else { Err(failures.join("; ")) }
    }
}

fn said(UnlistedPlace { place, why }: &UnlistedPlace) -> String {
    format!("{} cannot be listed: {why}", place.as_deref().unwrap_or("a place"))
}

impl Shared {
    /// The places of sections whose account cannot be used, and why.
    fn unusable(&self) -> Vec<UnlistedPlace> {
        let mut all: BTreeMap<String, String> = BTreeMap::new();
        for (worker, section) in &self.state().sections {
            if let Err(why) = &section.cloud {
                let why = format!("cannot list the servers of {worker}: {why}");
                all.entry(section.config.place()).or_insert(why);
            }
        }
        all.into_iter().map(|(place, why)| UnlistedPlace { place: Some(place), why }).collect()
    }

    /// The servers of each, all asked at once.
    async fn servers(&self, targets: &[Target]) -> Vec<Result<Vec<Server>, CloudError>> {
        let ask = |target: &Target| {
            let cloud = target.cloud.clone();
            async move {
                let servers = tokio::time::timeout(SERVERS, servers::all(&cloud, &self.tag)).await;
                servers.unwrap_or_else(|_| Err(late(&cloud, SERVERS)))
            }
        };
        join_all(targets.iter().map(ask)).await
    }

    /// A cloud's servers as the core receives them. Servers of this master that may still lack something are watched.
    fn listed(self: &Arc<Self>, cloud: &Arc<Cloud>, servers: &[Server]) -> Vec<ListedHost> {
        let mut servers: Vec<&Server> = servers.iter().collect();
        servers.sort();
        let mut hosts = BTreeSet::new();
        let labelled = self.state().labelled.clone();
        let tell = |server: &Server| {
            let ours = server.master == self.tag.id;
            let host = if hosts.insert((server.master.clone(), server.host.clone())) {
                if ours && (server.status == Status::Error || !labelled.contains(&server.id)) {
                    // An earlier master may have started it, and it may have failed since.
                    self.watch(cloud, &server.id);
                }
                server.host.clone()
            } else {
                // A second server of one host belongs to no host.
                HostId(format!("{}.{}", server.host, server.id))
            };
            let (owner, identity) = (self.tag.owner(&server.master), Some(identity_of(&server.id)));
            ListedHost { host, handle: server.id.clone(), identity, owner, suspended: false }
        };
        servers.into_iter().map(tell).collect()
    }

    /// Ends a server with this master's name, whatever its id. `Gone` if this cloud does not have it.
    async fn terminate_listed(&self, cloud: &Cloud, listed: &ListedHost) -> Result<Termination, CloudError> {
        let Some(server) = servers::one(cloud, &self.tag, &listed.handle).await? else {
            return Ok(Termination::Gone);
        };
        if self.tag.owner(&server.master) != listed.owner {
            return Err(CloudError::Misconfigured(format!(
                "cannot delete server {}: it belongs to another master now",
                server.id
            )));
        }
        if server.pool.is_some() {
            let all = servers::all(cloud, &self.tag).await?;
            let is_other = |other: &Server| {
                other.id != server.id && (&other.master, &other.host) == (&server.master, &server.host)
            };
            // If a host has two servers, the other one has the address.
            if !all.iter().any(is_other) {
                extras::release(cloud, &self.tag, &server.master, &server.host).await?;
            }
        }
        servers::delete(cloud, &self.tag, &server.id).await
    }
}

fn hosts_of(servers: &[Server]) -> impl Iterator<Item = (String, HostId)> {
    servers.iter().map(|server| (server.master.clone(), server.host.clone()))
}
