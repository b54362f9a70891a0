//! `rouse check --online`: reports whether a section's hosts could be started, and which image they would boot. Creates
//! nothing, and queries only the section's cloud.

use super::client::{self, Login};
use super::error::{Kind, call_error};
use super::image::{self, ImageError};
use super::order::{self, MASTER_TAG};
use super::{certificates_of, setup, spot};
use crate::config::Ec2Config;
use crate::hosts::online::Finding;
use aws_sdk_ec2::types::{InstanceType, ResourceType, Tag, TagSpecification};
use std::path::Path;

/// Checks one section. `master` is the master's name.
pub async fn check(section: &Ec2Config, master: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    if let Some(Err(why)) = certificates_of(section) {
        found.push(Finding::bad(format!("identity_certificates: {why}")));
    }
    let client = Login::of(section).client(&client::http()).await;
    let image = match image::resolve(&client, &section.image).await {
        Ok(image) => image,
        Err(ImageError::None(why)) => return with(found, Finding::bad(why)),
        // Without an answer, further checks would fail too.
        Err(ImageError::Call(error)) => return with(found, Finding::bad(error.text)),
    };
    found.push(Finding::good(format!("boots {} ({}) in {}", image.id, image.location, client.place)));
    found.extend(image.another_root(&section.block_devices).map(Finding::bad));
    match setup::ensure(&client, section, Path::new(""), false).await {
        Ok(ready) if ready.fresh => found.push(Finding::good(format!(
            "the key pair {} or the security group {} is not there yet, and will be made",
            section.keypair_name, section.security_name
        ))),
        Ok(_) => {}
        Err(error) => found.push(Finding::bad(error.text)),
    }
    match setup::strangers(&client, section).await {
        Ok(strangers) => found.extend(strangers.into_iter().map(Finding::bad)),
        Err(error) => found.push(Finding::bad(error.text)),
    }
    let all = order::alternatives(section);
    let Some(first) = all.first() else { return found };
    if let (Some(settings), true) = (&section.spot, first.spot) {
        let zone = first.zone.as_ref().map(|letter| format!("{}{letter}", client.place.region));
        match spot::look(&client, &first.kind, zone.as_deref(), &image.platform).await {
            Ok(market) => {
                let bid = spot::bid(settings, &market);
                let bid = bid.map_or("the market price, up to the on-demand price".to_owned(), |usd| {
                    format!("{usd} USD an hour")
                });
                let newest = market.newest.map_or("not known".to_owned(), |usd| format!("{usd} USD an hour"));
                found.push(Finding::good(format!("would bid {bid} for {}; its current price is {newest}", first.kind)));
            }
            Err(error) => found.push(Finding::bad(error.text)),
        }
    }
    let tag = Tag::builder().key(MASTER_TAG).value(master).build();
    let tried = client
        .ec2
        .run_instances()
        .dry_run(true)
        .image_id(&image.id)
        .instance_type(InstanceType::from(first.kind.as_str()))
        .set_subnet_id(section.subnet_id.clone())
        .min_count(1)
        .max_count(1)
        .tag_specifications(TagSpecification::builder().resource_type(ResourceType::Instance).tags(tag).build())
        .send()
        .await;
    if let Err(error) = tried {
        let error = call_error(&format!("start a {}", first.kind), &error);
        if error.kind != Kind::WouldWork {
            found.push(Finding::bad(error.text));
        }
    }
    found
}

fn with(mut found: Vec<Finding>, one: Finding) -> Vec<Finding> {
    found.push(one);
    found
}
