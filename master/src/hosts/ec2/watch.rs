//! Checks the running instances a few times a minute. If an instance has ended by itself, or AWS has taken it back, the
//! master notices this long before an audit would. One call covers all instances of a place.

use super::client::{Client, Place};
use super::codes;
use super::error::call_error;
use crate::hosts::Death;
use crate::sync::lock;
use aws_sdk_ec2::types::{Filter, Instance, InstanceStateName};
use futures_util::future::join_all;
use rouse_shared::HostId;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;

/// Interval of the checks.
const EVERY: Duration = Duration::from_secs(10);
/// Largest number of instances in one call. AWS accepts 200 values in a filter.
const AT_ONCE: usize = 200;

/// The instances that are checked.
#[derive(Default)]
pub struct Watch {
    instances: Mutex<BTreeMap<String, (HostId, Client)>>,
}

impl Watch {
    /// Checks as long as the result is held. Deaths are reported through `deaths`.
    pub fn start(deaths: mpsc::Sender<Death>) -> Arc<Self> {
        let watch = Arc::new(Self::default());
        let weak = Arc::downgrade(&watch);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(EVERY).await;
                let Some(watch) = weak.upgrade() else { return };
                for death in watch.look().await {
                    if deaths.send(death).await.is_err() {
                        return;
                    }
                }
            }
        });
        watch
    }

    /// Adds an instance.
    pub fn add(&self, instance: &str, host: &HostId, client: &Client) {
        lock(&self.instances).entry(instance.to_owned()).or_insert_with(|| (host.clone(), client.clone()));
    }

    /// Removes a host whose instance is being terminated anyway.
    pub fn remove(&self, host: &HostId) {
        lock(&self.instances).retain(|_, (of, _)| of != host);
    }

    /// Stops checking the instances of a place that was given up.
    pub fn forget(&self, place: &Place) {
        lock(&self.instances).retain(|_, (_, client)| client.place != *place);
    }

    /// Checks all places at the same time, so that one that does not answer delays no other.
    async fn look(&self) -> Vec<Death> {
        let watched = lock(&self.instances).clone();
        let mut places: BTreeMap<&Place, Vec<(&str, &Client)>> = BTreeMap::new();
        for (id, (_, client)) in &watched {
            places.entry(&client.place).or_default().push((id.as_str(), client));
        }
        let looks = places.values().flat_map(|here| here.chunks(AT_ONCE)).map(|some| self.look_at(some));
        join_all(looks).await.into_iter().flatten().collect()
    }

    /// Checks instances of one place.
    async fn look_at(&self, some: &[(&str, &Client)]) -> Vec<Death> {
        let Some((_, client)) = some.first() else { return Vec::new() };
        let ids = some.iter().map(|(id, _)| (*id).to_owned()).collect();
        let ended = Filter::builder().name("instance-state-name").values("terminated").build();
        let these = Filter::builder().name("instance-id").set_values(Some(ids)).build();
        let answer = match client.ec2.describe_instances().filters(these).filters(ended).send().await {
            Ok(answer) => answer,
            // The audit asks again, and logs a warning.
            Err(error) => {
                tracing::debug!("{} in {}", call_error("query the instances", &error).text, client.place);
                return Vec::new();
            }
        };
        let mut deaths = Vec::new();
        for instance in answer.reservations().iter().flat_map(|r| r.instances()) {
            if instance.state().and_then(|state| state.name()) == Some(&InstanceStateName::Terminated) {
                let reclaimed = was_reclaimed(client, instance).await;
                deaths.extend(self.death(instance, reclaimed));
            }
        }
        deaths
    }

    fn death(&self, instance: &Instance, reclaimed: bool) -> Option<Death> {
        let (host, _) = lock(&self.instances).remove(instance.instance_id()?)?;
        let reason = instance.state_reason().and_then(|reason| reason.message()).unwrap_or("AWS does not say why");
        Some(Death { host, why: format!("the instance has ended: {reason}"), reclaimed })
    }
}

/// Whether AWS has taken an instance back, according to its state reason or its spot request.
async fn was_reclaimed(client: &Client, instance: &Instance) -> bool {
    if instance.state_reason().and_then(|reason| reason.code()).is_some_and(codes::was_taken_back) {
        return true;
    }
    let Some(request) = instance.spot_instance_request_id() else { return false };
    let call = client.ec2.describe_spot_instance_requests().spot_instance_request_ids(request);
    match call.send().await {
        Ok(answer) => {
            let mut all = answer.spot_instance_requests().iter().filter_map(|request| request.status()?.code());
            all.any(codes::was_interrupted)
        }
        Err(error) => {
            tracing::debug!("{} in {}", call_error("query the spot request", &error).text, client.place);
            false
        }
    }
}
