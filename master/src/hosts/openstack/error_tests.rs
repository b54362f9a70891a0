//! How answers are classified.

use super::*;

fn answer(service: Service, status: u16, body: &str) -> CloudError {
    let answer = Answer { service, status, date: None, asks_to_wait: false, path: "/servers", body: body.as_bytes() };
    CloudError::of_answer(&answer)
}

/// The kind of an error of a start.
fn kind(error: &StartError) -> &'static str {
    match error {
        StartError::Capacity(_) => "capacity",
        StartError::Quota(_) => "quota",
        StartError::Rejected(_) => "rejected",
        StartError::Place(_) => "place",
        StartError::Transient(_) => "transient",
        StartError::Unknown(_) => "unknown",
    }
}

#[test]
fn a_quota_is_a_quota_whichever_service_counts_it() {
    let table = [
        (
            Service::Compute,
            403,
            r#"{"forbidden": {"code": 403, "message": "Quota exceeded for cores, ram: Requested 8, 4096, but already used 20, 51200 of 20, 51200 cores, ram"}}"#,
            "quota",
        ),
        (
            Service::Compute,
            403,
            r#"{"forbidden": {"code": 403, "message": "Maximum number of ports exceeded"}}"#,
            "quota",
        ),
        (
            Service::Compute,
            403,
            r#"{"forbidden": {"code": 403, "message": "Maximum number of floating IPs exceeded"}}"#,
            "quota",
        ),
        (
            Service::Compute,
            413,
            r#"{"overLimit": {"code": 413, "message": "This request exceeds the limits."}}"#,
            "quota",
        ),
        (
            Service::Network,
            409,
            r#"{"NeutronError": {"type": "OverQuota", "message": "Quota exceeded for resources: ['floatingip'].", "detail": ""}}"#,
            "quota",
        ),
        (
            Service::Network,
            409,
            r#"{"NeutronError": {"type": "IpAddressGenerationFailure", "message": "No more IP addresses available on network 1234.", "detail": ""}}"#,
            "capacity",
        ),
        (
            Service::Volume,
            413,
            r#"{"overLimit": {"code": 413, "message": "VolumeSizeExceedsAvailableQuota: Requested volume or snapshot exceeds allowed gigabytes quota."}}"#,
            "quota",
        ),
        (
            Service::Volume,
            403,
            r#"{"forbidden": {"code": 403, "message": "VolumeLimitExceeded: Maximum number of volumes allowed (10) exceeded for quota 'volumes'."}}"#,
            "quota",
        ),
        // A policy, whose rule may be about quotas.
        (
            Service::Compute,
            403,
            r#"{"forbidden": {"code": 403, "message": "Policy doesn't allow os_compute_api:os-quota-sets:show to be performed."}}"#,
            "place",
        ),
        (Service::Compute, 403, "<html>go away</html>", "place"),
        (Service::Compute, 401, r#"{"error": {"message": "Authentication required"}}"#, "place"),
        (Service::Compute, 429, "", "place"),
        (Service::Compute, 503, "<html>", "place"),
        (
            Service::Compute,
            400,
            r#"{"badRequest": {"code": 400, "message": "Image 8ac9d4a4-5e03-48b0-acde-77a0345a9ab1 is not active."}}"#,
            "place",
        ),
        (
            Service::Compute,
            400,
            r#"{"badRequest": {"code": 400, "message": "Invalid key_name provided."}}"#,
            "rejected",
        ),
        (
            Service::Compute,
            404,
            r#"{"itemNotFound": {"code": 404, "message": "Flavor 7 could not be found."}}"#,
            "rejected",
        ),
        (
            Service::Compute,
            409,
            r#"{"conflictingRequest": {"code": 409, "message": "Multiple possible networks found"}}"#,
            "transient",
        ),
    ];
    for (service, status, body, expected) in table {
        let error = answer(service, status, body).before_start();
        assert_eq!(kind(&error), expected, "{status} {body}: {error:?}");
    }
}

#[test]
fn a_servers_fault_tells_of_quota_and_room() {
    for (words, cause) in [
        ("No valid host was found. There are not enough hosts available.", Some(Cause::NoRoom)),
        ("Build of instance 1 aborted: VolumeSizeExceedsAvailableQuota: Requested volume exceeds", Some(Cause::Quota)),
        ("PortLimitExceeded: Maximum number of ports exceeded", Some(Cause::Quota)),
        ("No more IP addresses available on network 1", Some(Cause::NoRoom)),
        ("Build of instance 1 aborted: Failed to allocate the network(s), not rescheduling.", Some(Cause::NotReady)),
        ("Exceeded maximum number of retries. Exhausted all hosts available for retrying build failures", None),
        ("the disk is on fire", None),
    ] {
        assert_eq!(Cause::of_words(words), cause, "{words}");
    }
}

#[test]
fn a_page_of_something_in_between_proves_nothing() {
    for status in [400, 404, 405, 409] {
        let page = answer(Service::Compute, status, "<html><h1>Not Found</h1></html>");
        assert!(page.leaves_doubt() && !page.is_missing(), "{status}: {page:?}");
        assert_eq!(kind(&page.before_start()), "place", "{status}");
    }
    assert!(answer(Service::Compute, 404, r#"{"itemNotFound": {"message": "gone"}}"#).is_missing());
    // Glance's own errors may be pages.
    assert!(answer(Service::Image, 404, "<html><h1>404 Not Found</h1></html>").is_missing());
}

#[test]
fn a_refused_login_tells_of_a_wrong_clock() {
    let date = Some("Tue, 15 Nov 1994 08:12:31 GMT");
    for status in [401, 403] {
        let body = br#"{"error": {"message": "no"}}"#;
        let answer = Answer { service: Service::Compute, status, date, asks_to_wait: false, path: "/", body };
        let error = CloudError::of_answer(&answer).before_start();
        assert!(matches!(&error, StartError::Place(why) if why.contains("s ahead of the cloud's")), "{error:?}");
    }
}

#[test]
fn a_limit_with_a_time_to_come_back_is_no_quota() {
    let answer = |asks_to_wait| Answer {
        service: Service::Compute,
        status: 413,
        date: None,
        asks_to_wait,
        path: "/servers",
        body: b"{}",
    };
    assert_eq!(kind(&CloudError::of_answer(&answer(true)).before_start()), "place");
    assert_eq!(kind(&CloudError::of_answer(&answer(false)).before_start()), "quota");
}

#[test]
fn the_message_is_taken_out_of_its_wrapping() {
    let message = |text: &str| words(text.as_bytes());
    assert_eq!(message("{\"forbidden\": {\"code\": 403, \"message\": \"Quota\"}}").as_deref(), Some("Quota"));
    assert_eq!(message("{\"error\": {\"message\": \"No\", \"title\": \"Unauthorized\"}}").as_deref(), Some("No"));
    assert_eq!(message("{\"message\": \"plain\"}").as_deref(), Some("plain"));
    for none in ["", "<html>", "[]", "{\"a\": 1}"] {
        assert_eq!(message(none), None);
    }
}
