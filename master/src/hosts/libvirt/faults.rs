//! The meaning of libvirt's errors, by their kind: what caused them, and whether something may have been created.

use super::link::{LinkError, code_of};
use crate::config::hosts::connection_is_local;
use crate::core::event::StartError;
use virt::connect::Connect;
use virt::error::{Error, ErrorDomain, ErrorNumber};

/// The meaning of an error in a start that has created nothing yet.
pub fn before(failed: LinkError) -> StartError {
    match failed {
        LinkError::Unreachable(why) => StartError::Place(why),
        LinkError::Interrupted(why) => StartError::Unknown(why),
        LinkError::Libvirt(error) => match kind(&error) {
            Kind::Auth | Kind::Lost => StartError::Place(error.message().to_owned()),
            Kind::Busy => StartError::Transient(error.message().to_owned()),
            Kind::Refused => StartError::Rejected(error.message().to_owned()),
        },
    }
}

/// The meaning of a failed call to create a domain.
pub fn create(connect: &Connect, uri: &str, memory_mb: u64, error: &Error) -> StartError {
    let text = error.message().to_owned();
    if !connect.is_alive().unwrap_or(false) {
        return StartError::Unknown(text);
    }
    match kind(error) {
        Kind::Auth => StartError::Place(text),
        Kind::Lost => StartError::Unknown(text),
        Kind::Busy => StartError::Transient(text),
        // libvirt has one kind for all of QEMU's errors. Whether there was too little memory can be checked.
        Kind::Refused if room_for(connect, uri, memory_mb) == Some(false) => {
            StartError::Capacity(format!("not enough memory for {memory_mb} MB: {text}"))
        }
        Kind::Refused => StartError::Rejected(text),
    }
}

impl From<LinkError> for StartError {
    fn from(failed: LinkError) -> Self {
        before(failed)
    }
}

enum Kind {
    /// Not permitted.
    Auth,
    /// The connection broke, so the result of the call is unknown.
    Lost,
    /// Refused for now.
    Busy,
    /// Refused for good.
    Refused,
}

fn kind(error: &Error) -> Kind {
    let of_the_link = matches!(error.domain().unwrap_or(ErrorDomain::None), ErrorDomain::Rpc | ErrorDomain::Remote);
    match code_of(error) {
        ErrorNumber::AuthFailed
        | ErrorNumber::AuthCancelled
        | ErrorNumber::AuthUnavailable
        | ErrorNumber::OperationDenied
        | ErrorNumber::AccessDenied => Kind::Auth,
        ErrorNumber::OperationTimeout
        | ErrorNumber::OperationAborted
        | ErrorNumber::ResourceBusy
        | ErrorNumber::NoMemory => Kind::Busy,
        _ if of_the_link => Kind::Lost,
        _ => Kind::Refused,
    }
}

/// Whether a machine has this much free memory; none if this is unknown.
fn room_for(connect: &Connect, uri: &str, memory_mb: u64) -> Option<bool> {
    let free_kb = if connection_is_local(uri) {
        let text = std::fs::read_to_string("/proc/meminfo").ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?.to_owned();
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()?
    } else {
        connect.free_memory().ok()? / 1024
    };
    Some(free_kb / 1024 >= memory_mb)
}
