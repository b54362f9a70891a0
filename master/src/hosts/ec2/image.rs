//! The image that an instance boots: the named one, or the last of those that match the filters. The master looks it up
//! at each start, so that a new image is used without a restart.

use super::client::Client;
use super::error::{CallError, call_error};
use crate::config::hosts::{BlockDevice, Ec2Image};
use aws_sdk_ec2::types::{Filter, Image};
use regex::Regex;
use std::cmp::Ordering;

/// Longest literal beginning of a location that is sent to AWS as a filter.
const PREFIX: usize = 200;

/// The image that a host boots.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chosen {
    /// Such as `ami-0123`.
    pub id: String,
    /// The location of its manifest, which filters match.
    pub location: String,
    /// The name of its system in the spot market, such as `Linux/UNIX`.
    pub platform: String,
    /// The device of its root disk, if AWS reports it.
    pub root: Option<String>,
}

/// Device names that AWS reserves for root disks. Each image names one of them as its root device.
/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/device_naming.html>
const OF_ROOTS: [&str; 4] = ["/dev/sda1", "/dev/xvda", "/dev/sda", "/dev/xvda1"];

impl Chosen {
    /// What is wrong if a section means the root disk by another name than the image has for it: AWS would then add a
    /// second disk, and leave the root as it is.
    pub fn another_root(&self, disks: &[BlockDevice]) -> Option<String> {
        let root = self.root.as_deref()?;
        if disks.iter().any(|disk| disk.device == root) {
            return None;
        }
        let meant = disks.iter().find(|disk| OF_ROOTS.contains(&disk.device.as_str()))?;
        Some(format!(
            "block_devices has {}, and the root disk of {} is {root}: write device = {root:?}, or AWS adds a second disk and \
             leaves the root as it is",
            meant.device, self.id
        ))
    }
}

/// Why no image was chosen.
#[derive(Debug)]
pub enum ImageError {
    /// The call failed.
    Call(CallError),
    /// No image matches; a sentence.
    None(String),
}

/// Looks up the image of a worker's section.
pub async fn resolve(client: &Client, image: &Ec2Image) -> Result<Chosen, ImageError> {
    match image {
        Ec2Image::Id(id) => {
            let call = client.ec2.describe_images().image_ids(id);
            let answer = call.send().await.map_err(|e| ImageError::Call(call_error("query the image", &e)))?;
            let found = answer.images.unwrap_or_default().iter().find_map(chosen);
            found.ok_or_else(|| ImageError::None(format!("image {id} does not exist or is not available")))
        }
        Ec2Image::Last { owners, location } => {
            let regex = match location {
                Some(text) => Some(Regex::new(text).map_err(|e| {
                    ImageError::None(format!("valid_ami_location_regex is not a regular expression: {e}"))
                })?),
                None => None,
            };
            let mut call = client.ec2.describe_images().filters(filter("state", "available"));
            if !owners.is_empty() {
                call = call.set_owners(Some(owners.clone()));
            }
            if let Some(prefix) = location.as_deref().and_then(literal_prefix) {
                call = call.filters(filter("image-location", &format!("{}*", escape(&prefix))));
            }
            let mut pages = call.into_paginator().page_size(1_000).send();
            let mut found = Vec::new();
            while let Some(page) = pages.next().await {
                let page = page.map_err(|e| ImageError::Call(call_error("list the images", &e)))?;
                found.extend(page.images.unwrap_or_default().iter().filter_map(chosen));
            }
            pick(found, regex.as_ref()).ok_or_else(|| {
                let owners = if owners.is_empty() { String::new() } else { format!(" of {}", owners.join(", ")) };
                let location = location.as_ref().map_or(String::new(), |l| format!(" whose location matches {l}"));
                ImageError::None(format!("no image{owners}{location} is available"))
            })
        }
    }
}

fn filter(name: &str, value: &str) -> Filter {
    Filter::builder().name(name).values(value).build()
}

fn chosen(image: &Image) -> Option<Chosen> {
    // An image that is deregistered, failed or still being created cannot be booted.
    let ready = image.state().is_none_or(|state| state.as_str() == "available");
    let platform = image.platform_details().filter(|p| !p.is_empty()).unwrap_or("Linux/UNIX");
    Some(Chosen {
        id: image.image_id().filter(|_| ready)?.to_owned(),
        location: image.image_location().unwrap_or_default().to_owned(),
        platform: platform.to_owned(),
        root: image.root_device_name().filter(|root| !root.is_empty()).map(str::to_owned),
    })
}

/// The image that sorts last. If the expression has a group, by the group: as numbers if it is a number in all of them,
/// otherwise as text. Then, or without a group, by location, and then by id.
pub fn pick(images: Vec<Chosen>, regex: Option<&Regex>) -> Option<Chosen> {
    let mut found: Vec<(Option<String>, Chosen)> = Vec::new();
    for image in images {
        let group = match regex {
            None => None,
            Some(regex) => match regex.captures(&image.location) {
                None => continue,
                Some(groups) if groups.len() > 1 => Some(groups.get(1).map_or("", |g| g.as_str()).to_owned()),
                Some(_) => None,
            },
        };
        found.push((group, image));
    }
    let numbers = found.iter().all(|(group, _)| group.as_ref().is_none_or(|g| number(g).is_some()));
    found.sort_by(|(a, image), (b, other)| {
        let by_group = match (a, b) {
            (Some(a), Some(b)) if numbers => compare(number(a), number(b)).then_with(|| a.cmp(b)),
            (a, b) => a.cmp(b),
        };
        by_group.then_with(|| image.location.cmp(&other.location)).then_with(|| image.id.cmp(&other.id))
    });
    found.pop().map(|(_, image)| image)
}

/// A whole number of any length: whether it is negative, and its digits without leading zeros.
fn number(text: &str) -> Option<(bool, &str)> {
    let text = text.trim();
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits = digits.trim_start_matches('0');
    Some((negative && !digits.is_empty(), digits))
}

fn compare(a: Option<(bool, &str)>, b: Option<(bool, &str)>) -> Ordering {
    let (Some((a_negative, a)), Some((b_negative, b))) = (a, b) else { return Ordering::Equal };
    let size = |x: &str, y: &str| x.len().cmp(&y.len()).then_with(|| x.cmp(y));
    match (a_negative, b_negative) {
        (false, true) => Ordering::Greater,
        (true, false) => Ordering::Less,
        (false, false) => size(a, b),
        (true, true) => size(b, a),
    }
}

/// The literal beginning of every match, if the expression has one. Otherwise AWS would have to list all public images.
fn literal_prefix(regex: &str) -> Option<String> {
    let hir = regex_syntax::parse(regex).ok()?;
    let literals = regex_syntax::hir::literal::Extractor::new().extract(&hir);
    let prefix = std::str::from_utf8(literals.longest_common_prefix()?).ok()?;
    let cut: String = prefix.chars().take(PREFIX).collect();
    (!cut.is_empty()).then_some(cut)
}

/// Escapes the wildcards of AWS's filters.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '*' | '?' | '\\') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(locations: &[&str]) -> Vec<Chosen> {
        let image = |(n, location): (usize, &&str)| Chosen {
            id: format!("ami-{n}"),
            location: (*location).to_owned(),
            platform: String::new(),
            root: None,
        };
        locations.iter().enumerate().map(image).collect()
    }

    /// As the configuration anchors it.
    fn last(regex: Option<&str>, locations: &[&str]) -> Option<String> {
        let regex = regex.map(|r| Regex::new(&format!("^(?:{r})")).unwrap());
        pick(images(locations), regex.as_ref()).map(|i| i.location)
    }

    /// The cases of the manual, and their edges: expression, locations, the one that is chosen.
    #[test]
    fn the_one_that_sorts_last_is_chosen() {
        let at = |n: &str| format!("rouse-x-{n}/image.manifest.xml");
        let (one, two, ten, a, b) = (at("1"), at("2"), at("10"), at("a"), at("b"));
        let (one, two, ten, a, b) = (&*one, &*two, &*ten, &*a, &*b);
        const TEXT: &str = r"rouse\-.*\-(.*)/image.manifest.xml";
        const NUMBER: &str = r"rouse\-.*\-(\d+)/image.manifest.xml";
        const NO_GROUP: &str = r"rouse\-.*/image.manifest.xml";
        let table: &[(Option<&str>, &[&str], Option<&str>)] = &[
            // By location if there is no expression (owners alone), or no group in it: 10 sorts before 2.
            (None, &[two, ten, one], Some(two)),
            (Some(NO_GROUP), &[two, ten, one, "another/image.manifest.xml"], Some(two)),
            // A group of numbers sorts as numbers, also if the expression would allow text.
            (Some(NUMBER), &[two, ten, one], Some(ten)),
            (Some(TEXT), &[two, ten, one], Some(ten)),
            // One that is no number makes all of them text.
            (Some(TEXT), &[two, ten, one, a], Some(a)),
            (Some(TEXT), &[b, ten, a], Some(b)),
            // What the number's own expression does not match is no candidate.
            (Some(NUMBER), &[two, ten, a, b], Some(ten)),
            // Matched from the start, and not to the end.
            (Some(r"ouse"), &[one], None),
            (Some(r"rouse-x-(\d)"), &[one, two], Some(two)),
            // An alternation is anchored as a whole.
            (Some(r"nothing|image"), &[one], None),
            // The first group counts, further ones do not.
            (Some(r"(rouse|other)-x-(\d+)"), &[two, ten, "other-x-1"], Some(two)),
            // Numbers longer than any machine's, with zeros in front, or below zero.
            (
                Some(r"v(.*)"),
                &["v99999999999999999999999999998", "v0099999999999999999999999999999"],
                Some("v0099999999999999999999999999999"),
            ),
            (Some(r"v(.*)"), &["v-3", "v-20"], Some("v-3")),
            (Some(r"v(.*)"), &["v-3", "v0", "v+1"], Some("v+1")),
            // The same number twice: by text, then by location.
            (Some(r"v(\d+)"), &["v7-b", "v7-a"], Some("v7-b")),
            // A group that took no part in the match is empty text.
            (Some(r"v(x)?"), &["v", "vx"], Some("vx")),
            (None, &[], None),
        ];
        for (regex, locations, expected) in table {
            assert_eq!(last(*regex, locations).as_deref(), *expected, "{regex:?} of {locations:?}");
            let mut turned: Vec<&str> = locations.to_vec();
            turned.reverse();
            assert_eq!(last(*regex, &turned).as_deref(), *expected, "{regex:?} of {turned:?}");
        }
    }

    #[test]
    fn a_root_disk_under_another_name_is_noticed() {
        let image = |root: &str| Chosen { root: Some(root.to_owned()), ..images(&["x"]).remove(0) };
        let disk = |device: &&str| BlockDevice { device: (*device).to_owned(), size_gb: Some(100), kind: None };
        for (root, devices, wrong) in [
            ("/dev/xvda", &["/dev/sda1"][..], true),
            ("/dev/sda1", &["/dev/xvda", "/dev/sdf"], true),
            ("/dev/xvda", &["/dev/xvda"], false),
            ("/dev/xvda", &["/dev/xvda", "/dev/sda1"], false),
            ("/dev/xvda", &["/dev/sdf"], false),
            ("/dev/xvda", &[], false),
        ] {
            let disks: Vec<BlockDevice> = devices.iter().map(disk).collect();
            let told = image(root).another_root(&disks);
            assert_eq!(told.is_some(), wrong, "{root} {devices:?}");
            assert!(told.is_none_or(|text| text.contains(&format!("device = {root:?}"))));
        }
        assert_eq!(images(&["x"]).remove(0).another_root(&[disk(&"/dev/sda1")]), None, "nobody says what is right");
    }

    #[test]
    fn aws_is_asked_for_no_more_than_can_match() {
        for (regex, prefix) in [
            (r"^(?:rouse-.*-(\d+)/image)", Some("rouse-")),
            (r"^(?:rouse\-base)", Some("rouse-base")),
            (r"^(?:(?:abc|abd)x)", Some("ab")),
            (r"^(?:.*)", None),
            (r"^(?:(?i)rouse)", None),
        ] {
            assert_eq!(literal_prefix(regex).as_deref(), prefix, "{regex}");
        }
        assert_eq!(escape(r"a*b?c\d"), r"a\*b\?c\\d");
    }
}
