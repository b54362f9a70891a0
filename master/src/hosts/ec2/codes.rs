//! The meaning of AWS's error codes. There are several hundred, and AWS adds new ones. Therefore families of codes are
//! recognised by parts of their names. The order of the rules matters: `RequestLimitExceeded` is not a limit of the
//! account, and `InvalidCapacityReservationId.NotFound` is not a lack of capacity.

use super::error::Kind;

/// The meaning of a code; none if no rule matches. State reasons, and some compatible clouds, have `Client.` or `Server.`
/// in front of the code.
pub fn kind_of_code(code: &str) -> Option<Kind> {
    let code = code.strip_prefix("Client.").or_else(|| code.strip_prefix("Server.")).unwrap_or(code);
    if is_throttling(code) {
        return Some(Kind::Throttled);
    }
    if is_login(code) {
        return Some(Kind::Auth);
    }
    // Something in the call is wrong, whatever it is named.
    if starts(code, &["Invalid", "Malformed", "Missing", "Unknown"]) {
        return of_named(code);
    }
    if code.starts_with("Idempotent") {
        return Some(Kind::Mismatch);
    }
    if is_quota(code) {
        return Some(Kind::Quota);
    }
    if is_shape(code) {
        return None;
    }
    if starts(code, &["Insufficient", "NotEnough"]) || has(code, &["Capacity", "Spot", "Price"]) {
        return Some(Kind::Capacity);
    }
    if code.starts_with("Unsupported") || has(code, &["NotSupported", "NotAvailableIn"]) {
        return Some(Kind::NotHere);
    }
    if code.starts_with("Incorrect") {
        return Some(Kind::NotYet);
    }
    if code.starts_with("Internal") || ends(code, &["Unavailable", "Timeout"]) {
        return Some(Kind::Unknown);
    }
    match code {
        "Resource.AlreadyAssociated" | "VolumeInUse" => Some(Kind::Exists),
        "DryRunOperation" => Some(Kind::WouldWork),
        _ => None,
    }
}

/// Whether AWS took back an instance that ended with this state reason: on its own account, or because of a limit that it
/// checks only when the instance starts. Not if a user, its own system or an error in the call ended it.
pub fn was_taken_back(reason: &str) -> bool {
    match reason.strip_prefix("Client.") {
        Some(code) => matches!(kind_of_code(code), Some(Kind::Capacity | Kind::Quota)),
        None => reason.starts_with("Server."),
    }
}

/// Whether AWS interrupted the instance of a spot request with this status.
pub fn was_interrupted(status: &str) -> bool {
    status == "marked-for-termination"
        || (status.starts_with("instance-terminated-") && status != "instance-terminated-by-user")
}

fn starts(code: &str, with: &[&str]) -> bool {
    with.iter().any(|with| code.starts_with(with))
}

fn ends(code: &str, with: &[&str]) -> bool {
    with.iter().any(|with| code.ends_with(with))
}

fn has(code: &str, part: &[&str]) -> bool {
    part.iter().any(|part| code.contains(part))
}

/// Too many calls at a time.
fn is_throttling(code: &str) -> bool {
    has(code, &["Throttl", "RateExceeded", "RateLimit"])
        || code.starts_with("TooManyRequests")
        || (code.starts_with("Request") && code.contains("LimitExceeded"))
        || ["BandwidthLimitExceeded", "ConcurrentTagAccess", "PriorRequestNotComplete", "SlowDown"].contains(&code)
}

/// AWS refuses the caller, or does not allow this call.
fn is_login(code: &str) -> bool {
    const PARTS: &[&str] = &[
        "AccessDenied",
        "AccessKeyId",
        "AuthFailure",
        "AuthenticationToken",
        "ClientTokenId",
        "ExpiredToken",
        "NotAuthorized",
        "OptInRequired",
        "PendingVerification",
        "RequestExpired",
        "SecurityToken",
        "Signature",
        "SubscriptionRequired",
        "TimeTooSkewed",
        "Unauthorized",
        "UnrecognizedClient",
    ];
    has(code, PARTS)
        || code.ends_with("Blocked")
        || code == "InvalidSecurity"
        || starts(code, &["InsufficientPermission", "InsufficientPrivilege"])
}

/// A limit of the account.
fn is_quota(code: &str) -> bool {
    let counted = has(code, &["LimitExceeded", "CountExceeded", "Quota"]) || code.starts_with("TooMany");
    (counted || (code.starts_with("Max") && code.ends_with("Exceeded"))) && !is_shape(code)
}

/// A limit of one call or one instance, so that waiting does not help.
fn is_shape(code: &str) -> bool {
    has(code, &["PerInstance", "PerInterface"]) || code == "TagLimitExceeded"
}

/// Something in the call does not exist, does not exist yet, or exists already.
fn of_named(code: &str) -> Option<Kind> {
    Some(match code {
        "InvalidInstanceID.NotFound"
        | "InvalidSpotInstanceRequestID.NotFound"
        | "InvalidVolume.NotFound"
        | "InvalidAddress.NotFound"
        | "InvalidAllocationID.NotFound"
        | "InvalidAssociationID.NotFound"
        | "InvalidAttachment.NotFound" => Kind::NotFound,
        // The provider itself creates these, just before the call.
        "InvalidGroup.NotFound" | "InvalidSecurityGroupID.NotFound" | "InvalidKeyPair.NotFound" => Kind::NotYet,
        code if code.ends_with(".Duplicate") => Kind::Exists,
        _ => return None,
    })
}

/// An explanation of the most common codes.
pub fn said(code: &str) -> Option<&'static str> {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Codes that AWS documents, by their meaning, and some that do not exist but belong to the same families.
    const TABLE: &[(Option<Kind>, &[&str])] = &[
        (
            Some(Kind::Capacity),
            &[
                "InsufficientInstanceCapacity",
                "InsufficientHostCapacity",
                "InsufficientReservedInstanceCapacity",
                "InsufficientCapacity",
                "InsufficientCapacityOnOutpost",
                "InsufficientFreeAddressesInSubnet",
                "InsufficientAddressCapacity",
                "InsufficientVolumeCapacity",
                "InsufficientSomethingNew",
                "UnfulfillableCapacity",
                "ReservationCapacityExceeded",
                "CapacityNotAvailable",
                "SpotMaxPriceTooLow",
                "SpotMarketClosed",
                "Server.InsufficientInstanceCapacity",
                "NotEnoughResources",
            ],
        ),
        (
            Some(Kind::Quota),
            &[
                "InstanceLimitExceeded",
                "VcpuLimitExceeded",
                "HostLimitExceeded",
                "VolumeLimitExceeded",
                "AddressLimitExceeded",
                "NetworkInterfaceLimitExceeded",
                "PrivateIpAddressLimitExceeded",
                "ResourceLimitExceeded",
                "LimitExceededException",
                "MaxIOPSLimitExceeded",
                "MaxSpotInstanceCountExceeded",
                "MaxSpotFleetRequestCountExceeded",
                "MaxScheduledInstanceCapacityExceeded",
                "ServiceQuotaExceededException",
                "QuotaExceeded",
                "SomethingNewLimitExceeded",
                "Client.VolumeLimitExceeded",
            ],
        ),
        (
            Some(Kind::Throttled),
            &[
                "RequestLimitExceeded",
                "Client.RequestLimitExceeded",
                "RequestResourceCountLimitExceeded",
                "Throttling",
                "ThrottlingException",
                "ThrottledException",
                "RequestThrottled",
                "RequestThrottledException",
                "EC2ThrottledException",
                "TooManyRequestsException",
                "RequestRateExceeded",
                "BandwidthLimitExceeded",
                "SlowDown",
                "ConcurrentTagAccess",
                "PriorRequestNotComplete",
            ],
        ),
        (
            Some(Kind::Auth),
            &[
                "AuthFailure",
                "UnauthorizedOperation",
                "AccessDenied",
                "AccessDeniedException",
                "InvalidClientTokenId",
                "InvalidAccessKeyId",
                "InvalidSecurity",
                "UnrecognizedClientException",
                "SignatureDoesNotMatch",
                "InvalidSignatureException",
                "IncompleteSignature",
                "MissingAuthenticationToken",
                "ExpiredToken",
                "ExpiredTokenException",
                "RequestExpired",
                "RequestTimeTooSkewed",
                "NotAuthorized",
                "OptInRequired",
                "SubscriptionRequiredException",
                "PendingVerification",
                "Blocked",
            ],
        ),
        (Some(Kind::Mismatch), &["IdempotentParameterMismatch", "IdempotentInstanceTerminated"]),
        (
            Some(Kind::NotHere),
            &[
                "Unsupported",
                "UnsupportedOperation",
                "UnsupportedInstanceTypeOnHost",
                "UnsupportedHibernationConfiguration",
                "VolumeTypeNotAvailableInZone",
            ],
        ),
        (Some(Kind::NotYet), &["InvalidGroup.NotFound", "InvalidKeyPair.NotFound", "IncorrectInstanceState"]),
        (Some(Kind::NotFound), &["InvalidInstanceID.NotFound", "InvalidSpotInstanceRequestID.NotFound"]),
        (Some(Kind::Exists), &["InvalidKeyPair.Duplicate", "InvalidPermission.Duplicate", "VolumeInUse"]),
        (
            Some(Kind::Unknown),
            &["InternalError", "InternalFailure", "ServiceUnavailable", "Unavailable", "RequestTimeout"],
        ),
        (Some(Kind::WouldWork), &["DryRunOperation"]),
        (
            None,
            &[
                "InvalidAMIID.NotFound",
                "InvalidAMIID.Unavailable",
                "InvalidCapacityReservationId.NotFound",
                "InvalidParameterValue",
                "InvalidSpotFleetRequestConfig",
                "InvalidSubnetID.NotFound",
                "MissingParameter",
                "UnknownParameter",
                "OperationNotPermitted",
                "SecurityGroupsPerInstanceLimitExceeded",
                "TagLimitExceeded",
                "VPCIdNotSpecified",
                "NeverHeardOf",
            ],
        ),
    ];

    #[test]
    fn a_code_is_known_by_how_it_is_built() {
        for (kind, codes) in TABLE {
            for code in *codes {
                assert_eq!(kind_of_code(code), *kind, "{code}");
            }
        }
    }

    #[test]
    fn what_aws_takes_back_is_told_from_what_its_user_ends() {
        for reason in [
            "Server.SpotInstanceTermination",
            "Server.SpotInstanceShutdown",
            "Server.InsufficientInstanceCapacity",
            "Server.InternalError",
            "Server.ScheduledStop",
            "Client.VolumeLimitExceeded",
            "Client.InstanceLimitExceeded",
        ] {
            assert!(was_taken_back(reason), "{reason}");
        }
        for reason in [
            "Client.UserInitiatedShutdown",
            "Client.UserInitiatedHibernate",
            "Client.InstanceInitiatedShutdown",
            "Client.InvalidSnapshot.NotFound",
            "Client.InternalError",
            "",
        ] {
            assert!(!was_taken_back(reason), "{reason}");
        }
        for status in ["instance-terminated-by-price", "instance-terminated-no-capacity", "marked-for-termination"] {
            assert!(was_interrupted(status), "{status}");
        }
        for status in ["instance-terminated-by-user", "fulfilled", "request-canceled-and-instance-running"] {
            assert!(!was_interrupted(status), "{status}");
        }
    }
}
