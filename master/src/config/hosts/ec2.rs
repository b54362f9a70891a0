//! `[worker.ec2]`: Amazon EC2, or a cloud that is compatible with it.

use crate::config::Secret;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

/// How an EC2 host is made.
#[derive(Clone, PartialEq, Debug)]
pub struct Ec2Config {
    /// Tried in order when there is no capacity; at least one.
    pub instance_types: Vec<String>,
    /// Absent: the credentials chain's, else us-east-1.
    pub region: Option<String>,
    /// Letters of availability zones, tried in order; empty: AWS chooses.
    pub placement: Vec<String>,
    /// What it boots.
    pub image: Ec2Image,
    /// Key id and key; absent: environment, credentials file, IAM role.
    pub credentials: Option<(String, Secret)>,
    /// A profile of the credentials file.
    pub profile: Option<String>,
    /// Key pair; created where there is none of that name.
    pub keypair_name: String,
    /// Security group; created where there is none of that name. Ignored where there are ids.
    pub security_name: String,
    /// Security groups by id.
    pub security_group_ids: Vec<String>,
    /// Subnet.
    pub subnet_id: Option<String>,
    /// Instance profile.
    pub instance_profile_name: Option<String>,
    /// Sent beside the agent's own boot data.
    pub user_data: Option<String>,
    /// Associated while the host runs.
    pub elastic_ip: Option<Ipv4Addr>,
    /// Beside ours.
    pub tags: BTreeMap<String, String>,
    /// Attached once the instance runs.
    pub volumes: Vec<Volume>,
    /// Disks of the instance's own.
    pub block_devices: Vec<BlockDevice>,
    /// Whether it is bought on the spot market, and how.
    pub spot: Option<Spot>,
    /// What becomes of an idle host.
    pub on_idle: IdleHost,
    /// A stopped host ends after this.
    pub max_age: Option<Duration>,
    /// USD an hour, where AWS's own price is not asked.
    pub price_per_hour: Option<f64>,
    /// PEM file of the certificates that identity documents are signed by; absent: AWS's published ones.
    pub identity_certificates: Option<PathBuf>,
    /// An EC2-compatible cloud; then nothing else is ever called.
    pub endpoint_url: Option<String>,
}

/// Which image an EC2 host boots.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ec2Image {
    /// This one.
    Id(String),
    /// The last one of those that pass. At least one of the filters is there.
    Last {
        /// Account numbers, 12 digits each; empty: any owner.
        owners: Vec<String>,
        /// Matched from the start of the location (already anchored); sorted by group 1.
        location: Option<String>,
    },
}

/// An EBS volume of the user's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Volume {
    /// Such as `vol-0123`.
    pub id: String,
    /// Mount point, such as `/dev/sdf`.
    pub device: String,
}

/// A disk of the instance's own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BlockDevice {
    /// Such as `/dev/xvda`.
    pub device: String,
    /// Gigabytes; absent: as the image has it.
    pub size_gb: Option<u32>,
    /// Volume type, such as `gp3`; absent: AWS's default.
    pub kind: Option<String>,
}

/// How a host is bought on the spot market.
#[derive(Clone, PartialEq, Debug)]
pub struct Spot {
    /// USD an hour, never above this; absent: AWS's own limit, the on-demand price.
    pub max_price: Option<f64>,
    /// Bid the average of 24 hours times this; absent: bid the maximum.
    pub multiplier: Option<f64>,
    /// Whether to buy on demand where no spot capacity is to be had.
    pub on_demand_fallback: bool,
}

/// What becomes of an idle EC2 host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IdleHost {
    /// Ended.
    Terminate,
    /// Stopped, and woken again.
    Stop,
    /// Hibernated, and woken again.
    Hibernate,
}
