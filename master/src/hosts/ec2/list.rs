//! Lists everything with this master's name, in all regions of the configuration and all regions where hosts were
//! created before: instances, and what ended instances have left behind (open spot requests, and volumes that still
//! cost money).

use super::attach::Attachments;
use super::client::Client;
use super::error::{CallError, call_error};
use super::order::{HOST_TAG, ID_TAG, MASTER_TAG, WORKER_TAG};
use super::places::Target;
use super::terminate::{by, is_open};
use super::{Ec2, Kind};
use crate::core::event::{ListedHost, Listing, Owner};
use crate::sync::lock;
use aws_sdk_ec2::types::{Filter, Instance, InstanceStateName, Tag};
use futures_util::future::join_all;
use rouse_shared::HostId;
use std::collections::BTreeSet;
use std::time::Duration;

/// Time limit for the list of one place, so that an audit gets the lists of the others in time.
const PLACE: Duration = Duration::from_secs(20);

struct Found {
    machines: Vec<ListedHost>,
    /// Running instances with their workers.
    running: Vec<(String, String)>,
}

pub(super) fn tag<'a>(tags: &'a [Tag], key: &str) -> Option<&'a str> {
    tags.iter().find(|tag| tag.key() == Some(key)).and_then(Tag::value)
}

impl Ec2 {
    /// Lists each place separately. One that does not answer hides only its own hosts.
    pub(super) async fn list_places(&self) -> Listing {
        let (targets, mut unlisted) = self.places.all().await;
        let answers = targets.iter().map(|target| async {
            let late = || format!("no answer within {} s", PLACE.as_secs());
            let list = tokio::time::timeout(PLACE, self.list_at(&target.client)).await;
            list.unwrap_or_else(|_| Err(CallError { kind: Kind::Unknown, text: late() }))
        });
        let answers = join_all(answers).await;
        let mut machines: Vec<ListedHost> = Vec::new();
        let mut seen = Vec::new();
        let mut silent = BTreeSet::new();
        let mut left = Vec::new();
        for (target, answer) in targets.iter().zip(answers) {
            let found = match answer {
                Ok(found) => found,
                Err(error) if has_successor(target, &targets) && error.kind == Kind::Auth => {
                    tracing::warn!("{} is no longer listed: {}", target.client.place, error.text);
                    self.places.forget(&target.client.place);
                    continue;
                }
                Err(error) => {
                    silent.insert(target.client.place.clone());
                    unlisted.extend(target.unlisted(&error.text));
                    continue;
                }
            };
            if !target.current && found.machines.is_empty() {
                left.push(target.client.place.clone());
            }
            for machine in found.machines {
                // Two keys of one account list the same machines.
                if !machines.iter().any(|known| known.handle == machine.handle) {
                    if machine.owner == Owner::Ours && machine.handle.starts_with("i-") && !machine.suspended {
                        self.watch.add(&machine.handle, &machine.host, &target.client);
                    }
                    seen.push((machine.handle.clone(), target.client.place.clone()));
                    machines.push(machine);
                }
            }
            for (instance, worker) in found.running {
                let section = worker.parse().ok().and_then(|worker| self.section(&worker));
                let attachments = section.map(|s| Attachments {
                    elastic_ip: s.elastic_ip.map(|address| address.to_string()),
                    volumes: s.volumes.iter().map(|v| (v.id.clone(), v.device.clone())).collect(),
                });
                self.attach_extras(&target.client, &instance, attachments.unwrap_or_default());
            }
        }
        for place in left {
            self.places.forget(&place);
        }
        let mut known = lock(&self.seen);
        known.retain(|_, place| silent.contains(place));
        known.extend(seen);
        Listing { machines, unlisted }
    }

    async fn list_at(&self, client: &Client) -> Result<Found, CallError> {
        let (name, _) = self.owner.split_once('/').unwrap_or((&self.owner, ""));
        let ours = by(&format!("tag:{MASTER_TAG}"), name);
        let alive = ["pending", "running", "shutting-down", "stopping", "stopped"];
        let alive = alive.iter().fold(Filter::builder().name("instance-state-name"), |f, state| f.values(*state));
        let call = client.ec2.describe_instances().filters(ours.clone()).filters(alive.build());
        let mut pages = call.into_paginator().send();
        let mut found = Found { machines: Vec::new(), running: Vec::new() };
        while let Some(page) = pages.next().await {
            let page = page.map_err(|e| call_error("list the instances", &e))?;
            for instance in page.reservations().iter().flat_map(|r| r.instances()) {
                if let Some(mut machine) = self.listed(instance.instance_id(), instance.tags()) {
                    machine.suspended = is_suspended(instance);
                    if is_running(instance)
                        && machine.owner == Owner::Ours
                        && let Some(worker) = tag(instance.tags(), WORKER_TAG)
                    {
                        found.running.push((machine.handle.clone(), worker.to_owned()));
                    }
                    found.machines.push(machine);
                }
            }
        }
        let hosts: BTreeSet<HostId> = found.machines.iter().map(|m| m.host.clone()).collect();
        let call = client.ec2.describe_spot_instance_requests().filters(ours.clone());
        let mut pages = call.into_paginator().send();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|e| call_error("list the spot requests", &e))?;
            for request in page.spot_instance_requests().iter().filter(|r| is_open(r)) {
                let left = self.listed(request.spot_instance_request_id(), request.tags());
                found.machines.extend(left.filter(|m| !hosts.contains(&m.host)));
            }
        }
        let call = client.ec2.describe_volumes().filters(ours).filters(by("status", "available"));
        let mut pages = call.into_paginator().send();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|e| call_error("list the volumes", &e))?;
            for volume in page.volumes() {
                let left = self.listed(volume.volume_id(), volume.tags());
                found.machines.extend(left.filter(|m| !hosts.contains(&m.host)));
            }
        }
        Ok(found)
    }

    fn listed(&self, handle: Option<&str>, tags: &[Tag]) -> Option<ListedHost> {
        let (_, own) = self.owner.split_once('/').unwrap_or((&self.owner, ""));
        let id = tag(tags, ID_TAG).unwrap_or_default();
        let owner = if id == own { Owner::Ours } else { Owner::Foreign(id.to_owned()) };
        let host = HostId(tag(tags, HOST_TAG).unwrap_or_default().to_owned());
        let handle = handle?;
        // What remains of a host besides its instance has another kind of id, and no agent.
        let identity = handle.starts_with("i-").then(|| format!("ec2:{handle}"));
        // What an instance has left does not run.
        Some(ListedHost { host, handle: handle.to_owned(), identity, owner, suspended: true })
    }
}

/// Whether it is stopped or stopping.
fn is_suspended(instance: &Instance) -> bool {
    let state = instance.state().and_then(|s| s.name());
    matches!(state, Some(InstanceStateName::Stopping | InstanceStateName::Stopped))
}

fn is_running(instance: &Instance) -> bool {
    instance.state().and_then(|s| s.name()) == Some(&InstanceStateName::Running)
}

/// Whether the configuration has a login for the same place as an earlier one.
fn has_successor(target: &Target, targets: &[Target]) -> bool {
    let place = &target.client.place;
    !target.current
        && targets
            .iter()
            .any(|t| t.current && t.client.place.region == place.region && t.client.place.endpoint == place.endpoint)
}
