//! The key pair and the security group of a host: created if AWS has none with that name.

use super::client::Client;
use super::error::{CallError, Kind, call_error};
use crate::config::Ec2Config;
use aws_sdk_ec2::types::Filter;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use tracing::{info, warn};

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
    let call = call.group_name(&config.security_name).description("Hosts that rouse starts").set_vpc_id(vpc.clone());
    match call.send().await {
        Ok(made) => {
            info!("made the security group {} in {}", config.security_name, client.place);
            Ok(Ready { groups: made.group_id.into_iter().collect(), fresh: true })
        }
        Err(error) => {
            let error = call_error("make the security group", &error);
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
    let known = known.map_err(|e| call_error("look for the key pair", &e))?.key_pairs.unwrap_or_default();
    if known.iter().any(|pair| pair.key_name() == Some(name)) {
        return Ok(false);
    }
    if !make {
        return Ok(true);
    }
    match client.ec2.create_key_pair().key_name(name).send().await {
        Ok(made) => {
            info!("made the key pair {name} in {}", client.place);
            if let Some(material) = made.key_material()
                && let Err(error) = keep_key(dir, name, material)
            {
                // The key is for people who want to log in to a host. Hosts do not need it.
                warn!("the private key of {name} could not be kept: {error}");
            }
            Ok(true)
        }
        Err(error) => {
            let error = call_error("make the key pair", &error);
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
    let subnets = answer.map_err(|e| call_error("look at the subnet", &e))?.subnets.unwrap_or_default();
    let vpc = subnets.first().and_then(|s| s.vpc_id()).map(str::to_owned);
    vpc.ok_or_else(|| CallError { kind: Kind::Rejected, text: format!("subnet {subnet} not found") })
}

/// The group of that name in a network, or in the account's default network if none is named.
async fn find_group(client: &Client, name: &str, vpc: Option<&str>) -> Result<Option<String>, CallError> {
    let mut call =
        client.ec2.describe_security_groups().filters(Filter::builder().name("group-name").values(name).build());
    if let Some(vpc) = vpc {
        call = call.filters(Filter::builder().name("vpc-id").values(vpc).build());
    }
    let answer = call.send().await.map_err(|e| call_error("look for the security group", &e))?;
    let groups = answer.security_groups.unwrap_or_default();
    let only = match (groups.as_slice(), vpc) {
        ([], _) => None,
        ([one], _) | ([one, ..], Some(_)) => Some(one),
        (several, None) => {
            let default = default_vpc(client).await?;
            several.iter().find(|group| group.vpc_id().is_some() && group.vpc_id() == default.as_deref())
        }
    };
    Ok(only.and_then(|group| group.group_id()).map(str::to_owned))
}

async fn default_vpc(client: &Client) -> Result<Option<String>, CallError> {
    let default = Filter::builder().name("is-default").values("true").build();
    let answer = client.ec2.describe_vpcs().filters(default).send().await;
    let vpcs = answer.map_err(|e| call_error("look for the default network", &e))?.vpcs.unwrap_or_default();
    Ok(vpcs.first().and_then(|vpc| vpc.vpc_id()).map(str::to_owned))
}
