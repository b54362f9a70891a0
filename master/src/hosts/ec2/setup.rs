//! The key pair and the security group of a host: created if AWS has none with that name.

use super::client::Client;
use super::error::{CallError, Kind, call_error};
use crate::config::Ec2Config;
use aws_sdk_ec2::types::{Filter, SecurityGroup};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use tracing::{info, warn};

/// The description of a security group that rouse creates.
const DESCRIPTION: &str = "Hosts that rouse starts";

/// What there is.
pub struct Ready {
    /// Ids of the security groups.
    pub groups: Vec<String>,
    /// Whether something was created just now, or would have to be.
    pub fresh: bool,
}

/// Finds key pair and security group, and creates what is missing if `make` is true. The private half of a created key
/// pair is stored below `dir`, readable for this user only, because AWS sends it once.
pub async fn ensure(client: &Client, config: &Ec2Config, dir: &Path, make: bool) -> Result<Ready, CallError> {
    let key_made = key_pair(client, &config.keypair_name, dir, make).await?;
    if !config.security_group_ids.is_empty() {
        return Ok(Ready { groups: config.security_group_ids.clone(), fresh: key_made });
    }
    let vpc = match &config.subnet_id {
        Some(subnet) => Some(vpc_of(client, subnet).await?),
        None => None,
    };
    if let Some(id) = find_group(client, &config.security_name, vpc.as_deref()).await? {
        return Ok(Ready { groups: vec![id], fresh: key_made });
    }
    if !make {
        return Ok(Ready { groups: Vec::new(), fresh: true });
    }
    let call = client.ec2.create_security_group();
    let call = call.group_name(&config.security_name).description(DESCRIPTION).set_vpc_id(vpc.clone());
    match call.send().await {
        Ok(made) => {
            info!("created the security group {} in {}", config.security_name, client.place);
            Ok(Ready { groups: made.group_id.into_iter().collect(), fresh: true })
        }
        Err(error) => {
            let error = call_error("create the security group", &error);
            // Another caller was faster.
            let found = match error.kind {
                Kind::Exists => find_group(client, &config.security_name, vpc.as_deref()).await?,
                _ => None,
            };
            found.map(|id| Ready { groups: vec![id], fresh: true }).ok_or(error)
        }
    }
}

async fn key_pair(client: &Client, name: &str, dir: &Path, make: bool) -> Result<bool, CallError> {
    let by_name = Filter::builder().name("key-name").values(name).build();
    let known = client.ec2.describe_key_pairs().filters(by_name).send().await;
    let known = known.map_err(|e| call_error("find the key pair", &e))?.key_pairs.unwrap_or_default();
    if known.iter().any(|pair| pair.key_name() == Some(name)) {
        return Ok(false);
    }
    if !make {
        return Ok(true);
    }
    match client.ec2.create_key_pair().key_name(name).send().await {
        Ok(made) => {
            info!("created the key pair {name} in {}", client.place);
            if let Some(material) = made.key_material()
                && let Err(error) = keep_key(dir, name, material)
            {
                // The key is for people who want to log in to a host. Hosts do not need it.
                warn!("the private key of {name} could not be stored: {error}");
            }
            Ok(true)
        }
        Err(error) => {
            let error = call_error("create the key pair", &error);
            if error.kind == Kind::Exists { Ok(true) } else { Err(error) }
        }
    }
}

fn keep_key(dir: &Path, name: &str, material: &str) -> std::io::Result<()> {
    super::make_dir(dir)?;
    let plain: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' }).collect();
    let path = dir.join(format!("{}.pem", plain.trim_start_matches('.')));
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(material.as_bytes())
}

async fn vpc_of(client: &Client, subnet: &str) -> Result<String, CallError> {
    let answer = client.ec2.describe_subnets().subnet_ids(subnet).send().await;
    let subnets = answer.map_err(|e| call_error("query the subnet", &e))?.subnets.unwrap_or_default();
    let vpc = subnets.first().and_then(|s| s.vpc_id()).map(str::to_owned);
    vpc.ok_or_else(|| CallError { kind: Kind::Rejected, text: format!("subnet {subnet} not found") })
}

/// The group of that name in a network; in the account's default network if none is named, since that is where the
/// instance will be.
async fn find_group(client: &Client, name: &str, vpc: Option<&str>) -> Result<Option<String>, CallError> {
    let mut call =
        client.ec2.describe_security_groups().filters(Filter::builder().name("group-name").values(name).build());
    if let Some(vpc) = vpc {
        call = call.filters(Filter::builder().name("vpc-id").values(vpc).build());
    }
    let answer = call.send().await.map_err(|e| call_error("find the security group", &e))?;
    let groups = answer.security_groups.unwrap_or_default();
    let id = |group: &SecurityGroup| group.group_id().map(str::to_owned);
    if groups.is_empty() || vpc.is_some() {
        return Ok(groups.first().and_then(id));
    }
    // A cloud that is only compatible with EC2 may have no networks at all.
    let outside = groups.iter().find(|group| group.vpc_id().is_none_or(str::is_empty));
    let default = match (outside, default_vpc(client).await) {
        (Some(group), _) => return Ok(id(group)),
        (None, Ok(default)) => default,
        (None, Err(error)) if client.place.endpoint.is_some() && groups.len() == 1 => {
            tracing::debug!("{}", error.text);
            return Ok(groups.first().and_then(id));
        }
        (None, Err(error)) => return Err(error),
    };
    if let Some(group) = groups.iter().find(|group| group.vpc_id() == default.as_deref()) {
        return Ok(id(group));
    }
    // One of our own making is made in each network where it is needed.
    let foreign = groups.iter().find(|group| group.description() != Some(DESCRIPTION));
    match foreign.and_then(|group| group.vpc_id()) {
        None => Ok(None),
        Some(other) => {
            let place = match default {
                Some(default) => format!("the default network {default}, where the instance would be"),
                None => "a default network, which this region does not have".to_owned(),
            };
            let text = format!(
                "the security group {name} is in the network {other} and not in {place}: set subnet_id to a subnet of {other}, \
                 or name another group"
            );
            Err(CallError { kind: Kind::Rejected, text })
        }
    }
}

/// What is wrong with the groups that a section names by their ids: that one does not exist, or is in another network
/// than the instance would be in.
pub async fn strangers(client: &Client, config: &Ec2Config) -> Result<Vec<String>, CallError> {
    if config.security_group_ids.is_empty() {
        return Ok(Vec::new());
    }
    // As a filter: ids that do not exist are then no error, and each can be named.
    let ids = Filter::builder().name("group-id").set_values(Some(config.security_group_ids.clone())).build();
    let answer = client.ec2.describe_security_groups().filters(ids).send().await;
    let groups = answer.map_err(|e| call_error("query the security groups", &e))?.security_groups.unwrap_or_default();
    let vpc = match &config.subnet_id {
        Some(subnet) => Some(vpc_of(client, subnet).await?),
        None => default_vpc(client).await?,
    };
    let mut found = Vec::new();
    for id in &config.security_group_ids {
        match groups.iter().find(|group| group.group_id() == Some(id)) {
            None => found.push(format!("security group {id} not found")),
            Some(group) => {
                let other = group.vpc_id().filter(|other| !other.is_empty() && Some(*other) != vpc.as_deref());
                let here = vpc.as_deref().unwrap_or("the default network, which this region does not have");
                found.extend(other.map(|other| {
                    format!("the security group {id} is in the network {other}, and the instance would be in {here}")
                }));
            }
        }
    }
    Ok(found)
}

async fn default_vpc(client: &Client) -> Result<Option<String>, CallError> {
    let default = Filter::builder().name("is-default").values("true").build();
    let answer = client.ec2.describe_vpcs().filters(default).send().await;
    let vpcs = answer.map_err(|e| call_error("find the default network", &e))?.vpcs.unwrap_or_default();
    Ok(vpcs.first().and_then(|vpc| vpc.vpc_id()).map(str::to_owned))
}
