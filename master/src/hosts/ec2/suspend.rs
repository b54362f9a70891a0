//! Suspended hosts. They are stopped, or hibernated if hibernation was enabled at launch, and started again with new
//! user data.

use super::attach::{self, Attachments};
use super::client::Client;
use super::error::{CallError, Kind, call_error};
use super::order::{self, Spec};
use super::terminate::{self, Known};
use super::{Ec2, read};
use crate::core::event::{StartError, Suspension};
use crate::core::record::Host;
use crate::hosts::user_data;
use aws_sdk_ec2::types::{InstanceAttributeName, InstanceStateName};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rouse_shared::boot::BootData;

impl Ec2 {
    pub(super) async fn suspend_instance(&self, host: &Host) -> Result<Suspension, String> {
        let Some((spec, client)) = self.order_of(host).await? else {
            return Ok(Suspension::Unable("the host was never ordered".to_owned()));
        };
        self.watch.remove(&host.id);
        let Some(instance) = self.instance(&client, host).await.map_err(|e| e.text)? else {
            return Ok(Suspension::Unable("AWS has no such instance".to_owned()));
        };
        match instance.state {
            InstanceStateName::Stopped => {
                let attachments = Attachments { elastic_ip: spec.elastic_ip, volumes: spec.volumes };
                let clean = attach::take_off(&client, &[instance.id], &attachments).await.map_err(|e| e.text)?;
                Ok(if clean { Suspension::Suspended } else { Suspension::Requested })
            }
            // AWS does not stop an instance that is still starting.
            InstanceStateName::Stopping | InstanceStateName::Pending => Ok(Suspension::Requested),
            InstanceStateName::Running => put_to_sleep(&client, &instance.id, spec.hibernate).await,
            other => Ok(Suspension::Unable(format!("the instance is {}", other.as_str()))),
        }
    }

    pub(super) async fn resume_instance(&self, host: &Host, boot: &BootData) -> Result<(), StartError> {
        let section = self.section(&host.worker);
        let section = section.ok_or_else(|| StartError::Rejected("the worker has no [worker.ec2] any more".into()))?;
        let found = self.order_of(host).await.map_err(StartError::Place)?;
        let (spec, client) = found.ok_or_else(|| StartError::Rejected("the host was never ordered".into()))?;
        let instance = self.instance(&client, host).await.map_err(CallError::before_start)?;
        let instance = instance.ok_or_else(|| StartError::Rejected("AWS has no such instance".into()))?;
        match instance.state {
            InstanceStateName::Stopped => {
                let user_data = user_data::compose(boot, section.user_data.as_deref(), order::USER_DATA_LIMIT)
                    .map_err(|error| StartError::Rejected(error.to_string()))?;
                wake(&client, &instance.id, user_data).await?;
            }
            // An earlier call has started it. User data can only change while it is stopped.
            InstanceStateName::Pending | InstanceStateName::Running => {}
            InstanceStateName::Stopping => {
                return Err(StartError::Transient("the instance is still being stopped".to_owned()));
            }
            other => return Err(StartError::Rejected(format!("the instance is {}", other.as_str()))),
        }
        self.watch.add(&instance.id, &host.id, &client);
        self.attach_extras(&client, &instance.id, Attachments { elastic_ip: spec.elastic_ip, volumes: spec.volumes });
        Ok(())
    }

    async fn order_of(&self, host: &Host) -> Result<Option<(Spec, Client)>, String> {
        let Some(order) = &host.launch else { return Ok(None) };
        let spec = read(order)?;
        let client = self.places.at(&spec.place).await?;
        Ok(Some((spec, client)))
    }

    /// The instance of a host, unless it has ended.
    async fn instance(&self, client: &Client, host: &Host) -> Result<Option<Known>, CallError> {
        let Some(handle) = host.handle.as_deref() else { return Ok(None) };
        let (_, own) = self.owner.split_once('/').unwrap_or((&self.owner, ""));
        Ok(terminate::look(client, handle).await?.filter(|i| i.is_of(own)))
    }
}

async fn put_to_sleep(client: &Client, instance: &str, hibernate: bool) -> Result<Suspension, String> {
    let call = client.ec2.stop_instances().instance_ids(instance).set_hibernate(hibernate.then_some(true));
    match call.send().await.map_err(|e| call_error("stop the instance", &e)) {
        Ok(_) => Ok(Suspension::Requested),
        // Its operating system is not ready for hibernation, or does not support it.
        Err(error) if hibernate && matches!(error.kind, Kind::NotHere | Kind::Rejected) => {
            tracing::warn!("{instance} is stopped instead of hibernated: {}", error.text);
            let plain = client.ec2.stop_instances().instance_ids(instance).send().await;
            plain.map(|_| Suspension::Requested).map_err(|e| call_error("stop the instance", &e).text)
        }
        Err(error) => match error.kind {
            Kind::Rejected | Kind::NotHere | Kind::NotFound => Ok(Suspension::Unable(error.text)),
            Kind::Capacity
            | Kind::Quota
            | Kind::NotYet
            | Kind::Mismatch
            | Kind::Exists
            | Kind::Auth
            | Kind::Throttled
            | Kind::Unknown
            | Kind::WouldWork => Err(error.text),
        },
    }
}

async fn wake(client: &Client, instance: &str, user_data: String) -> Result<(), StartError> {
    let call = client.ec2.modify_instance_attribute().instance_id(instance);
    let call = call.attribute(InstanceAttributeName::UserData).value(STANDARD.encode(user_data));
    call.send().await.map_err(|e| call_error("give the instance its new user data", &e).of_start(false))?;
    let call = client.ec2.start_instances().instance_ids(instance);
    call.send().await.map_err(|e| call_error("start the instance again", &e).of_start(false))?;
    Ok(())
}
