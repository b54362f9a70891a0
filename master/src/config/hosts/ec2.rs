//! `[worker.ec2]`: Amazon EC2, or a cloud that is compatible with it.

use crate::config::Secret;
use crate::config::document::{Table, Value};
use crate::config::{keys, shorten, url};
use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;
use toml::de::DeValue;

const IN_CLEAR: &str =
    "begins with http://, so orders with the tokens of hosts in them cross the network in clear: use https://";

/// How an EC2 host is made.
#[derive(Clone, PartialEq, Debug)]
pub struct Ec2Config {
    /// Tried in order when there is no capacity; at least one.
    pub instance_types: Vec<String>,
    /// Absent: the credentials chain's, otherwise us-east-1.
    pub region: Option<String>,
    /// Letters of availability zones, tried in order; empty: AWS chooses.
    pub placement: Vec<String>,
    /// What it boots.
    pub image: Ec2Image,
    /// Key id and key; absent: environment, credentials file, IAM role.
    pub credentials: Option<(String, Secret)>,
    /// A profile of the credentials file.
    pub profile: Option<String>,
    /// Key pair; created if there is none of that name.
    pub keypair_name: String,
    /// Security group; created if there is none of that name. Ignored if there are ids.
    pub security_name: String,
    /// Security groups by id.
    pub security_group_ids: Vec<String>,
    /// Subnet.
    pub subnet_id: Option<String>,
    /// Instance profile.
    pub instance_profile_name: Option<String>,
    /// Sent in addition to the agent's boot data.
    pub user_data: Option<String>,
    /// Associated while the host runs.
    pub elastic_ip: Option<Ipv4Addr>,
    /// Beside ours.
    pub tags: BTreeMap<String, String>,
    /// Attached once the instance runs.
    pub volumes: Vec<Volume>,
    /// Disks of the instance's own.
    pub block_devices: Vec<BlockDevice>,
    /// Settings of the spot market; absent for on-demand instances.
    pub spot: Option<Spot>,
    /// What becomes of an idle host.
    pub on_idle: IdleHost,
    /// A host that is older is ended instead of stopped, and while it is stopped.
    pub max_age: Duration,
    /// USD an hour, if AWS's own price is not asked.
    pub price_per_hour: Option<f64>,
    /// PEM file of the certificates that identity documents are signed by; absent: AWS's published ones.
    pub identity_certificates: Option<PathBuf>,
    /// The URL of a cloud that is compatible with EC2; if it is set, nothing else is ever called.
    pub endpoint_url: Option<String>,
}

impl Ec2Config {
    /// Where its hosts are made: endpoint, region and account.
    pub fn place(&self) -> String {
        let (endpoint, region) = (self.endpoint_url.as_deref(), self.region.as_deref());
        place_name(endpoint, region, self.credentials.as_ref().map(|(id, _)| id.as_str()), self.profile.as_deref())
    }
}

/// The name of a place: endpoint, region, and access key or profile.
pub fn place_name(endpoint: Option<&str>, region: Option<&str>, key: Option<&str>, profile: Option<&str>) -> String {
    let region = region.unwrap_or("the default region");
    let of = match endpoint {
        Some(endpoint) => format!("{endpoint}, {region}"),
        None => region.to_owned(),
    };
    match (key, profile) {
        (Some(id), _) => format!("{of} with key {id}"),
        (None, Some(profile)) => format!("{of} with profile {profile}"),
        (None, None) => of,
    }
}

/// Which image an EC2 host boots.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ec2Image {
    /// This one.
    Id(String),
    /// The last one of those that pass. At least one of the filters is there.
    Last {
        /// Account numbers, 12 digits each, and AWS's aliases; empty: any owner.
        owners: Vec<String>,
        /// Matched from the start of the location (already anchored); sorted by group 1.
        location: Option<String>,
    },
}

/// As a person would name it.
impl fmt::Display for Ec2Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => f.write_str(id),
            Self::Last { owners, location } => {
                let owners = if owners.is_empty() { "anybody".to_owned() } else { owners.join(", ") };
                let location = location.as_deref().unwrap_or("any location");
                write!(f, "the last of {owners} at {location}")
            }
        }
    }
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

/// Settings of the spot market.
#[derive(Clone, PartialEq, Debug)]
pub struct Spot {
    /// USD an hour, never above this; absent: AWS's own limit, the on-demand price.
    pub max_price: Option<f64>,
    /// Bid the average of 24 hours times this; absent: bid the maximum.
    pub multiplier: Option<f64>,
    /// Whether to start an on-demand instance if there is no spot capacity.
    pub on_demand_fallback: bool,
}

/// What becomes of an idle EC2 host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IdleHost {
    /// Ended.
    Terminate,
    /// Stopped, and resumed.
    Stop,
    /// Hibernated, and resumed.
    Hibernate,
}

/// Maximum age of a suspended host, if the configuration does not set it.
const MAX_AGE: Duration = Duration::from_secs(7 * 86_400);

/// Keys that do not shape a new host.
pub(super) const NOT_OF_THE_HOST: &[&str] = &[
    "identifier",
    "secret_identifier",
    "profile",
    "max_spot_price",
    "price_multiplier",
    "on_demand_fallback",
    "on_idle",
    "max_age",
    "price_per_hour",
    "identity_certificates",
];

pub(super) fn read(table: &Table<'_>) -> Option<Ec2Config> {
    let instance_types = table.required("instance_type", "instance_type = \"m5.large\"", |v| {
        let types = v.one_or_list(|v| v.word())?;
        if types.is_empty() { v.error("must have at least one type") } else { Some(types) }
    });
    let image = image(table);
    let credentials = credentials(table);
    let spot = spot(table);
    let one_only = |v: &Value<'_>| match v.member {
        Some(member) if member.of > 1 => v.error(format!(
            "allowed for one worker only, and this template makes {}: leave it out, or name one worker",
            member.of
        )),
        Some(_) | None => Some(()),
    };
    let on_idle = on_idle(table, spot.is_some());
    let endpoint_url = table.optional("endpoint_url", |v| {
        let text = v.word_or_empty()?;
        if url::is_in_clear(&text) {
            v.warn(IN_CLEAR);
        }
        url::web(&text).map_or_else(|why| v.error(why), |()| Some(text))
    });
    Some(Ec2Config {
        region: table.optional("region", |v| v.word_or_empty()),
        placement: table.or("placement", Vec::new(), |v| v.one_or_list(zone)),
        profile: table.optional("profile", |v| v.word_or_empty()),
        keypair_name: table.or("keypair_name", "latent_rouse_worker".to_owned(), |v| v.word()),
        security_name: table.or("security_name", "latent_rouse_worker".to_owned(), |v| v.word()),
        security_group_ids: table.or("security_group_ids", Vec::new(), |v| v.one_or_list(|v| v.word())),
        subnet_id: table.optional("subnet_id", |v| v.word_or_empty()),
        instance_profile_name: table.optional("instance_profile_name", |v| v.word_or_empty()),
        user_data: table.optional("user_data", |v| v.user_data()),
        elastic_ip: table.optional("elastic_ip", |v| {
            one_only(v)?;
            let text = v.word()?;
            text.parse().ok().or_else(|| v.error("not an IPv4 address: write \"208.77.188.166\""))
        }),
        tags: table.or("tags", BTreeMap::new(), |v| v.texts(tag_name)),
        volumes: table.or("volumes", Vec::new(), |v| {
            one_only(v)?;
            v.list(volume)
        }),
        block_devices: table.or("block_devices", Vec::new(), |v| v.list(block_device)),
        on_idle,
        max_age: table.or("max_age", MAX_AGE, |v| v.duration(Duration::from_secs(1))),
        price_per_hour: table.optional("price_per_hour", |v| v.number()),
        identity_certificates: table.optional("identity_certificates", |v| v.readable()),
        endpoint_url,
        instance_types: instance_types?,
        image: image?,
        credentials,
        spot,
    })
}

fn on_idle(table: &Table<'_>, spot: bool) -> IdleHost {
    let on_idle = table.or("on_idle", IdleHost::Terminate, |v| {
        v.choice(&[("terminate", IdleHost::Terminate), ("stop", IdleHost::Stop), ("hibernate", IdleHost::Hibernate)])
    });
    if on_idle != IdleHost::Terminate
        && spot
        && let Some(value) = table.get("on_idle")
    {
        value.error::<()>(
            "not for spot instances: AWS stops only those of a persistent request, which would buy anew by itself; write \
             on_idle = \"terminate\", or leave spot_instance out",
        );
    }
    on_idle
}

fn image(table: &Table<'_>) -> Option<Ec2Image> {
    let id = table.get("ami");
    let owners = table.get("valid_ami_owners");
    let location = table.get("valid_ami_location_regex");
    if let Some(id) = id {
        for filter in [&owners, &location].into_iter().flatten() {
            filter.error::<()>("a filter beside `ami`: give the one image, or the filters");
        }
        return id.word().map(Ec2Image::Id);
    }
    if owners.is_none() && location.is_none() {
        table.missing("ami", "ami = \"ami-…\", or valid_ami_owners, valid_ami_location_regex or both");
        return None;
    }
    let owners = owners.map_or(Some(Vec::new()), |v| {
        let owners = v.one_or_list(owner)?;
        // One that is wrong is an error already.
        let none = matches!(v.value, DeValue::Array(items) if items.is_empty());
        if none { v.error("must have at least one account number") } else { Some(owners) }
    });
    let location = location.map(|v| v.regex(|text| format!("^(?:{text})")));
    Some(Ec2Image::Last { owners: owners?, location: location.map_or(Some(None), |l| l.map(Some))? })
}

/// The owners that AWS knows by a name:
/// <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeImages.html>.
const OWNER_ALIASES: [&str; 5] = ["self", "amazon", "aws-marketplace", "aws-backup-vault", "microsoft"];

/// An account number, or an alias. As a number it has lost the zeros that it began with; as text it is often copied in
/// the groups in which AWS prints it.
fn owner(value: &Value<'_>) -> Option<String> {
    if value.is_text() {
        let text = value.word()?;
        let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
        if OWNER_ALIASES.contains(&text.as_str()) {
            return Some(text);
        }
        if digits.len() == 12 && digits.bytes().all(|b| b.is_ascii_digit()) {
            return Some(digits);
        }
        return value.error(format!(
            "{:?} is not an owner of images: write an account number of 12 digits such as \"099720109477\", or one of {}",
            shorten(&text),
            OWNER_ALIASES.join(", ")
        ));
    }
    let number = value.large()?;
    if number > 999_999_999_999 {
        return value.error("an account number has 12 digits");
    }
    Some(format!("{number:012}"))
}

/// The key id and the key of a section.
pub(in crate::config) fn credentials(table: &Table<'_>) -> Option<(String, Secret)> {
    let (id, secret) = (table.get("identifier"), table.get("secret_identifier"));
    match (id, secret) {
        (Some(id), Some(secret)) => {
            let (id, secret) = (id.word(), secret.secret());
            Some((id?, secret?))
        }
        (Some(id), None) => id.error("identifier needs secret_identifier as well"),
        (None, Some(secret)) => secret.error("secret_identifier needs identifier as well"),
        (None, None) => None,
    }
}

fn spot(table: &Table<'_>) -> Option<Spot> {
    let above_zero = |v: &Value<'_>| {
        let number = v.number()?;
        if number > 0.0 { Some(number) } else { v.error("must be above 0") }
    };
    let wanted = table.or("spot_instance", false, |v| v.boolean());
    let spot = Spot {
        max_price: table.optional("max_spot_price", above_zero),
        multiplier: table.optional("price_multiplier", above_zero),
        on_demand_fallback: table.or("on_demand_fallback", false, |v| v.boolean()),
    };
    if wanted {
        return Some(spot);
    }
    for key in ["max_spot_price", "price_multiplier", "on_demand_fallback"] {
        if let Some(value) = table.get(key) {
            value.warn("has no effect without spot_instance = true");
        }
    }
    None
}

fn zone(value: &Value<'_>) -> Option<String> {
    let zone = value.word()?;
    if zone.len() == 1 && zone.bytes().all(|b| b.is_ascii_lowercase()) {
        return Some(zone);
    }
    value.error(format!("{:?} is not the letter of an availability zone: write \"b\"", shorten(&zone)))
}

fn tag_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.starts_with("aws:") || name.chars().count() > 128 {
        return Err("a tag has 1 to 128 characters and does not begin with aws:".to_owned());
    }
    Ok(())
}

fn volume(value: &Value<'_>) -> Option<Volume> {
    const SHAPE: &str = "a pair such as [\"vol-0123\", \"/dev/sdf\"]";
    match &value.items(SHAPE)?[..] {
        [id, device] => {
            let (id, device) = (id.word(), device.word());
            Some(Volume { id: id?, device: device? })
        }
        _ => value.error(format!("expected {SHAPE}")),
    }
}

fn block_device(value: &Value<'_>) -> Option<BlockDevice> {
    const SHAPE: &str = "a table such as { device = \"/dev/xvda\", size_gb = 40, type = \"gp3\" }";
    let table = value.table(SHAPE, &keys::BLOCK_DEVICE)?;
    let device = table.required("device", "device = \"/dev/xvda\"", |v| v.word());
    let size_gb = table.optional("size_gb", |v| v.whole(1));
    let kind = table.optional("type", |v| v.word());
    table.finish();
    Some(BlockDevice { device: device?, size_gb, kind })
}
