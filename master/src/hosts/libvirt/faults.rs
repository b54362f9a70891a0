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
            Kind::Place | Kind::Lost => StartError::Place(error.message().to_owned()),
            Kind::Full => StartError::Capacity(error.message().to_owned()),
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
        Kind::Place => StartError::Place(text),
        Kind::Full => StartError::Capacity(text),
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

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// Not permitted, or something that all guests of the connection need is not active.
    Place,
    /// Not enough memory or disk space.
    Full,
    /// The connection broke, so the result of the call is unknown.
    Lost,
    /// Refused for now.
    Busy,
    /// Refused for good.
    Refused,
}

fn kind(error: &Error) -> Kind {
    kind_of(error.domain().unwrap_or(ErrorDomain::None), code_of(error), error.message())
}

fn kind_of(domain: ErrorDomain, code: ErrorNumber, message: &str) -> Kind {
    match code {
        ErrorNumber::AuthFailed
        | ErrorNumber::AuthCancelled
        | ErrorNumber::AuthUnavailable
        | ErrorNumber::OperationDenied
        | ErrorNumber::AccessDenied
        | ErrorNumber::NoNetworkStart
        | ErrorNumber::NoStorage => Kind::Place,
        ErrorNumber::NoMemory => Kind::Full,
        // The texts of ENOMEM and ENOSPC, which libvirt and QEMU pass on with any code.
        _ if ["Cannot allocate memory", "No space left on device"].iter().any(|said| message.contains(said)) => {
            Kind::Full
        }
        // A network or a storage pool is not started. libvirt has no code for this.
        ErrorNumber::OperationInvalid
            if matches!(domain, ErrorDomain::Network | ErrorDomain::Storage) || message.contains("is not active") =>
        {
            Kind::Place
        }
        ErrorNumber::OperationTimeout | ErrorNumber::OperationAborted | ErrorNumber::ResourceBusy => Kind::Busy,
        _ if matches!(domain, ErrorDomain::Rpc | ErrorDomain::Remote) => Kind::Lost,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_that_is_not_active_is_the_places() {
        let qemu = "internal error: process exited while connecting to monitor: cannot set up guest memory 'pc.ram': \
                    Cannot allocate memory";
        for (domain, code, message, expected) in [
            (ErrorDomain::Network, ErrorNumber::OperationInvalid, "network 'rouse' is not active", Kind::Place),
            (ErrorDomain::Storage, ErrorNumber::OperationInvalid, "storage pool 'p' is not active", Kind::Place),
            (ErrorDomain::Qemu, ErrorNumber::OperationInvalid, "network 'rouse' is not active", Kind::Place),
            (ErrorDomain::Qemu, ErrorNumber::OperationInvalid, "domain 'w' is already active", Kind::Refused),
            (ErrorDomain::Network, ErrorNumber::NoNetwork, "no network with matching name 'x'", Kind::Refused),
            (ErrorDomain::Rpc, ErrorNumber::AuthFailed, "authentication failed", Kind::Place),
            (ErrorDomain::Qemu, ErrorNumber::AccessDenied, "access denied", Kind::Place),
            (ErrorDomain::Rpc, ErrorNumber::SystemError, "Cannot write data: Broken pipe", Kind::Lost),
            (ErrorDomain::Qemu, ErrorNumber::InternalError, qemu, Kind::Full),
            (ErrorDomain::Storage, ErrorNumber::SystemError, "cannot allocate: No space left on device", Kind::Full),
            (ErrorDomain::Qemu, ErrorNumber::NoMemory, "out of memory", Kind::Full),
            (ErrorDomain::Qemu, ErrorNumber::ResourceBusy, "busy", Kind::Busy),
            (ErrorDomain::Xml, ErrorNumber::XmlError, "XML error: no machine", Kind::Refused),
        ] {
            assert_eq!(kind_of(domain, code, message), expected, "{message}");
        }
    }
}
