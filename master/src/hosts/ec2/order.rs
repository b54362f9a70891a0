//! The launch spec of an instance, computed before anything is created: type, zone, market, image, and the rest of the
//! call. The master keeps it in the ledger and sends it to AWS unchanged each time.

use super::client::Place;
use super::{image, spot};
use crate::config::Ec2Config;
use crate::core::record::Host;
use aws_sdk_ec2::types::{
    BlockDeviceMapping, EbsBlockDevice, HibernationOptionsRequest, HttpTokensState, IamInstanceProfileSpecification,
    InstanceInterruptionBehavior, InstanceMarketOptionsRequest, InstanceMetadataEndpointState,
    InstanceMetadataOptionsRequest, InstanceType, MarketType, Placement, ResourceType, ShutdownBehavior,
    SpotInstanceType, SpotMarketOptions, Tag, TagSpecification, VolumeType,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Tag with the master's name.
pub const MASTER_TAG: &str = "rouse-master";
/// Tag with the master's generated id.
pub const ID_TAG: &str = "rouse-id";
/// Tag with the host's id.
pub const HOST_TAG: &str = "rouse-host";
/// Tag with the worker's name.
pub const WORKER_TAG: &str = "rouse-worker";

/// Largest user data that AWS accepts, bytes before base64.
pub const USER_DATA_LIMIT: usize = 16_384;

/// One type, in one zone, on one market.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Alternative {
    /// Such as `m5.large`.
    pub kind: String,
    /// Letter of the zone; none: AWS chooses.
    pub zone: Option<String>,
    /// Whether it is a spot instance.
    pub spot: bool,
}

impl Alternative {
    /// Its name in this region: the same for all workers that would get the same kind of instance.
    pub fn name(&self, region: &str) -> String {
        let zone = self.zone.as_deref().unwrap_or_default();
        format!("{} in {region}{zone}{}", self.kind, if self.spot { ", spot" } else { "" })
    }
}

/// All alternatives of a section, in the order in which they are tried: every type in every zone, and if the section
/// allows it, the same again on demand.
pub fn alternatives(config: &Ec2Config) -> Vec<Alternative> {
    let mut markets = vec![config.spot.is_some()];
    if config.spot.as_ref().is_some_and(|spot| spot.on_demand_fallback) {
        markets.push(false);
    }
    let zones: Vec<Option<&String>> =
        if config.placement.is_empty() { vec![None] } else { config.placement.iter().map(Some).collect() };
    let mut all = Vec::new();
    for spot in markets {
        for kind in &config.instance_types {
            for zone in &zones {
                all.push(Alternative { kind: kind.clone(), zone: zone.cloned(), spot });
            }
        }
    }
    all
}

/// The complete call, as the ledger keeps it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Spec {
    /// The place, with the account.
    pub place: Place,
    /// The client token. AWS creates one instance for it, however often it is sent.
    pub token: String,
    /// The image.
    pub image: String,
    /// The type.
    pub kind: String,
    /// The zone's full name; absent if AWS chooses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// The subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<String>,
    /// Ids of security groups.
    pub groups: Vec<String>,
    /// Name of the key pair.
    pub key: String,
    /// Name of the instance profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// User data as text.
    pub user_data: String,
    /// Tags of instance, volumes and spot request.
    pub tags: BTreeMap<String, String>,
    /// The instance's own disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<Disk>,
    /// The bid on the spot market; absent for on demand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spot: Option<Bid>,
    /// Whether it may be hibernated.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hibernate: bool,
    /// The user's elastic address for the time when it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elastic_ip: Option<String>,
    /// The user's volumes, with the device of each, for the time when it runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<(String, String)>,
    /// Whether key pair or security group were created for this launch spec. AWS may need a moment until they are known
    /// everywhere.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fresh: bool,
    /// Whether the answers of the metadata service reach only the instance itself, and no container or guest on it. False
    /// in launch specs of earlier versions, because a call must not change.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub one_hop: bool,
}

/// A disk of the instance.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Disk {
    /// Such as `/dev/xvda`.
    pub device: String,
    /// Gigabytes; none: as the image has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_gb: Option<u32>,
    /// Such as `gp3`; none: as the image has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
}

/// A bid on the spot market.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Bid {
    /// The highest price in USD per hour, as it is written in the call; absent for AWS's own limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most: Option<String>,
}

/// What was looked up for a launch spec.
pub struct Found {
    /// The image.
    pub image: image::Chosen,
    /// The state of the spot market; absent for on demand.
    pub market: Option<spot::Market>,
    /// Ids of security groups.
    pub groups: Vec<String>,
    /// Whether key pair or security group have just been created.
    pub fresh: bool,
    /// User data as text.
    pub user_data: String,
}

impl Spec {
    /// The launch spec for one alternative of a section.
    pub fn new(
        config: &Ec2Config,
        place: &Place,
        owner: &str,
        host: &Host,
        number: u32,
        alternative: &Alternative,
        found: Found,
    ) -> Self {
        let (name, id) = owner.split_once('/').unwrap_or((owner, ""));
        let mut tags = BTreeMap::from([("Name".to_owned(), format!("rouse {name} {}", host.worker))]);
        tags.extend(config.tags.clone());
        // The tags of rouse come last, so that the user's tags cannot replace the owner tag.
        for (key, value) in
            [(MASTER_TAG, name), (ID_TAG, id), (HOST_TAG, host.id.as_str()), (WORKER_TAG, host.worker.as_str())]
        {
            tags.insert(key.to_owned(), value.to_owned());
        }
        let disk = |d: &crate::config::hosts::BlockDevice| Disk {
            device: d.device.clone(),
            size_gb: d.size_gb,
            kind: d.kind.clone(),
        };
        Self {
            place: place.clone(),
            token: format!("rouse-{}-{number}", host.id),
            image: found.image.id,
            kind: alternative.kind.clone(),
            zone: alternative.zone.as_ref().map(|letter| format!("{}{letter}", place.region)),
            subnet: config.subnet_id.clone(),
            groups: found.groups,
            key: config.keypair_name.clone(),
            profile: config.instance_profile_name.clone(),
            user_data: found.user_data,
            tags,
            disks: config.block_devices.iter().map(disk).collect(),
            spot: config
                .spot
                .as_ref()
                .filter(|_| alternative.spot)
                .map(|settings| Bid { most: spot::bid(settings, &found.market.unwrap_or_default()) }),
            hibernate: config.on_idle == crate::config::hosts::IdleHost::Hibernate,
            elastic_ip: config.elastic_ip.map(|address| address.to_string()),
            volumes: config.volumes.iter().map(|v| (v.id.clone(), v.device.clone())).collect(),
            fresh: found.fresh,
            one_hop: true,
        }
    }

    /// The call that creates the instance. The same launch spec gives the same call.
    pub fn call(
        &self,
        client: &aws_sdk_ec2::Client,
    ) -> aws_sdk_ec2::operation::run_instances::builders::RunInstancesFluentBuilder {
        let mut call = client
            .run_instances()
            .client_token(&self.token)
            .image_id(&self.image)
            .instance_type(InstanceType::from(self.kind.as_str()))
            .min_count(1)
            .max_count(1)
            .key_name(&self.key)
            .user_data(STANDARD.encode(&self.user_data))
            .metadata_options(
                InstanceMetadataOptionsRequest::builder()
                    .http_endpoint(InstanceMetadataEndpointState::Enabled)
                    .http_tokens(HttpTokensState::Required)
                    .set_http_put_response_hop_limit(self.one_hop.then_some(1))
                    .build(),
            )
            .set_subnet_id(self.subnet.clone())
            .set_security_group_ids(Some(self.groups.clone()).filter(|groups| !groups.is_empty()));
        // For a one-time spot instance AWS allows no choice: a shutdown from inside always terminates it.
        if self.spot.is_none() {
            call = call.instance_initiated_shutdown_behavior(ShutdownBehavior::Terminate);
        }
        if let Some(zone) = &self.zone {
            call = call.placement(Placement::builder().availability_zone(zone).build());
        }
        if let Some(profile) = &self.profile {
            call = call.iam_instance_profile(IamInstanceProfileSpecification::builder().name(profile).build());
        }
        if self.hibernate {
            call = call.hibernation_options(HibernationOptionsRequest::builder().configured(true).build());
        }
        for disk in &self.disks {
            call = call.block_device_mappings(disk.mapping(self.hibernate));
        }
        let mut kinds = vec![ResourceType::Instance, ResourceType::Volume];
        if let Some(bid) = &self.spot {
            kinds.push(ResourceType::SpotInstancesRequest);
            let options = SpotMarketOptions::builder()
                .spot_instance_type(SpotInstanceType::OneTime)
                .instance_interruption_behavior(InstanceInterruptionBehavior::Terminate)
                .set_max_price(bid.most.clone())
                .build();
            call = call.instance_market_options(
                InstanceMarketOptionsRequest::builder().market_type(MarketType::Spot).spot_options(options).build(),
            );
        }
        for kind in kinds {
            let tags = self.tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build());
            call = call.tag_specifications(
                TagSpecification::builder().resource_type(kind).set_tags(Some(tags.collect())).build(),
            );
        }
        call
    }
}

impl Disk {
    fn mapping(&self, encrypted: bool) -> BlockDeviceMapping {
        let mut disk = EbsBlockDevice::builder()
            .delete_on_termination(true)
            .set_volume_size(self.size_gb.and_then(|gb| i32::try_from(gb).ok()))
            .set_volume_type(self.kind.as_deref().map(VolumeType::from));
        // A hibernated instance writes its memory to the disk, which AWS requires to be encrypted.
        if encrypted {
            disk = disk.encrypted(true);
        }
        BlockDeviceMapping::builder().device_name(&self.device).ebs(disk.build()).build()
    }
}

#[cfg(test)]
mod tests {
    use super::super::client::Account;
    use super::*;

    #[test]
    fn the_metadata_stay_on_the_instance_and_an_old_call_stays_as_it_was() {
        let config = aws_sdk_ec2::Config::builder().behavior_version(aws_sdk_ec2::config::BehaviorVersion::latest());
        let client = aws_sdk_ec2::Client::from_conf(config.build());
        let text = r#"{ "place": PLACE, "token": "t", "image": "ami-1", "kind": "m5.large", "groups": [], "key": "k",
            "user_data": "", "tags": {} }"#;
        let place = Place { endpoint: None, region: "us-west-2".to_owned(), account: Account::Chain };
        let place = serde_json::to_string(&place).expect("a place");
        let mut spec: Spec = serde_json::from_str(&text.replace("PLACE", &place)).expect("a launch spec of 0.1.0");
        let hops = |spec: &Spec| {
            let call = spec.call(&client);
            call.get_metadata_options().as_ref().and_then(|options| options.http_put_response_hop_limit())
        };
        assert_eq!(hops(&spec), None);
        spec.one_hop = true;
        assert_eq!(hops(&spec), Some(1));
    }
}
