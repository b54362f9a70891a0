//! Looking at domains: which run, whose they are, how they were defined.

use super::domain::{NAMESPACE, OwnerTag};
use super::link::{Link, LinkError, code_of};
use super::xml;
use crate::core::event::StartError;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::ErrorNumber;
use virt::sys;
use xmltree::Element;

/// The domain with this UUID where it runs, and its stamp where it is its own.
pub fn look(connect: &Connect, uuid: &str) -> Result<Option<(Domain, Option<OwnerTag>)>, LinkError> {
    let domain = match connect.lookup_domain_by_uuid_string(uuid).map_err(LinkError::from) {
        Ok(domain) => domain,
        Err(failed) if failed.no_domain() => return Ok(None),
        Err(failed) => return Err(failed),
    };
    match domain.is_active().map_err(LinkError::from) {
        Ok(true) => {}
        Ok(false) => return Ok(None),
        Err(failed) if failed.no_domain() => return Ok(None),
        Err(failed) => return Err(failed),
    }
    let stamp = stamp_of(&domain)?;
    Ok(Some((domain, stamp)))
}

/// The stamp of a domain; none where it has none, or one that was copied from another.
fn stamp_of(domain: &Domain) -> Result<Option<OwnerTag>, LinkError> {
    let kind = sys::VIR_DOMAIN_METADATA_ELEMENT as i32;
    let text = match domain.metadata(kind, Some(NAMESPACE), sys::VIR_DOMAIN_AFFECT_LIVE) {
        Ok(text) => text,
        // It has none; it ended just now; it runs no more.
        Err(error) => {
            return match code_of(&error) {
                ErrorNumber::NoDomainMetadata | ErrorNumber::NoDomain | ErrorNumber::OperationInvalid => Ok(None),
                _ => Err(error.into()),
            };
        }
    };
    let uuid = domain.uuid_string()?;
    Ok(OwnerTag::read(&text).filter(|stamp| stamp.uuid == uuid))
}

/// All stamps on a connection.
pub fn stamps(connect: &Connect) -> Result<Vec<OwnerTag>, LinkError> {
    let mut found = Vec::new();
    for domain in connect.list_all_domains(sys::VIR_CONNECT_LIST_DOMAINS_ACTIVE)? {
        found.extend(stamp_of(&domain)?);
    }
    Ok(found)
}

/// Cuts a domain's power.
pub fn end_domain(domain: &Domain) -> Result<(), String> {
    match domain.destroy() {
        Ok(()) => Ok(()),
        Err(error) => match code_of(&error) {
            // It has ended meanwhile.
            ErrorNumber::NoDomain | ErrorNumber::OperationInvalid => Ok(()),
            _ => Err(error.message().to_owned()),
        },
    }
}

/// The definition of a domain that the user has made.
pub async fn definition(link: &Link, name: &str) -> Result<String, StartError> {
    let name = name.to_owned();
    link.call(move |connect| {
        let domain = match connect.lookup_domain_by_name(&name).map_err(LinkError::from) {
            Ok(domain) => domain,
            Err(failed) if failed.no_domain() => {
                let why = format!("there is no domain {name}: define it, or say in `xml` how it is made");
                return Err(StartError::Rejected(why));
            }
            Err(failed) => return Err(failed.into()),
        };
        let flags = sys::VIR_DOMAIN_XML_SECURE | sys::VIR_DOMAIN_XML_INACTIVE;
        domain.xml_desc(flags).map_err(|error| LinkError::from(error).into())
    })
    .await
}

/// The memory of a described domain, megabytes; 0 where it says none.
pub fn memory_of(domain: &Element) -> u64 {
    let Some(memory) = domain.get_child("memory") else { return 0 };
    let number = memory.get_text().and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0);
    match xml::attribute(memory, None, "unit").unwrap_or("KiB") {
        "b" | "bytes" => number >> 20,
        "M" | "MiB" | "MB" => number,
        "G" | "GiB" | "GB" => number << 10,
        _ => number >> 10,
    }
}
