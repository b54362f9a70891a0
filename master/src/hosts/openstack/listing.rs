//! What of ours is in all the clouds, and how something of it is ended that the ledger does not know.

use super::cloud::Cloud;
use super::clouds::{Target, late};
use super::error::CloudError;
use super::extras::{self, Alive};
use super::servers::{self, Server, Status};
use super::{Servers, Shared, identity_of};
use crate::core::event::{ListedHost, Listing, Termination, UnlistedPlace};
use futures_util::future::join_all;
use rouse_shared::HostId;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// For the servers of one of several clouds, so that what the others have is told within [`crate::hosts::CALL_LIMIT`].
const SERVERS: Duration = Duration::from_secs(35);

impl Servers {
    /// The servers of every cloud, and what is left over of others. One that does not answer hides only its own, and
    /// what is left over: that may be part of one of its servers.
    pub(super) async fn list_clouds(&self) -> Result<Listing, String> {
        let shared = &self.shared;
        let mut unheard = shared.unusable();
        let (targets, unreached) = shared.clouds.targets().await;
        unheard.extend(unreached);
        let (mut listed, mut alive, mut empty) = (Vec::new(), Alive::new(), Vec::new());
        for (target, servers) in targets.iter().zip(shared.servers(&targets).await) {
            match servers {
                Ok(servers) => {
                    alive.extend(hosts_of(&servers));
                    listed.extend(shared.listed(&target.cloud, &servers));
                    empty.push(servers.is_empty());
                }
                Err(problem) => unheard.push(problem.to_string()),
            }
        }
        if unheard.is_empty() {
            let found = targets.iter().map(|target| extras::left_over(&target.cloud, &shared.stamp, &alive));
            for ((target, found), is_empty) in targets.iter().zip(join_all(found).await).zip(empty) {
                match found {
                    Ok(left) => {
                        if left.is_empty() && is_empty && shared.is_settled() {
                            shared.clouds.forget(target);
                        }
                        // Regions may share a service.
                        let known: BTreeSet<String> = listed.iter().map(|one| one.handle.clone()).collect();
                        listed.extend(left.into_iter().filter(|one| !known.contains(&one.handle)));
                    }
                    Err(problem) => unheard.push(problem.to_string()),
                }
            }
        }
        if !unheard.is_empty() {
            // TODO(places): by place
            let unlisted = unheard.into_iter().map(|why| UnlistedPlace { place: None, why }).collect();
            return Ok(Listing { machines: listed, unlisted });
        }
        let there: BTreeSet<&str> = listed.iter().map(|machine| machine.handle.as_str()).collect();
        shared.state().labelled.retain(|id| there.contains(id.as_str()));
        Ok(Listing::whole(listed))
    }

    /// Which cloud it is in, its handle does not say: an id is in one cloud only.
    pub(super) async fn terminate_by_handle(&self, listed: &ListedHost) -> Result<Termination, String> {
        let shared = &self.shared;
        let (targets, unreached) = shared.clouds.targets().await;
        let mut unheard = shared.unusable();
        unheard.extend(unreached);
        let is_extra = extras::is_extra(&listed.handle);
        let mut alive = Alive::new();
        if is_extra {
            // Its server may be where nothing can be heard of it just now.
            if !unheard.is_empty() {
                return Err(unheard.join("; "));
            }
            for servers in shared.servers(&targets).await {
                alive.extend(hosts_of(&servers.map_err(|problem| problem.to_string())?));
            }
        }
        for target in &targets {
            let ended = match is_extra {
                true => extras::end(&target.cloud, &shared.stamp, listed, &alive).await,
                false => shared.terminate_listed(&target.cloud, listed).await,
            };
            match ended {
                Ok(Termination::Requested) => return Ok(Termination::Requested),
                Ok(Termination::Gone) => {}
                Err(problem) => unheard.push(problem.to_string()),
            }
        }
        if unheard.is_empty() { Ok(Termination::Gone) } else { Err(unheard.join("; ")) }
    }
}

impl Shared {
    /// Sections whose account cannot be used, and why.
    fn unusable(&self) -> Vec<String> {
        let why = |(worker, section): (&_, &super::Section)| {
            section.cloud.as_ref().err().map(|why| format!("cannot list the servers of {worker}: {why}"))
        };
        self.state().sections.iter().filter_map(why).collect()
    }

    /// The servers of each, all asked at once.
    async fn servers(&self, targets: &[Target]) -> Vec<Result<Vec<Server>, CloudError>> {
        let ask = |target: &Target| {
            let cloud = target.cloud.clone();
            async move {
                let servers = tokio::time::timeout(SERVERS, servers::all(&cloud, &self.stamp)).await;
                servers.unwrap_or_else(|_| Err(late(&cloud, SERVERS)))
            }
        };
        join_all(targets.iter().map(ask)).await
    }

    /// A cloud's servers as the core is told of them; whatever of ours is not known to have all that it needs is looked at.
    fn listed(self: &Arc<Self>, cloud: &Arc<Cloud>, servers: &[Server]) -> Vec<ListedHost> {
        let mut servers: Vec<&Server> = servers.iter().collect();
        servers.sort();
        let mut hosts = BTreeSet::new();
        let labelled = self.state().labelled.clone();
        let tell = |server: &Server| {
            let ours = server.master == self.stamp.id;
            let host = if hosts.insert((server.master.clone(), server.host.clone())) {
                if ours && (server.status == Status::Error || !labelled.contains(&server.id)) {
                    // What a master before this one has started, and what has failed since.
                    self.watch(cloud, &server.id);
                }
                server.host.clone()
            } else {
                // A second server of one host: nobody's.
                HostId(format!("{}.{}", server.host, server.id))
            };
            let (owner, identity) = (self.stamp.owner(&server.master), Some(identity_of(&server.id)));
            ListedHost { host, handle: server.id.clone(), identity, owner, suspended: false }
        };
        servers.into_iter().map(tell).collect()
    }

    /// Ends a server of our name, whoever's it is said to be; `Gone` where this cloud does not have it.
    async fn terminate_listed(&self, cloud: &Cloud, listed: &ListedHost) -> Result<Termination, CloudError> {
        let Some(server) = servers::one(cloud, &self.stamp, &listed.handle).await? else {
            return Ok(Termination::Gone);
        };
        if self.stamp.owner(&server.master) != listed.owner {
            return Err(CloudError::Misconfigured(format!(
                "cannot delete server {}: it belongs to another master now",
                server.id
            )));
        }
        if server.pool.is_some() {
            let all = servers::all(cloud, &self.stamp).await?;
            let is_other = |other: &Server| {
                other.id != server.id && (&other.master, &other.host) == (&server.master, &server.host)
            };
            // Of two servers of a host the other one has the address.
            if !all.iter().any(is_other) {
                extras::release(cloud, &self.stamp, &server.master, &server.host).await?;
            }
        }
        servers::delete(cloud, &self.stamp, &server.id).await
    }
}

fn hosts_of(servers: &[Server]) -> impl Iterator<Item = (String, HostId)> {
    servers.iter().map(|server| (server.master.clone(), server.host.clone()))
}
