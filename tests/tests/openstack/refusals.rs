//! After a refusal of the cloud, only those wait whom it concerns.

use super::fixture::OpenstackFixture;
use rouse_master::core::event::StartError;
use rouse_master::hosts::Provider as _;
use rouse_tests::contract::boot_data;
use rouse_tests::proxy::Fault;
use serde_json::Value;
use std::collections::BTreeSet;

fn refuse(status: u16, body: &'static str) -> Fault {
    Fault::Refuse { status, head: "X-Told: by the proxy", body }
}

#[tokio::test]
async fn quota_of_ports_waits_and_blames_nobody() {
    let fixture = OpenstackFixture::new("").await;
    let mut host = fixture.host();
    let full = r#"{"forbidden": {"code": 403, "message": "Maximum number of ports exceeded"}}"#;
    fixture.proxy.fail(0, 3, refuse(403, full), |r| r.is("POST", "/servers"));
    for _ in 0..3 {
        let refused = fixture.start(&mut host).await;
        assert!(matches!(&refused, Err(StartError::Quota(why)) if why.contains("ports exceeded")), "{refused:?}");
        assert_eq!(fixture.servers(&host).await, [] as [Value; 0]);
    }
    // Somebody has freed one.
    fixture.start(&mut host).await.unwrap();
    fixture.terminate(&host).await;
}

#[tokio::test]
async fn quota_of_floating_addresses_makes_no_server_that_cannot_attach() {
    let fixture = OpenstackFixture::new("floating_ip_pool = \"public\"").await;
    let mut host = fixture.host();
    let full = r#"{"NeutronError": {"type": "OverQuota", "message": "Quota exceeded for resources: ['floatingip'].", "detail": ""}}"#;
    fixture.proxy.fail(0, 1, refuse(409, full), |r| r.is("POST", "/floatingips"));
    let refused = fixture.start(&mut host).await;
    assert!(matches!(&refused, Err(StartError::Quota(why)) if why.contains("floatingip")), "{refused:?}");
    assert!(!fixture.proxy.has_seen(|r| r.is("POST", "/servers")), "nothing was made");
    // An address that was taken for a server which is refused then is given back.
    let no = r#"{"badRequest": {"code": 400, "message": "no"}}"#;
    fixture.proxy.fail(0, 1, refuse(400, no), |r| r.is("POST", "/servers"));
    let refused = fixture.start(&mut host).await;
    assert!(matches!(&refused, Err(StartError::Rejected(_))), "{refused:?}");
    let mut left = fixture.user.list("network", "/v2.0/floatingips", "floatingips").await;
    left.retain(|item| item.to_string().contains(host.id.as_str()));
    assert_eq!(left, [] as [Value; 0]);
}

#[tokio::test]
async fn the_next_flavor_is_tried_where_there_is_no_room() {
    let fixture = OpenstackFixture::new("flavor = [\"m1.huge\", \"m1.small\"]\navailability_zone = [\"nova\"]").await;
    let mut host = fixture.host();
    fixture.prepare(&mut host).await.unwrap();
    let order = host.launch.clone().unwrap();
    assert_eq!((order.number, order.more, order.alternative.as_str()), (0, true, "flavor m1.huge in zone nova"));
    let full = fixture.start(&mut host).await;
    assert!(matches!(&full, Err(StartError::Capacity(why)) if why.contains("No valid host")), "{full:?}");
    let prepare = async |number, resting: &[&str]| {
        let resting: BTreeSet<String> = resting.iter().map(|one| (*one).to_owned()).collect();
        fixture.provider.prepare(&host, number, &resting, boot_data(&host)).await
    };
    let both = ["flavor m1.huge in zone nova", "flavor m1.small in zone nova"];
    let rests = prepare(0, &both).await;
    assert!(matches!(&rests, Err(StartError::Capacity(why)) if why.contains("m1.small")), "{rests:?}");
    let next = prepare(0, &both[..1]).await.unwrap();
    assert_eq!((next.number, next.more, next.alternative.as_str()), (1, false, both[1]));
    host.launch = Some(next);
    fixture.start(&mut host).await.unwrap();
    let server = fixture.until_status(&host, "ACTIVE").await;
    assert_eq!(server["flavor"]["original_name"], "m1.small");
    fixture.terminate(&host).await;
}

#[tokio::test]
async fn a_wrong_clock_is_told_with_the_refusal() {
    let fixture = OpenstackFixture::new("").await;
    let body = r#"{"error": {"code": 401, "message": "The request you have made requires authentication."}}"#;
    let refusal = Fault::Refuse { status: 401, head: "Date: Tue, 15 Nov 1994 08:12:31 GMT", body };
    fixture.proxy.fail(0, 9, refusal, |r| r.is("POST", "/auth/tokens"));
    let mut host = fixture.host();
    let refused = fixture.prepare(&mut host).await.unwrap_err();
    let StartError::Place(why) = &refused else { panic!("{refused:?}") };
    assert!(why.contains("this machine's clock is ") && why.ends_with("s ahead of the cloud's"), "{why}");
}

#[tokio::test]
async fn a_page_of_something_in_between_blames_the_place() {
    let fixture = OpenstackFixture::new("").await;
    let mut host = fixture.host();
    for (status, service) in [(200, "/auth/tokens"), (502, "/auth/tokens"), (404, "/flavors"), (502, "/flavors")] {
        let page = refuse(status, "<html><h1>Sorry</h1></html>");
        fixture.proxy.fail(0, 9, page, move |r| r.path.contains(service));
        let refused = fixture.prepare(&mut host).await;
        assert!(matches!(&refused, Err(StartError::Place(_))), "{status} {service}: {refused:?}");
        fixture.proxy.heal();
    }
    fixture.start(&mut host).await.unwrap();
    // Nor is it Nova's word that a server is gone.
    fixture.proxy.fail(0, 1, refuse(404, "<html><h1>Not Found</h1></html>"), |r| r.is("DELETE", "/servers/"));
    fixture.provider.terminate(&host).await.unwrap_err();
    assert_eq!(fixture.servers(&host).await.len(), 1);
    fixture.terminate(&host).await;
}

#[tokio::test]
async fn console_output_that_cannot_be_read_is_no_silence() {
    let fixture = OpenstackFixture::new("").await;
    let mut host = fixture.host();
    fixture.start(&mut host).await.unwrap();
    let no = r#"{"conflictingRequest": {"code": 409, "message": "Instance not ready"}}"#;
    fixture.proxy.fail(0, 9, refuse(409, no), |r| r.is("POST", "/action"));
    let told = fixture.provider.console(&host).await.unwrap_or_default();
    assert!(told.contains("the console output cannot be read") && told.contains("Instance not ready"), "{told}");
    fixture.proxy.heal();
    fixture.terminate(&host).await;
}
