//! What AWS's errors mean: by their codes, never by their texts.

use crate::core::event::StartError;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_ec2::config::http::HttpResponse;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use std::error::Error;

/// The kind of an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// No capacity, a limit of the account, or a spot price above the bid.
    Capacity,
    /// This type is not available in this zone, or not in this way. Another may be.
    NotHere,
    /// The call is wrong, or names something that does not exist.
    Rejected,
    /// There is no such instance, request, volume or address.
    NotFound,
    /// Something that was just created or changed may not be known everywhere yet.
    NotYet,
    /// The client token was used with another call.
    Mismatch,
    /// What is to be created exists.
    Exists,
    /// The credentials are missing or rejected.
    Auth,
    /// Too many calls: nothing was done.
    Throttled,
    /// The call may have been carried out.
    Unknown,
    /// A dry run that would have succeeded.
    WouldWork,
}

/// A call that failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text}")]
pub struct CallError {
    /// What it means.
    pub kind: Kind,
    /// What failed, with AWS's text.
    pub text: String,
}

impl CallError {
    /// The meaning for a call that creates nothing.
    pub fn before_start(self) -> StartError {
        match self.kind {
            Kind::Auth | Kind::Throttled | Kind::Unknown => StartError::Place(self.text),
            Kind::Capacity | Kind::NotHere => StartError::Capacity(self.text),
            Kind::NotYet => StartError::Transient(self.text),
            Kind::Rejected | Kind::NotFound | Kind::Mismatch | Kind::Exists | Kind::WouldWork => {
                StartError::Rejected(self.text)
            }
        }
    }

    /// The meaning for the call that creates an instance. `more` is whether another type or zone can be tried.
    pub fn of_start(self, more: bool) -> StartError {
        match self.kind {
            Kind::Auth | Kind::Throttled => StartError::Place(self.text),
            Kind::Capacity => StartError::Capacity(self.text),
            Kind::NotHere if more => StartError::Capacity(self.text),
            Kind::NotYet => StartError::Transient(self.text),
            Kind::Unknown | Kind::Mismatch => StartError::Unknown(self.text),
            Kind::NotHere | Kind::Rejected | Kind::NotFound | Kind::Exists | Kind::WouldWork => {
                StartError::Rejected(self.text)
            }
        }
    }
}

/// Converts the error of a call. `what` is the purpose of the call, such as "start the instance".
pub fn call_error<E>(what: &str, error: &SdkError<E, HttpResponse>) -> CallError
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let kind = kind_of(error);
    let words = match (error.code(), error.message()) {
        (Some(code), Some(message)) => format!("{}: {}", said(code).unwrap_or(code), message.trim_end_matches('.')),
        (Some(code), None) => said(code).unwrap_or(code).to_owned(),
        (None, _) => chain(error),
    };
    CallError { kind, text: format!("cannot {what}: {words}") }
}

fn kind_of<E>(error: &SdkError<E, HttpResponse>) -> Kind
where
    E: ProvideErrorMetadata + Error + 'static,
{
    match error {
        SdkError::ServiceError(service) => {
            let status = service.raw().status();
            match error.code().and_then(of_code) {
                Some(kind) => kind,
                // Also an answer that is not AWS's: whether the call was carried out is unknown.
                None if !status.is_client_error() => Kind::Unknown,
                None => Kind::Rejected,
            }
        }
        SdkError::ConstructionFailure(_) | SdkError::DispatchFailure(_) if without_credentials(error) => Kind::Auth,
        SdkError::ConstructionFailure(_) => Kind::Rejected,
        // The connection broke, or the answer was not understood. The call may have arrived.
        _ => Kind::Unknown,
    }
}

fn without_credentials(error: &(dyn Error + 'static)) -> bool {
    let mut next = error.source();
    while let Some(cause) = next {
        if cause.is::<CredentialsError>() {
            return true;
        }
        next = cause.source();
    }
    false
}

/// The meaning of one of AWS's codes; none for one of the several hundred that are not known here.
fn of_code(code: &str) -> Option<Kind> {
    Some(match code {
        "InsufficientInstanceCapacity"
        | "InsufficientHostCapacity"
        | "InsufficientReservedInstanceCapacity"
        | "InsufficientCapacity"
        | "InsufficientCapacityOnOutpost"
        | "InsufficientFreeAddressesInSubnet"
        | "InsufficientVolumeCapacity"
        | "InstanceLimitExceeded"
        | "VcpuLimitExceeded"
        | "MaxSpotInstanceCountExceeded"
        | "MaxSpotFleetRequestCountExceeded"
        | "VolumeLimitExceeded"
        | "MaxIOPSLimitExceeded"
        | "NetworkInterfaceLimitExceeded"
        | "PrivateIpAddressLimitExceeded"
        | "ReservationCapacityExceeded"
        | "SpotMaxPriceTooLow" => Kind::Capacity,
        "Unsupported"
        | "UnsupportedOperation"
        | "UnsupportedInstanceTypeOnHost"
        | "UnsupportedHibernationConfiguration" => Kind::NotHere,
        "InvalidInstanceID.NotFound"
        | "InvalidSpotInstanceRequestID.NotFound"
        | "InvalidVolume.NotFound"
        | "InvalidAddress.NotFound"
        | "InvalidAllocationID.NotFound"
        | "InvalidAssociationID.NotFound"
        | "InvalidAttachment.NotFound" => Kind::NotFound,
        "InvalidGroup.NotFound"
        | "InvalidSecurityGroupID.NotFound"
        | "InvalidKeyPair.NotFound"
        | "IncorrectInstanceState"
        | "IncorrectState" => Kind::NotYet,
        "IdempotentParameterMismatch" | "IdempotentInstanceTerminated" => Kind::Mismatch,
        "InvalidKeyPair.Duplicate" | "InvalidGroup.Duplicate" | "Resource.AlreadyAssociated" | "VolumeInUse" => {
            Kind::Exists
        }
        "UnauthorizedOperation"
        | "AuthFailure"
        | "AccessDenied"
        | "AccessDeniedException"
        | "InvalidClientTokenId"
        | "UnrecognizedClientException"
        | "SignatureDoesNotMatch"
        | "IncompleteSignature"
        | "MissingAuthenticationToken"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "RequestExpired"
        | "NotAuthorized"
        | "OptInRequired"
        | "PendingVerification"
        | "Blocked" => Kind::Auth,
        "RequestLimitExceeded"
        | "Throttling"
        | "ThrottlingException"
        | "RequestThrottled"
        | "RequestThrottledException"
        | "TooManyRequestsException"
        | "EC2ThrottledException"
        | "SlowDown"
        | "BandwidthLimitExceeded"
        | "ConcurrentTagAccess"
        | "PriorRequestNotComplete" => Kind::Throttled,
        "InternalError" | "InternalFailure" | "ServiceUnavailable" | "Unavailable" | "RequestTimeout" => Kind::Unknown,
        "DryRunOperation" => Kind::WouldWork,
        _ => return None,
    })
}

/// An explanation of the most common codes.
fn said(code: &str) -> Option<&'static str> {
    Some(match code {
        "InsufficientInstanceCapacity" | "InsufficientHostCapacity" | "InsufficientCapacity" => {
            "AWS has no capacity for it now"
        }
        "InstanceLimitExceeded" | "VcpuLimitExceeded" => "the account's limit of instances is reached",
        "MaxSpotInstanceCountExceeded" => "the account's limit of spot instances is reached",
        "VolumeLimitExceeded" => "the account's limit of volumes is reached",
        "InsufficientFreeAddressesInSubnet" => "the subnet has no free address",
        "IncorrectInstanceState" => "the instance is not in a state for it",
        "SpotMaxPriceTooLow" => "the bid is below the spot price",
        "Unsupported" => "this zone does not offer it in this way",
        "InvalidAMIID.NotFound" | "InvalidAMIID.Unavailable" => "the image is gone",
        "InvalidAMIID.Malformed" => "this is not the id of an image",
        "InvalidKeyPair.NotFound" => "there is no such key pair",
        "InvalidGroup.NotFound" | "InvalidSecurityGroupID.NotFound" => "there is no such security group",
        "InvalidSubnetID.NotFound" => "there is no such subnet",
        "UnauthorizedOperation" | "AccessDenied" | "AccessDeniedException" => "the credentials do not allow it",
        "AuthFailure" | "InvalidClientTokenId" | "UnrecognizedClientException" => "AWS does not know the credentials",
        "SignatureDoesNotMatch" => "the secret key is wrong",
        "ExpiredToken" | "ExpiredTokenException" | "RequestExpired" => {
            "the credentials have expired, or this machine's clock is wrong"
        }
        "OptInRequired" => "the account is not signed up for this",
        "PendingVerification" => "AWS has not verified the account yet",
        "RequestLimitExceeded" | "Throttling" | "ThrottlingException" => "too many calls to AWS",
        "IdempotentParameterMismatch" => "the client token was used before with other parameters",
        _ => return None,
    })
}

/// An error with its causes, each once, because some errors repeat their source.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_decide_what_comes_next() {
        let of = |code: &str, more| CallError { kind: of_code(code).unwrap(), text: code.to_owned() }.of_start(more);
        let capacity = |code: &str| StartError::Capacity(code.to_owned());
        for code in ["InsufficientInstanceCapacity", "VcpuLimitExceeded", "SpotMaxPriceTooLow"] {
            assert_eq!(of(code, false), capacity(code));
        }
        // If this zone does not have a type, another type is tried. If there is no other, the configuration is wrong.
        assert_eq!(of("Unsupported", true), capacity("Unsupported"));
        assert!(matches!(of("Unsupported", false), StartError::Rejected(_)));
        assert!(matches!(of("AuthFailure", true), StartError::Place(_)));
        assert!(matches!(of("RequestLimitExceeded", true), StartError::Place(_)));
        // What may have made something is repeated as it is, never bought anew.
        for code in ["InternalError", "Unavailable", "IdempotentParameterMismatch"] {
            assert!(matches!(of(code, true), StartError::Unknown(_)), "{code}");
        }
        assert_eq!(of_code("InvalidAMIID.NotFound"), None, "an unknown code of the client's fault is a refusal");
    }
}
