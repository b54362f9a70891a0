//! Reads domains: which of them run, who owns them, how they were defined.

use super::domain::{NAMESPACE, OwnerTag};
use super::link::{Link, LinkError, code_of};
use super::xml;
use crate::core::event::StartError;
use virt::connect::Connect;
use virt::domain::{Domain, DomainPausedReason, DomainPausedReasonEnum, DomainStateReason, DomainStateReasonEnum};
use virt::error::ErrorNumber;
use virt::sys;
use xmltree::Element;

/// The domain with this UUID, if it runs, and its owner tag, if that is its own.
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
    let tag = tag_of(&domain)?;
    Ok(Some((domain, tag)))
}

/// The owner tag of a domain; none if it has none, or one that was copied from another domain.
fn tag_of(domain: &Domain) -> Result<Option<OwnerTag>, LinkError> {
    let kind = sys::VIR_DOMAIN_METADATA_ELEMENT as i32;
    let text = match domain.metadata(kind, Some(NAMESPACE), sys::VIR_DOMAIN_AFFECT_LIVE) {
        Ok(text) => text,
        // It has no tag, ended just now, or no longer runs.
        Err(error) => {
            return match code_of(&error) {
                ErrorNumber::NoDomainMetadata | ErrorNumber::NoDomain | ErrorNumber::OperationInvalid => Ok(None),
                _ => Err(error.into()),
            };
        }
    };
    let uuid = domain.uuid_string()?;
    Ok(OwnerTag::read(&text).filter(|tag| tag.uuid == uuid))
}

/// All owner tags on a connection.
pub fn tags(connect: &Connect) -> Result<Vec<OwnerTag>, LinkError> {
    let mut found = Vec::new();
    for domain in connect.list_all_domains(sys::VIR_CONNECT_LIST_DOMAINS_ACTIVE)? {
        found.extend(tag_of(&domain)?);
    }
    Ok(found)
}

/// Whether libvirt is still starting the domain: QEMU may not have read its files yet.
pub fn is_starting(domain: &Domain) -> Result<bool, virt::error::Error> {
    let starting = DomainStateReason::Paused(DomainPausedReasonEnum::Known(DomainPausedReason::StartingUp));
    Ok(domain.state()?.1 == DomainStateReasonEnum::Known(starting))
}

/// Ends a domain at once, as if its power were cut.
pub fn end_domain(domain: &Domain) -> Result<(), String> {
    match domain.destroy() {
        Ok(()) => Ok(()),
        Err(error) => match code_of(&error) {
            // It has ended in the meantime.
            ErrorNumber::NoDomain | ErrorNumber::OperationInvalid => Ok(()),
            _ => Err(error.message().to_owned()),
        },
    }
}

/// The definition of a user's domain.
pub async fn definition(link: &Link, name: &str) -> Result<String, StartError> {
    let name = name.to_owned();
    link.call(move |connect| {
        let domain = match connect.lookup_domain_by_name(&name).map_err(LinkError::from) {
            Ok(domain) => domain,
            Err(failed) if failed.no_domain() => {
                let why = format!("there is no domain {name}: define it, or describe it in `xml`");
                return Err(StartError::Rejected(why));
            }
            Err(failed) => return Err(failed.into()),
        };
        let flags = sys::VIR_DOMAIN_XML_SECURE | sys::VIR_DOMAIN_XML_INACTIVE;
        domain.xml_desc(flags).map_err(|error| LinkError::from(error).into())
    })
    .await
}

/// The memory of a described domain, megabytes; 0 if the description does not say.
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
