//! Checks the running instances a few times a minute. So an instance that has ended by itself, or that AWS has taken
//! back, is reported long before an audit would miss it. One call asks for all instances of a place.

use super::client::Client;
use super::error::call_error;
use crate::hosts::Death;
use crate::sync::lock;
use aws_sdk_ec2::types::{Filter, Instance, InstanceStateName};
use rouse_shared::HostId;
use std::collections::{BTreeMap, BTreeSet};
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

    async fn look(&self) -> Vec<Death> {
        let watched = lock(&self.instances).clone();
        let places: BTreeSet<_> = watched.values().map(|(_, client)| &client.place).collect();
        let mut deaths = Vec::new();
        for place in places {
            let here: Vec<(&String, &Client)> =
                watched.iter().filter(|(_, (_, c))| c.place == *place).map(|(id, (_, c))| (id, c)).collect();
            for some in here.chunks(AT_ONCE) {
                let ids = some.iter().map(|(id, _)| (*id).clone()).collect();
                let ended = Filter::builder().name("instance-state-name").values("terminated").build();
                let these = Filter::builder().name("instance-id").set_values(Some(ids)).build();
                let call = some[0].1.ec2.describe_instances().filters(these).filters(ended);
                match call.send().await {
                    Ok(answer) => {
                        let instances = answer.reservations().iter().flat_map(|r| r.instances());
                        deaths.extend(instances.filter_map(|instance| self.death(instance)));
                    }
                    // The audit asks again, and logs a warning.
                    Err(error) => tracing::debug!("{} in {place}", call_error("look at the instances", &error).text),
                }
            }
        }
        deaths
    }

    fn death(&self, instance: &Instance) -> Option<Death> {
        if instance.state()?.name()? != &InstanceStateName::Terminated {
            return None;
        }
        let (host, _) = lock(&self.instances).remove(instance.instance_id()?)?;
        let reason = instance.state_reason().and_then(|reason| reason.message()).unwrap_or("AWS does not say why");
        Some(Death { host, why: format!("the instance has ended: {reason}"), reclaimed: false })
    }
}
