//! Faults between the master and the cloud: nothing is created twice, and nothing is left over.

use super::fixture::{LIMIT, LOOK, OpenstackFixture};
use rouse_master::core::event::StartError;
use rouse_master::core::record::Host;
use rouse_master::hosts::Provider as _;
use rouse_tests::proxy::Fault;
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;

fn refuse(status: u16) -> Fault {
    Fault::Refuse { status, head: "X-Proxy: by the proxy", body: "{\"json\": {\"message\": \"no\"}}" }
}

/// Starts a host while the call that makes its server goes wrong once; one server is there in the end, and then none.
async fn one_server_despite(fault: Fault) {
    let fixture = OpenstackFixture::new("").await;
    let mut host = fixture.host();
    fixture.prepare(&mut host).await.unwrap();
    let name = format!("{fault:?}");
    fixture.proxy.fail(0, 1, fault, |r| r.is("POST", "/servers"));
    fixture.start(&mut host).await.unwrap_or_else(|error| panic!("{name}: {error:?}"));
    let servers = fixture.servers(&host).await;
    assert_eq!(servers.len(), 1, "{name}");
    assert_eq!(servers[0]["id"].as_str(), host.handle.as_deref(), "{name}");
    fixture.terminate(&host).await;
    assert_eq!(fixture.servers(&host).await, [] as [Value; 0], "{name}");
}

/// All at once: most of the time passes with waiting.
async fn all<T, F: Future<Output = ()> + Send + 'static>(of: impl IntoIterator<Item = T>, what: impl Fn(T) -> F) {
    let tasks: Vec<_> = of.into_iter().map(|one| tokio::spawn(what(one))).collect();
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_reply_makes_no_second_server() {
    all([Fault::LoseReply, Fault::Garble(500), Fault::Garble(503), Fault::Garble(504)], one_server_despite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_request_is_made_good() {
    all([Fault::LoseRequest, refuse(500), refuse(503), refuse(401)], one_server_despite).await;
}

/// A host whose start nobody waits for any more, while the call that makes its server is still on its way.
async fn with_a_late_request() -> (OpenstackFixture, Host) {
    let fixture = OpenstackFixture::new("").await;
    let mut host = fixture.host();
    fixture.prepare(&mut host).await.unwrap();
    fixture.proxy.fail(0, 1, Fault::Delay(Duration::from_secs(4)), |r| r.is("POST", "/servers"));
    let lost = tokio::time::timeout(Duration::from_secs(2), fixture.provider.start(&host)).await;
    assert!(lost.is_err(), "the call takes longer: {lost:?}");
    (fixture, host)
}

/// Waits until Nova has answered the late request too, although nobody waits for the answer.
async fn until_heard(fixture: &OpenstackFixture) {
    for _ in 0..LIMIT.as_millis() / LOOK.as_millis() {
        if !fixture.proxy.has_seen(|r| r.is("POST", "/servers") && r.status == 0) {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
    panic!("the late request is not answered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_request_makes_no_second_server() {
    let (fixture, mut host) = with_a_late_request().await;
    fixture.start(&mut host).await.unwrap();
    until_heard(&fixture).await;
    assert_eq!(fixture.servers(&host).await.len(), 1);
    fixture.terminate(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_waits_for_what_may_still_come() {
    let (fixture, host) = with_a_late_request().await;
    fixture.terminate(&host).await;
    until_heard(&fixture).await;
    assert_eq!(fixture.servers(&host).await, [] as [Value; 0], "gone was gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cloud_says_how_long_to_wait() {
    all([413, 429], |status| async move {
        let fixture = OpenstackFixture::new("").await;
        let mut host = fixture.host();
        fixture.prepare(&mut host).await.unwrap();
        fixture.proxy.take_seen();
        let slow = Fault::Refuse { status, head: "Retry-After: 2", body: "{}" };
        fixture.proxy.fail(0, 1, slow.clone(), |r| r.is("POST", "/servers"));
        let begin = rouse_master::clock::now();
        fixture.start(&mut host).await.unwrap();
        assert!(rouse_master::clock::now().since(begin) >= Duration::from_secs(2));
        let posts = fixture.proxy.take_seen().into_iter().filter(|r| r.is("POST", "/servers")).count();
        assert_eq!(posts, 2, "{status}");
        fixture.proxy.fail(0, 1, slow, |r| r.is("DELETE", "/servers"));
        fixture.terminate(&host).await;
        // Longer than a call may take: an error, and nothing was created.
        let mut host = fixture.host();
        let slow = Fault::Refuse { status, head: "Retry-After: 300", body: "{}" };
        fixture.proxy.fail(0, 1, slow, |r| r.is("POST", "/servers"));
        let result = fixture.start(&mut host).await;
        assert!(matches!(result, Err(StartError::Place(_))), "{status}: {result:?}");
        assert_eq!(fixture.servers(&host).await, [] as [Value; 0]);
    })
    .await;
}

#[tokio::test]
async fn refusals_are_distinguished() {
    for (status, expected) in [(403, "Place"), (409, "Rejected"), (400, "Rejected"), (404, "Rejected"), (413, "Quota")]
    {
        let fixture = OpenstackFixture::new("").await;
        let mut host = fixture.host();
        fixture.proxy.fail(0, 1, refuse(status), |r| r.is("POST", "/servers"));
        let error = fixture.start(&mut host).await.unwrap_err();
        assert!(format!("{error:?}").starts_with(expected), "{status}: {error:?}");
        assert_eq!(fixture.servers(&host).await, [] as [Value; 0]);
    }
}

#[tokio::test]
async fn a_list_is_whole_or_an_error() {
    let fixture = OpenstackFixture::new("").await;
    let mut hosts = Vec::new();
    for _ in 0..3 {
        hosts.push(fixture.started().await);
    }
    let made: BTreeSet<_> = hosts.iter().map(|host| host.handle.clone().unwrap()).collect();
    let is_whole = async |when: &str| {
        let listed = fixture.list().await.unwrap();
        assert_eq!(listed.into_iter().map(|one| one.handle).collect::<BTreeSet<_>>(), made, "{when}");
    };
    is_whole("more than one page has").await;
    // Something passing is got over, on any page.
    for skip in 0..2 {
        for fault in [refuse(503), Fault::LoseReply] {
            let name = format!("{fault:?}");
            fixture.proxy.fail(skip, 1, fault, |r| r.is("GET", "/servers/detail"));
            is_whole(&name).await;
            fixture.proxy.heal();
        }
    }
    for skip in 0..2 {
        for fault in [refuse(503), refuse(403), refuse(404), Fault::LoseReply] {
            fixture.proxy.fail(skip, 100, fault, |r| r.is("GET", "/servers/detail"));
            let told = fixture.list().await;
            assert!(told.is_err(), "{told:?}");
            fixture.proxy.heal();
        }
    }
    // A server that moves in the list while it is read is on none of its pages; or what the next one begins behind is gone.
    let moved = Fault::Refuse { status: 200, head: "X-Proxy: by the proxy", body: "{\"servers\": []}" };
    for fault in [moved, refuse(400)] {
        // By its marker and not by its number: a first page that is asked for again has none.
        fixture.proxy.fail(0, 1, fault, |r| r.is("GET", "/servers/detail") && r.path.contains("marker="));
        is_whole("a server moves").await;
        fixture.proxy.heal();
    }
    // A server that Nova has in two places just then takes the room of another, and the short page links to no other.
    for skip in 0..2 {
        fixture.proxy.fail(skip, 1, Fault::Replace("servers_links", "no_links"), |r| r.is("GET", "/servers/detail"));
        is_whole("a page is short").await;
        fixture.proxy.heal();
    }
    let empty = Fault::Refuse { status: 200, head: "X-Proxy: by the proxy", body: "{}" };
    fixture.proxy.fail(0, 1, empty, |r| r.is("GET", "/servers/detail") && r.path.contains("marker="));
    assert!(fixture.list().await.is_err(), "a page without a list");
    for host in &hosts {
        fixture.terminate(host).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_termination_is_done_when_nova_reports_it() {
    let faults = [Fault::LoseReply, Fault::LoseRequest, Fault::Garble(500), refuse(409), refuse(403), refuse(503)];
    all(faults, |fault| async move {
        let fixture = OpenstackFixture::new("").await;
        let host = fixture.started().await;
        fixture.until_status(&host, "ACTIVE").await;
        fixture.proxy.fail(0, 2, fault.clone(), |r| r.is("DELETE", "/servers"));
        let first = fixture.provider.terminate(&host).await;
        assert!(first.is_err(), "{fault:?}: {first:?}");
        fixture.terminate(&host).await;
        assert_eq!(fixture.servers(&host).await, [] as [Value; 0], "{fault:?}");
    })
    .await;
    // Nothing but a 404 of Nova's own is its word: another path's, or another service's, is none.
    let fixture = OpenstackFixture::new("").await;
    let host = fixture.started().await;
    fixture.proxy.fail(0, 1, refuse(500), |r| r.is("GET", "/servers/"));
    fixture.terminate(&host).await;
    assert_eq!(fixture.servers(&host).await, [] as [Value; 0]);
}
