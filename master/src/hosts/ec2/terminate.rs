//! Terminates hosts. The master repeats this until AWS reports them as terminated and nothing of the user's is attached
//! any more.

use super::attach::{self, Attachments};
use super::client::Client;
use super::error::{CallError, Kind, call_error};
use super::list::tag;
use super::order::{HOST_TAG, ID_TAG};
use super::{Ec2, read};
use crate::clock;
use crate::core::event::{ListedHost, Termination, UnlistedPlace};
use crate::core::record::Host;
use crate::sync::lock;
use aws_sdk_ec2::error::ProvideErrorMetadata as _;
use aws_sdk_ec2::types::{Filter, Instance, InstanceStateName, SpotInstanceRequest, SpotInstanceState};

/// What to do about an instance that AWS does not terminate.
const PROTECTED: &str = "; it costs money until its termination protection (DisableApiTermination) is switched off: aws ec2 \
                         modify-instance-attribute --no-disable-api-termination --instance-id ID";

/// What terminating needs to know about an instance.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Known {
    /// Its id.
    pub id: String,
    /// Its state.
    pub state: InstanceStateName,
    /// The master's id in its owner tag, if any.
    owner: Option<String>,
}

impl Known {
    fn of(instance: &Instance) -> Option<Self> {
        let state = instance.state().and_then(|s| s.name()).cloned().unwrap_or(InstanceStateName::Pending);
        let owner = tag(instance.tags(), ID_TAG).map(str::to_owned);
        Some(Self { id: instance.instance_id()?.to_owned(), state, owner })
    }

    /// Whether its tag has this master's id, or none. An instance with another id never belongs to this master.
    pub(super) fn is_of(&self, own: &str) -> bool {
        self.owner.as_deref().is_none_or(|owner| owner == own)
    }

    pub(super) fn has_ended(&self) -> bool {
        self.state == InstanceStateName::Terminated
    }
}

pub(super) fn by(name: &str, value: &str) -> Filter {
    Filter::builder().name(name).values(value).build()
}

/// All instances with the host's id in their tag, whoever owns them. Terminated instances are included as long as AWS
/// lists them.
pub async fn instances_of(client: &Client, host: &rouse_shared::HostId) -> Result<Vec<Known>, CallError> {
    describe(client, by(&format!("tag:{HOST_TAG}"), host.as_str())).await
}

/// One instance, as long as AWS lists it.
pub(super) async fn look(client: &Client, instance: &str) -> Result<Option<Known>, CallError> {
    Ok(describe(client, by("instance-id", instance)).await?.pop())
}

async fn describe(client: &Client, filter: Filter) -> Result<Vec<Known>, CallError> {
    let answer = client.ec2.describe_instances().filters(filter).send().await;
    let answer = answer.map_err(|e| call_error("find the instance", &e))?;
    Ok(answer.reservations().iter().flat_map(|r| r.instances()).filter_map(Known::of).collect())
}

/// Cancels the open spot requests of a host. Returns the final status of the newest, in AWS's words.
pub async fn give_up_requests(client: &Client, host: &rouse_shared::HostId) -> Result<Option<String>, CallError> {
    let call = client.ec2.describe_spot_instance_requests().filters(by(&format!("tag:{HOST_TAG}"), host.as_str()));
    let answer = call.send().await.map_err(|e| call_error("query the spot request", &e))?;
    let requests = answer.spot_instance_requests.unwrap_or_default();
    let open: Vec<String> =
        requests.iter().filter(|r| is_open(r)).filter_map(|r| r.spot_instance_request_id.clone()).collect();
    if !open.is_empty() {
        let call = client.ec2.cancel_spot_instance_requests().set_spot_instance_request_ids(Some(open));
        if let Err(error) = call.send().await.map_err(|e| call_error("cancel the spot request", &e))
            && error.kind != Kind::NotFound
        {
            return Err(error);
        }
    }
    let status = requests.last().and_then(|request| request.status());
    Ok(status.and_then(|status| Some(format!("{} ({})", status.code()?, status.message().unwrap_or_default()))))
}

pub(super) fn is_open(request: &SpotInstanceRequest) -> bool {
    matches!(request.state(), Some(SpotInstanceState::Open | SpotInstanceState::Active))
}

async fn terminate(client: &Client, ids: Vec<String>) -> Result<(), CallError> {
    let what = format!("terminate the instance {}", ids.join(", "));
    let call = client.ec2.terminate_instances().set_instance_ids(Some(ids));
    call.send().await.map(drop).map_err(|e| {
        let mut error = call_error(&what, &e);
        if e.code() == Some("OperationNotPermitted") {
            error.text.push_str(PROTECTED);
        }
        error
    })
}

impl Ec2 {
    pub(super) async fn terminate_instances(&self, host: &Host) -> Result<Termination, String> {
        // Without a launch spec nothing was ever requested.
        let Some(order) = &host.launch else { return Ok(Termination::Gone) };
        self.watch.remove(&host.id);
        let spec = read(order)?;
        let client = self.places.at(&spec.place).await?;
        let (_, own) = self.owner.split_once('/').unwrap_or((&self.owner, ""));
        let handle = host.handle.as_deref().filter(|handle| handle.starts_with("i-"));
        let mut found = instances_of(&client, &host.id).await.map_err(|e| e.text)?;
        if let Some(id) = handle
            && !found.iter().any(|i| i.id == id)
        {
            found.extend(describe(&client, by("instance-id", id)).await.map_err(|e| e.text)?);
        }
        found.retain(|instance| instance.is_of(own));
        if found.is_empty() {
            return self.terminate_unseen(&client, host).await;
        }
        let alive: Vec<String> = found.iter().filter(|i| !i.has_ended()).map(|i| i.id.clone()).collect();
        if !alive.is_empty() {
            let ending = |i: &Known| i.has_ended() || i.state == InstanceStateName::ShuttingDown;
            if !found.iter().all(ending) {
                terminate(&client, alive.clone()).await.map_err(|e| e.text)?;
            }
            return match self.overdue.still_there(clock::now(), host.id.as_str()) {
                None => Ok(Termination::Requested),
                Some(taken) => Err(format!(
                    "AWS has not ended {} within {} s, which costs money; terminate it by hand, or ask AWS's support",
                    alive.join(", "),
                    taken.as_secs()
                )),
            };
        }
        self.overdue.gone(host.id.as_str());
        if spec.spot.is_some() {
            give_up_requests(&client, &host.id).await.map_err(|e| e.text)?;
        }
        let ids: Vec<String> = found.into_iter().map(|i| i.id).collect();
        let attachments = Attachments { elastic_ip: spec.elastic_ip, volumes: spec.volumes };
        if attach::take_off(&client, &ids, &attachments).await.map_err(|e| e.text)? {
            lock(&self.unseen).remove(&host.id);
            return Ok(Termination::Gone);
        }
        Ok(Termination::Requested)
    }

    /// AWS lists nothing of the host. It may have forgotten an instance that ended long ago, or may not list a new one
    /// yet.
    async fn terminate_unseen(&self, client: &Client, host: &Host) -> Result<Termination, String> {
        let now = clock::now();
        let since = *lock(&self.unseen).entry(host.id.clone()).or_insert(now);
        if now.since(since) < self.list_delay {
            return Ok(Termination::Requested);
        }
        give_up_requests(client, &host.id).await.map_err(|e| e.text)?;
        lock(&self.unseen).remove(&host.id);
        Ok(Termination::Gone)
    }

    /// Terminates a listed machine that is not in the ledger.
    pub(super) async fn terminate_by_handle(&self, listed: &ListedHost) -> Result<Termination, String> {
        let known = lock(&self.seen).get(&listed.handle).cloned();
        let place = match known {
            Some(place) => place,
            None => {
                let unlisted = self.list_places().await.unlisted;
                match (lock(&self.seen).get(&listed.handle).cloned(), unlisted.first()) {
                    (Some(place), _) => place,
                    (None, None) => return Ok(Termination::Gone),
                    (None, Some(UnlistedPlace { place, why })) => {
                        let place = place.as_deref().unwrap_or("a place");
                        return Err(format!("it may be in {place}, which cannot be listed: {why}"));
                    }
                }
            }
        };
        let client = self.places.at(&place).await?;
        let ended = match listed.handle.split('-').next() {
            Some("sir") => {
                let call = client.ec2.cancel_spot_instance_requests().spot_instance_request_ids(&listed.handle);
                call.send().await.map(drop).map_err(|e| call_error("cancel the spot request", &e))
            }
            Some("vol") => {
                let call = client.ec2.delete_volume().volume_id(&listed.handle);
                call.send().await.map(drop).map_err(|e| call_error("delete the volume", &e))
            }
            _ => {
                let found = describe(&client, by("instance-id", &listed.handle)).await.map_err(|e| e.text)?;
                if found.iter().all(Known::has_ended) {
                    return Ok(Termination::Gone);
                }
                terminate(&client, vec![listed.handle.clone()]).await
            }
        };
        match ended {
            Ok(()) => Ok(Termination::Requested),
            Err(error) if error.kind == Kind::NotFound => Ok(Termination::Gone),
            Err(error) => Err(error.text),
        }
    }
}
