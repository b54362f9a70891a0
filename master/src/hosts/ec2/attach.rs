//! The user's elastic address and volumes of a host. They are attached once the instance runs, with retries, and
//! detached when the host ends. They are never released or deleted.

use super::client::Client;
use super::error::{CallError, Kind, call_error};
use aws_sdk_ec2::types::{Filter, InstanceStateName, VolumeState};
use std::time::Duration;
use tracing::{info, warn};

/// Interval of the checks whether the instance runs or a volume is free.
const LOOK: Duration = Duration::from_secs(3);
/// Number of checks. After that the next audit starts again.
const LOOKS: u32 = 200;

/// What a host is to have while it runs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Attachments {
    /// An elastic address of the account.
    pub elastic_ip: Option<String>,
    /// Volumes, with the device that each is attached as.
    pub volumes: Vec<(String, String)>,
}

impl Attachments {
    /// Whether there is nothing to attach.
    pub fn is_empty(&self) -> bool {
        self.elastic_ip.is_none() && self.volumes.is_empty()
    }
}

/// Waits until the instance runs, and attaches everything.
pub async fn put_on(client: &Client, instance: &str, what: &Attachments) {
    let mut said = None;
    for _ in 0..LOOKS {
        let left = match state(client, instance).await {
            Ok(Some(InstanceStateName::Running)) => match put_on_once(client, instance, what).await {
                Ok(()) => return,
                Err(error) => error.text,
            },
            Ok(Some(InstanceStateName::Pending) | None) => "it does not run yet".to_owned(),
            // The instance is ending or stopped, so nothing is attached.
            Ok(Some(_)) => return,
            Err(error) => error.text,
        };
        if said.as_ref() != Some(&left) {
            info!("{instance} does not have its address and volumes yet: {left}");
            said = Some(left);
        }
        tokio::time::sleep(LOOK).await;
    }
    warn!("{instance} did not get its address and volumes: {}; the next audit retries", said.unwrap_or_default());
}

async fn state(client: &Client, instance: &str) -> Result<Option<InstanceStateName>, CallError> {
    let by_id = Filter::builder().name("instance-id").values(instance).build();
    let answer = client.ec2.describe_instances().filters(by_id).send().await;
    let answer = answer.map_err(|e| call_error("query the instance", &e))?;
    let state = answer.reservations().iter().flat_map(|r| r.instances()).find_map(|i| i.state()?.name().cloned());
    Ok(state)
}

async fn put_on_once(client: &Client, instance: &str, what: &Attachments) -> Result<(), CallError> {
    for (volume, device) in &what.volumes {
        match holder(client, volume).await? {
            Holder::Instance(holder) if holder == instance => {}
            Holder::Instance(holder) => {
                return Err(not_now(format!("cannot attach {volume}: it is attached to {holder}")));
            }
            Holder::Nobody => {
                let call = client.ec2.attach_volume().volume_id(volume).device(device).instance_id(instance);
                call.send().await.map_err(|e| call_error("attach the volume", &e))?;
                info!("attached {volume} to {instance} as {device}");
            }
        }
    }
    if let Some(address) = &what.elastic_ip {
        let known = find_address(client, address).await?;
        match known.instance {
            Some(holder) if holder == instance => {}
            Some(holder) => return Err(not_now(format!("cannot associate {address}: {holder} has it"))),
            None => {
                let call = client.ec2.associate_address().instance_id(instance).allow_reassociation(false);
                let call = match known.allocation {
                    Some(id) => call.allocation_id(id),
                    None => call.public_ip(address),
                };
                call.send().await.map_err(|e| call_error("associate the address", &e))?;
                info!("associated {address} with {instance}");
            }
        }
    }
    Ok(())
}

/// Detaches everything from `instances`, all of which have ended or are stopped. Returns whether nothing is attached to
/// them any more.
pub async fn take_off(client: &Client, instances: &[String], what: &Attachments) -> Result<bool, CallError> {
    let mut clean = true;
    for (volume, _) in &what.volumes {
        match holder(client, volume).await {
            Ok(Holder::Instance(holder)) if instances.contains(&holder) => {
                clean = false;
                let call = client.ec2.detach_volume().volume_id(volume).instance_id(&holder);
                // The end of an instance detaches everything by itself, so it is no error if something is no longer
                // attached.
                if let Err(error) = call.send().await.map_err(|e| call_error("detach the volume", &e))
                    && !matches!(error.kind, Kind::NotFound | Kind::Rejected)
                {
                    return Err(error);
                }
            }
            Ok(Holder::Instance(_) | Holder::Nobody) => {}
            // A volume that its owner has deleted, or that is still being created, is attached to nothing.
            Err(error) if matches!(error.kind, Kind::NotFound | Kind::NotYet) => {}
            Err(error) => return Err(error),
        }
    }
    if let Some(address) = &what.elastic_ip {
        match find_address(client, address).await {
            Ok(known) if known.instance.as_ref().is_some_and(|holder| instances.contains(holder)) => {
                clean = false;
                let call = client.ec2.disassociate_address();
                let call = match known.association {
                    Some(id) => call.association_id(id),
                    None => call.public_ip(address),
                };
                if let Err(error) = call.send().await.map_err(|e| call_error("disassociate the address", &e))
                    && error.kind != Kind::NotFound
                {
                    return Err(error);
                }
            }
            Ok(_) => {}
            Err(error) if matches!(error.kind, Kind::NotFound | Kind::Rejected) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(clean)
}

fn not_now(text: String) -> CallError {
    CallError { kind: Kind::NotYet, text }
}

enum Holder {
    Nobody,
    Instance(String),
}

async fn holder(client: &Client, volume: &str) -> Result<Holder, CallError> {
    let answer = client.ec2.describe_volumes().volume_ids(volume).send().await;
    let answer = answer.map_err(|e| call_error("query the volume", &e))?;
    let Some(known) = answer.volumes().first() else {
        return Err(CallError { kind: Kind::NotFound, text: format!("volume {volume} not found") });
    };
    // A volume that is being detached still has its instance.
    if let Some(holder) = known.attachments().iter().find_map(|a| a.instance_id()) {
        return Ok(Holder::Instance(holder.to_owned()));
    }
    match known.state() {
        None | Some(VolumeState::Available) => Ok(Holder::Nobody),
        Some(state) => Err(not_now(format!("cannot attach {volume}: it is {}", state.as_str()))),
    }
}

struct Address {
    instance: Option<String>,
    allocation: Option<String>,
    association: Option<String>,
}

async fn find_address(client: &Client, address: &str) -> Result<Address, CallError> {
    let answer = client.ec2.describe_addresses().public_ips(address).send().await;
    let answer = answer.map_err(|e| call_error("query the address", &e))?;
    let Some(known) = answer.addresses().first() else {
        let text = format!("address {address} does not belong to this account");
        return Err(CallError { kind: Kind::NotFound, text });
    };
    let some = |text: Option<&str>| text.filter(|t| !t.is_empty()).map(str::to_owned);
    Ok(Address {
        instance: some(known.instance_id()),
        allocation: some(known.allocation_id()),
        association: some(known.association_id()),
    })
}
