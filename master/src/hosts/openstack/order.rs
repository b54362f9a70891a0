//! The launch spec of a server, computed before anything is created.

use super::cloud::{Cloud, Service};
use super::error::CloudError;
use super::images::{self, is_uuid};
use super::servers::{OwnerTag, POOL};
use crate::config::OpenstackConfig;
use crate::core::event::StartError;
use crate::core::record::{Host, LaunchSpec};
use crate::hosts::alternatives::{Chosen, choose};
use crate::hosts::user_data;
use base64::Engine as _;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rouse_shared::boot::BootData;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Largest user data that Nova accepts, bytes: 65,535 in base64.
const USER_DATA: usize = 65_535 / 4 * 3;
/// The longest value in a server's metadata, characters.
const METADATA_VALUE: usize = 255;

/// The launch spec.
#[derive(Serialize, Deserialize)]
pub(super) struct Spec {
    /// The cloud, see [`Cloud::place`].
    pub(super) cloud: String,
    /// The server's name, by which the provider looks for it before it creates one.
    pub(super) name: String,
    /// The body of the call.
    pub(super) server: Value,
}

impl Spec {
    /// The launch spec of a host; none if there is none.
    ///
    /// # Errors
    /// If the ledger has something else there.
    pub(super) fn of(host: &Host) -> Result<Option<Self>, String> {
        let Some(order) = &host.launch else { return Ok(None) };
        serde_json::from_str(&order.spec)
            .map(Some)
            .map_err(|e| format!("the order of host {} is not readable: {e}", host.id))
    }

    /// The network for the host's floating address.
    pub(super) fn pool(&self) -> Option<&str> {
        self.server["metadata"][POOL].as_str()
    }
}

/// One flavor, in one zone.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Alternative<'a> {
    /// Id or name, as in the section.
    flavor: &'a str,
    /// None: Nova chooses.
    zone: Option<&'a str>,
}

impl std::fmt::Display for Alternative<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "flavor {}", self.flavor)?;
        self.zone.map_or(Ok(()), |zone| write!(f, " in zone {zone}"))
    }
}

/// All alternatives of a section, in the order in which they are tried: every flavor in every zone.
fn alternatives(section: &OpenstackConfig) -> Vec<Alternative<'_>> {
    let zones: Vec<Option<&str>> = match section.availability_zones.as_slice() {
        [] => vec![None],
        zones => zones.iter().map(|zone| Some(zone.as_str())).collect(),
    };
    let of_flavor = |flavor| zones.iter().map(move |zone| Alternative { flavor, zone: *zone });
    section.flavors.iter().flat_map(|flavor| of_flavor(flavor.as_str())).collect()
}

/// Works out the order of a host: the first alternative from `number` on that is not `resting`.
///
/// # Errors
/// If something that the section names does not exist, or the cloud does not answer.
pub(super) async fn prepare(
    cloud: &Cloud,
    section: &OpenstackConfig,
    tag: &OwnerTag,
    host: &Host,
    (number, resting): (u32, &BTreeSet<String>),
    boot: &BootData,
) -> Result<LaunchSpec, StartError> {
    let all = alternatives(section);
    let Chosen { number, name: alternative_name, alternative, more } =
        choose(&all, number, resting, Alternative::to_string)?;
    let text = user_data::compose(boot, section.user_data.as_deref(), USER_DATA)
        .map_err(|error| StartError::Rejected(error.to_string()))?;
    let image = images::resolve(cloud, &section.image).await?;
    let flavor = flavor(cloud, alternative.flavor).await.map_err(CloudError::before_start)?;
    let mut metadata = section.meta.clone();
    // rouse sets these keys itself.
    metadata.remove(POOL);
    metadata.extend(tag.metadata(host.worker.as_str(), &host.id));
    if let Some(pool) = &section.floating_ip_pool {
        metadata.insert(POOL.to_owned(), network(cloud, pool, true).await.map_err(CloudError::before_start)?);
    }
    if let Some((key, _)) = metadata.iter().find(|(_, value)| value.chars().count() > METADATA_VALUE) {
        let why = format!("meta.{key} is longer than the {METADATA_VALUE} characters that Nova takes");
        return Err(StartError::Rejected(why));
    }
    // Worker and host: people recognise it, and no other server has it.
    let name = format!("{}-{}", host.worker, host.id);
    let mut server = json!({
        "name": name,
        "flavorRef": flavor,
        "metadata": metadata,
        "user_data": base64::engine::general_purpose::STANDARD.encode(text),
        "networks": networks(cloud, &section.networks).await.map_err(CloudError::before_start)?,
    });
    match section.boot_volume_gb {
        None => server["imageRef"] = image.as_str().into(),
        Some(gigabytes) => {
            server["block_device_mapping_v2"] = json!([{
                "boot_index": 0,
                "uuid": image,
                "source_type": "image",
                "destination_type": "volume",
                "volume_size": gigabytes,
                "delete_on_termination": true,
            }]);
        }
    }
    let mut set = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            server[key] = value;
        }
    };
    set("key_name", section.key_name.clone().map(Value::from));
    set("availability_zone", alternative.zone.map(Value::from));
    set("config_drive", section.config_drive.then_some(Value::Bool(true)));
    let groups: Vec<Value> = section.security_groups.iter().map(|name| json!({ "name": name })).collect();
    set("security_groups", (!groups.is_empty()).then_some(Value::Array(groups)));
    let spec = Spec { cloud: cloud.place().await.map_err(CloudError::before_start)?, name, server };
    let spec =
        serde_json::to_string(&spec).map_err(|e| StartError::Rejected(format!("cannot serialize the order: {e}")))?;
    // Which server it will be is Nova's choice.
    Ok(LaunchSpec {
        number,
        alternative: alternative_name,
        image,
        spec,
        more,
        fresh: false,
        identity: None,
        price: section.price_per_hour,
        spot: false,
    })
}

/// The id of a flavor that is given by id or name.
///
/// # Errors
/// If there is none, or the cloud does not answer.
pub(super) async fn flavor(cloud: &Cloud, given: &str) -> Result<String, CloudError> {
    match cloud.get(Service::Compute, &format!("/flavors/{}", segment(given))).await {
        Ok(_) => return Ok(given.to_owned()),
        Err(problem) if problem.is_missing() => {}
        // Not every text can be an id.
        Err(CloudError::Refused { status: 400, .. }) => {}
        Err(problem) => return Err(problem),
    }
    let all = cloud.list(Service::Compute, "/flavors", "flavors").await?;
    let found = all.iter().find(|flavor| flavor["name"] == *given).and_then(|flavor| flavor["id"].as_str());
    found.map(str::to_owned).ok_or_else(|| {
        CloudError::Misconfigured(format!(
            "flavor {given:?} not found: none of the project's {} flavors has that id or name",
            all.len()
        ))
    })
}

/// The networks in the form that Nova expects.
pub(super) async fn networks(cloud: &Cloud, given: &[String]) -> Result<Value, CloudError> {
    match given {
        [] => Ok("auto".into()),
        [none] if none == "none" => Ok("none".into()),
        given => {
            let mut all = Vec::new();
            for name in given {
                all.push(json!({ "uuid": network(cloud, name, false).await? }));
            }
            Ok(Value::Array(all))
        }
    }
}

/// The id of a network that is given by id or name.
///
/// # Errors
/// If there is none, or more than one, or the cloud does not answer.
pub(super) async fn network(cloud: &Cloud, given: &str, pool: bool) -> Result<String, CloudError> {
    let what = if pool { "pool of floating addresses" } else { "network" };
    let (key, external) = (if is_uuid(given) { "id" } else { "name" }, if pool { "&router:external=true" } else { "" });
    let path = format!("/networks?{key}={}{external}", segment(given));
    let all = cloud.list(Service::Network, &path, "networks").await?;
    let found: Vec<&Value> = all.iter().filter(|network| network[key] == *given).collect();
    let ids: Vec<&str> = found.iter().filter_map(|network| network["id"].as_str()).collect();
    match ids.as_slice() {
        [id] => match found.iter().find_map(|network| network["status"].as_str()) {
            Some(status) if status != "ACTIVE" => {
                Err(CloudError::NotReady(format!("{what} {given:?} is not active: its status is {status}")))
            }
            Some(_) | None => Ok((*id).to_owned()),
        },
        [] => Err(CloudError::Misconfigured(format!(
            "{what} {given:?} not found: this project has none with that id or name"
        ))),
        several => {
            let why = format!("{} have that name: {}; use its id", several.len(), several.join(", "));
            Err(CloudError::Misconfigured(format!("{what} {given:?} is ambiguous: {why}")))
        }
    }
}

/// A text as one segment of a path, or a value of a query.
pub(super) fn segment(text: &str) -> String {
    const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    utf8_percent_encode(text, ESCAPED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flavor_is_tried_in_every_zone() {
        let section = |more: &str| {
            let text =
                format!("[[worker]]\nname = \"w\"\npassword = \"x\"\n[worker.openstack]\nimage = \"i\"\n{more}\n");
            let config = crate::config::Config::parse(&text, std::path::Path::new("rouse.toml")).unwrap();
            config.sections::<OpenstackConfig>().next().unwrap().1.clone()
        };
        let names = |section: &OpenstackConfig| {
            alternatives(section).iter().map(Alternative::to_string).collect::<Vec<_>>().join("; ")
        };
        let one = section("flavor = \"m1.small\"\navailability_zone = \"\"");
        assert_eq!(names(&one), "flavor m1.small");
        let zone = section("flavor = \"m1.small\"\navailability_zone = \"nova\"");
        assert_eq!(names(&zone), "flavor m1.small in zone nova");
        let all = section("flavor = [\"a\", \"b\"]\navailability_zone = [\"x\", \"y\"]");
        let expected = "flavor a in zone x; flavor a in zone y; flavor b in zone x; flavor b in zone y";
        assert_eq!(names(&all), expected);
    }

    #[test]
    fn names_may_have_any_characters() {
        assert_eq!(segment("m1.small"), "m1.small");
        assert_eq!(segment("größe 1/2?a=b&c"), "gr%C3%B6%C3%9Fe%201%2F2%3Fa%3Db%26c");
    }
}
